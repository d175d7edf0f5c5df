//! Extraction: which node of each class is computed.
//!
//! The function as it stands is the first choice and alternatives are taken when they lower the
//! cost of the whole graph, in which a value counts once however often it is used. An
//! alternative swallows the values between its operands and its result; it is taken only if all
//! of them die with it, so that no work is ever done twice, and if it costs the target less than
//! what it replaces. Roots are looked at before what they are made of, again until nothing
//! changes: every step removes instructions, so this ends.

use std::collections::HashMap;

use aether_ir::{Attrs, Func, Inst, Op, TensorType, ValueId};
use egg::Id;

use super::lang::{Graph, Node};

/// Most sweeps over a function.
const MAX_SWEEPS: usize = 64;

/// What an op over values costs, in seconds.
pub type CostOf<'a> = dyn Fn(Op, &[&TensorType], &TensorType) -> f64 + 'a;

/// The alternative of one instruction.
struct Alternative {
    op: Op,
    attrs: Attrs,
    operands: Vec<ValueId>,
}

/// Rewrites `func` to the cheapest choice found, asking `allow` before each replacement by an op;
/// returns the fused ops, by position.
pub fn select(
    func: &mut Func,
    graph: &Graph,
    class_of: &[Id],
    cost_of: &CostOf,
    allow: &dyn Fn(Op) -> bool,
) -> Vec<Op> {
    let mut selection = Selection::new(func, graph, class_of);
    for _ in 0..MAX_SWEEPS {
        if !selection.sweep(cost_of, allow) {
            break;
        }
    }
    let Selection { body, live, fused, .. } = selection;
    let mut kept = live.into_iter();
    func.body = body;
    func.body.retain(|_| kept.next().unwrap_or(true));
    fused
}

struct Selection<'a> {
    func: &'a Func,
    graph: &'a Graph,
    class_of: &'a [Id],
    value_of: HashMap<Id, ValueId>,
    body: Vec<Inst>,
    live: Vec<bool>,
    uses: Vec<u32>,
    defs: Vec<Option<usize>>,
    /// Where a value is given away.
    given_at: Vec<Option<usize>>,
    fused: Vec<Op>,
}

impl<'a> Selection<'a> {
    fn new(func: &'a Func, graph: &'a Graph, class_of: &'a [Id]) -> Self {
        let mut given_at = vec![None; func.values.len()];
        for (at, inst) in func.body.iter().enumerate() {
            for operand in inst.operands.iter().filter(|o| o.donated) {
                given_at[operand.value.index()] = Some(at);
            }
        }
        let ids = (0..func.values.len() as u32).map(ValueId);
        Selection {
            func,
            graph,
            class_of,
            value_of: ids.map(|v| (graph.find(class_of[v.index()]), v)).collect(),
            body: func.body.clone(),
            live: vec![true; func.body.len()],
            uses: func.use_counts(),
            defs: func.definitions(),
            given_at,
            fused: Vec::new(),
        }
    }

    /// One pass from the last instruction to the first; whether anything was replaced.
    fn sweep(&mut self, cost_of: &CostOf, allow: &dyn Fn(Op) -> bool) -> bool {
        let mut changed = false;
        for at in (0..self.body.len()).rev() {
            if !self.live[at] || self.body[at].results.len() != 1 {
                continue;
            }
            let mut best: Option<(f64, Alternative, Vec<usize>)> = None;
            for alternative in self.alternatives(at) {
                let Some(swallowed) = self.swallowed(at, &alternative) else { continue };
                let gain = self.gain(at, &alternative, &swallowed, cost_of);
                if gain > best.as_ref().map_or(0.0, |b| b.0) {
                    best = Some((gain, alternative, swallowed));
                }
            }
            if let Some((_, alternative, swallowed)) = best.filter(|b| allow(b.1.op)) {
                self.replace(at, alternative, swallowed);
                changed = true;
            }
        }
        changed
    }

    /// Other nodes of the class of an instruction, in an order that depends on nothing else.
    fn alternatives(&self, at: usize) -> Vec<Alternative> {
        let inst = &self.body[at];
        let class = self.graph.find(self.class_of[inst.results[0].index()]);
        let nodes = &self.graph[class].nodes;
        if nodes.len() < 2 {
            return Vec::new();
        }
        let mut found: Vec<Alternative> = nodes
            .iter()
            .filter(|node| node.as_op().is_some_and(|(op, _)| op != inst.op))
            .filter_map(|node| self.alternative(node))
            .collect();
        found.sort_by(|a, b| (a.op, &a.operands).cmp(&(b.op, &b.operands)));
        found
    }

    fn alternative(&self, node: &Node) -> Option<Alternative> {
        let (op, attrs) = node.as_op()?;
        let value = |&c: &Id| self.value_of.get(&self.graph.find(c)).copied();
        let operands = node.children.iter().map(value).collect::<Option<_>>()?;
        Some(Alternative { op, attrs: attrs.clone(), operands })
    }

    /// The instructions between the alternative's operands and its result, when all their uses
    /// are in there.
    fn swallowed(&self, at: usize, alternative: &Alternative) -> Option<Vec<usize>> {
        let too_late = |v: &ValueId| self.given_at[v.index()].is_some_and(|given| given < at);
        // What an earlier choice swallowed is not computed any more.
        let gone = |v: &ValueId| self.defs[v.index()].is_some_and(|def| !self.live[def]);
        if alternative.operands.iter().any(|v| too_late(v) || gone(v)) {
            return None;
        }
        let mut inside: Vec<usize> = Vec::new();
        let mut work: Vec<ValueId> = self.body[at].inputs().collect();
        let mut uses_inside: HashMap<ValueId, u32> = HashMap::new();
        while let Some(v) = work.pop() {
            if alternative.operands.contains(&v) {
                continue;
            }
            *uses_inside.entry(v).or_insert(0) += 1;
            // A parameter that is no operand would be lost; so would a second result.
            let def = self.defs[v.index()]?;
            if !self.live[def] || self.body[def].results.len() != 1 {
                return None;
            }
            if !inside.contains(&def) {
                inside.push(def);
                work.extend(self.body[def].inputs());
            }
        }
        uses_inside.iter().all(|(v, &n)| self.uses[v.index()] == n).then_some(inside)
    }

    fn gain(&self, at: usize, to: &Alternative, swallowed: &[usize], cost_of: &CostOf) -> f64 {
        let cost = |op, operands: &[ValueId], result| {
            let types: Vec<&TensorType> = operands.iter().map(|&v| self.func.ty(v)).collect();
            cost_of(op, &types, self.func.ty(result))
        };
        let before = |i: usize| {
            let inst = &self.body[i];
            cost(inst.op, &inst.inputs().collect::<Vec<_>>(), inst.results[0])
        };
        let old: f64 = before(at) + swallowed.iter().map(|&i| before(i)).sum::<f64>();
        old - cost(to.op, &to.operands, self.body[at].results[0])
    }

    fn replace(&mut self, at: usize, by: Alternative, swallowed: Vec<usize>) {
        for &i in swallowed.iter().chain([&at]) {
            for v in self.body[i].inputs() {
                self.uses[v.index()] -= 1;
            }
        }
        for i in swallowed {
            self.live[i] = false;
        }
        for v in &by.operands {
            self.uses[v.index()] += 1;
        }
        self.fused.push(by.op);
        let inst = &mut self.body[at];
        inst.op = by.op;
        inst.attrs = by.attrs;
        inst.operands = by.operands.into_iter().map(Into::into).collect();
    }
}
