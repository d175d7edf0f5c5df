//! Ops that the layout and fuse passes introduce: what one kernel does in one read.

use super::InferCtx;
use super::matmul::product_type;
use crate::types::{Layout, Shape, TensorType};

type Types = Result<Vec<TensorType>, String>;

/// A row-major matrix into the declared layout.
pub fn infer_pack(ctx: &InferCtx) -> Types {
    let (x, target) = (ctx.operands[0], ctx.target()?);
    if x.rank() != 2 || x.layout != Layout::RowMajor {
        return Err(format!("expected a row-major matrix, found {x}"));
    }
    Ok(vec![TensorType { layout: target.layout, ..x.clone() }])
}

/// Product and an addend that broadcasts to it.
pub fn infer_matmul_add(ctx: &InferCtx) -> Types {
    let ty = product_type(ctx.operands[0], ctx.operands[1], true)?;
    addend(&ty, ctx.operands[2])?;
    Ok(vec![ty])
}

fn addend(product: &TensorType, r: &TensorType) -> Result<(), String> {
    let row = Shape(product.shape.0[product.rank() - 1..].to_vec());
    if r.dtype != product.dtype || (r.shape != product.shape && r.shape != row) {
        return Err(format!("the addend {r} is neither {product} nor a row of it"));
    }
    Ok(())
}

/// Two products of one shape.
pub fn infer_matmul_gated(ctx: &InferCtx) -> Types {
    let gate = product_type(ctx.operands[0], ctx.operands[1], true)?;
    let up = product_type(ctx.operands[0], ctx.operands[2], true)?;
    if gate != up {
        return Err(format!("gate {gate} and up {up} differ"));
    }
    match ctx.attrs.str("act") {
        Some("silu" | "gelu" | "gelu_tanh") => Ok(vec![gate]),
        other => Err(format!("unknown activation `{}`", other.unwrap_or_default())),
    }
}

/// One product for each weight.
pub fn infer_matmul_multi(ctx: &InferCtx) -> Types {
    let n = usize::try_from(ctx.attrs.int("weights", 0)).unwrap_or(0);
    let biases = ctx.attrs.ints("biases").unwrap_or_default();
    if n == 0 || ctx.operands.len() != 1 + n + biases.len() {
        return Err(format!(
            "expected x, {n} weights and {} biases, found {} operands",
            biases.len(),
            ctx.operands.len()
        ));
    }
    let mut types = Vec::with_capacity(n);
    for w in &ctx.operands[1..=n] {
        types.push(product_type(ctx.operands[0], w, true)?);
    }
    for (bias, &i) in ctx.operands[1 + n..].iter().zip(biases) {
        let ty = usize::try_from(i).ok().and_then(|i| types.get(i));
        addend(ty.ok_or_else(|| format!("bias index {i} is out of range"))?, bias)?;
    }
    Ok(types)
}

pub fn eval_pack(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_matmul_add(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_matmul_gated(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_matmul_multi(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}
