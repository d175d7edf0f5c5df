//! Dead code: instructions, functions, constants, parameters and results that nothing needs.
//!
//! Liveness is found over one use-def graph of all values of the module: what the entry functions
//! return is live, and so is what a live value is computed from. A call's result leads to the
//! value its callee returns, a callee's parameter to the operands at its calls. Signatures of
//! entry functions are kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use aether_ir::{Module, Op, ValueId};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use crate::pass::{Pass, PassCtx, PassError, PassStats};
use crate::util::{compact, entries};

/// The pass.
pub struct Dce;

impl Pass for Dce {
    fn name(&self) -> &'static str {
        "dce"
    }

    fn doc(&self) -> &'static str {
        "Removes instructions, functions, constants, parameters and results that nothing needs."
    }

    fn run(&self, module: &mut Module, _ctx: &PassCtx) -> Result<PassStats, PassError> {
        let mut stats = PassStats::default();
        let roots = entries(module);
        if roots.is_empty() {
            return Ok(stats);
        }
        let live = Liveness::of(module, &roots);
        live.sweep_funcs(module, &roots, &mut stats);
        sweep_consts(module, &mut stats);
        Ok(stats)
    }
}

/// Which values of which functions are needed.
struct Liveness {
    /// By function, then value.
    values: Vec<Vec<bool>>,
    /// Functions that an entry reaches over live calls.
    funcs: Vec<bool>,
}

/// When an edge of the use-def graph carries liveness.
#[derive(Clone, Copy)]
enum Needs {
    Always,
    /// Once this node is live: an operand is needed for the callee's sake only if the call is.
    Call(NodeIndex),
}

impl Liveness {
    fn of(module: &Module, roots: &[usize]) -> Self {
        // Nodes: the values of all functions one after the other, then one per instruction.
        let mut graph: DiGraph<(), Needs> = DiGraph::new();
        let mut first_value = Vec::with_capacity(module.funcs.len());
        for func in module.funcs.values() {
            first_value.push(graph.node_count());
            for _ in &func.values {
                graph.add_node(());
            }
        }
        let node = |f: usize, v: ValueId| NodeIndex::new(first_value[f] + v.index());
        for (f, func) in module.funcs.values().enumerate() {
            for inst in &func.body {
                let this = graph.add_node(());
                let callee = inst
                    .symbol
                    .as_ref()
                    .filter(|_| inst.op.is_call())
                    .and_then(|s| module.funcs.get_full(s));
                for (i, &r) in inst.results.iter().enumerate() {
                    graph.add_edge(node(f, r), this, Needs::Always);
                    if let Some((g, _, callee)) = callee
                        && let Some(&returned) = callee.returns.get(i)
                    {
                        graph.add_edge(node(f, r), node(g, returned), Needs::Always);
                    }
                }
                for (j, v) in inst.inputs().enumerate() {
                    match callee {
                        // A signature that stays needs its operands whatever the body does.
                        Some((g, _, callee)) if j < callee.params.len() && !roots.contains(&g) => {
                            let param = node(g, callee.params[j]);
                            graph.add_edge(param, node(f, v), Needs::Call(this));
                            graph.add_edge(this, node(f, v), Needs::Call(param));
                        }
                        _ => {
                            graph.add_edge(this, node(f, v), Needs::Always);
                        }
                    }
                }
            }
        }

        let mut live = vec![false; graph.node_count()];
        let mut work: Vec<NodeIndex> = Vec::new();
        for &f in roots {
            work.extend(module.funcs[f].returns.iter().map(|&v| node(f, v)));
        }
        while let Some(n) = work.pop() {
            if std::mem::replace(&mut live[n.index()], true) {
                continue;
            }
            for edge in graph.edges(n) {
                let carries = match edge.weight() {
                    Needs::Always => true,
                    Needs::Call(other) => live[other.index()],
                };
                if carries && !live[edge.target().index()] {
                    work.push(edge.target());
                }
            }
        }

        let values: Vec<Vec<bool>> = module
            .funcs
            .values()
            .enumerate()
            .map(|(f, func)| live[first_value[f]..first_value[f] + func.values.len()].to_vec())
            .collect();
        let mut funcs = vec![false; module.funcs.len()];
        let mut work = roots.to_vec();
        while let Some(f) = work.pop() {
            if std::mem::replace(&mut funcs[f], true) {
                continue;
            }
            for inst in module.funcs[f].body.iter().filter(|i| i.op.is_call()) {
                if inst.results.iter().any(|r| values[f][r.index()]) {
                    work.extend(inst.symbol.as_ref().and_then(|s| module.funcs.get_index_of(s)));
                }
            }
        }
        Liveness { values, funcs }
    }

    fn sweep_funcs(&self, module: &mut Module, roots: &[usize], stats: &mut PassStats) {
        // What stays of each function's signature, by function name.
        let keep: Vec<(Vec<bool>, Vec<bool>)> = module
            .funcs
            .values()
            .enumerate()
            .map(|(f, func)| {
                let of = |values: &[ValueId]| -> Vec<bool> {
                    let fixed = roots.contains(&f);
                    values.iter().map(|v| fixed || self.values[f][v.index()]).collect()
                };
                (of(&func.params), self.kept_results(module, roots, f))
            })
            .collect();
        let index_of: HashMap<Arc<str>, usize> =
            module.funcs.keys().enumerate().map(|(i, name)| (name.clone(), i)).collect();

        for (f, func) in module.funcs.values_mut().enumerate().filter(|(f, _)| self.funcs[*f]) {
            let live = &self.values[f];
            let before = func.body.len();
            func.body.retain(|inst| inst.results.iter().any(|r| live[r.index()]));
            stats.count("instructions", before - func.body.len());
            for inst in func.body.iter_mut().filter(|i| i.op.is_call()) {
                let callee = inst.symbol.as_ref().and_then(|s| index_of.get(s));
                if let Some(&g) = callee {
                    retain_by(&mut inst.operands, &keep[g].0);
                    retain_by(&mut inst.results, &keep[g].1);
                }
            }
            stats.count("parameters", retain_by(&mut func.params, &keep[f].0));
            retain_by(&mut func.returns, &keep[f].1);
            stats.count("results", retain_by(&mut func.result_types, &keep[f].1));
            compact(func);
        }
        let mut f = 0;
        let before = module.funcs.len();
        module.funcs.retain(|_, _| {
            f += 1;
            self.funcs[f - 1]
        });
        stats.count("functions", before - module.funcs.len());
    }

    /// A result stays when some live call uses it; the value itself may be live for other reasons.
    fn kept_results(&self, module: &Module, roots: &[usize], f: usize) -> Vec<bool> {
        let (name, func) = match module.funcs.get_index(f) {
            Some(entry) => entry,
            None => return Vec::new(),
        };
        if roots.contains(&f) {
            return vec![true; func.returns.len()];
        }
        let mut kept = vec![false; func.returns.len()];
        for (g, caller) in module.funcs.values().enumerate().filter(|(g, _)| self.funcs[*g]) {
            for inst in caller.body.iter().filter(|i| i.op.is_call()) {
                if inst.symbol.as_ref() == Some(name) {
                    for (keep, r) in kept.iter_mut().zip(&inst.results) {
                        *keep |= self.values[g][r.index()];
                    }
                }
            }
        }
        kept
    }
}

/// Keeps the items whose flag is set (and those without a flag); returns how many went.
fn retain_by<T>(items: &mut Vec<T>, keep: &[bool]) -> usize {
    let before = items.len();
    let mut flags = keep.iter();
    items.retain(|_| flags.next().copied().unwrap_or(true));
    before - items.len()
}

fn sweep_consts(module: &mut Module, stats: &mut PassStats) {
    let used: HashSet<Arc<str>> = module
        .funcs
        .values()
        .flat_map(|f| &f.body)
        .filter(|inst| inst.op == Op::Constant)
        .filter_map(|inst| inst.symbol.clone())
        .collect();
    let before = module.consts.len();
    module.consts.retain(|name, _| used.contains(name));
    stats.count("constants", before - module.consts.len());
}
