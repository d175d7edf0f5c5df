//! A program on a GPU: its pipelines, its weights.

use std::sync::Arc;

use aether_codegen_wgsl::GpuProgram;
use aether_codegen_wgsl::program::Buffer;
use aether_ir::{ConstSource, Module};

use super::device::{GpuTensor, Pipeline};
use super::memory::Layout;
use super::registry::Content;
use super::staging::Stagings;
use super::stream::{self, Demand, Segment, TooSmall};
use super::weights::{HostWeight, Weight, Weights};
use super::{Gpu, GpuError};
use crate::RuntimeError;

/// A constant of a program.
pub(crate) enum Constant {
    /// On the device in every run.
    Resident(Weight),
    /// Brought for its segment in every run.
    Streamed(Arc<HostWeight>),
}

/// How weights pass through the device that do not stay.
pub(crate) struct Stream {
    pub pool: Arc<GpuTensor>,
    pub stagings: Arc<Stagings>,
}

/// A program, ready for sessions.
pub struct GpuExecutable {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) program: GpuProgram,
    /// By shader.
    pub(crate) pipelines: Vec<Arc<Pipeline>>,
    /// By constant of the program.
    pub(crate) constants: Vec<Constant>,
    /// The steps, cut where other weights are brought; one segment when all stay.
    segments: Vec<Segment>,
    pub(crate) stream: Option<Stream>,
    constant_bytes: u64,
    streamed_bytes: u64,
}

impl GpuExecutable {
    /// Makes the pipelines and uploads the constants that are not there yet. Where the limit leaves
    /// no room for all, some pass through in every run.
    ///
    /// # Errors
    /// When a constant is missing, the GPU refuses a shader or has no memory left, or the limit is
    /// too small for what one step reads.
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
        let mut found = Vec::with_capacity(program.constants.len());
        let mut demands = Vec::with_capacity(program.constants.len());
        for constant in &program.constants {
            let weight = weights.get(&gpu, constant, module, source)?;
            demands.push(Demand { bytes: constant.bytes, kept: weight.tensor.is_resident() });
            found.push(weight);
        }
        let plan = plan(&gpu, &program, &demands)?;
        let constants: Vec<Constant> = found
            .into_iter()
            .zip(&plan.resident)
            .map(|(weight, &stays)| match stays {
                true => Constant::Resident(weight),
                false => Constant::Streamed(weight.host),
            })
            .collect();
        let stay = constants.iter().filter_map(|constant| match constant {
            Constant::Resident(weight) => Some(weight.tensor.clone()),
            Constant::Streamed(_) => None,
        });
        let stay: Vec<Arc<GpuTensor>> = stay.collect();
        drop(gpu.pin(&stay)?);
        gpu.wait(gpu.queue.submit([]))?;
        let constant_bytes = program.constants.iter().map(|c| c.bytes).sum();
        let streamed_bytes =
            plan.segments.iter().flat_map(|s| &s.uploads).map(|u| u.bytes).sum::<u64>();
        let stream = (streamed_bytes > 0).then(|| {
            let most = plan.segments.iter().map(Segment::bytes).max().unwrap_or(0);
            tracing::info!(
                weights = constant_bytes,
                streamed = streamed_bytes,
                segments = plan.segments.len(),
                pool = plan.pool,
                "weights exceed the GPU's memory limit: some pass through in every step"
            );
            Stream {
                pool: gpu.registry().tensor("the weights that pass", plan.pool, Content::Scratch),
                stagings: Stagings::new(most),
            }
        });
        let segments = plan.segments;
        Ok(GpuExecutable {
            gpu,
            program,
            pipelines,
            constants,
            segments,
            stream,
            constant_bytes,
            streamed_bytes,
        })
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

    /// Bytes of constants that every run brings to the device anew; 0 when all stay there.
    pub fn streamed_bytes(&self) -> u64 {
        self.streamed_bytes
    }

    /// Bytes that a session of it takes on the device, beside the constants.
    pub fn session_bytes(&self) -> u64 {
        Layout::of(&self.program).bytes()
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// What stays and what passes through under the device's limit.
fn plan(gpu: &Gpu, program: &GpuProgram, demands: &[Demand]) -> Result<stream::Plan, GpuError> {
    let session = Layout::of(program).bytes();
    let limit = gpu.registry().limit();
    let reads: Vec<Vec<usize>> = program
        .steps
        .iter()
        .map(|step| {
            let constants = step.bindings.iter().filter_map(|b| match b.buffer {
                Buffer::Constant(i) => Some(i),
                _ => None,
            });
            let mut constants: Vec<usize> = constants.collect();
            constants.sort_unstable();
            constants.dedup();
            constants
        })
        .collect();
    let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(session));
    let largest = gpu.device.limits().max_buffer_size;
    stream::plan(&reads, demands, room, largest).map_err(|TooSmall { step, bytes, needed }| {
        let names = reads.get(step).into_iter().flatten();
        let names: Vec<&str> = names.map(|&i| program.constants[i].name()).collect();
        let label = program.steps.get(step).map_or("", |step| &*step.label);
        GpuError::Limit {
            what: format!("`{label}` with {}", names.join(", ")),
            bytes,
            needed: needed.saturating_add(session),
            limit: limit.unwrap_or(u64::MAX),
        }
    })
}

impl From<GpuError> for RuntimeError {
    fn from(e: GpuError) -> Self {
        RuntimeError::Gpu(e)
    }
}
