//! The matrix product.
//!
//! Meaning: f64 sums over f64 values, rounded once. Quantised weights are dequantised exactly, a
//! row at a time; activations are never quantised here.

use super::InferCtx;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor, reserve};
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

/// Sum of products, in eight interleaved partial sums.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let ((a8, a_rest), (b8, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (x, y) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + b) + (c + d)) + ((e + f) + (g + h)) + rest
}

/// A stack of matrices within a tensor: where the first begins and its size.
pub(super) struct Matrix {
    pub start: usize,
    pub rows: usize,
    pub columns: usize,
}

/// `out += x · wᵀ` for w stored as `[n, k]`; every row of w is read once.
pub(super) fn multiply_rows(
    x: &[f64],
    w: &Tensor,
    at: &Matrix,
    out: &mut [f64],
) -> Result<(), EvalError> {
    let (n, k) = (at.rows, at.columns);
    let mut row = vec![0.0; k];
    for j in 0..n {
        w.read_f64(at.start + j * k, &mut row)?;
        for (i, out) in out.chunks_exact_mut(n).enumerate() {
            out[j] = dot(&x[i * k..(i + 1) * k], &row);
        }
    }
    Ok(())
}

/// `out += x · w` for w stored as `[k, n]`.
fn multiply_columns(x: &[f64], w: &Tensor, at: &Matrix, out: &mut [f64]) -> Result<(), EvalError> {
    let (k, n) = (at.rows, at.columns);
    let mut row = vec![0.0; n];
    for j in 0..k {
        w.read_f64(at.start + j * n, &mut row)?;
        for (i, out) in out.chunks_exact_mut(n.max(1)).enumerate() {
            let factor = x[i * k + j];
            out.iter_mut().zip(&row).for_each(|(o, w)| *o += factor * w);
        }
    }
    Ok(())
}

/// The product of `x` and `w` over the last two axes before rounding, row-major, with the leading
/// axes of `shape` (the result's) broadcast.
pub(super) fn product(
    x: &Tensor,
    w: &Tensor,
    transpose_b: bool,
    shape: &[usize],
) -> Result<Vec<f64>, EvalError> {
    let numel = shape.iter().product::<usize>();
    let mut out = reserve(numel).ok_or_else(|| EvalError(format!("no memory for {shape:?}")))?;
    out.resize(numel, 0.0);
    let ([.., m, k], [.., rows, columns]) = (x.shape(), w.shape()) else {
        return Err(EvalError(format!("expected matrices, found {} and {}", x.ty(), w.ty())));
    };
    let (rows, columns) = (*rows, *columns);
    let n = if transpose_b { rows } else { columns };
    let values = x.to_f64_vec()?;
    let multiply = |x: &[f64], at: &Matrix, out: &mut [f64]| match (out.is_empty(), transpose_b) {
        (true, _) => Ok(()),
        (_, true) => multiply_rows(x, w, at, out),
        (_, false) => multiply_columns(x, w, at, out),
    };
    if w.shape().len() == 2 {
        // One weight for all: the stacked rows of x are one matrix.
        multiply(&values, &Matrix { start: 0, rows, columns }, &mut out)?;
        return Ok(out);
    }
    let lead = &shape[..shape.len() - 2];
    let x_at = broadcast_offsets(&x.shape()[..x.shape().len() - 2], lead);
    let w_at = broadcast_offsets(&w.shape()[..w.shape().len() - 2], lead);
    for (i, out) in out.chunks_exact_mut((m * n).max(1)).enumerate() {
        let x = &values[x_at(i) * m * k..(x_at(i) + 1) * m * k];
        multiply(x, &Matrix { start: w_at(i) * rows * columns, rows, columns }, out)?;
    }
    Ok(out)
}

/// From the row-major index within `to` to that within `from`, which broadcasts to it.
fn broadcast_offsets<'a>(from: &'a [usize], to: &'a [usize]) -> impl Fn(usize) -> usize + 'a {
    move |mut index| {
        let (mut offset, mut stride) = (0, 1);
        for (i, &length) in to.iter().enumerate().rev() {
            let position = index % length;
            index /= length;
            if let Some(&own) = (i + from.len()).checked_sub(to.len()).and_then(|j| from.get(j)) {
                offset += if own == 1 { 0 } else { position * stride };
                stride *= own;
            }
        }
        offset
    }
}

/// The product.
pub fn eval_matmul(ctx: &EvalCtx) -> Evaluated {
    let ty = &ctx.results[0];
    let transpose_b = ctx.attrs.bool("transpose_b", false);
    let values = product(ctx.operands[0], ctx.operands[1], transpose_b, &ty.shape)?;
    Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &values)?])
}
