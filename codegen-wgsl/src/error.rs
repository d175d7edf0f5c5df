//! Why a module cannot be compiled for the GPU.

use std::sync::Arc;

use aether_ir::{Op, TensorType};

/// A module cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("there is no function @{0}")]
    NoFunction(Arc<str>),
    #[error("@{func} has no memory plan: run the planner first")]
    NoPlan { func: Arc<str> },
    #[error("constant @{name}: {message}")]
    Constant { name: Arc<str>, message: String },
    /// The GPU has no kernel for it: such an op is placed on the CPU.
    #[error("in @{func}, `{op}` has no kernel on the GPU: {message}")]
    Unsupported { func: Arc<str>, op: Op, message: String },
    #[error("calls are nested more than {0} deep")]
    CallDepth(usize),
    #[error("the size of {0} overflows")]
    Size(TensorType),
    #[error("the module has {found} symbols, and shaders see at most {most}")]
    Symbols { found: usize, most: usize },
    #[error("in @{func}, `{op}` binds {bytes} bytes at once, and this GPU allows {most}")]
    Binding { func: Arc<str>, op: Op, bytes: u64, most: u64 },
    /// A generator wrote a shader that is not valid: a bug of it.
    #[error("a generated shader is not valid, which is a bug of the generator: {0}")]
    Shader(String),
}
