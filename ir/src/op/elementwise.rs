//! Elementwise ops: one result element from one element of each operand.

use super::InferCtx;
use crate::dtype::DType;
use crate::types::{Shape, TensorType};

type Types = Result<Vec<TensorType>, String>;

fn plain(ty: &TensorType, what: &str) -> Result<(), String> {
    if ty.dtype.is_quantized() {
        return Err(format!("{what} is quantised ({ty}); `cast` it first"));
    }
    Ok(())
}

/// Same type out as in, any number type.
pub fn infer_unary(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    plain(x, "the operand")?;
    if x.dtype == DType::Bool {
        return Err(format!("expected a number type, found {x}"));
    }
    Ok(vec![x.clone()])
}

/// Same type out as in, floats only.
pub fn infer_unary_float(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if !x.dtype.is_float() {
        return Err(format!("expected a floating-point operand, found {x}"));
    }
    Ok(vec![x.clone()])
}

/// `bool` to `bool`.
pub fn infer_not(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if x.dtype != DType::Bool {
        return Err(format!("expected a bool operand, found {x}"));
    }
    Ok(vec![x.clone()])
}

/// The broadcast of two shapes, with both in the message.
pub fn broadcast(a: &TensorType, b: &TensorType) -> Result<Shape, String> {
    a.shape.broadcast(&b.shape).ok_or_else(|| format!("shapes of {a} and {b} do not broadcast"))
}

fn same_dtype(a: &TensorType, b: &TensorType) -> Result<(), String> {
    plain(a, "the left operand")?;
    plain(b, "the right operand")?;
    if a.dtype != b.dtype {
        return Err(format!("element types differ: {a} and {b}"));
    }
    Ok(())
}

/// Broadcast of two number types.
pub fn infer_binary(ctx: &InferCtx) -> Types {
    let (a, b) = (ctx.operands[0], ctx.operands[1]);
    same_dtype(a, b)?;
    if a.dtype == DType::Bool {
        return Err(format!("expected number operands, found {a}"));
    }
    Ok(vec![TensorType::with_shape(a.dtype, broadcast(a, b)?)])
}

/// Broadcast of two floats.
pub fn infer_binary_float(ctx: &InferCtx) -> Types {
    if !ctx.operands[0].dtype.is_float() {
        return Err(format!("expected floating-point operands, found {}", ctx.operands[0]));
    }
    infer_binary(ctx)
}

/// Broadcast to `bool`.
pub fn infer_compare(ctx: &InferCtx) -> Types {
    let (a, b) = (ctx.operands[0], ctx.operands[1]);
    same_dtype(a, b)?;
    Ok(vec![TensorType::with_shape(DType::Bool, broadcast(a, b)?)])
}

/// Broadcast of two `bool`s.
pub fn infer_logical(ctx: &InferCtx) -> Types {
    let (a, b) = (ctx.operands[0], ctx.operands[1]);
    for x in [a, b] {
        if x.dtype != DType::Bool {
            return Err(format!("expected bool operands, found {x}"));
        }
    }
    Ok(vec![TensorType::with_shape(DType::Bool, broadcast(a, b)?)])
}

/// Condition and two branches of one type, all broadcast.
pub fn infer_select(ctx: &InferCtx) -> Types {
    let (c, a, b) = (ctx.operands[0], ctx.operands[1], ctx.operands[2]);
    if c.dtype != DType::Bool {
        return Err(format!("expected a bool condition, found {c}"));
    }
    same_dtype(a, b)?;
    let branches = TensorType::with_shape(a.dtype, broadcast(a, b)?);
    Ok(vec![TensorType::with_shape(a.dtype, broadcast(c, &branches)?)])
}

/// The operand's shape with the declared element type.
pub fn infer_cast(ctx: &InferCtx) -> Types {
    let (x, target) = (ctx.operands[0], ctx.target()?);
    if target.dtype.is_quantized() {
        return Err(format!("cannot cast to the quantised type {}", target.dtype));
    }
    Ok(vec![TensorType::with_shape(target.dtype, x.shape.clone())])
}

pub fn eval_neg(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_abs(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_sign(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_exp(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_log(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_sqrt(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_rsqrt(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_sin(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_cos(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_tanh(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_sigmoid(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_relu(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_gelu(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_gelu_tanh(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_silu(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_erf(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_floor(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_ceil(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_round(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_not(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_add(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_sub(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_mul(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_div(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_pow(
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

pub fn eval_eq(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_ne(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_lt(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_le(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_gt(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_ge(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_and(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_or(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_select(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_cast(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}
