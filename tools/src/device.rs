//! `--device` and what belongs to it.

use std::sync::Arc;

use aether_runtime::gpu::{Gpu, GpuError, GpuOptions};
use clap::{Args, ValueEnum};

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// The processor
    Cpu,
    /// A GPU; an error when there is none
    Gpu,
    /// A GPU when there is one that is no software driver, else the processor
    Auto,
}

/// Options of every command that runs a model.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Where to run
    #[arg(long, value_enum, default_value = "cpu", help_heading = "Device")]
    pub device: DeviceChoice,

    /// Part of the GPU's name, when there are several [env: AETHER_GPU]
    #[arg(long, value_name = "NAME", help_heading = "Device")]
    pub gpu: Option<String>,
}

impl DeviceArgs {
    /// The GPU that these mean; `None` for the processor.
    ///
    /// # Errors
    /// When a GPU is asked for and cannot be had.
    pub fn open(&self) -> Result<Option<Arc<Gpu>>, GpuError> {
        let options = GpuOptions { name: self.gpu.clone(), ..GpuOptions::default() };
        match self.device {
            DeviceChoice::Cpu => Ok(None),
            DeviceChoice::Gpu => Gpu::open(&options).map(Some),
            DeviceChoice::Auto => match Gpu::open(&options) {
                Ok(gpu) if !gpu.is_software() => Ok(Some(gpu)),
                Ok(gpu) => {
                    tracing::info!(gpu = gpu.name(), "a driver in software: using the CPU");
                    Ok(None)
                }
                Err(error) => {
                    tracing::warn!(%error, "using the CPU");
                    Ok(None)
                }
            },
        }
    }
}
