//! Ops that read or add along an axis by indices, random bits, quantising.

use aether_ir::op::random::threefry2x32;
use aether_ir::{DType, Layout, Op, quant};

use super::steps::Rows;
use super::{Count, Lower, Lowered, Site, View};
use crate::kernels::packed::{self, PackedMatrix};
use crate::program::{Loc, RunCtx};
use crate::size::Size;

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    match site.inst.op {
        Op::Gather => gather(lower, site),
        Op::ScatterAdd => scatter_add(lower, site),
        Op::RngBits => Ok(rng_bits(lower, site)),
        Op::Quantize => Ok(quantize(lower, site)),
        _ => Ok(false),
    }
}

/// A list of indices, i32 or i64.
#[derive(Clone, Copy)]
struct Indices {
    loc: Loc,
    wide: bool,
}

impl Indices {
    fn of(v: &View) -> Indices {
        Indices { loc: v.loc, wide: v.ty.dtype == DType::I64 }
    }

    /// Index `i`, when it lies below `limit`; else the run fails.
    ///
    /// # Safety
    /// There are more than `i` indices.
    unsafe fn get(&self, ctx: &RunCtx, i: usize, limit: usize) -> Option<usize> {
        // SAFETY: the caller's promise.
        let index = unsafe {
            if self.wide {
                *ctx.ptr(self.loc).cast::<i64>().add(i)
            } else {
                i64::from(*ctx.ptr(self.loc).cast::<i32>().add(i))
            }
        };
        let found = usize::try_from(index).ok().filter(|&index| index < limit);
        if found.is_none() {
            ctx.fail(|| format!("index {index} is outside 0..{limit}"));
        }
        found
    }
}

fn gather(lower: &mut Lower, site: &Site) -> Lowered {
    let table = &site.inputs[0];
    let axis = table.ty.shape.axis(site.inst.attrs.int("axis", 0)).ok_or("axis out of range")?;
    if table.ty.dtype.is_quantized() || table.ty.layout != Layout::RowMajor {
        return blocks(lower, site, axis);
    }
    let size = table.ty.dtype.block_bytes();
    let outer = table.sizes(0..axis);
    let len = table.dims[axis].clone();
    let inner = table.sizes(axis + 1..table.dims.len());
    let count = site.inputs[1].numel();
    let indices = Indices::of(&site.inputs[1]);
    let (table, out) = (table.loc, site.outputs[0].loc);
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let (count, len) = (count.get(ctx.symbols), len.get(ctx.symbols));
            let bytes = inner.get(ctx.symbols) * size;
            let units = outer.get(ctx.symbols) * count;
            work.chunks(units, (16_384 / bytes.max(16)).max(1), |r| {
                for unit in r {
                    let (o, i) = (unit / count, unit % count);
                    // SAFETY: there are `count` indices; source and target lie within their
                    // tensors, each target is claimed once.
                    unsafe {
                        let Some(at) = indices.get(ctx, i, len) else { return };
                        let from = ctx.ptr(table).add((o * len + at) * bytes);
                        std::ptr::copy_nonoverlapping(from, ctx.ptr(out).add(unit * bytes), bytes);
                    }
                }
            });
        }),
    );
    Ok(true)
}

/// Rows of a quantised or packed matrix, or planes of a stack of quantised ones, to f32.
fn blocks(lower: &mut Lower, site: &Site, axis: usize) -> Lowered {
    let (table, out) = (&site.inputs[0], &site.outputs[0]);
    // Blocks lie along the last axis, so a plane is as good as a long row.
    let cols = match table.sizes(1..table.dims.len()).is_const() {
        Some(cols) if axis == 0 && table.dims.len() > 1 => cols,
        _ if table.ty.layout == Layout::RowMajor => return Ok(false),
        _ => return Err(format!("no kernel gathers from {}", table.ty)),
    };
    let row_count = table.dims[0].clone();
    let (dtype, layout) = (table.ty.dtype, table.ty.layout);
    let row_bytes = dtype.row_bytes(cols).ok_or("rows are no whole blocks")?;
    let out_row = out.ty.dtype.row_bytes(cols).ok_or("rows are no whole blocks")?;
    let indices = Indices::of(&site.inputs[1]);
    let (table, out, count) = (table.loc, out.loc, site.inputs[1].numel());
    let len = Count(vec![Size::Const(cols)]);
    let rows = Rows { count, len, claims: 16 };
    lower.rows(site, rows, move |ctx, at| {
        let rows = row_count.get(ctx.symbols);
        let table_bytes = match layout {
            Layout::RowMajor | Layout::Planes => rows * row_bytes,
            // Some types drop what products do not read: the packer knows the size.
            Layout::R16 => match packed::packed_bytes(dtype, rows, cols) {
                Ok(bytes) => bytes,
                Err(e) => return ctx.fail(|| e.to_string()),
            },
        };
        // SAFETY: there is an index for each row of the result.
        let Some(row) = (unsafe { indices.get(ctx, at.index, rows) }) else { return };
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
            Layout::RowMajor | Layout::Planes => {
                quant::dequantize(dtype, &table[from], values).map_err(|e| e.to_string())
            }
        };
        if let Err(e) = decoded {
            ctx.fail(|| e);
        }
    });
    Ok(true)
}

/// A number that updates are added to in its own type.
trait AddTo: Copy + Send + Sync + 'static {
    fn add_to(self, other: Self) -> Self;
}

macro_rules! add_to {
    ($($t:ident $add:expr;)*) => {$(
        impl AddTo for $t {
            #[inline(always)]
            fn add_to(self, other: Self) -> Self {
                $add(self, other)
            }
        }
    )*};
}

add_to! {
    f32 |a: f32, b| a + b;
    f64 |a: f64, b| a + b;
    i8 i8::wrapping_add;
    i16 i16::wrapping_add;
    i32 i32::wrapping_add;
    i64 i64::wrapping_add;
    u8 u8::wrapping_add;
    u32 u32::wrapping_add;
}

fn scatter_add(lower: &mut Lower, site: &Site) -> Lowered {
    match site.inputs[0].ty.dtype {
        DType::F32 => scatter::<f32>(lower, site),
        DType::F64 => scatter::<f64>(lower, site),
        DType::I8 => scatter::<i8>(lower, site),
        DType::I16 => scatter::<i16>(lower, site),
        DType::I32 => scatter::<i32>(lower, site),
        DType::I64 => scatter::<i64>(lower, site),
        DType::U8 => scatter::<u8>(lower, site),
        DType::U32 => scatter::<u32>(lower, site),
        _ => Ok(false),
    }
}

/// Every claim owns some places along the axis: it copies the operand there and adds, in their
/// order, the updates whose index is one of them.
fn scatter<T: AddTo>(lower: &mut Lower, site: &Site) -> Lowered {
    let x = &site.inputs[0];
    let axis = x.ty.shape.axis(site.inst.attrs.int("axis", 0)).ok_or("axis out of range")?;
    let outer = x.sizes(0..axis);
    let len = x.dims[axis].clone();
    let inner = x.sizes(axis + 1..x.dims.len());
    let count = site.inputs[1].numel();
    let indices = Indices::of(&site.inputs[1]);
    let (x, updates, y) = (x.loc, site.inputs[2].loc, site.outputs[0].loc);
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let (count, len) = (count.get(ctx.symbols), len.get(ctx.symbols));
            let (outer, inner) = (outer.get(ctx.symbols), inner.get(ctx.symbols));
            if len == 0 && count > 0 {
                // No claim would look at the indices.
                return ctx.fail(|| "there is no place to add to".to_owned());
            }
            // Each part reads all indices, so there are no more of them than workers need.
            let parts = work.count.div_ceil(outer.max(1)).clamp(1, len.max(1));
            work.chunks(outer * parts, 1, |r| {
                for unit in r {
                    let (o, part) = (unit / parts, unit % parts);
                    let own = len * part / parts..len * (part + 1) / parts;
                    // SAFETY: places and updates lie within their tensors; each place belongs to
                    // one claim; the result is the operand or apart from it.
                    unsafe {
                        let base = o * len * inner;
                        let x = ctx.ptr(x).cast::<T>().add(base);
                        let y = ctx.ptr(y).cast::<T>().add(base);
                        let at = own.start * inner;
                        std::ptr::copy(x.add(at), y.add(at), own.len() * inner);
                        for i in 0..count {
                            let Some(place) = indices.get(ctx, i, len) else { return };
                            if !own.contains(&place) {
                                continue;
                            }
                            let from = ctx.ptr(updates).cast::<T>().add((o * count + i) * inner);
                            let to = y.add(place * inner);
                            for j in 0..inner {
                                *to.add(j) = (*to.add(j)).add_to(*from.add(j));
                            }
                        }
                    }
                }
            });
        }),
    );
    Ok(true)
}

fn rng_bits(lower: &mut Lower, site: &Site) -> bool {
    let state = site.inputs[0].loc;
    let (bits, next) = (site.outputs[0].loc, site.outputs[1].loc);
    let numel = site.outputs[0].numel();
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let n = numel.get(ctx.symbols);
            let blocks = n.div_ceil(2);
            // SAFETY: the state is four words; the new one is apart from it.
            let [k0, k1, high, low] = unsafe { *ctx.ptr(state).cast::<[u32; 4]>() };
            let counter = u64::from(high) << 32 | u64::from(low);
            if work.is_first() {
                let after = counter.wrapping_add(blocks as u64);
                // SAFETY: as above; one worker writes it.
                unsafe {
                    *ctx.ptr(next).cast::<[u32; 4]>() =
                        [k0, k1, (after >> 32) as u32, after as u32];
                }
            }
            work.chunks(blocks, 2048, |r| {
                for i in r {
                    let at = counter.wrapping_add(i as u64);
                    let block = threefry2x32([k0, k1], [(at >> 32) as u32, at as u32]);
                    // SAFETY: words below `n`, two to a claimed block.
                    unsafe {
                        let to = ctx.ptr(bits).cast::<u32>().add(2 * i);
                        *to = block[0];
                        if 2 * i + 1 < n {
                            *to.add(1) = block[1];
                        }
                    }
                }
            });
        }),
    );
    true
}

fn quantize(lower: &mut Lower, site: &Site) -> bool {
    let (x, y) = (site.inputs[0].loc, site.outputs[0].loc);
    let dtype = site.outputs[0].ty.dtype;
    let (len, size) = (dtype.block_len(), dtype.block_bytes());
    let numel = site.inputs[0].numel();
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            work.chunks(numel.get(ctx.symbols) / len, 4096 / len, |r| {
                // SAFETY: whole blocks of operand and result, claimed once.
                let (values, blocks) = unsafe {
                    let values = ctx.ptr(x).cast::<f32>().add(r.start * len);
                    let blocks = ctx.ptr(y).add(r.start * size);
                    (
                        std::slice::from_raw_parts(values, r.len() * len),
                        std::slice::from_raw_parts_mut(blocks, r.len() * size),
                    )
                };
                if let Err(e) = quant::quantize(dtype, values, blocks) {
                    ctx.fail(|| e.to_string());
                }
            });
        }),
    );
    true
}
