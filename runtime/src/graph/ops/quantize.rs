//! Block-quantised numbers, and what gradients and passes do not look through.

use aether_ir::{Attrs, DType, Op};

use crate::graph::Tensor;

impl Tensor {
    /// f32 numbers in the blocks of a quantised type, along the last axis, with ggml's rounding.
    #[must_use]
    #[track_caller]
    pub fn quantize(&self, dtype: DType) -> Tensor {
        Tensor::build("quantize", &[self], |s| {
            let x = s.args[0];
            let ty = s.ty(x).with_dtype(dtype);
            s.op_to(Op::Quantize, &[x], Attrs::new(), ty)
        })
    }

    /// The numbers that quantised blocks stand for, as f32.
    #[must_use]
    #[track_caller]
    pub fn dequantize(&self) -> Tensor {
        Tensor::build("dequantize", &[self], |s| {
            let x = s.args[0];
            let ty = s.ty(x);
            if !ty.dtype.is_quantized() {
                return Err("expected a quantised tensor; use `cast`".to_owned());
            }
            s.op_to(Op::Cast, &[x], Attrs::new(), ty.with_dtype(DType::F32))
        })
    }

    /// The same value, taken as a constant by [`Tensor::backward`].
    #[must_use]
    #[track_caller]
    pub fn stop_gradient(&self) -> Tensor {
        self.unary(Op::StopGradient, Attrs::new())
    }
}
