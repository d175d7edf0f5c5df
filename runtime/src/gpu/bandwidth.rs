//! What a device's memory can do.

use std::time::{Duration, Instant};

use super::{Gpu, GpuError};

/// Bytes of each of the two buffers: far more than caches hold.
const BYTES: u64 = 512 << 20;
/// The same on a driver that computes on the processor.
const SOFTWARE_BYTES: u64 = 64 << 20;

impl Gpu {
    /// Bytes per second that a copy between two buffers reads and writes, counted together: the
    /// best of several measurements after one that warms the clocks up.
    ///
    /// # Errors
    /// When the buffers cannot be had, or the device fails.
    pub fn copy_rate(&self) -> Result<f64, GpuError> {
        use wgpu::BufferUsages as U;
        let bytes = if self.is_software() { SOFTWARE_BYTES } else { BYTES };
        let from = self.buffer("copied", bytes, U::COPY_SRC | U::COPY_DST)?;
        let to = self.buffer("copy", bytes, U::COPY_SRC | U::COPY_DST)?;
        let mut best = Duration::MAX;
        // Enough copies in a submission that its own time does not count.
        let copies = if self.is_software() { 1 } else { 20 };
        for _ in 0..6 {
            let mut encoder =
                self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            for _ in 0..copies {
                encoder.copy_buffer_to_buffer(&from, 0, &to, 0, bytes);
            }
            let begun = Instant::now();
            let submission = self.queue.submit([encoder.finish()]);
            self.wait(submission)?;
            best = best.min(begun.elapsed());
        }
        Ok(2.0 * bytes as f64 * f64::from(copies) / best.as_secs_f64().max(1e-9))
    }
}
