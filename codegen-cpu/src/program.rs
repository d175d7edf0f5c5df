//! A compiled function: a flat list of prepared closures over one arena.
//!
//! Every worker of the pool walks the whole list; a step splits its work among them, and a barrier
//! stands before a step only where it depends on an earlier one. Running allocates nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aether_ir::plan::ALIGNMENT;
use aether_ir::{SymbolRange, TensorType};

use crate::claims::Claims;
pub(crate) use crate::claims::Work;
use crate::pool::{Pool, Worker};
use crate::size::SymbolTable;

/// Where a value's bytes start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loc {
    /// A constant that the program keeps alive.
    Const(ConstPtr),
    /// `bases[base] + offset`: base 0 is the arena, then arguments, then results.
    Based { base: usize, offset: usize },
}

/// The address of a constant's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConstPtr(pub *const u8);

// SAFETY: constants are never written after the program is built, and the program that holds the
// pointer also holds the memory.
unsafe impl Send for ConstPtr {}
// SAFETY: as above.
unsafe impl Sync for ConstPtr {}

/// What a step sees of the run.
pub(crate) struct RunCtx<'a> {
    bases: &'a [*mut u8],
    pub symbols: &'a [usize],
    failed: &'a AtomicBool,
    message: &'a Mutex<String>,
}

// SAFETY: the pointers are to memory that the caller of `Program::run` lends for the run; steps
// write disjoint parts of it between barriers.
unsafe impl Sync for RunCtx<'_> {}

impl RunCtx<'_> {
    /// The address of a value.
    pub fn ptr(&self, loc: Loc) -> *mut u8 {
        match loc {
            Loc::Const(p) => p.0.cast_mut(),
            // The plan keeps offsets inside their buffers.
            Loc::Based { base, offset } => self.bases[base].wrapping_add(offset),
        }
    }

    /// Ends the run with an error after the current step; the first message is kept.
    pub fn fail(&self, message: impl FnOnce() -> String) {
        if !self.failed.swap(true, Ordering::Relaxed)
            && let Ok(mut slot) = self.message.lock()
        {
            *slot = message();
        }
    }
}

/// A prepared closure, run by every worker.
pub(crate) type Kernel = Box<dyn Fn(&RunCtx, &Work) + Send + Sync>;

/// One step of a program.
pub(crate) struct Step {
    pub run: Kernel,
    /// Whether all workers must have finished the steps before.
    pub barrier: bool,
    /// Position among the steps since the last barrier, which may run at the same time.
    pub slot: usize,
    /// Index into [`Program::labels`].
    pub label: usize,
}

/// Memory of a constant that the program reads.
pub(crate) type Keep = Box<dyn std::any::Any + Send + Sync>;

/// A compiled function.
pub struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) labels: Vec<String>,
    pub(crate) symbols: SymbolTable,
    pub(crate) ranges: Vec<SymbolRange>,
    pub(crate) params: Vec<TensorType>,
    pub(crate) results: Vec<TensorType>,
    /// For each result the parameter whose buffer it takes over.
    pub(crate) result_aliases: Vec<Option<usize>>,
    pub(crate) frame_bytes: usize,
    /// Workers that scratch and claims are laid out for.
    pub(crate) threads: usize,
    /// Labels of steps that run by the reference interpreter.
    pub(crate) by_reference: Vec<String>,
    pub(crate) constant_bytes: u64,
    /// Dropped last: the steps point into it.
    pub(crate) _keep: Vec<Keep>,
}

/// An argument: its bytes, written too when the parameter is donated, and its shape.
pub struct Arg<'a> {
    pub shape: &'a [usize],
    pub data: ArgData<'a>,
}

/// An argument's bytes.
pub enum ArgData<'a> {
    Read(&'a [u8]),
    /// For parameters that a result takes over.
    Write(&'a mut [u8]),
}

/// A run cannot start, or failed on the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    #[error("expected {expected} arguments, found {found}")]
    ArgCount { expected: usize, found: usize },
    #[error("argument {index}: expected {expected}, found shape {found:?}")]
    ArgShape { index: usize, expected: TensorType, found: Vec<usize> },
    #[error("argument {index}: expected {expected} bytes at an aligned address, found {found}")]
    ArgBytes { index: usize, expected: u64, found: usize },
    #[error("argument {index} is donated and must be lent for writing")]
    NotWritable { index: usize },
    #[error("{symbol} = {value} is outside the declared range {min}..={max}")]
    Range { symbol: String, value: usize, min: u64, max: u64 },
    #[error("compiled for {compiled} workers, but the pool has {found}")]
    Workers { compiled: usize, found: usize },
    #[error("{0}")]
    Pool(String),
    #[error("`{step}`: {message}")]
    Step { step: String, message: String },
}

/// The memory of runs of one program: arena, results, tables. One run at a time uses it.
pub struct Workspace {
    arena: AlignedBytes,
    results: Vec<AlignedBytes>,
    result_shapes: Vec<Vec<usize>>,
    bases: Vec<*mut u8>,
    symbols: Vec<usize>,
    bound: Vec<bool>,
    claims: Claims,
    message: Mutex<String>,
}

// SAFETY: the base pointers are refilled at the start of every run and point into memory owned by
// the workspace or lent to that run.
unsafe impl Send for Workspace {}

impl Workspace {
    /// The bytes of result `index` of the last run; empty for a result that took over an
    /// argument.
    pub fn result(&self, index: usize) -> &[u8] {
        self.results[index].as_slice()
    }

    /// The result's elements as `f32` and its shape.
    pub fn result_f32(&self, index: usize) -> (&[f32], &[usize]) {
        let shape = &self.result_shapes[index];
        let n = shape.iter().product::<usize>();
        let bytes = &self.result(index)[..n * 4];
        // SAFETY: the buffer is aligned to 256 bytes and every bit pattern is a float.
        let floats = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<f32>(), n) };
        (floats, shape)
    }

    /// The shape of result `index` of the last run.
    pub fn result_shape(&self, index: usize) -> &[usize] {
        &self.result_shapes[index]
    }

    /// Bytes held: arena and results.
    pub fn bytes(&self) -> usize {
        self.arena.len() + self.results.iter().map(AlignedBytes::len).sum::<usize>()
    }
}

impl Program {
    /// Memory to run in.
    pub fn workspace(&self) -> Workspace {
        let declared = self.declared();
        let mut results = Vec::with_capacity(self.results.len());
        for (ty, alias) in self.results.iter().zip(&self.result_aliases) {
            let bytes = if alias.is_some() { 0 } else { ty.max_bytes(&declared).unwrap_or(0) };
            results.push(AlignedBytes::zeroed(bytes as usize));
        }
        let bases = 1 + self.params.len() + self.results.len();
        let slots = self.steps.iter().map(|s| s.slot + 1).max().unwrap_or(0);
        Workspace {
            arena: AlignedBytes::zeroed(self.frame_bytes),
            results,
            result_shapes: self.results.iter().map(|ty| vec![0; ty.rank()]).collect(),
            bases: vec![std::ptr::null_mut(); bases],
            symbols: vec![0; self.symbols.len()],
            bound: vec![false; self.symbols.len()],
            claims: Claims::new(self.threads, slots),
            message: Mutex::new(String::new()),
        }
    }

    fn declared(&self) -> indexmap::IndexMap<aether_ir::Symbol, SymbolRange> {
        self.symbols.iter().cloned().zip(self.ranges.iter().copied()).collect()
    }

    /// Types of the parameters.
    pub fn params(&self) -> &[TensorType] {
        &self.params
    }

    /// Types of the results.
    pub fn results(&self) -> &[TensorType] {
        &self.results
    }

    /// For each result the donated parameter whose buffer holds it.
    pub fn result_aliases(&self) -> &[Option<usize>] {
        &self.result_aliases
    }

    /// Bytes of the arena.
    pub fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    /// Bytes of constants that were copied or packed at load; mapped ones do not count.
    pub fn constant_bytes(&self) -> u64 {
        self.constant_bytes
    }

    /// Number of steps, and how many of them wait for all workers first.
    pub fn step_counts(&self) -> (usize, usize) {
        (self.steps.len(), self.steps.iter().filter(|s| s.barrier).count())
    }

    /// Instructions without a kernel of their own, which the reference interpreter carries out.
    pub fn by_reference(&self) -> &[String] {
        &self.by_reference
    }

    /// Runs the function.
    ///
    /// Symbols are bound by the arguments' shapes. Results that take over a donated argument are
    /// in that argument's bytes afterwards, the others in the workspace.
    ///
    /// # Errors
    /// When the arguments do not fit, a symbol is outside its range, or a step fails (an index
    /// out of range, the context exceeded); results are unspecified then.
    pub fn run(
        &self,
        pool: &Pool,
        ws: &mut Workspace,
        args: &mut [Arg<'_>],
    ) -> Result<(), RunError> {
        if pool.threads() > self.threads {
            return Err(RunError::Workers { compiled: self.threads, found: pool.threads() });
        }
        self.bind(ws, args)?;
        let first_step = ws.claims.begin(self.steps.len());
        let failed = AtomicBool::new(false);
        let failed_step = AtomicUsize::new(usize::MAX);
        let ctx = RunCtx {
            bases: &ws.bases,
            symbols: &ws.symbols,
            failed: &failed,
            message: &ws.message,
        };
        let outcome = pool.run(&|worker: &Worker| {
            for (i, step) in self.steps.iter().enumerate() {
                if step.barrier {
                    worker.barrier();
                }
                let number = first_step.wrapping_add(i as u32);
                let work = ws.claims.work(step.slot, number, worker.index(), worker.count());
                (step.run)(&ctx, &work);
                if failed.load(Ordering::Relaxed) {
                    failed_step.fetch_min(i, Ordering::Relaxed);
                }
            }
        });
        outcome.map_err(|e| RunError::Pool(e.to_string()))?;
        if failed.load(Ordering::Relaxed) {
            let step = self.steps.get(failed_step.load(Ordering::Relaxed));
            return Err(RunError::Step {
                step: step.map_or_else(String::new, |s| self.labels[s.label].clone()),
                message: ws.message.lock().map(|m| m.clone()).unwrap_or_default(),
            });
        }
        Ok(())
    }

    /// Checks the arguments, binds symbols, fills the base pointers. Allocates only for errors.
    fn bind(&self, ws: &mut Workspace, args: &mut [Arg<'_>]) -> Result<(), RunError> {
        if args.len() != self.params.len() {
            return Err(RunError::ArgCount { expected: self.params.len(), found: args.len() });
        }
        ws.bound.fill(false);
        for (index, (arg, ty)) in args.iter().zip(&self.params).enumerate() {
            let mismatch =
                || RunError::ArgShape { index, expected: ty.clone(), found: arg.shape.to_vec() };
            if arg.shape.len() != ty.rank() {
                return Err(mismatch());
            }
            for (&n, dim) in arg.shape.iter().zip(&ty.shape.0) {
                if let Some(want) = dim.as_const() {
                    if want != n as u64 {
                        return Err(mismatch());
                    }
                } else if let Some(slot) = self.lone_symbol(dim) {
                    if std::mem::replace(&mut ws.bound[slot], true) {
                        if ws.symbols[slot] != n {
                            return Err(mismatch());
                        }
                        continue;
                    }
                    let range = self.ranges[slot];
                    if !(range.min..=range.max).contains(&(n as u64)) {
                        return Err(RunError::Range {
                            symbol: self.symbols[slot].to_string(),
                            value: n,
                            min: range.min,
                            max: range.max,
                        });
                    }
                    ws.symbols[slot] = n;
                }
            }
        }
        let values = &ws.symbols;
        let value_of = |name: &str| self.symbols.get_index_of(name).map(|slot| values[slot] as u64);
        ws.bases[0] = ws.arena.as_mut_ptr();
        for (index, (arg, ty)) in args.iter_mut().zip(&self.params).enumerate() {
            for (&n, dim) in arg.shape.iter().zip(&ty.shape.0) {
                if dim.eval(value_of) != Some(n as u64) {
                    return Err(RunError::ArgShape {
                        index,
                        expected: ty.clone(),
                        found: arg.shape.to_vec(),
                    });
                }
            }
            let expected = ty.bytes(value_of).unwrap_or(u64::MAX);
            let donated = self.result_aliases.contains(&Some(index));
            let (ptr, len) = match &mut arg.data {
                ArgData::Write(bytes) => (bytes.as_mut_ptr(), bytes.len()),
                ArgData::Read(_) if donated => return Err(RunError::NotWritable { index }),
                ArgData::Read(bytes) => (bytes.as_ptr().cast_mut(), bytes.len()),
            };
            let align = ty.dtype.block_bytes().min(8) * usize::from(!ty.dtype.is_quantized());
            if len as u64 != expected || ptr.align_offset(align.max(1)) != 0 {
                return Err(RunError::ArgBytes { index, expected, found: len });
            }
            ws.bases[1 + index] = ptr;
        }
        for (i, (result, ty)) in ws.results.iter_mut().zip(&self.results).enumerate() {
            ws.bases[1 + self.params.len() + i] = match self.result_aliases[i] {
                Some(param) => ws.bases[1 + param],
                None => result.as_mut_ptr(),
            };
            for (slot, dim) in ws.result_shapes[i].iter_mut().zip(&ty.shape.0) {
                *slot = dim.eval(value_of).unwrap_or(0) as usize;
            }
        }
        Ok(())
    }

    fn lone_symbol(&self, dim: &aether_ir::Dim) -> Option<usize> {
        self.symbols.iter().position(|s| dim.is_symbol(s))
    }
}

/// Zeroed bytes aligned to [`ALIGNMENT`].
pub struct AlignedBytes {
    /// What was allocated; the bytes begin at the first aligned address in it.
    allocated: std::ptr::NonNull<u8>,
    ptr: std::ptr::NonNull<u8>,
    len: usize,
}

// SAFETY: plain owned memory.
unsafe impl Send for AlignedBytes {}
// SAFETY: plain owned memory, written only through `&mut`.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// Allocates `len` zero bytes; the pages are not touched until used.
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout has a size of at least one alignment unit.
        let allocated = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(allocated) = std::ptr::NonNull::new(allocated) else {
            std::alloc::handle_alloc_error(layout);
        };
        let offset = allocated.as_ptr().align_offset(ALIGNMENT as usize);
        assert!(offset <= ALIGNMENT as usize, "a byte pointer can be aligned");
        // SAFETY: the layout has room for one alignment unit beyond `len`.
        let ptr = unsafe { allocated.add(offset) };
        AlignedBytes { allocated, ptr, len }
    }

    /// A greater alignment than the allocator's own would make it write the zeros itself, which
    /// touches every page: the bytes are aligned within the allocation instead.
    fn layout(len: usize) -> std::alloc::Layout {
        let size = len.checked_add(ALIGNMENT as usize);
        size.and_then(|size| std::alloc::Layout::from_size_align(size, 8).ok())
            .expect("a size below isize::MAX")
    }

    /// Asks the system for large pages, for bytes that are read from end to end again and again.
    /// Whether it gives them changes only the speed.
    pub fn prefer_large_pages(&mut self) {
        #[cfg(target_os = "linux")]
        {
            const PAGE: usize = 4096;
            let start = self.ptr.as_ptr().align_offset(PAGE).min(self.len);
            let len = (self.len - start) / PAGE * PAGE;
            // SAFETY: whole pages inside memory that we own; the advice does not change bytes.
            unsafe { libc::madvise(self.ptr.as_ptr().add(start).cast(), len, libc::MADV_HUGEPAGE) };
        }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that we own.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The bytes, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// The first byte's address.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.allocated.as_ptr(), Self::layout(self.len)) }
    }
}
