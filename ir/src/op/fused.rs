//! Ops that the layout and fuse passes introduce: what one kernel does in one read.
//!
//! Meanings: the plain product in f64, the rest on top of it, one rounding at the end.

use super::InferCtx;
use super::elementwise::activation;
use super::matmul::{product, product_type};
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor};
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

/// Product, an addend or none, an activation.
pub fn infer_matmul_act(ctx: &InferCtx) -> Types {
    let transpose_b = ctx.attrs.bool("transpose_b", false);
    let ty = product_type(ctx.operands[0], ctx.operands[1], transpose_b)?;
    if let Some(r) = ctx.operands.get(2) {
        addend(&ty, r)?;
    }
    match ctx.attrs.str("act") {
        Some(act) if activation(act).is_some() => Ok(vec![ty]),
        other => Err(format!("unknown activation `{}`", other.unwrap_or_default())),
    }
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

/// The same bytes under the layout's name: on the host packed tensors stay row-major.
pub fn eval_pack(ctx: &EvalCtx) -> Evaluated {
    Ok(vec![ctx.operands[0].with_layout(ctx.results[0].layout)])
}

/// Adds `r`, whole or row by row.
fn add(values: &mut [f64], r: &Tensor) -> Result<(), EvalError> {
    let r = r.to_f64_vec()?;
    if !r.is_empty() {
        values.iter_mut().zip(r.iter().cycle()).for_each(|(v, r)| *v += r);
    }
    Ok(())
}

/// x · wᵀ + r.
pub fn eval_matmul_add(ctx: &EvalCtx) -> Evaluated {
    let ty = &ctx.results[0];
    let mut values = product(ctx.operands[0], ctx.operands[1], true, &ty.shape)?;
    add(&mut values, ctx.operands[2])?;
    Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &values)?])
}

/// act(x · w + r).
pub fn eval_matmul_act(ctx: &EvalCtx) -> Evaluated {
    let ty = &ctx.results[0];
    let name = ctx.attrs.str("act").unwrap_or_default();
    let act = activation(name).ok_or_else(|| EvalError(format!("unknown activation `{name}`")))?;
    let transpose_b = ctx.attrs.bool("transpose_b", false);
    let mut values = product(ctx.operands[0], ctx.operands[1], transpose_b, &ty.shape)?;
    if let Some(r) = ctx.operands.get(2) {
        add(&mut values, r)?;
    }
    values.iter_mut().for_each(|v| *v = act(*v));
    Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &values)?])
}

/// act(x · w_gateᵀ) * (x · w_upᵀ).
pub fn eval_matmul_gated(ctx: &EvalCtx) -> Evaluated {
    let ty = &ctx.results[0];
    let name = ctx.attrs.str("act").unwrap_or_default();
    let act = activation(name).ok_or_else(|| EvalError(format!("unknown activation `{name}`")))?;
    let mut values = product(ctx.operands[0], ctx.operands[1], true, &ty.shape)?;
    let up = product(ctx.operands[0], ctx.operands[2], true, &ty.shape)?;
    values.iter_mut().zip(&up).for_each(|(g, u)| *g = act(*g) * u);
    Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &values)?])
}

/// x · w_iᵀ (+ bias_i) for each weight; several biases of one weight add up.
pub fn eval_matmul_multi(ctx: &EvalCtx) -> Evaluated {
    let biases = ctx.attrs.ints("biases").unwrap_or_default();
    let n = ctx.results.len();
    let mut results = Vec::with_capacity(n);
    for (i, ty) in ctx.results.iter().enumerate() {
        let mut values = product(ctx.operands[0], ctx.operands[1 + i], true, &ty.shape)?;
        for (bias, _) in ctx.operands[1 + n..].iter().zip(biases).filter(|b| *b.1 == i as i64) {
            add(&mut values, bias)?;
        }
        results.push(Tensor::from_f64(ty.dtype, &ty.shape, &values)?);
    }
    Ok(results)
}
