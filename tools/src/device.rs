//! `--device` and what belongs to it.

use std::sync::Arc;

use aether_runtime::Placement;
use aether_runtime::gpu::{Gpu, GpuError, GpuOptions};
use anyhow::bail;
use clap::{Args, ValueEnum};

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// The processor
    Cpu,
    /// A GPU; an error when there is none, or it has no kernel for something
    Gpu,
    /// A GPU when there is one that is no software driver, else the processor
    Auto,
    /// A GPU as far as it has kernels, or for as many layers as --gpu-layers says, and the processor for the rest
    Hybrid,
}

/// Options of every command that runs a model.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Where to run; hybrid when --gpu-layers is given, else cpu
    #[arg(long, value_enum, help_heading = "Device")]
    pub device: Option<DeviceChoice>,

    /// Part of the GPU's name, when there are several [env: AETHER_GPU]
    #[arg(long, value_name = "NAME", help_heading = "Device")]
    pub gpu: Option<String>,

    /// Layers that run on the GPU, counted from the last; one more than there are takes the head with them
    #[arg(long, value_name = "N", help_heading = "Device")]
    pub gpu_layers: Option<usize>,
}

impl DeviceArgs {
    /// Whether any of them is there.
    pub fn is_given(&self) -> bool {
        self.device.is_some() || self.gpu.is_some() || self.gpu_layers.is_some()
    }

    fn choice(&self) -> DeviceChoice {
        let unsaid =
            if self.gpu_layers.is_some() { DeviceChoice::Hybrid } else { DeviceChoice::Cpu };
        self.device.unwrap_or(unsaid)
    }

    /// The GPU that these mean; `None` for the processor.
    ///
    /// # Errors
    /// When a GPU is asked for and cannot be had, or options contradict one another.
    pub fn open(&self) -> anyhow::Result<Option<Arc<Gpu>>> {
        let options = GpuOptions { name: self.gpu.clone(), ..GpuOptions::default() };
        let or_cpu = |error: GpuError| {
            tracing::warn!(%error, "using the CPU");
            Ok(None)
        };
        match self.choice() {
            DeviceChoice::Cpu | DeviceChoice::Gpu if self.gpu_layers.is_some() => {
                bail!("--gpu-layers splits a model: use it with --device hybrid or auto")
            }
            DeviceChoice::Cpu => Ok(None),
            DeviceChoice::Gpu => Ok(Gpu::open(&options).map(Some)?),
            DeviceChoice::Hybrid => Gpu::open(&options).map(Some).or_else(or_cpu),
            DeviceChoice::Auto => match Gpu::open(&options) {
                Ok(gpu) if !gpu.is_software() => Ok(Some(gpu)),
                Ok(gpu) => {
                    tracing::info!(gpu = gpu.name(), "a driver in software: using the CPU");
                    Ok(None)
                }
                Err(error) => or_cpu(error),
            },
        }
    }

    /// What of a model these put on the GPU.
    pub fn placement(&self) -> Placement {
        match (self.choice(), self.gpu_layers) {
            (_, Some(layers)) => Placement::LastCalls(layers),
            (DeviceChoice::Hybrid | DeviceChoice::Auto, None) => Placement::Supported,
            (DeviceChoice::Cpu | DeviceChoice::Gpu, None) => Placement::Whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(device: Option<DeviceChoice>, gpu_layers: Option<usize>) -> DeviceArgs {
        DeviceArgs { device, gpu: None, gpu_layers }
    }

    #[test]
    fn layers_mean_hybrid() {
        use DeviceChoice::{Auto, Cpu, Gpu, Hybrid};
        let table = [
            (None, None, Placement::Whole),
            (Some(Gpu), None, Placement::Whole),
            (Some(Hybrid), None, Placement::Supported),
            (Some(Auto), None, Placement::Supported),
            (Some(Hybrid), Some(0), Placement::LastCalls(0)),
            (None, Some(7), Placement::LastCalls(7)),
        ];
        for (device, layers, want) in table {
            assert_eq!(args(device, layers).placement(), want, "{device:?} {layers:?}");
        }
        assert_eq!(args(None, Some(7)).choice(), Hybrid);
        for device in [Cpu, Gpu] {
            let error = args(Some(device), Some(1)).open().map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("--device hybrid"), "{device:?}: {error}");
        }
    }
}
