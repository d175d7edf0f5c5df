//! Tensors of the file as constants of the module.

use std::sync::Arc;

use aether_ir::{ConstData, DType, Module, TensorType};

use super::ArchError;
use crate::gguf::{Gguf, TensorInfo};

/// The embedding table.
pub(super) const TOKEN_EMBD: &str = "token_embd.weight";

/// What a weight is read by, which decides the element types it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A matrix `[n, k]` of a product or an embedding: float or quantised.
    Matrix,
    /// A norm's weight or a bias: float.
    Vector,
}

/// A weight that an architecture wants of each block.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The name after `blk.N.`, for instance `attn_q.weight`.
    pub name: &'static str,
    pub role: Role,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// A model without it is complete.
    pub optional: bool,
}

impl Spec {
    /// The matrix of a product: `n` outputs of `k` inputs.
    pub fn matrix(name: &'static str, n: u64, k: u64) -> Self {
        Spec { name, role: Role::Matrix, shape: vec![n, k], optional: false }
    }

    /// A vector.
    pub fn vector(name: &'static str, n: u64) -> Self {
        Spec { name, role: Role::Vector, shape: vec![n], optional: false }
    }

    /// The same, not needed.
    #[must_use]
    pub fn optional(self) -> Self {
        Spec { optional: true, ..self }
    }
}

/// Finds and checks tensors, and declares those that are used as constants.
pub struct Weights<'g> {
    gguf: &'g Gguf,
    /// The path of the file in the text of the module.
    file: &'g str,
}

impl<'g> Weights<'g> {
    /// The tensors of a file that the module's text calls `file`.
    pub fn new(gguf: &'g Gguf, file: &'g str) -> Self {
        Weights { gguf, file }
    }

    /// The tensor of this name, checked against its description; `None` when it is optional and
    /// not there.
    ///
    /// # Errors
    /// When it is missing, or has another shape or type.
    pub fn find(&self, name: &str, spec: &Spec) -> Result<Option<&'g TensorInfo>, ArchError> {
        let path = || self.gguf.path().to_owned();
        // The order of the file, row length first.
        let expected: Vec<u64> = spec.shape.iter().rev().copied().collect();
        let Some(tensor) = self.gguf.tensor(name) else {
            if spec.optional {
                return Ok(None);
            }
            return Err(ArchError::MissingTensor { path: path(), name: name.to_owned(), expected });
        };
        // Trailing dimensions of one are no difference.
        let significant = |s: &[u64]| {
            let n = s.iter().rposition(|&d| d != 1).map_or(0, |i| i + 1);
            s[..n].to_vec()
        };
        if significant(&tensor.shape) != significant(&expected) {
            let found = tensor.shape.clone();
            return Err(ArchError::Shape { path: path(), name: name.to_owned(), expected, found });
        }
        let (fits, what) = match spec.role {
            Role::Vector => (tensor.dtype.is_float(), "a floating-point type"),
            Role::Matrix => (
                (tensor.dtype.is_float() && tensor.dtype != DType::F64)
                    || tensor.dtype.is_quantized(),
                "f32, f16, bf16 or a quantised type",
            ),
        };
        if !fits {
            let found = tensor.dtype;
            return Err(ArchError::Type {
                path: path(),
                name: name.to_owned(),
                expected: what,
                found,
            });
        }
        Ok(Some(tensor))
    }

    /// As [`Weights::find`], for tensors that are not optional.
    ///
    /// # Errors
    /// As [`Weights::find`].
    pub fn require(&self, name: &str, spec: &Spec) -> Result<&'g TensorInfo, ArchError> {
        let required = Spec { optional: false, ..spec.clone() };
        self.find(name, &required)?.ok_or_else(|| ArchError::MissingTensor {
            path: self.gguf.path().to_owned(),
            name: name.to_owned(),
            expected: spec.shape.iter().rev().copied().collect(),
        })
    }

    /// Declares a tensor as constant `@name` (without `.weight`) of the type that `spec` shapes.
    pub fn declare(
        &self,
        module: &mut Module,
        tensor: &TensorInfo,
        spec: &Spec,
    ) -> (Arc<str>, TensorType) {
        let name: Arc<str> = const_name(&tensor.name).into();
        let ty = TensorType::new(tensor.dtype, spec.shape.iter().copied());
        let data = ConstData::File {
            path: self.file.to_owned(),
            offset: tensor.offset,
            bytes: tensor.bytes,
            sha256: None,
        };
        module.add_const(name.clone(), ty.clone(), data);
        (name, ty)
    }
}

/// The tensor's name without `.weight`; biases keep their ending.
pub(super) fn const_name(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}
