//! Why a value is what it is: the named rewrites between what was written and what came out.
//!
//! The proof is egg's (Nelson and Oppen's, with the shortening of Flatt et al. 2022). An e-graph
//! that can explain itself is slower, so it is built only when somebody asks, and only of the
//! instructions between the value and the nearest ones that both forms share.

use std::collections::{HashMap, HashSet};
use std::fmt;

use aether_ir::text::value_names;
use aether_ir::{Attr, Func, Inst, Module, Op, ValueId};
use egg::{FlatTerm, Id, Language, RecExpr};

use super::saturate::RuleSet;
use super::{attempt, donations_hold, enabled_rules, given_away, number_of};
use crate::egraph::build::merged_into;
use crate::egraph::{Extraction, Graph, Merged, Node, Types};
use crate::pass::{PassCtx, PassError};
use crate::util::{compact, fused_bodies};

/// How many instructions of the function as written an explanation looks at: as many as possible
/// at first, fewer when they make terms too large.
const INSTS: [usize; 4] = [64, 24, 12, 6];
/// Largest term, written out as a tree.
const MAX_TERM: u64 = 2000;
/// Most times that one function is rewritten, as in the pass.
const MAX_RUNS: usize = super::MAX_RUNS;

/// One rewrite. Terms are written as rules are: `(transpose{perm=[1, 0]} (neg %x))`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub rule: String,
    /// The rule was used from its right side to its left.
    pub backwards: bool,
    pub before: String,
    pub after: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.backwards { ", backwards" } else { "" };
        write!(f, "{}\n  = {}    [{}{direction}]", self.before, self.after, self.rule)
    }
}

/// The chain of rewrites by which `simplify` comes to the value `%value` of `@func`, first to
/// last. `value` is a name in the function as `simplify` leaves it, or else in the function as it
/// is. No rewrites are counted against the context's limit.
///
/// # Errors
/// When there is no such function or value, or when the value is a part that a rewrite of another
/// value has introduced.
pub fn explain(
    module: &Module,
    ctx: &PassCtx,
    func: &str,
    value: &str,
) -> Result<Vec<Step>, PassError> {
    let (name, start) = module
        .funcs
        .get_key_value(func)
        .ok_or_else(|| PassError::Module(format!("there is no function @{func}")))?;
    let error = |message: String| PassError::Func { func: name.clone(), message };
    let ctx = ctx.without_counting();
    let rules = enabled_rules(&ctx)?;
    let mut start = start.clone();
    compact(&mut start);
    let runs = runs(module, &start, &ctx, &rules);

    let sigil = format!("%{}", value.trim_start_matches('%'));
    let last = runs.last().map_or(&start, |run| &run.after);
    let (mut at, first_run) = match find(last, &sigil) {
        Some(v) => (v, runs.len()),
        None => {
            (find(&start, &sigil).ok_or_else(|| error(format!("there is no value {sigil}")))?, 0)
        }
    };
    // From the result back to what was written, or on from what was written.
    let mut parts: Vec<Vec<Step>> = Vec::new();
    if first_run == 0 {
        for run in &runs {
            let class = run.merged.graph.find(run.merged.class_of[at.index()]);
            parts.push(prove(module, run, class, at, &rules).ok_or_else(|| no_proof(&error))?);
            match run.value_of.get(&class) {
                Some(&next) => at = next,
                None => break,
            }
        }
        return Ok(parts.concat());
    }
    for run in runs.iter().rev() {
        let Some(&class) = run.class_of.get(&at) else {
            return Err(error(format!("{sigil} was computed nowhere")));
        };
        let Some(before) = first_value(&run.before, &run.merged, class) else {
            return Err(error(format!(
                "{sigil} has no counterpart before: it is part of what replaced another value"
            )));
        };
        parts.push(prove(module, run, class, before, &rules).ok_or_else(|| no_proof(&error))?);
        at = before;
    }
    parts.reverse();
    Ok(parts.concat())
}

fn no_proof(error: &dyn Fn(String) -> PassError) -> PassError {
    error("the rewrites depend on too many instructions for a proof that one could read".to_owned())
}

/// One run of the pass over the function.
struct Run {
    before: Func,
    merged: Merged,
    chosen: Extraction,
    after: Func,
    /// The class of each value after.
    class_of: HashMap<ValueId, Id>,
    /// The value after of each class.
    value_of: HashMap<Id, ValueId>,
}

fn runs(module: &Module, start: &Func, ctx: &PassCtx, rules: &RuleSet) -> Vec<Run> {
    let mut runs = Vec::new();
    if fused_bodies(module).contains(&start.name) {
        return runs;
    }
    let mut before = start.clone();
    for _ in 0..MAX_RUNS {
        let free = attempt(module, &before, ctx, rules, &HashSet::new());
        let done = match donations_hold(&free.func) {
            true => free,
            false => attempt(module, &before, ctx, rules, &given_away(&before)),
        };
        if done.func == before {
            break;
        }
        let value_of: HashMap<Id, ValueId> =
            done.class_of.iter().map(|(&v, &class)| (class, v)).collect();
        let after = done.func.clone();
        runs.push(Run {
            before,
            merged: done.merged,
            chosen: done.chosen,
            after: done.func,
            class_of: done.class_of,
            value_of,
        });
        before = after;
    }
    runs
}

fn find(func: &Func, name: &str) -> Option<ValueId> {
    let names = value_names(func);
    let at = names.iter().position(|n| n.as_deref() == Some(name))?;
    Some(ValueId(at as u32))
}

/// The first value of a class in the function as written.
fn first_value(func: &Func, merged: &Merged, class: Id) -> Option<ValueId> {
    let results = func.body.iter().flat_map(|inst| &inst.results);
    func.params
        .iter()
        .chain(results)
        .copied()
        .find(|v| merged.graph.find(merged.class_of[v.index()]) == class)
}

/// The steps from the instruction of `v` as written to the node chosen for its class.
fn prove(module: &Module, run: &Run, class: Id, v: ValueId, rules: &RuleSet) -> Option<Vec<Step>> {
    let mut after = Chosen { run, leaves: Vec::new(), terms: RecExpr::default() };
    after.add(class, true)?;
    if tree_size(&after.terms) > MAX_TERM {
        return None;
    }
    INSTS.iter().find_map(|&most| prove_within(module, run, v, rules, &after, most))
}

/// As [`prove`], from at most so many instructions.
fn prove_within(
    module: &Module,
    run: &Run,
    v: ValueId,
    rules: &RuleSet,
    after: &Chosen,
    most: usize,
) -> Option<Vec<Step>> {
    let region = region(run, v, &after.leaves, most);
    if region.body.is_empty() {
        return Some(Vec::new());
    }
    let graph = Graph::new(Types).with_explanations_enabled();
    let number = |inst: &Inst| number_of(module, &region, inst);
    let mut local = merged_into(graph, &region, &|_| false, &number);
    let before = written(&region, &local, v)?;
    if tree_size(&before) > MAX_TERM {
        return None;
    }
    rules.saturate(&mut local.graph, &mut |_| true);

    let graph = &mut local.graph;
    let (from, to) = (graph.add_expr(&before), graph.add_expr(&after.terms));
    graph.rebuild();
    if graph.find(from) != graph.find(to) {
        return None;
    }
    let names = value_names(&run.before);
    let mut explanation = graph.explain_equivalence(&before, &after.terms);
    let flat = explanation.make_flat_explanation();
    let mut steps = Vec::new();
    for pair in flat.windows(2) {
        let Some((rule, backwards)) = rule_in(&pair[1]) else { continue };
        let text = |term| render(term, &names);
        steps.push(Step { rule, backwards, before: text(&pair[0]), after: text(&pair[1]) });
    }
    Some(steps)
}

/// The chosen form of a class down to the nearest values that were written.
struct Chosen<'a> {
    run: &'a Run,
    leaves: Vec<ValueId>,
    terms: RecExpr<Node>,
}

impl Chosen<'_> {
    fn add(&mut self, class: Id, root: bool) -> Option<Id> {
        let merged = &self.run.merged;
        let class = merged.graph.find(class);
        let node = self.run.chosen.node(merged, class)?.clone();
        // Rules look at numbers, so these stay what they are.
        let is_number = node.as_op().is_some_and(|(op, _)| op == Op::Splat);
        if !root
            && !is_number
            && let Some(v) = first_value(&self.run.before, merged, class)
        {
            self.leaves.push(v);
            return Some(self.terms.add(Node::leaf(v, self.run.before.ty(v))));
        }
        if let Some(v) = node.as_leaf() {
            self.leaves.push(v);
        }
        let children: Option<Vec<Id>> = node.children.iter().map(|&c| self.add(c, false)).collect();
        Some(self.terms.add(node.with_children(children?)))
    }
}

/// The function that computes `v` as written from the values of `leaves` and others.
fn region(run: &Run, v: ValueId, leaves: &[ValueId], most: usize) -> Func {
    let func = &run.before;
    let defs = func.definitions();
    let mut params: Vec<ValueId> = leaves.to_vec();
    let mut inside: Vec<usize> = Vec::new();
    let mut work = vec![v];
    while let Some(v) = work.pop() {
        let def = defs[v.index()].filter(|&at| {
            run.merged.node_of[at].is_some() && inside.len() < most && !leaves.contains(&v)
        });
        match def {
            Some(at) if !inside.contains(&at) => {
                inside.push(at);
                work.extend(func.body[at].inputs());
            }
            Some(_) => {}
            None => params.push(v),
        }
    }
    inside.sort_unstable();
    params.sort_unstable();
    params.dedup();
    let mut region = func.clone();
    // Constants stay instructions, because rules look at their numbers.
    let constants: Vec<usize> = params
        .iter()
        .filter_map(|p| defs[p.index()])
        .filter(|&at| func.body[at].op == Op::Constant)
        .collect();
    region.params = params;
    region.params.retain(|p| defs[p.index()].is_none_or(|at| !constants.contains(&at)));
    let order: HashSet<usize> = inside.into_iter().chain(constants).collect();
    let mut order: Vec<usize> = order.into_iter().collect();
    order.sort_unstable();
    region.body = order.into_iter().map(|at| func.body[at].clone()).collect();
    region.returns = vec![v];
    region
}

/// The term of `v` as the region has it.
fn written(region: &Func, local: &Merged, v: ValueId) -> Option<RecExpr<Node>> {
    let mut terms = RecExpr::default();
    let mut at: HashMap<Id, Id> = HashMap::new();
    for &p in &region.params {
        let id = terms.add(Node::leaf(p, region.ty(p)));
        at.insert(local.class_of[p.index()], id);
    }
    for (inst, node) in region.body.iter().zip(&local.node_of) {
        let r = *inst.results.first()?;
        let node = match node {
            Some(node) => {
                let children: Option<Vec<Id>> =
                    node.children.iter().map(|c| at.get(c).copied()).collect();
                node.with_children(children?)
            }
            None => Node::leaf(r, region.ty(r)),
        };
        let id = terms.add(node);
        at.insert(local.class_of[r.index()], id);
    }
    // The root of an expression is its last node, and the value may not be that.
    let root = *at.get(&local.class_of[v.index()])?;
    Some(terms[root].build_recexpr(|id| terms[id].clone()))
}

/// Nodes of a term in which nothing is shared.
fn tree_size(term: &RecExpr<Node>) -> u64 {
    let mut sizes: Vec<u64> = Vec::new();
    for node in term.as_ref() {
        let below = node.children.iter().map(|&c| sizes[usize::from(c)]);
        sizes.push(below.fold(1, u64::saturating_add));
    }
    sizes.last().copied().unwrap_or(0)
}

/// The rule of a step, anywhere in its term, and whether it was used backwards.
fn rule_in(term: &FlatTerm<Node>) -> Option<(String, bool)> {
    let own = |rule: Option<egg::Symbol>, backwards| rule.map(|r| (r.to_string(), backwards));
    own(term.forward_rule, false)
        .or_else(|| own(term.backward_rule, true))
        .or_else(|| term.children.iter().find_map(rule_in))
}

fn render(term: &FlatTerm<Node>, names: &[Option<String>]) -> String {
    if let Some(v) = term.node.as_leaf() {
        let name = names.get(v.index()).cloned().flatten();
        return name.unwrap_or_else(|| format!("%{}", v.0));
    }
    let Some((op, attrs)) = term.node.as_op() else { return term.node.key().to_owned() };
    let mut out = format!("({op}");
    if !attrs.is_empty() {
        let attr = |(name, attr): (&std::sync::Arc<str>, &Attr)| match attr {
            Attr::Bool(v) => format!("{name}={v}"),
            Attr::Int(v) => format!("{name}={v}"),
            Attr::Float(v) => format!("{name}={v:?}"),
            Attr::Ints(v) => format!("{name}={v:?}"),
            Attr::Str(v) => format!("{name}={v:?}"),
        };
        let attrs: Vec<String> = attrs.0.iter().map(attr).collect();
        out.push_str(&format!("{{{}}}", attrs.join(", ")));
    }
    if let Some(ty) = term.node.declared().first() {
        out.push_str(&format!(":{ty}"));
    }
    for child in &term.children {
        out.push(' ');
        out.push_str(&render(child, names));
    }
    out.push(')');
    out
}
