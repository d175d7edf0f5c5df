//! GPU code generator: planned IR to WGSL that naga has validated.
//!
//! [`compile`] turns a verified module with its memory plan into a [`GpuProgram`]: shaders, each
//! valid, and a flat list of dispatches that bind ranges of one arena, of arguments, results and
//! constants. [`GpuTarget`] is what the passes ask. Nothing here needs a GPU: the runtime has it.

pub mod adapter;
pub mod constants;
mod error;
pub mod kernel;
mod lower;
pub mod planes;
pub mod program;
mod target;
pub mod templates;
pub mod validate;

pub use adapter::Adapter;
pub use error::CompileError;
pub use lower::compile;
pub use program::{Fault, GpuProgram};
pub use target::GpuTarget;
