//! Convolution of f32 images over one or two spatial axes.

use aether_ir::op::window::Window;
use aether_ir::{DType, Inst, Layout, Op, Symbol, SymbolRange, TensorType};
use indexmap::IndexMap;

use super::{Lower, Lowered, Site, max_count};
use crate::kernels::conv::{self, Conv};
use crate::kernels::isa::Isa;
use crate::size::Size;

/// Output channels below which a product is not split further.
const FEW_CHANNELS: usize = 16;

/// Whether there is a kernel for these operands.
pub(crate) fn handles(x: &TensorType, w: &TensorType) -> bool {
    let plain = |ty: &TensorType| ty.dtype == DType::F32 && ty.layout == Layout::RowMajor;
    plain(x) && plain(w) && matches!(x.rank(), 3 | 4)
}

fn worker_bytes(isa: Isa, w: &TensorType, symbols: &IndexMap<Symbol, SymbolRange>) -> usize {
    let k = max_count(&w.shape.0[1..], symbols);
    conv::scratch_len(isa, k).saturating_mul(4).next_multiple_of(256)
}

/// Scratch bytes of a convolution, for the planner.
pub(crate) fn scratch_bytes(
    inst: &Inst,
    (x, w): (&TensorType, &TensorType),
    symbols: &IndexMap<Symbol, SymbolRange>,
    (isa, threads): (Isa, usize),
) -> u64 {
    let needed = inst.op == Op::Conv && handles(x, w);
    if needed { worker_bytes(isa, w, symbols).saturating_mul(threads) as u64 } else { 0 }
}

/// Rows and columns of the last two of a tensor's axes, the first being 1 where there is one.
fn plane(dims: &[Size], symbols: &[usize]) -> (usize, usize) {
    match &dims[2..] {
        [n] => (1, n.get(symbols)),
        [m, n, ..] => (m.get(symbols), n.get(symbols)),
        [] => (1, 1),
    }
}

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    let (x, w, y) = (&site.inputs[0], &site.inputs[1], &site.outputs[0]);
    if !handles(&x.ty, &w.ty) {
        return Ok(false);
    }
    let sizes: Option<Vec<i64>> = w.ty.shape.0[2..]
        .iter()
        .map(|d| d.as_const().and_then(|k| i64::try_from(k).ok()))
        .collect();
    let windows = Window::of(&site.inst.attrs, &sizes.ok_or("the kernel has no size")?)?;
    let alone = Window { size: 1, stride: 1, lo: 0, hi: 0, dilation: 1, lhs_dilation: 1 };
    let (rows, columns) = match windows[..] {
        [columns] => (alone, columns),
        [rows, columns, ..] => (rows, columns),
        [] => return Ok(false),
    };
    let groups = usize::try_from(site.inst.attrs.int("groups", 1)).unwrap_or(1).max(1);
    let isa = lower.opts.isa;
    let per_worker = worker_bytes(isa, &w.ty, &lower.module.symbols);
    let scratch = site.scratch(per_worker.saturating_mul(lower.opts.threads))?;
    let k_max = max_count(&w.ty.shape.0[1..], &lower.module.symbols);
    let block = conv::block(isa, k_max);
    let (x_dims, w_dims, y_dims) = (x.dims.clone(), w.dims.clone(), y.dims.clone());
    let (x, w, y) = (x.loc, w.loc, y.loc);
    lower.emit(
        &site.label,
        site.reads(),
        site.writes().into_iter().chain([scratch.range]),
        Box::new(move |ctx, work| {
            let get = |d: &Size| d.get(ctx.symbols);
            let (n, c_out, c_in) = (get(&x_dims[0]), get(&w_dims[0]), get(&w_dims[1]));
            let c = Conv {
                channels: (c_in, c_out / groups),
                plane: plane(&x_dims, ctx.symbols),
                out: plane(&y_dims, ctx.symbols),
                rows,
                columns,
            };
            let (depth, positions) = (c.depth(), c.positions());
            let blocks = positions.div_ceil(block);
            // Images, groups and blocks of positions; of few of them, output channels too.
            let units = n * groups * blocks;
            let parts = (2 * work.count).div_ceil(units.max(1));
            let parts = parts.clamp(1, (c.channels.1 / FEW_CHANNELS).max(1));
            // SAFETY: each worker has `per_worker` bytes of the scratch.
            let own = unsafe {
                let own = ctx.ptr(scratch.loc).add(work.index * per_worker);
                std::slice::from_raw_parts_mut(own.cast::<f32>(), per_worker / 4)
            };
            work.chunks(units * parts, 1, |r| {
                for unit in r {
                    let (unit, part) = (unit / parts, unit % parts);
                    let (image, block_at) = (unit / blocks, unit % blocks);
                    let (at, group) = (image / groups, image % groups);
                    let first = block_at * block;
                    let channels = |part: usize| c.channels.1 * part / parts;
                    let of =
                        (channels(part)..channels(part + 1), first..positions.min(first + block));
                    // SAFETY: image, weights and result have the shapes of the type rule; units
                    // are disjoint parts of the result, claimed once.
                    unsafe {
                        let plane = c.plane.0 * c.plane.1;
                        let image =
                            ctx.ptr(x).cast::<f32>().add((at * groups + group) * c_in * plane);
                        let weights = ctx.ptr(w).cast::<f32>().add(group * c.channels.1 * depth);
                        let weights = std::slice::from_raw_parts(weights, c.channels.1 * depth);
                        let out = (at * c_out + group * c.channels.1) * positions;
                        let out = ctx.ptr(y).cast::<f32>().add(out);
                        conv::conv(isa, &c, weights, of, image, out, own);
                    }
                }
            });
        }),
    );
    Ok(true)
}
