//! Pooling: windows over one or two trailing axes.

use aether_ir::op::window::Window;
use aether_ir::{DType, Op};
use half::{bf16, f16};

use super::{Lower, Lowered, Site};
use crate::kernels::order::Keyed;
use crate::kernels::scan::Accumulate;
use crate::kernels::window::{Pool, max_row, sum_row};

/// A window that holds each element alone.
const ALONE: Window = Window { size: 1, stride: 1, lo: 0, hi: 0, dilation: 1, lhs_dilation: 1 };

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    macro_rules! by_type {
        ($f:ident) => {
            match site.inputs[0].ty.dtype {
                DType::F32 => $f::<f32>(lower, site),
                DType::F64 => $f::<f64>(lower, site),
                DType::F16 => $f::<f16>(lower, site),
                DType::Bf16 => $f::<bf16>(lower, site),
                DType::I8 => $f::<i8>(lower, site),
                DType::I16 => $f::<i16>(lower, site),
                DType::I32 => $f::<i32>(lower, site),
                DType::I64 => $f::<i64>(lower, site),
                DType::U8 => $f::<u8>(lower, site),
                DType::U32 => $f::<u32>(lower, site),
                _ => Ok(false),
            }
        };
    }
    match site.inst.op {
        Op::WindowSum => by_type!(sum),
        _ => by_type!(max),
    }
}

/// The number of planes and the pool over each, for a run; `None` for more than two axes.
type Prepared = Option<Box<dyn Fn(&[usize]) -> (usize, Pool) + Send + Sync>>;

fn prepare(site: &Site) -> Result<Prepared, String> {
    let (x, y) = (&site.inputs[0], &site.outputs[0]);
    let sizes = site.inst.attrs.ints("window").unwrap_or_default();
    let windows = Window::of(&site.inst.attrs, sizes)?;
    let (rows, columns) = match windows[..] {
        [columns] => (ALONE, columns),
        [rows, columns] => (rows, columns),
        _ => return Ok(None),
    };
    let axes = windows.len();
    let outer = x.sizes(0..x.dims.len() - axes);
    let of = move |dims: &[crate::size::Size], symbols: &[usize]| match &dims[dims.len() - axes..] {
        [n] => (1, n.get(symbols)),
        [m, n, ..] => (m.get(symbols), n.get(symbols)),
        [] => (1, 1),
    };
    let (from, to) = (x.dims.clone(), y.dims.clone());
    Ok(Some(Box::new(move |symbols| {
        let pool = Pool { plane: of(&from, symbols), out: of(&to, symbols), rows, columns };
        (outer.get(symbols), pool)
    })))
}

/// Rows of the result that one claim covers.
fn rows_per_claim(p: &Pool) -> usize {
    let each = p.out.1 * (p.rows.size.min(64) * p.columns.size.min(64)) as usize;
    (8192 / each.max(1)).max(1)
}

fn sum<T: Accumulate>(lower: &mut Lower, site: &Site) -> Lowered {
    let Some(prepared) = prepare(site)? else { return Ok(false) };
    let (x, y) = (site.inputs[0].loc, site.outputs[0].loc);
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let (planes, p) = prepared(ctx.symbols);
            work.chunks(planes * p.out.0, rows_per_claim(&p), |r| {
                for unit in r {
                    let (plane, row) = (unit / p.out.0, unit % p.out.0);
                    // SAFETY: plane and row lie within operand and result; rows are claimed once.
                    unsafe {
                        let x = ctx.ptr(x).cast::<T>().add(plane * p.plane.0 * p.plane.1);
                        sum_row(&p, x, row, ctx.ptr(y).cast::<T>().add(unit * p.out.1));
                    }
                }
            });
        }),
    );
    Ok(true)
}

fn max<T: Keyed>(lower: &mut Lower, site: &Site) -> Lowered {
    let Some(prepared) = prepare(site)? else { return Ok(false) };
    let (x, y, places) = (site.inputs[0].loc, site.outputs[0].loc, site.outputs[1].loc);
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            let (planes, p) = prepared(ctx.symbols);
            if p.plane.0 == 0 || p.plane.1 == 0 {
                return ctx.fail(|| "a window holds no element".to_owned());
            }
            work.chunks(planes * p.out.0, rows_per_claim(&p), |r| {
                for unit in r {
                    let (plane, row) = (unit / p.out.0, unit % p.out.0);
                    // SAFETY: as for sums.
                    unsafe {
                        let x = ctx.ptr(x).cast::<T>().add(plane * p.plane.0 * p.plane.1);
                        let out = ctx.ptr(y).cast::<T>().add(unit * p.out.1);
                        let places = ctx.ptr(places).cast::<i32>().add(unit * p.out.1);
                        max_row(&p, x, row, out, places);
                    }
                }
            });
        }),
    );
    Ok(true)
}
