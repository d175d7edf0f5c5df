//! Runs of a program: the memory of a line of them, commands recorded once.
//!
//! Bind groups are made with the session. The commands of a step depend on the symbols' values
//! alone, so those of the next step are recorded while the device works on this one; a step is
//! then one upload of small arguments, one submission and one download.

use std::sync::Arc;
use std::time::Duration;

use aether_codegen_cpu::AlignedBytes;
use aether_codegen_wgsl::Fault;
use aether_codegen_wgsl::kernel::{Groups, MAX_SYMBOLS};
use aether_codegen_wgsl::program::{Buffer, buffer_bytes};
use aether_ir::TensorType;
use aether_ir::plan::ALIGNMENT;

use super::device::PATIENCE;
use super::{Gpu, GpuError, GpuExecutable};
use crate::arg::{Arg, ArgData, State};
use crate::bind::{bind, value_of};
use crate::trace::Span;
use crate::{RunError, RuntimeError};

/// Bytes of the status buffer.
const STATUS: u64 = 8;

/// The memory of runs of one program on its device.
pub struct GpuSession {
    executable: Arc<GpuExecutable>,
    /// Symbols of the run, as shaders read them.
    uniform: wgpu::Buffer,
    status: wgpu::Buffer,
    params: Vec<Place>,
    /// Where small arguments lie together, and what was written there last: a step uploads them
    /// at once.
    inputs: wgpu::Buffer,
    written: Vec<u8>,
    /// By result; the parameter's buffer when the result takes it over.
    results: Vec<wgpu::Buffer>,
    groups: Vec<wgpu::BindGroup>,
    /// Where results and the status come down, and where in it each result begins.
    staging: wgpu::Buffer,
    places: Vec<u64>,
    host: Vec<AlignedBytes>,
    shapes: Vec<Vec<usize>>,
    symbols: Vec<usize>,
    /// The symbols that the uniform holds.
    uploaded: Vec<usize>,
    /// Commands that were recorded ahead, and the symbols that they are for.
    ahead: Option<(Vec<usize>, wgpu::CommandBuffer)>,
    bytes: u64,
    profile: Option<Profiler>,
}

/// Where an argument lies.
#[derive(Clone)]
struct Place {
    buffer: wgpu::Buffer,
    offset: u64,
    /// Whether it is one of the small ones in [`GpuSession::inputs`].
    small: bool,
}

/// Most bytes of an argument that is uploaded together with others.
const SMALL: u64 = 64 << 10;

/// Timestamps between dispatches.
struct Profiler {
    set: wgpu::QuerySet,
    /// Dispatches that are timed: those that fit into a set.
    steps: usize,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    spans: Vec<Span>,
}

impl GpuSession {
    /// Buffers for runs. Donated parameters of the same index and type share those of `other`.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn new(
        executable: Arc<GpuExecutable>,
        other: Option<&GpuSession>,
    ) -> Result<GpuSession, RuntimeError> {
        use wgpu::BufferUsages as U;
        let gpu = executable.gpu.clone();
        let program = &executable.program;
        let size = |ty: &TensorType| buffer_bytes(ty.max_bytes(&program.symbols).unwrap_or(0));
        let frame = gpu.storage("arena", program.frame_bytes)?;
        let uniform = gpu.buffer("symbols", MAX_SYMBOLS as u64 * 4, U::UNIFORM | U::COPY_DST)?;
        let status = gpu.storage("status", STATUS)?;
        let given = |i: usize| program.result_aliases.contains(&Some(i));
        let is_small = |i: usize, ty: &TensorType| !given(i) && size(ty) <= SMALL;
        let small = program.params.iter().enumerate().filter(|(i, ty)| is_small(*i, ty));
        let total = small.map(|(_, ty)| size(ty).next_multiple_of(ALIGNMENT)).sum::<u64>();
        let inputs = gpu.storage("arguments", total)?;
        let mut params = Vec::with_capacity(program.params.len());
        let mut end = 0;
        for (i, ty) in program.params.iter().enumerate() {
            if is_small(i, ty) {
                params.push(Place { buffer: inputs.clone(), offset: end, small: true });
                end += size(ty).next_multiple_of(ALIGNMENT);
                continue;
            }
            let shared =
                other.filter(|o| given(i) && o.executable.program.params.get(i) == Some(ty));
            let buffer = match shared {
                Some(other) => other.params[i].buffer.clone(),
                None => gpu.storage(&format!("argument {i}"), size(ty))?,
            };
            params.push(Place { buffer, offset: 0, small: false });
        }
        let mut results = Vec::with_capacity(program.results.len());
        let (mut places, mut host, mut end) = (Vec::new(), Vec::new(), STATUS);
        for (i, (ty, alias)) in program.results.iter().zip(&program.result_aliases).enumerate() {
            let bytes = if alias.is_some() { 0 } else { size(ty) };
            results.push(match alias {
                Some(param) => params[*param].buffer.clone(),
                None => gpu.storage(&format!("result {i}"), bytes)?,
            });
            places.push(end);
            host.push(AlignedBytes::zeroed(bytes as usize));
            end += bytes;
        }
        let staging = gpu.buffer("results", end, U::MAP_READ | U::COPY_DST)?;
        let mut groups = Vec::with_capacity(program.steps.len());
        for step in &program.steps {
            let mut entries =
                vec![wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() }];
            for (b, binding) in step.bindings.iter().zip(1..) {
                let mut base = 0;
                let buffer = match b.buffer {
                    Buffer::Frame => &frame,
                    Buffer::Param(i) => {
                        base = params[i].offset;
                        &params[i].buffer
                    }
                    Buffer::Result(i) => &results[i],
                    Buffer::Constant(i) => &executable.constants[i],
                    Buffer::Status => &status,
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
            groups.push(gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout,
                entries: &entries,
            }));
        }
        gpu.check()?;
        let bytes = frame.size() + results.iter().map(wgpu::Buffer::size).sum::<u64>();
        Ok(GpuSession {
            uniform,
            status,
            params,
            written: vec![0; total as usize],
            inputs,
            results,
            groups,
            staging,
            places,
            host,
            shapes: program.results.iter().map(|ty| vec![0; ty.rank()]).collect(),
            symbols: vec![usize::MAX; program.symbols.len()],
            uploaded: Vec::new(),
            ahead: None,
            bytes,
            profile: None,
            executable,
        })
    }

    /// Times every dispatch of the runs from now on, which slows them down.
    ///
    /// # Errors
    /// When the device has no timestamps.
    pub fn profile(&mut self) -> Result<(), GpuError> {
        use wgpu::BufferUsages as U;
        let gpu = &self.executable.gpu;
        if !gpu.has_timestamps() {
            return Err(GpuError::Device("it has no timestamps".to_owned()));
        }
        let steps = self.executable.program.steps.len();
        let steps = steps.min(wgpu::QUERY_SET_MAX_QUERIES as usize - 1);
        let bytes = (steps as u64 + 1) * 8;
        self.profile = Some(Profiler {
            set: gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: wgpu::QueryType::Timestamp,
                count: steps as u32 + 1,
            }),
            steps,
            resolved: gpu.buffer("timestamps", bytes, U::QUERY_RESOLVE | U::COPY_SRC)?,
            staging: gpu.buffer("timestamps", bytes, U::MAP_READ | U::COPY_DST)?,
            spans: Vec::new(),
        });
        self.ahead = None;
        Ok(())
    }

    /// The dispatches of the last run, when it was profiled.
    pub fn take_spans(&mut self) -> Vec<Span> {
        self.profile.as_mut().map_or_else(Vec::new, |p| std::mem::take(&mut p.spans))
    }

    /// What is run.
    pub fn executable(&self) -> &Arc<GpuExecutable> {
        &self.executable
    }

    /// The buffer of a parameter, as state that stays on the device.
    pub(crate) fn state(&self, param: usize) -> DeviceState {
        DeviceState { gpu: self.executable.gpu.clone(), buffer: self.params[param].buffer.clone() }
    }

    /// Bytes of the arena and of results.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The bytes of result `index` of the last run; empty when it took over an argument.
    pub fn result(&self, index: usize) -> &[u8] {
        self.host[index].as_slice()
    }

    /// The elements of an f32 result of the last run, and its shape.
    pub fn result_f32(&self, index: usize) -> (&[f32], &[usize]) {
        let shape = &self.shapes[index];
        let n = shape.iter().product::<usize>();
        let bytes = &self.host[index].as_slice()[..n * 4];
        // SAFETY: the buffer is aligned to 256 bytes and every bit pattern is a float.
        let floats = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<f32>(), n) };
        (floats, shape)
    }

    /// The shape of result `index` of the last run.
    pub fn result_shape(&self, index: usize) -> &[usize] {
        &self.shapes[index]
    }

    /// Runs once.
    ///
    /// # Errors
    /// When the arguments do not fit, a shader finds a fault, or the device fails.
    pub fn run(&mut self, args: &mut [Arg<'_>]) -> Result<(), RunError> {
        let executable = self.executable.clone();
        let (gpu, program) = (&executable.gpu, &executable.program);
        let shapes = args.iter().map(|a| a.shape);
        bind(&program.params, &program.symbols, shapes, &mut self.symbols)?;
        self.upload(args)?;
        let commands = match self.ahead.take() {
            Some((symbols, commands)) if symbols == self.symbols => commands,
            _ => self.record()?,
        };
        let submission = gpu.queue.submit([commands]);
        let (sender, receiver) = std::sync::mpsc::channel();
        self.staging.map_async(wgpu::MapMode::Read, .., move |outcome| {
            // Nobody listens any more when the run has failed.
            let _ = sender.send(outcome);
        });
        // The next step most likely has the same sizes.
        let ahead = self.record()?;
        self.ahead = Some((self.symbols.clone(), ahead));
        gpu.wait(submission)?;
        // Another thread that waits on the device may be the one that calls back.
        match receiver.recv_timeout(PATIENCE) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(GpuError::Device(e.to_string()).into()),
            Err(_) => return Err(GpuError::Device("results did not arrive".to_owned()).into()),
        }
        let outcome = self.collect();
        self.staging.unmap();
        outcome?;
        self.read_stamps()?;
        self.give_back(args)
    }

    /// Writes the symbols and those arguments that are not on the device, if they changed.
    fn upload(&mut self, args: &[Arg<'_>]) -> Result<(), RunError> {
        let (gpu, program) = (&self.executable.gpu, &self.executable.program);
        if self.uploaded != self.symbols {
            let mut words = [0u8; MAX_SYMBOLS * 4];
            for (slot, value) in words.chunks_exact_mut(4).zip(&self.symbols) {
                slot.copy_from_slice(&(*value as u32).to_le_bytes());
            }
            let used = (self.symbols.len().max(1) * 4).next_multiple_of(16);
            gpu.queue.write_buffer(&self.uniform, 0, &words[..used]);
            self.uploaded.clone_from(&self.symbols);
        }
        // The range of small arguments that changed.
        let mut changed: Option<(usize, usize)> = None;
        for (index, arg) in args.iter().enumerate() {
            let expected = program.params[index]
                .bytes(|name| value_of(&program.symbols, &self.symbols, name))
                .unwrap_or(u64::MAX);
            let wrong =
                |found: usize| aether_codegen_cpu::RunError::ArgBytes { index, expected, found };
            let Place { buffer, offset, small } = &self.params[index];
            let bytes: &[u8] = match &arg.data {
                ArgData::State(State::Device(state)) => {
                    if state.buffer != *buffer {
                        return Err(GpuError::ForeignState.into());
                    }
                    continue;
                }
                ArgData::State(State::Host(bytes)) => bytes.as_slice(),
                ArgData::Read(bytes) => bytes,
                ArgData::Write(bytes) => bytes,
            };
            if bytes.len() as u64 != expected {
                return Err(wrong(bytes.len()).into());
            }
            if !small {
                write(gpu, buffer, bytes);
                continue;
            }
            let from = *offset as usize;
            let own = &mut self.written[from..from + bytes.len()];
            if own != bytes {
                own.copy_from_slice(bytes);
                let end = from + bytes.len().next_multiple_of(4);
                let (low, high) = changed.unwrap_or((from, end));
                changed = Some((low.min(from), high.max(end)));
            }
        }
        if let Some((from, end)) = changed {
            gpu.queue.write_buffer(&self.inputs, from as u64, &self.written[from..end]);
        }
        Ok(())
    }

    /// The commands of a step at the symbols' values.
    fn record(&self) -> Result<wgpu::CommandBuffer, RunError> {
        let (gpu, program) = (&self.executable.gpu, &self.executable.program);
        let mut encoder = gpu
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
        encoder.clear_buffer(&self.status, 0, None);
        let value = |name: &str| value_of(&program.symbols, &self.symbols, name);
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            let mut last = usize::MAX;
            let profile = self.profile.as_ref();
            if let Some(p) = profile {
                pass.write_timestamp(&p.set, 0);
            }
            for (i, (step, group)) in program.steps.iter().zip(&self.groups).enumerate() {
                let counts = step.groups.each_ref().map(|Groups { count, per }| {
                    count.eval(value).unwrap_or(0).div_ceil(u64::from(*per))
                });
                let stamp = profile.filter(|p| i < p.steps);
                if counts.contains(&0) {
                    if let Some(p) = stamp {
                        pass.write_timestamp(&p.set, i as u32 + 1);
                    }
                    continue;
                }
                let [x, y, z] = dispatch(gpu, counts).map_err(|found| GpuError::Workgroups {
                    step: step.label.to_string(),
                    found,
                    most: gpu.adapter().workgroups_per_axis,
                })?;
                if step.shader != last {
                    pass.set_pipeline(&self.executable.pipelines[step.shader].pipeline);
                    last = step.shader;
                }
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(x, y, z);
                if let Some(p) = stamp {
                    pass.write_timestamp(&p.set, i as u32 + 1);
                }
            }
        }
        if let Some(p) = &self.profile {
            encoder.resolve_query_set(&p.set, 0..p.steps as u32 + 1, &p.resolved, 0);
            let bytes = p.resolved.size();
            encoder.copy_buffer_to_buffer(&p.resolved, 0, &p.staging, 0, bytes);
        }
        encoder.copy_buffer_to_buffer(&self.status, 0, &self.staging, 0, STATUS);
        for (i, ty) in program.results.iter().enumerate() {
            let bytes = ty.bytes(value).unwrap_or(0).next_multiple_of(4);
            if program.result_aliases[i].is_none() && bytes > 0 {
                let (from, to) = (&self.results[i], self.places[i]);
                encoder.copy_buffer_to_buffer(from, 0, &self.staging, to, bytes);
            }
        }
        Ok(encoder.finish())
    }

    /// Takes the status and the results from the mapped staging buffer.
    fn collect(&mut self) -> Result<(), RunError> {
        let program = &self.executable.program;
        let view =
            self.staging.get_mapped_range(..).map_err(|e| GpuError::Device(e.to_string()))?;
        let word = |i: usize| {
            view.get(i * 4..i * 4 + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        if let Some(text) = Fault::describe(word(0), word(1)) {
            return Err(GpuError::Fault(text).into());
        }
        let symbols = &self.symbols;
        for (i, ty) in program.results.iter().enumerate() {
            let value = |name: &str| value_of(&program.symbols, symbols, name);
            for (slot, dim) in self.shapes[i].iter_mut().zip(&ty.shape.0) {
                *slot = dim.eval(value).unwrap_or(0) as usize;
            }
            if program.result_aliases[i].is_none() {
                let bytes = ty.bytes(value).unwrap_or(0) as usize;
                let from = self.places[i] as usize;
                self.host[i].as_mut_slice()[..bytes].copy_from_slice(&view[from..from + bytes]);
            }
        }
        Ok(())
    }

    /// The times between the dispatches of a profiled run.
    fn read_stamps(&mut self) -> Result<(), RunError> {
        let Some(profile) = &mut self.profile else { return Ok(()) };
        let program = &self.executable.program;
        let gpu = &self.executable.gpu;
        let mut bytes = vec![0; profile.staging.size() as usize];
        map(gpu, &profile.staging, &mut bytes)?;
        let period = f64::from(gpu.queue.get_timestamp_period());
        let stamps: Vec<u64> =
            bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let begun = stamps[0];
        let since =
            |stamp: u64| Duration::from_nanos((stamp.saturating_sub(begun) as f64 * period) as u64);
        let steps = program.steps.iter().take(profile.steps);
        profile.spans = steps
            .zip(stamps.windows(2))
            .map(|(step, ends)| Span {
                label: step.label.clone(),
                kernel: program.shaders[step.shader].name,
                start: since(ends[0]),
                duration: since(ends[1]).saturating_sub(since(ends[0])),
            })
            .collect();
        Ok(())
    }

    /// Results that took over an argument on the host go back into its bytes.
    fn give_back(&self, args: &mut [Arg<'_>]) -> Result<(), RunError> {
        for alias in self.executable.program.result_aliases.iter().flatten() {
            let bytes: &mut [u8] = match &mut args[*alias].data {
                ArgData::Write(bytes) => bytes,
                ArgData::State(State::Host(bytes)) => bytes.as_mut_slice(),
                ArgData::State(State::Device(_)) => continue,
                ArgData::Read(_) => {
                    let index = *alias;
                    return Err(aether_codegen_cpu::RunError::NotWritable { index }.into());
                }
            };
            read(&self.executable.gpu, &self.params[*alias].buffer, bytes)?;
        }
        Ok(())
    }
}

/// Workgroups along three axes from counts, of which the first may be larger than an axis: shaders
/// of generated code number their workgroups over the first two.
fn dispatch(gpu: &Gpu, counts: [u64; 3]) -> Result<[u32; 3], u64> {
    let most = u64::from(gpu.adapter().workgroups_per_axis);
    let [x, y, z] = counts;
    if x > most && y == 1 && z == 1 {
        let down = x.div_ceil(most);
        // Even rows: as few groups too many as can be.
        let across = x.div_ceil(down);
        if down > most {
            return Err(x);
        }
        return Ok([across as u32, down as u32, 1]);
    }
    match counts.iter().find(|&&n| n > most) {
        Some(&n) => Err(n),
        None => Ok(counts.map(|n| n as u32)),
    }
}

/// Writes bytes, the last word filled up with zeros.
fn write(gpu: &Gpu, buffer: &wgpu::Buffer, bytes: &[u8]) {
    let (words, rest) = bytes.split_at(bytes.len() / 4 * 4);
    if !words.is_empty() {
        gpu.queue.write_buffer(buffer, 0, words);
    }
    if !rest.is_empty() {
        let mut word = [0; 4];
        word[..rest.len()].copy_from_slice(rest);
        gpu.queue.write_buffer(buffer, words.len() as u64, &word);
    }
}

/// Reads the first bytes of a buffer.
fn read(gpu: &Gpu, buffer: &wgpu::Buffer, out: &mut [u8]) -> Result<(), GpuError> {
    if out.is_empty() {
        return Ok(());
    }
    let size = (out.len() as u64).next_multiple_of(4);
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let staging = gpu.buffer("a download", size, usage)?;
    let mut encoder =
        gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
    gpu.wait(gpu.queue.submit([encoder.finish()]))?;
    map(gpu, &staging, out)
}

/// Reads the first bytes of a buffer that can be mapped and that nothing writes any more.
fn map(gpu: &Gpu, staging: &wgpu::Buffer, out: &mut [u8]) -> Result<(), GpuError> {
    let (sender, receiver) = std::sync::mpsc::channel();
    staging.map_async(wgpu::MapMode::Read, .., move |outcome| {
        // Nobody listens any more when waiting has failed.
        let _ = sender.send(outcome);
    });
    gpu.wait(gpu.queue.submit([]))?;
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(())) => {}
        Ok(Err(e)) => return Err(GpuError::Device(e.to_string())),
        Err(_) => return Err(GpuError::Device("results did not arrive".to_owned())),
    }
    {
        let view = staging.get_mapped_range(..).map_err(|e| GpuError::Device(e.to_string()))?;
        out.copy_from_slice(&view[..out.len()]);
    }
    staging.unmap();
    Ok(())
}

/// State on a device.
pub struct DeviceState {
    gpu: Arc<Gpu>,
    buffer: wgpu::Buffer,
}

impl DeviceState {
    /// Bytes of the buffer.
    pub fn bytes(&self) -> usize {
        self.buffer.size() as usize
    }

    /// Reads the first bytes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self, out: &mut [u8]) -> Result<(), GpuError> {
        read(&self.gpu, &self.buffer, out)
    }

    /// Writes the first bytes.
    pub fn write(&self, bytes: &[u8]) {
        write(&self.gpu, &self.buffer, bytes);
    }
}
