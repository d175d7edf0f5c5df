//! The memory of runs.

use std::sync::Arc;

use aether_codegen_cpu::pool::Pool;
use aether_codegen_cpu::{AlignedBytes, Workspace};
use aether_codegen_cpu::{Arg as CpuArg, ArgData as CpuArgData};

use crate::arg::{Arg, ArgData, State};
use crate::executable::Code;
use crate::gpu::{GpuError, GpuSession};
use crate::hybrid::HybridSession;
use crate::trace::{Span, Traffic};
use crate::{Executable, RunError, RuntimeError};

/// Runs an executable, one run at a time, in memory of its own.
pub struct Session {
    executable: Arc<Executable>,
    memory: Memory,
    pool: Arc<Pool>,
}

enum Memory {
    Cpu { workspace: Workspace, args: Recycled },
    Gpu(Box<GpuSession>),
    Hybrid(HybridSession),
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
        let memory = match executable.code() {
            Code::Gpu(gpu) => Memory::Gpu(Box::new(GpuSession::new(gpu.clone(), None)?)),
            Code::Hybrid(hybrid) => {
                Memory::Hybrid(HybridSession::new(hybrid.clone(), &pool, None)?)
            }
            Code::Cpu { program, .. } => {
                let symbols = &executable.module().symbols;
                let results = program.results().iter().zip(program.result_aliases());
                let bytes = results
                    .filter(|(_, alias)| alias.is_none())
                    .try_fold(program.frame_bytes() as u64, |sum, (ty, _)| {
                        sum.checked_add(ty.max_bytes(symbols)?)
                    })
                    .unwrap_or(u64::MAX);
                check_memory(&format!("@{}", executable.entry()), bytes)?;
                Memory::Cpu { workspace: program.workspace(), args: Recycled::default() }
            }
        };
        Ok(Session { memory, executable, pool })
    }

    /// As [`Session::with_pool`] for another executable of the same parameters, whose states are
    /// those of this session.
    ///
    /// # Errors
    /// As [`Session::new`], or when the two run on different devices.
    pub fn sibling(&self, executable: Arc<Executable>) -> Result<Session, RuntimeError> {
        match (executable.code(), &self.memory) {
            (Code::Gpu(gpu), Memory::Gpu(own))
                if Arc::ptr_eq(gpu.gpu(), own.executable().gpu()) =>
            {
                let memory = Memory::Gpu(Box::new(GpuSession::new(gpu.clone(), Some(own))?));
                Ok(Session { memory, executable, pool: self.pool.clone() })
            }
            (Code::Hybrid(hybrid), Memory::Hybrid(own)) => {
                let memory = HybridSession::new(hybrid.clone(), &self.pool, Some(own))?;
                let memory = Memory::Hybrid(memory);
                Ok(Session { memory, executable, pool: self.pool.clone() })
            }
            // States of the host belong to nobody.
            (Code::Cpu { .. }, Memory::Cpu { .. }) => {
                Session::with_pool(executable, self.pool.clone())
            }
            _ => Err(GpuError::ForeignState.into()),
        }
    }

    /// What is run.
    pub fn executable(&self) -> &Arc<Executable> {
        &self.executable
    }

    /// The workers.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Zeros for a parameter of fixed or bounded size, where runs of this session read and write
    /// them in place. On a GPU, whole or in part, a session has one state for each parameter.
    ///
    /// # Errors
    /// When there is no such parameter, or the memory cannot be had.
    pub fn state(&self, param: usize) -> Result<State, RuntimeError> {
        let params = self.executable.params();
        let ty = params.get(param).ok_or_else(|| RuntimeError::ArgCount {
            func: self.executable.entry().clone(),
            expected: params.len(),
            found: param + 1,
        })?;
        match &self.memory {
            Memory::Gpu(session) => Ok(State::Device(session.state(param))),
            Memory::Hybrid(session) => session.state(param),
            Memory::Cpu { .. } => {
                let bytes = ty.max_bytes(&self.executable.module().symbols).unwrap_or(u64::MAX);
                check_memory(&format!("argument {param}"), bytes)?;
                Ok(State::Host(AlignedBytes::zeroed(bytes as usize)))
            }
        }
    }

    /// Runs once; results are then had by index. Donated arguments are written: results that take
    /// them over are in their bytes. On the CPU nothing is allocated but for errors.
    ///
    /// # Errors
    /// When the arguments do not fit, or a step fails.
    pub fn run(&mut self, args: &mut [Arg<'_>]) -> Result<(), RunError> {
        let Session { executable, memory, pool } = self;
        match (executable.code(), memory) {
            (Code::Cpu { program, .. }, Memory::Cpu { workspace, args: recycled }) => {
                let mut lent = recycled.take();
                for arg in args.iter_mut() {
                    let data = match &mut arg.data {
                        ArgData::Read(bytes) => CpuArgData::Read(bytes),
                        ArgData::Write(bytes) => CpuArgData::Write(bytes),
                        ArgData::State(State::Host(bytes)) => {
                            CpuArgData::Write(bytes.as_mut_slice())
                        }
                        ArgData::State(State::Device(_)) => {
                            return Err(GpuError::ForeignState.into());
                        }
                    };
                    lent.push(CpuArg { shape: arg.shape, data });
                }
                let outcome = program.run(pool, workspace, &mut lent);
                recycled.restore(lent);
                Ok(outcome?)
            }
            (_, Memory::Gpu(session)) => session.run(args),
            (_, Memory::Hybrid(session)) => session.run(args),
            (_, Memory::Cpu { .. }) => Err(GpuError::ForeignState.into()),
        }
    }

    /// Times every op of the runs from now on.
    ///
    /// # Errors
    /// When it runs on the CPU, which has no such times, or on a GPU without timestamps.
    pub fn profile(&mut self) -> Result<(), RuntimeError> {
        match &mut self.memory {
            Memory::Gpu(session) => Ok(session.profile(None)?),
            Memory::Hybrid(session) => session.profile(),
            Memory::Cpu { .. } => Err(RuntimeError::NoProfile),
        }
    }

    /// Times stretches of steps of the runs from now on: those that end with the steps `ends`,
    /// counted from 0, of which those behind the last are the last. A stretch is one span.
    ///
    /// # Errors
    /// When it does not run on one GPU alone, or on one without timestamps.
    pub fn profile_stretches(&mut self, ends: &[usize]) -> Result<(), RuntimeError> {
        match &mut self.memory {
            Memory::Gpu(session) => Ok(session.profile(Some(ends))?),
            Memory::Hybrid(_) | Memory::Cpu { .. } => Err(RuntimeError::NoProfile),
        }
    }

    /// The ops of the last run, when it was profiled.
    pub fn take_spans(&mut self) -> Vec<Span> {
        match &mut self.memory {
            Memory::Gpu(session) => session.take_spans(),
            Memory::Hybrid(session) => session.take_spans(),
            Memory::Cpu { .. } => Vec::new(),
        }
    }

    /// Bytes that crossed to a GPU and back in the last run.
    pub fn traffic(&self) -> Traffic {
        match &self.memory {
            Memory::Gpu(session) => session.traffic(),
            Memory::Hybrid(session) => session.traffic(),
            Memory::Cpu { .. } => Traffic::default(),
        }
    }

    /// The bytes of result `index` of the last run; empty when it took over an argument.
    pub fn result(&self, index: usize) -> &[u8] {
        match &self.memory {
            Memory::Cpu { workspace, .. } => workspace.result(index),
            Memory::Gpu(session) => session.result(index),
            Memory::Hybrid(session) => session.result(index),
        }
    }

    /// The elements of an f32 result of the last run, and its shape.
    pub fn result_f32(&self, index: usize) -> (&[f32], &[usize]) {
        match &self.memory {
            Memory::Cpu { workspace, .. } => workspace.result_f32(index),
            Memory::Gpu(session) => session.result_f32(index),
            Memory::Hybrid(session) => session.result_f32(index),
        }
    }

    /// The shape of result `index` of the last run.
    pub fn result_shape(&self, index: usize) -> &[usize] {
        match &self.memory {
            Memory::Cpu { workspace, .. } => workspace.result_shape(index),
            Memory::Gpu(session) => session.result_shape(index),
            Memory::Hybrid(session) => session.result_shape(index),
        }
    }

    /// Bytes of arena and results.
    pub fn bytes(&self) -> usize {
        match &self.memory {
            Memory::Cpu { workspace, .. } => workspace.bytes(),
            Memory::Gpu(session) => session.bytes() as usize,
            Memory::Hybrid(session) => session.bytes(),
        }
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

/// As [`ArgBuffer`], of what a program of the CPU takes.
#[derive(Default)]
struct Recycled(Vec<CpuArg<'static>>);

impl Recycled {
    fn take<'a>(&mut self) -> Vec<CpuArg<'a>> {
        recycle(std::mem::take(&mut self.0))
    }

    fn restore(&mut self, args: Vec<CpuArg<'_>>) {
        self.0 = recycle(args);
    }
}

/// Empties a list and gives it another element type, of the same size: the same with another
/// lifetime. The standard library collects in place, so the memory is the same; if ever it did
/// not, the cost would be an allocation.
fn recycle<A, B>(mut args: Vec<A>) -> Vec<B> {
    args.clear();
    args.into_iter().map_while(|_| None::<B>).collect()
}
