//! Norms, rotary embedding, attention and the KV cache.

use aether_ir::op::slots::segments;
use aether_ir::{DType, Op};

use super::access::Range;
use super::steps::{Row, Rows};
use super::{Count, Lower, Lowered, Site, View};
use crate::kernels::attention::{self, Attention, BlockQ4, BlockQ8, CacheElement};
use crate::kernels::rope::{self, RopeMode, RopeParams};
use crate::kernels::{convert, norm};
use crate::program::{Loc, RunCtx};
use crate::size::Size;

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    match site.inst.op {
        Op::RmsNorm | Op::LayerNorm => norms(lower, site),
        Op::Rope => rotate(lower, site),
        Op::Attention => attend(lower, site),
        Op::KvAppend => append(lower, site),
        _ => Ok(false),
    }
}

/// Whether attention reads caches of this type.
pub(crate) fn reads(cache: DType) -> bool {
    appends(cache) || cache == DType::Bf16
}

/// Whether rows of f32 are appended to caches of this type.
pub(crate) fn appends(cache: DType) -> bool {
    matches!(cache, DType::F16 | DType::F32 | DType::Q8_0 | DType::Q4_0)
}

fn all_f32(views: &[View]) -> bool {
    views.iter().all(|v| v.ty.dtype == DType::F32)
}

fn norms(lower: &mut Lower, site: &Site) -> Lowered {
    if !all_f32(&site.inputs) {
        return Ok(false);
    }
    let eps = site.inst.attrs.float("eps", 0.0) as f32;
    let (x, weight, y) = (site.inputs[0].loc, site.inputs[1].loc, site.outputs[0].loc);
    let bias = site.inputs.get(2).map(|v| v.loc);
    let isa = lower.opts.isa;
    lower.rows(site, Rows::of(&site.inputs[0]), move |ctx, row| {
        let (x, y) = (row.at::<f32>(ctx, x), row.at::<f32>(ctx, y));
        let shared = |loc| Some(ctx.ptr(loc).cast::<f32>().cast_const());
        // SAFETY: operand and result have these rows, weight and bias are one row; the result is
        // the operand or apart from it.
        unsafe {
            match bias {
                None => norm::rms_norm_raw(isa, x, shared(weight), eps, y, row.len),
                Some(b) => {
                    norm::layer_norm_raw(isa, x, shared(weight), shared(b), eps, y, row.len);
                }
            }
        }
    });
    Ok(true)
}

/// Reads an i32 scalar.
fn scalar(ctx: &RunCtx, loc: Loc) -> i32 {
    // SAFETY: the value is one aligned i32.
    unsafe { *ctx.ptr(loc).cast::<i32>() }
}

fn rotate(lower: &mut Lower, site: &Site) -> Lowered {
    let (x, pos) = (&site.inputs[0], &site.inputs[1]);
    if x.ty.dtype != DType::F32 {
        return Ok(false);
    }
    let attrs = &site.inst.attrs;
    let pairs = attrs.int("n_dims", 0) as usize / 2;
    let mode = match attrs.str("mode") {
        Some("neox") => RopeMode::Neox,
        _ => RopeMode::Norm,
    };
    let params = RopeParams {
        n_dims: pairs * 2,
        base: attrs.float("theta", 10000.0) as f32,
        freq_scale: attrs.float("freq_scale", 1.0) as f32,
        ext_factor: attrs.float("ext_factor", 0.0) as f32,
        attn_factor: attrs.float("attn_factor", 1.0) as f32,
        beta_fast: attrs.float("beta_fast", 32.0) as f32,
        beta_slow: attrs.float("beta_slow", 1.0) as f32,
        original_context: attrs.int("n_ctx_orig", 0) as usize,
    };
    let table = tables(lower, site, params, pairs, pos)?;
    let (heads, head_dim) = (x.dims[1].clone(), x.dims[2].clone());
    let isa = lower.opts.isa;
    let rows = Rows { count: x.sizes(0..1), len: x.sizes(1..3), claims: 2 };
    let (x, y) = (x.loc, site.outputs[0].loc);
    let mut reads = site.reads();
    reads.push(table.range);
    lower.rows_over(&site.label, reads, site.writes(), rows, move |ctx, row| {
        let shape = (heads.get(ctx.symbols), head_dim.get(ctx.symbols));
        let angles = Row { len: 2 * pairs, ..row }.at::<f32>(ctx, table.loc);
        // SAFETY: operand and result have these rows, and the table a row of 2 · pairs for each.
        unsafe {
            let angles = (angles.cast_const(), angles.add(pairs).cast_const(), pairs);
            let (x, y) = (row.at::<f32>(ctx, x), row.at::<f32>(ctx, y));
            rope::rope_raw(isa, mode, x, y, shape, angles);
        }
    });
    Ok(true)
}

/// A table of cosines and sines of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct RopeTable {
    loc: Loc,
    range: Option<Range>,
}

/// What tables are shared by: angles, positions, tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RopeKey {
    params: RopeParams,
    pos: Loc,
    factors: Option<Loc>,
    tokens: aether_ir::Dim,
}

/// The table for a rope op. All layers rotate by the same positions, so one table serves them:
/// it is filled once per run, as long as the positions are an argument, which nothing overwrites.
fn tables(
    lower: &mut Lower,
    site: &Site,
    params: RopeParams,
    pairs: usize,
    pos: &View,
) -> Result<RopeTable, String> {
    let tokens_dim = site.inputs[0].ty.shape.0[0].clone();
    let factors = site.inputs.get(2).map(|v| v.loc);
    let key = RopeKey { params, pos: pos.loc, factors, tokens: tokens_dim.clone() };
    let shared = matches!(pos.loc, Loc::Based { base, .. } if base > 0);
    if shared && let Some((_, table)) = lower.rope_tables.iter().find(|(k, _)| *k == key) {
        return Ok(*table);
    }
    let max = tokens_dim.upper_bound(&lower.module.symbols).ok_or("the token count overflows")?;
    let (loc, range) = lower.extra(max as usize * pairs * 2 * 4);
    let table = RopeTable { loc, range };
    let len = Count(vec![Size::Const(2 * pairs)]);
    let rows = Rows { count: site.inputs[0].sizes(0..1), len, claims: 2 };
    let (pos_loc, explicit) = (pos.loc, pos.ty.rank() == 1);
    let label = format!("{} (angles)", site.label);
    lower.rows_over(&label, site.reads(), vec![range], rows, move |ctx, row| {
        // SAFETY: positions are one i32 or one for each token, factors `pairs` f32, and the table
        // has a row for every token.
        unsafe {
            let position = if explicit {
                i64::from(*ctx.ptr(pos_loc).cast::<i32>().add(row.index))
            } else {
                i64::from(scalar(ctx, pos_loc)) + row.index as i64
            };
            let factors =
                factors.map(|f| std::slice::from_raw_parts(ctx.ptr(f).cast::<f32>(), pairs));
            let angles = std::slice::from_raw_parts_mut(row.at::<f32>(ctx, loc), row.len);
            let (cos, sin) = angles.split_at_mut(pairs);
            params.fill_table(position as f64, factors, cos, sin);
        }
    });
    if shared {
        lower.rope_tables.push((key, table));
    }
    Ok(table)
}

/// The i32 values of a value with one element for each token.
///
/// # Safety
/// The value has `n` aligned i32, which nothing writes meanwhile.
unsafe fn per_token<'a>(ctx: &RunCtx, loc: Loc, n: usize) -> &'a [i32] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(ctx.ptr(loc).cast::<i32>(), n) }
}

/// Where the tokens of an op stand: after a scalar `past`, or each at its position of its slot.
#[derive(Clone, Copy)]
struct Place {
    past: Loc,
    slots: Option<Loc>,
}

impl Place {
    /// Calls `each` with the slot, the tokens and the position of the first of them, for every
    /// sequence of the call; `false` when the values make no sense, which fails the run.
    fn each(
        self,
        ctx: &RunCtx,
        (tokens, slots, context): (usize, usize, usize),
        mut each: impl FnMut(usize, std::ops::Range<usize>, usize),
    ) -> bool {
        let Some(slot_ids) = self.slots else {
            let past = scalar(ctx, self.past);
            let start = usize::try_from(past).ok();
            match start.filter(|p| p.checked_add(tokens).is_some_and(|end| end <= context)) {
                Some(start) if tokens > 0 => each(0, 0..tokens, start),
                Some(_) => {}
                None => {
                    ctx.fail(|| {
                        format!(
                            "{past} past and {tokens} new tokens do not fit a context of {context}"
                        )
                    });
                    return false;
                }
            }
            return true;
        };
        // SAFETY: the type rule gives both one i32 for each token.
        let (positions, slot_ids) =
            unsafe { (per_token(ctx, self.past, tokens), per_token(ctx, slot_ids, tokens)) };
        for segment in segments(positions, slot_ids, slots, context) {
            match segment {
                Ok(s) => each(s.slot, s.tokens, s.past),
                Err(message) => {
                    ctx.fail(|| message);
                    return false;
                }
            }
        }
        true
    }
}

fn attend(lower: &mut Lower, site: &Site) -> Lowered {
    let (q, k, v, past) = (&site.inputs[0], &site.inputs[1], &site.inputs[2], &site.inputs[3]);
    let place = Place { past: past.loc, slots: site.inputs.get(4).map(|v| v.loc) };
    let front = usize::from(place.slots.is_some());
    let (k_type, v_type) = (k.ty.dtype, v.ty.dtype);
    if q.ty.dtype != DType::F32 || !reads(k_type) || !reads(v_type) {
        return Ok(false);
    }
    let attrs = &site.inst.attrs;
    let number = |v: &View, axis: usize| {
        v.ty.shape.0[axis].as_const().map(|n| n as usize).ok_or("heads must be numbers")
    };
    let window = attrs.int("window", 0) as usize;
    let softcap = attrs.float("softcap", 0.0) as f32;
    let shape = Attention {
        tokens: q.ty.shape.0[0].upper_bound(&lower.module.symbols).unwrap_or(0) as usize,
        past: 0,
        causal: attrs.bool("causal", true),
        heads: number(q, 1)?,
        kv_heads: number(k, 1 + front)?,
        head_dim: number(q, 2)?,
        v_dim: number(v, 2 + front)?,
        scale: attrs.float("scale", 1.0) as f32,
        window: (window > 0).then_some(window),
        soft_cap: (softcap > 0.0).then_some(softcap),
    };
    let isa = lower.opts.isa;
    let per_worker = shape.scratch_len(isa).next_multiple_of(64);
    let scratch = site.scratch(per_worker * 4 * lower.opts.threads)?;
    let (tokens, context) = (q.dims[0].clone(), k.dims[front].clone());
    let slots = place.slots.map(|_| k.dims[0].clone());
    let (q, k, v, y) = (q.loc, k.loc, v.loc, site.outputs[0].loc);
    let mut writes = site.writes();
    writes.push(scratch.range);
    lower.emit(
        &site.label,
        site.reads(),
        writes,
        Box::new(move |ctx, work| {
            let (tokens, context) = (tokens.get(ctx.symbols), context.get(ctx.symbols));
            let slots = slots.as_ref().map_or(1, |s| s.get(ctx.symbols));
            let call_of = |tokens: usize, past: usize| Attention { tokens, past, ..shape };
            let mut units = 0;
            let sizes = (tokens, slots, context);
            if !place.each(ctx, sizes, |_, t, past| units += call_of(t.len(), past).units()) {
                return;
            }
            work.chunks(units, 1, |claim| {
                let mut before = 0;
                place.each(ctx, sizes, |slot, t, past| {
                    let call = call_of(t.len(), past);
                    let units = before..before + call.units();
                    before = units.end;
                    for unit in claim.start.max(units.start)..claim.end.min(units.end) {
                        let unit = unit - units.start;
                        // SAFETY: q and the result have `tokens` rows, the caches `context` for each
                        // of the slots; every worker has scratch of its own; a unit is claimed once.
                        unsafe {
                            let scratch = ctx.ptr(scratch.loc).cast::<f32>();
                            let scratch = scratch.add(work.index * per_worker);
                            let scratch = std::slice::from_raw_parts_mut(scratch, per_worker);
                            let q = ctx.ptr(q).cast::<f32>();
                            let q = q.add(t.start * call.heads * call.head_dim);
                            let q_len = call.tokens * call.heads * call.head_dim;
                            let q = std::slice::from_raw_parts(q, q_len);
                            let y = ctx.ptr(y).cast::<f32>();
                            let y = y.add(t.start * call.heads * call.v_dim);
                            let rows = context * call.kv_heads;
                            let (kn, vn) = (rows * call.head_dim, rows * call.v_dim);
                            let (k, v) = (ctx.ptr(k), ctx.ptr(v));
                            macro_rules! run {
                                ($k:ty, $v:ty) => {{
                                    let (k, v) = (k.cast::<$k>(), v.cast::<$v>());
                                    // In values of the types, which may be blocks.
                                    let kn = kn / <$k as CacheElement>::LEN;
                                    let vn = vn / <$v as CacheElement>::LEN;
                                    let k = std::slice::from_raw_parts(k.add(slot * kn), kn);
                                    let v = std::slice::from_raw_parts(v.add(slot * vn), vn);
                                    attention::attention(isa, &call, (q, k, v), y, unit, scratch);
                                }};
                            }
                            macro_rules! with_keys {
                                ($k:ty) => {
                                    match v_type {
                                        DType::F16 => run!($k, half::f16),
                                        DType::Bf16 => run!($k, half::bf16),
                                        DType::Q8_0 => run!($k, BlockQ8),
                                        DType::Q4_0 => run!($k, BlockQ4),
                                        _ => run!($k, f32),
                                    }
                                };
                            }
                            match k_type {
                                DType::F16 => with_keys!(half::f16),
                                DType::Bf16 => with_keys!(half::bf16),
                                DType::Q8_0 => with_keys!(BlockQ8),
                                DType::Q4_0 => with_keys!(BlockQ4),
                                _ => with_keys!(f32),
                            }
                        }
                    }
                });
            });
        }),
    );
    Ok(true)
}

/// Writes rows into the cache, quantised where that has blocks, in place: the plan gave the result the donated cache's buffer;
/// otherwise the cache is copied into the result's first.
fn append(lower: &mut Lower, site: &Site) -> Lowered {
    let (cache, rows, past, out) =
        (&site.inputs[0], &site.inputs[1], &site.inputs[2], &site.outputs[0]);
    let types = (rows.ty.dtype, cache.ty.dtype);
    if types.0 != DType::F32 || !appends(types.1) {
        return Ok(false);
    }
    if cache.loc != out.loc {
        lower.copy_value(&format!("{} (copy)", site.label), cache, out.loc);
    }
    let place = Place { past: past.loc, slots: site.inputs.get(3).map(|v| v.loc) };
    let front = usize::from(place.slots.is_some());
    let (tokens, context) = (rows.dims[0].clone(), cache.dims[front].clone());
    let slots = place.slots.map(|_| cache.dims[0].clone());
    let width = rows.sizes(1..3);
    // Claims are of whole blocks.
    let block = cache.ty.dtype.block_len();
    let isa = lower.opts.isa;
    let (rows, out) = (rows.loc, out.loc);
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let (tokens, context) = (tokens.get(ctx.symbols), context.get(ctx.symbols));
            let slots = slots.as_ref().map_or(1, |s| s.get(ctx.symbols));
            let width = width.get(ctx.symbols);
            let sizes = (tokens, slots, context);
            if !place.each(ctx, sizes, |_, _, _| ()) {
                return;
            }
            work.split(tokens * width / block, 1, |r| {
                let r = r.start * block..r.end * block;
                place.each(ctx, sizes, |slot, t, past| {
                    // What of the claim belongs to this sequence.
                    let part = r.start.max(t.start * width)..r.end.min(t.end * width);
                    if part.is_empty() {
                        return;
                    }
                    let at = (slot * context + past) * width + part.start - t.start * width;
                    // SAFETY: checked: the rows end inside the slot's part of the cache, and no
                    // slot comes twice; claims are disjoint.
                    unsafe {
                        let from = ctx.ptr(rows).cast::<f32>().add(part.start);
                        let (n, blocks) = (part.len(), part.len() / block);
                        match types.1 {
                            DType::F16 => {
                                let to = ctx.ptr(out).cast::<half::f16>().add(at);
                                convert::f32_to_f16_raw(isa, from, to, n);
                            }
                            DType::Q8_0 => {
                                let to = ctx.ptr(out).cast::<BlockQ8>().add(at / block);
                                let to = std::slice::from_raw_parts_mut(to, blocks);
                                let from = std::slice::from_raw_parts(from, n);
                                attention::quantize_q8(isa, from, to);
                            }
                            DType::Q4_0 => {
                                let to = ctx.ptr(out).cast::<BlockQ4>().add(at / block);
                                let to = std::slice::from_raw_parts_mut(to, blocks);
                                let from = std::slice::from_raw_parts(from, n);
                                attention::quantize_q4(isa, from, to);
                            }
                            _ => {
                                let to = ctx.ptr(out).cast::<f32>().add(at);
                                std::ptr::copy_nonoverlapping(from, to, n);
                            }
                        }
                    }
                });
            });
        }),
    );
    Ok(true)
}
