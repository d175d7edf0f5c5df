//! Softmax and the norms.
//!
//! Meanings: f64 throughout, one rounding at the end.

use ndarray::{ArrayViewMut1, Axis};

use super::InferCtx;
use super::shape::{axis_of, eval_axis};
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor};
use crate::types::TensorType;

type Types = Result<Vec<TensorType>, String>;

/// A plain floating-point type.
pub(super) fn float(ty: &TensorType, what: &str) -> Result<(), String> {
    if !ty.dtype.is_float() {
        return Err(format!("expected a floating-point {what}, found {ty}"));
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

/// Applies `f` to every lane along the axis attribute.
fn along_axis(ctx: &EvalCtx, f: impl Fn(ArrayViewMut1<f64>)) -> Evaluated {
    let x = ctx.operands[0];
    let axis = eval_axis(ctx, x.shape().len())?;
    let mut values = x.to_array_f64()?;
    values.lanes_mut(Axis(axis)).into_iter().for_each(f);
    Ok(vec![Tensor::from_array(x.dtype(), &values)?])
}

fn greatest<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    values.into_iter().copied().fold(f64::NEG_INFINITY, super::elementwise::max)
}

/// exp(x - max) over their sum, in place.
pub(super) fn softmax(values: &mut [f64]) {
    let max = greatest(&*values);
    values.iter_mut().for_each(|v| *v = libm::exp(*v - max));
    let sum: f64 = values.iter().sum();
    values.iter_mut().for_each(|v| *v /= sum);
}

/// Softmax along an axis.
pub fn eval_softmax(ctx: &EvalCtx) -> Evaluated {
    along_axis(ctx, |mut lane| {
        let mut values = lane.to_vec();
        softmax(&mut values);
        lane.iter_mut().zip(values).for_each(|(v, x)| *v = x);
    })
}

/// Logarithm of softmax along an axis.
pub fn eval_log_softmax(ctx: &EvalCtx) -> Evaluated {
    along_axis(ctx, |mut lane| {
        let max = greatest(&lane);
        let sum: f64 = lane.iter().map(|v| libm::exp(v - max)).sum();
        let log_sum = libm::log(sum);
        lane.mapv_inplace(|v| v - max - log_sum);
    })
}

/// Applies `f` to every row of the last axis.
fn rows(ctx: &EvalCtx, f: impl Fn(&mut [f64])) -> Evaluated {
    let x = ctx.operands[0];
    let &length =
        x.shape().last().ok_or_else(|| EvalError("a norm needs at least one axis".to_owned()))?;
    let mut values = x.to_f64_vec()?;
    values.chunks_exact_mut(length.max(1)).for_each(f);
    Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &values)?])
}

/// x / sqrt(mean(x^2) + eps) * weight.
pub fn eval_rms_norm(ctx: &EvalCtx) -> Evaluated {
    let weight = ctx.operands[1].to_f64_vec()?;
    let eps = ctx.attrs.float("eps", 0.0);
    rows(ctx, |row| {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + eps).sqrt();
        row.iter_mut().zip(&weight).for_each(|(v, w)| *v *= scale * w);
    })
}

/// (x - mean) / sqrt(var + eps) * weight + bias.
pub fn eval_layer_norm(ctx: &EvalCtx) -> Evaluated {
    let (weight, bias) = (ctx.operands[1].to_f64_vec()?, ctx.operands[2].to_f64_vec()?);
    let eps = ctx.attrs.float("eps", 0.0);
    rows(ctx, |row| {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        let scale = 1.0 / (variance + eps).sqrt();
        for ((v, w), b) in row.iter_mut().zip(&weight).zip(&bias) {
            *v = (*v - mean) * scale * w + b;
        }
    })
}
