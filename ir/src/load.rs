//! Values that are known when a module is loaded: constants, and what is computed from them alone.

use std::sync::Arc;

use crate::module::{Func, ValueId};
use crate::op::Op;
use crate::plan::{FuncPlan, Storage};
use crate::tensor::{Bytes, ConcreteType, EvalCtx, Tensor};
use crate::types::TensorType;

/// Deepest chain of instructions at load.
const MAX_DEPTH: usize = 1000;

/// The load-time values of a function that are read when it runs, in order.
pub fn read_at_run(func: &Func, plan: &FuncPlan) -> Vec<ValueId> {
    let is_const = |v: ValueId| matches!(plan.storage[v.index()], Storage::Const);
    let mut wanted = vec![false; func.values.len()];
    for inst in &func.body {
        let at_load = !inst.results.is_empty() && inst.results.iter().all(|&r| is_const(r));
        if !at_load {
            inst.inputs().filter(|&v| is_const(v)).for_each(|v| wanted[v.index()] = true);
        }
    }
    func.returns.iter().filter(|&&v| is_const(v)).for_each(|v| wanted[v.index()] = true);
    // An alias of a constant (a reshape) makes the constant wanted too.
    for i in 0..func.values.len() {
        let root = plan.root(ValueId(i as u32));
        if root.index() != i && is_const(root) {
            wanted[root.index()] = true;
        }
    }
    (0..wanted.len()).filter(|&i| wanted[i]).map(|i| ValueId(i as u32)).collect()
}

/// A value cannot be computed at load.
pub enum LoadError<E> {
    /// A constant could not be had.
    Constant(E),
    /// An instruction could not be carried out.
    Op { op: Op, message: String },
}

/// A load-time value by its reference meaning; `constant` gives the row-major bytes of constants.
///
/// # Errors
/// When a constant cannot be had, or the value is not computed from constants alone.
pub fn evaluate<E>(
    func: &Func,
    definitions: &[Option<usize>],
    value: ValueId,
    constant: &mut dyn FnMut(&Arc<str>) -> Result<Bytes, E>,
) -> Result<Tensor, LoadError<E>> {
    step(func, definitions, value, constant, 0)
}

fn step<E>(
    func: &Func,
    definitions: &[Option<usize>],
    value: ValueId,
    constant: &mut dyn FnMut(&Arc<str>) -> Result<Bytes, E>,
    depth: usize,
) -> Result<Tensor, LoadError<E>> {
    let index = definitions[value.index()].filter(|_| depth < MAX_DEPTH);
    let op = index.map_or(Op::Constant, |i| func.body[i].op);
    let error = |message: String| LoadError::Op { op, message };
    let inst = &func.body[index.ok_or_else(|| error("is no load-time value".to_owned()))?];
    let ty = func.ty(value);
    if inst.op == Op::Constant {
        let name = inst.symbol.clone().unwrap_or_else(|| Arc::from(""));
        let bytes = constant(&name).map_err(LoadError::Constant)?;
        let concrete = concrete(ty).ok_or_else(|| error(format!("{ty} has unknown size")))?;
        return Tensor::new(concrete, bytes).map_err(|e| error(e.to_string()));
    }
    let mut operands = Vec::with_capacity(inst.operands.len());
    for v in inst.inputs() {
        operands.push(step(func, definitions, v, constant, depth + 1)?);
    }
    let results: Option<Vec<ConcreteType>> =
        inst.results.iter().map(|&r| concrete(func.ty(r))).collect();
    let results = results.ok_or_else(|| error("has a result of unknown size".to_owned()))?;
    let eval = inst.op.info().eval.ok_or_else(|| error("cannot run at load".to_owned()))?;
    let operands: Vec<&Tensor> = operands.iter().collect();
    let ctx = EvalCtx { operands: &operands, attrs: &inst.attrs, results: &results };
    let values = eval(&ctx).map_err(|e| error(e.to_string()))?;
    let position = inst.results.iter().position(|&r| r == value).unwrap_or(0);
    values.into_iter().nth(position).ok_or_else(|| error("gave no result".to_owned()))
}

fn concrete(ty: &TensorType) -> Option<ConcreteType> {
    let shape = ty.shape.as_const()?.into_iter().map(|d| d as usize).collect();
    Some(ConcreteType { dtype: ty.dtype, shape, layout: ty.layout })
}
