//! A GPU: the adapter, its queue, its pipelines.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aether_codegen_wgsl::Adapter;
use aether_codegen_wgsl::kernel::{Access, Shader};

use super::cache::DiskCache;
use super::registry::{Pins, Registry, Tensor};
use super::{GpuError, MemoryStats};

/// Longest time that a run may take before the device counts as lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What the device said since it was asked last.
#[derive(Default)]
struct Faults {
    /// Why the device is gone: that is then what is wrong, whatever else is reported.
    lost: OnceLock<String>,
    message: Mutex<Option<String>>,
}

impl Faults {
    fn record(&self, message: String) {
        lock(&self.message).get_or_insert(message);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer of values, on a GPU or not.
pub(crate) type GpuTensor = Tensor<Gpu>;

/// A pipeline and the layout of its bind group.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// An open GPU. Programs and sessions share it.
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    adapter: Adapter,
    info: wgpu::AdapterInfo,
    faults: Arc<Faults>,
    pipelines: Mutex<HashMap<Shader, Arc<Pipeline>>>,
    cache: Option<DiskCache>,
    timestamps: bool,
    registry: Arc<Registry<Gpu>>,
    /// Bytes of weights that were handed to the queue since it was waited for.
    pub(crate) in_flight: AtomicU64,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("name", &self.info.name).finish_non_exhaustive()
    }
}

/// How to open a GPU.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Part of the adapter's name, when there are several; the environment's `AETHER_GPU` when
    /// `None`.
    pub name: Option<String>,
    /// Features that are not used although the adapter has them: `f16`, `subgroups`,
    /// `cooperative-matrix`; the environment's `AETHER_GPU_WITHOUT`, separated by commas, when
    /// empty.
    pub without: Vec<String>,
    /// Bytes of the device's memory that weights, caches, arenas, arguments and results may take;
    /// what the device has when `None`.
    pub memory: Option<u64>,
}

/// Waits for a future of wgpu's: on native systems they are ready when they are asked, or become
/// so by polling the device.
pub(crate) fn ready<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

impl Gpu {
    /// Names of the adapters of this machine.
    pub fn names() -> Vec<String> {
        let adapters = ready(instance().enumerate_adapters(wgpu::Backends::VULKAN));
        adapters.unwrap_or_default().iter().map(|a| a.get_info().name).collect()
    }

    /// Opens the best adapter: a discrete GPU before an integrated one before a software driver.
    ///
    /// # Errors
    /// When there is none, or it cannot be opened.
    pub fn open(options: &GpuOptions) -> Result<Arc<Gpu>, GpuError> {
        let adapters = ready(instance().enumerate_adapters(wgpu::Backends::VULKAN));
        let mut adapters = adapters.unwrap_or_default();
        let wanted = options.name.clone().or_else(|| std::env::var("AETHER_GPU").ok());
        if let Some(part) = &wanted {
            let part = part.to_lowercase();
            let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
            adapters.retain(|a| a.get_info().name.to_lowercase().contains(&part));
            if adapters.is_empty() {
                return Err(GpuError::NoSuchAdapter { wanted: part, found: names });
            }
        }
        let rank = |a: &wgpu::Adapter| match a.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        adapters.sort_by_key(rank);
        let adapter = adapters.into_iter().next().ok_or(GpuError::NoAdapter)?;
        Gpu::from_adapter(&adapter, options)
    }

    fn from_adapter(adapter: &wgpu::Adapter, options: &GpuOptions) -> Result<Arc<Gpu>, GpuError> {
        use wgpu::Features as F;
        let info = adapter.get_info();
        let mut without = options.without.clone();
        if without.is_empty()
            && let Ok(list) = std::env::var("AETHER_GPU_WITHOUT")
        {
            without = list.split(',').map(|s| s.trim().to_owned()).collect();
        }
        let with = |name: &str| !without.iter().any(|w| w == name);
        let offered = adapter.features();
        let squares = adapter.cooperative_matrix_properties().iter().any(|p| {
            (p.m_size, p.n_size, p.k_size) == (16, 16, 16)
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        });
        let mut features = offered & (F::TIMESTAMP_QUERY | F::TIMESTAMP_QUERY_INSIDE_PASSES);
        let f16 = with("f16") && offered.contains(F::SHADER_F16);
        if f16 {
            features |= F::SHADER_F16;
        }
        let lanes = (info.subgroup_min_size, info.subgroup_max_size);
        let same = lanes.0 == lanes.1 && lanes.0 >= 4;
        let subgroup = with("subgroups") && same && offered.contains(F::SUBGROUP);
        if subgroup {
            features |= offered & (F::SUBGROUP | F::SUBGROUP_BARRIER);
        }
        let cooperative_matrix = with("cooperative-matrix")
            && f16
            && squares
            && offered.contains(F::EXPERIMENTAL_COOPERATIVE_MATRIX);
        // SAFETY: the shaders that use the feature are our own, are validated by naga, and are
        // tested against the interpreter on adapters that have it.
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        if cooperative_matrix {
            features |= F::EXPERIMENTAL_COOPERATIVE_MATRIX;
            experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        features |= offered & F::PIPELINE_CACHE;
        let limits = adapter.limits();
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("aether"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        });
        let opened = ready(request).ok_or_else(|| GpuError::Open {
            name: info.name.clone(),
            message: "the driver does not answer".to_owned(),
        })?;
        let (device, queue) = opened
            .map_err(|e| GpuError::Open { name: info.name.clone(), message: e.to_string() })?;
        let faults = Arc::new(Faults::default());
        let at = faults.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| at.record(e.to_string())));
        let at = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            let message = match reason {
                wgpu::DeviceLostReason::Destroyed => "it was given up",
                wgpu::DeviceLostReason::Unknown => &message,
            };
            // It is lost once.
            let _ = at.lost.set(format!("the GPU was lost: {message}"));
        });
        let cache =
            features.contains(F::PIPELINE_CACHE).then(|| DiskCache::open(&device, &info)).flatten();
        let adapter = Adapter {
            f16,
            subgroup: subgroup.then_some(lanes.0),
            cooperative_matrix,
            workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            workgroups_per_axis: limits.max_compute_workgroups_per_dimension,
            binding_bytes: limits.max_storage_buffer_binding_size,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
        };
        tracing::debug!(name = info.name, ?adapter, "opened a GPU");
        let timestamps = features.contains(F::TIMESTAMP_QUERY | F::TIMESTAMP_QUERY_INSIDE_PASSES);
        Ok(Arc::new(Gpu {
            device,
            queue,
            adapter,
            info,
            faults,
            pipelines: Mutex::default(),
            cache,
            timestamps,
            registry: Registry::new(options.memory),
            in_flight: AtomicU64::new(0),
        }))
    }

    /// The adapter's name and driver.
    pub fn name(&self) -> String {
        format!("{} ({})", self.info.name, self.info.driver)
    }

    /// Features and limits, as kernels are shaped by them.
    pub fn adapter(&self) -> Adapter {
        self.adapter
    }

    /// Whether the driver computes on the processor.
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Whether single dispatches can be timed.
    pub fn has_timestamps(&self) -> bool {
        self.timestamps
    }

    /// What the device reported since this was asked last.
    ///
    /// # Errors
    /// The first report; that the device is lost, from then on always.
    pub(crate) fn check(&self) -> Result<(), GpuError> {
        if let Some(message) = self.faults.lost.get() {
            return Err(GpuError::Lost(message.clone()));
        }
        match lock(&self.faults.message).take() {
            None => Ok(()),
            Some(message) => Err(GpuError::Device(message)),
        }
    }

    /// Waits until a submission is done.
    ///
    /// # Errors
    /// When the device is lost or does not answer.
    pub(crate) fn wait(&self, submission: wgpu::SubmissionIndex) -> Result<(), GpuError> {
        let poll =
            wgpu::PollType::Wait { submission_index: Some(submission), timeout: Some(PATIENCE) };
        match self.device.poll(poll) {
            Ok(_) => self.check(),
            Err(wgpu::PollError::Timeout) => Err(GpuError::Timeout(PATIENCE)),
            Err(e) => Err(self.failed(e)),
        }
    }

    /// The error for something that failed: what the device reported, if it did.
    pub(crate) fn failed(&self, found: impl std::fmt::Display) -> GpuError {
        self.check().err().unwrap_or_else(|| GpuError::Device(found.to_string()))
    }

    /// Gives the device up, whatever it is doing: runs end with [`GpuError::Lost`].
    pub fn destroy(&self) {
        // The device tells it only when it is polled next.
        let _ = self.faults.lost.set("the GPU was lost: it was given up".to_owned());
        self.device.destroy();
    }

    pub(crate) fn registry(&self) -> &Arc<Registry<Gpu>> {
        &self.registry
    }

    /// Keeps tensors on the device until the pins are dropped.
    ///
    /// # Errors
    /// As [`Registry::pin`].
    pub(crate) fn pin(&self, tensors: &[Arc<GpuTensor>]) -> Result<Pins<Gpu>, GpuError> {
        self.registry.pin(self, tensors)
    }

    /// What lies in its memory, and what came and went.
    pub fn memory(&self) -> MemoryStats {
        self.registry.stats()
    }

    /// Bytes that the driver's memory holds for this device now, as far as that is known.
    pub fn allocated(&self) -> Option<u64> {
        self.device.generate_allocator_report().map(|report| report.total_allocated_bytes)
    }

    /// A buffer of whole words.
    ///
    /// # Errors
    /// When it is larger than the device allows, or there is no memory for it.
    pub(crate) fn buffer(
        &self,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, GpuError> {
        self.make(label, bytes, usage, false)
    }

    /// A buffer of whole words that is mapped for writing, to copy from.
    ///
    /// # Errors
    /// As [`Gpu::buffer`].
    pub(crate) fn upload_buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        self.make(label, bytes, wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC, true)
    }

    fn make(
        &self,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer, GpuError> {
        let most = self.device.limits().max_buffer_size;
        let size = bytes.max(4).next_multiple_of(4);
        if size > most {
            return Err(GpuError::BufferSize { what: label.to_owned(), bytes: size, most });
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: mapped,
        });
        match ready(scope.pop()).flatten() {
            None => Ok(buffer),
            Some(_) if self.faults.lost.get().is_some() => self.check().map(|()| buffer),
            Some(_) => Err(GpuError::Memory { what: label.to_owned(), bytes: size }),
        }
    }

    /// A buffer that shaders read and write, filled with zeros.
    ///
    /// # Errors
    /// As [`Gpu::buffer`].
    pub(crate) fn storage(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        use wgpu::BufferUsages as U;
        self.buffer(label, bytes, U::STORAGE | U::COPY_DST | U::COPY_SRC)
    }

    /// The pipeline of a shader, made when it is asked for first.
    ///
    /// # Errors
    /// When the adapter lacks what the shader needs, or the driver refuses it.
    pub(crate) fn pipeline(&self, shader: &Shader) -> Result<Arc<Pipeline>, GpuError> {
        if let Some(found) = lock(&self.pipelines).get(shader) {
            return Ok(found.clone());
        }
        let needs = shader.needs;
        let lacks = (needs.f16 && !self.adapter.f16)
            || (needs.subgroups && self.adapter.subgroup.is_none())
            || (needs.cooperative_matrix && !self.adapter.cooperative_matrix);
        if lacks {
            return Err(GpuError::Shader {
                name: shader.name,
                message: "it needs what this GPU has not".to_owned(),
            });
        }
        let failed =
            |e: wgpu::Error| GpuError::Shader { name: shader.name, message: e.to_string() };
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(shader.name),
            source: wgpu::ShaderSource::Wgsl(shader.wgsl.as_ref().into()),
        };
        let module = if shader.in_bounds {
            let checks = wgpu::ShaderRuntimeChecks::unchecked();
            // SAFETY: the generator declares that every index stays inside its binding for all
            // values of the symbols in their ranges, which are checked before each run, and that
            // loops end.
            unsafe { self.device.create_shader_module_trusted(descriptor, checks) }
        } else {
            self.device.create_shader_module(descriptor)
        };
        let mut entries = vec![wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        }];
        entries.extend(shader.bindings.iter().zip(1..).map(|(access, binding)| {
            wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            }
        }));
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(shader.name),
            entries: &entries,
        });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(shader.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(shader.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                // Shaders write before they read.
                zero_initialize_workgroup_memory: false,
            },
            cache: self.cache.as_ref().map(DiskCache::cache),
        });
        if let Some(e) = ready(scope.pop()).flatten() {
            return Err(failed(e));
        }
        let made = Arc::new(Pipeline { pipeline, layout });
        lock(&self.pipelines).insert(shader.clone(), made.clone());
        Ok(made)
    }

    /// Writes pipelines made so far to disk, for the next process.
    pub(crate) fn save_pipelines(&self) {
        if let Some(cache) = &self.cache {
            cache.save();
        }
    }
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN;
    descriptor.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(descriptor)
}
