//! Ops that only move elements: copies, transposes, broadcasts, slices, joins, padding, turned
//! axes, constants of one value. Types do not matter, only the width of their elements.

use aether_ir::{Attr, Layout, Op, Tensor};

use super::{Lower, Lowered, Site, View};
use crate::kernels::strided::{Axis, MAX_AXES, Walk};
use crate::program::Loc;
use crate::size::Size;

/// Where the elements of a piece come from.
#[derive(Clone, Copy)]
enum Source {
    View(Loc),
    /// One element, repeated.
    Value([u8; 8]),
}

/// A walk placed in its two tensors, with the numbers of a run.
struct Placed {
    walk: Walk,
    /// The first element in the source and in the destination.
    from: usize,
    to: usize,
}

type Place = Box<dyn Fn(&[usize]) -> Placed + Send + Sync>;

/// A part of the result with one source. The parts of a result are disjoint.
struct Piece {
    source: Source,
    place: Place,
}

/// The numbers of a shape in this run, with row-major strides.
struct Extent {
    len: [usize; MAX_AXES],
    stride: [usize; MAX_AXES],
    rank: usize,
}

impl Extent {
    fn of(dims: &[Size], symbols: &[usize]) -> Extent {
        let rank = dims.len().min(MAX_AXES);
        let (mut len, mut stride) = ([1; MAX_AXES], [1; MAX_AXES]);
        for i in (0..rank).rev() {
            len[i] = dims[i].get(symbols);
            stride[i] = if i + 1 < rank { stride[i + 1] * len[i + 1] } else { 1 };
        }
        Extent { len, stride, rank }
    }
}

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    let packed = site.inputs.iter().chain(&site.outputs).any(|v| v.ty.layout != Layout::RowMajor);
    let out = &site.outputs[0];
    if packed || out.ty.rank() > MAX_AXES {
        return Ok(false);
    }
    let pieces = match site.inst.op {
        Op::Reshape | Op::StopGradient | Op::Barrier | Op::Transfer => {
            // What the plan could not make an alias.
            for (x, y) in site.inputs.iter().zip(&site.outputs).filter(|(x, y)| x.loc != y.loc) {
                lower.copy_value(&site.label, x, y.loc);
            }
            return Ok(true);
        }
        Op::Broadcast => vec![broadcast(&site.inputs[0], out)],
        Op::Transpose => vec![transpose(site)?],
        Op::Slice => vec![slice(site)?],
        Op::Flip => vec![flip(site)?],
        Op::Concat => concat(site)?,
        Op::Splat => vec![fill(value(site)?, out.dims.clone())],
        Op::Pad => pad(site)?,
        _ => return Ok(false),
    };
    emit(lower, site, pieces);
    Ok(true)
}

fn emit(lower: &mut Lower, site: &Site, pieces: Vec<Piece>) {
    let size = site.outputs[0].ty.dtype.block_bytes();
    let to = site.outputs[0].loc;
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            // Every worker counts the same units: pieces one after another.
            let (mut total, mut claim) = (0, usize::MAX);
            for piece in &pieces {
                let placed = (piece.place)(ctx.symbols);
                total += placed.walk.units();
                claim = claim.min(placed.walk.units_per_claim());
            }
            work.chunks(total, claim, |r| {
                let mut first = 0;
                for piece in &pieces {
                    let Placed { walk, from, to: start } = (piece.place)(ctx.symbols);
                    let units = walk.units();
                    let range = r.start.max(first)..r.end.min(first + units);
                    if range.start < range.end {
                        let base = match &piece.source {
                            Source::View(loc) => ctx.ptr(*loc).cast_const(),
                            Source::Value(bytes) => bytes.as_ptr(),
                        };
                        // SAFETY: both views lie within their tensors by the type rule; a unit
                        // is claimed once, and the planner keeps the result apart.
                        unsafe {
                            let from = base.add(from * size);
                            let to = ctx.ptr(to).add(start * size);
                            walk.run(range.start - first..range.end - first, size, from, to);
                        }
                    }
                    first += units;
                }
            });
        }),
    );
}

fn view(v: &View, place: impl Fn(&[usize]) -> Placed + Send + Sync + 'static) -> Piece {
    Piece { source: Source::View(v.loc), place: Box::new(place) }
}

fn broadcast(x: &View, out: &View) -> Piece {
    let (from, to) = (x.dims.clone(), out.dims.clone());
    let skip = to.len() - from.len();
    view(x, move |symbols| {
        let (x, y) = (Extent::of(&from, symbols), Extent::of(&to, symbols));
        let walk = Walk::new((0..y.rank).map(|i| {
            let repeated = i < skip || x.len[i - skip] != y.len[i];
            let from = if repeated { 0 } else { x.stride[i - skip] as isize };
            Axis { len: y.len[i], from, to: y.stride[i] as isize }
        }));
        Placed { walk, from: 0, to: 0 }
    })
}

/// The axis that each axis of the result is.
fn transpose(site: &Site) -> Result<Piece, String> {
    let perm = site.inst.attrs.ints("perm").unwrap_or_default();
    let perm: Vec<usize> = perm.iter().filter_map(|&p| usize::try_from(p).ok()).collect();
    let dims = site.inputs[0].dims.clone();
    if perm.len() != dims.len() {
        return Err("perm is no permutation of the axes".to_owned());
    }
    Ok(view(&site.inputs[0], move |symbols| {
        let x = Extent::of(&dims, symbols);
        let (mut axes, mut to) = ([Axis::default(); MAX_AXES], 1);
        for i in (0..x.rank).rev() {
            let p = perm[i];
            axes[i] = Axis { len: x.len[p], from: x.stride[p] as isize, to };
            to *= x.len[p] as isize;
        }
        Placed { walk: Walk::new(axes.into_iter().take(x.rank)), from: 0, to: 0 }
    }))
}

fn slice(site: &Site) -> Result<Piece, String> {
    let rank = site.inputs[0].dims.len();
    let list = |name| -> Result<Vec<usize>, String> {
        let ones = vec![1; rank];
        let list = site.inst.attrs.ints(name).unwrap_or(&ones);
        list.iter().map(|&v| usize::try_from(v).map_err(|e| e.to_string())).collect()
    };
    let (starts, steps) = (list("starts")?, list("steps")?);
    let (from, to) = (site.inputs[0].dims.clone(), site.outputs[0].dims.clone());
    Ok(view(&site.inputs[0], move |symbols| {
        let (x, y) = (Extent::of(&from, symbols), Extent::of(&to, symbols));
        let first = (0..y.rank).map(|i| starts[i] * x.stride[i]).sum();
        let empty = y.len[..y.rank].contains(&0);
        let walk = Walk::new((0..y.rank).map(|i| Axis {
            len: y.len[i],
            // A step may be any number where one element is taken.
            from: if y.len[i] > 1 { (steps[i] * x.stride[i]) as isize } else { 0 },
            to: y.stride[i] as isize,
        }));
        Placed { walk, from: if empty { 0 } else { first }, to: 0 }
    }))
}

fn flip(site: &Site) -> Result<Piece, String> {
    let x = &site.inputs[0];
    let mut turned = vec![false; x.dims.len()];
    for &axis in site.inst.attrs.ints("axes").unwrap_or_default() {
        let axis = x.ty.shape.axis(axis).ok_or("an axis is out of range")?;
        turned[axis] = true;
    }
    let dims = x.dims.clone();
    Ok(view(x, move |symbols| {
        let x = Extent::of(&dims, symbols);
        let last = |i: usize| if turned[i] { x.len[i].saturating_sub(1) * x.stride[i] } else { 0 };
        let walk = Walk::new((0..x.rank).map(|i| {
            let to = x.stride[i] as isize;
            Axis { len: x.len[i], from: if turned[i] { -to } else { to }, to }
        }));
        let empty = x.len[..x.rank].contains(&0);
        Placed { walk, from: if empty { 0 } else { (0..x.rank).map(last).sum() }, to: 0 }
    }))
}

/// `dims` elements from one tensor into a larger one, from element `at` of each axis on.
fn inset(
    source: Source,
    dims: Vec<Size>,
    to: Vec<Size>,
    at: impl Fn(usize, &[usize]) -> usize + Send + Sync + 'static,
) -> Piece {
    let repeated = matches!(source, Source::Value(_));
    let place = move |symbols: &[usize]| {
        let (x, y) = (Extent::of(&dims, symbols), Extent::of(&to, symbols));
        let walk = Walk::new((0..x.rank).map(|i| Axis {
            len: x.len[i],
            from: if repeated { 0 } else { x.stride[i] as isize },
            to: y.stride[i] as isize,
        }));
        let empty = x.len[..x.rank].contains(&0);
        let start = (0..x.rank).map(|i| at(i, symbols) * y.stride[i]).sum();
        Placed { walk, from: 0, to: if empty { 0 } else { start } }
    };
    Piece { source, place: Box::new(place) }
}

fn concat(site: &Site) -> Result<Vec<Piece>, String> {
    let out = &site.outputs[0];
    let axis = out.ty.shape.axis(site.inst.attrs.int("axis", 0)).ok_or("axis out of range")?;
    let mut before: Vec<Size> = Vec::new();
    let mut pieces = Vec::with_capacity(site.inputs.len());
    for x in &site.inputs {
        let first = before.clone();
        let at = move |i: usize, symbols: &[usize]| {
            if i == axis { first.iter().map(|s| s.get(symbols)).sum() } else { 0 }
        };
        pieces.push(inset(Source::View(x.loc), x.dims.clone(), out.dims.clone(), at));
        before.push(x.dims[axis].clone());
    }
    Ok(pieces)
}

/// The attribute `value` as one element of the result's type.
fn value(site: &Site) -> Result<[u8; 8], String> {
    let dtype = site.outputs[0].ty.dtype;
    let one = match site.inst.attrs.get("value") {
        Some(Attr::Int(v)) if dtype == aether_ir::DType::I64 => Tensor::scalar_i64(*v),
        _ => Tensor::splat(dtype, &[], site.inst.attrs.float("value", 0.0))
            .map_err(|e| e.to_string())?,
    };
    let mut bytes = [0; 8];
    let n = one.bytes().len().min(8);
    bytes[..n].copy_from_slice(&one.bytes()[..n]);
    Ok(bytes)
}

fn fill(value: [u8; 8], dims: Vec<Size>) -> Piece {
    inset(Source::Value(value), dims.clone(), dims, |_, _| 0)
}

/// The operand, and for each axis the slabs before and behind it: as long as the operand along the
/// axes before, as the result along those behind.
fn pad(site: &Site) -> Result<Vec<Piece>, String> {
    let (x, out) = (&site.inputs[0], &site.outputs[0]);
    let list = |name| -> Result<Vec<usize>, String> {
        let list = site.inst.attrs.ints(name).unwrap_or_default();
        list.iter().map(|&v| usize::try_from(v).map_err(|e| e.to_string())).collect()
    };
    let (low, high) = (list("low")?, list("high")?);
    let rank = x.dims.len();
    if low.len() != rank || high.len() != rank {
        return Err("low and high need one entry for each axis".to_owned());
    }
    let value = value(site)?;
    let inside = low.clone();
    let mut pieces =
        vec![inset(Source::View(x.loc), x.dims.clone(), out.dims.clone(), move |i, _| inside[i])];
    for axis in 0..rank {
        for (amount, behind) in [(low[axis], false), (high[axis], true)] {
            if amount == 0 {
                continue;
            }
            let mut dims = x.dims.clone();
            dims[axis..].clone_from_slice(&out.dims[axis..]);
            dims[axis] = Size::Const(amount);
            let (low, length) = (low.clone(), x.dims[axis].clone());
            let at = move |i: usize, symbols: &[usize]| match i.cmp(&axis) {
                std::cmp::Ordering::Less => low[i],
                std::cmp::Ordering::Equal if behind => low[i] + length.get(symbols),
                _ => 0,
            };
            pieces.push(inset(Source::Value(value), dims, out.dims.clone(), at));
        }
    }
    Ok(pieces)
}
