//! Concrete tensors on the host: what constants hold, the interpreter computes with and
//! functions take and give.

use std::sync::Arc;

use crate::attr::Attrs;
use crate::dtype::DType;
use crate::types::Layout;

/// A row-major (or packed) tensor's bytes, little-endian, with its type.
///
/// Cloning is cheap.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub layout: Layout,
    pub bytes: Arc<[u8]>,
}

/// Types of results as numbers, when a function runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcreteType {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub layout: Layout,
}

/// What a reference meaning sees. The verifier has accepted the instruction.
pub struct EvalCtx<'a> {
    pub operands: &'a [&'a Tensor],
    pub attrs: &'a Attrs,
    pub results: &'a [ConcreteType],
}

/// An op cannot be carried out on these operands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EvalError(pub String);
