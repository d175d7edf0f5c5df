//! Products of rows with the matrices of experts picked for them.
//!
//! Rows are put in the order of their experts, so that those of one expert are a product like any
//! other; the sums go back to their places at the end. Four steps: the order (one worker), the rows
//! in it (as 8-bit activations for quantised weights), the products, the way back.

use std::ops::Range;

use aether_ir::{DType, Inst, Op, Symbol, SymbolRange, TensorType};
use indexmap::IndexMap;

use super::{Lower, Lowered, Site, max_count, product};
use crate::kernels::act_quant::{self, QActs};
use crate::kernels::gemm::{self, Load, Weights};
use crate::kernels::isa::Isa;
use crate::kernels::packed::{self, GROUP, PackedMatrix};
use crate::kernels::qmatmul::{self, Epilogue, OutPtr};
use crate::program::{Loc, RunCtx};

/// Where the parts of the scratch begin, in bytes.
#[derive(Clone, Copy, Debug)]
struct ScratchPlan {
    /// For each place in the order the pair of token and pick; then for each expert, and behind the
    /// last, its first place.
    order: usize,
    /// The rows in order.
    rows: usize,
    /// The sums in order.
    sums: usize,
    total: usize,
}

impl ScratchPlan {
    fn new(pairs: usize, experts: usize, (n, k): (usize, usize), packed: bool) -> Self {
        let round = |n: usize| n.checked_next_multiple_of(256).unwrap_or(usize::MAX);
        let floats = |n: usize| round(pairs.saturating_mul(n).saturating_mul(4));
        let order = round((pairs + experts + 1).saturating_mul(4));
        let rows = match packed {
            true => round(act_quant::act_bytes(pairs, k).unwrap_or(usize::MAX / 4)),
            false => floats(k),
        };
        let sums = order.saturating_add(rows);
        ScratchPlan { order: 0, rows: order, sums, total: sums.saturating_add(floats(n)) }
    }
}

/// Sizes that a function's types fix: experts, rows and columns of each.
fn sizes(inst: &Inst, w: &TensorType) -> Option<(usize, usize, usize)> {
    let experts = usize::try_from(inst.attrs.int("experts", 0)).ok().filter(|&e| e > 0)?;
    let [rows, k] = w.shape.as_const()?[..] else { return None };
    Some((experts, rows as usize / experts, k as usize))
}

/// Whether there are kernels for these types.
pub(crate) fn handles(x: &TensorType, w: &TensorType) -> bool {
    let dense = matches!(w.dtype, DType::F32 | DType::F16 | DType::Bf16);
    x.dtype == DType::F32 && w.shape.as_const().is_some() && (dense || w.dtype.is_quantized())
}

/// Scratch bytes, for the planner.
pub(crate) fn scratch_bytes(
    inst: &Inst,
    (w, ids): (&TensorType, &TensorType),
    symbols: &IndexMap<Symbol, SymbolRange>,
) -> u64 {
    let Some((experts, n, k)) = sizes(inst, w) else { return 0 };
    let pairs = max_count(&ids.shape.0, symbols);
    ScratchPlan::new(pairs, experts, (n, k), product::is_packed(w)).total as u64
}

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    let [x, w, ids] = &site.inputs[..] else { return Ok(false) };
    let packed = product::is_packed(&w.ty);
    if site.inst.op != Op::ExpertMatmul || !handles(&x.ty, &w.ty) {
        return Ok(false);
    }
    if w.ty.dtype.is_quantized() && !packed {
        return Ok(false);
    }
    let Some((experts, n, k)) = sizes(site.inst, &w.ty) else { return Ok(false) };
    let max_pairs = max_count(&ids.ty.shape.0, &lower.module.symbols);
    let plan = ScratchPlan::new(max_pairs, experts, (n, k), packed);
    let scratch = site.scratch(plan.total)?;
    let run = Run {
        isa: lower.opts.isa,
        base: scratch.loc,
        plan,
        experts,
        n,
        k,
        dtype: w.ty.dtype,
        packed,
        weight: w.loc,
        out: site.outputs[0].loc,
    };
    let (pairs, per_token, picks) = (ids.numel(), x.sizes(1..2), ids.sizes(1..2));
    let (x_loc, ids_loc) = (x.loc, ids.loc);

    let count = pairs.clone();
    lower.emit(
        &format!("{} (order)", site.label),
        [ids.range],
        [scratch.range],
        Box::new(move |ctx, work| {
            if work.is_first() {
                // SAFETY: one worker runs this alone; there are as many ids as pairs.
                unsafe {
                    let n = count.get(ctx.symbols);
                    let ids = std::slice::from_raw_parts(ctx.ptr(ids_loc).cast::<i32>(), n);
                    run.sort(ctx, ids);
                }
            }
        }),
    );
    let count = pairs.clone();
    lower.emit(
        &format!("{} (input)", site.label),
        [x.range, scratch.range],
        [scratch.range],
        Box::new(move |ctx, work| {
            let (per_token, picks) = (per_token.get(ctx.symbols), picks.get(ctx.symbols));
            work.split(count.get(ctx.symbols), 4, |places| {
                let (order, first) = run.order(ctx, count.get(ctx.symbols));
                let mut expert = 0;
                for place in places {
                    while first[expert + 1] as usize <= place {
                        expert += 1;
                    }
                    let pair = order[place] as usize;
                    let row = if per_token == picks { pair } else { pair / picks };
                    // SAFETY: x has this row; each place is claimed once.
                    unsafe {
                        let x = ctx.ptr(x_loc).cast::<f32>().cast_const().add(row * k);
                        run.input(
                            ctx,
                            std::slice::from_raw_parts(x, k),
                            place,
                            run.span(first, expert),
                        );
                    }
                }
            });
        }),
    );
    let count = pairs.clone();
    lower.emit(
        &site.label,
        [w.range, scratch.range],
        [scratch.range],
        Box::new(move |ctx, work| {
            let (_, first) = run.order(ctx, count.get(ctx.symbols));
            let groups = n.div_ceil(GROUP);
            let busy = || (0..experts).filter(|&e| first[e] < first[e + 1]);
            work.split(busy().count() * groups, 16, |units| {
                let at = units.start / groups;
                for (i, expert) in busy().enumerate().skip(at) {
                    let start = units.start.max(i * groups);
                    let end = units.end.min((i + 1) * groups);
                    if start >= end {
                        break;
                    }
                    let span = run.span(first, expert);
                    let groups = start - i * groups..end - i * groups;
                    if let Err(e) = run.multiply(ctx, expert, span, groups) {
                        ctx.fail(|| e);
                        return;
                    }
                }
            });
        }),
    );
    lower.emit(
        &format!("{} (output)", site.label),
        [scratch.range],
        site.writes(),
        Box::new(move |ctx, work| {
            let count = pairs.get(ctx.symbols);
            let (order, _) = run.order(ctx, count);
            work.split(count, 4, |places| {
                for place in places {
                    let pair = order[place] as usize;
                    // SAFETY: the result has a row for every pair, and every pair one place.
                    unsafe {
                        let to = ctx.ptr(run.out).cast::<f32>().add(pair * n);
                        std::ptr::copy_nonoverlapping(run.sums(ctx, place).cast_const(), to, n);
                    }
                }
            });
        }),
    );
    Ok(true)
}

/// What all steps know.
#[derive(Clone, Copy)]
struct Run {
    isa: Isa,
    base: Loc,
    plan: ScratchPlan,
    experts: usize,
    n: usize,
    k: usize,
    dtype: DType,
    packed: bool,
    weight: Loc,
    out: Loc,
}

impl Run {
    /// Puts the pairs in the order of their experts, and within those in their own.
    ///
    /// # Safety
    /// No one else touches the scratch meanwhile.
    unsafe fn sort(&self, ctx: &RunCtx, ids: &[i32]) {
        // SAFETY: the scratch was planned for at least so many pairs, and is ours.
        let (order, first) = unsafe {
            let order = ctx.ptr(self.base).add(self.plan.order).cast::<u32>();
            let first = order.add(ids.len());
            order.write_bytes(0, ids.len() + self.experts + 1);
            (
                std::slice::from_raw_parts_mut(order, ids.len()),
                std::slice::from_raw_parts_mut(first, self.experts + 1),
            )
        };
        let expert = |id: i32| {
            let found = usize::try_from(id).ok().filter(|&e| e < self.experts);
            if found.is_none() {
                ctx.fail(|| format!("expert {id} is not among the {}", self.experts));
            }
            found.unwrap_or(0)
        };
        for &id in ids {
            first[expert(id) + 1] += 1;
        }
        for e in 0..self.experts {
            first[e + 1] += first[e];
        }
        // Each expert's first place moves on as places are given away, and so ends as the next
        // one's.
        for (pair, &id) in (0u32..).zip(ids) {
            let next = &mut first[expert(id)];
            order[*next as usize] = pair;
            *next += 1;
        }
        first.copy_within(..self.experts, 1);
        first[0] = 0;
    }

    /// The pair at every place, and the first place of every expert.
    fn order<'a>(&self, ctx: &'a RunCtx, pairs: usize) -> (&'a [u32], &'a [u32]) {
        // SAFETY: the first step wrote them, later ones only read.
        unsafe {
            let order = ctx.ptr(self.base).add(self.plan.order).cast::<u32>().cast_const();
            (
                std::slice::from_raw_parts(order, pairs),
                std::slice::from_raw_parts(order.add(pairs), self.experts + 1),
            )
        }
    }

    /// The places of an expert.
    fn span(&self, first: &[u32], expert: usize) -> Range<usize> {
        first[expert] as usize..first[expert + 1] as usize
    }

    /// Prepares the row at `place`, one of an expert's places `span`.
    ///
    /// # Safety
    /// No one else touches this place meanwhile.
    unsafe fn input(&self, ctx: &RunCtx, x: &[f32], place: usize, span: Range<usize>) {
        // SAFETY: the scratch was planned for a row at each place.
        unsafe {
            let rows = ctx.ptr(self.base).add(self.plan.rows);
            if self.packed {
                let before = act_quant::act_bytes(span.start, self.k).unwrap_or(0);
                let scaling = qmatmul::scaling(self.dtype);
                let (at, tokens) = (place - span.start, span.len());
                act_quant::quantize_row_raw(rows.add(before), tokens, at, x, scaling);
            } else {
                let to = rows.cast::<f32>().add(place * self.k);
                std::ptr::copy_nonoverlapping(x.as_ptr(), to, self.k);
            }
        }
    }

    /// The sums of the row at `place`.
    fn sums(&self, ctx: &RunCtx, place: usize) -> *mut f32 {
        ctx.ptr(self.base).wrapping_add(self.plan.sums).cast::<f32>().wrapping_add(place * self.n)
    }

    /// The row groups `groups` of an expert's matrix times the rows at its places `span`.
    fn multiply(
        &self,
        ctx: &RunCtx,
        expert: usize,
        span: Range<usize>,
        groups: Range<usize>,
    ) -> Result<(), String> {
        if !self.packed {
            match self.dtype {
                DType::F16 => self.dense::<half::f16>(ctx, expert, span, groups),
                DType::Bf16 => self.dense::<half::bf16>(ctx, expert, span, groups),
                _ => self.dense::<f32>(ctx, expert, span, groups),
            }
            return Ok(());
        }
        let text = |e: packed::PackError| e.to_string();
        let bytes = packed::packed_bytes(self.dtype, self.n, self.k).map_err(text)?;
        let acts = act_quant::act_bytes(span.len(), self.k).unwrap_or(0);
        let before = act_quant::act_bytes(span.start, self.k).unwrap_or(0);
        // SAFETY: the weight has the matrices of all experts one above the other, each of whole
        // groups; the step before filled the activations.
        let (weights, acts) = unsafe {
            (
                std::slice::from_raw_parts(ctx.ptr(self.weight).add(expert * bytes), bytes),
                std::slice::from_raw_parts(ctx.ptr(self.base).add(self.plan.rows + before), acts),
            )
        };
        let weights = PackedMatrix::new(self.dtype, self.n, self.k, weights).map_err(text)?;
        let acts = QActs::new(acts, span.len(), self.k, qmatmul::scaling(self.dtype))
            .ok_or("k is no multiple of 32")?;
        let out = OutPtr { ptr: self.sums(ctx, span.start), stride: self.n };
        let plain = Epilogue { bias: None, residual: None, act: None };
        // SAFETY: there are sums for every place; groups are claimed once.
        unsafe { qmatmul::qmatmul(self.isa, &weights, &acts, groups, out, &plain) }
            .map_err(|e| e.to_string())
    }

    fn dense<E: Load>(
        &self,
        ctx: &RunCtx,
        expert: usize,
        span: Range<usize>,
        groups: Range<usize>,
    ) {
        let range = groups.start * GROUP..(groups.end * GROUP).min(self.n);
        let (n, k) = (self.n, self.k);
        // SAFETY: as for packed ones.
        unsafe {
            let data = ctx.ptr(self.weight).cast::<E>().cast_const().add(expert * n * k);
            let data = std::slice::from_raw_parts(data, n * k);
            let rows = ctx.ptr(self.base).add(self.plan.rows).cast::<f32>().cast_const();
            let rows = std::slice::from_raw_parts(rows.add(span.start * k), span.len() * k);
            let weights = Weights { data, rows: n, k };
            let out = (self.sums(ctx, span.start), n);
            gemm::gemv(self.isa, weights, range, (rows, span.len()), out);
        }
    }
}
