//! What a session keeps on the device, and the bind groups of its steps.

use std::sync::Arc;

use aether_codegen_wgsl::GpuProgram;
use aether_codegen_wgsl::kernel::MAX_SYMBOLS;
use aether_codegen_wgsl::program::{Buffer, buffer_bytes};
use aether_ir::TensorType;
use aether_ir::plan::ALIGNMENT;

use super::device::{Gpu, GpuTensor};
use super::program::Constant;
use super::registry::{Content, Pins};
use super::stream::Upload;
use super::{GpuError, GpuExecutable};

/// Bytes of the status buffer.
pub(crate) const STATUS: u64 = 8;

/// Most bytes of an argument that is uploaded together with others.
const SMALL: u64 = 64 << 10;

/// Where an argument goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Param {
    /// Beside other small ones, from this offset on.
    Small { offset: u64 },
    /// In memory of its own, so many bytes.
    Own { bytes: u64, state: bool },
}

/// The sizes of what a session of a program keeps on the device, beside weights and some hundred
/// bytes.
pub(crate) struct Layout {
    frame: u64,
    /// Of all small arguments.
    inputs: u64,
    params: Vec<Param>,
    /// 0 where the result takes over an argument.
    results: Vec<u64>,
}

impl Layout {
    pub fn of(program: &GpuProgram) -> Layout {
        let size = |ty: &TensorType| buffer_bytes(ty.max_bytes(&program.symbols).unwrap_or(0));
        let mut inputs = 0;
        let param = |(i, ty): (usize, &TensorType)| {
            let (bytes, state) = (size(ty), program.result_aliases.contains(&Some(i)));
            if state || bytes > SMALL {
                return Param::Own { bytes, state };
            }
            let offset = inputs;
            inputs += bytes.next_multiple_of(ALIGNMENT);
            Param::Small { offset }
        };
        let params = program.params.iter().enumerate().map(param).collect();
        let results = program.results.iter().zip(&program.result_aliases);
        Layout {
            frame: buffer_bytes(program.frame_bytes),
            params,
            inputs: buffer_bytes(inputs),
            results: results.map(|(ty, a)| if a.is_some() { 0 } else { size(ty) }).collect(),
        }
    }

    /// All bytes.
    pub fn bytes(&self) -> u64 {
        let own = self.params.iter().map(|p| match p {
            Param::Own { bytes, .. } => *bytes,
            Param::Small { .. } => 0,
        });
        self.frame + self.inputs + own.sum::<u64>() + self.results.iter().sum::<u64>()
    }

    /// Bytes of each result; 0 where it takes over an argument.
    pub fn results(&self) -> &[u64] {
        &self.results
    }

    /// Bytes that small arguments take together.
    pub fn inputs(&self) -> u64 {
        self.inputs
    }
}

/// Where an argument lies: in one of the session's tensors.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    tensor: usize,
    pub offset: u64,
    /// Whether it is one of the small ones, which lie together.
    pub small: bool,
}

/// The tensors of a session and of the weights that stay, and their bind groups.
pub(crate) struct SessionMemory {
    /// Symbols of the run, as shaders read them.
    pub uniform: wgpu::Buffer,
    pub status: wgpu::Buffer,
    /// Let go before the tensors are.
    bound: Option<Bound>,
    tensors: Vec<Arc<GpuTensor>>,
    inputs: usize,
    pub params: Vec<Place>,
    results: Vec<usize>,
    /// By constant; `None` for those that pass through the pool.
    constants: Vec<Option<usize>>,
    pool: Option<usize>,
    /// Of arena and results.
    bytes: u64,
}

/// What is made for the buffers in which the tensors lie.
struct Bound {
    generation: u64,
    buffers: Vec<wgpu::Buffer>,
    /// By step.
    groups: Vec<wgpu::BindGroup>,
}

impl SessionMemory {
    /// Tensors for runs, none of them on the device yet. States of the same index and type are
    /// those of `other`.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn new(
        executable: &GpuExecutable,
        layout: &Layout,
        other: Option<(&GpuExecutable, &SessionMemory)>,
    ) -> Result<SessionMemory, GpuError> {
        use wgpu::BufferUsages as U;
        let (gpu, program) = (&executable.gpu, &executable.program);
        let registry = gpu.registry();
        let scratch = |label: String, bytes: u64| registry.tensor(label, bytes, Content::Scratch);
        let mut tensors = vec![
            scratch("the arena".to_owned(), layout.frame),
            scratch("the arguments".to_owned(), layout.inputs),
        ];
        let (mut params, inputs) = (Vec::with_capacity(layout.params.len()), 1);
        for (i, param) in layout.params.iter().enumerate() {
            let (bytes, state) = match *param {
                Param::Small { offset } => {
                    params.push(Place { tensor: inputs, offset, small: true });
                    continue;
                }
                Param::Own { bytes, state } => (bytes, state),
            };
            let ty = &program.params[i];
            let shared = other.filter(|(exe, _)| state && exe.program.params.get(i) == Some(ty));
            params.push(Place { tensor: tensors.len(), offset: 0, small: false });
            let content = if state { Content::State } else { Content::Scratch };
            tensors.push(match shared {
                Some((_, memory)) => memory.tensor(i).clone(),
                None => registry.tensor(format!("argument {i}"), bytes, content),
            });
        }
        let mut results = Vec::with_capacity(layout.results.len());
        for (i, (&bytes, alias)) in layout.results.iter().zip(&program.result_aliases).enumerate() {
            results.push(match alias {
                Some(param) => params[*param].tensor,
                None => {
                    tensors.push(scratch(format!("result {i}"), bytes));
                    tensors.len() - 1
                }
            });
        }
        let constants = executable.constants.iter().map(|constant| match constant {
            Constant::Resident(weight) => {
                tensors.push(weight.tensor.clone());
                Some(tensors.len() - 1)
            }
            Constant::Streamed(_) => None,
        });
        let constants = constants.collect();
        let pool = executable.stream.as_ref().map(|stream| {
            tensors.push(stream.pool.clone());
            tensors.len() - 1
        });
        Ok(SessionMemory {
            uniform: gpu.buffer("symbols", MAX_SYMBOLS as u64 * 4, U::UNIFORM | U::COPY_DST)?,
            status: gpu.storage("status", STATUS)?,
            tensors,
            inputs,
            params,
            results,
            constants,
            pool,
            bound: None,
            bytes: layout.frame + layout.results.iter().sum::<u64>(),
        })
    }

    /// The tensor of an argument.
    pub fn tensor(&self, param: usize) -> &Arc<GpuTensor> {
        &self.tensors[self.params[param].tensor]
    }

    /// Bytes of the arena and of results.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps everything on the device until the pins are dropped, and binds it where it is. Tells
    /// whether it is elsewhere than in the run before: then arguments must be written again, and
    /// commands recorded.
    ///
    /// # Errors
    /// When it does not fit, or the device fails.
    pub fn pin(&mut self, executable: &GpuExecutable) -> Result<(Pins<Gpu>, bool), GpuError> {
        let pins = executable.gpu.pin(&self.tensors)?;
        let moved = self.bound.as_ref().is_none_or(|b| b.generation != pins.generation());
        if moved {
            // Groups of buffers that are gone are not kept while new ones are made.
            self.bound = None;
            let buffers = pins.buffers().to_vec();
            let groups = self.groups(executable, &buffers);
            self.bound = Some(Bound { generation: pins.generation(), buffers, groups });
        }
        Ok((pins, moved))
    }

    fn buffer(&self, tensor: usize) -> Result<&wgpu::Buffer, GpuError> {
        let bound = self.bound.as_ref();
        bound
            .map(|b| &b.buffers[tensor])
            .ok_or_else(|| GpuError::Device("nothing is bound".to_owned()))
    }

    /// The buffer of all small arguments, while everything is bound.
    ///
    /// # Errors
    /// When nothing is.
    pub fn inputs(&self) -> Result<&wgpu::Buffer, GpuError> {
        self.buffer(self.inputs)
    }

    /// The buffer of an argument, while everything is bound.
    ///
    /// # Errors
    /// When nothing is.
    pub fn param(&self, param: usize) -> Result<&wgpu::Buffer, GpuError> {
        self.buffer(self.params[param].tensor)
    }

    /// The buffer of a result, while everything is bound.
    ///
    /// # Errors
    /// When nothing is.
    pub fn result(&self, result: usize) -> Result<&wgpu::Buffer, GpuError> {
        self.buffer(self.results[result])
    }

    /// The buffer through which weights pass, while everything is bound.
    ///
    /// # Errors
    /// When nothing is, or all weights stay.
    pub fn pool(&self) -> Result<&wgpu::Buffer, GpuError> {
        match self.pool {
            Some(pool) => self.buffer(pool),
            None => Err(GpuError::Device("no weights pass through".to_owned())),
        }
    }

    /// The bind group of each step, while everything is bound.
    pub fn bind_groups(&self) -> &[wgpu::BindGroup] {
        self.bound.as_ref().map_or(&[], |b| &b.groups)
    }

    fn groups(&self, executable: &GpuExecutable, buffers: &[wgpu::Buffer]) -> Vec<wgpu::BindGroup> {
        let program = &executable.program;
        let mut groups = Vec::with_capacity(program.steps.len());
        for segment in executable.segments() {
            for step in &program.steps[segment.steps.clone()] {
                let uniform = self.uniform.as_entire_binding();
                let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: uniform }];
                for (b, binding) in step.bindings.iter().zip(1..) {
                    let (buffer, base) = match b.buffer {
                        Buffer::Frame => (&buffers[0], 0),
                        Buffer::Param(i) => {
                            (&buffers[self.params[i].tensor], self.params[i].offset)
                        }
                        Buffer::Result(i) => (&buffers[self.results[i]], 0),
                        Buffer::Status => (&self.status, 0),
                        Buffer::Constant(i) => match (self.constants[i], self.pool) {
                            (Some(tensor), _) => (&buffers[tensor], 0),
                            (None, Some(pool)) => (&buffers[pool], place(&segment.uploads, i)),
                            // Without a pool all constants stay.
                            (None, None) => continue,
                        },
                    };
                    entries.push(wgpu::BindGroupEntry {
                        binding,
                        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                            buffer,
                            offset: base + b.offset,
                            size: std::num::NonZeroU64::new(b.bytes),
                        }),
                    });
                }
                let layout = &executable.pipelines[step.shader].layout;
                let group = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
                groups.push(executable.gpu.device.create_bind_group(&group));
            }
        }
        groups
    }
}

/// Where a weight begins in the pool. The weights of a segment's steps are all among its uploads.
fn place(uploads: &[Upload], weight: usize) -> u64 {
    uploads.iter().find(|u| u.weight == weight).map_or(0, |u| u.offset)
}
