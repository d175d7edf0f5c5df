//! Ops of neural networks: softmax, norms, rotary embedding, attention, the KV cache.

use super::InferCtx;
use super::shape::axis_of;
use crate::dtype::DType;
use crate::types::TensorType;

type Types = Result<Vec<TensorType>, String>;

fn float(ty: &TensorType, what: &str) -> Result<(), String> {
    if !ty.dtype.is_float() {
        return Err(format!("expected a floating-point {what}, found {ty}"));
    }
    Ok(())
}

fn scalar_i32(ty: &TensorType, what: &str) -> Result<(), String> {
    if ty.dtype != DType::I32 || ty.rank() != 0 {
        return Err(format!("expected {what} as tensor<i32>, found {ty}"));
    }
    Ok(())
}

/// The operand's type.
pub fn infer_softmax(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    float(x, "operand")?;
    axis_of(ctx, &x.shape)?;
    Ok(vec![x.clone()])
}

fn last_axis_vector(x: &TensorType, w: &TensorType, what: &str) -> Result<(), String> {
    if !w.dtype.is_float() || w.rank() != 1 || x.shape.0.last() != w.shape.0.last() {
        return Err(format!("the {what} {w} does not fit the last axis of {x}"));
    }
    Ok(())
}

/// The operand's type; the weight is a vector over the last axis.
pub fn infer_rms_norm(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    float(x, "operand")?;
    last_axis_vector(x, ctx.operands[1], "weight")?;
    Ok(vec![x.clone()])
}

/// The operand's type; weight and bias are vectors over the last axis.
pub fn infer_layer_norm(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    float(x, "operand")?;
    last_axis_vector(x, ctx.operands[1], "weight")?;
    last_axis_vector(x, ctx.operands[2], "bias")?;
    Ok(vec![x.clone()])
}

/// The operand's type.
pub fn infer_rope(ctx: &InferCtx) -> Types {
    let (x, pos) = (ctx.operands[0], ctx.operands[1]);
    float(x, "operand")?;
    if x.rank() != 3 {
        return Err(format!("expected [tokens, heads, head_dim], found {x}"));
    }
    let explicit = pos.rank() == 1 && pos.shape.0[0] == x.shape.0[0];
    if pos.dtype != DType::I32 || !(pos.rank() == 0 || explicit) {
        return Err(format!("expected an i32 scalar or one i32 position per token, found {pos}"));
    }
    let n = ctx.attrs.int("n_dims", 0);
    let head_dim = x.shape.0[2].as_const().ok_or("head_dim must be a number")?;
    if n < 2 || n % 2 != 0 || n as u64 > head_dim {
        return Err(format!("n_dims = {n} must be even and at most head_dim = {head_dim}"));
    }
    if !matches!(ctx.attrs.str("mode"), Some("norm" | "neox")) {
        return Err("mode must be \"norm\" or \"neox\"".to_owned());
    }
    if let Some(factors) = ctx.operands.get(2) {
        let fits = factors.rank() == 1 && factors.shape.0[0].is(n as u64 / 2);
        if factors.dtype != DType::F32 || !fits {
            return Err(format!("expected tensor<{}xf32> as factors, found {factors}", n / 2));
        }
    }
    Ok(vec![x.clone()])
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

pub fn eval_softmax(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_log_softmax(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_rms_norm(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_layer_norm(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_rope(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_attention(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_kv_append(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}
