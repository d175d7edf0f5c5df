//! Ops that make or move elements without computing on them.

use super::InferCtx;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::types::{MAX_RANK, Shape, TensorType};

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

/// The table's shape with the axis replaced by the indices' shape.
pub fn infer_gather(ctx: &InferCtx) -> Types {
    let (table, indices) = (ctx.operands[0], ctx.operands[1]);
    if !matches!(indices.dtype, DType::I32 | DType::I64) {
        return Err(format!("expected i32 or i64 indices, found {indices}"));
    }
    let axis = axis_of(ctx, &table.shape)?;
    if table.dtype.is_quantized() && axis + 1 == table.rank() {
        return Err(format!("cannot gather single elements out of the blocks of {table}"));
    }
    let mut dims = table.shape.0[..axis].to_vec();
    dims.extend_from_slice(&indices.shape.0);
    dims.extend_from_slice(&table.shape.0[axis + 1..]);
    if dims.len() > MAX_RANK {
        return Err(format!("the result has more than {MAX_RANK} axes"));
    }
    let dtype = if table.dtype.is_quantized() { DType::F32 } else { table.dtype };
    Ok(vec![TensorType::with_shape(dtype, Shape(dims))])
}

pub fn eval_splat(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_iota(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_reshape(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_broadcast(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_transpose(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_slice(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_concat(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}

pub fn eval_gather(
    _: &crate::tensor::EvalCtx,
) -> Result<Vec<crate::tensor::Tensor>, crate::tensor::EvalError> {
    Err(crate::tensor::EvalError(String::new()))
}
