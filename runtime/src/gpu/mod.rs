//! The GPU: devices, the buffers of programs, runs.

mod cache;
mod device;
mod program;
mod run;

use std::time::Duration;

pub use device::{Gpu, GpuOptions};
pub use program::{GpuExecutable, Weights};
pub use run::{DeviceState, GpuSession};

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
