//! The SIMD kernels: quantised and dense products and what a transformer needs beside them.
//!
//! Kernels take slices or raw pointers to disjoint outputs, an instruction set picked at run time
//! ([`isa::Isa`]), and never allocate or start threads.

pub mod act_quant;
pub mod attention;
pub mod conv;
pub mod convert;
pub mod elementwise;
pub mod gemm;
pub mod isa;
mod math;
pub mod norm;
pub mod order;
pub mod packed;
pub mod qmatmul;
pub mod reduce;
pub mod rope;
pub mod scan;
mod simd;
pub mod softmax;
pub mod strided;
mod tile;
pub mod tiles;
pub mod window;

pub use simd::Load;
