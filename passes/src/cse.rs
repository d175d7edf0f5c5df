//! Common subexpressions: an instruction equal to an earlier one gives way to it.
//!
//! Two instructions are equal when op, attributes (numbers by their bits), symbol, operands and
//! result types are. Every op is a pure function, calls included. Where donation takes part
//! nothing is merged: an instruction that is given an operand keeps it to itself, and a value
//! that is given away must not get further uses. A `barrier` equals no other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use aether_ir::{Attr, Func, Inst, Module, Op, TensorType, ValueId};

use crate::pass::{Pass, PassCtx, PassError, PassStats};
use crate::util::compact;

/// The pass.
pub struct Cse;

impl Pass for Cse {
    fn name(&self) -> &'static str {
        "cse"
    }

    fn doc(&self) -> &'static str {
        "Computes equal expressions of a function once."
    }

    fn run(&self, module: &mut Module, _ctx: &PassCtx) -> Result<PassStats, PassError> {
        let mut stats = PassStats::default();
        for func in module.funcs.values_mut() {
            stats.count("merged", run_func(func));
        }
        Ok(stats)
    }
}

fn run_func(func: &mut Func) -> usize {
    let mut given = vec![false; func.values.len()];
    for operand in func.body.iter().flat_map(|inst| &inst.operands) {
        given[operand.value.index()] |= operand.donated;
    }
    let mut replacement: Vec<ValueId> = (0..func.values.len() as u32).map(ValueId).collect();
    let mut seen: HashMap<Key, Vec<ValueId>> = HashMap::new();
    let mut body = std::mem::take(&mut func.body);
    let before = body.len();
    body.retain_mut(|inst| {
        for operand in &mut inst.operands {
            operand.value = replacement[operand.value.index()];
        }
        let kept = inst.op == Op::Barrier || inst.operands.iter().any(|o| o.donated);
        if kept || inst.results.iter().any(|r| given[r.index()]) {
            return true;
        }
        match seen.entry(key(func, inst)) {
            Entry::Vacant(slot) => {
                slot.insert(inst.results.clone());
                true
            }
            Entry::Occupied(first) => {
                for (&r, &by) in inst.results.iter().zip(first.get()) {
                    replacement[r.index()] = by;
                    // The later one may carry the only name.
                    let name = func.values[r.index()].name.clone();
                    let kept = &mut func.values[by.index()].name;
                    *kept = kept.take().or(name);
                }
                false
            }
        }
    });
    func.body = body;
    for v in &mut func.returns {
        *v = replacement[v.index()];
    }
    compact(func);
    before - func.body.len()
}

/// What makes two instructions equal.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Key {
    op: Op,
    symbol: Option<Arc<str>>,
    operands: Vec<ValueId>,
    attrs: Vec<(Arc<str>, AttrKey)>,
    types: Vec<TensorType>,
}

/// An attribute with numbers as bits, so that it can be hashed.
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
enum AttrKey {
    Bool(bool),
    Int(i64),
    Float(u64),
    Ints(Vec<i64>),
    Str(Arc<str>),
}

/// The instruction's key. Instructions with equal keys give equal results.
pub(crate) fn key(func: &Func, inst: &Inst) -> Key {
    let mut attrs: Vec<_> = inst
        .attrs
        .0
        .iter()
        .map(|(name, attr)| {
            let key = match attr {
                Attr::Bool(v) => AttrKey::Bool(*v),
                Attr::Int(v) => AttrKey::Int(*v),
                Attr::Float(v) => AttrKey::Float(v.to_bits()),
                Attr::Ints(v) => AttrKey::Ints(v.clone()),
                Attr::Str(v) => AttrKey::Str(v.clone()),
            };
            (name.clone(), key)
        })
        .collect();
    attrs.sort();
    Key {
        op: inst.op,
        symbol: inst.symbol.clone(),
        operands: inst.inputs().collect(),
        attrs,
        types: inst.results.iter().map(|&r| func.ty(r).clone()).collect(),
    }
}
