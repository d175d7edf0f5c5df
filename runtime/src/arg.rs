//! What a run takes: bytes of the host, or state that lives where the run does.

use std::ops::Range;

use aether_codegen_cpu::AlignedBytes;

use crate::gpu::DeviceState;
use crate::gpu::GpuError;

/// An argument: its shape, and where its bytes are.
pub struct Arg<'a> {
    pub shape: &'a [usize],
    pub data: ArgData<'a>,
}

/// An argument's bytes.
pub enum ArgData<'a> {
    Read(&'a [u8]),
    /// For parameters that a result takes over.
    Write(&'a mut [u8]),
    /// State of this session ([`crate::Session::state`]), read and written in place.
    State(&'a mut State),
}

/// The value of a donated parameter between runs, such as a cache: on the CPU bytes of the host, on
/// a GPU a buffer of the session. It begins as zeros.
pub enum State {
    Host(AlignedBytes),
    Device(DeviceState),
}

impl State {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        match self {
            State::Host(bytes) => bytes.len(),
            State::Device(state) => state.bytes(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the first bytes out.
    ///
    /// # Errors
    /// When a device fails.
    pub fn read(&self, out: &mut [u8]) -> Result<(), GpuError> {
        match self {
            State::Host(bytes) => out.copy_from_slice(&bytes.as_slice()[..out.len()]),
            State::Device(state) => state.read(out)?,
        }
        Ok(())
    }

    /// Replaces the first bytes.
    ///
    /// # Errors
    /// When a device fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), GpuError> {
        match self {
            State::Host(own) => own.as_mut_slice()[..bytes.len()].copy_from_slice(bytes),
            State::Device(state) => state.write(bytes)?,
        }
        Ok(())
    }

    /// Copies the bytes of a range to where they begin at `to`. On a device they stay there.
    ///
    /// # Errors
    /// When a device fails.
    pub fn copy_within(&mut self, from: Range<usize>, to: usize) -> Result<(), GpuError> {
        match self {
            State::Host(own) => own.as_mut_slice().copy_within(from, to),
            State::Device(state) => state.copy_within(from, to)?,
        }
        Ok(())
    }
}
