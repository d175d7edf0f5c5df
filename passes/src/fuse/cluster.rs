//! Elementwise chains, with reductions in and behind them, become `fused`: one loop.
//!
//! A step after extraction, over the dependence graph of a function. Which instructions come
//! together follows from *levels*. Along every dependence the level does not fall, and it rises
//! unless both ends are of one loop (the same space of elements, [`aether_ir::fusion`]). So what is
//! connected on one level by dependences within a loop can be one instruction: a way out of it and
//! back would have to rise. An instruction is put on the level of its users when they allow it,
//! because it may just as well run later. That is linear in the function's length.
//!
//! What fills from nothing (splat, iota, their broadcasts) is copied into each loop; nothing else
//! is ever computed twice. A group is fused when the target says that it costs less: it reads its
//! operands and writes what is used outside once, in one launch.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use aether_ir::fusion::{Fusion, MAX_BODY, Place, Role, reduced_axes};
use aether_ir::op::MAX_OPERANDS;
use aether_ir::{
    Attrs, Func, FuncBuilder, Inst, Layout, Module, Op, Operand, Shape, TensorType, ValueId,
};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::unionfind::UnionFind;
use petgraph::visit::EdgeRef;

use crate::cost;
use crate::pass::{PassCtx, PassStats, Rule};
use crate::util::{compact, fresh_func};

/// Groups without a reduction.
pub const CHAIN: Rule = Rule {
    name: "elementwise-chain",
    doc: "Elementwise ops, casts, selects and broadcasts over one shape become fused.",
};

/// Groups with reductions at their end.
pub const EPILOGUE: Rule = Rule {
    name: "reduce-epilogue",
    doc: "Reductions are fused with the elementwise ops that they read.",
};

/// Groups that read what they reduced.
pub const READ_BACK: Rule = Rule {
    name: "reduce-read-back",
    doc: "Elementwise ops that read a reduction of the last axes are fused with it, as in softmax.",
};

/// Rounds in which reductions that do not fit together are set apart.
const MAX_ROUNDS: usize = 4;

/// Most instructions of a piece when a group is too long for one loop.
const PIECE: usize = MAX_BODY / 2;

/// Fuses what gains in one function; adds the bodies to the module.
pub fn fuse(module: &mut Module, func: &mut Func, ctx: &PassCtx, stats: &mut PassStats) {
    let rules = [CHAIN, EPILOGUE, READ_BACK].map(|rule| ctx.enabled(rule.name));
    if !rules.contains(&true) {
        return;
    }
    let mut apart = vec![false; func.body.len()];
    let mut groups = Vec::new();
    for _ in 0..MAX_ROUNDS {
        let graph = Dependences::of(func, &apart, rules);
        groups = graph.groups();
        let odd = graph.odd_reductions(&groups);
        if odd.is_empty() {
            break;
        }
        odd.into_iter().for_each(|at| apart[at] = true);
    }
    let uses = Uses::of(func);
    let mut chosen: Vec<Loop> = Vec::new();
    for group in groups.into_iter().flat_map(|g| pieces(func, &uses.cheap, g)) {
        if let Some(found) = Loop::of(func, &uses, &group)
            && rules[found.rule()]
            && found.gains(module, func, ctx)
            && ctx.take_rewrite([CHAIN, EPILOGUE, READ_BACK][found.rule()].name)
        {
            chosen.push(found);
        }
    }
    if chosen.is_empty() {
        return;
    }
    let mut known: HashMap<String, Arc<str>> = HashMap::new();
    let mut next = 0;
    let mut calls = Vec::with_capacity(chosen.len());
    for found in &chosen {
        stats.count([CHAIN, EPILOGUE, READ_BACK][found.rule()].name, 1);
        // Equal loops share a body; the name is no part of what they are.
        let name = known.entry(format!("{:?}", found.body)).or_insert_with(|| {
            let name = fresh_func(module, "f", &mut next);
            module.add_func(Func { name: name.clone(), ..found.body.clone() });
            name
        });
        calls.push(found.call(name.clone()));
    }
    replace(func, &chosen, calls);
    compact(func);
}

/// Values that are filled from nothing.
fn cheap(func: &Func) -> Vec<bool> {
    let mut cheap = vec![false; func.values.len()];
    for inst in &func.body {
        let is = match inst.op {
            Op::Splat | Op::Iota => true,
            Op::Broadcast => cheap[inst.operands[0].value.index()],
            _ => false,
        };
        if is {
            cheap[inst.results[0].index()] = true;
        }
    }
    cheap
}

/// Values that are computed when the module is loaded.
fn at_load(func: &Func) -> Vec<bool> {
    let mut is = vec![false; func.values.len()];
    for inst in &func.body {
        let fixed = !inst.op.is_call()
            && inst.inputs().all(|v| is[v.index()])
            && inst.results.iter().all(|&r| func.ty(r).shape.as_const().is_some());
        inst.results.iter().for_each(|r| is[r.index()] = fixed);
    }
    is
}

/// What an instruction is to the loop that it may be part of.
#[derive(Clone, PartialEq)]
struct Member {
    space: Shape,
    /// Its result is what is left of reduced axes.
    narrow: bool,
}

/// The dependences of a function's instructions, with levels.
struct Dependences<'a> {
    func: &'a Func,
    members: Vec<Option<Member>>,
    /// Nodes are instructions; an edge says whether both ends can be one loop.
    graph: DiGraph<(), bool>,
    levels: Vec<u32>,
}

impl<'a> Dependences<'a> {
    fn of(func: &'a Func, apart: &[bool], rules: [bool; 3]) -> Self {
        let defs = func.definitions();
        let (cheap, fixed) = (cheap(func), at_load(func));
        let mut graph = DiGraph::with_capacity(func.body.len(), 2 * func.body.len());
        let mut members: Vec<Option<Member>> = Vec::with_capacity(func.body.len());
        // Who reads a value so far: what gives it away must come later.
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); func.values.len()];
        for (at, inst) in func.body.iter().enumerate() {
            let node = graph.add_node(());
            let usable =
                !apart[at] && inst.results.iter().all(|r| !cheap[r.index()] && !fixed[r.index()]);
            let member = usable.then(|| member(func, &defs, &members, inst, rules)).flatten();
            members.push(member);
            for operand in &inst.operands {
                let v = operand.value;
                // It is not read again after it was given away.
                let before = match operand.donated {
                    true => std::mem::take(&mut readers[v.index()]),
                    false => Vec::new(),
                };
                readers[v.index()].push(at);
                let def = defs[v.index()].filter(|_| !cheap[v.index()] && !fixed[v.index()]);
                for from in def.into_iter().chain(before) {
                    let one = def == Some(from) && in_one(func, inst, v, &members, from, at)
                        || def != Some(from)
                            && members[from].is_some()
                            && members[from] == members[at];
                    graph.add_edge(NodeIndex::new(from), node, one);
                }
            }
        }
        let levels = levels(&graph);
        Dependences { func, members, graph, levels }
    }

    /// The groups of two and more instructions, each in order.
    fn groups(&self) -> Vec<Vec<usize>> {
        let mut sets = UnionFind::<usize>::new(self.members.len());
        for edge in self.graph.edge_references().filter(|e| *e.weight()) {
            let (a, b) = (edge.source().index(), edge.target().index());
            if self.levels[a] == self.levels[b] {
                sets.union(a, b);
            }
        }
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut first: HashMap<usize, usize> = HashMap::new();
        for at in (0..self.members.len()).filter(|&at| self.members[at].is_some()) {
            let leader = *first.entry(sets.find(at)).or_insert(at);
            groups.entry(leader).or_default().push(at);
        }
        groups.into_values().filter(|g| g.len() > 1).collect()
    }

    /// Reductions over other axes than the first one of their group. (A group in which some are
    /// left after the last round is no loop, and stays as it is.)
    fn odd_reductions(&self, groups: &[Vec<usize>]) -> Vec<usize> {
        let mut odd = Vec::new();
        for group in groups {
            let axes = |at: usize| {
                let inst = &self.func.body[at];
                let reduces = Role::of(inst.op) == Some(Role::Reduce);
                let shape = &self.func.ty(inst.operands.first()?.value).shape;
                reduces.then(|| reduced_axes(inst, shape))?
            };
            let all: Vec<(usize, _)> =
                group.iter().filter_map(|&at| Some((at, axes(at)?))).collect();
            let Some((_, first)) = all.first() else { continue };
            odd.extend(all.iter().filter(|(_, a)| a != first).map(|(at, _)| *at));
        }
        odd
    }
}

/// What an instruction is to a loop; `None` when it cannot be part of one.
fn member(
    func: &Func,
    defs: &[Option<usize>],
    members: &[Option<Member>],
    inst: &Inst,
    rules: [bool; 3],
) -> Option<Member> {
    let [result] = inst.results[..] else { return None };
    let single = |v: ValueId| {
        let ty = func.ty(v);
        !ty.dtype.is_quantized() && ty.layout == Layout::RowMajor
    };
    if !inst.inputs().chain([result]).all(single) {
        return None;
    }
    let narrow_of = |v: ValueId| {
        let made = defs[v.index()].and_then(|d| members.get(d)?.as_ref());
        made.filter(|m| m.narrow)
    };
    match Role::of(inst.op)? {
        Role::Source => None,
        Role::Reduce => {
            let space = &func.ty(inst.operands[0].value).shape;
            reduced_axes(inst, space)?;
            // Without either rule a reduction stays alone.
            (rules[1] || rules[2]).then(|| Member { space: space.clone(), narrow: true })
        }
        Role::Map => {
            let shape = &func.ty(result).shape;
            let narrow =
                inst.inputs().find_map(|v| narrow_of(v).filter(|_| func.ty(v).shape == *shape));
            let goes = |m: &Member| {
                inst.inputs().all(|v| {
                    narrow_of(v)
                        .is_some_and(|other| other.space == m.space && func.ty(v).shape == *shape)
                        || func.ty(v).shape.0.iter().all(|d| d.is(1))
                })
            };
            Some(match narrow.filter(|m| goes(m)) {
                Some(m) => m.clone(),
                None => Member { space: shape.clone(), narrow: false },
            })
        }
    }
}

/// Whether the maker of `v` and its reader can be one loop.
fn in_one(
    func: &Func,
    inst: &Inst,
    v: ValueId,
    members: &[Option<Member>],
    from: usize,
    to: usize,
) -> bool {
    let (Some(made), Some(read)) = (&members[from], &members[to]) else { return false };
    if made.space != read.space {
        return false;
    }
    let reduces = Role::of(inst.op) == Some(Role::Reduce);
    match (made.narrow, read.narrow) {
        (false, false) => true,
        // Of narrow instructions reductions alone read wide values.
        (false, true) => reduces,
        (true, true) => !reduces && func.ty(v).shape == func.ty(inst.results[0]).shape,
        (true, false) => reads_back(func, v, &read.space),
    }
}

/// Whether a reduced value has kept its axes, and they are the last ones.
fn reads_back(func: &Func, v: ValueId, space: &Shape) -> bool {
    let shape = &func.ty(v).shape;
    if shape.rank() != space.rank() {
        return shape.0.is_empty();
    }
    let kept = shape.0.iter().zip(&space.0).take_while(|(a, b)| a == b).count();
    shape.0[kept..].iter().all(|d| d.is(1))
}

/// The lowest level of each instruction, then as high as its users within a loop are.
fn levels(graph: &DiGraph<(), bool>) -> Vec<u32> {
    let n = graph.node_count();
    let mut levels = vec![0u32; n];
    // Instructions depend on earlier ones only.
    for at in 0..n {
        let node = NodeIndex::new(at);
        for edge in graph.edges_directed(node, petgraph::Incoming) {
            let rise = u32::from(!*edge.weight());
            levels[at] = levels[at].max(levels[edge.source().index()] + rise);
        }
    }
    for at in (0..n).rev() {
        let node = NodeIndex::new(at);
        let users = || graph.edges_directed(node, petgraph::Outgoing);
        let limit = |e: petgraph::graph::EdgeReference<bool>| {
            levels[e.target().index()] - u32::from(!*e.weight())
        };
        let Some(highest) = users().map(limit).min() else { continue };
        if users().any(|e| *e.weight() && limit(e) == highest) {
            levels[at] = highest;
        }
    }
    levels
}

/// A group in pieces that one loop can hold. Pieces follow the order of the body, so no piece
/// depends on a later one.
fn pieces(func: &Func, cheap: &[bool], group: Vec<usize>) -> Vec<Vec<usize>> {
    let fits = |group: &[usize]| {
        let reads: HashSet<ValueId> = group.iter().flat_map(|&at| func.body[at].inputs()).collect();
        // Each cheap value is one or two instructions more.
        let copied = reads.iter().filter(|v| cheap[v.index()]).count();
        group.len() + 2 * copied <= MAX_BODY && group.len() <= PIECE && reads.len() <= MAX_OPERANDS
    };
    if fits(&group) {
        return vec![group];
    }
    let mut all = Vec::new();
    let mut piece: Vec<usize> = Vec::new();
    for at in group {
        piece.push(at);
        if !fits(&piece) {
            piece.pop();
            all.push(std::mem::replace(&mut piece, vec![at]));
        }
    }
    all.push(piece);
    all.retain(|p| p.len() > 1);
    all
}

/// What groups ask of the function around them.
struct Uses {
    cheap: Vec<bool>,
    defs: Vec<Option<usize>>,
    /// The instructions that read each value.
    readers: Vec<Vec<usize>>,
    returned: Vec<bool>,
}

impl Uses {
    fn of(func: &Func) -> Self {
        let mut readers = vec![Vec::new(); func.values.len()];
        for (at, inst) in func.body.iter().enumerate() {
            inst.inputs().for_each(|v| readers[v.index()].push(at));
        }
        let mut returned = vec![false; func.values.len()];
        func.returns.iter().for_each(|v| returned[v.index()] = true);
        Uses { cheap: cheap(func), defs: func.definitions(), readers, returned }
    }
}

/// A group as the function that it becomes.
struct Loop {
    members: Vec<usize>,
    body: Func,
    operands: Vec<Operand>,
    results: Vec<ValueId>,
    fusion: Fusion,
}

impl Loop {
    fn of(func: &Func, uses: &Uses, group: &[usize]) -> Option<Loop> {
        let mut builder = FuncBuilder::new("");
        let mut operands: Vec<Operand> = Vec::new();
        let mut inner: HashMap<ValueId, ValueId> = HashMap::new();
        let made: HashSet<ValueId> =
            group.iter().flat_map(|&at| func.body[at].results.iter().copied()).collect();
        // Parameters first: they stand first in the function.
        for &at in group {
            for operand in &func.body[at].operands {
                let v = operand.value;
                if made.contains(&v) || uses.cheap[v.index()] {
                    continue;
                }
                match operands.iter_mut().find(|o| o.value == v) {
                    Some(known) => known.donated |= operand.donated,
                    None => {
                        let name = format!("x{}", operands.len());
                        inner.insert(v, builder.param(&name, func.ty(v).clone()));
                        operands.push(*operand);
                    }
                }
            }
        }
        for &at in group {
            let inst = &func.body[at];
            for v in inst.inputs() {
                copy_cheap(func, &uses.defs, v, &mut builder, &mut inner)?;
            }
            copy(func, inst, &mut builder, &mut inner)?;
        }
        let used = |r: &ValueId| {
            let outside = |at: &usize| group.binary_search(at).is_err();
            uses.returned[r.index()] || uses.readers[r.index()].iter().any(outside)
        };
        let results: Vec<ValueId> =
            group.iter().map(|&at| func.body[at].results[0]).filter(used).collect();
        if results.is_empty() || results.len() > MAX_OPERANDS || operands.len() > MAX_OPERANDS {
            return None;
        }
        let returns: Vec<ValueId> = results.iter().map(|r| inner[r]).collect();
        let body = builder.finish(&returns);
        let fusion = Fusion::of(&body).ok()?;
        Some(Loop { members: group.to_vec(), body, operands, results, fusion })
    }

    /// Index of the rule that this is an instance of.
    fn rule(&self) -> usize {
        let reads_back = self.fusion.passes > 1
            || self.fusion.places.iter().any(|p| matches!(p, Place::Wide { pass } if *pass > 0));
        match (&self.fusion.reduced, reads_back) {
            (None, _) => 0,
            (Some(_), false) => 1,
            (Some(_), true) => 2,
        }
    }

    /// Whether the loop costs the target less than its instructions one by one.
    fn gains(&self, module: &Module, func: &Func, ctx: &PassCtx) -> bool {
        let types: Vec<&TensorType> = self.operands.iter().map(|o| func.ty(o.value)).collect();
        let results: Vec<&TensorType> = self.results.iter().map(|&r| func.ty(r)).collect();
        if !ctx.target.supports(Op::Fused, &types) {
            return false;
        }
        let fused = cost::of_loop(module, ctx, &self.body, &types, &results);
        let one =
            |&at: &usize| ctx.target.seconds(&cost::of_inst(module, ctx, func, &func.body[at]));
        ctx.target.seconds(&fused) < self.members.iter().map(one).sum()
    }

    fn call(&self, name: Arc<str>) -> Inst {
        Inst {
            op: Op::Fused,
            operands: self.operands.clone(),
            attrs: Attrs::new(),
            symbol: Some(name),
            results: self.results.clone(),
            span: 0..0,
        }
    }
}

/// Copies one instruction into a body.
fn copy(
    func: &Func,
    inst: &Inst,
    builder: &mut FuncBuilder,
    inner: &mut HashMap<ValueId, ValueId>,
) -> Option<()> {
    let operands: Vec<ValueId> =
        inst.inputs().map(|v| inner.get(&v).copied()).collect::<Option<_>>()?;
    let result = inst.results[0];
    let made = builder.op_to(inst.op, &operands, inst.attrs.clone(), func.ty(result).clone());
    inner.insert(result, made.ok()?);
    Some(())
}

/// Copies what fills a cheap value, if it is one and is not there yet.
fn copy_cheap(
    func: &Func,
    defs: &[Option<usize>],
    v: ValueId,
    builder: &mut FuncBuilder,
    inner: &mut HashMap<ValueId, ValueId>,
) -> Option<()> {
    let mut chain = Vec::new();
    let mut at = v;
    while !inner.contains_key(&at) {
        let inst = &func.body[defs[at.index()]?];
        if !matches!(inst.op, Op::Splat | Op::Iota | Op::Broadcast) {
            // A member, copied in its turn.
            break;
        }
        chain.push(inst);
        match inst.operands.first() {
            Some(operand) => at = operand.value,
            None => break,
        }
    }
    chain.into_iter().rev().try_for_each(|inst| copy(func, inst, builder, inner))
}

/// Puts the calls in place of their members: an order in which every value is there when it is
/// read and given away after it was read, as near as possible to the one that was.
fn replace(func: &mut Func, loops: &[Loop], calls: Vec<Inst>) {
    let n = func.body.len();
    // Units are loops and the other instructions; each goes by the index of its last member.
    let mut unit: Vec<usize> = (0..n).collect();
    for found in loops {
        let last = *found.members.last().unwrap_or(&0);
        found.members.iter().for_each(|&at| unit[at] = last);
    }
    let mut graph: DiGraph<(), ()> = DiGraph::with_capacity(n, 2 * n);
    for _ in 0..n {
        graph.add_node(());
    }
    let defs = func.definitions();
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); func.values.len()];
    let mut waits = vec![0usize; n];
    for (at, inst) in func.body.iter().enumerate() {
        for operand in &inst.operands {
            let v = operand.value.index();
            let mut before: Vec<usize> = defs[v].into_iter().collect();
            if operand.donated {
                before.extend(&readers[v]);
            }
            readers[v].push(at);
            for from in before {
                if unit[from] != unit[at] {
                    graph.add_edge(NodeIndex::new(unit[from]), NodeIndex::new(unit[at]), ());
                    waits[unit[at]] += 1;
                }
            }
        }
    }
    let mut by_unit: Vec<Option<Inst>> = std::mem::take(&mut func.body)
        .into_iter()
        .enumerate()
        .map(|(at, inst)| (unit[at] == at).then_some(inst))
        .collect();
    for (found, call) in loops.iter().zip(calls) {
        by_unit[*found.members.last().unwrap_or(&0)] = Some(call);
    }
    let ready = (0..n).filter(|&at| unit[at] == at && waits[at] == 0);
    let mut ready: BinaryHeap<Reverse<usize>> = ready.map(Reverse).collect();
    while let Some(Reverse(at)) = ready.pop() {
        func.body.extend(by_unit[at].take());
        for to in graph.neighbors(NodeIndex::new(at)) {
            waits[to.index()] -= 1;
            if waits[to.index()] == 0 {
                ready.push(Reverse(to.index()));
            }
        }
    }
}
