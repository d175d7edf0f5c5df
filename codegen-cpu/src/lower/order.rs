//! Sorting, the greatest elements, and running sums: what goes along one axis lane by lane.

use aether_ir::{DType, Inst, Op, Symbol, SymbolRange, TensorType};
use half::{bf16, f16};
use indexmap::IndexMap;

use super::{Lower, Lowered, Site, View, max_count};
use crate::kernels::order::{Keyed, Lane};
use crate::kernels::scan::{self, Accumulate};
use crate::kernels::softmax;
use crate::program::Loc;

/// One element of the list that a worker sorts.
const ENTRY: usize = size_of::<(u64, u32)>();

/// Scratch bytes of `sort` and `top_k`, for the planner: a lane of keys for each worker.
pub(crate) fn scratch_bytes(
    inst: &Inst,
    x: &TensorType,
    symbols: &IndexMap<Symbol, SymbolRange>,
    threads: usize,
) -> u64 {
    let axis = if inst.op == Op::TopK { -1 } else { inst.attrs.int("axis", 0) };
    let len = x.shape.axis(axis).map_or(0, |i| max_count(&x.shape.0[i..=i], symbols));
    // An empty axis has its room too: scratch of no bytes is none.
    len.max(1).saturating_mul(ENTRY).next_multiple_of(64).saturating_mul(threads) as u64
}

/// The axes before, along and behind an op's axis.
struct Lanes {
    outer: super::Count,
    len: super::Count,
    inner: super::Count,
}

impl Lanes {
    fn of(x: &View, axis: i64) -> Result<Lanes, String> {
        let axis = x.ty.shape.axis(axis).ok_or("the axis is out of range")?;
        Ok(Lanes {
            outer: x.sizes(0..axis),
            len: x.sizes(axis..axis + 1),
            inner: x.sizes(axis + 1..x.dims.len()),
        })
    }
}

macro_rules! by_type {
    ($dtype:expr, $f:ident($($arg:expr),*)) => {
        match $dtype {
            DType::F32 => $f::<f32>($($arg),*),
            DType::F64 => $f::<f64>($($arg),*),
            DType::F16 => $f::<f16>($($arg),*),
            DType::Bf16 => $f::<bf16>($($arg),*),
            DType::I8 => $f::<i8>($($arg),*),
            DType::I16 => $f::<i16>($($arg),*),
            DType::I32 => $f::<i32>($($arg),*),
            DType::I64 => $f::<i64>($($arg),*),
            DType::U8 => $f::<u8>($($arg),*),
            DType::U32 => $f::<u32>($($arg),*),
            _ => Ok(false),
        }
    };
}

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    let dtype = site.inputs[0].ty.dtype;
    match site.inst.op {
        Op::Argmax => by_type!(dtype, argmax(lower, site)),
        Op::Sort | Op::TopK => by_type!(dtype, sort(lower, site)),
        Op::Cumsum => by_type!(dtype, cumsum(lower, site)),
        _ => Ok(false),
    }
}

/// Whether lanes are rows of f32, for which there are vector kernels.
fn f32_rows(site: &Site, axis: i64) -> bool {
    let x = &site.inputs[0].ty;
    x.dtype == DType::F32 && x.shape.axis(axis) == x.rank().checked_sub(1)
}

fn argmax<T: Keyed>(lower: &mut Lower, site: &Site) -> Lowered {
    let axis = site.inst.attrs.int("axis", 0);
    let Lanes { outer, len, inner } = Lanes::of(&site.inputs[0], axis)?;
    let (x, y) = (site.inputs[0].loc, site.outputs[0].loc);
    let rows = f32_rows(site, axis);
    let isa = lower.opts.isa;
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let (len, inner) = (len.get(ctx.symbols), inner.get(ctx.symbols));
            if len == 0 {
                return ctx.fail(|| "the axis is empty".to_owned());
            }
            let lanes = outer.get(ctx.symbols) * inner;
            work.chunks(lanes, (4096 / len).max(1), |r| {
                for i in r {
                    // SAFETY: the operand has `lanes` lanes, the result one element for each.
                    unsafe {
                        let first = i / inner * len * inner + i % inner;
                        let first = ctx.ptr(x).cast::<T>().add(first).cast_const();
                        let row = || std::slice::from_raw_parts(first.cast::<f32>(), len);
                        // NaN counts as greatest, and the vector kernel passes over it.
                        let best = if rows && !row().iter().any(|v| v.is_nan()) {
                            softmax::argmax(isa, row())
                        } else {
                            Lane { first, len, step: inner }.argmax()
                        };
                        *ctx.ptr(y).cast::<i32>().add(i) = best.unwrap_or(0) as i32;
                    }
                }
            });
        }),
    );
    Ok(true)
}

/// `sort`, and `top_k` as the head of it in falling order.
fn sort<T: Keyed>(lower: &mut Lower, site: &Site) -> Lowered {
    let top = site.inst.op == Op::TopK;
    let axis = if top { -1 } else { site.inst.attrs.int("axis", 0) };
    let k = usize::try_from(site.inst.attrs.int("k", 0)).unwrap_or(0);
    let descending = top || site.inst.attrs.bool("descending", false);
    let x = &site.inputs[0];
    let symbols = &lower.module.symbols;
    let threads = lower.opts.threads;
    let bytes = scratch_bytes(site.inst, &x.ty, symbols, threads) as usize;
    let scratch = site.scratch(bytes)?;
    let per_worker = bytes / threads;
    let Lanes { outer, len, inner } = Lanes::of(x, axis)?;
    let (x, values, indices): (Loc, Loc, Loc) = (x.loc, site.outputs[0].loc, site.outputs[1].loc);
    let rows = f32_rows(site, axis);
    let isa = lower.opts.isa;
    lower.emit(
        &site.label,
        site.reads(),
        site.writes().into_iter().chain([scratch.range]),
        Box::new(move |ctx, work| {
            let (len, inner) = (len.get(ctx.symbols), inner.get(ctx.symbols));
            let taken = if top { k } else { len };
            if taken > len {
                return ctx.fail(|| format!("k = {k} is more than the {len} elements of a row"));
            }
            let lanes = outer.get(ctx.symbols) * inner;
            // SAFETY: the scratch has room for a lane of entries for each worker; zeros are
            // entries.
            let order = unsafe {
                let own = ctx.ptr(scratch.loc).add(work.index * per_worker);
                std::slice::from_raw_parts_mut(own.cast::<(u64, u32)>(), len)
            };
            work.chunks(lanes, (4096 / len.max(1)).max(1), |r| {
                for i in r {
                    // SAFETY: the operand has `lanes` lanes of `len`, the results of `taken`;
                    // each is claimed once.
                    unsafe {
                        let at = |len: usize| i / inner * len * inner + i % inner;
                        let first = ctx.ptr(x).cast::<T>().add(at(len)).cast_const();
                        let values = ctx.ptr(values).cast::<T>().add(at(taken));
                        let indices = ctx.ptr(indices).cast::<i32>().add(at(taken));
                        if top && rows {
                            let row = std::slice::from_raw_parts(first.cast::<f32>(), len);
                            let picked =
                                std::slice::from_raw_parts_mut(indices.cast::<u32>(), taken);
                            // The vector kernel passes over NaN, which comes first here.
                            if !row.iter().any(|v| v.is_nan())
                                && softmax::top_k(isa, row, picked) == taken
                            {
                                for (j, &p) in picked.iter().enumerate() {
                                    *values.add(j) = *first.add(p as usize);
                                }
                                continue;
                            }
                        }
                        Lane { first, len, step: inner }.sort(descending, taken, order);
                        for (j, entry) in order[..taken].iter().enumerate() {
                            *values.add(j * inner) = *first.add(entry.1 as usize * inner);
                            *indices.add(j * inner) = entry.1 as i32;
                        }
                    }
                }
            });
        }),
    );
    Ok(true)
}

fn cumsum<T: Accumulate>(lower: &mut Lower, site: &Site) -> Lowered {
    let Lanes { outer, len, inner } = Lanes::of(&site.inputs[0], site.inst.attrs.int("axis", 0))?;
    let exclusive = site.inst.attrs.bool("exclusive", false);
    let reverse = site.inst.attrs.bool("reverse", false);
    let (x, y) = (site.inputs[0].loc, site.outputs[0].loc);
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let (len, inner) = (len.get(ctx.symbols), inner.get(ctx.symbols));
            let blocks = inner.div_ceil(scan::COLUMNS);
            let units = outer.get(ctx.symbols) * blocks;
            let each = len * inner.clamp(1, scan::COLUMNS);
            work.chunks(units, (8192 / each.max(1)).max(1), |r| {
                for unit in r {
                    let (row, first) = (unit / blocks, unit % blocks * scan::COLUMNS);
                    let columns = (inner - first).min(scan::COLUMNS);
                    let at = row * len * inner + first;
                    // SAFETY: the block lies within operand and result, which are the same or
                    // apart; each is claimed once.
                    unsafe {
                        let (x, y) =
                            (ctx.ptr(x).cast::<T>().add(at), ctx.ptr(y).cast::<T>().add(at));
                        scan::cumsum(x, y, (len, inner, columns), exclusive, reverse);
                    }
                }
            });
        }),
    );
    Ok(true)
}
