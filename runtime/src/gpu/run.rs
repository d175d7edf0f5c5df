//! Runs of a program: the memory of a line of them, commands recorded once.
//!
//! Bind groups are made with the session. The commands of a step depend on the symbols' values
//! alone, so those of the next step are recorded while the device works on this one; a step is
//! then one upload of small arguments, one submission and one download.
//!
//! Where weights pass through the device, a step is one submission for each segment of the
//! program, and each brings the weights that it needs: so the device works on one while the host
//! prepares the next, and sessions that share the pool need not agree on who has it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aether_codegen_cpu::AlignedBytes;
use aether_codegen_wgsl::Fault;
use aether_codegen_wgsl::kernel::{Groups, MAX_SYMBOLS};

use super::device::PATIENCE;
use super::memory::{Layout, Place, STATUS, SessionMemory};
use super::profile::Profiler;
use super::program::{Constant, Stream};
use super::registry::Source;
use super::staging::Staged;
use super::transfer::{DeviceState, read, write};
use super::{Gpu, GpuError, GpuExecutable};
use crate::arg::{Arg, ArgData, State};
use crate::bind::{bind, value_of};
use crate::trace::{Lane, Span, Traffic};
use crate::{RunError, RuntimeError};

/// Segments that a session has on their way at most: one that the device works on, and the next.
const AHEAD: usize = 2;

/// The memory of runs of one program on its device.
pub struct GpuSession {
    executable: Arc<GpuExecutable>,
    memory: SessionMemory,
    /// What was written last to where small arguments lie together: a step uploads what changed.
    written: Vec<u8>,
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
    profile: Option<Profiler>,
    /// Of the last run.
    traffic: Traffic,
}

impl GpuSession {
    /// Buffers for runs. Donated parameters of the same index and type share those of `other`.
    ///
    /// # Errors
    /// When the device has no memory left, or its limit is too small.
    pub fn new(
        executable: Arc<GpuExecutable>,
        other: Option<&GpuSession>,
    ) -> Result<GpuSession, RuntimeError> {
        use wgpu::BufferUsages as U;
        let gpu = executable.gpu.clone();
        let program = &executable.program;
        let layout = Layout::of(program);
        let other = other.map(|other| (&*other.executable, &other.memory));
        let mut memory = SessionMemory::new(&executable, &layout, other)?;
        let (mut places, mut host, mut end) = (Vec::new(), Vec::new(), STATUS);
        for bytes in layout.results() {
            places.push(end);
            host.push(AlignedBytes::zeroed(*bytes as usize));
            end += bytes;
        }
        let staging = gpu.buffer("results", end, U::MAP_READ | U::COPY_DST)?;
        // What does not fit is known now, and without a limit it stays where it is.
        drop(memory.pin(&executable)?);
        gpu.check()?;
        Ok(GpuSession {
            memory,
            written: vec![0; layout.inputs() as usize],
            staging,
            places,
            host,
            shapes: program.results.iter().map(|ty| vec![0; ty.rank()]).collect(),
            symbols: vec![usize::MAX; program.symbols.len()],
            uploaded: Vec::new(),
            ahead: None,
            profile: None,
            traffic: Traffic::default(),
            executable,
        })
    }

    /// Times the dispatches of the runs from now on, which slows them down: every one, or the
    /// stretches that end with the steps `ends`, counted from 0, of which those behind the last
    /// are the last.
    ///
    /// # Errors
    /// When the device has no timestamps.
    pub fn profile(&mut self, ends: Option<&[usize]>) -> Result<(), GpuError> {
        let last = self.executable.program.steps.len().saturating_sub(1);
        let ends = ends.map(|ends| ends.iter().map(|&i| i.min(last)).collect::<Vec<_>>());
        let (gpu, segments) = (&self.executable.gpu, self.executable.segments());
        let profiler = Profiler::new(gpu, segments, ends.as_deref())?;
        self.profile = Some(profiler);
        self.ahead = None;
        Ok(())
    }

    /// The dispatches of the last run, when it was profiled.
    pub fn take_spans(&mut self) -> Vec<Span> {
        self.profile.as_mut().map_or_else(Vec::new, |p| std::mem::take(&mut p.spans))
    }

    /// Bytes that crossed in the last run.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// What is run.
    pub fn executable(&self) -> &Arc<GpuExecutable> {
        &self.executable
    }

    /// The buffer of a parameter, as state that stays on the device.
    pub(crate) fn state(&self, param: usize) -> DeviceState {
        let tensor = self.memory.tensor(param).clone();
        DeviceState { gpu: self.executable.gpu.clone(), tensor }
    }

    /// Bytes of the arena and of results.
    pub fn bytes(&self) -> u64 {
        self.memory.bytes()
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
        let begun = Instant::now();
        self.traffic = Traffic::default();
        if let Some(profile) = &mut self.profile {
            profile.spans.clear();
        }
        let limited = gpu.registry().limit().is_some();
        // Without a limit everything is where it was from the start.
        let pins = if limited { Some(self.memory.pin(&executable)?) } else { None };
        let moved = pins.as_ref().is_some_and(|(_, moved)| *moved);
        if moved {
            self.ahead = None;
        }
        let start = begun.elapsed();
        self.upload(args, moved)?;
        self.host_span("arguments", "upload", self.traffic.up, start, begun);
        let submission = match &executable.stream {
            None => {
                let commands = match self.ahead.take() {
                    Some((symbols, commands)) if symbols == self.symbols => commands,
                    _ => self.record(0, None)?,
                };
                gpu.queue.submit([commands])
            }
            Some(stream) => self.submit_segments(stream, begun)?,
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        self.staging.map_async(wgpu::MapMode::Read, .., move |outcome| {
            // Nobody listens any more when the run has failed.
            let _ = sender.send(outcome);
        });
        if executable.stream.is_none() {
            // The next step most likely has the same sizes.
            let ahead = self.record(0, None)?;
            self.ahead = Some((self.symbols.clone(), ahead));
        }
        gpu.wait(submission)?;
        // Another thread that waits on the device may be the one that calls back.
        match receiver.recv_timeout(PATIENCE) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(gpu.failed(e).into()),
            Err(_) => return Err(gpu.failed("results did not arrive").into()),
        }
        let ended = begun.elapsed();
        let outcome = self.collect();
        self.staging.unmap();
        outcome?;
        self.host_span("results", "download", self.traffic.down, ended, begun);
        if let Some(profile) = &mut self.profile {
            profile.collect(gpu, program, executable.segments(), ended)?;
        }
        self.give_back(args)
    }

    /// Notes what the host did from `start` until now, counted from when the run began.
    fn host_span(
        &mut self,
        label: &str,
        kernel: &'static str,
        bytes: u64,
        start: Duration,
        begun: Instant,
    ) {
        if let Some(profile) = &mut self.profile {
            let duration = begun.elapsed().saturating_sub(start);
            let label = label.into();
            profile.spans.push(Span { label, kernel, lane: Lane::Host, bytes, start, duration });
        }
    }

    /// Submits the segments one after another, each with the weights that it needs: while the
    /// device works on one, those of the next are read and packed.
    fn submit_segments(
        &mut self,
        stream: &Stream,
        begun: Instant,
    ) -> Result<wgpu::SubmissionIndex, RunError> {
        let executable = self.executable.clone();
        let gpu = &executable.gpu;
        let mut on_their_way: VecDeque<Staged> = VecDeque::with_capacity(AHEAD);
        let mut last = None;
        let mut count = (0, 0);
        for (k, segment) in executable.segments().iter().enumerate() {
            if segment.uploads.is_empty() {
                last = Some(gpu.queue.submit([self.record(k, None)?]));
                continue;
            }
            let spare = match on_their_way.len() < AHEAD {
                true => stream.stagings.take(gpu, on_their_way.is_empty())?,
                false => None,
            };
            // None is spare: the oldest of our own will be.
            let Some(mut staged) = spare.or_else(|| on_their_way.pop_front()) else {
                return Err(gpu.failed("there is no buffer for weights").into());
            };
            staged.ready(gpu)?;
            let start = begun.elapsed();
            staged.write(gpu, |put| {
                for upload in &segment.uploads {
                    let Constant::Streamed(weight) = &executable.constants[upload.weight] else {
                        continue;
                    };
                    weight.pieces(&mut |offset, bytes| {
                        put(upload.offset + offset, bytes);
                        Ok(())
                    })?;
                }
                Ok(())
            })?;
            count = (count.0 + segment.uploads.len() as u64, count.1 + segment.bytes());
            self.host_span(&format!("segment {k}"), "pack", segment.bytes(), start, begun);
            let commands = self.record(k, Some(staged.buffer(gpu)?))?;
            last = Some(staged.submit(gpu, commands)?);
            on_their_way.push_back(staged);
        }
        self.traffic.up += count.1;
        gpu.registry().streamed(count.0, count.1);
        last.ok_or_else(|| gpu.failed("there are no steps").into())
    }

    /// Writes the symbols and those arguments that are not on the device, if they changed or `all`
    /// of them are gone.
    fn upload(&mut self, args: &[Arg<'_>], all: bool) -> Result<(), RunError> {
        let (gpu, program) = (&self.executable.gpu, &self.executable.program);
        if self.uploaded != self.symbols {
            let mut words = [0u8; MAX_SYMBOLS * 4];
            for (slot, value) in words.chunks_exact_mut(4).zip(&self.symbols) {
                slot.copy_from_slice(&(*value as u32).to_le_bytes());
            }
            let used = (self.symbols.len().max(1) * 4).next_multiple_of(16);
            gpu.queue.write_buffer(&self.memory.uniform, 0, &words[..used]);
            self.traffic.up += used as u64;
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
            let Place { offset, small, .. } = self.memory.params[index];
            let bytes: &[u8] = match &arg.data {
                ArgData::State(State::Device(state)) => {
                    if !Arc::ptr_eq(&state.tensor, self.memory.tensor(index)) {
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
                self.traffic.up += bytes.len() as u64;
                write(gpu, self.memory.param(index)?, bytes);
                continue;
            }
            let from = offset as usize;
            let own = &mut self.written[from..from + bytes.len()];
            if all || own != bytes {
                own.copy_from_slice(bytes);
                let end = from + bytes.len().next_multiple_of(4);
                let (low, high) = changed.unwrap_or((from, end));
                changed = Some((low.min(from), high.max(end)));
            }
        }
        if let Some((from, end)) = changed {
            self.traffic.up += (end - from) as u64;
            gpu.queue.write_buffer(self.memory.inputs()?, from as u64, &self.written[from..end]);
        }
        Ok(())
    }

    /// The commands of a segment of steps at the symbols' values; its weights are in `weights`.
    fn record(
        &self,
        segment: usize,
        weights: Option<&wgpu::Buffer>,
    ) -> Result<wgpu::CommandBuffer, RunError> {
        let executable = &*self.executable;
        let (gpu, program) = (&executable.gpu, &executable.program);
        let segments = executable.segments();
        let Some(now) = segments.get(segment) else {
            return Err(gpu.failed("there is no such segment").into());
        };
        let status = &self.memory.status;
        let mut encoder = gpu
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
        if segment == 0 {
            encoder.clear_buffer(status, 0, None);
        }
        let profile = self.profile.as_ref();
        let mut stamps = profile.map_or(0..0, |p| p.of_segment(segment));
        if let Some(weights) = weights {
            if let Some((p, index)) = profile.zip(stamps.next()) {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                p.stamp(&mut pass, index);
            }
            encoder.copy_buffer_to_buffer(weights, 0, self.memory.pool()?, 0, now.bytes());
        }
        let value = |name: &str| value_of(&program.symbols, &self.symbols, name);
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            let mut last = usize::MAX;
            if let Some((p, index)) = profile.zip(stamps.next()) {
                p.stamp(&mut pass, index);
            }
            let groups = &self.memory.bind_groups()[now.steps.clone()];
            for (i, group) in now.steps.clone().zip(groups) {
                let step = &program.steps[i];
                let counts = step.groups.each_ref().map(|Groups { count, per }| {
                    count.eval(value).unwrap_or(0).div_ceil(u64::from(*per))
                });
                if !counts.contains(&0) {
                    let [x, y, z] =
                        dispatch(gpu, counts).map_err(|found| GpuError::Workgroups {
                            step: step.label.to_string(),
                            found,
                            most: gpu.adapter().workgroups_per_axis,
                        })?;
                    if step.shader != last {
                        pass.set_pipeline(&executable.pipelines[step.shader].pipeline);
                        last = step.shader;
                    }
                    pass.set_bind_group(0, group, &[]);
                    pass.dispatch_workgroups(x, y, z);
                }
                if let Some(p) = profile.filter(|p| p.ends(i, stamps.clone().next())) {
                    stamps.by_ref().take(1).for_each(|index| p.stamp(&mut pass, index));
                }
            }
        }
        if segment + 1 < segments.len() {
            return Ok(encoder.finish());
        }
        if let Some(p) = profile {
            p.resolve(&mut encoder);
        }
        encoder.copy_buffer_to_buffer(status, 0, &self.staging, 0, STATUS);
        for (i, ty) in program.results.iter().enumerate() {
            let bytes = ty.bytes(value).unwrap_or(0).next_multiple_of(4);
            if program.result_aliases[i].is_none() && bytes > 0 {
                let (from, to) = (self.memory.result(i)?, self.places[i]);
                encoder.copy_buffer_to_buffer(from, 0, &self.staging, to, bytes);
            }
        }
        Ok(encoder.finish())
    }

    /// Takes the status and the results from the mapped staging buffer.
    fn collect(&mut self) -> Result<(), RunError> {
        let program = &self.executable.program;
        let view = self.staging.get_mapped_range(..).map_err(|e| self.executable.gpu.failed(e))?;
        let word = |i: usize| {
            view.get(i * 4..i * 4 + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        if let Some(text) = Fault::describe(word(0), word(1)) {
            return Err(GpuError::Fault(text).into());
        }
        let symbols = &self.symbols;
        self.traffic.down += STATUS;
        for (i, ty) in program.results.iter().enumerate() {
            let value = |name: &str| value_of(&program.symbols, symbols, name);
            for (slot, dim) in self.shapes[i].iter_mut().zip(&ty.shape.0) {
                *slot = dim.eval(value).unwrap_or(0) as usize;
            }
            if program.result_aliases[i].is_none() {
                let bytes = ty.bytes(value).unwrap_or(0) as usize;
                let from = self.places[i] as usize;
                self.traffic.down += bytes as u64;
                self.host[i].as_mut_slice()[..bytes].copy_from_slice(&view[from..from + bytes]);
            }
        }
        Ok(())
    }

    /// Results that took over an argument on the host go back into its bytes.
    fn give_back(&mut self, args: &mut [Arg<'_>]) -> Result<(), RunError> {
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
            self.traffic.down += bytes.len() as u64;
            read(&self.executable.gpu, self.memory.param(*alias)?, bytes)?;
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
