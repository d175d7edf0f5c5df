//! Reductions and running sums.
//!
//! Meanings: floats are accumulated in f64 in row-major order and rounded once, integers in i64,
//! wrapping to their width. Over no elements a sum is 0, a product 1, a mean NaN, the greatest
//! value the least of the type (-infinity of floats) and the smallest the greatest.

use ndarray::{ArrayD, Axis};

use super::InferCtx;
use super::elementwise::{max, min};
use super::shape::{axis_of, eval_axis};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::tensor::{EvalCtx, Evaluated, Tensor};
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

/// Folds the reduced axes of `x` with `f`, in row-major order.
fn fold<T: Copy>(ctx: &EvalCtx, x: &ArrayD<T>, init: T, f: impl Fn(T, T) -> T) -> Vec<T> {
    let mut reduced = vec![false; x.ndim()];
    for &axis in ctx.attrs.ints("axes").unwrap_or_default() {
        let axis = if axis < 0 { axis + x.ndim() as i64 } else { axis };
        if let Some(r) = usize::try_from(axis).ok().and_then(|a| reduced.get_mut(a)) {
            *r = true;
        }
    }
    let shape: Vec<usize> =
        x.shape().iter().zip(&reduced).map(|(&d, &r)| if r { 1 } else { d }).collect();
    let mut out = ArrayD::from_elem(shape, init);
    let mut view = out.view_mut();
    for (index, value) in x.indexed_iter() {
        let mut at = index;
        for (i, r) in reduced.iter().enumerate() {
            if *r {
                at[i] = 0;
            }
        }
        view[&at] = f(view[&at], *value);
    }
    out.into_iter().collect()
}

fn reduce(
    ctx: &EvalCtx,
    (float_init, float): (f64, impl Fn(f64, f64) -> f64),
    (int_init, int): (i64, impl Fn(i64, i64) -> i64),
) -> Evaluated {
    let (x, ty) = (ctx.operands[0], &ctx.results[0]);
    let result = if x.dtype().is_float() {
        let values = fold(ctx, &x.to_array_f64()?, float_init, float);
        Tensor::from_f64(ty.dtype, &ty.shape, &values)?
    } else {
        let values = fold(ctx, &x.to_array_i64()?, int_init, int);
        Tensor::from_i64(ty.dtype, &ty.shape, &values)?
    };
    Ok(vec![result])
}

/// The least and greatest number of an integer type.
fn int_range(dtype: DType) -> (i64, i64) {
    match dtype {
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        DType::U8 => (0, u8::MAX.into()),
        DType::U32 => (0, u32::MAX.into()),
        _ => (i64::MIN, i64::MAX),
    }
}

/// Sum over axes.
pub fn eval_sum(ctx: &EvalCtx) -> Evaluated {
    reduce(ctx, (0.0, |a, b| a + b), (0, i64::wrapping_add))
}

/// Mean over axes.
pub fn eval_mean(ctx: &EvalCtx) -> Evaluated {
    let (x, ty) = (ctx.operands[0], &ctx.results[0]);
    let mut values = fold(ctx, &x.to_array_f64()?, 0.0, |a, b| a + b);
    let each = x.numel() as f64 / values.len() as f64;
    values.iter_mut().for_each(|v| *v /= each);
    Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &values)?])
}

/// Product over axes.
pub fn eval_prod(ctx: &EvalCtx) -> Evaluated {
    reduce(ctx, (1.0, |a, b| a * b), (1, i64::wrapping_mul))
}

/// Greatest over axes.
pub fn eval_max(ctx: &EvalCtx) -> Evaluated {
    let least = int_range(ctx.results[0].dtype).0;
    reduce(ctx, (f64::NEG_INFINITY, max), (least, i64::max))
}

/// Smallest over axes.
pub fn eval_min(ctx: &EvalCtx) -> Evaluated {
    let greatest = int_range(ctx.results[0].dtype).1;
    reduce(ctx, (f64::INFINITY, min), (greatest, i64::min))
}

/// The operand's type; number types only.
pub fn infer_cumsum(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if x.dtype.is_quantized() || x.dtype == DType::Bool {
        return Err(format!("expected a number type, found {x}"));
    }
    axis_of(ctx, &x.shape)?;
    Ok(vec![x.clone()])
}

/// Running sums along an axis.
pub fn eval_cumsum(ctx: &EvalCtx) -> Evaluated {
    fn run<T: Copy>(
        ctx: &EvalCtx,
        x: &mut ArrayD<T>,
        axis: usize,
        zero: T,
        add: impl Fn(T, T) -> T,
    ) {
        let exclusive = ctx.attrs.bool("exclusive", false);
        for mut lane in x.lanes_mut(Axis(axis)) {
            if ctx.attrs.bool("reverse", false) {
                lane.invert_axis(Axis(0));
            }
            let mut sum = zero;
            for value in lane {
                let before = sum;
                sum = add(sum, *value);
                *value = if exclusive { before } else { sum };
            }
        }
    }
    let (x, ty) = (ctx.operands[0], &ctx.results[0]);
    let axis = eval_axis(ctx, x.shape().len())?;
    if x.dtype().is_float() {
        let mut values = x.to_array_f64()?;
        run(ctx, &mut values, axis, 0.0, |a, b| a + b);
        return Ok(vec![Tensor::from_array(ty.dtype, &values)?]);
    }
    let mut values = x.to_array_i64()?;
    run(ctx, &mut values, axis, 0, i64::wrapping_add);
    let values: Vec<i64> = values.into_iter().collect();
    Ok(vec![Tensor::from_i64(ty.dtype, &ty.shape, &values)?])
}
