//! Runs launches on the first Vulkan adapter: buffers, pipelines and bind groups made anew for
//! each, which is enough for tests and for timing dispatches after that.

use std::future::Future;
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use aether_codegen_wgsl::Adapter;
use aether_codegen_wgsl::kernel::{Access, Bind, Launch, Shader};

use crate::emulate;

pub struct Gpu {
    /// One run at a time: the software driver has few threads.
    turn: Mutex<()>,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub adapter: Adapter,
    pub name: String,
    pub timestamps: bool,
}

/// Waits for a future that the native backends finish while they are polled.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
        std::thread::yield_now();
    }
}

impl Gpu {
    /// The first adapter with all that kernels use of it, or why there is none.
    pub fn open() -> Result<Gpu, String> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::VULKAN,
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = wait(instance.request_adapter(&options)).map_err(|e| e.to_string())?;
        let (info, limits) = (adapter.get_info(), adapter.limits());
        let wanted = wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_F16
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        let features = adapter.features() & wanted;
        let descriptor = wgpu::DeviceDescriptor {
            label: None,
            required_features: features,
            required_limits: limits.clone(),
            // SAFETY: the kernels use cooperative matrices as the naga validator allows them.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let (device, queue) =
            wait(adapter.request_device(&descriptor)).map_err(|e| e.to_string())?;
        let one_size = info.subgroup_min_size == info.subgroup_max_size;
        let described = Adapter {
            f16: features.contains(wgpu::Features::SHADER_F16),
            subgroup: (features.contains(wgpu::Features::SUBGROUP) && one_size)
                .then_some(info.subgroup_min_size),
            cooperative_matrix: features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
            workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            workgroups_per_axis: limits.max_compute_workgroups_per_dimension,
            binding_bytes: limits.max_storage_buffer_binding_size,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
        };
        let timestamps = features.contains(
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS,
        );
        Ok(Gpu {
            turn: Mutex::new(()),
            device,
            queue,
            adapter: described,
            name: info.name,
            timestamps,
        })
    }

    /// A buffer of at least `bytes`, for storage and copies.
    pub fn buffer(&self, bytes: u64) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes.max(16).next_multiple_of(16),
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::UNIFORM
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// A buffer with contents.
    pub fn upload(&self, bytes: &[u8]) -> wgpu::Buffer {
        let buffer = self.buffer(bytes.len() as u64);
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(4), 0);
        self.queue.write_buffer(&buffer, 0, &padded);
        buffer
    }

    /// The pipeline of a shader. `checked` keeps the checks of indices and loops.
    pub fn pipeline(&self, shader: &Shader, checked: bool) -> wgpu::ComputePipeline {
        let emulated = shader.needs.cooperative_matrix && !self.adapter.cooperative_matrix;
        let wgsl = match emulated {
            true => emulate::emulated(&shader.wgsl).into(),
            false => shader.wgsl.as_ref().into(),
        };
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(shader.name),
            source: wgpu::ShaderSource::Wgsl(wgsl),
        };
        let module = if checked {
            self.device.create_shader_module(descriptor)
        } else {
            // SAFETY: templates promise that every index stays inside its binding.
            unsafe {
                self.device.create_shader_module_trusted(
                    descriptor,
                    wgpu::ShaderRuntimeChecks::unchecked(),
                )
            }
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
        for (i, access) in shader.bindings.iter().enumerate() {
            entries.push(wgpu::BindGroupLayoutEntry {
                binding: i as u32 + 1,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                ..entries[0]
            });
        }
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &entries,
        });
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(shader.name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        })
    }

    /// The bind group of a launch.
    pub fn bind_group(
        &self,
        pipeline: &wgpu::ComputePipeline,
        launch: &Launch,
        buffers: &Buffers,
    ) -> wgpu::BindGroup {
        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: buffers.symbols.as_entire_binding(),
        }];
        for (i, bind) in launch.binds.iter().enumerate() {
            let resource = match bind {
                Bind::Operand(i) => buffers.operands[*i].as_entire_binding(),
                Bind::Result(i) => buffers.results[*i].as_entire_binding(),
                Bind::Status => buffers.status.as_entire_binding(),
                Bind::Scratch { offset, bytes } => {
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: &buffers.scratch,
                        offset: *offset,
                        size: wgpu::BufferSize::new(*bytes),
                    })
                }
            };
            entries.push(wgpu::BindGroupEntry { binding: i as u32 + 1, resource });
        }
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        })
    }

    /// The contents of a buffer.
    pub fn download(&self, buffer: &wgpu::Buffer, bytes: usize) -> Vec<u8> {
        let size = (bytes as u64).next_multiple_of(4);
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
        self.queue.submit([encoder.finish()]);
        staging.slice(..).map_async(wgpu::MapMode::Read, |r| r.expect("mapping"));
        self.finish();
        let view = staging.slice(..).get_mapped_range().expect("mapped");
        view[..bytes].to_vec()
    }

    /// Whether the launches can run for that adapter: where cooperative matrices are emulated,
    /// subgroups are too narrow for what else uses them.
    pub fn can_run(&self, adapter: &Adapter, launches: &[Launch]) -> bool {
        let foreign = |l: &Launch| l.shader.needs.subgroups && !l.shader.needs.cooperative_matrix;
        !self.emulates(adapter) || !launches.iter().any(foreign)
    }

    /// Whether cooperative matrices are emulated for that adapter, slowly.
    pub fn emulates(&self, adapter: &Adapter) -> bool {
        adapter.cooperative_matrix && !self.adapter.cooperative_matrix
    }

    /// Waits until all submitted work is done.
    pub fn finish(&self) {
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("device");
    }

    /// Runs launches once and gives the results' bytes. Results begin filled with 0xff, so that
    /// what no one writes is NaN.
    pub fn run(
        &self,
        launches: &[Launch],
        operands: &[Vec<u8>],
        results: &[usize],
        scratch: u64,
        symbols: &[u32],
    ) -> Vec<Vec<u8>> {
        let _turn = self.turn.lock().unwrap_or_else(|e| e.into_inner());
        let mut uniform = vec![0u8; 256];
        for (b, s) in uniform.as_chunks_mut().0.iter_mut().zip(symbols) {
            *b = s.to_le_bytes();
        }
        let buffers = Buffers {
            operands: operands.iter().map(|o| self.upload(o)).collect(),
            results: results.iter().map(|n| self.upload(&vec![0xff; *n])).collect(),
            scratch: self.upload(&vec![0xff; scratch as usize]),
            symbols: self.upload(&uniform),
            status: self.upload(&[0; 8]),
        };
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for launch in launches {
                let pipeline = self.pipeline(&launch.shader, true);
                pass.set_bind_group(0, &self.bind_group(&pipeline, launch, &buffers), &[]);
                pass.set_pipeline(&pipeline);
                let [x, y, z] = groups(launch, symbols);
                pass.dispatch_workgroups(x, y, z);
            }
        }
        self.queue.submit([encoder.finish()]);
        results.iter().zip(&buffers.results).map(|(n, b)| self.download(b, *n)).collect()
    }
}

/// What launches are bound to.
pub struct Buffers {
    pub operands: Vec<wgpu::Buffer>,
    pub results: Vec<wgpu::Buffer>,
    pub scratch: wgpu::Buffer,
    pub symbols: wgpu::Buffer,
    pub status: wgpu::Buffer,
}

/// Workgroups of a launch; the only symbols are `s0`, `s1`, … in the order of their values.
pub fn groups(launch: &Launch, symbols: &[u32]) -> [u32; 3] {
    launch.groups.clone().map(|g| {
        let value = |name: &str| {
            let i: usize = name.strip_prefix('s')?.parse().ok()?;
            symbols.get(i).map(|v| u64::from(*v))
        };
        let count = g.count.eval(value).expect("a symbol has a value");
        count.div_ceil(u64::from(g.per)) as u32
    })
}
