//! Weight layouts: each constant matrix that a product reads is packed once, when the module is
//! loaded, into the layout that the target's kernels want.
//!
//! A weight reaches its product directly or as a parameter of the function around it. A parameter
//! takes the packed type only if every call gives it a constant, or a parameter that is packed
//! too, and if its function does nothing with it but multiply, gather rows, and pass it on.
//! `pack` is inserted where the constant is read, once per constant and function. A gather from
//! the same constant (an embedding tied to the head) reads the packed copy as well, so that only
//! that copy stays in memory.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use aether_ir::{Attrs, Func, Inst, Layout, Module, Op, TensorType, ValueId};

use crate::pass::{Pass, PassCtx, PassError, PassStats};
use crate::util::{compact, entries};

/// The pass.
pub struct LayoutPass;

impl Pass for LayoutPass {
    fn name(&self) -> &'static str {
        "layout"
    }

    fn doc(&self) -> &'static str {
        "Packs constant weights, once at load, into the layout of the products that read them."
    }

    fn run(&self, module: &mut Module, ctx: &PassCtx) -> Result<PassStats, PassError> {
        let mut stats = PassStats::default();
        let plan = Packing::of(module, ctx);
        plan.apply(module, ctx, &mut stats);
        Ok(stats)
    }
}

/// What an operand is to the instruction that reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Use {
    /// The [n, k] weight of a product.
    Weight,
    /// The table of a gather of rows.
    Rows,
    /// Parameter `1` of function `0`.
    Argument(usize, usize),
    /// Anything that needs the row-major form.
    Other,
}

fn use_of(module: &Module, func: &Func, inst: &Inst, operand: usize) -> Use {
    let weights = match inst.op {
        Op::Matmul | Op::MatmulAct if inst.attrs.bool("transpose_b", false) => 1..2,
        Op::MatmulAdd => 1..2,
        Op::ExpertMatmul if whole_groups(func, inst) => 1..2,
        Op::MatmulGated => 1..3,
        Op::MatmulMulti => {
            1..1 + usize::try_from(inst.attrs.int("weights", 0))
                .unwrap_or(0)
                .min(inst.operands.len())
        }
        Op::NormMatmulGated => 2..4,
        Op::NormMatmulMulti => {
            let n = usize::try_from(inst.attrs.int("weights", 0)).unwrap_or(0);
            2..2 + n.min(inst.operands.len())
        }
        _ => 0..0,
    };
    if inst.operands[operand].donated {
        return Use::Other;
    }
    if weights.contains(&operand) {
        return Use::Weight;
    }
    match inst.op {
        Op::Gather if operand == 0 && inst.attrs.int("axis", 0) == 0 => Use::Rows,
        Op::Call => match inst.symbol.as_ref().and_then(|s| module.funcs.get_index_of(s)) {
            Some(callee) => Use::Argument(callee, operand),
            None => Use::Other,
        },
        _ => Use::Other,
    }
}

/// Whether the matrices of experts can be told apart in every layout.
fn whole_groups(func: &Func, inst: &Inst) -> bool {
    let rows = inst.results.first().and_then(|&r| func.ty(r).shape.0.last()?.as_const());
    rows.is_some_and(|rows| Layout::ALL.iter().all(|layout| layout.divides(rows)))
}

/// Where the value of an operand comes from.
#[derive(Clone, Debug)]
enum Source {
    Const(Arc<str>),
    Param(usize),
    Computed,
}

/// One parameter of one function: its uses and what its calls give it.
#[derive(Default)]
struct ParamInfo {
    uses: Vec<Use>,
    given: Vec<(usize, Source)>,
    returned: bool,
}

/// Which parameters and constants are packed.
struct Packing {
    params: HashSet<(usize, usize)>,
    consts: HashSet<Arc<str>>,
}

impl Packing {
    fn of(module: &Module, ctx: &PassCtx) -> Self {
        let wants = |ty: &TensorType| {
            ty.rank() == 2
                && ty.layout == Layout::RowMajor
                && ctx.target.weight_layout(ty) != Layout::RowMajor
        };
        let mut params: HashMap<(usize, usize), ParamInfo> = HashMap::new();
        // Uses of constants, of every function together.
        let mut consts: HashMap<Arc<str>, Vec<Use>> = HashMap::new();
        for (f, func) in module.funcs.values().enumerate() {
            for (j, &p) in func.params.iter().enumerate() {
                if wants(func.ty(p)) {
                    params.entry((f, j)).or_default().returned = func.returns.contains(&p);
                }
            }
        }
        for (f, func) in module.funcs.values().enumerate() {
            let sources = sources(func);
            for inst in &func.body {
                for (i, v) in inst.inputs().enumerate() {
                    if !wants(func.ty(v)) {
                        continue;
                    }
                    let used = use_of(module, func, inst, i);
                    let source = &sources[v.index()];
                    if let Use::Argument(g, j) = used
                        && let Some(info) = params.get_mut(&(g, j))
                    {
                        info.given.push((f, source.clone()));
                    }
                    match source {
                        Source::Const(name) => {
                            consts.entry(name.clone()).or_default().push(used);
                        }
                        Source::Param(j) => {
                            if let Some(info) = params.get_mut(&(f, *j)) {
                                info.uses.push(used);
                            }
                        }
                        Source::Computed => {}
                    }
                }
            }
        }
        Packing::solve(module, &params, &consts, ctx.target.packs_tables())
    }

    fn solve(
        module: &Module,
        params: &HashMap<(usize, usize), ParamInfo>,
        consts: &HashMap<Arc<str>, Vec<Use>>,
        packs_tables: bool,
    ) -> Self {
        let roots = entries(module);
        // Parameters whose own uses allow packing, then fewer and fewer until all calls agree.
        let mut able: HashSet<(usize, usize)> = params
            .iter()
            .filter(|((f, _), info)| {
                !roots.contains(f)
                    && !info.returned
                    && !info.given.is_empty()
                    && !info.uses.contains(&Use::Other)
            })
            .map(|(&key, _)| key)
            .collect();
        shrink(&mut able, |able, key| {
            let info = &params[key];
            let passed_on = info.uses.iter().all(|u| match u {
                Use::Argument(g, j) => able.contains(&(*g, *j)),
                _ => true,
            });
            passed_on
                && info.given.iter().all(|(f, source)| match source {
                    Source::Const(_) => true,
                    Source::Param(j) => able.contains(&(*f, *j)),
                    Source::Computed => false,
                })
        });

        // Of those, the ones from which a product reads, there or further down the calls.
        let multiplied = |uses: &[Use], wanted: &HashSet<(usize, usize)>| {
            uses.iter().any(|u| match u {
                Use::Weight => true,
                Use::Argument(g, j) => wanted.contains(&(*g, *j)),
                Use::Rows => packs_tables,
                Use::Other => false,
            })
        };
        let mut wanted: HashSet<(usize, usize)> = HashSet::new();
        loop {
            let more: Vec<_> = able
                .iter()
                .filter(|key| !wanted.contains(*key) && multiplied(&params[*key].uses, &wanted))
                .copied()
                .collect();
            if more.is_empty() {
                break;
            }
            wanted.extend(more);
        }
        let packed: HashSet<Arc<str>> = consts
            .iter()
            .filter(|(_, uses)| multiplied(uses, &wanted))
            .map(|(name, _)| name.clone())
            .collect();

        // The rest only gather: they follow when all their calls give what is packed anyway.
        let mut follow: HashSet<(usize, usize)> = able.difference(&wanted).copied().collect();
        shrink(&mut follow, |follow, key| {
            let info = &params[key];
            let has = |key: &(usize, usize)| wanted.contains(key) || follow.contains(key);
            info.given.iter().all(|(f, source)| match source {
                Source::Const(name) => packed.contains(name),
                Source::Param(j) => has(&(*f, *j)),
                Source::Computed => false,
            }) && info.uses.iter().all(|u| match u {
                Use::Argument(g, j) => has(&(*g, *j)),
                _ => true,
            })
        });
        wanted.extend(follow);
        // A wanted parameter may pass its value on to one that does not follow.
        shrink(&mut wanted, |wanted, key| {
            params[key].uses.iter().all(|u| match u {
                Use::Argument(g, j) => wanted.contains(&(*g, *j)),
                _ => true,
            }) && params[key].given.iter().all(|(f, source)| match source {
                Source::Param(j) => wanted.contains(&(*f, *j)),
                _ => true,
            })
        });
        Packing { params: wanted, consts: packed }
    }

    fn apply(&self, module: &mut Module, ctx: &PassCtx, stats: &mut PassStats) {
        for f in 0..module.funcs.len() {
            let Some((_, slot)) = module.funcs.get_index_mut(f) else { continue };
            // The module is asked about callees' positions while the body is rewritten.
            let mut func = std::mem::replace(slot, Func::new(""));
            for (j, &p) in func.params.iter().enumerate() {
                if self.params.contains(&(f, j)) {
                    let ty = &mut func.values[p.index()].ty;
                    ty.layout = ctx.target.weight_layout(ty);
                    stats.count("parameters", 1);
                }
            }
            self.pack_consts(module, &mut func, ctx, stats);
            module.funcs[f] = func;
        }
    }

    fn pack_consts(&self, module: &Module, func: &mut Func, ctx: &PassCtx, stats: &mut PassStats) {
        let sources = sources(func);
        // Names of constants of which this function needs the packed form.
        let mut needed: HashSet<Arc<str>> = HashSet::new();
        let mut rewrite: Vec<(usize, usize, Arc<str>)> = Vec::new();
        for (at, inst) in func.body.iter().enumerate() {
            for (i, v) in inst.inputs().enumerate() {
                let Source::Const(name) = &sources[v.index()] else { continue };
                let ty = func.ty(v);
                let packable = ty.rank() == 2
                    && ty.layout == Layout::RowMajor
                    && ctx.target.weight_layout(ty) != Layout::RowMajor;
                let packs = packable
                    && match use_of(module, func, inst, i) {
                        Use::Weight => true,
                        Use::Rows => self.consts.contains(name),
                        Use::Argument(g, j) => self.params.contains(&(g, j)),
                        Use::Other => false,
                    };
                if packs {
                    needed.insert(name.clone());
                    rewrite.push((at, i, name.clone()));
                }
            }
        }
        if rewrite.is_empty() {
            return;
        }
        let mut packed: HashMap<Arc<str>, ValueId> = HashMap::new();
        let body = std::mem::take(&mut func.body);
        let mut rewrite = rewrite.into_iter().peekable();
        for (at, mut inst) in body.into_iter().enumerate() {
            while let Some((_, i, name)) = rewrite.next_if(|(when, ..)| *when == at) {
                inst.operands[i].value = packed[&name];
            }
            let pack = match &inst.symbol {
                Some(name) if inst.op == Op::Constant && needed.remove(name) => {
                    let mut ty = func.ty(inst.results[0]).clone();
                    ty.layout = ctx.target.weight_layout(&ty);
                    let result = func.add_value(ty, None);
                    packed.insert(name.clone(), result);
                    stats.count("packed", 1);
                    Some(Inst {
                        op: Op::Pack,
                        operands: vec![inst.results[0].into()],
                        attrs: Attrs::new(),
                        symbol: None,
                        results: vec![result],
                        span: inst.span.clone(),
                    })
                }
                _ => None,
            };
            func.body.push(inst);
            func.body.extend(pack);
        }
        compact(func);
    }
}

/// Removes from `set` what does not hold until all that is left does.
fn shrink(
    set: &mut HashSet<(usize, usize)>,
    holds: impl Fn(&HashSet<(usize, usize)>, &(usize, usize)) -> bool,
) {
    loop {
        let fails: Vec<_> = set.iter().filter(|key| !holds(set, key)).copied().collect();
        if fails.is_empty() {
            return;
        }
        for key in fails {
            set.remove(&key);
        }
    }
}

fn sources(func: &Func) -> Vec<Source> {
    let mut sources = vec![Source::Computed; func.values.len()];
    for (j, p) in func.params.iter().enumerate() {
        sources[p.index()] = Source::Param(j);
    }
    for inst in func.body.iter().filter(|inst| inst.op == Op::Constant) {
        if let (Some(name), Some(r)) = (&inst.symbol, inst.results.first()) {
            sources[r.index()] = Source::Const(name.clone());
        }
    }
    sources
}
