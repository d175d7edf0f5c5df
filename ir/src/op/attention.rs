//! Scaled dot product attention over a cache, and appending to the cache.
//!
//! Both have two forms. One sequence: the cache has rows `[context, …]`, and a scalar `past` says
//! where the tokens stand. Many sequences: the cache has one more axis in front, of slots, and
//! every token names its position and its slot; see [`segments`].
//!
//! Caches are of floats or of quantised blocks: rows are quantised when they are appended, and read
//! as the floats that the blocks stand for.
//!
//! Meanings: scores, softmax and the weighted sum in f64, one rounding at the end.

use std::ops::Range;

use super::InferCtx;
use super::norm::{float, softmax};
use super::slots::{Segment, segments};
use crate::attr::Attrs;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::tensor::{ConcreteType, EvalCtx, EvalError, Evaluated, Tensor, reserve};
use crate::types::TensorType;

type Types = Result<Vec<TensorType>, String>;

fn scalar_i32(ty: &TensorType, what: &str) -> Result<(), String> {
    if ty.dtype != DType::I32 || ty.rank() != 0 {
        return Err(format!("expected {what} as tensor<i32>, found {ty}"));
    }
    Ok(())
}

/// Positions and slots, one i32 for each token.
fn per_token(ty: &TensorType, tokens: &Dim, what: &str) -> Result<(), String> {
    if ty.dtype != DType::I32 || ty.rank() != 1 || ty.shape.0[0] != *tokens {
        return Err(format!("expected {what} as tensor<[{tokens}]xi32>, found {ty}"));
    }
    Ok(())
}

/// A cache: floats, or quantised blocks, which are read as the floats that they stand for.
fn cache(ty: &TensorType, what: &str) -> Result<(), String> {
    if ty.dtype.is_quantized() { Ok(()) } else { float(ty, what) }
}

/// `[tokens, heads, dv]` in q's element type.
pub fn infer_attention(ctx: &InferCtx) -> Types {
    let (q, k, v) = (ctx.operands[0], ctx.operands[1], ctx.operands[2]);
    let slots = ctx.operands.get(4);
    let front = usize::from(slots.is_some());
    float(q, "q")?;
    cache(k, "k")?;
    cache(v, "v")?;
    for (ty, what, rank) in [(q, "q", 3), (k, "k", 3 + front), (v, "v", 3 + front)] {
        if ty.rank() != rank {
            return Err(format!("expected {what} with {rank} axes, found {ty}"));
        }
    }
    match slots {
        None => scalar_i32(ctx.operands[3], "past")?,
        Some(slots) => {
            per_token(ctx.operands[3], &q.shape.0[0], "positions")?;
            per_token(slots, &q.shape.0[0], "slots")?;
            if !ctx.attrs.bool("causal", true) {
                return Err("over slots only causal attention has a meaning".to_owned());
            }
        }
    }
    let (heads_at, last) = (1 + front, 2 + front);
    if k.shape.0[..last] != v.shape.0[..last] || k.shape.0[last] != q.shape.0[2] {
        return Err(format!("q {q}, k {k} and v {v} do not fit together"));
    }
    let (heads, kv_heads) = (q.shape.0[1].as_const(), k.shape.0[heads_at].as_const());
    match (heads, kv_heads) {
        (Some(h), Some(kv)) if kv > 0 && h % kv == 0 => {}
        _ => return Err(format!("the heads of q {q} must be a multiple of those of k {k}")),
    }
    if ctx.attrs.int("window", 0) < 0 || ctx.attrs.float("softcap", 0.0) < 0.0 {
        return Err("window and softcap must not be negative".to_owned());
    }
    let mut ty = q.clone();
    ty.shape.0[2] = v.shape.0[last].clone();
    Ok(vec![ty])
}

/// The cache's type.
pub fn infer_kv_append(ctx: &InferCtx) -> Types {
    let (into, rows) = (ctx.operands[0], ctx.operands[1]);
    cache(into, "cache")?;
    float(rows, "second operand")?;
    let slots = ctx.operands.get(3);
    let front = usize::from(slots.is_some());
    if into.rank() != 3 + front
        || rows.rank() != 3
        || into.shape.0[1 + front..] != rows.shape.0[1..]
    {
        return Err(format!("rows {rows} do not fit the cache {into}"));
    }
    match slots {
        None => scalar_i32(ctx.operands[2], "past")?,
        Some(slots) => {
            per_token(ctx.operands[2], &rows.shape.0[0], "positions")?;
            per_token(slots, &rows.shape.0[0], "slots")?;
        }
    }
    Ok(vec![into.clone()])
}

fn ints(x: &Tensor) -> Result<Vec<i32>, EvalError> {
    Ok(x.to_f64_vec()?.into_iter().map(|v| v as i32).collect())
}

/// The slotted form as one call of the plain form for each segment: `each` gets the segment and
/// the slot's part of the caches.
fn by_segment(
    (positions, slot_ids): (&Tensor, &Tensor),
    cache: &Tensor,
    mut each: impl FnMut(Segment) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    let [slots, context, ..] = *cache.shape() else {
        return Err(EvalError(format!("expected slots, found {}", cache.ty())));
    };
    let (positions, slot_ids) = (ints(positions)?, ints(slot_ids)?);
    for segment in segments(&positions, &slot_ids, slots, context) {
        each(segment.map_err(EvalError)?)?;
    }
    Ok(())
}

/// Index `at` of the first axis, which is dropped.
fn part(x: &Tensor, at: usize) -> Result<Tensor, EvalError> {
    let shape = &x.shape()[1..];
    let bytes = x.bytes().len() / x.shape()[0].max(1);
    let data = x.bytes().get(at * bytes..(at + 1) * bytes).unwrap_or_default().to_vec();
    Ok(Tensor::new(ConcreteType::new(x.dtype(), shape), data)?)
}

/// The rows `range` of the first axis.
fn rows_of(x: &Tensor, range: Range<usize>) -> Result<Tensor, EvalError> {
    let mut shape = x.shape().to_vec();
    let bytes = x.bytes().len() / shape[0].max(1);
    shape[0] = range.len();
    let data = x.bytes().get(range.start * bytes..range.end * bytes).unwrap_or_default().to_vec();
    Ok(Tensor::new(ConcreteType::new(x.dtype(), &shape[..]), data)?)
}

/// The rows `past` and `past + tokens` of a cache of `context` rows.
fn valid_rows(past: &Tensor, tokens: usize, context: usize) -> Result<(usize, usize), EvalError> {
    let past = past.scalar_value()?;
    let start =
        usize::try_from(past).map_err(|_| EvalError(format!("past = {past} is negative")))?;
    match start.checked_add(tokens) {
        Some(end) if end <= context => Ok((start, end)),
        _ => Err(EvalError(format!(
            "{past} past and {tokens} new tokens are more than the context of {context}"
        ))),
    }
}

fn leading(x: &Tensor, numel: usize) -> Result<Vec<f64>, EvalError> {
    let mut out = reserve(numel).ok_or_else(|| EvalError(format!("no memory for {}", x.ty())))?;
    out.resize(numel, 0.0);
    x.read_f64(0, &mut out)?;
    Ok(out)
}

/// Attention of q over the valid rows of the caches.
pub fn eval_attention(ctx: &EvalCtx) -> Evaluated {
    let (q, k, v) = (ctx.operands[0], ctx.operands[1], ctx.operands[2]);
    let Some(slots) = ctx.operands.get(4) else {
        let result = &ctx.results[0];
        return Ok(vec![attend((q, k, v), ctx.operands[3], ctx.attrs, result)?]);
    };
    let ty = &ctx.results[0];
    let mut bytes = Vec::new();
    by_segment((ctx.operands[3], slots), k, |s| {
        let (k, v) = (part(k, s.slot)?, part(v, s.slot)?);
        let q = rows_of(q, s.tokens.clone())?;
        let mut shape = ty.shape.to_vec();
        shape[0] = s.tokens.len();
        let past = Tensor::scalar_i32(s.past as i32);
        let result = ConcreteType::new(ty.dtype, &shape[..]);
        bytes.extend_from_slice(attend((&q, &k, &v), &past, ctx.attrs, &result)?.bytes());
        Ok(())
    })?;
    Ok(vec![Tensor::new(ty.clone(), bytes)?])
}

/// Attention of one sequence.
fn attend(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    past: &Tensor,
    attrs: &Attrs,
    ty: &ConcreteType,
) -> Result<Tensor, EvalError> {
    let ([tokens, heads, d], [context, kv_heads, _], [_, _, dv]) =
        (q.shape(), k.shape(), v.shape())
    else {
        return Err(EvalError(format!("expected three axes of {}, {}", q.ty(), k.ty())));
    };
    let (tokens, heads, d, kv_heads, dv) = (*tokens, *heads, *d, *kv_heads, *dv);
    let (past, end) = valid_rows(past, tokens, *context)?;
    let scale = attrs.float("scale", 1.0);
    let causal = attrs.bool("causal", true);
    let window = attrs.int("window", 0) as usize;
    let softcap = attrs.float("softcap", 0.0);
    let qs = q.to_f64_vec()?;
    let ks = leading(k, end * kv_heads * d)?;
    let vs = leading(v, end * kv_heads * dv)?;
    let numel = tokens * heads * dv;
    let mut out = reserve(numel).ok_or_else(|| EvalError(format!("no memory for {ty}")))?;
    out.resize(numel, 0.0);
    for i in 0..tokens {
        let position = past + i;
        let last = if causal { position + 1 } else { end };
        let first = if window == 0 { 0 } else { (position + 1).saturating_sub(window) };
        for h in 0..heads {
            let kv = h / (heads / kv_heads);
            let q = &qs[(i * heads + h) * d..][..d];
            let mut scores: Vec<f64> = (first..last)
                .map(|j| {
                    let k = &ks[(j * kv_heads + kv) * d..][..d];
                    let score = scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>();
                    if softcap > 0.0 { softcap * libm::tanh(score / softcap) } else { score }
                })
                .collect();
            softmax(&mut scores);
            let out = &mut out[(i * heads + h) * dv..][..dv];
            for (j, p) in (first..last).zip(scores) {
                let v = &vs[(j * kv_heads + kv) * dv..][..dv];
                out.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
            }
        }
    }
    Ok(Tensor::from_f64(ty.dtype, &ty.shape, &out)?)
}

/// The cache with new rows.
pub fn eval_kv_append(ctx: &EvalCtx) -> Evaluated {
    let (cache, rows) = (ctx.operands[0], ctx.operands[1]);
    let context = cache.shape().get(usize::from(ctx.operands.len() > 3)).copied();
    let (Some(context), Some(&tokens)) = (context, rows.shape().first()) else {
        return Err(EvalError(format!("expected rows, found {} and {}", cache.ty(), rows.ty())));
    };
    let new = Tensor::from_f64(cache.dtype(), rows.shape(), &rows.to_f64_vec()?)?;
    let row = new.bytes().len() / tokens.max(1);
    let mut bytes = reserve(cache.bytes().len())
        .ok_or_else(|| EvalError(format!("no memory for {}", cache.ty())))?;
    bytes.extend_from_slice(cache.bytes());
    let mut put = |at: usize, tokens: Range<usize>| {
        let from = &new.bytes()[tokens.start * row..tokens.end * row];
        bytes[at * row..][..from.len()].copy_from_slice(from);
    };
    match ctx.operands.get(3) {
        None => {
            let (start, _) = valid_rows(ctx.operands[2], tokens, context)?;
            put(start, 0..tokens);
        }
        Some(slots) => by_segment((ctx.operands[2], slots), cache, |s| {
            put(s.slot * context + s.past, s.tokens);
            Ok(())
        })?,
    }
    Ok(vec![Tensor::new(cache.ty(), bytes)?])
}
