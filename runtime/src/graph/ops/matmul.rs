//! Products of matrices.

use aether_ir::{Attrs, Op, Shape, TensorType};

use crate::graph::operators::{Operand, pair};
use crate::graph::{IntoOperand, Tensor};

impl Tensor {
    /// The matrix product over the last two axes; leading axes broadcast.
    ///
    /// As in NumPy, a vector on the left is a row, on the right a column, and that axis is
    /// dropped from the result.
    #[must_use]
    #[track_caller]
    pub fn matmul(&self, other: impl IntoOperand) -> Tensor {
        let other = other.into_operand();
        if matches!(other, Operand::Number(_)) {
            return Tensor::build("matmul", &[self], |_| {
                Err("expected a tensor on the right; `*` multiplies by a number".to_owned())
            });
        }
        pair("matmul", self, other, |s, x, w| {
            let (xt, wt) = (s.ty(x), s.ty(w));
            let mut lift = |v, ty: &TensorType, at: usize| {
                if ty.rank() != 1 {
                    return Ok(v);
                }
                let mut dims = ty.shape.0.clone();
                dims.insert(at, 1usize.into());
                let ty = TensorType::with_shape(ty.dtype, Shape(dims));
                s.op_to(Op::Reshape, &[v], Attrs::new(), ty)
            };
            let (row, column) = (lift(x, &xt, 0)?, lift(w, &wt, 1)?);
            let product = s.plain(Op::Matmul, &[row, column])?;
            if xt.rank() != 1 && wt.rank() != 1 {
                return Ok(product);
            }
            let mut ty = s.ty(product);
            let rank = ty.rank();
            if wt.rank() == 1 {
                ty.shape.0.remove(rank - 1);
            }
            if xt.rank() == 1 {
                ty.shape.0.remove(rank - 2);
            }
            s.op_to(Op::Reshape, &[product], Attrs::new(), ty)
        })
    }

    /// x wᵀ for a weight w stored as [out, in], which may be quantised: what a linear layer
    /// computes, without its bias.
    #[must_use]
    #[track_caller]
    pub fn linear(&self, weight: &Tensor) -> Tensor {
        Tensor::build("linear", &[self, weight], |s| {
            let (x, w) = (s.args[0], s.args[1]);
            s.op(Op::Matmul, &[x, w], Attrs::new().with("transpose_b", true))
        })
    }
}
