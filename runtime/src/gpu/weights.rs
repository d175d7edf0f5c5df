//! Weights of a GPU's programs: where their bytes come from, and which programs share them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aether_codegen_wgsl::constants::{Constant, Recipe};
use aether_ir::tensor::Bytes;
use aether_ir::{ConstSource, Module, TensorType};

use super::GpuError;
use super::device::{Gpu, GpuTensor};
use super::registry::{Content, Sink, Source};
use crate::RuntimeError;

/// A constant and the bytes that it is made of, which stay where they are: in the mapped file, or
/// in the module. They are brought into the device's layout piece by piece whenever it is wanted.
pub(crate) struct HostWeight {
    constant: Constant,
    raw: Bytes,
}

impl Source for HostWeight {
    fn pieces(&self, each: &mut Sink<'_>) -> Result<(), GpuError> {
        self.constant.pieces(&self.raw, |offset, bytes| each(offset, bytes))
    }
}

/// A weight that some program uses.
#[derive(Clone)]
pub(crate) struct Weight {
    pub host: Arc<HostWeight>,
    /// In memory of its own, when it is on the device.
    pub tensor: Arc<GpuTensor>,
}

/// The weights of a model, by name and type: its programs on one GPU share them.
#[derive(Default)]
pub struct Weights {
    known: Mutex<HashMap<(Arc<str>, TensorType), Weight>>,
}

impl Weights {
    fn lock(&self) -> MutexGuard<'_, HashMap<(Arc<str>, TensorType), Weight>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The weight of a constant. Nothing is moved.
    ///
    /// # Errors
    /// When its bytes cannot be had.
    pub(crate) fn get(
        &self,
        gpu: &Gpu,
        constant: &Constant,
        module: &Module,
        source: &dyn ConstSource,
    ) -> Result<Weight, RuntimeError> {
        let key = match &constant.recipe {
            Recipe::Named(name) => Some((name.clone(), constant.ty.clone())),
            Recipe::Bytes(_) => None,
        };
        let known = key.as_ref().and_then(|key| self.lock().get(key).cloned());
        if let Some(known) = known {
            return Ok(known);
        }
        let raw = constant.raw(module, source)?;
        let host = Arc::new(HostWeight { constant: constant.clone(), raw });
        let content = Content::Clean(host.clone());
        let tensor = gpu.registry().tensor(constant.name(), constant.bytes, content);
        let weight = Weight { host, tensor };
        self.lock().extend(key.map(|key| (key, weight.clone())));
        Ok(weight)
    }
}
