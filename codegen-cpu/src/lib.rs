//! CPU code generator: planned IR to a flat list of closures over SIMD kernels.
//!
//! [`compile`] turns a verified module with its memory plan into a [`Program`], which a
//! [`Workspace`] and a [`Pool`](pool::Pool) run. [`CpuTarget`] is what the passes ask. Kernels
//! ([`kernels`]) pick their instruction set at run time.

mod claims;
pub mod kernels;
mod lower;
pub mod pool;
mod program;
mod size;
mod target;

pub use kernels::isa::Isa;
pub use lower::{CompileError, CompileOptions, ConstBytes, ConstSource, DenseOnly, compile};
pub use program::{AlignedBytes, Arg, ArgData, Program, RunError, Workspace};
pub use target::CpuTarget;
