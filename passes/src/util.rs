//! What several passes need: dense renumbering, the call graph, fresh names.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use aether_ir::{Func, Module, Op, ValueId};
use petgraph::graph::{DiGraph, NodeIndex};

/// Marks a value that has no new number.
const GONE: u32 = u32::MAX;

/// Drops values that nothing defines and renumbers the rest in order of definition, parameters
/// first. Every pass ends with it, so that equal functions have equal numbers. Returns the new
/// number of each value that is left.
pub fn compact(func: &mut Func) -> HashMap<ValueId, ValueId> {
    let mut new_id = vec![GONE; func.values.len()];
    let mut order = Vec::with_capacity(func.values.len());
    let defined = func.params.iter().chain(func.body.iter().flat_map(|inst| &inst.results));
    for v in defined {
        new_id[v.index()] = order.len() as u32;
        order.push(*v);
    }
    let numbers = order.iter().enumerate().map(|(i, &v)| (v, ValueId(i as u32)));
    let renumbered = numbers.collect();
    if order.len() == func.values.len() && order.iter().enumerate().all(|(i, v)| v.index() == i) {
        return renumbered;
    }
    func.values = order.iter().map(|v| func.values[v.index()].clone()).collect();
    let renumber = |v: &mut ValueId| v.0 = new_id[v.index()];
    func.params.iter_mut().for_each(renumber);
    func.returns.iter_mut().for_each(renumber);
    for inst in &mut func.body {
        inst.results.iter_mut().for_each(renumber);
        for operand in &mut inst.operands {
            renumber(&mut operand.value);
        }
    }
    renumbered
}

/// The functions of a module with an edge from caller to callee for each call.
pub fn call_graph(module: &Module) -> DiGraph<usize, ()> {
    let mut graph = DiGraph::with_capacity(module.funcs.len(), 0);
    for i in 0..module.funcs.len() {
        graph.add_node(i);
    }
    for (i, func) in module.funcs.values().enumerate() {
        for inst in func.body.iter().filter(|inst| inst.op.is_call()) {
            let callee = inst.symbol.as_ref().and_then(|s| module.funcs.get_index_of(s));
            if let Some(callee) = callee {
                graph.add_edge(NodeIndex::new(i), NodeIndex::new(callee), ());
            }
        }
    }
    graph
}

/// The functions that `fused` names. They are one loop and must stay one
/// ([`aether_ir::fusion`]), so a pass that could give them another form leaves them alone.
pub fn fused_bodies(module: &Module) -> HashSet<Arc<str>> {
    named_by(module, Op::Fused)
}

/// The functions that only `fused` names: code generators look into them, nothing calls them.
pub fn uncalled_bodies(module: &Module) -> HashSet<Arc<str>> {
    &fused_bodies(module) - &named_by(module, Op::Call)
}

fn named_by(module: &Module, op: Op) -> HashSet<Arc<str>> {
    let insts = module.funcs.values().flat_map(|f| &f.body).filter(|i| i.op == op);
    insts.filter_map(|i| i.symbol.clone()).collect()
}

/// Indices of the functions that are run from outside: `main` and what was derived from it
/// (`main.grad`), or without a `main` each function that no other calls.
pub fn entries(module: &Module) -> Vec<usize> {
    let mut called = vec![false; module.funcs.len()];
    for inst in module.funcs.values().flat_map(|f| &f.body).filter(|i| i.op.is_call()) {
        if let Some(i) = inst.symbol.as_ref().and_then(|s| module.funcs.get_index_of(s)) {
            called[i] = true;
        }
    }
    let main = module.funcs.get_index_of("main");
    let from_main =
        |i: &usize| module.funcs.get_index(*i).is_some_and(|(name, _)| name.starts_with("main."));
    let is_entry =
        |i: &usize| main.map_or(!called[*i], |main| *i == main || (from_main(i) && !called[*i]));
    (0..called.len()).filter(is_entry).collect()
}

/// The first `prefix.N` that names no constant yet; `next` remembers where to look on.
pub fn fresh_const(module: &Module, prefix: &str, next: &mut usize) -> Arc<str> {
    loop {
        let name = format!("{prefix}.{next}");
        *next += 1;
        if !module.consts.contains_key(name.as_str()) {
            return name.into();
        }
    }
}

/// As [`fresh_const`] for functions.
pub fn fresh_func(module: &Module, prefix: &str, next: &mut usize) -> Arc<str> {
    loop {
        let name = format!("{prefix}.{next}");
        *next += 1;
        if !module.funcs.contains_key(name.as_str()) {
            return name.into();
        }
    }
}

/// Number of single-letter edits between two names, for suggestions.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The candidate nearest to `name`, when it is near enough to be meant.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = name.chars().count().div_ceil(3).max(1);
    candidates
        .map(|c| (edit_distance(name, c), c))
        .filter(|&(distance, _)| distance <= limit)
        .min()
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_near() {
        let names = ["cse", "fold", "dce", "layout", "fuse"];
        let table = [("fuze", Some("fuse")), ("layuot", Some("layout")), ("xyzzy", None)];
        for (written, want) in table {
            assert_eq!(nearest(written, names.into_iter()), want, "{written}");
        }
    }
}
