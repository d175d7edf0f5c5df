//! Moving elements, and reductions over the last axis.

use aether_ir::{DType, Layout, Op, quant};

use super::steps::{Row, Rows};
use super::{Count, Lower, Lowered, Site};
use crate::kernels::packed::{self, PackedMatrix};
use crate::kernels::softmax;
use crate::size::Size;

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    match site.inst.op {
        // A reshape that the plan could not make an alias.
        Op::Reshape => {
            lower.copy_value(&site.label, &site.inputs[0], site.outputs[0].loc);
            Ok(true)
        }
        Op::Gather => gather(lower, site),
        Op::Softmax | Op::LogSoftmax => rowwise_softmax(lower, site),
        Op::Argmax => argmax(lower, site),
        Op::TopK => top_k(lower, site),
        _ => Ok(false),
    }
}

/// Rows of a matrix, from any type and layout to f32 or the same type.
fn gather(lower: &mut Lower, site: &Site) -> Lowered {
    let (table, indices, out) = (&site.inputs[0], &site.inputs[1], &site.outputs[0]);
    let axis = table.ty.shape.axis(site.inst.attrs.int("axis", 0));
    let cols = match (table.ty.rank(), table.ty.shape.0.last().and_then(|d| d.as_const())) {
        (2, Some(cols)) if axis == Some(0) && indices.ty.dtype == DType::I32 => cols as usize,
        _ if table.ty.layout == Layout::RowMajor => return Ok(false),
        _ => return Err(format!("no kernel gathers from {}", table.ty)),
    };
    let row_count = table.dims[0].clone();
    let (dtype, layout) = (table.ty.dtype, table.ty.layout);
    let row_bytes = dtype.row_bytes(cols).ok_or("rows are no whole blocks")?;
    let out_row = out.ty.dtype.row_bytes(cols).ok_or("rows are no whole blocks")?;
    let (table, out, count, indices) = (table.loc, out.loc, indices.numel(), indices.loc);
    let len = Count(vec![Size::Const(cols)]);
    let rows = Rows { count, len, claims: 16 };
    lower.rows(site, rows, move |ctx, at| {
        let rows = row_count.get(ctx.symbols);
        let table_bytes = match layout {
            Layout::RowMajor => rows * row_bytes,
            // Some types drop what products do not read: the packer knows the size.
            Layout::R16 => match packed::packed_bytes(dtype, rows, cols) {
                Ok(bytes) => bytes,
                Err(e) => return ctx.fail(|| e.to_string()),
            },
        };
        // SAFETY: there is an index for each row of the result.
        let index = unsafe { *ctx.ptr(indices).cast::<i32>().add(at.index) };
        let Some(row) = usize::try_from(index).ok().filter(|&row| row < rows) else {
            return ctx.fail(|| format!("index {index} is outside 0..{rows}"));
        };
        // SAFETY: the table has `table_bytes`.
        let table = unsafe { std::slice::from_raw_parts(ctx.ptr(table), table_bytes) };
        let from = row * row_bytes..(row + 1) * row_bytes;
        if !dtype.is_quantized() {
            // SAFETY: each row of the result has `out_row` bytes.
            let out = unsafe {
                std::slice::from_raw_parts_mut(ctx.ptr(out).add(at.index * out_row), out_row)
            };
            out.copy_from_slice(&table[from]);
            return;
        }
        // SAFETY: quantised tables give f32 rows of `cols` elements, and results are aligned.
        let values = unsafe { std::slice::from_raw_parts_mut(at.at::<f32>(ctx, out), cols) };
        let decoded = match layout {
            Layout::R16 => PackedMatrix::new(dtype, rows, cols, table)
                .map(|matrix| matrix.dequantize_row(row, values))
                .map_err(|e| e.to_string()),
            Layout::RowMajor => {
                quant::dequantize(dtype, &table[from], values).map_err(|e| e.to_string())
            }
        };
        if let Err(e) = decoded {
            ctx.fail(|| e);
        }
    });
    Ok(true)
}

/// Whether the op's axis is the last one of a row-major f32 operand.
fn last_axis_f32(site: &Site) -> bool {
    let x = &site.inputs[0].ty;
    let axis = x.shape.axis(site.inst.attrs.int("axis", -1));
    x.dtype == DType::F32 && x.rank() > 0 && axis == Some(x.rank() - 1)
}

fn rowwise_softmax(lower: &mut Lower, site: &Site) -> Lowered {
    if !last_axis_f32(site) {
        return Ok(false);
    }
    let (x, y) = (site.inputs[0].loc, site.outputs[0].loc);
    let log = site.inst.op == Op::LogSoftmax;
    let isa = lower.opts.isa;
    lower.rows(site, Rows::of(&site.inputs[0]), move |ctx, row| {
        // SAFETY: both have these rows; the result is the operand or apart from it.
        let y = unsafe {
            let to = row.at::<f32>(ctx, y);
            std::ptr::copy(row.at::<f32>(ctx, x), to, row.len);
            std::slice::from_raw_parts_mut(to, row.len)
        };
        if log {
            softmax::log_softmax(isa, y, 1.0, None);
        } else {
            softmax::softmax(isa, y, 1.0, None);
        }
    });
    Ok(true)
}

fn argmax(lower: &mut Lower, site: &Site) -> Lowered {
    if !last_axis_f32(site) {
        return Ok(false);
    }
    let (x, y) = (site.inputs[0].loc, site.outputs[0].loc);
    let isa = lower.opts.isa;
    lower.rows(site, Rows::of(&site.inputs[0]), move |ctx, row| {
        // SAFETY: the operand has these rows.
        let x = unsafe { std::slice::from_raw_parts(row.at::<f32>(ctx, x), row.len) };
        // NaN counts as greatest, and kernels pass over it.
        let best = x.iter().position(|v| v.is_nan()).or_else(|| softmax::argmax(isa, x));
        // SAFETY: the result has one element for each row.
        unsafe { *ctx.ptr(y).cast::<i32>().add(row.index) = best.unwrap_or(0) as i32 };
    });
    Ok(true)
}

fn top_k(lower: &mut Lower, site: &Site) -> Lowered {
    if site.inputs[0].ty.dtype != DType::F32 {
        return Ok(false);
    }
    let k = usize::try_from(site.inst.attrs.int("k", 0)).unwrap_or(0);
    let (x, values, indices) = (site.inputs[0].loc, site.outputs[0].loc, site.outputs[1].loc);
    let isa = lower.opts.isa;
    lower.rows(site, Rows::of(&site.inputs[0]), move |ctx, row| {
        let best = Row { len: k, ..row };
        // SAFETY: the operand has these rows, the results k elements for each.
        let (x, picked, values) = unsafe {
            (
                std::slice::from_raw_parts(row.at::<f32>(ctx, x), row.len),
                std::slice::from_raw_parts_mut(best.at::<u32>(ctx, indices), k),
                std::slice::from_raw_parts_mut(best.at::<f32>(ctx, values), k),
            )
        };
        if softmax::top_k(isa, x, picked) < k {
            ctx.fail(|| format!("fewer than {k} numbers to choose from"));
            return;
        }
        for (value, &p) in values.iter_mut().zip(picked.iter()) {
            *value = x[p as usize];
        }
    });
    Ok(true)
}
