//! The GPU: devices, the memory of programs and sessions, runs.

mod bandwidth;
mod cache;
mod device;
mod memory;
mod profile;
mod program;
mod registry;
mod run;
mod staging;
mod stream;
mod transfer;
mod weights;

use std::time::Duration;

use aether_codegen_wgsl::CompileError;

pub use device::{Gpu, GpuOptions};
pub use program::GpuExecutable;
pub use registry::MemoryStats;
pub use run::GpuSession;
pub use transfer::DeviceState;
pub use weights::Weights;

/// What can go wrong with a GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    #[error(
        "there is no GPU with a Vulkan driver; install the vendor's driver, or Debian's \
         mesa-vulkan-drivers for a driver in software"
    )]
    NoAdapter,
    #[error("no GPU is called {wanted:?}; there are: {}", found.join(", "))]
    NoSuchAdapter { wanted: String, found: Vec<String> },
    #[error("the GPU {name} cannot be opened: {message}")]
    Open { name: String, message: String },
    #[error("{what} needs a buffer of {bytes} bytes, and this GPU allows {most}")]
    BufferSize { what: String, bytes: u64, most: u64 },
    #[error(
        "the GPU has no memory left for the {bytes} bytes of {what}; use a shorter context, fewer \
         layers on the GPU, or a smaller model"
    )]
    Memory { what: String, bytes: u64 },
    /// The limit that was asked for leaves no room for what must be there at the same time.
    #[error(
        "the GPU's memory limit of {limit} bytes is too small: {what} takes {bytes} bytes, and all \
         that must be there with it {needed}; raise --gpu-memory, or use a shorter context"
    )]
    Limit { what: String, bytes: u64, needed: u64, limit: u64 },
    #[error(transparent)]
    Constant(Box<CompileError>),
    #[error("the GPU refuses the shader {name}: {message}")]
    Shader { name: &'static str, message: String },
    #[error("`{step}` needs {found} workgroups along one axis, and this GPU allows {most}")]
    Workgroups { step: String, found: u64, most: u32 },
    #[error("{0}; start again, or use --device cpu")]
    Lost(String),
    #[error("the GPU did not finish within {0:?}")]
    Timeout(Duration),
    #[error("the GPU reports: {0}")]
    Device(String),
    /// A shader found something wrong in what it was given.
    #[error("{0}")]
    Fault(String),
    #[error("a state belongs to another session")]
    ForeignState,
}

impl From<CompileError> for GpuError {
    fn from(e: CompileError) -> Self {
        GpuError::Constant(Box::new(e))
    }
}
