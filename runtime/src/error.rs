//! What can go wrong between a module and its results.

use std::sync::Arc;

use aether_codegen_cpu::pool::PoolError;
use aether_codegen_cpu::{CompileError, Isa};
use aether_ir::TensorType;
use aether_ir::tensor::TensorError;
use aether_passes::place::PlaceError;
use aether_passes::{ParsePipelineError, PipelineError, PlanError};

use crate::gpu::GpuError;

/// A run cannot start, or failed on the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Program(#[from] aether_codegen_cpu::RunError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// In a part of a module that is split over devices.
    #[error("in @{part}: {source}")]
    Part { part: Arc<str>, source: Box<RunError> },
}

/// A module cannot be compiled or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The module breaks a rule of the IR.
    #[error("{0}")]
    Verify(String),
    #[error(transparent)]
    ParsePipeline(#[from] ParsePipelineError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The memory plan is wrong: a bug of the planner, found before it can do harm.
    #[error("the memory plan is wrong, which is a bug of the planner: {0}")]
    PlanCheck(String),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("{0}{advice}", advice = advice(.0))]
    CompileGpu(#[source] aether_codegen_wgsl::CompileError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// In a part of a module that is split over devices.
    #[error("in @{part}: {source}")]
    Part { part: Arc<str>, source: Box<RuntimeError> },
    #[error(transparent)]
    Gpu(GpuError),
    #[error("ops are timed on a GPU alone: add --device gpu")]
    NoProfile,
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("this machine cannot run {asked} kernels; it has {}", list(available))]
    Isa { asked: Isa, available: Vec<Isa> },
    /// More memory than can be addressed or had.
    #[error("{what} needs {bytes} bytes, which is more than this machine can give")]
    Memory { what: String, bytes: u64 },
    #[error("@{func} takes {expected} arguments, found {found}")]
    ArgCount { func: Arc<str>, expected: usize, found: usize },
    #[error("argument {index}: expected {expected}, found {found}")]
    ArgType { index: usize, expected: TensorType, found: String },
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl From<aether_codegen_wgsl::CompileError> for RuntimeError {
    fn from(e: aether_codegen_wgsl::CompileError) -> Self {
        RuntimeError::CompileGpu(e)
    }
}

/// What to do about it.
fn advice(e: &aether_codegen_wgsl::CompileError) -> &'static str {
    match e {
        aether_codegen_wgsl::CompileError::Unsupported { .. } => {
            "; with --device hybrid the CPU runs what the GPU has no kernel for"
        }
        _ => "",
    }
}

fn list(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}
