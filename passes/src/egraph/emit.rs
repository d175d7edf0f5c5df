//! From chosen nodes back to a function.
//!
//! What stays as it was keeps its place, name and attributes. A new node stands where the first
//! value that it computes stood, or just before the first use of it.

use std::collections::HashMap;

use aether_ir::{Attrs, Func, Inst, Op, ValueId};
use egg::Id;

use super::build::Merged;
use super::extract::{Extraction, found};

struct Emitter<'a> {
    func: &'a Func,
    merged: &'a Merged,
    chosen: &'a Extraction,
    /// Where each value of the function was defined.
    defs: Vec<Option<usize>>,
    out: Func,
    /// The value of each class, and whether it is defined yet.
    values: HashMap<Id, (ValueId, bool)>,
}

/// A function made of chosen nodes.
pub struct Emitted {
    pub func: Func,
    /// The value of each class that is computed.
    pub values: HashMap<Id, ValueId>,
}

/// The function that computes what `chosen` says. `func` is what `merged` was built from.
pub fn emit(func: &Func, merged: &Merged, chosen: &Extraction) -> Emitted {
    let mut out = func.clone();
    out.body.clear();
    let defs = func.definitions();
    let mut emitter = Emitter { func, merged, chosen, defs, out, values: HashMap::new() };
    emitter.name_classes();
    for (at, inst) in func.body.iter().enumerate() {
        if merged.node_of[at].is_none() {
            let unused = |r: &ValueId| chosen.node(merged, merged.class_of[r.index()]).is_none();
            if inst.op == Op::Constant && inst.results.iter().all(unused) {
                continue;
            }
            inst.inputs().for_each(|v| {
                emitter.value(merged.class_of[v.index()], inst);
            });
            emitter.push(inst.clone());
            continue;
        }
        let class = merged.graph.find(merged.class_of[inst.results[0].index()]);
        if emitter.values.get(&class).is_some_and(|(v, defined)| *v == inst.results[0] && !defined)
            && chosen.node(merged, class).is_some()
        {
            emitter.value(class, inst);
        }
    }
    let end = Inst { results: Vec::new(), ..placeholder(func) };
    for i in 0..func.returns.len() {
        let class = merged.class_of[func.returns[i].index()];
        emitter.out.returns[i] = emitter.value(class, &end);
    }
    let defined = emitter.values.into_iter().filter(|(_, (_, defined))| *defined);
    let values = defined.map(|(class, (v, _))| (class, v)).collect();
    Emitted { func: emitter.out, values }
}

/// An instruction without a place, for what only the end of the function asks for.
fn placeholder(func: &Func) -> Inst {
    Inst {
        op: Op::Splat,
        operands: Vec::new(),
        attrs: Attrs::new(),
        symbol: None,
        results: Vec::new(),
        span: func.return_span.clone(),
    }
}

impl Emitter<'_> {
    /// Gives each class the value of a leaf in it, or else the first value that it had.
    fn name_classes(&mut self) {
        let find = |v: ValueId| self.merged.graph.find(self.merged.class_of[v.index()]);
        for &p in &self.func.params {
            self.values.entry(find(p)).or_insert((p, true));
        }
        let mut named: HashMap<Id, ValueId> = HashMap::new();
        for (at, inst) in self.func.body.iter().enumerate() {
            for &r in &inst.results {
                let class = find(r);
                let chosen = self.chosen.node(self.merged, class);
                if self.merged.node_of[at].is_some() {
                    self.values.entry(class).or_insert((r, false));
                } else if chosen.is_none_or(|node| node.as_leaf() == Some(r)) {
                    self.values.insert(class, (r, true));
                }
                if self.func.values[r.index()].name.is_some() {
                    named.entry(class).or_insert(r);
                }
            }
        }
        // A value that stays may stand for one that alone had a name.
        for (class, named) in named {
            let Some(&(kept, _)) = self.values.get(&class) else { continue };
            if self.out.values[kept.index()].name.is_none() {
                self.out.values[kept.index()].name = self.func.values[named.index()].name.clone();
            }
        }
    }

    /// The value of a class, computed now unless it has been; `at` is what asks for it.
    fn value(&mut self, class: Id, at: &Inst) -> ValueId {
        let class = self.merged.graph.find(class);
        let mut work = vec![class];
        while let Some(&top) = work.last() {
            if self.values.get(&top).is_some_and(|(_, defined)| *defined) {
                work.pop();
                continue;
            }
            let Some(node) = self.chosen.node(self.merged, top) else {
                // Everything in use has a node; a leaf has its value from the start.
                work.pop();
                continue;
            };
            let missing: Vec<Id> = found(self.merged, node)
                .into_iter()
                .filter(|c| !self.values.get(c).is_some_and(|(_, defined)| *defined))
                .collect();
            if !missing.is_empty() {
                // In the order of the operands.
                work.extend(missing.into_iter().rev());
                continue;
            }
            work.pop();
            self.define(top, at);
        }
        self.values.get(&class).map_or(ValueId(u32::MAX), |(v, _)| *v)
    }

    /// Emits the chosen node of a class whose operands are there.
    fn define(&mut self, class: Id, at: &Inst) {
        let merged = self.merged;
        let Some(node) = self.chosen.node(merged, class) else { return };
        let Some((op, attrs)) = node.as_op() else { return };
        let value = match self.values.get(&class) {
            Some((value, _)) => *value,
            None => {
                let Some(ty) = merged.graph[class].data.clone() else { return };
                self.out.add_value(ty, None)
            }
        };
        self.values.insert(class, (value, true));
        let original = self.defs.get(value.index()).copied().flatten().filter(|&at| {
            let own = merged.node_of[at].as_ref();
            own.is_some_and(|own| own.with_children(found(merged, own)) == *node)
        });
        match original {
            Some(at) => self.push(self.func.body[at].clone()),
            None => {
                let operands =
                    found(merged, node).iter().map(|c| self.values[c].0.into()).collect();
                self.out.body.push(Inst {
                    op,
                    operands,
                    attrs: attrs.clone(),
                    symbol: None,
                    results: vec![value],
                    span: at.span.clone(),
                });
            }
        }
    }

    /// Emits an instruction of the function over what its operands are now.
    fn push(&mut self, mut inst: Inst) {
        for operand in &mut inst.operands {
            let class = self.merged.graph.find(self.merged.class_of[operand.value.index()]);
            if let Some((value, _)) = self.values.get(&class) {
                operand.value = *value;
            }
        }
        self.out.body.push(inst);
    }
}
