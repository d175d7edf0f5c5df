//! Elementwise ops on f32, and casts between f32 and the other types.

use aether_ir::{DType, Layout, Op};

use super::{Lower, Lowered, Site, View};
use crate::kernels::elementwise::{self as kernel, Binary, Unary};

/// Elements that one claim covers: large enough that claiming costs nothing beside the work.
const CHUNK: usize = 8192;

pub(super) fn handles(op: Op) -> bool {
    unary(op).is_some() || binary(op).is_some() || op == Op::Cast
}

fn unary(op: Op) -> Option<Unary> {
    Some(match op {
        Op::Neg => Unary::Neg,
        Op::Abs => Unary::Abs,
        Op::Relu => Unary::Relu,
        Op::Sqrt => Unary::Sqrt,
        Op::Rsqrt => Unary::Rsqrt,
        Op::Exp => Unary::Exp,
        Op::Log => Unary::Log,
        Op::Sin => Unary::Sin,
        Op::Cos => Unary::Cos,
        Op::Tanh => Unary::Tanh,
        Op::Sigmoid => Unary::Sigmoid,
        Op::Silu => Unary::Silu,
        Op::Gelu => Unary::GeluErf,
        Op::GeluTanh => Unary::GeluTanh,
        Op::Erf => Unary::Erf,
        Op::Floor => Unary::Floor,
        Op::Ceil => Unary::Ceil,
        Op::Round => Unary::Round,
        _ => return None,
    })
}

fn binary(op: Op) -> Option<Binary> {
    Some(match op {
        Op::Add => Binary::Add,
        Op::Sub => Binary::Sub,
        Op::Mul => Binary::Mul,
        Op::Div => Binary::Div,
        Op::Max => Binary::Max,
        Op::Min => Binary::Min,
        _ => return None,
    })
}

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    let out = &site.outputs[0];
    if site.inputs.iter().any(|v| v.ty.layout != Layout::RowMajor) {
        return Ok(false);
    }
    if site.inst.op == Op::Cast {
        return cast(lower, site);
    }
    if site.inputs.iter().any(|v| v.ty.dtype != DType::F32) {
        return Ok(false);
    }
    let isa = lower.opts.isa;
    let numel = out.numel();
    if let Some(op) = unary(site.inst.op) {
        let (x, y) = (site.inputs[0].loc, out.loc);
        lower.emit(
            &site.label,
            site.reads(),
            site.writes(),
            Box::new(move |ctx, work| {
                work.chunks(numel.get(ctx.symbols), CHUNK, |r| {
                    // SAFETY: operand and result have `numel` elements; claims are disjoint; the
                    // result is the operand itself or apart from it.
                    unsafe {
                        let x = ctx.ptr(x).cast::<f32>().add(r.start);
                        let y = ctx.ptr(y).cast::<f32>().add(r.start);
                        kernel::unary_raw(isa, op, x, y, r.len());
                    }
                });
            }),
        );
        return Ok(true);
    }
    let Some(op) = binary(site.inst.op) else { return Ok(false) };
    let (a, b) = (&site.inputs[0], &site.inputs[1]);
    let full = |v: &View| v.ty.shape == out.ty.shape;
    let (a_loc, b_loc, y) = (a.loc, b.loc, out.loc);
    if full(a) && full(b) {
        lower.emit(
            &site.label,
            site.reads(),
            site.writes(),
            Box::new(move |ctx, work| {
                work.chunks(numel.get(ctx.symbols), CHUNK, |r| {
                    // SAFETY: as for unary ops.
                    unsafe {
                        let at = |loc| ctx.ptr(loc).cast::<f32>().add(r.start);
                        kernel::binary_raw(isa, op, at(a_loc), at(b_loc), at(y), r.len());
                    }
                });
            }),
        );
        return Ok(true);
    }
    // One operand full, the other a trailing part of its shape (a row, or a scalar).
    let suffix = |v: &View| {
        let dims = &v.ty.shape.0;
        let skip = dims.iter().take_while(|d| d.is(1)).count();
        out.ty.shape.0.ends_with(&dims[skip..]) && v.rows().is_const().is_some()
    };
    let (row, row_is_left) = match (full(a) && suffix(b), full(b) && suffix(a)) {
        (true, _) => (b, false),
        (_, true) => (a, true),
        _ => return Ok(false),
    };
    let row_len = row.numel();
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let len = row_len.get(ctx.symbols).max(1);
            let rows = numel.get(ctx.symbols) / len;
            let at = |loc, i: usize| ctx.ptr(loc).cast::<f32>().wrapping_add(i);
            if len == 1 {
                work.chunks(rows, CHUNK, |r| {
                    // SAFETY: as above; the scalar is one element.
                    unsafe {
                        let (y, n) = (at(y, r.start), r.len());
                        if row_is_left {
                            kernel::binary_left_raw(
                                isa,
                                op,
                                *at(a_loc, 0),
                                at(b_loc, r.start),
                                y,
                                n,
                            );
                        } else {
                            kernel::binary_right_raw(
                                isa,
                                op,
                                at(a_loc, r.start),
                                *at(b_loc, 0),
                                y,
                                n,
                            );
                        }
                    }
                });
                return;
            }
            work.chunks(rows, (CHUNK / len).max(1), |r| {
                for i in r {
                    let (ia, ib) = if row_is_left { (0, i * len) } else { (i * len, 0) };
                    // SAFETY: as above, row by row.
                    unsafe {
                        let y = at(y, i * len);
                        kernel::binary_raw(isa, op, at(a_loc, ia), at(b_loc, ib), y, len);
                    }
                }
            });
        }),
    );
    Ok(true)
}

fn cast(lower: &mut Lower, site: &Site) -> Lowered {
    use crate::kernels::convert;
    let (x, y) = (&site.inputs[0], &site.outputs[0]);
    let isa = lower.opts.isa;
    let (from, to) = (x.ty.dtype, y.ty.dtype);
    let handled = matches!(
        (from, to),
        (DType::F16 | DType::Bf16 | DType::F32, DType::F32) | (DType::F32, DType::F16)
    );
    if !handled {
        return Ok(false);
    }
    let (numel, x, y) = (x.numel(), x.loc, y.loc);
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            work.chunks(numel.get(ctx.symbols), CHUNK, |r| {
                let (x, y) = (ctx.ptr(x), ctx.ptr(y));
                let n = r.len();
                // SAFETY: both have `numel` elements of their types; claims are disjoint, and
                // values of different types never share storage.
                unsafe {
                    let wide = y.cast::<f32>().wrapping_add(r.start);
                    match (from, to) {
                        (DType::F32, DType::F16) => {
                            let out = y.cast::<half::f16>().add(r.start);
                            convert::f32_to_f16_raw(isa, x.cast::<f32>().add(r.start), out, n);
                        }
                        (DType::F16, _) => {
                            convert::widen_raw::<half::f16>(
                                isa,
                                x.cast::<half::f16>().add(r.start),
                                wide,
                                n,
                            );
                        }
                        (DType::Bf16, _) => {
                            convert::widen_raw::<half::bf16>(
                                isa,
                                x.cast::<half::bf16>().add(r.start),
                                wide,
                                n,
                            );
                        }
                        _ => std::ptr::copy(x.cast::<f32>().add(r.start), wide, n),
                    }
                }
            });
        }),
    );
    Ok(true)
}
