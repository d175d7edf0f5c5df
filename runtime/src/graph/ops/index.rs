//! Picking elements by index, and adding to them.
//!
//! Indices are i32 or i64 and count from the front; one out of range fails the run.

use aether_ir::{Attr, Attrs, DType, Op, Shape, TensorType, ValueId};

use super::create::{count, count_along};
use super::shape::{length, new_axis, reshape};
use crate::graph::Tensor;
use crate::graph::tensor::Scope;

/// The place in `x`, flattened, of each index along an axis: `index` has the rank of `x`, and the
/// other coordinates are those of the index itself.
fn flat_places(s: &mut Scope, x: ValueId, index: ValueId, axis: usize) -> Result<ValueId, String> {
    let (table, picks) = (s.ty(x), s.ty(index));
    if !matches!(picks.dtype, DType::I32 | DType::I64) {
        return Err(format!("expected i32 or i64 indices, found {picks}"));
    }
    let rank = table.rank();
    let fits = |i: usize| {
        let (have, want) = (table.shape.0[i].as_const(), picks.shape.0[i].as_const());
        i == axis || matches!((have, want), (Some(have), Some(want)) if want <= have)
    };
    if picks.rank() != rank || !(0..rank).all(fits) {
        return Err(format!(
            "the indices need {rank} axes of known length, none but axis {axis} longer than the \
             table's"
        ));
    }
    // Checked by the gather itself only within the flat table: an index beyond its axis would
    // read a neighbour, so it is sent out of the table.
    let index = s.op_to(Op::Cast, &[index], Attrs::new(), picks.with_dtype(DType::I64))?;
    let (zero, n) = (s.scalar(DType::I64, 0i64)?, length(s, x, axis)?);
    let n = s.scalar(DType::I64, n)?;
    let (low, high) = (s.plain(Op::Ge, &[index, zero])?, s.plain(Op::Lt, &[index, n])?);
    let inside = s.plain(Op::And, &[low, high])?;
    let mut place: Option<ValueId> = None;
    let mut stride = 1;
    for i in (0..rank).rev() {
        let coordinate = match i == axis {
            true => index,
            false => count_along(s, picks.shape.0[i].clone(), i, rank, DType::I64)?,
        };
        let step = s.scalar(DType::I64, stride)?;
        let part = s.plain(Op::Mul, &[coordinate, step])?;
        place = Some(match place {
            Some(sum) => s.plain(Op::Add, &[sum, part])?,
            None => part,
        });
        stride *= length(s, x, i)?;
    }
    let place = place.ok_or("a scalar has no axis to pick along")?;
    let outside = s.scalar(DType::I64, Attr::Int(-1))?;
    let place = s.plain(Op::Select, &[inside, place, outside])?;
    let numel = picks.shape.numel();
    reshape(s, place, Shape(vec![numel]))
}

fn flat(s: &mut Scope, x: ValueId) -> Result<ValueId, String> {
    let numel = s.ty(x).shape.numel();
    reshape(s, x, Shape(vec![numel]))
}

impl Tensor {
    /// NumPy's `take`: the parts at `indices` along an axis, which is replaced by the axes of the
    /// indices. Rows of a quantised table come dequantised.
    #[must_use]
    #[track_caller]
    pub fn take(&self, indices: &Tensor, axis: i64) -> Tensor {
        Tensor::build("take", &[self, indices], |s| {
            let axis = s.axis(s.args[0], axis)? as i64;
            s.op(Op::Gather, &[s.args[0], s.args[1]], Attrs::new().with("axis", axis))
        })
    }

    /// The parts at the indices of a vector along an axis.
    #[must_use]
    #[track_caller]
    pub fn index_select(&self, axis: i64, indices: &Tensor) -> Tensor {
        Tensor::build("index_select", &[self, indices], |s| {
            let ty = s.ty(s.args[1]);
            if ty.rank() != 1 {
                return Err(format!("expected a vector of indices, found {ty}"));
            }
            let axis = s.axis(s.args[0], axis)? as i64;
            s.op(Op::Gather, &[s.args[0], s.args[1]], Attrs::new().with("axis", axis))
        })
    }

    /// For each index the element at that place along an axis, the other coordinates being those
    /// of the index: NumPy's `take_along_axis`. The result has the shape of the indices.
    #[must_use]
    #[track_caller]
    pub fn gather(&self, axis: i64, indices: &Tensor) -> Tensor {
        Tensor::build("gather", &[self, indices], |s| {
            let (x, index) = (s.args[0], s.args[1]);
            let axis = s.axis(x, axis)?;
            let places = flat_places(s, x, index, axis)?;
            let table = flat(s, x)?;
            let picked = s.op(Op::Gather, &[table, places], Attrs::new().with("axis", 0i64))?;
            let shape = s.ty(index).shape;
            reshape(s, picked, shape)
        })
    }

    /// This tensor with each element of `source` added at the place that [`Tensor::gather`] would
    /// read with the same indices. Repeated indices add up.
    #[must_use]
    #[track_caller]
    pub fn scatter_add(&self, axis: i64, indices: &Tensor, source: &Tensor) -> Tensor {
        Tensor::build("scatter_add", &[self, indices, source], |s| {
            let (x, index, source) = (s.args[0], s.args[1], s.args[2]);
            let axis = s.axis(x, axis)?;
            if s.ty(index).shape != s.ty(source).shape {
                return Err("the indices and what is added must have one shape".to_owned());
            }
            let places = flat_places(s, x, index, axis)?;
            let (table, added) = (flat(s, x)?, flat(s, source)?);
            let attrs = Attrs::new().with("axis", 0i64);
            let sum = s.op(Op::ScatterAdd, &[table, places, added], attrs)?;
            let shape = s.ty(x).shape;
            reshape(s, sum, shape)
        })
    }

    /// This tensor with the parts of `source` added at the places along an axis that
    /// [`Tensor::take`] would read with the same indices. Repeated indices add up.
    #[must_use]
    #[track_caller]
    pub fn index_add(&self, axis: i64, indices: &Tensor, source: &Tensor) -> Tensor {
        Tensor::build("index_add", &[self, indices, source], |s| {
            let axis = s.axis(s.args[0], axis)? as i64;
            let operands = s.args.clone();
            s.op(Op::ScatterAdd, &operands, Attrs::new().with("axis", axis))
        })
    }

    /// A new last axis of length `n` with 1 at the index and 0 elsewhere; all 0 for an index out
    /// of range.
    #[must_use]
    #[track_caller]
    pub fn one_hot(&self, n: usize, dtype: DType) -> Tensor {
        Tensor::build("one_hot", &[self], |s| one_hot(s, s.args[0], n, dtype))
    }
}

/// One-hot rows of integer indices.
pub(super) fn one_hot(
    s: &mut Scope,
    index: ValueId,
    n: usize,
    dtype: DType,
) -> Result<ValueId, String> {
    let ty = s.ty(index);
    if !ty.dtype.is_int() {
        return Err(format!("expected integer indices, found {ty}"));
    }
    let mut dims = ty.shape.clone();
    dims.0.insert(new_axis(-1, ty.rank())?, 1usize.into());
    let column = reshape(s, index, dims)?;
    let classes = count(s, n.into(), ty.dtype)?;
    let hot = s.plain(Op::Eq, &[column, classes])?;
    if dtype == DType::Bool {
        return Ok(hot);
    }
    let shape = s.ty(hot).shape;
    s.op_to(Op::Cast, &[hot], Attrs::new(), TensorType::with_shape(dtype, shape))
}
