//! What training makes small.

use aether_ir::{Attr, Attrs, DType, Op};

use super::index::one_hot;
use super::reduce::reduce;
use crate::graph::{Axes, Tensor};

impl Tensor {
    /// -log p(target), where these are logits [..., classes] and the targets class indices [...].
    ///
    /// One number for each row: take its mean for a loss. A target out of range gives 0, so
    /// padding can be marked by -1.
    #[must_use]
    #[track_caller]
    pub fn cross_entropy(&self, targets: &Tensor) -> Tensor {
        Tensor::build("cross_entropy", &[self, targets], |s| {
            let (logits, targets) = (s.args[0], s.args[1]);
            let ty = s.ty(logits);
            let (Some(classes), true) = (ty.shape.0.last(), s.ty(targets).rank() + 1 == ty.rank())
            else {
                return Err("expected logits [..., classes] and targets [...]".to_owned());
            };
            if s.ty(targets).shape.0 != ty.shape.0[..ty.rank() - 1] {
                return Err("the logits need one row for each target".to_owned());
            }
            let classes = classes.as_const().ok_or("the number of classes must be known")?;
            let log = s.op(Op::LogSoftmax, &[logits], Attrs::new().with("axis", -1i64))?;
            let hot = one_hot(s, targets, classes as usize, DType::Bool)?;
            // Not a product: the logarithm of an impossible class is infinite.
            let zero = s.scalar(ty.dtype, Attr::Int(0))?;
            let picked = s.plain(Op::Select, &[hot, log, zero])?;
            let sum = reduce(s, Op::ReduceSum, picked, &Axes::from(-1))?;
            s.plain(Op::Neg, &[sum])
        })
    }
}
