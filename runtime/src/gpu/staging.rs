//! Buffers of the host through which weights reach the device.
//!
//! One is written while the device copies from another: so weights are read from their file and
//! brought into the device's layout while it computes. There are few, they are all as large as the
//! greatest segment, and sessions of a program share them.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::GpuError;
use super::device::{Gpu, PATIENCE};

/// Buffers of one program at most.
const MOST: usize = 3;

/// A buffer, and what must end before it can be written again.
struct Staging {
    buffer: wgpu::Buffer,
    busy: Option<Busy>,
}

struct Busy {
    submission: wgpu::SubmissionIndex,
    mapped: Receiver<Result<(), wgpu::BufferAsyncError>>,
}

/// The buffers of a program.
pub(crate) struct Stagings {
    bytes: u64,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    /// The one that has waited longest is the first.
    free: VecDeque<Staging>,
    made: usize,
}

impl Stagings {
    /// Buffers of so many bytes, made when they are needed.
    pub fn new(bytes: u64) -> Arc<Stagings> {
        Arc::new(Stagings { bytes, state: Mutex::default(), returned: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer that can be written, if there is one. With `wait` it waits for others to give one
    /// back, so it must be called so only by who has none: whoever has one gives it back in the
    /// end.
    ///
    /// # Errors
    /// When there is no memory, or the device fails.
    pub fn take(self: &Arc<Self>, gpu: &Gpu, wait: bool) -> Result<Option<Staged>, GpuError> {
        let mut state = self.lock();
        let staging = loop {
            if let Some(staging) = state.free.pop_front() {
                break Some(staging);
            }
            if state.made < MOST {
                state.made += 1;
                break None;
            }
            if !wait {
                return Ok(None);
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let mut staged = Staged { staging, home: self.clone() };
        if staged.staging.is_none() {
            // When this fails, dropping takes it off the number of those made.
            let buffer = gpu.upload_buffer("weights on their way", self.bytes)?;
            staged.staging = Some(Staging { buffer, busy: None });
        }
        staged.ready(gpu)?;
        Ok(Some(staged))
    }
}

/// A buffer that a session has taken; dropping gives it back.
pub(crate) struct Staged {
    staging: Option<Staging>,
    home: Arc<Stagings>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        let mut state = self.home.lock();
        match self.staging.take() {
            Some(staging) => state.free.push_back(staging),
            None => state.made -= 1,
        }
        drop(state);
        self.home.returned.notify_one();
    }
}

impl Staged {
    /// Waits until it can be written. One that cannot is given up.
    ///
    /// # Errors
    /// When the device fails.
    pub fn ready(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let Some(mut staging) = self.staging.take() else {
            return Err(gpu.failed("a buffer was given up before"));
        };
        if let Some(Busy { submission, mapped }) = staging.busy.take() {
            gpu.wait(submission)?;
            match mapped.recv_timeout(PATIENCE) {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(gpu.failed(e)),
                Err(e) => return Err(gpu.failed(e)),
            }
        }
        self.staging = Some(staging);
        Ok(())
    }

    /// Lets `fill` write into it, by offset and bytes in whole words.
    ///
    /// # Errors
    /// When `fill` or the device fails.
    pub fn write(
        &mut self,
        gpu: &Gpu,
        fill: impl FnOnce(&mut dyn FnMut(u64, &[u8])) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let buffer = self.buffer(gpu)?;
        let mut view = buffer.get_mapped_range_mut(..).map_err(|e| gpu.failed(e))?;
        fill(&mut |offset, bytes| {
            let at = offset as usize;
            view.slice(at..at + bytes.len()).copy_from_slice(bytes);
        })
    }

    /// The buffer, to record copies from.
    ///
    /// # Errors
    /// When it was given up.
    pub fn buffer(&self, gpu: &Gpu) -> Result<&wgpu::Buffer, GpuError> {
        match &self.staging {
            Some(staging) => Ok(&staging.buffer),
            None => Err(gpu.failed("a buffer was given up before")),
        }
    }

    /// Submits commands that copy from it.
    ///
    /// # Errors
    /// When it was given up.
    pub fn submit(
        &mut self,
        gpu: &Gpu,
        commands: wgpu::CommandBuffer,
    ) -> Result<wgpu::SubmissionIndex, GpuError> {
        let Some(staging) = &mut self.staging else {
            return Err(gpu.failed("a buffer was given up before"));
        };
        staging.buffer.unmap();
        let submission = gpu.queue.submit([commands]);
        let (sender, mapped) = std::sync::mpsc::channel();
        staging.buffer.map_async(wgpu::MapMode::Write, .., move |outcome| {
            // Nobody listens any more when the run has failed.
            let _ = sender.send(outcome);
        });
        staging.busy = Some(Busy { submission: submission.clone(), mapped });
        Ok(submission)
    }
}
