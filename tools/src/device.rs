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
    /// A GPU when there is one that is no software driver, for what is faster there by an estimate; else the processor
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

    /// Memory of the GPU that may be used, such as 4GiB; weights that do not fit pass through it in every step
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Device")]
    pub gpu_memory: Option<u64>,
}

/// A number of bytes: `4GiB`, `512MiB`, `1.5GB`, `65536`.
///
/// # Errors
/// When it is none, or not between one and 2^60.
pub fn bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        unit => return Err(format!("{unit:?} is no unit of bytes: KiB, MiB, GiB, KB, MB, GB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{number:?} is no number"))?;
    let bytes = number * scale as f64;
    if bytes < 1.0 || bytes > (1u64 << 60) as f64 {
        return Err("it must be between one byte and 2^60".to_owned());
    }
    Ok(bytes as u64)
}

impl DeviceArgs {
    /// Whether any of them is there.
    pub fn is_given(&self) -> bool {
        self.device.is_some()
            || self.gpu.is_some()
            || self.gpu_layers.is_some()
            || self.gpu_memory.is_some()
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
        let options =
            GpuOptions { name: self.gpu.clone(), memory: self.gpu_memory, ..GpuOptions::default() };
        let or_cpu = |error: GpuError| {
            tracing::warn!(%error, "using the CPU");
            Ok(None)
        };
        match self.choice() {
            DeviceChoice::Cpu | DeviceChoice::Gpu if self.gpu_layers.is_some() => {
                bail!("--gpu-layers splits a model: use it with --device hybrid or auto")
            }
            DeviceChoice::Cpu if self.gpu_memory.is_some() => {
                bail!("--gpu-memory is of a GPU: use it with --device gpu, hybrid or auto")
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

    /// Whether the CPU takes over when the GPU is lost.
    pub fn falls_back(&self) -> bool {
        matches!(self.choice(), DeviceChoice::Auto | DeviceChoice::Hybrid)
    }

    /// What of a model these put on the GPU.
    pub fn placement(&self) -> Placement {
        match (self.choice(), self.gpu_layers) {
            (_, Some(layers)) => Placement::LastCalls(layers),
            (DeviceChoice::Hybrid, None) => Placement::Supported,
            (DeviceChoice::Auto, None) => Placement::Balanced,
            (DeviceChoice::Cpu | DeviceChoice::Gpu, None) => Placement::Whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(device: Option<DeviceChoice>, gpu_layers: Option<usize>) -> DeviceArgs {
        DeviceArgs { device, gpu: None, gpu_layers, gpu_memory: None }
    }

    #[test]
    fn sizes_have_units() {
        let table = [
            ("4GiB", 4 << 30),
            ("512 MiB", 512 << 20),
            ("1.5kb", 1500),
            ("65536", 65536),
            ("2G", 2 << 30),
        ];
        for (text, want) in table {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
        for text in ["", "GiB", "4TiB", "1.2.3", "0", "-1", "1e9", "99999999999GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        let limited = DeviceArgs { gpu_memory: Some(1), ..args(None, None) };
        assert!(limited.open().is_err());
    }

    #[test]
    fn layers_mean_hybrid() {
        use DeviceChoice::{Auto, Cpu, Gpu, Hybrid};
        let table = [
            (None, None, Placement::Whole),
            (Some(Gpu), None, Placement::Whole),
            (Some(Hybrid), None, Placement::Supported),
            (Some(Auto), None, Placement::Balanced),
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
