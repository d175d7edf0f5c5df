//! What a device's memory can do.

use std::time::{Duration, Instant};

use aether_codegen_wgsl::kernel::{Access, Needs, Shader};

use super::{Gpu, GpuError};

/// Bytes of each of the two buffers: far more than caches hold.
const BYTES: u64 = 512 << 20;
/// The same on a driver that computes on the processor.
const SOFTWARE_BYTES: u64 = 64 << 20;

/// Sixteen bytes an invocation, read and written.
const COPY: &str = "
@group(0) @binding(1) var<storage, read_write> source: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> target_: array<vec4<u32>>;
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) tid: u32) {
    let at = (id.y * groups.x + id.x) * 256u + tid;
    target_[at] = source[at];
}
";

fn entry(binding: u32, buffer: &wgpu::Buffer) -> wgpu::BindGroupEntry<'_> {
    wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() }
}

impl Gpu {
    /// Bytes per second that a shader which copies a large buffer reads and writes, counted
    /// together: the best of those within a second.
    ///
    /// # Errors
    /// When the buffers cannot be had, or the device fails.
    pub fn copy_rate(&self) -> Result<f64, GpuError> {
        use wgpu::BufferUsages as U;
        let bytes = if self.is_software() { SOFTWARE_BYTES } else { BYTES };
        let from = self.buffer("copied", bytes, U::STORAGE)?;
        let to = self.buffer("copy", bytes, U::STORAGE)?;
        let symbols = self.buffer("symbols", 16, U::UNIFORM)?;
        let shader = Shader {
            name: "copy",
            wgsl: COPY.into(),
            needs: Needs::default(),
            bindings: vec![Access::ReadWrite, Access::ReadWrite],
            in_bounds: true,
        };
        let pipeline = self.pipeline(&shader)?;
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("copy"),
            layout: &pipeline.layout,
            entries: &[entry(0, &symbols), entry(1, &from), entry(2, &to)],
        });
        let groups = (bytes / 16 / 256) as u32;
        // Enough copies in a submission that its own time does not count.
        let copies = if self.is_software() { 1 } else { 50 };
        let mut best = Duration::MAX;
        // A card takes its time to bring its clocks up.
        let enough = Duration::from_millis(if self.is_software() { 100 } else { 800 });
        let all = Instant::now();
        while best == Duration::MAX || all.elapsed() < enough {
            let mut encoder =
                self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                pass.set_pipeline(&pipeline.pipeline);
                pass.set_bind_group(0, &group, &[]);
                for _ in 0..copies {
                    pass.dispatch_workgroups(groups / 64, 64, 1);
                }
            }
            let begun = Instant::now();
            let submission = self.queue.submit([encoder.finish()]);
            self.wait(submission)?;
            best = best.min(begun.elapsed());
        }
        Ok(2.0 * bytes as f64 * f64::from(copies) / best.as_secs_f64().max(1e-9))
    }
}
