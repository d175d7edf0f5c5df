//! From numbers to the blocks of a quantised type; `cast` goes back.
//!
//! Meaning: [`crate::quant::quantize`], ggml's reference rounding.

use super::InferCtx;
use crate::dtype::DType;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor, reserve};
use crate::types::TensorType;

type Types = Result<Vec<TensorType>, String>;

/// f32 to the declared quantised type of the same shape.
pub fn infer_quantize(ctx: &InferCtx) -> Types {
    let (x, target) = (ctx.operands[0], ctx.target()?);
    if x.dtype != DType::F32 {
        return Err(format!("expected an f32 operand, found {x}; `cast` it first"));
    }
    if !target.dtype.is_quantized() {
        return Err(format!("{} is not a quantised type; use `cast`", target.dtype));
    }
    if x.rank() == 0 {
        return Err(format!("{x} has no axis along which blocks could lie"));
    }
    Ok(vec![TensorType::with_shape(target.dtype, x.shape.clone())])
}

/// The blocks.
pub fn eval_quantize(ctx: &EvalCtx) -> Evaluated {
    let (x, ty) = (ctx.operands[0], &ctx.results[0]);
    let size = ty
        .row_major_bytes()
        .ok_or_else(|| EvalError(format!("the last axis of {ty} ends inside a block")))?;
    let mut bytes = reserve(size).ok_or_else(|| EvalError(format!("no memory for {ty}")))?;
    bytes.resize(size, 0);
    crate::quant::quantize(ty.dtype, &x.to_f32_vec()?, &mut bytes)
        .map_err(|e| EvalError(e.to_string()))?;
    Ok(vec![Tensor::new(ty.clone(), bytes)?])
}
