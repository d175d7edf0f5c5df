//! Arrays and parameters in safetensors files, the format of Hugging Face's `safetensors`.
//!
//! Nothing in a file is believed before it is checked: a broken one gives an error. Files are
//! written in the crate's canonical order, so equal arrays give equal bytes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use aether_ir::tensor::ConcreteType;
use aether_ir::{DType, types::MAX_RANK};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};

use super::{Array, ArrayError, Graph, GraphError};

/// A safetensors file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The bytes are no safetensors file.
    #[error("{}: {source}", path.display())]
    Format { path: PathBuf, source: SafeTensorError },
    /// An element type, or a number of axes, that Aether has not.
    #[error("{}: the tensor `{name}` has {what}, which is not supported", path.display())]
    Unsupported { path: PathBuf, name: String, what: String },
    /// A `bool` is neither 0 nor 1.
    #[error("{}: the tensor `{name}` holds bools other than 0 and 1", path.display())]
    Bool { path: PathBuf, name: String },
    /// A tensor does not fit in memory or has no size.
    #[error("{}: the tensor `{name}`: {source}", path.display())]
    Array { path: PathBuf, name: String, source: ArrayError },
    /// A parameter of the graph is not in the file.
    #[error("{}: there is no tensor for the parameter `{name}`", path.display())]
    Missing { path: PathBuf, name: String },
    /// A tensor does not fit its parameter.
    #[error("{}: {source}", path.display())]
    Param { path: PathBuf, source: GraphError },
}

/// The element types that both sides have.
const DTYPES: [(DType, Dtype); 11] = [
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::Bf16, Dtype::BF16),
    (DType::F64, Dtype::F64),
    (DType::I8, Dtype::I8),
    (DType::I16, Dtype::I16),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
    (DType::U8, Dtype::U8),
    (DType::U32, Dtype::U32),
    (DType::Bool, Dtype::BOOL),
];

/// Writes arrays under their names. The file appears whole or not at all.
///
/// # Errors
/// When an element type has no name in the format, or the file cannot be written.
pub fn save_safetensors<'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (&'a str, &'a Array)>,
) -> Result<(), SafetensorsError> {
    let path = path.as_ref();
    let mut views = BTreeMap::new();
    for (name, array) in arrays {
        let dtype = DTYPES.iter().find(|(own, _)| *own == array.dtype());
        let (_, dtype) = dtype.ok_or_else(|| SafetensorsError::Unsupported {
            path: path.into(),
            name: name.to_owned(),
            what: format!("the element type {}", array.dtype()),
        })?;
        let view = TensorView::new(*dtype, array.shape().to_vec(), array.bytes())
            .map_err(|source| SafetensorsError::Format { path: path.into(), source })?;
        views.insert(name.to_owned(), view);
    }
    safetensors::serialize_to_file(views, None, path)
        .map_err(|source| SafetensorsError::Format { path: path.into(), source })
}

/// Reads all arrays of a file, by name.
///
/// # Errors
/// When the file cannot be read, is no safetensors file, or holds what Aether has no type for.
pub fn load_safetensors(
    path: impl AsRef<Path>,
) -> Result<BTreeMap<String, Array>, SafetensorsError> {
    let path = path.as_ref();
    let bytes =
        std::fs::read(path).map_err(|source| SafetensorsError::Io { path: path.into(), source })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|source| SafetensorsError::Format { path: path.into(), source })?;
    let mut arrays = BTreeMap::new();
    for (name, view) in file.iter() {
        let unsupported =
            |what| SafetensorsError::Unsupported { path: path.into(), name: name.to_owned(), what };
        let dtype = DTYPES.iter().find(|(_, theirs)| *theirs == view.dtype());
        let (dtype, _) =
            dtype.ok_or_else(|| unsupported(format!("the element type {:?}", view.dtype())))?;
        if view.shape().len() > MAX_RANK {
            return Err(unsupported(format!("{} axes", view.shape().len())));
        }
        if *dtype == DType::Bool && view.data().iter().any(|&b| b > 1) {
            return Err(SafetensorsError::Bool { path: path.into(), name: name.to_owned() });
        }
        let array = Array::from_bytes(ConcreteType::new(*dtype, view.shape()), view.data());
        let array = array.map_err(|source| SafetensorsError::Array {
            path: path.into(),
            name: name.to_owned(),
            source,
        })?;
        arrays.insert(name.to_owned(), array);
    }
    Ok(arrays)
}

impl Graph {
    /// Writes every parameter under its name, the state of optimisers with them.
    ///
    /// # Errors
    /// As [`save_safetensors`].
    pub fn save_params(&self, path: impl AsRef<Path>) -> Result<(), SafetensorsError> {
        let path = path.as_ref();
        let mut values = Vec::new();
        for (name, param) in self.params() {
            let value = param
                .get()
                .map_err(|source| SafetensorsError::Param { path: path.into(), source })?;
            values.push((name, value));
        }
        save_safetensors(path, values.iter().map(|(name, value)| (&**name, value)))
    }

    /// Sets every parameter to the tensor of its name. Tensors without a parameter are passed
    /// over. No parameter changes unless all fit.
    ///
    /// # Errors
    /// As [`load_safetensors`], and when a tensor is missing or has another type.
    pub fn load_params(&self, path: impl AsRef<Path>) -> Result<(), SafetensorsError> {
        let path = path.as_ref();
        let arrays = load_safetensors(path)?;
        let mut found = Vec::new();
        for (name, param) in self.params() {
            let array = arrays.get(&*name).ok_or_else(|| SafetensorsError::Missing {
                path: path.into(),
                name: name.to_string(),
            })?;
            param
                .accepts(array)
                .map_err(|source| SafetensorsError::Param { path: path.into(), source })?;
            found.push((param, array));
        }
        for (param, array) in found {
            param
                .set(array)
                .map_err(|source| SafetensorsError::Param { path: path.into(), source })?;
        }
        Ok(())
    }
}
