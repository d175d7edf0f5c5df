//! Moving elements, and reductions over the last axis.

use aether_ir::{DType, Layout, Op, quant};

use super::{Lower, Lowered, Site};
use crate::kernels::packed::{self, PackedMatrix};
use crate::kernels::softmax;

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    match site.inst.op {
        Op::Reshape => {
            copy(lower, site);
            Ok(true)
        }
        Op::Gather => gather(lower, site),
        Op::Softmax | Op::LogSoftmax => rowwise_softmax(lower, site),
        Op::Argmax => argmax(lower, site),
        Op::TopK => top_k(lower, site),
        _ => Ok(false),
    }
}

/// A reshape that the plan could not make an alias.
fn copy(lower: &mut Lower, site: &Site) {
    let (x, y) = (site.inputs[0].loc, site.outputs[0].loc);
    let numel = site.outputs[0].numel();
    let size = site.outputs[0].ty.dtype.block_bytes();
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            work.chunks(numel.get(ctx.symbols) * size, 1 << 16, |r| {
                // SAFETY: both have these bytes, apart from each other or the same.
                unsafe { std::ptr::copy(ctx.ptr(x).add(r.start), ctx.ptr(y).add(r.start), r.len()) }
            });
        }),
    );
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
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let rows = row_count.get(ctx.symbols);
            let table_bytes = match layout {
                Layout::RowMajor => rows * row_bytes,
                // Some types drop what products do not read: the packer knows the size.
                Layout::R16 => match packed::packed_bytes(dtype, rows, cols) {
                    Ok(bytes) => bytes,
                    Err(e) => return ctx.fail(|| e.to_string()),
                },
            };
            work.chunks(count.get(ctx.symbols), 1, |r| {
                for i in r {
                    // SAFETY: there are `count` indices.
                    let row = unsafe { *ctx.ptr(indices).cast::<i32>().add(i) };
                    let Some(row) = usize::try_from(row).ok().filter(|&row| row < rows) else {
                        ctx.fail(|| format!("index {row} is outside 0..{rows}"));
                        return;
                    };
                    // SAFETY: the result has `count` rows of `out_row` bytes, each written by
                    // one claim; the table has `table_bytes`.
                    let (table, out) = unsafe {
                        (
                            std::slice::from_raw_parts(ctx.ptr(table), table_bytes),
                            std::slice::from_raw_parts_mut(ctx.ptr(out).add(i * out_row), out_row),
                        )
                    };
                    if !dtype.is_quantized() {
                        out.copy_from_slice(&table[row * row_bytes..][..row_bytes]);
                        continue;
                    }
                    // SAFETY: quantised tables give f32 rows of `cols` elements, and results
                    // are aligned.
                    let values = unsafe {
                        std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<f32>(), cols)
                    };
                    if layout == Layout::R16 {
                        match PackedMatrix::new(dtype, rows, cols, table) {
                            Ok(matrix) => matrix.dequantize_row(row, values),
                            Err(e) => ctx.fail(|| e.to_string()),
                        }
                    } else if let Err(e) =
                        quant::dequantize(dtype, &table[row * row_bytes..][..row_bytes], values)
                    {
                        ctx.fail(|| e.to_string());
                    }
                }
            });
        }),
    );
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
    let x = &site.inputs[0];
    let (rows, len) = (x.rows(), x.sizes(x.dims.len() - 1..x.dims.len()));
    let (x, y) = (x.loc, site.outputs[0].loc);
    let log = site.inst.op == Op::LogSoftmax;
    let isa = lower.opts.isa;
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let len = len.get(ctx.symbols);
            work.split(rows.get(ctx.symbols), 4, |r| {
                for i in r {
                    // SAFETY: both have `rows` rows; the result is the operand or apart from it.
                    let row = unsafe {
                        let from = ctx.ptr(x).cast::<f32>().add(i * len);
                        let to = ctx.ptr(y).cast::<f32>().add(i * len);
                        std::ptr::copy(from, to, len);
                        std::slice::from_raw_parts_mut(to, len)
                    };
                    if log {
                        softmax::log_softmax(isa, row, 1.0, None);
                    } else {
                        softmax::softmax(isa, row, 1.0, None);
                    }
                }
            });
        }),
    );
    Ok(true)
}

fn argmax(lower: &mut Lower, site: &Site) -> Lowered {
    if !last_axis_f32(site) {
        return Ok(false);
    }
    let x = &site.inputs[0];
    let (rows, len) = (x.rows(), x.sizes(x.dims.len() - 1..x.dims.len()));
    let (x, y) = (x.loc, site.outputs[0].loc);
    let isa = lower.opts.isa;
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let len = len.get(ctx.symbols);
            work.chunks(rows.get(ctx.symbols), 1, |r| {
                for i in r {
                    // SAFETY: the operand has `rows` rows, the result one element for each.
                    unsafe {
                        let row =
                            std::slice::from_raw_parts(ctx.ptr(x).cast::<f32>().add(i * len), len);
                        // NaN counts as greatest, and kernels pass over it.
                        let best = row
                            .iter()
                            .position(|v| v.is_nan())
                            .or_else(|| softmax::argmax(isa, row))
                            .unwrap_or(0);
                        *ctx.ptr(y).cast::<i32>().add(i) = best as i32;
                    }
                }
            });
        }),
    );
    Ok(true)
}

fn top_k(lower: &mut Lower, site: &Site) -> Lowered {
    let x = &site.inputs[0];
    if x.ty.dtype != DType::F32 {
        return Ok(false);
    }
    let k = usize::try_from(site.inst.attrs.int("k", 0)).unwrap_or(0);
    let (rows, len) = (x.rows(), x.sizes(x.dims.len() - 1..x.dims.len()));
    let (x, values, indices) = (x.loc, site.outputs[0].loc, site.outputs[1].loc);
    let isa = lower.opts.isa;
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let len = len.get(ctx.symbols);
            work.chunks(rows.get(ctx.symbols), 1, |r| {
                for i in r {
                    // SAFETY: the operand has `rows` rows, the results k elements for each.
                    unsafe {
                        let row =
                            std::slice::from_raw_parts(ctx.ptr(x).cast::<f32>().add(i * len), len);
                        let at = ctx.ptr(indices).cast::<u32>().add(i * k);
                        let picked = std::slice::from_raw_parts_mut(at, k);
                        if softmax::top_k(isa, row, picked) < k {
                            ctx.fail(|| format!("fewer than {k} numbers to choose from"));
                            return;
                        }
                        for (j, &p) in picked.iter().enumerate() {
                            *ctx.ptr(values).cast::<f32>().add(i * k + j) = row[p as usize];
                        }
                    }
                }
            });
        }),
    );
    Ok(true)
}
