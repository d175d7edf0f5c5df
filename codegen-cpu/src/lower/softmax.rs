//! Softmax and its logarithm along any axis, in f32.

use aether_ir::{DType, Op};

use super::steps::Rows;
use super::{Lower, Lowered, Site};
use crate::kernels::softmax;

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    let x = &site.inputs[0];
    let axis = x.ty.shape.axis(site.inst.attrs.int("axis", -1)).ok_or("axis out of range")?;
    if x.ty.dtype != DType::F32 {
        return Ok(false);
    }
    let (outer, len) = (x.sizes(0..axis), x.sizes(axis..axis + 1));
    let inner = x.sizes(axis + 1..x.dims.len());
    let (x, y) = (x.loc, site.outputs[0].loc);
    let log = site.inst.op == Op::LogSoftmax;
    let isa = lower.opts.isa;
    if inner.is_const() != Some(1) {
        lower.emit(
            &site.label,
            site.reads(),
            site.writes(),
            Box::new(move |ctx, work| {
                let (len, inner) = (len.get(ctx.symbols), inner.get(ctx.symbols));
                let blocks = inner.div_ceil(softmax::COLUMNS);
                work.split(outer.get(ctx.symbols) * blocks, 4, |r| {
                    for unit in r {
                        let (row, first) = (unit / blocks, unit % blocks * softmax::COLUMNS);
                        let columns = (inner - first).min(softmax::COLUMNS);
                        let at = row * len * inner + first;
                        // SAFETY: the block lies within both tensors, which are the same or
                        // apart; each is claimed once.
                        unsafe {
                            let from = ctx.ptr(x).cast::<f32>().add(at);
                            let to = ctx.ptr(y).cast::<f32>().add(at);
                            softmax::columns(isa, from, to, (len, inner, columns), log);
                        }
                    }
                });
            }),
        );
        return Ok(true);
    }
    let rows = Rows { count: outer, len, claims: 4 };
    lower.rows(site, rows, move |ctx, row| {
        // SAFETY: both have these rows; the result is the operand or apart from it.
        let y = unsafe {
            let to = row.at::<f32>(ctx, y);
            std::ptr::copy(row.at::<f32>(ctx, x), to, row.len);
            std::slice::from_raw_parts_mut(to, row.len)
        };
        // For attention, whose kernel this is, such a row is masked and gives zeros.
        if y.iter().all(|v| *v == f32::NEG_INFINITY) {
            y.fill(f32::NAN);
        } else if log {
            softmax::log_softmax(isa, y, 1.0, None);
        } else {
            softmax::softmax(isa, y, 1.0, None);
        }
    });
    Ok(true)
}
