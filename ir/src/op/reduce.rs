//! Reductions.

use super::InferCtx;
use super::shape::axis_of;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::types::{Shape, TensorType};

type Types = Result<Vec<TensorType>, String>;

/// The `axes` attribute as a mask over `shape`.
pub fn axes_mask(ctx: &InferCtx, shape: &Shape) -> Result<Vec<bool>, String> {
    let axes = ctx.attrs.ints("axes").unwrap_or_default();
    let mut mask = vec![false; shape.rank()];
    for &axis in axes {
        let i = shape
            .axis(axis)
            .ok_or_else(|| format!("axis {axis} is out of range for rank {}", shape.rank()))?;
        if std::mem::replace(&mut mask[i], true) {
            return Err(format!("axis {axis} is named twice"));
        }
    }
    Ok(mask)
}

/// Reduced axes dropped, or of length 1 with `keepdims`.
pub fn infer_reduce(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if x.dtype.is_quantized() || x.dtype == DType::Bool {
        return Err(format!("expected a number type, found {x}"));
    }
    let mask = axes_mask(ctx, &x.shape)?;
    let keepdims = ctx.attrs.bool("keepdims", false);
    let dims = x.shape.0.iter().zip(&mask).filter_map(|(d, &reduced)| match (reduced, keepdims) {
        (false, _) => Some(d.clone()),
        (true, true) => Some(Dim::new(1)),
        (true, false) => None,
    });
    Ok(vec![TensorType::with_shape(x.dtype, Shape(dims.collect()))])
}

/// As [`infer_reduce`], floats only.
pub fn infer_reduce_float(ctx: &InferCtx) -> Types {
    if !ctx.operands[0].dtype.is_float() {
        return Err(format!("expected a floating-point operand, found {}", ctx.operands[0]));
    }
    infer_reduce(ctx)
}

fn nonempty_axis(x: &TensorType, axis: usize) -> Result<(), String> {
    if x.shape.0[axis].is(0) {
        return Err(format!("axis {axis} of {x} is empty"));
    }
    Ok(())
}

/// The axis dropped, i32.
pub fn infer_argmax(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if x.dtype.is_quantized() || x.dtype == DType::Bool {
        return Err(format!("expected a number type, found {x}"));
    }
    let axis = axis_of(ctx, &x.shape)?;
    nonempty_axis(x, axis)?;
    let mut shape = x.shape.clone();
    shape.0.remove(axis);
    Ok(vec![TensorType::with_shape(DType::I32, shape)])
}

/// The last axis shortened to k; values and indices.
pub fn infer_top_k(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if x.dtype.is_quantized() || x.dtype == DType::Bool {
        return Err(format!("expected a number type, found {x}"));
    }
    let k = ctx.attrs.int("k", 0);
    let last = x.shape.0.last().ok_or("expected at least one axis")?;
    let fits = last.as_const().is_none_or(|n| k as u64 <= n);
    if k < 1 || !fits {
        return Err(format!("k = {k} must lie between 1 and the last axis of {x}"));
    }
    let mut shape = x.shape.clone();
    if let Some(d) = shape.0.last_mut() {
        *d = Dim::new(k as u64);
    }
    let indices = TensorType::with_shape(DType::I32, shape.clone());
    Ok(vec![TensorType::with_shape(x.dtype, shape), indices])
}

pub fn eval_sum(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_mean(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_prod(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_max(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_min(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_argmax(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_top_k(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}
