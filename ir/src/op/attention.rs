//! Scaled dot product attention over a cache, and appending to the cache.
//!
//! Meanings: scores, softmax and the weighted sum in f64, one rounding at the end.

use super::InferCtx;
use super::norm::{float, softmax};
use crate::dtype::DType;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor, reserve};
use crate::types::TensorType;

type Types = Result<Vec<TensorType>, String>;

fn scalar_i32(ty: &TensorType, what: &str) -> Result<(), String> {
    if ty.dtype != DType::I32 || ty.rank() != 0 {
        return Err(format!("expected {what} as tensor<i32>, found {ty}"));
    }
    Ok(())
}

/// `[tokens, heads, dv]` in q's element type.
pub fn infer_attention(ctx: &InferCtx) -> Types {
    let (q, k, v) = (ctx.operands[0], ctx.operands[1], ctx.operands[2]);
    for (ty, what) in [(q, "q"), (k, "k"), (v, "v")] {
        float(ty, what)?;
        if ty.rank() != 3 {
            return Err(format!("expected {what} with three axes, found {ty}"));
        }
    }
    scalar_i32(ctx.operands[3], "past")?;
    if k.shape.0[..2] != v.shape.0[..2] || k.shape.0[2] != q.shape.0[2] || k.dtype != v.dtype {
        return Err(format!("q {q}, k {k} and v {v} do not fit together"));
    }
    let (heads, kv_heads) = (q.shape.0[1].as_const(), k.shape.0[1].as_const());
    match (heads, kv_heads) {
        (Some(h), Some(kv)) if kv > 0 && h % kv == 0 => {}
        _ => return Err(format!("the heads of q {q} must be a multiple of those of k {k}")),
    }
    if ctx.attrs.int("window", 0) < 0 || ctx.attrs.float("softcap", 0.0) < 0.0 {
        return Err("window and softcap must not be negative".to_owned());
    }
    let mut ty = q.clone();
    ty.shape.0[2] = v.shape.0[2].clone();
    Ok(vec![ty])
}

/// The cache's type.
pub fn infer_kv_append(ctx: &InferCtx) -> Types {
    let (cache, rows) = (ctx.operands[0], ctx.operands[1]);
    float(cache, "cache")?;
    float(rows, "second operand")?;
    scalar_i32(ctx.operands[2], "past")?;
    if cache.rank() != 3 || rows.rank() != 3 || cache.shape.0[1..] != rows.shape.0[1..] {
        return Err(format!("rows {rows} do not fit the cache {cache}"));
    }
    Ok(vec![cache.clone()])
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
    let ([tokens, heads, d], [context, kv_heads, _], [_, _, dv]) =
        (q.shape(), k.shape(), v.shape())
    else {
        return Err(EvalError(format!("expected three axes of {}, {}", q.ty(), k.ty())));
    };
    let (tokens, heads, d, kv_heads, dv) = (*tokens, *heads, *d, *kv_heads, *dv);
    let (past, end) = valid_rows(ctx.operands[3], tokens, *context)?;
    let scale = ctx.attrs.float("scale", 1.0);
    let causal = ctx.attrs.bool("causal", true);
    let window = ctx.attrs.int("window", 0) as usize;
    let softcap = ctx.attrs.float("softcap", 0.0);
    let qs = q.to_f64_vec()?;
    let ks = leading(k, end * kv_heads * d)?;
    let vs = leading(v, end * kv_heads * dv)?;
    let numel = tokens * heads * dv;
    let mut out =
        reserve(numel).ok_or_else(|| EvalError(format!("no memory for {}", ctx.results[0])))?;
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
    let ty = &ctx.results[0];
    Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &out)?])
}

/// The cache with new rows.
pub fn eval_kv_append(ctx: &EvalCtx) -> Evaluated {
    let (cache, rows) = (ctx.operands[0], ctx.operands[1]);
    let (Some(&context), Some(&tokens)) = (cache.shape().first(), rows.shape().first()) else {
        return Err(EvalError(format!("expected rows, found {} and {}", cache.ty(), rows.ty())));
    };
    let (start, end) = valid_rows(ctx.operands[2], tokens, context)?;
    let new = Tensor::from_f64(cache.dtype(), rows.shape(), &rows.to_f64_vec()?)?;
    let row = cache.bytes().len() / context.max(1);
    let mut bytes = reserve(cache.bytes().len())
        .ok_or_else(|| EvalError(format!("no memory for {}", cache.ty())))?;
    bytes.extend_from_slice(cache.bytes());
    bytes[start * row..end * row].copy_from_slice(new.bytes());
    Ok(vec![Tensor::new(cache.ty(), bytes)?])
}
