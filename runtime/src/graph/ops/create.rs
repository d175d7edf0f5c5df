//! Tensors from nothing: filled, counted, masks of triangles.

use std::panic::Location;
use std::sync::Arc;

use aether_ir::{Attr, Attrs, DType, Op, Shape, TensorType, ValueId};

use super::shape::reshape;
use crate::graph::operators::Operand;
use crate::graph::tensor::Scope;
use crate::graph::{Graph, IntoOperand, OpError, Tensor};

/// Counts 0, 1, 2, … along the only axis.
pub(super) fn count(s: &mut Scope, n: aether_ir::Dim, dtype: DType) -> Result<ValueId, String> {
    let ty = TensorType::with_shape(dtype, Shape(vec![n]));
    s.op_to(Op::Iota, &[], Attrs::new().with("axis", 0i64), ty)
}

/// Counts along one axis of `rank`, with length 1 in the others.
pub(super) fn count_along(
    s: &mut Scope,
    n: aether_ir::Dim,
    axis: usize,
    rank: usize,
    dtype: DType,
) -> Result<ValueId, String> {
    let line = count(s, n.clone(), dtype)?;
    let mut dims = vec![aether_ir::Dim::new(1); rank];
    dims[axis] = n;
    reshape(s, line, Shape(dims))
}

impl Graph {
    /// One instruction or more without operands.
    #[track_caller]
    fn make(
        &self,
        op: &'static str,
        body: impl FnOnce(&mut Scope) -> Result<ValueId, String>,
    ) -> Tensor {
        let location = Location::caller();
        let made = body(&mut Scope::new(&mut self.state(), Vec::new()));
        match made {
            Ok(id) => self.value(id),
            Err(message) => {
                let operands = Vec::new();
                self.fault(Arc::new(OpError { op, operands, message, location }))
            }
        }
    }

    /// A tensor filled with one number.
    #[track_caller]
    pub fn full(&self, dtype: DType, shape: impl Into<Shape>, value: impl Into<f64>) -> Tensor {
        let ty = TensorType::with_shape(dtype, shape.into());
        let attrs = Attrs::new().with("value", value.into());
        self.make("full", |s| {
            if ty.dtype.is_quantized() {
                return Err(format!("{ty} cannot be filled with one number"));
            }
            s.op_to(Op::Splat, &[], attrs, ty)
        })
    }

    /// A tensor of zeros.
    #[track_caller]
    pub fn zeros(&self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        self.full(dtype, shape, 0.0)
    }

    /// A tensor of ones.
    #[track_caller]
    pub fn ones(&self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        self.full(dtype, shape, 1.0)
    }

    /// 0, 1, 2, … along an axis, the same along the others.
    #[track_caller]
    pub fn iota(&self, dtype: DType, shape: impl Into<Shape>, axis: i64) -> Tensor {
        let ty = TensorType::with_shape(dtype, shape.into());
        self.make("iota", |s| s.op_to(Op::Iota, &[], Attrs::new().with("axis", axis), ty))
    }

    /// The numbers from 0 to `n`, without `n`.
    #[track_caller]
    pub fn arange(&self, dtype: DType, n: usize) -> Tensor {
        self.iota(dtype, [n], 0)
    }
}

impl Tensor {
    /// Ones on the diagonal of the last two axes kept, the upper triangle zeroed: the element at
    /// row i, column j stays where j - i ≤ `diagonal`.
    #[must_use]
    #[track_caller]
    pub fn tril(&self, diagonal: i64) -> Tensor {
        self.triangle("tril", Op::Le, diagonal)
    }

    /// The lower triangle of the last two axes zeroed: the element at row i, column j stays where
    /// j - i ≥ `diagonal`.
    #[must_use]
    #[track_caller]
    pub fn triu(&self, diagonal: i64) -> Tensor {
        self.triangle("triu", Op::Ge, diagonal)
    }

    #[track_caller]
    fn triangle(&self, name: &'static str, keep: Op, diagonal: i64) -> Tensor {
        Tensor::build(name, &[self], |s| {
            let x = s.args[0];
            let ty = s.ty(x);
            let [.., rows, columns] = ty.shape.0.as_slice() else {
                return Err(format!("expected a matrix, found {ty}"));
            };
            let i = count_along(s, rows.clone(), 0, 2, DType::I64)?;
            let j = count_along(s, columns.clone(), 1, 2, DType::I64)?;
            let offset = s.scalar(DType::I64, diagonal)?;
            let bound = s.plain(Op::Add, &[i, offset])?;
            let kept = s.plain(keep, &[j, bound])?;
            let zero = s.scalar(ty.dtype, Attr::Int(0))?;
            s.plain(Op::Select, &[kept, x, zero])
        })
    }

    /// A tensor of this one's type filled with one number.
    #[must_use]
    #[track_caller]
    pub fn full_like(&self, value: impl IntoOperand) -> Tensor {
        let value = value.into_operand();
        Tensor::build("full_like", &[self], |s| {
            let ty = s.ty(s.args[0]);
            let Operand::Number(value) = value else {
                return Err("expected a number".to_owned());
            };
            s.op_to(Op::Splat, &[], Attrs::new().with("value", value), ty)
        })
    }

    /// A tensor of this one's type filled with zeros.
    #[must_use]
    #[track_caller]
    pub fn zeros_like(&self) -> Tensor {
        self.full_like(0i64)
    }
}
