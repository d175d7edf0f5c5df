//! A program on a GPU: its pipelines, its weights.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aether_codegen_wgsl::GpuProgram;
use aether_codegen_wgsl::constants::Recipe;
use aether_ir::{ConstSource, Module, TensorType};

use super::device::Pipeline;
use super::{Gpu, GpuError};
use crate::RuntimeError;

/// Bytes that are on their way to the device at most.
const IN_FLIGHT: u64 = 64 << 20;

/// The weights that are on a GPU, by name and type: programs of one model share them.
#[derive(Default)]
pub struct Weights {
    buffers: Mutex<HashMap<(Arc<str>, TensorType), wgpu::Buffer>>,
}

/// A program, ready for sessions.
pub struct GpuExecutable {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) program: GpuProgram,
    /// By shader.
    pub(crate) pipelines: Vec<Arc<Pipeline>>,
    /// By constant.
    pub(crate) constants: Vec<wgpu::Buffer>,
    constant_bytes: u64,
}

impl GpuExecutable {
    /// Makes the pipelines and uploads the constants that are not there yet.
    ///
    /// # Errors
    /// When a constant is missing, or the GPU refuses a shader or has no memory left.
    pub fn load(
        gpu: Arc<Gpu>,
        program: GpuProgram,
        module: &Module,
        source: &dyn ConstSource,
        weights: &Weights,
    ) -> Result<GpuExecutable, RuntimeError> {
        let pipelines =
            program.shaders.iter().map(|s| gpu.pipeline(s)).collect::<Result<Vec<_>, _>>()?;
        gpu.save_pipelines();
        let mut constants = Vec::with_capacity(program.constants.len());
        let mut in_flight = 0;
        for constant in &program.constants {
            let key = match &constant.recipe {
                Recipe::Named(name) => Some((name.clone(), constant.ty.clone())),
                Recipe::Bytes(_) => None,
            };
            let mut known = weights.buffers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = key.as_ref().and_then(|key| known.get(key)) {
                constants.push(found.clone());
                continue;
            }
            let bytes = constant.load(module, source)?;
            let label = constant.name();
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
            let buffer = gpu.buffer(label, bytes.len() as u64, usage)?;
            gpu.queue.write_buffer(&buffer, 0, &bytes);
            in_flight += bytes.len() as u64;
            if in_flight > IN_FLIGHT {
                gpu.wait(gpu.queue.submit([]))?;
                in_flight = 0;
            }
            known.extend(key.map(|key| (key, buffer.clone())));
            constants.push(buffer);
        }
        gpu.wait(gpu.queue.submit([]))?;
        let constant_bytes = program.constants.iter().map(|c| c.bytes).sum();
        Ok(GpuExecutable { gpu, program, pipelines, constants, constant_bytes })
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// What runs.
    pub fn program(&self) -> &GpuProgram {
        &self.program
    }

    /// Bytes of the constants.
    pub fn constant_bytes(&self) -> u64 {
        self.constant_bytes
    }
}

impl From<GpuError> for RuntimeError {
    fn from(e: GpuError) -> Self {
        RuntimeError::Gpu(e)
    }
}
