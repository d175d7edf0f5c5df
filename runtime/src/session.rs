//! The memory of runs.

use std::sync::Arc;

use aether_codegen_cpu::pool::Pool;
use aether_codegen_cpu::{Arg, RunError, Workspace};

use crate::{Executable, RuntimeError};

/// Runs an executable, one run at a time, in memory of its own.
pub struct Session {
    executable: Arc<Executable>,
    workspace: Workspace,
    pool: Arc<Pool>,
}

impl Session {
    /// Memory for runs, and workers of its own.
    ///
    /// # Errors
    /// When the threads cannot be started, or the memory cannot be had.
    pub fn new(executable: Arc<Executable>) -> Result<Session, RuntimeError> {
        let pool = Arc::new(Pool::new(executable.threads())?);
        Session::with_pool(executable, pool)
    }

    /// As [`Session::new`], sharing workers: sessions take turns.
    ///
    /// The pool must have as many workers as the executable was compiled for; one of another size
    /// is refused by the run.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn with_pool(
        executable: Arc<Executable>,
        pool: Arc<Pool>,
    ) -> Result<Session, RuntimeError> {
        let program = executable.program();
        let symbols = &executable.module().symbols;
        let results = program.results().iter().zip(program.result_aliases());
        let bytes = results
            .filter(|(_, alias)| alias.is_none())
            .try_fold(program.frame_bytes() as u64, |sum, (ty, _)| {
                sum.checked_add(ty.max_bytes(symbols)?)
            })
            .unwrap_or(u64::MAX);
        check_memory(&format!("@{}", executable.entry()), bytes)?;
        Ok(Session { workspace: program.workspace(), executable, pool })
    }

    /// What is run.
    pub fn executable(&self) -> &Arc<Executable> {
        &self.executable
    }

    /// The workers.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Runs once; results are then had by index. Donated arguments are written: results that take
    /// them over are in their bytes. Allocates nothing but for errors.
    ///
    /// # Errors
    /// When the arguments do not fit, or a step fails.
    pub fn run(&mut self, args: &mut [Arg<'_>]) -> Result<(), RunError> {
        self.executable.program().run(&self.pool, &mut self.workspace, args)
    }

    /// The bytes of result `index` of the last run; empty when it took over an argument.
    pub fn result(&self, index: usize) -> &[u8] {
        self.workspace.result(index)
    }

    /// The elements of an f32 result of the last run, and its shape.
    pub fn result_f32(&self, index: usize) -> (&[f32], &[usize]) {
        self.workspace.result_f32(index)
    }

    /// The shape of result `index` of the last run.
    pub fn result_shape(&self, index: usize) -> &[usize] {
        self.workspace.result_shape(index)
    }

    /// Bytes of arena and results.
    pub fn bytes(&self) -> usize {
        self.workspace.bytes()
    }
}

/// Whether so many bytes can be had at once: allocating more ends the process.
///
/// # Errors
/// When they cannot.
pub fn check_memory(what: &str, bytes: u64) -> Result<(), RuntimeError> {
    let fits = usize::try_from(bytes)
        .is_ok_and(|n| Vec::<u8>::new().try_reserve_exact(n.saturating_add(4096)).is_ok());
    if fits { Ok(()) } else { Err(RuntimeError::Memory { what: what.to_owned(), bytes }) }
}

/// The memory of an argument list, kept between runs.
///
/// Arguments borrow what they point to, so a list of them cannot outlive a run; its memory can.
#[derive(Default)]
pub struct ArgBuffer(Vec<Arg<'static>>);

impl ArgBuffer {
    /// An empty list for so many arguments.
    pub fn with_capacity(n: usize) -> Self {
        ArgBuffer(Vec::with_capacity(n))
    }

    /// The empty list, for one run; give it back with [`ArgBuffer::restore`].
    pub fn take<'a>(&mut self) -> Vec<Arg<'a>> {
        recycle(std::mem::take(&mut self.0))
    }

    /// Keeps the memory of a list for the next run.
    pub fn restore(&mut self, args: Vec<Arg<'_>>) {
        self.0 = recycle(args);
    }
}

/// Empties a list and gives it another lifetime. The standard library collects in place, so the
/// memory is the same; if ever it did not, the cost would be an allocation.
fn recycle<'b>(mut args: Vec<Arg<'_>>) -> Vec<Arg<'b>> {
    args.clear();
    args.into_iter().map_while(|_| None::<Arg<'b>>).collect()
}
