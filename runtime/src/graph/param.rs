//! Parameters: values that live across runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aether_codegen_cpu::AlignedBytes;
use aether_ir::tensor::ConcreteType;

use super::array::allocate;
use super::builder::Leaf;
use super::{Array, ArrayError, GraphError, Tensor};

/// The bytes of one parameter.
pub(super) struct ParamSlot {
    pub name: Arc<str>,
    pub ty: ConcreteType,
    bytes: Mutex<AlignedBytes>,
}

impl ParamSlot {
    pub fn new(name: &str, value: &Array) -> Result<Self, ArrayError> {
        let ty = value.as_tensor().ty();
        let mut bytes = allocate(&ty)?;
        bytes.as_mut_slice().copy_from_slice(value.bytes());
        Ok(ParamSlot { name: name.into(), ty, bytes: Mutex::new(bytes) })
    }

    /// The bytes, for one run.
    pub fn lock(&self) -> MutexGuard<'_, AlignedBytes> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tensor {
    pub(super) fn slot(&self) -> Result<Arc<ParamSlot>, GraphError> {
        let id = self.value()?;
        match self.graph.state().leaves.get(&id) {
            Some(Leaf::Param(slot)) => Ok(slot.clone()),
            _ => Err(GraphError::NoParam),
        }
    }

    /// The present value of a parameter.
    ///
    /// # Errors
    /// When the tensor is no parameter.
    pub fn get(&self) -> Result<Array, GraphError> {
        let slot = self.slot()?;
        let bytes = slot.lock();
        Ok(Array::from_bytes(slot.ty.clone(), bytes.as_slice())?)
    }

    /// The parameter, if the value has its type.
    pub(super) fn accepts(&self, value: &Array) -> Result<Arc<ParamSlot>, GraphError> {
        let slot = self.slot()?;
        if slot.ty != value.as_tensor().ty() {
            let (name, expected) = (slot.name.clone(), slot.ty.to_type());
            return Err(GraphError::ParamType { name, expected, found: value.ty() });
        }
        Ok(slot)
    }

    /// Replaces the value of a parameter.
    ///
    /// # Errors
    /// When the tensor is no parameter, or the value has another type.
    pub fn set(&self, value: &Array) -> Result<(), GraphError> {
        let slot = self.accepts(value)?;
        slot.lock().as_mut_slice().copy_from_slice(value.bytes());
        Ok(())
    }
}
