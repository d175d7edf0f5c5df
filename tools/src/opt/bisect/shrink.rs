//! Making a failing case small (delta debugging: Zeller and Hildebrandt, 2002).
//!
//! Every candidate is a whole module that verifies; it is kept when it still fails. The search is
//! greedy and bounded by a count of experiments, so it ends, and gives the same on every machine.

use std::collections::BTreeSet;

use aether_ir::tensor::ConcreteType;
use aether_ir::{ConstData, Dim, Module, Op, Tensor, TensorType, ValueId, verify};

use super::case::{Argument, Case, replace_ints};
use super::kernels::callee;
use crate::opt::inputs;

/// Most experiments.
const BUDGET: usize = 1500;

struct Shrinker<'a> {
    case: Case,
    fails: &'a dyn Fn(&Case) -> bool,
    left: usize,
}

/// A small case that fails as `case` does.
pub fn shrink(case: Case, fails: &dyn Fn(&Case) -> bool) -> Case {
    let mut s = Shrinker { case, fails, left: BUDGET };
    loop {
        let before = s.left;
        let mut better = s.bind_symbols();
        better |= s.enter_calls();
        better |= s.fewer_returns();
        better |= s.drop_instructions();
        better |= s.bypass();
        better |= s.smaller_shapes();
        better |= s.plainer_values();
        if !better || s.left == 0 || before == s.left {
            return s.case;
        }
    }
}

impl Shrinker<'_> {
    /// Keeps a candidate that verifies and fails.
    fn take(&mut self, candidate: Option<Case>) -> bool {
        let Some(candidate) = candidate.filter(|c| self.left > 0 && verify(&c.module).is_ok())
        else {
            return false;
        };
        self.left -= 1;
        if (self.fails)(&candidate) {
            self.case = candidate;
            return true;
        }
        false
    }

    /// Numbers in place of symbols.
    fn bind_symbols(&mut self) -> bool {
        if self.case.module.symbols.is_empty() {
            return false;
        }
        let bindings = self.case.bindings.clone();
        let bind = |dim: &Dim| Some(Dim::new(dim.eval(|s| bindings.get(s).copied())?));
        let mut candidate = map_types(&self.case, &bind);
        if let Some(case) = &mut candidate {
            case.module.symbols.clear();
            case.bindings.clear();
        }
        self.take(candidate)
    }

    /// A called function alone.
    fn enter_calls(&mut self) -> bool {
        let Ok(trace) = self.case.trace() else { return false };
        let calls: Vec<usize> = (0..self.case.entry().body.len())
            .filter(|&i| self.case.entry().body[i].op == Op::Call)
            .collect();
        calls.into_iter().any(|i| {
            let candidate = callee(&self.case, i, &trace);
            self.take(candidate)
        })
    }

    /// One result, as early as possible.
    fn fewer_returns(&mut self) -> bool {
        let Ok(trace) = self.case.trace() else { return false };
        let func = self.case.entry().clone();
        let earlier = func.body.iter().flat_map(|inst| &inst.results).copied();
        let single = func.returns.len() == 1;
        for v in earlier.filter(|v| !single || func.returns[0] != *v) {
            let candidate = self.case.part(&|_| true, &[v], &trace).ok();
            if self.take(candidate) {
                return true;
            }
        }
        false
    }

    /// Parameters in place of computed values: ever smaller groups of instructions go.
    fn drop_instructions(&mut self) -> bool {
        let mut better = false;
        let mut size = self.case.entry().body.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < self.case.entry().body.len() {
                let Ok(trace) = self.case.trace() else { return better };
                let returns = self.case.entry().returns.clone();
                let gone = at..at + size;
                let candidate = self.case.part(&|i| !gone.contains(&i), &returns, &trace).ok();
                let smaller =
                    candidate.filter(|c| c.entry().body.len() < self.case.entry().body.len());
                if self.take(smaller) {
                    better = true;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        better
    }

    /// An operand in place of the instruction's result, when both have one type.
    fn bypass(&mut self) -> bool {
        let mut better = false;
        let mut at = 0;
        while at < self.case.entry().body.len() {
            let func = self.case.entry();
            let inst = &func.body[at];
            let result = match inst.results.as_slice() {
                [one] => *one,
                _ => {
                    at += 1;
                    continue;
                }
            };
            let by = inst.inputs().find(|&v| func.ty(v) == func.ty(result));
            let candidate = by.and_then(|by| self.replaced(result, by));
            if self.take(candidate) {
                better = true;
            } else {
                at += 1;
            }
        }
        better
    }

    /// The case with one value read in place of another.
    fn replaced(&self, old: ValueId, by: ValueId) -> Option<Case> {
        let mut case = self.case.clone();
        let func = case.entry_mut();
        let operands = func.body.iter_mut().flat_map(|inst| &mut inst.operands);
        for v in operands.map(|o| &mut o.value).chain(&mut func.returns) {
            if *v == old {
                *v = by;
            }
        }
        let returns = func.returns.clone();
        let trace = case.trace().ok()?;
        case.part(&|_| true, &returns, &trace).ok()
    }

    /// Smaller numbers in place of each dimension, everywhere at once.
    fn smaller_shapes(&mut self) -> bool {
        let mut better = false;
        let mut dims: BTreeSet<u64> = BTreeSet::new();
        for value in self.case.module.funcs.values().flat_map(|f| &f.values) {
            dims.extend(value.ty.shape.0.iter().filter_map(Dim::as_const));
        }
        for from in dims.into_iter().rev().filter(|d| *d > 1) {
            for to in [1, 2, 3, 4, 8, 16, 32, from / 2] {
                if to >= from || to == 0 {
                    continue;
                }
                let candidate = resize(&self.case, from, to);
                if self.take(candidate) {
                    better = true;
                    break;
                }
            }
        }
        better
    }

    /// Ones and seeds in place of arguments that must be written out.
    fn plainer_values(&mut self) -> bool {
        let mut better = false;
        for i in 0..self.case.arguments.len() {
            for spec in ["1", "2", "random:1"] {
                let current = &self.case.arguments[i];
                if current.spec.as_deref() == Some(spec) {
                    break;
                }
                // A seed is no plainer than another.
                if current.spec.as_deref().is_some_and(|s| s.starts_with("random"))
                    && spec.len() > 1
                {
                    continue;
                }
                let ty = current.tensor.ty();
                let made = from_spec(&ty, spec);
                let candidate = made.map(|tensor| {
                    let mut case = self.case.clone();
                    case.arguments[i] = Argument { tensor, spec: Some(spec.to_owned()) };
                    case
                });
                if self.take(candidate) {
                    better = true;
                    break;
                }
            }
        }
        better
    }
}

/// The tensor that `--input` makes of a text.
fn from_spec(ty: &ConcreteType, spec: &str) -> Option<Tensor> {
    match spec.strip_prefix("random:") {
        Some(seed) => inputs::random(ty, seed.parse().ok()?).ok(),
        None => {
            let n = ty.numel()?;
            Tensor::from_f64(ty.dtype, &ty.shape, &vec![spec.parse().ok()?; n]).ok()
        }
    }
}

/// The case with `to` for every dimension `from`; arguments and constants keep their first part.
fn resize(case: &Case, from: u64, to: u64) -> Option<Case> {
    let change = |dim: &Dim| Some(if dim.is(from) { Dim::new(to) } else { dim.clone() });
    let mut new = map_types(case, &change)?;
    for func in new.module.funcs.values_mut() {
        for inst in func.body.iter_mut().filter(|inst| inst.op == Op::Slice) {
            inst.attrs = replace_ints(&inst.attrs, "limits", from as i64, to as i64);
        }
    }
    for constant in new.module.consts.values_mut() {
        let old = ConcreteType::of(&constant.ty, &case.bindings).ok()?;
        constant.ty = map_type(&constant.ty, &change)?;
        let ty = ConcreteType::of(&constant.ty, &case.bindings).ok()?;
        if ty == old {
            continue;
        }
        let ConstData::Dense(bytes) = &constant.data else { return None };
        let tensor = Tensor::new(old, bytes.to_vec()).ok()?;
        constant.data = ConstData::Dense(corner(&tensor, &ty)?.bytes().to_vec().into());
    }
    let params = new.entry().params.clone();
    for (i, param) in params.into_iter().enumerate() {
        let ty = ConcreteType::of(new.entry().ty(param), &new.bindings).ok()?;
        let argument = &mut new.arguments[i];
        argument.tensor = match &argument.spec {
            Some(spec) => from_spec(&ty, spec)?,
            None => corner(&argument.tensor, &ty)?,
        };
    }
    Some(new)
}

fn map_types(case: &Case, change: &dyn Fn(&Dim) -> Option<Dim>) -> Option<Case> {
    let mut new = case.clone();
    map_module(&mut new.module, change)?;
    Some(new)
}

fn map_module(module: &mut Module, change: &dyn Fn(&Dim) -> Option<Dim>) -> Option<()> {
    for func in module.funcs.values_mut() {
        let values = func.values.iter_mut().map(|v| &mut v.ty);
        for ty in values.chain(&mut func.result_types) {
            *ty = map_type(ty, change)?;
        }
    }
    Some(())
}

fn map_type(ty: &TensorType, change: &dyn Fn(&Dim) -> Option<Dim>) -> Option<TensorType> {
    let mut new = ty.clone();
    new.shape.0 = ty.shape.0.iter().map(change).collect::<Option<_>>()?;
    Some(new)
}

/// The first elements along each axis.
fn corner(tensor: &Tensor, ty: &ConcreteType) -> Option<Tensor> {
    let (old, new) = (tensor.shape(), &ty.shape);
    if old.len() != new.len() || old.iter().zip(new).any(|(o, n)| n > o) {
        return None;
    }
    let values = tensor.to_f64_vec().ok()?;
    let n = ty.numel()?;
    let mut out = Vec::with_capacity(n);
    for flat in 0..n {
        let (mut rest, mut at, mut stride) = (flat, 0, 1);
        for axis in (0..new.len()).rev() {
            at += rest % new[axis] * stride;
            rest /= new[axis];
            stride *= old[axis];
        }
        out.push(*values.get(at)?);
    }
    Some(Tensor::from_f64(ty.dtype, new, &out).ok()?.with_layout(ty.layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners() {
        let tensor = Tensor::from_f32(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let small = corner(&tensor, &ConcreteType::new(tensor.dtype(), [2, 2])).unwrap();
        assert_eq!(small.to_f32_vec().unwrap(), [0.0, 1.0, 3.0, 4.0]);
        assert!(corner(&tensor, &ConcreteType::new(tensor.dtype(), [3, 3])).is_none());
    }
}
