//! Reading and adding along an axis by indices.

use super::InferCtx;
use super::shape::{axis_of, eval_axis};
use crate::dtype::DType;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor, reserve};
use crate::types::{MAX_RANK, Shape, TensorType};

type Types = Result<Vec<TensorType>, String>;

/// The axis and the shape of what is picked: the table's with the axis replaced by the indices'
/// shape.
fn picked(
    ctx: &InferCtx,
    table: &TensorType,
    indices: &TensorType,
) -> Result<(usize, Shape), String> {
    if !matches!(indices.dtype, DType::I32 | DType::I64) {
        return Err(format!("expected i32 or i64 indices, found {indices}"));
    }
    let axis = axis_of(ctx, &table.shape)?;
    let mut dims = table.shape.0[..axis].to_vec();
    dims.extend_from_slice(&indices.shape.0);
    dims.extend_from_slice(&table.shape.0[axis + 1..]);
    if dims.len() > MAX_RANK {
        return Err(format!("the picked part has more than {MAX_RANK} axes"));
    }
    Ok((axis, Shape(dims)))
}

/// The picked shape; f32 out of quantised tables.
pub fn infer_gather(ctx: &InferCtx) -> Types {
    let (table, indices) = (ctx.operands[0], ctx.operands[1]);
    let (axis, shape) = picked(ctx, table, indices)?;
    if table.dtype.is_quantized() && axis + 1 == table.rank() {
        return Err(format!("cannot gather single elements out of the blocks of {table}"));
    }
    let dtype = if table.dtype.is_quantized() { DType::F32 } else { table.dtype };
    Ok(vec![TensorType::with_shape(dtype, shape)])
}

/// The first operand's type; the updates have the shape that `gather` would pick.
pub fn infer_scatter_add(ctx: &InferCtx) -> Types {
    let (x, indices, updates) = (ctx.operands[0], ctx.operands[1], ctx.operands[2]);
    if x.dtype.is_quantized() || x.dtype == DType::Bool {
        return Err(format!("expected a number type, found {x}"));
    }
    let (_, shape) = picked(ctx, x, indices)?;
    let want = TensorType::with_shape(x.dtype, shape);
    if *updates != want {
        return Err(format!("expected updates of {want}, found {updates}"));
    }
    Ok(vec![x.clone()])
}

/// The indices, when all lie within `axis`.
fn checked(table: &Tensor, axis: usize, indices: &Tensor) -> Result<Vec<usize>, EvalError> {
    let length = table.shape()[axis];
    let mut picks = Vec::with_capacity(indices.numel());
    for i in indices.to_i64_vec()? {
        let pick = usize::try_from(i).ok().filter(|&i| i < length);
        picks.push(pick.ok_or_else(|| {
            EvalError(format!("index {i} is out of range for axis {axis} of {}", table.ty()))
        })?);
    }
    Ok(picks)
}

/// Rows (or planes) of the table by index; out of quantised tables as f32.
pub fn eval_gather(ctx: &EvalCtx) -> Evaluated {
    let (table, indices, ty) = (ctx.operands[0], ctx.operands[1], &ctx.results[0]);
    let axis = eval_axis(ctx, table.shape().len())?;
    let length = table.shape()[axis];
    let outer: usize = table.shape()[..axis].iter().product();
    let inner: usize = table.shape()[axis + 1..].iter().product();
    let picks = checked(table, axis, indices)?;
    let size = ty.row_major_bytes().unwrap_or(usize::MAX);
    let mut bytes: Vec<u8> =
        reserve(size).ok_or_else(|| EvalError(format!("no memory for {ty}")))?;
    let block = (table.dtype().block_len(), table.dtype().block_bytes());
    let plane_bytes = inner / block.0 * block.1;
    for o in 0..outer {
        for &i in &picks {
            let at = (o * length + i) * plane_bytes;
            let plane = &table.bytes()[at..at + plane_bytes];
            if table.dtype().is_quantized() {
                let mut row = vec![0f32; inner];
                crate::quant::dequantize(table.dtype(), plane, &mut row)
                    .map_err(|e| EvalError(e.to_string()))?;
                bytes.extend(row.iter().flat_map(|v| v.to_le_bytes()));
            } else {
                bytes.extend_from_slice(plane);
            }
        }
    }
    Ok(vec![Tensor::new(ty.clone(), bytes)?])
}

/// Sums at the places that the indices name: f64 (or wrapping i64) in the order of the updates,
/// rounded once.
pub fn eval_scatter_add(ctx: &EvalCtx) -> Evaluated {
    let (x, indices, updates) = (ctx.operands[0], ctx.operands[1], ctx.operands[2]);
    let ty = &ctx.results[0];
    let axis = eval_axis(ctx, x.shape().len())?;
    let picks = checked(x, axis, indices)?;
    let (length, inner) = (x.shape()[axis], x.shape()[axis + 1..].iter().product::<usize>());
    // The element of x that update number u is added to.
    let place = |u: usize| {
        let (row, column) = (u / inner, u % inner);
        (row / picks.len() * length + picks[row % picks.len()]) * inner + column
    };
    if x.dtype().is_float() {
        let mut sums = x.to_f64_vec()?;
        updates.to_f64_vec()?.iter().enumerate().for_each(|(u, v)| sums[place(u)] += v);
        return Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &sums)?]);
    }
    let mut sums = x.to_i64_vec()?;
    for (u, v) in updates.to_i64_vec()?.iter().enumerate() {
        let sum = &mut sums[place(u)];
        *sum = sum.wrapping_add(*v);
    }
    Ok(vec![Tensor::from_i64(ty.dtype, &ty.shape, &sums)?])
}
