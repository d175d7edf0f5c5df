//! Bytes to a device and back.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::GpuError;
use super::device::{Gpu, GpuTensor, PATIENCE};
use super::registry::{Memory, Source};

/// Bytes that are on their way to the device at most while weights are loaded.
const IN_FLIGHT: u64 = 64 << 20;

/// Bytes that are copied at once within a state.
const PIECE: usize = 4 << 20;

/// Writes bytes, the last word filled up with zeros.
pub(crate) fn write(gpu: &Gpu, buffer: &wgpu::Buffer, bytes: &[u8]) {
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
pub(crate) fn read(gpu: &Gpu, buffer: &wgpu::Buffer, out: &mut [u8]) -> Result<(), GpuError> {
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
pub(crate) fn map(gpu: &Gpu, staging: &wgpu::Buffer, out: &mut [u8]) -> Result<(), GpuError> {
    let (sender, receiver) = std::sync::mpsc::channel();
    staging.map_async(wgpu::MapMode::Read, .., move |outcome| {
        // Nobody listens any more when waiting has failed.
        let _ = sender.send(outcome);
    });
    gpu.wait(gpu.queue.submit([]))?;
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(())) => {}
        Ok(Err(e)) => return Err(gpu.failed(e)),
        Err(_) => return Err(gpu.failed("results did not arrive")),
    }
    {
        let view = staging.get_mapped_range(..).map_err(|e| gpu.failed(e))?;
        out.copy_from_slice(&view[..out.len()]);
    }
    staging.unmap();
    Ok(())
}

impl Memory for Gpu {
    type Buffer = wgpu::Buffer;

    fn allocate(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        self.storage(label, bytes)
    }

    fn free(&self, buffer: wgpu::Buffer) {
        buffer.destroy();
    }

    fn fill(&self, buffer: &wgpu::Buffer, source: &dyn Source) -> Result<(), GpuError> {
        source.pieces(&mut |offset, bytes| {
            self.queue.write_buffer(buffer, offset, bytes);
            let sent = self.in_flight.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if sent + bytes.len() as u64 > IN_FLIGHT {
                self.in_flight.store(0, Ordering::Relaxed);
                self.wait(self.queue.submit([]))?;
            }
            Ok(())
        })
    }

    fn upload(&self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<(), GpuError> {
        write(self, buffer, bytes);
        self.check()
    }

    fn download(&self, buffer: &wgpu::Buffer, bytes: &mut [u8]) -> Result<(), GpuError> {
        read(self, buffer, bytes)
    }
}

/// State on a device.
pub struct DeviceState {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) tensor: Arc<GpuTensor>,
}

impl DeviceState {
    /// Bytes of the buffer.
    pub fn bytes(&self) -> usize {
        self.tensor.bytes() as usize
    }

    /// Reads the first bytes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self, out: &mut [u8]) -> Result<(), GpuError> {
        let pins = self.gpu.pin(std::slice::from_ref(&self.tensor))?;
        read(&self.gpu, &pins.buffers()[0], out)
    }

    /// Writes the first bytes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn write(&self, bytes: &[u8]) -> Result<(), GpuError> {
        let pins = self.gpu.pin(std::slice::from_ref(&self.tensor))?;
        write(&self.gpu, &pins.buffers()[0], bytes);
        Ok(())
    }
    /// Copies the bytes of a range to where they begin at `to`.
    ///
    /// # Errors
    /// When a range lies outside, or the device fails.
    pub fn copy_within(&self, from: Range<usize>, to: usize) -> Result<(), GpuError> {
        let (gpu, len) = (&self.gpu, from.len());
        if from.end.max(to.saturating_add(len)) > self.bytes() {
            return Err(GpuError::Device(format!("{from:?} to {to} is outside of a state")));
        }
        if len == 0 {
            return Ok(());
        }
        if [from.start, to, len].iter().any(|n| !n.is_multiple_of(4)) {
            // The device copies whole words.
            let mut bytes = vec![0; from.end.max(to + len)];
            self.read(&mut bytes)?;
            bytes.copy_within(from, to);
            return self.write(&bytes);
        }
        let pins = gpu.pin(std::slice::from_ref(&self.tensor))?;
        let state = &pins.buffers()[0];
        // A buffer is not copied to itself.
        let piece = len.min(PIECE);
        let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let between = gpu.buffer("a copy", piece as u64, usage)?;
        let mut encoder =
            gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        let mut starts: Vec<usize> = (0..len).step_by(piece).collect();
        if to > from.start {
            // Where the ranges meet, the end is read before it is written.
            starts.reverse();
        }
        for start in starts {
            let bytes = piece.min(len - start) as u64;
            let (source, target) = ((from.start + start) as u64, (to + start) as u64);
            encoder.copy_buffer_to_buffer(state, source, &between, 0, bytes);
            encoder.copy_buffer_to_buffer(&between, 0, state, target, bytes);
        }
        gpu.queue.submit([encoder.finish()]);
        gpu.check()
    }
}
