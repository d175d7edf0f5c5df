//! The matrix product.

use super::InferCtx;
use crate::types::{Layout, Shape, TensorType};

type Types = Result<Vec<TensorType>, String>;

/// The type of `x · w` (or `x · wᵀ`).
pub fn product_type(
    x: &TensorType,
    w: &TensorType,
    transpose_b: bool,
) -> Result<TensorType, String> {
    if !x.dtype.is_float() {
        return Err(format!("expected a floating-point left operand, found {x}"));
    }
    if !(w.dtype.is_float() || w.dtype.is_quantized()) {
        return Err(format!("expected a floating-point or quantised right operand, found {w}"));
    }
    if x.rank() < 2 || w.rank() < 2 {
        return Err(format!("expected matrices, found {x} and {w}"));
    }
    if w.dtype.is_quantized() && !transpose_b {
        return Err(format!("the quantised {w} needs transpose_b: its blocks lie along k"));
    }
    if w.layout != Layout::RowMajor && (!transpose_b || w.rank() != 2) {
        return Err(format!("the packed {w} needs transpose_b and two axes"));
    }
    let (xd, wd) = (&x.shape.0, &w.shape.0);
    let (k, n) = if transpose_b {
        (&wd[wd.len() - 1], &wd[wd.len() - 2])
    } else {
        (&wd[wd.len() - 2], &wd[wd.len() - 1])
    };
    if xd[xd.len() - 1] != *k {
        return Err(format!("inner dimensions differ: {x} has {}, {w} has {k}", xd[xd.len() - 1]));
    }
    let batch = Shape(xd[..xd.len() - 2].to_vec())
        .broadcast(&Shape(wd[..wd.len() - 2].to_vec()))
        .ok_or_else(|| format!("leading dimensions of {x} and {w} do not broadcast"))?;
    let mut dims = batch.0;
    dims.push(xd[xd.len() - 2].clone());
    dims.push(n.clone());
    Ok(TensorType::with_shape(x.dtype, Shape(dims)))
}

/// The product's type.
pub fn infer_matmul(ctx: &InferCtx) -> Types {
    let transpose_b = ctx.attrs.bool("transpose_b", false);
    Ok(vec![product_type(ctx.operands[0], ctx.operands[1], transpose_b)?])
}

pub fn eval_matmul(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}
