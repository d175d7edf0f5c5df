//! From planned IR to a flat list of dispatches.
//!
//! Calls are flattened: a callee's dispatches are prepared once for every call, with the ranges of
//! that call. Shaders are shared by all calls whose types are equal.

pub(crate) mod attention;
mod build;
mod cache;
mod dense;
mod experts;
mod index;
mod loops;
mod matmul;
mod movement;
mod ops;
pub(crate) mod order;
pub(crate) mod product;
mod random;
mod reduce;
mod rope;
mod rows;
mod softmax;
pub mod text;
mod window;

use std::collections::HashMap;
use std::sync::Arc;

use aether_ir::plan::{FuncPlan, MemoryPlan, Storage};
use aether_ir::{ConstSource, DType, Dim, Func, Inst, Module, Op, Symbol, TensorType, ValueId};
use aether_ir::{fusion, load};
use indexmap::IndexSet;

use crate::adapter::Adapter;
use crate::constants::{self, Constant};
use crate::error::CompileError;
use crate::kernel::{Access, Bind, Launch, MAX_SYMBOLS, Shader};
use crate::program::{Binding, Buffer, GpuProgram, Step, buffer_bytes};
use crate::templates::text::dim_text;
use crate::templates::{Operand, Site as Template};

/// Deepest nesting of calls.
const MAX_CALL_DEPTH: usize = 64;

/// The status buffer, whole.
const STATUS: Binding = Binding { buffer: Buffer::Status, offset: 0, bytes: 8 };

/// A value as kernels take it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub binding: Binding,
    pub ty: TensorType,
}

impl View {
    fn dims(&self) -> &[Dim] {
        &self.ty.shape.0
    }

    fn numel(&self) -> Dim {
        self.ty.shape.numel()
    }
}

/// Where a value's bytes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Loc {
    buffer: Buffer,
    offset: u64,
}

pub(crate) struct Lower<'a> {
    module: &'a Module,
    plan: &'a MemoryPlan,
    source: &'a dyn ConstSource,
    pub adapter: Adapter,
    pub symbols: IndexSet<Symbol>,
    pub shaders: IndexSet<Shader>,
    pub steps: Vec<Step>,
    constants: Vec<Constant>,
    /// Named constants that have a buffer, by name and type.
    named: HashMap<(Arc<str>, TensorType), usize>,
}

/// One instruction to be lowered.
pub(crate) struct Site<'a> {
    pub func: Arc<str>,
    pub inst: &'a Inst,
    pub inputs: Vec<View>,
    pub outputs: Vec<View>,
    pub scratch: Option<Binding>,
    pub label: Arc<str>,
}

impl Site<'_> {
    /// The op cannot be carried out here.
    pub fn unsupported<T>(&self, message: impl Into<String>) -> Result<T, CompileError> {
        let (func, op) = (self.func.clone(), self.inst.op);
        Err(CompileError::Unsupported { func, op, message: message.into() })
    }

    /// An operand as templates see it.
    pub fn operand(&self, i: usize) -> Operand {
        let access = match self.inputs[i].binding.buffer {
            Buffer::Constant(_) => Access::Read,
            _ => Access::ReadWrite,
        };
        Operand { bind: Bind::Operand(i), access }
    }

    /// What a template binds.
    pub fn binding(&self, bind: Bind) -> Result<Binding, CompileError> {
        match bind {
            Bind::Operand(i) => Ok(self.inputs[i].binding),
            Bind::Result(i) => Ok(self.outputs[i].binding),
            Bind::Scratch { offset, bytes } => match self.scratch {
                Some(scratch) if offset + bytes <= scratch.bytes => {
                    Ok(Binding { offset: scratch.offset + offset, bytes, ..scratch })
                }
                _ => self.unsupported("its scratch is not in the memory plan"),
            },
            Bind::Status => Ok(STATUS),
        }
    }

    fn axis(&self, of: &View) -> Result<usize, CompileError> {
        let axis = self.inst.attrs.int("axis", -1);
        match of.ty.shape.axis(axis) {
            Some(axis) => Ok(axis),
            None => self.unsupported(format!("axis {axis} of {}", of.ty)),
        }
    }
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
/// # Errors
/// When a function, a plan or a constant is missing, or an op has no kernel on the GPU.
pub fn compile(
    module: &Module,
    plan: &MemoryPlan,
    entry: &str,
    source: &dyn ConstSource,
    adapter: Adapter,
) -> Result<GpuProgram, CompileError> {
    let func = module.funcs.get(entry).ok_or_else(|| CompileError::NoFunction(Arc::from(entry)))?;
    let func_plan =
        plan.funcs.get(entry).ok_or_else(|| CompileError::NoPlan { func: func.name.clone() })?;
    if module.symbols.len() > MAX_SYMBOLS {
        let (found, most) = (module.symbols.len(), MAX_SYMBOLS);
        return Err(CompileError::Symbols { found, most });
    }
    let mut lower = Lower {
        module,
        plan,
        source,
        adapter,
        symbols: module.symbols.keys().cloned().collect(),
        shaders: IndexSet::new(),
        steps: Vec::new(),
        constants: Vec::new(),
        named: HashMap::new(),
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
    let params =
        (0..func.params.len()).map(|i| Loc { buffer: Buffer::Param(i), offset: 0 }).collect();
    let results = result_aliases
        .iter()
        .enumerate()
        .map(|(i, alias)| {
            let buffer = alias.map_or(Buffer::Result(i), Buffer::Param);
            Loc { buffer, offset: 0 }
        })
        .collect();
    lower.func(func, 0, params, results, String::new(), 0)?;
    Ok(GpuProgram {
        shaders: lower.shaders,
        steps: lower.steps,
        constants: lower.constants,
        symbols: module.symbols.clone(),
        params: func.params.iter().map(|&p| func.ty(p).clone()).collect(),
        results: func.result_types.clone(),
        result_aliases,
        frame_bytes: func_plan.frame_bytes,
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
                    Some(Loc { buffer: Buffer::Frame, offset: frame + offset })
                }
                Storage::Result(i) => results.get(i).copied(),
                Storage::Const | Storage::Alias(_) | Storage::Unused => None,
            })
            .collect();
        self.constants(func, plan, &mut locs)?;
        for i in 0..locs.len() {
            if matches!(plan.storage[i], Storage::Alias(_)) {
                locs[i] = locs[plan.root(ValueId(i as u32)).index()];
            }
        }
        let f = Frame { func, plan, path, locs };
        for (i, inst) in func.body.iter().enumerate() {
            let loaded =
                inst.results.iter().all(|r| matches!(plan.storage[r.index()], Storage::Const));
            if loaded && !inst.results.is_empty() {
                continue;
            }
            if inst.op == Op::Call {
                self.call(&f, i, inst, frame, depth)?;
            } else {
                self.inst(&f, i, inst, frame)?;
            }
        }
        for (i, &value) in func.returns.iter().enumerate() {
            let from = self.view(&f, value)?;
            let to =
                Binding { buffer: results[i].buffer, offset: results[i].offset, ..from.binding };
            // A returned value may live elsewhere than where the caller wants it.
            if from.binding != to {
                let inst = &Inst {
                    op: Op::Reshape,
                    operands: Vec::new(),
                    attrs: aether_ir::Attrs::new(),
                    symbol: None,
                    results: Vec::new(),
                    span: 0..0,
                };
                let output = View { binding: to, ty: from.ty.clone() };
                let site = Site {
                    func: func.name.clone(),
                    inst,
                    inputs: vec![from],
                    outputs: vec![output],
                    scratch: None,
                    label: format!("{}copy", f.path).into(),
                };
                movement::copy(self, &site)?;
            }
        }
        Ok(())
    }

    /// Gives every load-time value of a function that is read at run time its buffer.
    fn constants(
        &mut self,
        func: &Func,
        plan: &FuncPlan,
        locs: &mut [Option<Loc>],
    ) -> Result<(), CompileError> {
        let definitions = func.definitions();
        for value in load::read_at_run(func, plan) {
            let recipe = constants::recipe(self.module, self.source, func, &definitions, value)?;
            let ty = func.ty(value).clone();
            let bytes = ty.bytes(|_| None).ok_or_else(|| CompileError::Size(ty.clone()))?;
            let key = match &recipe {
                constants::Recipe::Named(name) => Some((name.clone(), ty.clone())),
                constants::Recipe::Bytes(_) => None,
            };
            let known = key.as_ref().and_then(|key| self.named.get(key)).copied();
            let index = known.unwrap_or(self.constants.len());
            if known.is_none() {
                let bytes = buffer_bytes(bytes);
                self.constants.push(Constant { ty, bytes, recipe });
                self.named.extend(key.map(|key| (key, index)));
            }
            locs[value.index()] = Some(Loc { buffer: Buffer::Constant(index), offset: 0 });
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
        values
            .map(|v| {
                let View { binding, .. } = self.view(f, v)?;
                Ok(Loc { buffer: binding.buffer, offset: binding.offset })
            })
            .collect()
    }

    fn inst(
        &mut self,
        f: &Frame<'a>,
        index: usize,
        inst: &'a Inst,
        frame: u64,
    ) -> Result<(), CompileError> {
        if inst.results.iter().any(|r| matches!(f.plan.storage[r.index()], Storage::Unused)) {
            // All of them: the planner gives those that are read with others a place.
            return Ok(());
        }
        let inputs: Vec<View> = inst.inputs().map(|v| self.view(f, v)).collect::<Result<_, _>>()?;
        let outputs: Vec<View> =
            inst.results.iter().map(|&v| self.view(f, v)).collect::<Result<_, _>>()?;
        if !outputs.is_empty() && outputs.iter().all(|v| v.dims().iter().any(|d| d.is(0))) {
            return Ok(());
        }
        let scratch = f.plan.temporary(index).map(|t| Binding {
            buffer: Buffer::Frame,
            offset: frame + t.offset,
            bytes: buffer_bytes(t.bytes),
        });
        let name = inst.results.first().and_then(|r| f.func.values[r.index()].name.clone());
        let name = name.map_or(String::new(), |n| format!(" %{n}"));
        let label = format!("{}{}{name}", f.path, inst.op).into();
        let site = Site { func: f.func.name.clone(), inst, inputs, outputs, scratch, label };
        match inst.op {
            Op::Reshape | Op::StopGradient | Op::Barrier | Op::Transfer => {
                movement::copy(self, &site)
            }
            Op::Broadcast if site.inputs[0].binding == site.outputs[0].binding => Ok(()),
            Op::Fused => {
                let name = inst.symbol.clone().unwrap_or_else(|| Arc::from(""));
                let module = self.module;
                let body = module.funcs.get(&name).ok_or(CompileError::NoFunction(name))?;
                loops::lower(self, &site, body)
            }
            Op::ReduceSum | Op::ReduceMean | Op::ReduceProd | Op::ReduceMax | Op::ReduceMin
                if fusion::reduced_axes(inst, &site.inputs[0].ty.shape).is_none() =>
            {
                reduce::lower(self, &site)
            }
            op if fusion::Role::of(op).is_some() => loops::single(self, &site),
            Op::Transpose | Op::Slice | Op::Concat | Op::Pad | Op::Flip => {
                movement::lower(self, &site)
            }
            Op::Gather if rows::handles(&site) => rows::lower(self, &site),
            Op::Gather | Op::ScatterAdd => index::lower(self, &site),
            Op::ExpertMatmul => experts::lower(self, &site),
            Op::RngBits => random::lower(self, &site),
            Op::Argmax | Op::TopK | Op::Sort | Op::Cumsum => order::lower(self, &site),
            Op::WindowSum | Op::WindowMax | Op::Conv => window::lower(self, &site),
            Op::Softmax | Op::LogSoftmax | Op::RmsNorm | Op::LayerNorm => {
                softmax::lower(self, &site)
            }
            Op::Matmul | Op::MatmulAdd | Op::MatmulAct | Op::MatmulGated | Op::MatmulMulti => {
                matmul::lower(self, &site)
            }
            Op::NormMatmulMulti | Op::NormMatmulGated => match product::lower(self, &site)? {
                true => Ok(()),
                false => site.unsupported("there is none for these types"),
            },
            Op::RopeAppend => rope::append(self, &site),
            Op::Rope => rope::lower(self, &site),
            Op::KvAppend => cache::lower(self, &site),
            Op::Attention => attention::lower(self, &site),
            _ => site.unsupported("there is none"),
        }
    }

    fn view(&self, f: &Frame, value: ValueId) -> Result<View, CompileError> {
        let ty = f.func.ty(value).clone();
        let bytes =
            ty.max_bytes(&self.module.symbols).ok_or_else(|| CompileError::Size(ty.clone()))?;
        let Loc { buffer, offset } =
            f.locs[value.index()].ok_or_else(|| CompileError::Unsupported {
                func: f.func.name.clone(),
                op: Op::Constant,
                message: "a value that is read has no storage in the memory plan".to_owned(),
            })?;
        Ok(View { binding: Binding { buffer, offset, bytes: buffer_bytes(bytes) }, ty })
    }

    /// Appends the dispatches of a template whose operands are the instruction's.
    pub fn templates(
        &mut self,
        site: &Site,
        launches: impl FnOnce(&Template) -> Vec<Launch>,
    ) -> Result<(), CompileError> {
        let operands: Vec<Operand> = (0..site.inputs.len()).map(|i| site.operand(i)).collect();
        let launches = {
            let template =
                Template { adapter: &self.adapter, symbols: &self.symbols, operands: &operands };
            launches(&template)
        };
        self.launch(site, launches, |bind| site.binding(bind))
    }

    /// Appends dispatches, each bound as `binding` says.
    pub fn launch(
        &mut self,
        site: &Site,
        launches: Vec<Launch>,
        binding: impl Fn(Bind) -> Result<Binding, CompileError>,
    ) -> Result<(), CompileError> {
        for Launch { shader, binds, groups } in launches {
            let bindings = binds.iter().map(|b| binding(*b)).collect::<Result<Vec<_>, _>>()?;
            self.step(site, shader, bindings, groups)?;
        }
        Ok(())
    }

    /// The values of an f32 operand that is a constant.
    pub fn constant_f32(&self, view: &View) -> Result<Option<Vec<f32>>, CompileError> {
        let Buffer::Constant(index) = view.binding.buffer else { return Ok(None) };
        let bytes = self.constants[index].load(self.module, self.source)?;
        let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        Ok((view.ty.dtype == DType::F32).then(|| values.collect()))
    }

    /// A constant that a kernel needs beside its operands.
    pub fn table(&mut self, words: &[u32]) -> View {
        let ty = TensorType::new(DType::U32, [words.len()]);
        let bytes: Vec<u8> = words.iter().flat_map(|v| v.to_le_bytes()).collect();
        let same = |c: &Constant| matches!(&c.recipe, constants::Recipe::Bytes(b) if **b == bytes);
        let known = self.constants.iter().position(same);
        let size = buffer_bytes(bytes.len() as u64);
        let index = known.unwrap_or_else(|| {
            let recipe = constants::Recipe::Bytes(bytes.into());
            self.constants.push(Constant { ty: ty.clone(), bytes: size, recipe });
            self.constants.len() - 1
        });
        let binding = Binding { buffer: Buffer::Constant(index), offset: 0, bytes: size };
        View { binding, ty }
    }

    /// A dimension as WGSL.
    pub fn dim(&self, d: &Dim) -> String {
        dim_text(d, &self.symbols)
    }

    /// The product of dimensions as WGSL.
    pub fn product(&self, dims: &[Dim]) -> String {
        self.dim(&dims.iter().fold(Dim::new(1), |acc, d| &acc * d))
    }
}
