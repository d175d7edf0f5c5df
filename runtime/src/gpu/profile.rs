//! When the device did what, from timestamps between dispatches.
//!
//! Every step ends with a stamp, or those alone that end a stretch of steps: a stamp costs some
//! microseconds. A segment of steps begins with a stamp, and with two when weights are copied for it: then the
//! copy lies between them. What lies between two segments is time in which the device waited.

use std::ops::Range;
use std::time::Duration;

use aether_codegen_wgsl::GpuProgram;

use super::GpuError;
use super::device::Gpu;
use super::stream::Segment;
use super::transfer::map;
use crate::trace::{Lane, Span};

/// What ends at a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Waiting,
    Copy { segment: usize },
    Step(usize),
}

/// Timestamps of a run.
pub(crate) struct Profiler {
    set: wgpu::QuerySet,
    /// By stamp: as many as fit into a set.
    stamps: Vec<Ends>,
    /// By segment, its first stamp.
    firsts: Vec<usize>,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    pub spans: Vec<Span>,
}

impl Profiler {
    /// For runs of these segments; `ends` are the steps that end a stretch, all when `None`.
    ///
    /// # Errors
    /// When the device has no timestamps, or no memory left.
    pub fn new(
        gpu: &Gpu,
        segments: &[Segment],
        ends: Option<&[usize]>,
    ) -> Result<Profiler, GpuError> {
        use wgpu::BufferUsages as U;
        if !gpu.has_timestamps() {
            return Err(GpuError::Device("it has no timestamps".to_owned()));
        }
        let mut stamps = Vec::new();
        let mut firsts = Vec::with_capacity(segments.len());
        for (k, segment) in segments.iter().enumerate() {
            firsts.push(stamps.len());
            stamps.push(Ends::Waiting);
            if !segment.uploads.is_empty() {
                stamps.push(Ends::Copy { segment: k });
            }
            let ends = |i: &usize| ends.is_none_or(|ends| ends.contains(i));
            stamps.extend(segment.steps.clone().filter(ends).map(Ends::Step));
        }
        stamps.truncate(wgpu::QUERY_SET_MAX_QUERIES as usize);
        let bytes = stamps.len() as u64 * 8;
        Ok(Profiler {
            set: gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: wgpu::QueryType::Timestamp,
                count: stamps.len() as u32,
            }),
            stamps,
            firsts,
            resolved: gpu.buffer("timestamps", bytes, U::QUERY_RESOLVE | U::COPY_SRC)?,
            staging: gpu.buffer("timestamps", bytes, U::MAP_READ | U::COPY_DST)?,
            spans: Vec::new(),
        })
    }

    /// The stamps of a segment: that of its beginning is the first.
    pub fn of_segment(&self, segment: usize) -> Range<usize> {
        let end = self.firsts.get(segment + 1).copied().unwrap_or(self.stamps.len());
        self.firsts[segment]..end
    }

    /// Whether a step ends a stretch; `stamp` is the next of its segment.
    pub fn ends(&self, step: usize, stamp: Option<usize>) -> bool {
        stamp.and_then(|i| self.stamps.get(i)) == Some(&Ends::Step(step))
    }

    /// Writes a stamp, if it is one of those that fit.
    pub fn stamp(&self, pass: &mut wgpu::ComputePass<'_>, index: usize) {
        if index < self.stamps.len() {
            pass.write_timestamp(&self.set, index as u32);
        }
    }

    /// Brings the stamps to where they can be read, at the end of a run.
    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.set, 0..self.stamps.len() as u32, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, self.resolved.size());
    }

    /// Reads the stamps of a run that has ended. `ended` is when the host saw that, counted from
    /// when the run began, as spans count.
    ///
    /// # Errors
    /// When the device fails.
    pub fn collect(
        &mut self,
        gpu: &Gpu,
        program: &GpuProgram,
        segments: &[Segment],
        ended: Duration,
    ) -> Result<(), GpuError> {
        let mut bytes = vec![0; self.staging.size() as usize];
        map(gpu, &self.staging, &mut bytes)?;
        let period = f64::from(gpu.queue.get_timestamp_period());
        let stamps: Vec<u64> =
            bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let begun = stamps.first().copied().unwrap_or(0);
        let since =
            |stamp: u64| Duration::from_nanos((stamp.saturating_sub(begun) as f64 * period) as u64);
        let whole = since(stamps.last().copied().unwrap_or(begun));
        let offset = ended.saturating_sub(whole);
        for (ends, times) in self.stamps.iter().skip(1).zip(stamps.windows(2)) {
            let start = offset + since(times[0]);
            let duration = since(times[1]).saturating_sub(since(times[0]));
            self.spans.push(match *ends {
                Ends::Waiting => continue,
                Ends::Copy { segment } => Span {
                    label: format!("segment {segment}").into(),
                    kernel: "copy",
                    lane: Lane::Copies,
                    bytes: segments[segment].bytes(),
                    start,
                    duration,
                },
                Ends::Step(i) => {
                    let step = &program.steps[i];
                    Span {
                        label: step.label.clone(),
                        kernel: program.shaders[step.shader].name,
                        lane: Lane::Ops,
                        bytes: 0,
                        start,
                        duration,
                    }
                }
            });
        }
        Ok(())
    }
}
