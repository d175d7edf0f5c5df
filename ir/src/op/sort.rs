//! Ops that compare the elements along an axis: the greatest, the k greatest, all in order.
//!
//! NaN is greater than every number, 0 equals -0, and equal elements keep their order. Values are
//! moved as bytes.

use std::cmp::Ordering;

use ndarray::{ArrayViewD, Axis};

use super::InferCtx;
use super::shape::{axis_of, eval_axis};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor};
use crate::types::TensorType;

type Types = Result<Vec<TensorType>, String>;

fn number(x: &TensorType) -> Result<(), String> {
    if x.dtype.is_quantized() || x.dtype == DType::Bool {
        return Err(format!("expected a number type, found {x}"));
    }
    Ok(())
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
    number(x)?;
    let axis = axis_of(ctx, &x.shape)?;
    nonempty_axis(x, axis)?;
    let mut shape = x.shape.clone();
    shape.0.remove(axis);
    Ok(vec![TensorType::with_shape(DType::I32, shape)])
}

/// The last axis shortened to k; values and indices.
pub fn infer_top_k(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    number(x)?;
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

/// The operand's shape twice: values and i32 indices.
pub fn infer_sort(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    number(x)?;
    let axis = axis_of(ctx, &x.shape)?;
    if x.shape.0[axis].as_const().is_some_and(|n| n > i32::MAX as u64) {
        return Err(format!("indices along axis {axis} of {x} overflow i32"));
    }
    Ok(vec![x.clone(), x.with_dtype(DType::I32)])
}

/// Falling order with NaN before everything; equal values compare equal.
fn falling(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
        (nan_a, nan_b) => nan_b.cmp(&nan_a),
    }
}

/// Whether one element of `x` stands before another when it is sorted, by their row-major
/// indices; equal ones do not.
pub(super) fn precedes(
    x: &Tensor,
    descending: bool,
) -> Result<Box<dyn Fn(usize, usize) -> bool>, EvalError> {
    let before = if descending { Ordering::Less } else { Ordering::Greater };
    Ok(if x.dtype().is_float() {
        let values = x.to_f64_vec()?;
        Box::new(move |a, b| falling(values[a], values[b]) == before)
    } else {
        let values = x.to_i64_vec()?;
        Box::new(move |a, b| values[b].cmp(&values[a]) == before)
    })
}

/// For each lane along `axis` (in row-major order of the others) the positions of its elements
/// in order, equal ones by index.
fn ranked(x: &Tensor, axis: usize, descending: bool) -> Result<Vec<Vec<usize>>, EvalError> {
    fn lanes<T: Copy>(
        x: &ArrayViewD<'_, T>,
        axis: usize,
        compare: impl Fn(T, T) -> Ordering,
    ) -> Vec<Vec<usize>> {
        let ranked = x.lanes(Axis(axis)).into_iter().map(|lane| {
            let mut order: Vec<usize> = (0..lane.len()).collect();
            order.sort_by(|&i, &j| compare(lane[i], lane[j]));
            order
        });
        ranked.collect()
    }
    let turn = |order: Ordering| if descending { order } else { order.reverse() };
    Ok(if x.dtype().is_float() {
        lanes(&x.to_array_f64()?.view(), axis, |a, b| turn(falling(a, b)))
    } else {
        lanes(&x.to_array_i64()?.view(), axis, |a, b| turn(b.cmp(&a)))
    })
}

/// Index of the greatest.
pub fn eval_argmax(ctx: &EvalCtx) -> Evaluated {
    let x = ctx.operands[0];
    let axis = eval_axis(ctx, x.shape().len())?;
    let mut best = Vec::new();
    for order in ranked(x, axis, true)? {
        match order.first() {
            Some(&i) => best.push(i as i64),
            None => return Err(EvalError(format!("axis {axis} of {} is empty", x.ty()))),
        }
    }
    Ok(vec![Tensor::from_i64(DType::I32, &ctx.results[0].shape, &best)?])
}

/// The k greatest and their indices.
pub fn eval_top_k(ctx: &EvalCtx) -> Evaluated {
    let x = ctx.operands[0];
    let (Some(&len), Ok(k)) = (x.shape().last(), usize::try_from(ctx.attrs.int("k", 0))) else {
        return Err(EvalError("top_k needs an axis and a positive k".to_owned()));
    };
    if k > len {
        return Err(EvalError(format!("k = {k} is more than the last axis of {}", x.ty())));
    }
    let size = x.dtype().block_bytes();
    let (mut values, mut indices) = (Vec::new(), Vec::new());
    for (lane, order) in ranked(x, x.shape().len() - 1, true)?.into_iter().enumerate() {
        for &i in &order[..k] {
            let at = (lane * len + i) * size;
            values.extend_from_slice(&x.bytes()[at..at + size]);
            indices.push(i as i64);
        }
    }
    Ok(vec![
        Tensor::new(ctx.results[0].clone(), values)?,
        Tensor::from_i64(DType::I32, &ctx.results[1].shape, &indices)?,
    ])
}

/// All elements in order and their indices.
pub fn eval_sort(ctx: &EvalCtx) -> Evaluated {
    let x = ctx.operands[0];
    let axis = eval_axis(ctx, x.shape().len())?;
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let (length, size) = (x.shape()[axis], x.dtype().block_bytes());
    let mut values = vec![0; x.bytes().len()];
    let mut indices = vec![0; x.numel()];
    for (lane, order) in ranked(x, axis, ctx.attrs.bool("descending", false))?.iter().enumerate() {
        let first = lane / inner * length * inner + lane % inner;
        for (to, &from) in order.iter().enumerate() {
            let (to, source) = (first + to * inner, (first + from * inner) * size);
            values[to * size..(to + 1) * size].copy_from_slice(&x.bytes()[source..source + size]);
            indices[to] = from as i64;
        }
    }
    Ok(vec![
        Tensor::new(ctx.results[0].clone(), values)?,
        Tensor::from_i64(DType::I32, &ctx.results[1].shape, &indices)?,
    ])
}
