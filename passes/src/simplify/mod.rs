//! Simplification: algebra on ops.
//!
//! Each function is put into an e-graph ([`crate::egraph`]), named rules ([`rules`]) add what is
//! equal until they find nothing new ([`saturate`]), and the cheapest choice on the target becomes
//! the function. A layer that is called many times is saturated once. Every rule says how far its
//! result may lie from what it replaces ([`rule::Legality`]), and can be switched off by name.
//!
//! Instructions that an e-graph cannot stand for are left alone: calls, constants, several
//! results, anything to do with donation. Bodies of `fused` are left alone as a whole: they must
//! stay one loop. A function is rewritten again until that changes nothing, so the pass is
//! idempotent.

pub mod explain;
pub mod rule;
pub mod rules;
pub mod saturate;

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use aether_ir::tensor::ConcreteType;
use aether_ir::{
    Bindings, ConstData, Func, Inst, Layout, Module, Op, Operand, Tensor, TensorType, ValueId,
};
use egg::Id;

pub use self::explain::{Step, explain};
use self::saturate::{Applied, RuleSet};
use crate::egraph::extract::found;
use crate::egraph::{Extraction, Merged, Node, Number, emit, extract, merged};
use crate::pass::{Pass, PassCtx, PassError, PassStats, Rule};
use crate::util::{compact, fused_bodies};

/// Most times that one function is rewritten.
const MAX_RUNS: usize = 8;
/// Largest constant whose elements are looked at, in bytes.
const MAX_CONST_BYTES: usize = 64 * 1024;

static RULE_LIST: LazyLock<Vec<Rule>> =
    LazyLock::new(|| rules::all().map(|r| Rule { name: r.name, doc: r.doc }).collect());

/// The pass.
pub struct Simplify;

impl Pass for Simplify {
    fn name(&self) -> &'static str {
        "simplify"
    }

    fn doc(&self) -> &'static str {
        "Rewrites by algebraic rules to what costs the target less."
    }

    fn rules(&self) -> &'static [Rule] {
        &RULE_LIST
    }

    fn run(&self, module: &mut Module, ctx: &PassCtx) -> Result<PassStats, PassError> {
        let mut stats = PassStats::default();
        let rules = enabled_rules(ctx)?;
        let bodies = fused_bodies(module);
        for f in 0..module.funcs.len() {
            let Some((name, slot)) = module.funcs.get_index_mut(f) else { continue };
            if bodies.contains(name) {
                continue;
            }
            // The module's constants and symbols are asked for while the body is rewritten.
            let mut func = std::mem::replace(slot, Func::new(""));
            compact(&mut func);
            for _ in 0..MAX_RUNS {
                let done = simplify(module, &func, ctx, &rules);
                if done.func == func {
                    break;
                }
                stats.changed = true;
                done.rules.iter().for_each(|rule| stats.note(rule, 1));
                func = done.func;
            }
            module.funcs[f] = func;
        }
        Ok(stats)
    }
}

/// The rules that the context does not switch off.
///
/// # Errors
/// Names a rule whose pattern cannot be read.
pub fn enabled_rules(ctx: &PassCtx) -> Result<RuleSet, PassError> {
    RuleSet::new(rules::all().filter(|rule| ctx.enabled(rule.name)))
}

/// A function rewritten once.
struct Simplified {
    func: Func,
    /// The rules behind what was chosen, once for each place.
    rules: Vec<&'static str>,
    merged: Merged,
    chosen: Extraction,
    /// The class of each value of the new function.
    class_of: HashMap<ValueId, Id>,
}

/// Rewrites a function once.
fn simplify(module: &Module, func: &Func, ctx: &PassCtx, rules: &RuleSet) -> Simplified {
    let free = attempt(module, func, ctx, rules, &HashSet::new());
    if donations_hold(&free.func) {
        return free;
    }
    // A use has moved behind the place where its value is given away: whatever reads such a value
    // stays as it is.
    let given = given_away(func);
    attempt(module, func, ctx, rules, &given)
}

fn given_away(func: &Func) -> HashSet<ValueId> {
    let operands = func.body.iter().flat_map(|inst| &inst.operands);
    operands.filter(|o| o.donated).map(|o| o.value).collect()
}

/// Whether no value is used where it is given away, or after.
fn donations_hold(func: &Func) -> bool {
    let mut given: HashSet<ValueId> = HashSet::new();
    for inst in &func.body {
        let (gives, reads): (Vec<&Operand>, Vec<&Operand>) =
            inst.operands.iter().partition(|o| o.donated);
        if !gives.iter().all(|o| given.insert(o.value))
            || reads.iter().any(|o| given.contains(&o.value))
        {
            return false;
        }
    }
    !func.returns.iter().any(|v| given.contains(v))
}

/// The e-graph of a function, with readers of `guarded` values as leaves.
fn graph_of(module: &Module, func: &Func, guarded: &HashSet<ValueId>) -> Merged {
    let given = given_away(func);
    let opaque = |inst: &Inst| {
        inst.results.iter().any(|r| given.contains(r))
            || inst.inputs().any(|v| guarded.contains(&v))
    };
    merged(func, &opaque, &|inst| number_of(module, func, inst))
}

fn attempt(
    module: &Module,
    func: &Func,
    ctx: &PassCtx,
    rules: &RuleSet,
    guarded: &HashSet<ValueId>,
) -> Simplified {
    let mut merged = graph_of(module, func, guarded);
    let log = rules.saturate(&mut merged.graph, &mut |rule| ctx.take_rewrite(rule));
    let chosen =
        extract(func, &merged, &|merged, class, node| cost(module, ctx, merged, class, node));
    let emit::Emitted { mut func, values } = emit::emit(func, &merged, &chosen);
    let new_number = compact(&mut func);
    let renumber = |(class, v): (Id, ValueId)| Some((*new_number.get(&v)?, class));
    let class_of = values.into_iter().filter_map(renumber).collect();
    let rules = used(&log, &merged, &chosen);
    Simplified { func, rules, merged, chosen, class_of }
}

/// The function with its first result rewritten by that rule alone, whatever it costs; `None`
/// when the rule does not apply there.
///
/// # Errors
/// When the rule's patterns cannot be read.
pub fn rewrite_result(
    module: &Module,
    func: &Func,
    rule: &'static rule::Rule,
) -> Result<Option<Func>, PassError> {
    let rules = RuleSet::new([rule])?;
    let mut merged = graph_of(module, func, &HashSet::new());
    let Some(&result) = func.returns.first() else { return Ok(None) };
    let root = merged.class_of[result.index()];
    let Some(applied) = rules.apply_once(&mut merged.graph, root) else { return Ok(None) };
    let from = applied.from.with_children(found(&merged, &applied.from));
    let root = merged.graph.find(root);
    let cost = |_: &Merged, class: Id, node: &Node| match node.as_leaf() {
        Some(_) => 0.0,
        None if class == root && *node == from => 1e9,
        None => 1.0,
    };
    let chosen = extract(func, &merged, &cost);
    if chosen.node(&merged, root).is_none_or(|node| *node == from) {
        return Ok(None);
    }
    let mut func = emit::emit(func, &merged, &chosen).func;
    compact(&mut func);
    Ok(Some(func))
}

/// What a node costs, in seconds. Nodes of equal cost on the target are told apart by their
/// arithmetic and, at last, by their number.
fn cost(module: &Module, ctx: &PassCtx, merged: &Merged, class: Id, node: &Node) -> f64 {
    let Some((op, attrs)) = node.as_op() else { return 0.0 };
    let graph = &merged.graph;
    let operands: Option<Vec<&TensorType>> =
        node.children.iter().map(|&c| graph[c].data.as_ref()).collect();
    let (Some(operands), Some(result)) = (operands, graph[class].data.as_ref()) else {
        return f64::INFINITY;
    };
    let sizes = |symbol: &str| ctx.size_of(module, symbol);
    let numel = |ty: &TensorType| {
        let dims = ty.shape.0.iter().map(|d| d.eval(|s| Some(sizes(s))).unwrap_or(1) as f64);
        dims.product::<f64>()
    };
    let elements = operands.iter().map(|ty| numel(ty)).fold(numel(result), f64::max);
    let seconds = ctx.target.seconds(&ctx.target.cost(op, &operands, &[result], &sizes));
    let slow = if ctx.target.has_kernel(op, attrs, &operands) { 1.0 } else { REFERENCE_SLOWNESS };
    slow * seconds + SECONDS_PER_UNIT * (arithmetic(op) * elements + 1.0)
}

/// How many times slower than a kernel a reference meaning is about.
const REFERENCE_SLOWNESS: f64 = 1000.0;

/// Small enough to decide only between what costs the target the same.
const SECONDS_PER_UNIT: f64 = 1e-12;

/// Additions that an element of an op is about worth.
fn arithmetic(op: Op) -> f64 {
    match op {
        Op::Reshape | Op::Splat | Op::Iota | Op::Constant => 0.0,
        Op::Broadcast | Op::Transpose | Op::Slice | Op::Concat | Op::Cast => 0.25,
        Op::Neg | Op::Abs | Op::Not | Op::And | Op::Or => 0.5,
        Op::Div | Op::Sqrt => 4.0,
        Op::Rsqrt => 3.0,
        Op::Exp | Op::Sigmoid | Op::Tanh => 8.0,
        Op::Log | Op::Sin | Op::Cos | Op::Silu | Op::Gelu | Op::GeluTanh | Op::Erf => 12.0,
        Op::Softmax | Op::LogSoftmax => 12.0,
        Op::Pow => 32.0,
        _ => 1.0,
    }
}

/// The number that a small constant is made of.
fn number_of(module: &Module, func: &Func, inst: &Inst) -> Option<Number> {
    let constant = module.consts.get(inst.symbol.as_ref().filter(|_| inst.op == Op::Constant)?)?;
    let ConstData::Dense(bytes) = &constant.data else { return None };
    let ty = ConcreteType::of(func.ty(*inst.results.first()?), &Bindings::new()).ok()?;
    let width = ty.dtype.block_bytes();
    let plain = !ty.dtype.is_quantized() && ty.layout == Layout::RowMajor;
    if !plain || bytes.is_empty() || bytes.len() > MAX_CONST_BYTES || bytes.len() % width != 0 {
        return None;
    }
    let first = &bytes[..width];
    let uniform = bytes.chunks_exact(width).all(|element| element == first);
    let scalar = ConcreteType::new(ty.dtype, Vec::new());
    uniform.then(|| Number::of(&Tensor::new(scalar, first.to_vec()).ok()?))?
}

/// The rules that led to chosen nodes, once for each application that did.
fn used(log: &[Applied], merged: &Merged, chosen: &Extraction) -> Vec<&'static str> {
    let now = |node: &Node| node.with_children(found(merged, node));
    // By class the nodes that are chosen or led to the chosen one.
    let mut wanted: HashMap<Id, HashSet<Node>> = HashMap::new();
    let mut rules = Vec::new();
    for applied in log.iter().rev() {
        let class = merged.graph.find(applied.class);
        let Some(node) = chosen.node(merged, class) else { continue };
        let wanted = wanted.entry(class).or_default();
        let from = now(&applied.from);
        if from == *node {
            continue;
        }
        let useful = match &applied.to {
            None => true,
            Some(to) => {
                let to = now(to);
                to == *node || wanted.contains(&to)
            }
        };
        if useful && wanted.insert(from) {
            rules.push(applied.rule);
        }
    }
    rules.reverse();
    rules
}
