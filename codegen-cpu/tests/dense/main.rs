//! The dense kernels against plain f64 loops, on every instruction set of this machine.

mod attention;
mod convert;
mod elementwise;
mod gemm;
mod norm;
mod rope;
mod softmax;
mod support;
