//! Constant folding: what depends on constants alone is computed now, by the ops' reference
//! meanings, and becomes a constant `@fold.N` of the module.
//!
//! Only small things are folded ([`MAX_BYTES`]), so that a module does not grow out of its text.
//! Constants in files take part when the context can read them. What the reference meaning
//! refuses (a division by zero, an index out of range) is left to fail when it runs. Nothing is
//! folded through a `barrier`, nor within the body of a `fused`, which holds no constants.

use std::sync::Arc;

use aether_ir::tensor::ConcreteType;
use aether_ir::{Attrs, Bindings, ConstData, Func, Inst, Layout, Module, Op, Tensor, eval_inst};

use crate::pass::{Pass, PassCtx, PassError, PassStats};
use crate::util::{compact, fresh_const, fused_bodies};

/// Greatest size of an operand or of all results of a folded instruction, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// The pass.
pub struct Fold;

impl Pass for Fold {
    fn name(&self) -> &'static str {
        "fold"
    }

    fn doc(&self) -> &'static str {
        "Computes what depends on small constants alone."
    }

    fn run(&self, module: &mut Module, ctx: &PassCtx) -> Result<PassStats, PassError> {
        let mut stats = PassStats::default();
        let mut next = 0;
        let bodies = fused_bodies(module);
        for f in 0..module.funcs.len() {
            // Taken out so that constants can be added while its body is walked.
            let Some((name, slot)) = module.funcs.get_index_mut(f) else { continue };
            if bodies.contains(name) {
                continue;
            }
            let mut func = std::mem::replace(slot, Func::new(""));
            run_func(module, &mut func, ctx, &mut next, &mut stats);
            module.funcs[f] = func;
        }
        Ok(stats)
    }
}

fn run_func(
    module: &mut Module,
    func: &mut Func,
    ctx: &PassCtx,
    next: &mut usize,
    stats: &mut PassStats,
) {
    let mut known: Vec<Option<Tensor>> = vec![None; func.values.len()];
    // A constant cannot be given away, so what is given away stays computed.
    let mut given = vec![false; func.values.len()];
    for operand in func.body.iter().flat_map(|inst| &inst.operands) {
        given[operand.value.index()] |= operand.donated;
    }
    let body = std::mem::take(&mut func.body);
    for inst in body {
        if inst.results.iter().any(|r| given[r.index()]) {
            func.body.push(inst);
            continue;
        }
        let Some(values) = evaluate(module, func, ctx, &inst, &known) else {
            func.body.push(inst);
            continue;
        };
        for (&r, value) in inst.results.iter().zip(&values) {
            known[r.index()] = Some(value.clone());
        }
        if is_source(inst.op) {
            func.body.push(inst);
            continue;
        }
        stats.count("folded", 1);
        for (&r, value) in inst.results.iter().zip(values) {
            let name = fresh_const(module, "fold", next);
            let bytes: Arc<[u8]> = value.bytes()[..].into();
            module.add_const(name.clone(), func.ty(r).clone(), ConstData::Dense(bytes));
            func.body.push(Inst {
                op: Op::Constant,
                operands: Vec::new(),
                attrs: Attrs::new(),
                symbol: Some(name),
                results: vec![r],
                span: inst.span.clone(),
            });
        }
    }
    compact(func);
}

/// The ops that are constants already.
fn is_source(op: Op) -> bool {
    matches!(op, Op::Constant | Op::Splat | Op::Iota)
}

/// The results of an instruction whose operands are known and which is small enough.
fn evaluate(
    module: &Module,
    func: &Func,
    ctx: &PassCtx,
    inst: &Inst,
    known: &[Option<Tensor>],
) -> Option<Vec<Tensor>> {
    let results: Vec<ConcreteType> = inst
        .results
        .iter()
        .map(|&r| ConcreteType::of(func.ty(r), &Bindings::new()).ok())
        .collect::<Option<_>>()?;
    let bytes =
        results.iter().try_fold(0usize, |sum, ty| sum.checked_add(ty.row_major_bytes()?))?;
    let packed = results.iter().any(|ty| ty.layout != Layout::RowMajor);
    if bytes > MAX_BYTES || packed || results.is_empty() {
        return None;
    }
    if inst.op == Op::Constant {
        let name = inst.symbol.as_ref()?;
        let constant = module.consts.get(name)?;
        let bytes = match &constant.data {
            ConstData::Dense(bytes) => bytes.clone().into(),
            ConstData::File { .. } => ctx.consts?.load(name, constant).ok()?,
        };
        return Some(vec![Tensor::new(results[0].clone(), bytes).ok()?]);
    }
    if inst.op.is_call() || inst.op == Op::Barrier {
        return None;
    }
    let operands: Vec<&Tensor> =
        inst.inputs().map(|v| known[v.index()].as_ref()).collect::<Option<_>>()?;
    eval_inst(inst.op, &inst.attrs, &operands, &results).ok()
}
