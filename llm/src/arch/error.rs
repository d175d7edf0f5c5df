//! What can keep a file from becoming a module.

use std::path::PathBuf;

use aether_ir::{BuildError, DType};

use crate::gguf::GgufError;

/// A model file cannot be turned into IR.
#[derive(Debug, thiserror::Error)]
pub enum ArchError {
    /// A metadata key is missing or wrong.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(
        "{}: architecture {name:?} is not supported; supported are {}",
        path.display(),
        supported.join(", ")
    )]
    Unsupported { path: PathBuf, name: String, supported: Vec<&'static str> },
    #[error(
        "{}: this is one of {count} parts of a model; make one file of them \
         (llama.cpp's `llama-gguf-split --merge` does) and use that",
        path.display()
    )]
    Part { path: PathBuf, count: u64 },
    #[error(
        "{}: this is {kind:?} (general.type), not a model; \
         an adapter is given beside its model, with --lora",
        path.display()
    )]
    NotAModel { path: PathBuf, kind: String },
    /// An adapter cannot be used, or not with this model.
    #[error("{}: {problem}", path.display())]
    Adapter { path: PathBuf, problem: String },
    /// A key has a value that makes no sense, or a variant that is not supported.
    #[error("{}: metadata key {key:?} is {value}, but {expected}", path.display())]
    Key { path: PathBuf, key: String, value: String, expected: String },
    #[error("{}: tensor {name:?} is missing; it should have shape {expected:?}", path.display())]
    MissingTensor { path: PathBuf, name: String, expected: Vec<u64> },
    /// The file has a tensor whose part in the computation is not known.
    #[error(
        "{}: tensor {name:?} is not part of the architecture as it is supported here; \
         without it the model would compute something else",
        path.display()
    )]
    UnknownTensor { path: PathBuf, name: String },
    /// Shapes in the order of the file, row length first.
    #[error(
        "{}: tensor {name:?} has shape {found:?}, but {expected:?} was expected",
        path.display()
    )]
    Shape { path: PathBuf, name: String, expected: Vec<u64>, found: Vec<u64> },
    #[error("{}: tensor {name:?} has type {found}, but {expected} was expected", path.display())]
    Type { path: PathBuf, name: String, expected: &'static str, found: DType },
    /// Rows of a cache are whole blocks.
    #[error(
        "{}: a cache of {what} in {dtype} needs heads of a multiple of {block} elements, those of \
         the model have {len}; take f16",
        path.display()
    )]
    CacheType { path: PathBuf, what: &'static str, dtype: DType, block: usize, len: u64 },
    /// The blocks of an architecture do not fit together.
    #[error("{}: the model cannot be built: {source}", path.display())]
    Build { path: PathBuf, source: BuildError },
}
