//! From planned IR to a flat list of prepared closures.
//!
//! Calls are flattened: a callee's steps are prepared once for every call, with the addresses of
//! that call. Each step declares which bytes it reads and writes, and a barrier is put before it
//! exactly when that overlaps with what ran since the last barrier.

pub(crate) mod access;
pub(crate) mod conv;
pub(crate) mod experts;
mod fused;
mod index;
pub(crate) mod llm;
mod load;
pub(crate) mod matmul;
mod movement;
pub(crate) mod order;
pub(crate) mod product;
pub(crate) mod reduce;
mod reference;
mod softmax;
mod steps;
mod window;

use std::collections::HashMap;
use std::sync::Arc;

use aether_ir::plan::{ALIGNMENT, FuncPlan, MemoryPlan, Storage};
use aether_ir::{Func, Inst, Layout, Module, Op, SymbolRange, TensorType, ValueId};
use indexmap::IndexMap;

use crate::kernels::isa::Isa;
use crate::program::{Kernel, Loc, Program, Step};
use crate::size::{Size, SymbolTable};
use access::{Hazards, Range};
pub use load::{ConstBytes, ConstSource, DenseOnly};

/// How to compile.
#[derive(Clone, Copy, Debug)]
pub struct CompileOptions {
    /// Instruction set of the kernels.
    pub isa: Isa,
    /// Workers that will run the program: kernels' scratch is planned for so many.
    pub threads: usize,
}

/// A module cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("there is no function @{0}")]
    NoFunction(Arc<str>),
    #[error("@{func} has no memory plan: run the planner first")]
    NoPlan { func: Arc<str> },
    #[error("constant @{name}: {message}")]
    Constant { name: Arc<str>, message: String },
    #[error("in @{func}, `{op}`: {message}")]
    Op { func: Arc<str>, op: Op, message: String },
    #[error("calls are nested more than {0} deep")]
    CallDepth(usize),
    #[error("the size of {0} overflows")]
    Size(TensorType),
}

/// Deepest nesting of calls.
const MAX_CALL_DEPTH: usize = 64;

/// A value as kernels take it.
#[derive(Clone, Debug)]
struct View {
    loc: Loc,
    ty: TensorType,
    dims: Vec<Size>,
    /// What it occupies at most, for ordering steps.
    range: Option<Range>,
}

impl View {
    /// Product of the dimensions in `axes`, in this run.
    fn sizes(&self, axes: std::ops::Range<usize>) -> Count {
        Count(self.dims[axes].to_vec())
    }

    /// All elements.
    fn numel(&self) -> Count {
        self.sizes(0..self.dims.len())
    }

    /// All but the last axis.
    fn rows(&self) -> Count {
        self.sizes(0..self.dims.len().saturating_sub(1))
    }
}

/// A product of dimensions.
#[derive(Clone, Debug)]
struct Count(Vec<Size>);

impl Count {
    fn get(&self, symbols: &[usize]) -> usize {
        self.0.iter().map(|s| s.get(symbols)).product()
    }

    fn is_const(&self) -> Option<usize> {
        self.0.iter().try_fold(1usize, |acc, s| match s {
            Size::Const(n) => acc.checked_mul(*n),
            _ => None,
        })
    }
}

struct Lower<'a> {
    module: &'a Module,
    plan: &'a MemoryPlan,
    opts: CompileOptions,
    symbols: SymbolTable,
    load: load::Loader<'a>,
    hazards: Hazards,
    steps: Vec<Step>,
    labels: Vec<String>,
    by_reference: Vec<String>,
    rope_tables: Vec<(llm::RopeKey, llm::RopeTable)>,
    /// End of the arena so far: the entry's frame, then what steps share.
    frame_end: u64,
}

/// One function's values at one call.
struct Frame<'a> {
    func: &'a Func,
    plan: &'a FuncPlan,
    path: String,
    locs: Vec<Option<Loc>>,
}

/// Compiles `entry` of a verified and planned module.
///
/// Constants come from `source`; those that the plan says are computed at load (packed weights)
/// are computed here, once.
///
/// # Errors
/// When a function, a plan or a constant is missing, or an op cannot be compiled.
pub fn compile(
    module: &Module,
    plan: &MemoryPlan,
    entry: &str,
    source: &dyn ConstSource,
    opts: CompileOptions,
) -> Result<Program, CompileError> {
    let func = module.funcs.get(entry).ok_or_else(|| CompileError::NoFunction(Arc::from(entry)))?;
    let func_plan =
        plan.funcs.get(entry).ok_or_else(|| CompileError::NoPlan { func: func.name.clone() })?;
    let mut lower = Lower {
        module,
        plan,
        opts,
        symbols: module.symbols.keys().cloned().collect(),
        load: load::Loader::new(module, source, opts),
        hazards: Hazards::default(),
        steps: Vec::new(),
        labels: Vec::new(),
        by_reference: Vec::new(),
        rope_tables: Vec::new(),
        frame_end: func_plan.frame_bytes,
    };
    let result_aliases: Vec<Option<usize>> = func
        .returns
        .iter()
        .enumerate()
        .map(|(i, &v)| match func_plan.storage[func_plan.root(v).index()] {
            Storage::Param(param) if func_plan.copies.iter().all(|&(at, _)| at != i) => Some(param),
            _ => None,
        })
        .collect();
    let params = (0..func.params.len()).map(|i| Loc::Based { base: 1 + i, offset: 0 }).collect();
    let first = 1 + func.params.len();
    let results = (0..func.returns.len())
        .map(|i| match result_aliases[i] {
            Some(param) => Loc::Based { base: 1 + param, offset: 0 },
            None => Loc::Based { base: first + i, offset: 0 },
        })
        .collect();
    lower.func(func, 0, params, results, String::new(), 0)?;
    let (keep, constant_bytes) = lower.load.finish();
    Ok(Program {
        steps: lower.steps,
        labels: lower.labels,
        ranges: module.symbols.values().copied().collect::<Vec<SymbolRange>>(),
        symbols: lower.symbols,
        params: func.params.iter().map(|&p| func.ty(p).clone()).collect(),
        results: func.result_types.clone(),
        result_aliases,
        frame_bytes: lower.frame_end as usize,
        threads: opts.threads,
        by_reference: lower.by_reference,
        constant_bytes,
        _keep: keep,
    })
}

impl<'a> Lower<'a> {
    fn func(
        &mut self,
        func: &'a Func,
        frame: u64,
        params: Vec<Loc>,
        results: Vec<Loc>,
        path: String,
        depth: usize,
    ) -> Result<(), CompileError> {
        if depth > MAX_CALL_DEPTH {
            return Err(CompileError::CallDepth(MAX_CALL_DEPTH));
        }
        let plan = self
            .plan
            .funcs
            .get(&func.name)
            .ok_or_else(|| CompileError::NoPlan { func: func.name.clone() })?;
        let mut locs: Vec<Option<Loc>> = plan
            .storage
            .iter()
            .map(|storage| match *storage {
                Storage::Param(i) => params.get(i).copied(),
                Storage::Frame { offset, .. } => {
                    Some(Loc::Based { base: 0, offset: (frame + offset) as usize })
                }
                Storage::Result(i) => results.get(i).copied(),
                Storage::Const | Storage::Alias(_) | Storage::Unused => None,
            })
            .collect();
        self.load.resolve(func, plan, &mut locs)?;
        for i in 0..locs.len() {
            if matches!(plan.storage[i], Storage::Alias(_)) {
                locs[i] = locs[plan.root(ValueId(i as u32)).index()];
            }
        }
        let frame_values = Frame { func, plan, path, locs };
        for (i, inst) in func.body.iter().enumerate() {
            let loaded =
                inst.results.iter().all(|r| matches!(plan.storage[r.index()], Storage::Const));
            if loaded && !inst.results.is_empty() {
                continue;
            }
            if inst.op == Op::Call {
                self.call(&frame_values, i, inst, frame, depth)?;
            } else {
                self.inst(&frame_values, i, inst, frame)?;
            }
        }
        for (i, &value) in func.returns.iter().enumerate() {
            let view = self.view(&frame_values, value)?;
            // A returned value may live elsewhere than where the caller wants it.
            if view.loc != results[i] {
                self.copy_value(&format!("{}copy", frame_values.path), &view, results[i]);
            }
        }
        Ok(())
    }

    fn call(
        &mut self,
        f: &Frame<'a>,
        index: usize,
        inst: &'a Inst,
        frame: u64,
        depth: usize,
    ) -> Result<(), CompileError> {
        let name = inst.symbol.clone().unwrap_or_else(|| Arc::from(""));
        let callee =
            self.module.funcs.get(&name).ok_or_else(|| CompileError::NoFunction(name.clone()))?;
        let args = self.locs(f, inst.inputs())?;
        let results = self.locs(f, inst.results.iter().copied())?;
        let offset = f.plan.temporary(index).map_or(0, |t| t.offset);
        let path = format!("{}@{}#{index}/", f.path, name);
        self.func(callee, frame + offset, args, results, path, depth + 1)
    }

    fn locs(
        &self,
        f: &Frame,
        values: impl Iterator<Item = ValueId>,
    ) -> Result<Vec<Loc>, CompileError> {
        values.map(|v| Ok(self.view(f, v)?.loc)).collect()
    }

    fn inst(
        &mut self,
        f: &Frame<'a>,
        index: usize,
        inst: &'a Inst,
        frame: u64,
    ) -> Result<(), CompileError> {
        let mut values = inst.inputs().chain(inst.results.iter().copied());
        if let Some(v) = values.find(|&v| f.func.ty(v).layout == Layout::Planes) {
            let message = format!("{} is laid out for the GPU", f.func.ty(v));
            return Err(CompileError::Op { func: f.func.name.clone(), op: inst.op, message });
        }
        let inputs: Vec<View> = inst.inputs().map(|v| self.view(f, v)).collect::<Result<_, _>>()?;
        let outputs: Vec<View> = inst
            .results
            .iter()
            .filter(|r| !matches!(f.plan.storage[r.index()], Storage::Unused))
            .map(|&v| self.view(f, v))
            .collect::<Result<_, _>>()?;
        if outputs.len() != inst.results.len() {
            return Ok(());
        }
        let moves_nothing = matches!(inst.op, Op::Reshape | Op::Broadcast);
        if moves_nothing && inputs[0].loc == outputs[0].loc {
            return Ok(());
        }
        let scratch = f.plan.temporary(index).map(|t| Scratch {
            loc: Loc::Based { base: 0, offset: (frame + t.offset) as usize },
            bytes: t.bytes as usize,
            range: Range::frame(frame + t.offset, t.bytes),
        });
        let name = inst.results.first().and_then(|r| f.func.values[r.index()].name.clone());
        let label =
            format!("{}{}{}", f.path, inst.op, name.map_or(String::new(), |n| format!(" %{n}")));
        let site = Site { inst, inputs, outputs, scratch, label };
        let lowered = match inst.op {
            op if fused::handles(op) => fused::lower(self, &site),
            Op::Reshape | Op::Broadcast | Op::Transpose | Op::Slice | Op::Concat | Op::Pad => {
                movement::lower(self, &site)
            }
            Op::Flip | Op::Splat | Op::StopGradient | Op::Barrier | Op::Transfer => {
                movement::lower(self, &site)
            }
            Op::Gather | Op::ScatterAdd | Op::RngBits | Op::Quantize => index::lower(self, &site),
            Op::ReduceSum | Op::ReduceMean | Op::ReduceProd | Op::ReduceMax | Op::ReduceMin => {
                reduce::lower(self, &site)
            }
            Op::Argmax | Op::TopK | Op::Sort | Op::Cumsum => order::lower(self, &site),
            Op::WindowSum | Op::WindowMax => window::lower(self, &site),
            Op::Conv => conv::lower(self, &site),
            Op::Softmax | Op::LogSoftmax => softmax::lower(self, &site),
            Op::RmsNorm | Op::LayerNorm | Op::Rope | Op::Attention | Op::KvAppend => {
                llm::lower(self, &site)
            }
            Op::Matmul => match matmul::lower(self, &site) {
                Ok(false) => product::lower(self, &site),
                lowered => lowered,
            },
            Op::ExpertMatmul => experts::lower(self, &site),
            Op::MatmulAdd | Op::MatmulAct => product::lower(self, &site),
            Op::MatmulGated | Op::MatmulMulti => product::lower(self, &site),
            _ => Ok(false),
        };
        let error = |message| CompileError::Op { func: f.func.name.clone(), op: inst.op, message };
        if lowered.map_err(error)? {
            return Ok(());
        }
        reference::lower(self, &site).map_err(error)?;
        self.by_reference.push(site.label);
        Ok(())
    }

    fn view(&self, f: &Frame, value: ValueId) -> Result<View, CompileError> {
        let ty = f.func.ty(value).clone();
        let bytes =
            ty.max_bytes(&self.module.symbols).ok_or_else(|| CompileError::Size(ty.clone()))?;
        let loc = f.locs[value.index()].ok_or_else(|| CompileError::Op {
            func: f.func.name.clone(),
            op: Op::Constant,
            message: "a value that is read has no storage in the memory plan".to_owned(),
        })?;
        let dims = ty.shape.0.iter().map(|d| Size::new(d, &self.symbols)).collect();
        Ok(View { loc, dims, range: Range::of(loc, bytes), ty })
    }

    /// Arena bytes for the whole run, beyond the planned frame.
    fn extra(&mut self, bytes: usize) -> (Loc, Option<Range>) {
        let offset = self.frame_end.next_multiple_of(ALIGNMENT);
        self.frame_end = offset + bytes as u64;
        (Loc::Based { base: 0, offset: offset as usize }, Range::frame(offset, bytes as u64))
    }

    /// Appends a step that reads and writes these ranges.
    fn emit(
        &mut self,
        label: &str,
        reads: impl IntoIterator<Item = Option<Range>>,
        writes: impl IntoIterator<Item = Option<Range>>,
        run: Kernel,
    ) {
        let reads: Vec<Range> = reads.into_iter().flatten().collect();
        let writes: Vec<Range> = writes.into_iter().flatten().collect();
        let barrier = self.hazards.step(&reads, &writes);
        self.labels.push(label.to_owned());
        let slot = match self.steps.last() {
            Some(last) if !barrier => last.slot + 1,
            _ => 0,
        };
        self.steps.push(Step { run, barrier, slot, label: self.labels.len() - 1 });
    }
}

/// Scratch of one instruction.
#[derive(Clone, Copy, Debug)]
struct Scratch {
    loc: Loc,
    bytes: usize,
    range: Option<Range>,
}

/// One instruction to be lowered.
struct Site<'a> {
    inst: &'a Inst,
    inputs: Vec<View>,
    outputs: Vec<View>,
    scratch: Option<Scratch>,
    label: String,
}

impl Site<'_> {
    /// The scratch, which must hold `bytes`.
    fn scratch(&self, bytes: usize) -> Result<Scratch, String> {
        match self.scratch {
            Some(s) if s.bytes >= bytes => Ok(s),
            found => Err(format!(
                "needs {bytes} bytes of scratch, the plan has {}",
                found.map_or(0, |s| s.bytes)
            )),
        }
    }

    fn reads(&self) -> Vec<Option<Range>> {
        self.inputs.iter().map(|v| v.range).collect()
    }

    fn writes(&self) -> Vec<Option<Range>> {
        self.outputs.iter().map(|v| v.range).collect()
    }
}

/// Whether an op was lowered; `false` leaves it to the reference interpreter.
type Lowered = Result<bool, String>;

/// Upper bound of a dimension product, for planning scratch.
fn max_count(dims: &[aether_ir::Dim], symbols: &IndexMap<aether_ir::Symbol, SymbolRange>) -> usize {
    dims.iter()
        .try_fold(1u64, |acc, d| acc.checked_mul(d.upper_bound(symbols)?))
        .map_or(usize::MAX, |n| n as usize)
}

type Cache<K, V> = HashMap<K, V>;
