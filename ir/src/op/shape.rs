//! Ops that make or move elements without computing on them.
//!
//! Meanings move whole elements as bytes, so every bit is kept.

use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Slice};

use super::InferCtx;
use super::reduce::axes_mask;
use crate::attr::Attr;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::tensor::{ConcreteType, EvalCtx, EvalError, Evaluated, Tensor, reserve};
use crate::types::{Shape, TensorType};

type Types = Result<Vec<TensorType>, String>;

/// The types as written; the verifier compares them with the constant or the callee.
pub fn infer_declared(ctx: &InferCtx) -> Types {
    Ok(ctx.declared.to_vec())
}

/// The axis attribute as an index into `shape`.
pub fn axis_of(ctx: &InferCtx, shape: &Shape) -> Result<usize, String> {
    let axis = ctx.attrs.int("axis", 0);
    shape.axis(axis).ok_or_else(|| format!("axis {axis} is out of range for rank {}", shape.rank()))
}

/// Declared type, with a valid axis.
pub fn infer_iota(ctx: &InferCtx) -> Types {
    let target = ctx.target()?;
    if target.dtype.is_quantized() || target.dtype == DType::Bool {
        return Err(format!("iota cannot count in {}", target.dtype));
    }
    axis_of(ctx, &target.shape)?;
    Ok(vec![target.clone()])
}

/// Same number of elements.
pub fn infer_reshape(ctx: &InferCtx) -> Types {
    let (x, target) = (ctx.operands[0], ctx.target()?);
    if x.dtype.is_quantized() {
        return Err(format!("cannot reshape the quantised {x}"));
    }
    let (from, to) = (x.shape.numel(), target.shape.numel());
    if from != to {
        return Err(format!("cannot reshape {from} elements of {x} into the {to} of {target}"));
    }
    Ok(vec![TensorType::with_shape(x.dtype, target.shape.clone())])
}

/// The declared shape, when the operand broadcasts to it.
pub fn infer_broadcast(ctx: &InferCtx) -> Types {
    let (x, target) = (ctx.operands[0], ctx.target()?);
    if x.dtype.is_quantized() {
        return Err(format!("cannot broadcast the quantised {x}"));
    }
    if x.shape.broadcast(&target.shape).as_ref() != Some(&target.shape) {
        return Err(format!("{x} does not broadcast to {target}"));
    }
    Ok(vec![TensorType::with_shape(x.dtype, target.shape.clone())])
}

/// Permuted axes.
pub fn infer_transpose(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if x.dtype.is_quantized() {
        return Err(format!("cannot transpose the quantised {x}"));
    }
    let perm = ctx.attrs.ints("perm").unwrap_or_default();
    let mut seen = vec![false; x.rank()];
    let mut dims = Vec::with_capacity(x.rank());
    for &p in perm {
        match usize::try_from(p).ok().filter(|&p| p < x.rank() && !seen[p]) {
            Some(p) => {
                seen[p] = true;
                dims.push(x.shape.0[p].clone());
            }
            None => return Err(format!("perm {perm:?} is no permutation of {} axes", x.rank())),
        }
    }
    if dims.len() != x.rank() {
        return Err(format!("perm {perm:?} is no permutation of {} axes", x.rank()));
    }
    Ok(vec![TensorType::with_shape(x.dtype, Shape(dims))])
}

/// Bounds within the shape; symbolic axes whole.
pub fn infer_slice(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if x.dtype.is_quantized() {
        return Err(format!("cannot slice the quantised {x}; `cast` it first"));
    }
    let starts = ctx.attrs.ints("starts").unwrap_or_default();
    let limits = ctx.attrs.ints("limits").unwrap_or_default();
    let ones = vec![1; x.rank()];
    let steps = ctx.attrs.ints("steps").unwrap_or(&ones);
    if [starts.len(), limits.len(), steps.len()] != [x.rank(); 3] {
        return Err(format!(
            "starts, limits and steps need one entry for each of {} axes",
            x.rank()
        ));
    }
    let mut dims = Vec::with_capacity(x.rank());
    for (axis, dim) in x.shape.0.iter().enumerate() {
        let (start, limit, step) = (starts[axis], limits[axis], steps[axis]);
        match dim.as_const() {
            Some(n) => {
                if start < 0 || limit < start || limit as u64 > n || step < 1 {
                    return Err(format!(
                        "slice {start}..{limit} step {step} does not fit axis {axis} of length {n}"
                    ));
                }
                dims.push(Dim::new(((limit - start) as u64).div_ceil(step as u64)));
            }
            None if (start, limit, step) == (0, -1, 1) => dims.push(dim.clone()),
            None => {
                return Err(format!(
                    "axis {axis} has the symbolic length {dim}: only 0..-1 step 1 is possible"
                ));
            }
        }
    }
    Ok(vec![TensorType::with_shape(x.dtype, Shape(dims))])
}

/// Equal but for the axis, whose lengths add up.
pub fn infer_concat(ctx: &InferCtx) -> Types {
    let first = ctx.operands[0];
    let axis = axis_of(ctx, &first.shape)?;
    let mut length = Dim::new(0);
    for x in ctx.operands {
        let fits = x.dtype == first.dtype
            && !x.dtype.is_quantized()
            && x.rank() == first.rank()
            && (0..x.rank()).all(|i| i == axis || x.shape.0[i] == first.shape.0[i]);
        if !fits {
            return Err(format!("cannot concatenate {first} and {x} along axis {axis}"));
        }
        length = &length + &x.shape.0[axis];
    }
    let mut shape = first.shape.clone();
    shape.0[axis] = length;
    Ok(vec![TensorType::with_shape(first.dtype, shape)])
}

/// Grown by the padding.
pub fn infer_pad(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if x.dtype.is_quantized() {
        return Err(format!("cannot pad the quantised {x}"));
    }
    let low = ctx.attrs.ints("low").unwrap_or_default();
    let high = ctx.attrs.ints("high").unwrap_or_default();
    if [low.len(), high.len()] != [x.rank(); 2] {
        return Err(format!("low and high need one entry for each of {} axes", x.rank()));
    }
    let mut dims = Vec::with_capacity(x.rank());
    for (axis, dim) in x.shape.0.iter().enumerate() {
        let amount = |n: i64| {
            let bytes = u64::try_from(n).ok();
            bytes.ok_or_else(|| format!("cannot pad axis {axis} by {n}; `slice` makes it shorter"))
        };
        let (low, high) = (amount(low[axis])?, amount(high[axis])?);
        let more = low.checked_add(high).filter(|&n| n <= i64::MAX as u64);
        let more = more.ok_or_else(|| format!("the padding of axis {axis} overflows"))?;
        dims.push(dim + &Dim::new(more));
    }
    Ok(vec![TensorType::with_shape(x.dtype, Shape(dims))])
}

/// The operand's type; each axis named once.
pub fn infer_flip(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if x.dtype.is_quantized() {
        return Err(format!("cannot flip the quantised {x}"));
    }
    axes_mask(ctx, &x.shape)?;
    Ok(vec![x.clone()])
}

/// The operands' types.
pub fn infer_identity(ctx: &InferCtx) -> Types {
    Ok(ctx.operands.iter().map(|&x| x.clone()).collect())
}

/// The operand's type, when `to` names a device.
pub fn infer_transfer(ctx: &InferCtx) -> Types {
    match ctx.attrs.str("to") {
        Some("cpu" | "gpu") => infer_identity(ctx),
        to => Err(format!("`to` must be `cpu` or `gpu`, found `{}`", to.unwrap_or_default())),
    }
}

/// A tensor's elements as byte arrays of their width, without copying.
fn view<const N: usize>(x: &Tensor) -> Result<ArrayViewD<'_, [u8; N]>, EvalError> {
    Ok(ArrayViewD::from_shape(IxDyn(x.shape()), x.bytes().as_chunks().0)?)
}

/// A row-major tensor of an array's elements.
fn collect<const N: usize>(
    ty: &ConcreteType,
    array: ArrayViewD<'_, [u8; N]>,
) -> Result<Tensor, EvalError> {
    let size = array.len().saturating_mul(N);
    let mut bytes = reserve(size).ok_or_else(|| EvalError(format!("no memory for {ty}")))?;
    for element in array {
        bytes.extend_from_slice(element);
    }
    Ok(Tensor::new(ty.clone(), bytes)?)
}

/// Runs `$body` with `$n` as the width in bytes of `$dtype`'s elements.
macro_rules! by_width {
    ($dtype:expr, $n:ident => $body:expr) => {
        match $dtype.block_bytes() {
            1 => {
                const $n: usize = 1;
                $body
            }
            2 => {
                const $n: usize = 2;
                $body
            }
            4 => {
                const $n: usize = 4;
                $body
            }
            8 => {
                const $n: usize = 8;
                $body
            }
            _ => Err(EvalError(format!("{} has no single elements to move", $dtype))),
        }
    };
}

/// `x` broadcast to the shape of `ty`, as an array of its own.
fn broadcast_array<const N: usize>(
    x: &Tensor,
    ty: &ConcreteType,
) -> Result<ArrayD<[u8; N]>, EvalError> {
    let wide = broadcast_to(x, ty)?;
    Ok(view::<N>(&wide)?.to_owned())
}

/// `x` broadcast to the shape of `ty`.
pub(super) fn broadcast_to(x: &Tensor, ty: &ConcreteType) -> Result<Tensor, EvalError> {
    by_width!(x.dtype(), N => {
        let array = view::<N>(x)?;
        let wide = array.broadcast(ty.shape.as_slice());
        let wide =
            wide.ok_or_else(|| EvalError(format!("{} does not broadcast to {ty}", x.ty())))?;
        collect(ty, wide)
    })
}

fn axis_index(axis: i64, rank: usize) -> Result<usize, EvalError> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_front)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| EvalError(format!("axis {axis} is out of range for rank {rank}")))
}

/// The axis attribute for an operand of that rank.
pub(super) fn eval_axis(ctx: &EvalCtx, rank: usize) -> Result<usize, EvalError> {
    axis_index(ctx.attrs.int("axis", 0), rank)
}

/// The attribute `value` as a scalar of `ty`'s element type, rounded as by `cast` from a float.
fn one(ctx: &EvalCtx, ty: &ConcreteType) -> Result<Tensor, EvalError> {
    if ty.dtype.is_quantized() {
        return Err(EvalError(format!("cannot fill the quantised {ty}")));
    }
    match ctx.attrs.get("value") {
        // An i64 beyond 2^53 has no f64.
        Some(Attr::Int(v)) if ty.dtype == DType::I64 => Ok(Tensor::scalar_i64(*v)),
        _ => Ok(Tensor::splat(ty.dtype, &[], ctx.attrs.float("value", 0.0))?),
    }
}

/// One value everywhere.
pub fn eval_splat(ctx: &EvalCtx) -> Evaluated {
    let ty = &ctx.results[0];
    Ok(vec![broadcast_to(&one(ctx, ty)?, ty)?])
}

/// The index along the axis.
pub fn eval_iota(ctx: &EvalCtx) -> Evaluated {
    let ty = &ctx.results[0];
    let axis = eval_axis(ctx, ty.shape.len())?;
    let mut shape = vec![1; ty.shape.len()];
    shape[axis] = ty.shape[axis];
    let count: Vec<i64> = (0..ty.shape[axis] as i64).collect();
    Ok(vec![broadcast_to(&Tensor::from_i64(ty.dtype, &shape, &count)?, ty)?])
}

/// The same bytes.
pub fn eval_reshape(ctx: &EvalCtx) -> Evaluated {
    let ty = &ctx.results[0];
    Ok(vec![Tensor::new(ty.clone(), ctx.operands[0].bytes().clone())?])
}

/// NumPy's broadcast.
pub fn eval_broadcast(ctx: &EvalCtx) -> Evaluated {
    Ok(vec![broadcast_to(ctx.operands[0], &ctx.results[0])?])
}

/// Permuted axes.
pub fn eval_transpose(ctx: &EvalCtx) -> Evaluated {
    let x = ctx.operands[0];
    let perm = ctx.attrs.ints("perm").unwrap_or_default();
    let axes: Vec<usize> =
        perm.iter().map(|&p| axis_index(p, x.shape().len())).collect::<Result<_, _>>()?;
    let result = by_width!(x.dtype(), N => {
        collect(&ctx.results[0], view::<N>(x)?.permuted_axes(IxDyn(&axes)))
    })?;
    Ok(vec![result])
}

/// A strided part; start 0, limit -1, step 1 is the whole axis.
pub fn eval_slice(ctx: &EvalCtx) -> Evaluated {
    let x = ctx.operands[0];
    let list = |name| ctx.attrs.ints(name).unwrap_or_default();
    let (starts, limits) = (list("starts"), list("limits"));
    let ones = vec![1; x.shape().len()];
    let steps = ctx.attrs.ints("steps").unwrap_or(&ones);
    let result = by_width!(x.dtype(), N => {
        let mut array = view::<N>(x)?;
        for (axis, ((&start, &limit), &step)) in starts.iter().zip(limits).zip(steps).enumerate() {
            let length = x.shape()[axis] as i64;
            let limit = if limit == -1 { length } else { limit };
            if !(0 <= start && start <= limit && limit <= length && step >= 1) {
                return Err(EvalError(format!(
                    "slice {start}..{limit} step {step} does not fit axis {axis} of {}", x.ty()
                )));
            }
            // A stride beyond the axis picks the first element only.
            let step = step.min(length.max(1)) as isize;
            let part = Slice::new(start as isize, Some(limit as isize), step);
            array.slice_axis_inplace(Axis(axis), part);
        }
        collect(&ctx.results[0], array)
    })?;
    Ok(vec![result])
}

/// Joined along an axis.
pub fn eval_concat(ctx: &EvalCtx) -> Evaluated {
    let ty = &ctx.results[0];
    let axis = eval_axis(ctx, ty.shape.len())?;
    let result = by_width!(ty.dtype, N => {
        let parts: Vec<_> =
            ctx.operands.iter().map(|x| view::<N>(x)).collect::<Result<_, _>>()?;
        let joined: ArrayD<[u8; N]> = ndarray::concatenate(Axis(axis), &parts)?;
        collect(ty, joined.view())
    })?;
    Ok(vec![result])
}

/// Surrounded by one value.
pub fn eval_pad(ctx: &EvalCtx) -> Evaluated {
    let (x, ty) = (ctx.operands[0], &ctx.results[0]);
    let low = ctx.attrs.ints("low").unwrap_or_default();
    let fill = one(ctx, ty)?;
    let result = by_width!(x.dtype(), N => {
        let mut out = broadcast_array::<N>(&fill, ty)?;
        let mut inside = out.view_mut();
        for (axis, &length) in x.shape().iter().enumerate() {
            let start = low.get(axis).copied().unwrap_or_default() as isize;
            let part = Slice::new(start, Some(start + length as isize), 1);
            inside.slice_axis_inplace(Axis(axis), part);
        }
        inside.assign(&view::<N>(x)?);
        collect(ty, out.view())
    })?;
    Ok(vec![result])
}

/// Axes backwards.
pub fn eval_flip(ctx: &EvalCtx) -> Evaluated {
    let x = ctx.operands[0];
    let axes = ctx.attrs.ints("axes").unwrap_or_default();
    let result = by_width!(x.dtype(), N => {
        let mut array = view::<N>(x)?;
        for &axis in axes {
            array.invert_axis(Axis(axis_index(axis, x.shape().len())?));
        }
        collect(&ctx.results[0], array)
    })?;
    Ok(vec![result])
}

/// The operands.
pub fn eval_identity(ctx: &EvalCtx) -> Evaluated {
    Ok(ctx.operands.iter().map(|&x| x.clone()).collect())
}
