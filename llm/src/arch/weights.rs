//! Tensors of the file as constants of the module.

use std::collections::HashSet;
use std::sync::Arc;

use aether_ir::{ConstData, DType, Module, TensorType};

use super::ArchError;
use crate::gguf::{Gguf, TensorInfo};

/// Endings of names of tensors that a model runs without: rotations, which are computed.
const NOT_NEEDED: &[&str] = &["attn_rot_embd"];

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
    /// Of how many matrices the shape's rows are, one above the other; the file counts them on an
    /// axis of their own.
    pub count: u64,
    /// A model without it is complete.
    pub optional: bool,
    /// The tensor that has these rows where the file has no tensor of the name.
    pub within: Option<Within>,
}

/// A place in a tensor that stacks several weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Within {
    /// The name after `blk.N.`.
    pub name: &'static str,
    /// The first row.
    pub first: u64,
    /// Rows of the whole tensor.
    pub rows: u64,
}

impl Spec {
    /// The matrix of a product: `n` outputs of `k` inputs.
    pub fn matrix(name: &'static str, n: u64, k: u64) -> Self {
        Spec {
            name,
            role: Role::Matrix,
            shape: vec![n, k],
            count: 1,
            optional: false,
            within: None,
        }
    }

    /// The matrices of experts or heads, one above the other.
    pub fn stack(name: &'static str, count: u64, n: u64, k: u64) -> Self {
        Spec { shape: vec![count * n, k], count, ..Spec::matrix(name, n, k) }
    }

    /// A vector.
    pub fn vector(name: &'static str, n: u64) -> Self {
        Spec { name, role: Role::Vector, shape: vec![n], count: 1, optional: false, within: None }
    }

    /// The same, not needed.
    #[must_use]
    pub fn optional(self) -> Self {
        Spec { optional: true, ..self }
    }

    /// The same, needed.
    #[must_use]
    pub fn needed(self) -> Self {
        Spec { optional: false, ..self }
    }

    /// The same, found from row `first` on in a tensor of `rows` rows where the file stacks weights.
    #[must_use]
    pub fn within(self, name: &'static str, first: u64, rows: u64) -> Self {
        Spec { within: Some(Within { name, first, rows }), ..self }
    }
}

/// Finds and checks tensors, and declares those that are used as constants.
pub struct Weights<'g> {
    gguf: &'g Gguf,
    /// The path of the file in the text of the module.
    file: &'g str,
    /// Names of the tensors that were found.
    used: HashSet<&'g str>,
}

impl<'g> Weights<'g> {
    /// The tensors of a file that the module's text calls `file`.
    pub fn new(gguf: &'g Gguf, file: &'g str) -> Self {
        Weights { gguf, file, used: HashSet::new() }
    }

    /// The tensor of this name, checked against its description; `None` when it is optional and
    /// not there. `prefix` stands before the names of the description.
    ///
    /// # Errors
    /// When it is missing, or has another shape or type.
    pub fn find(&mut self, prefix: &str, spec: &Spec) -> Result<Option<TensorInfo>, ArchError> {
        let name = format!("{prefix}{}", spec.name);
        let stacked = spec.within.and_then(|within| {
            Some((within, self.gguf.tensor(&format!("{prefix}{}", within.name))?))
        });
        if let Some((within, tensor)) = stacked {
            let mut shape = spec.shape.clone();
            shape[0] = within.rows;
            self.check(tensor, spec, &shape)?;
            self.used.insert(&tensor.name);
            let row = tensor.bytes / within.rows;
            return Ok(Some(TensorInfo {
                name,
                dtype: tensor.dtype,
                shape: file_order(&spec.shape),
                part: tensor.part,
                offset: tensor.offset + within.first * row,
                bytes: spec.shape[0] * row,
            }));
        }
        if let Some(tensor) = self.gguf.tensor(&name) {
            self.check(tensor, spec, &spec.shape)?;
            self.used.insert(&tensor.name);
            return Ok(Some(tensor.clone()));
        }
        match spec.optional {
            true => Ok(None),
            false => Err(self.missing(name, spec)),
        }
    }

    fn missing(&self, name: String, spec: &Spec) -> ArchError {
        let path = self.gguf.path().to_owned();
        ArchError::MissingTensor { path, name, expected: file_order(&spec.shape) }
    }

    fn check(&self, tensor: &TensorInfo, spec: &Spec, shape: &[u64]) -> Result<(), ArchError> {
        let path = || self.gguf.path().to_owned();
        let name = || tensor.name.clone();
        let mut expected = file_order(shape);
        if spec.count > 1 {
            expected[1] /= spec.count;
            expected.push(spec.count);
        }
        // Trailing dimensions of one are no difference.
        let significant = |s: &[u64]| {
            let n = s.iter().rposition(|&d| d != 1).map_or(0, |i| i + 1);
            s[..n].to_vec()
        };
        if significant(&tensor.shape) != significant(&expected) {
            let found = tensor.shape.clone();
            return Err(ArchError::Shape { path: path(), name: name(), expected, found });
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
            return Err(ArchError::Type { path: path(), name: name(), expected: what, found });
        }
        Ok(())
    }

    /// The tensor that has a weight's rows among others, where the file stacks them.
    pub(super) fn stacked(&self, prefix: &str, spec: &Spec) -> Option<Within> {
        let of = |within: &Within| self.gguf.tensor(&format!("{prefix}{}", within.name)).is_some();
        spec.within.filter(of)
    }

    /// Refuses a file that has tensors that nothing asked for: what they would do is not known.
    ///
    /// # Errors
    /// Names the first.
    pub fn all_used(&self) -> Result<(), ArchError> {
        let known =
            |name: &str| self.used.contains(name) || NOT_NEEDED.iter().any(|n| name.ends_with(n));
        match self.gguf.tensors().iter().find(|t| !known(&t.name)) {
            None => Ok(()),
            Some(tensor) => Err(ArchError::UnknownTensor {
                path: self.gguf.path().to_owned(),
                name: tensor.name.clone(),
            }),
        }
    }

    /// As [`Weights::find`], for tensors of the whole model that are not optional.
    ///
    /// # Errors
    /// As [`Weights::find`].
    pub fn require(&mut self, spec: &Spec) -> Result<TensorInfo, ArchError> {
        let required = Spec { optional: false, ..spec.clone() };
        self.find("", &required)?.ok_or_else(|| self.missing(spec.name.to_owned(), spec))
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
        let path = match tensor.part {
            0 => self.file.to_owned(),
            part => self.gguf.parts()[part].path().to_string_lossy().into_owned(),
        };
        let data =
            ConstData::File { path, offset: tensor.offset, bytes: tensor.bytes, sha256: None };
        module.add_const(name.clone(), ty.clone(), data);
        (name, ty)
    }
}

/// Row length first.
pub(super) fn file_order(shape: &[u64]) -> Vec<u64> {
    shape.iter().rev().copied().collect()
}

/// The tensor's name without `.weight`; biases keep their ending.
pub(super) fn const_name(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}
