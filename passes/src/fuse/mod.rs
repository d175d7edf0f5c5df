//! Fusion: several instructions become one that reads its inputs once.
//!
//! Each function is put into an e-graph, the local rules ([`rules::RULES`], patterns and the op
//! they become) add what is equal, extraction ([`select`](crate::egraph::select)) picks what costs
//! the target least without computing anything twice. Grouping products of one input ([`multi`])
//! and making loops of what is left elementwise ([`cluster`]) follow. What stays keeps its place,
//! name and donations; a fused instruction stands where the result that it computes stood.
//!
//! No rule applies to what another has made, so one round of matching is complete.

pub mod cluster;
pub mod multi;
pub mod prologue;
pub mod rules;

use aether_ir::{Attrs, Func, Module, Op, TensorType};
use egg::{Id, Pattern, Searcher, Subst, Var};

use self::rules::{Form, FuseRule, RULES};
use crate::egraph::{Graph, Node, build, lang, select};
use crate::pass::{Pass, PassCtx, PassError, PassStats, Rule};
use crate::util::{compact, fused_bodies};

/// Name of the grouping step.
pub const MATMUL_MULTI: &str = "matmul-multi";

static RULE_LIST: &[Rule] = &[
    Rule { name: RULES[0].name, doc: RULES[0].doc },
    Rule { name: RULES[1].name, doc: RULES[1].doc },
    Rule { name: RULES[2].name, doc: RULES[2].doc },
    Rule {
        name: MATMUL_MULTI,
        doc: "Products of one x, with their biases, become matmul_multi, which reads x once.",
    },
    Rule {
        name: prologue::NORM_MATMUL,
        doc: "An rms_norm that only products read joins each of them.",
    },
    Rule {
        name: prologue::ROPE_APPEND,
        doc: "The ropes of q and k and the appends to both caches become rope_append.",
    },
    cluster::CHAIN,
    cluster::EPILOGUE,
    cluster::READ_BACK,
];

/// The pass.
pub struct Fuse;

impl Pass for Fuse {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn doc(&self) -> &'static str {
        "Fuses products with what follows them and with products of the same input, and elementwise \
         chains with their reductions."
    }

    fn rules(&self) -> &'static [Rule] {
        RULE_LIST
    }

    fn run(&self, module: &mut Module, ctx: &PassCtx) -> Result<PassStats, PassError> {
        let mut stats = PassStats::default();
        let compiled = compile(ctx)?;
        let bodies = fused_bodies(module);
        for f in 0..module.funcs.len() {
            let Some((name, slot)) = module.funcs.get_index_mut(f) else { continue };
            if bodies.contains(name) {
                continue;
            }
            // The module's symbols are asked for while the body is rewritten.
            let mut func = std::mem::replace(slot, Func::new(""));
            run_func(module, &mut func, ctx, &compiled, &mut stats);
            cluster::fuse(module, &mut func, ctx, &mut stats);
            module.funcs[f] = func;
        }
        Ok(stats)
    }
}

/// A rule's form, ready to match.
struct Compiled {
    pattern: Pattern<Node>,
    op: Op,
    attrs: Attrs,
    operands: Vec<Var>,
}

/// The attributes of a form's op, in the order of its table row.
fn attrs(form: &Form) -> Attrs {
    let mut attrs = Attrs::new();
    if form.transpose_b {
        attrs = attrs.with("transpose_b", true);
    }
    match form.attr {
        Some((name, value)) => attrs.with(name, value),
        None => attrs,
    }
}

/// The forms of all rules that are on.
fn compile(ctx: &PassCtx) -> Result<Vec<Compiled>, PassError> {
    let bad = |rule: &FuseRule, e: &dyn std::fmt::Display| {
        PassError::Module(format!("rule `{}` cannot be read: {e}", rule.name))
    };
    let mut compiled = Vec::new();
    for rule in RULES.iter().filter(|rule| ctx.enabled(rule.name)) {
        for form in rule.forms {
            let operands: Result<Vec<Var>, _> = form.operands.iter().map(|v| v.parse()).collect();
            compiled.push(Compiled {
                pattern: form.pattern.parse().map_err(|e| bad(rule, &e))?,
                op: form.op,
                attrs: attrs(form),
                operands: operands.map_err(|e| bad(rule, &e))?,
            });
        }
    }
    Ok(compiled)
}

fn run_func(
    module: &Module,
    func: &mut Func,
    ctx: &PassCtx,
    rules: &[Compiled],
    stats: &mut PassStats,
) {
    let sizes = |symbol: &str| ctx.size_of(module, symbol);
    let seconds = |op: Op, operands: &[&TensorType], results: &[&TensorType]| {
        ctx.target.seconds(&ctx.target.cost(op, operands, results, &sizes))
    };
    let supports = |op: Op, operands: &[&TensorType]| ctx.target.supports(op, operands);

    let (mut graph, class_of) = build(func);
    saturate(&mut graph, rules, &supports);
    let cost_of =
        |op: Op, operands: &[&TensorType], result: &TensorType| seconds(op, operands, &[result]);
    let allow = |op: Op| rules::rule_of(op).is_none_or(|rule| ctx.take_rewrite(rule.name));
    for op in select::select(func, &graph, &class_of, &cost_of, &allow) {
        if let Some(rule) = rules::rule_of(op) {
            stats.count(rule.name, 1);
        }
    }
    if ctx.enabled(MATMUL_MULTI) {
        let allow = || ctx.take_rewrite(MATMUL_MULTI);
        let asks = multi::Asks { supports: &supports, seconds: &seconds, allow: &allow };
        stats.count(MATMUL_MULTI, multi::group(func, &asks));
    }
    if ctx.enabled(prologue::NORM_MATMUL) {
        let allow = || ctx.take_rewrite(prologue::NORM_MATMUL);
        stats.count(prologue::NORM_MATMUL, prologue::norms(func, &supports, &allow));
    }
    if ctx.enabled(prologue::ROPE_APPEND) {
        let allow = || ctx.take_rewrite(prologue::ROPE_APPEND);
        stats.count(prologue::ROPE_APPEND, prologue::rope_append(func, &supports, &allow));
    }
    compact(func);
}

/// Adds what the rules find equal.
fn saturate(graph: &mut Graph, rules: &[Compiled], supports: &dyn Fn(Op, &[&TensorType]) -> bool) {
    // Matches are few: a pattern's root has one form in the graph as built. The bound only
    // guards against a rule that would say otherwise.
    let limit = 4 * graph.total_number_of_nodes() + 64;
    let mut found: Vec<(Id, usize, Subst)> = Vec::new();
    for (r, rule) in rules.iter().enumerate() {
        for matches in rule.pattern.search_with_limit(graph, limit) {
            found.extend(matches.substs.iter().map(|s| (matches.eclass, r, s.clone())));
        }
    }
    for (root, r, subst) in found {
        let rule = &rules[r];
        let children: Vec<Id> = rule.operands.iter().map(|v| graph.find(subst[*v])).collect();
        let ty = lang::infer(graph, rule.op, &rule.attrs, &[], &children);
        let root = graph.find(root);
        let types: Option<Vec<&TensorType>> =
            children.iter().map(|&c| graph[c].data.as_ref()).collect();
        let fits = ty.is_some() && ty == graph[root].data;
        if !fits || !types.is_some_and(|types| supports(rule.op, &types)) {
            continue;
        }
        let node = Node::op(rule.op, rule.attrs.clone(), Vec::new(), children);
        // Some instruction computes this already: merging is left to cse.
        if graph.lookup(node.clone()).is_some() {
            continue;
        }
        let id = graph.add(node);
        graph.union(root, id);
    }
    graph.rebuild();
}
