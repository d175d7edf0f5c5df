//! Shapes: the same elements under other axes, parts of them, several joined.

use std::ops::{Bound, RangeBounds};

use aether_ir::types::MAX_RANK;
use aether_ir::{Attr, Attrs, Dim, Op, Shape, TensorType, ValueId};

use super::reduce::resolve;
use crate::graph::operators::Operand;
use crate::graph::tensor::Scope;
use crate::graph::{Axes, IntoOperand, Tensor};

/// The value under another shape of as many elements.
pub(super) fn reshape(s: &mut Scope, x: ValueId, shape: Shape) -> Result<ValueId, String> {
    let ty = s.ty(x);
    if ty.shape == shape {
        return Ok(x);
    }
    s.op_to(Op::Reshape, &[x], Attrs::new(), TensorType::with_shape(ty.dtype, shape))
}

/// The value with axes in another order.
pub(super) fn permute(s: &mut Scope, x: ValueId, perm: &[usize]) -> Result<ValueId, String> {
    if perm.iter().enumerate().all(|(i, &p)| i == p) {
        return Ok(x);
    }
    let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
    s.op(Op::Transpose, &[x], Attrs::new().with("perm", perm))
}

/// The value broadcast to a shape.
pub(super) fn expand(s: &mut Scope, x: ValueId, shape: Shape) -> Result<ValueId, String> {
    let ty = s.ty(x);
    if ty.shape == shape {
        return Ok(x);
    }
    s.op_to(Op::Broadcast, &[x], Attrs::new(), TensorType::with_shape(ty.dtype, shape))
}

/// Elements `start..limit` in steps along one axis of known length.
pub(super) fn slice(
    s: &mut Scope,
    x: ValueId,
    axis: usize,
    start: i64,
    limit: i64,
    step: i64,
) -> Result<ValueId, String> {
    let dims = s.ty(x).shape.0;
    let all = |d: &Dim| d.as_const().map_or(-1, |n| n as i64);
    let mut starts = vec![0; dims.len()];
    let mut limits: Vec<i64> = dims.iter().map(all).collect();
    let mut steps = vec![1; dims.len()];
    (starts[axis], limits[axis], steps[axis]) = (start, limit, step);
    let attrs = Attrs::new().with("starts", starts).with("limits", limits);
    s.op(Op::Slice, &[x], if step == 1 { attrs } else { attrs.with("steps", steps) })
}

/// The value with one axis reversed.
fn flip(s: &mut Scope, x: ValueId, axis: usize) -> Result<ValueId, String> {
    s.op(Op::Flip, &[x], Attrs::new().with("axes", vec![axis as i64]))
}

/// The length of an axis, which must be a number.
pub(super) fn length(s: &Scope, x: ValueId, axis: usize) -> Result<i64, String> {
    let ty = s.ty(x);
    let dim = &ty.shape.0[axis];
    dim.as_const()
        .map(|n| n as i64)
        .ok_or_else(|| format!("axis {axis} of {ty} has the symbolic length {dim}"))
}

/// NumPy's reading of a range over an axis of length `n`: ends count from the back when negative,
/// and are cut to the axis.
fn ends(range: &impl RangeBounds<i64>, n: i64) -> (i64, i64) {
    let place = |i: i64| (if i < 0 { i.saturating_add(n) } else { i }).clamp(0, n);
    let start = match range.start_bound() {
        Bound::Included(&i) => place(i),
        Bound::Excluded(&i) => place(i.saturating_add(1)),
        Bound::Unbounded => 0,
    };
    let limit = match range.end_bound() {
        Bound::Excluded(&i) => place(i),
        // `..=-1` ends with the last.
        Bound::Included(&-1) | Bound::Unbounded => n,
        Bound::Included(&i) => place(i.saturating_add(1)),
    };
    (start, limit.max(start))
}

impl Tensor {
    /// The same elements in row-major order under another shape. One length may be -1: it
    /// follows from the others.
    #[must_use]
    #[track_caller]
    pub fn reshape(&self, lengths: impl AsRef<[i64]>) -> Tensor {
        let lengths = lengths.as_ref();
        Tensor::build("reshape", &[self], |s| {
            let x = s.args[0];
            let numel = s.ty(x).shape.numel();
            let mut dims = Vec::with_capacity(lengths.len());
            let mut open = None;
            for (i, &n) in lengths.iter().enumerate() {
                if n < -1 || (n == -1 && open.is_some()) {
                    return Err(format!("lengths are at least 0, and one may be -1: {lengths:?}"));
                }
                if n == -1 {
                    open = Some(i);
                }
                dims.push(Dim::new(n.unsigned_abs()));
            }
            if let Some(i) = open {
                let known = Shape(dims.clone()).numel();
                // With a length of 0 any number would do.
                let rest = (!known.is(0)).then(|| numel.exact_div(&known)).flatten();
                dims[i] = rest.ok_or_else(|| {
                    format!("{numel} elements do not divide evenly into the lengths {lengths:?}")
                })?;
            }
            reshape(s, x, Shape(dims))
        })
    }

    /// As [`Tensor::reshape`], for shapes with symbols.
    #[must_use]
    #[track_caller]
    pub fn reshape_to(&self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        Tensor::build("reshape", &[self], |s| reshape(s, s.args[0], shape))
    }

    /// All elements in one axis.
    #[must_use]
    #[track_caller]
    pub fn flatten(&self) -> Tensor {
        Tensor::build("flatten", &[self], |s| {
            let x = s.args[0];
            let numel = s.ty(x).shape.numel();
            reshape(s, x, Shape(vec![numel]))
        })
    }

    /// Exchanges two axes.
    #[must_use]
    #[track_caller]
    pub fn transpose(&self, a: i64, b: i64) -> Tensor {
        Tensor::build("transpose", &[self], |s| {
            let x = s.args[0];
            let (a, b) = (s.axis(x, a)?, s.axis(x, b)?);
            let mut perm: Vec<usize> = (0..s.ty(x).rank()).collect();
            perm.swap(a, b);
            permute(s, x, &perm)
        })
    }

    /// The last two axes exchanged.
    #[must_use]
    #[track_caller]
    pub fn t(&self) -> Tensor {
        self.transpose(-2, -1)
    }

    /// Axis `i` of the result is axis `axes[i]`.
    #[must_use]
    #[track_caller]
    pub fn permute(&self, axes: impl AsRef<[i64]>) -> Tensor {
        let axes = axes.as_ref();
        Tensor::build("permute", &[self], |s| {
            let x = s.args[0];
            let perm: Vec<usize> = axes.iter().map(|&a| s.axis(x, a)).collect::<Result<_, _>>()?;
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if !sorted.into_iter().eq(0..s.ty(x).rank()) {
                return Err(format!("{axes:?} does not name each of the axes once"));
            }
            permute(s, x, &perm)
        })
    }

    /// The elements of a range along an axis. As in NumPy, ends count from the back when they are
    /// negative and are cut to the axis.
    #[must_use]
    #[track_caller]
    pub fn slice(&self, axis: i64, range: impl RangeBounds<i64>) -> Tensor {
        self.slice_step(axis, range, 1)
    }

    /// As [`Tensor::slice`], every `step`-th element; a negative step walks the same elements
    /// backwards, beginning with the last of the range.
    #[must_use]
    #[track_caller]
    pub fn slice_step(&self, axis: i64, range: impl RangeBounds<i64>, step: i64) -> Tensor {
        Tensor::build("slice", &[self], |s| {
            let mut x = s.args[0];
            let axis = s.axis(x, axis)?;
            let n = length(s, x, axis)?;
            let (mut start, mut limit) = ends(&range, n);
            if step == 0 {
                return Err("a step of 0 leads nowhere".to_owned());
            }
            if step < 0 {
                x = flip(s, x, axis)?;
                (start, limit) = (n - limit, n - start);
            }
            slice(s, x, axis, start, limit, step.checked_abs().unwrap_or(i64::MAX))
        })
    }

    /// The part at one index of an axis, without that axis. Negative indices count from the back.
    #[must_use]
    #[track_caller]
    pub fn index(&self, axis: i64, index: i64) -> Tensor {
        Tensor::build("index", &[self], |s| {
            let x = s.args[0];
            let axis = s.axis(x, axis)?;
            let n = length(s, x, axis)?;
            let at = if index < 0 { index + n } else { index };
            if !(0..n).contains(&at) {
                return Err(format!("index {index} is out of range for {n} elements"));
            }
            let part = slice(s, x, axis, at, at + 1, 1)?;
            let mut shape = s.ty(part).shape;
            shape.0.remove(axis);
            reshape(s, part, shape)
        })
    }

    /// Joins tensors along an axis.
    #[must_use]
    #[track_caller]
    pub fn concat(tensors: &[&Tensor], axis: i64) -> Tensor {
        assert!(!tensors.is_empty(), "`concat` of no tensors has no graph");
        Tensor::build("concat", tensors, |s| {
            let parts = s.args.clone();
            concat(s, &parts, s.axis(parts[0], axis)?)
        })
    }

    /// Joins tensors of one shape along a new axis, which may be the rank of the tensors.
    #[must_use]
    #[track_caller]
    pub fn stack(tensors: &[&Tensor], axis: i64) -> Tensor {
        assert!(!tensors.is_empty(), "`stack` of no tensors has no graph");
        Tensor::build("stack", tensors, |s| {
            let first = s.ty(s.args[0]);
            let at = new_axis(axis, first.rank())?;
            let mut parts = Vec::with_capacity(s.args.len());
            for x in s.args.clone() {
                let mut shape = s.ty(x).shape;
                if shape != first.shape {
                    return Err("the tensors must have one shape".to_owned());
                }
                shape.0.insert(at, Dim::new(1));
                parts.push(reshape(s, x, shape)?);
            }
            concat(s, &parts, at)
        })
    }

    /// Parts of the given lengths along an axis; together they must be the whole.
    ///
    /// As many tensors as lengths come back, all with the error if there is one.
    #[must_use]
    #[track_caller]
    pub fn split(&self, axis: i64, lengths: impl AsRef<[usize]>) -> Vec<Tensor> {
        let lengths = lengths.as_ref();
        let parts = Tensor::build_many("split", &[self], |s| {
            let x = s.args[0];
            let axis = s.axis(x, axis)?;
            let n = length(s, x, axis)?;
            if lengths.iter().try_fold(0, |sum: usize, &l| sum.checked_add(l)) != Some(n as usize) {
                return Err(format!("the lengths {lengths:?} do not add up to {n}"));
            }
            let mut start = 0;
            let mut parts = Vec::with_capacity(lengths.len());
            for &l in lengths {
                parts.push(slice(s, x, axis, start, start + l as i64, 1)?);
                start += l as i64;
            }
            Ok(parts)
        });
        match parts {
            Ok(ids) => ids.into_iter().map(|id| self.graph.value(id)).collect(),
            Err(error) => lengths.iter().map(|_| self.graph.fault(error.clone())).collect(),
        }
    }

    /// Surrounded with one number: so many elements before and behind each axis.
    #[must_use]
    #[track_caller]
    pub fn pad(&self, sides: impl AsRef<[(usize, usize)]>, value: impl IntoOperand) -> Tensor {
        let sides = sides.as_ref();
        let value = value.into_operand();
        Tensor::build("pad", &[self], |s| {
            let Operand::Number(value) = value else {
                return Err("expected a number to pad with".to_owned());
            };
            let list = |pick: fn(&(usize, usize)) -> usize| -> Vec<i64> {
                sides.iter().map(|side| i64::try_from(pick(side)).unwrap_or(i64::MAX)).collect()
            };
            let attrs = Attrs::new().with("low", list(|s| s.0)).with("high", list(|s| s.1));
            let zero = matches!(value, Attr::Int(0)) || value == Attr::Float(0.0);
            s.op(Op::Pad, &[s.args[0]], if zero { attrs } else { attrs.with("value", value) })
        })
    }

    /// The elements of some axes in reverse order.
    #[must_use]
    #[track_caller]
    pub fn flip(&self, axes: impl Into<Axes>) -> Tensor {
        let axes = axes.into();
        Tensor::build("flip", &[self], |s| {
            let x = s.args[0];
            let axes = resolve(s, x, &axes)?;
            s.op(Op::Flip, &[x], Attrs::new().with("axes", axes))
        })
    }

    /// Drops axes of length 1.
    #[must_use]
    #[track_caller]
    pub fn squeeze(&self, axes: impl Into<Axes>) -> Tensor {
        let axes = axes.into();
        Tensor::build("squeeze", &[self], |s| {
            let x = s.args[0];
            let shape = s.ty(x).shape;
            let named = resolve(s, x, &axes)?;
            // `..` drops whatever can be dropped.
            let dropped =
                |i: usize| named.contains(&(i as i64)) && (axes.axes.is_some() || shape.0[i].is(1));
            if let Some(i) = (0..shape.rank()).find(|&i| dropped(i) && !shape.0[i].is(1)) {
                return Err(format!("axis {i} has the length {}, not 1", shape.0[i]));
            }
            let kept = (0..shape.rank()).filter(|&i| !dropped(i)).map(|i| shape.0[i].clone());
            let kept = Shape(kept.collect());
            reshape(s, x, kept)
        })
    }

    /// Adds an axis of length 1, which becomes axis `axis` of the result.
    #[must_use]
    #[track_caller]
    pub fn unsqueeze(&self, axis: i64) -> Tensor {
        Tensor::build("unsqueeze", &[self], |s| {
            let x = s.args[0];
            let mut shape = s.ty(x).shape;
            shape.0.insert(new_axis(axis, shape.rank())?, Dim::new(1));
            reshape(s, x, shape)
        })
    }

    /// Broadcast to a shape; -1 keeps the length of an axis.
    #[must_use]
    #[track_caller]
    pub fn expand(&self, lengths: impl AsRef<[i64]>) -> Tensor {
        let lengths = lengths.as_ref();
        Tensor::build("expand", &[self], |s| {
            let x = s.args[0];
            let own = s.ty(x).shape;
            let mut dims = Vec::with_capacity(lengths.len());
            for (i, &n) in lengths.iter().enumerate() {
                let old = (i + own.rank()).checked_sub(lengths.len()).map(|j| own.0[j].clone());
                dims.push(match (n, old) {
                    (-1, Some(d)) => d,
                    (0.., _) => Dim::new(n as u64),
                    _ => return Err(format!("the lengths {lengths:?} name no shape")),
                });
            }
            expand(s, x, Shape(dims))
        })
    }

    /// As [`Tensor::expand`], for shapes with symbols.
    #[must_use]
    #[track_caller]
    pub fn expand_to(&self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        Tensor::build("expand", &[self], |s| expand(s, s.args[0], shape))
    }
}

/// `tensors` joined, in groups of as many as an instruction takes.
fn concat(s: &mut Scope, tensors: &[ValueId], axis: usize) -> Result<ValueId, String> {
    let mut parts = tensors.to_vec();
    let attrs = || Attrs::new().with("axis", axis as i64);
    while parts.len() > aether_ir::op::MAX_OPERANDS {
        parts = parts
            .chunks(aether_ir::op::MAX_OPERANDS)
            .map(|group| s.op(Op::Concat, group, attrs()))
            .collect::<Result<_, _>>()?;
    }
    s.op(Op::Concat, &parts, attrs())
}

/// Where a new axis goes among `rank` old ones.
pub(super) fn new_axis(axis: i64, rank: usize) -> Result<usize, String> {
    let at = if axis < 0 { axis + rank as i64 + 1 } else { axis };
    if rank == MAX_RANK {
        return Err(format!("a tensor has at most {MAX_RANK} axes"));
    }
    usize::try_from(at)
        .ok()
        .filter(|&at| at <= rank)
        .ok_or_else(|| format!("a new axis {axis} is out of range for rank {rank}"))
}
