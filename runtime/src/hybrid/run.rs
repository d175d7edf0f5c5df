//! Runs of a module in parts: one session per part, and the memory of values between them.
//!
//! Values cross as bytes of the host. A parameter that a part takes over stays where that part
//! runs: its state is that part's.

use std::sync::Arc;
use std::time::Instant;

use aether_codegen_cpu::AlignedBytes;
use aether_codegen_cpu::RunError as ArgError;
use aether_codegen_cpu::pool::Pool;
use aether_ir::TensorType;
use aether_passes::place::Device;

use super::{Hybrid, ResultSource, Source};
use crate::arg::{Arg, ArgData, State};
use crate::bind::{bind, value_of};
use crate::gpu::GpuError;
use crate::session::{Session, check_memory};
use crate::trace::{Lane, Span, Traffic};
use crate::{RunError, RuntimeError};

/// The memory of runs of one module in parts.
pub(crate) struct HybridSession {
    hybrid: Arc<Hybrid>,
    parts: Vec<Session>,
    slots: Vec<AlignedBytes>,
    symbols: Vec<usize>,
    /// By part and parameter, in the last run.
    shapes: Vec<Vec<Vec<usize>>>,
    /// By result, in the last run.
    result_shapes: Vec<Vec<usize>>,
    /// What the last run did, when runs are profiled.
    spans: Option<Vec<Span>>,
}

impl HybridSession {
    /// Sessions of all parts, whose states are those of `other`, if given.
    ///
    /// # Errors
    /// When the memory cannot be had, or the parts take other parameters over than those of
    /// `other`.
    pub fn new(
        hybrid: Arc<Hybrid>,
        pool: &Arc<Pool>,
        other: Option<&HybridSession>,
    ) -> Result<HybridSession, RuntimeError> {
        if other.is_some_and(|other| !other.hybrid.shares_states(&hybrid)) {
            return Err(GpuError::ForeignState.into());
        }
        let mut parts = Vec::with_capacity(hybrid.parts.len());
        for (k, part) in hybrid.parts.iter().enumerate() {
            let executable = part.executable.clone();
            let session = match other.map(|other| &other.parts[k]) {
                Some(own) => own.sibling(executable),
                None => Session::with_pool(executable, pool.clone()),
            };
            parts.push(session.map_err(|e| super::in_part(&part.name, e))?);
        }
        let bytes = hybrid.slots.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
        check_memory("what crosses between the parts", bytes)?;
        let rank = |ty: &TensorType| vec![0; ty.rank()];
        Ok(HybridSession {
            parts,
            slots: hybrid.slots.iter().map(|&n| AlignedBytes::zeroed(n as usize)).collect(),
            symbols: vec![0; hybrid.symbols.len()],
            shapes: hybrid
                .parts
                .iter()
                .map(|part| part.args.iter().map(|(ty, _)| rank(ty)).collect())
                .collect(),
            result_shapes: hybrid.results.iter().map(rank).collect(),
            spans: None,
            hybrid,
        })
    }

    /// The state of a parameter: that of the part which takes it over.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn state(&self, param: usize) -> Result<State, RuntimeError> {
        if let Some((part, own)) = self.hybrid.homes[param] {
            return self.parts[part].state(own);
        }
        let ty = &self.hybrid.params[param];
        let bytes = ty.max_bytes(&self.hybrid.symbols).unwrap_or(u64::MAX);
        check_memory(&format!("argument {param}"), bytes)?;
        Ok(State::Host(AlignedBytes::zeroed(bytes as usize)))
    }

    /// Times the ops of GPU parts, and CPU parts as a whole, in the runs from now on.
    ///
    /// # Errors
    /// When a GPU has no timestamps.
    pub fn profile(&mut self) -> Result<(), RuntimeError> {
        for (session, part) in self.parts.iter_mut().zip(&self.hybrid.parts) {
            if part.device == Device::Gpu {
                session.profile().map_err(|e| super::in_part(&part.name, e))?;
            }
        }
        self.spans = Some(Vec::new());
        Ok(())
    }

    /// What the last run did, when it was profiled. Ops of a GPU are counted from when their part
    /// was begun: what it waits for at first is not seen.
    pub fn take_spans(&mut self) -> Vec<Span> {
        self.spans.as_mut().map_or_else(Vec::new, std::mem::take)
    }

    /// Bytes that crossed to the GPU and back in the last run of each part.
    pub fn traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        self.parts.iter().for_each(|part| sum += part.traffic());
        sum
    }

    /// Runs the parts in order.
    ///
    /// # Errors
    /// When the arguments do not fit; when a part fails, with its name.
    pub fn run(&mut self, args: &mut [Arg<'_>]) -> Result<(), RunError> {
        let hybrid = self.hybrid.clone();
        let shapes = args.iter().map(|a| a.shape);
        bind(&hybrid.params, &hybrid.symbols, shapes, &mut self.symbols)?;
        for (index, (arg, ty)) in args.iter().zip(&hybrid.params).enumerate() {
            let found = match &arg.data {
                ArgData::Read(bytes) => bytes.len(),
                ArgData::Write(bytes) => bytes.len(),
                ArgData::State(_) => continue,
            };
            let expected = self.bytes_of(ty) as u64;
            if found as u64 != expected {
                return Err(ArgError::ArgBytes { index, expected, found }.into());
            }
            if hybrid.homes[index].is_some() && matches!(arg.data, ArgData::Read(_)) {
                return Err(ArgError::NotWritable { index }.into());
            }
        }
        self.take_spans();
        let begun = Instant::now();
        for (k, part) in hybrid.parts.iter().enumerate() {
            let start = begun.elapsed();
            let failed =
                |source| RunError::Part { part: part.name.clone(), source: Box::new(source) };
            self.run_part(k, args).map_err(failed)?;
            if let Some(spans) = &mut self.spans {
                match part.device {
                    Device::Gpu => spans.extend(
                        self.parts[k]
                            .take_spans()
                            .into_iter()
                            .map(|span| Span { start: start + span.start, ..span }),
                    ),
                    Device::Cpu => spans.push(Span {
                        label: format!("@{}", part.name).into(),
                        kernel: "a part on the CPU",
                        lane: Lane::Ops,
                        bytes: 0,
                        start,
                        duration: begun.elapsed().saturating_sub(start),
                    }),
                }
            }
            for (result, ty, slot) in &part.kept {
                let n = self.bytes_of(ty);
                let from = self.parts[k].result(*result);
                self.slots[*slot].as_mut_slice()[..n].copy_from_slice(&from[..n]);
            }
        }
        for (i, (source, ty)) in hybrid.sources.iter().zip(&hybrid.results).enumerate() {
            if let ResultSource::Copy { param, slot } = *source {
                let n = self.bytes_of(ty);
                fetch(&mut self.slots[slot], n, &args[param])?;
            }
            shape_of(&hybrid, &self.symbols, ty, &mut self.result_shapes[i]);
        }
        Ok(())
    }

    fn bytes_of(&self, ty: &TensorType) -> usize {
        let value = |name: &str| value_of(&self.hybrid.symbols, &self.symbols, name);
        ty.bytes(value).unwrap_or(0) as usize
    }

    fn run_part(&mut self, k: usize, args: &mut [Arg<'_>]) -> Result<(), RunError> {
        let hybrid = self.hybrid.clone();
        let part = &hybrid.parts[k];
        // Which argument or slot each parameter lies in, by argument and by slot.
        let mut by_arg: Vec<(usize, usize)> = Vec::with_capacity(part.args.len());
        let mut by_slot: Vec<(usize, usize, bool)> = Vec::new();
        for (j, (ty, source)) in part.args.iter().enumerate() {
            shape_of(&hybrid, &self.symbols, ty, &mut self.shapes[k][j]);
            let n = self.bytes_of(ty);
            match *source {
                Source::Own { param } => by_arg.push((param, j)),
                Source::Read { param, slot } => match &args[param].data {
                    ArgData::State(State::Device(_)) => {
                        fetch(&mut self.slots[slot], n, &args[param])?;
                        by_slot.push((slot, j, false));
                    }
                    _ => by_arg.push((param, j)),
                },
                Source::Copy { param, slot } => {
                    fetch(&mut self.slots[slot], n, &args[param])?;
                    by_slot.push((slot, j, true));
                }
                Source::Slot { slot, write } => by_slot.push((slot, j, write)),
            }
        }
        let sizes: Vec<usize> = part.args.iter().map(|(ty, _)| self.bytes_of(ty)).collect();
        let mut lent: Vec<(usize, Arg<'_>)> = Vec::with_capacity(part.args.len());
        let shapes = &self.shapes[k];
        for (param, arg) in args.iter_mut().enumerate() {
            let Some(&(_, j)) = by_arg.iter().find(|(of, _)| *of == param) else { continue };
            let owned = matches!(part.args[j].1, Source::Own { .. });
            let data = match (&mut arg.data, owned) {
                (ArgData::State(state), true) => ArgData::State(state),
                (ArgData::Write(bytes), true) => ArgData::Write(bytes),
                (ArgData::Write(bytes), false) => ArgData::Read(bytes),
                (ArgData::Read(bytes), _) => ArgData::Read(bytes),
                (ArgData::State(State::Host(bytes)), false) => {
                    ArgData::Read(&bytes.as_slice()[..sizes[j].min(bytes.len())])
                }
                (ArgData::State(State::Device(_)), false) => {
                    return Err(GpuError::ForeignState.into());
                }
            };
            lent.push((j, Arg { shape: &shapes[j], data }));
        }
        for (slot, bytes) in self.slots.iter_mut().enumerate() {
            let Some(&(_, j, write)) = by_slot.iter().find(|(of, ..)| *of == slot) else {
                continue;
            };
            let bytes = &mut bytes.as_mut_slice()[..sizes[j]];
            let data = if write { ArgData::Write(bytes) } else { ArgData::Read(bytes) };
            lent.push((j, Arg { shape: &shapes[j], data }));
        }
        lent.sort_by_key(|(j, _)| *j);
        let mut lent: Vec<Arg<'_>> = lent.into_iter().map(|(_, arg)| arg).collect();
        self.parts[k].run(&mut lent)
    }

    /// The bytes of result `index` of the last run; empty when it took over an argument.
    pub fn result(&self, index: usize) -> &[u8] {
        match self.hybrid.sources[index] {
            ResultSource::Alias => &[],
            ResultSource::Part { part, result } => self.parts[part].result(result),
            ResultSource::Slot { slot } | ResultSource::Copy { slot, .. } => {
                self.slots[slot].as_slice()
            }
        }
    }

    /// The elements of an f32 result of the last run, and its shape.
    pub fn result_f32(&self, index: usize) -> (&[f32], &[usize]) {
        if let ResultSource::Part { part, result } = self.hybrid.sources[index] {
            return self.parts[part].result_f32(result);
        }
        let shape = &self.result_shapes[index];
        let n = shape.iter().product::<usize>();
        let bytes = &self.result(index)[..n * 4];
        // SAFETY: a slot is aligned to 256 bytes and every bit pattern is a float.
        let floats = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<f32>(), n) };
        (floats, shape)
    }

    /// The shape of result `index` of the last run.
    pub fn result_shape(&self, index: usize) -> &[usize] {
        &self.result_shapes[index]
    }

    /// Bytes of the parts' memory and of the slots.
    pub fn bytes(&self) -> usize {
        let parts: usize = self.parts.iter().map(Session::bytes).sum();
        parts + self.slots.iter().map(AlignedBytes::len).sum::<usize>()
    }
}

/// The shape of a type at the symbols' values.
fn shape_of(hybrid: &Hybrid, symbols: &[usize], ty: &TensorType, out: &mut [usize]) {
    for (slot, dim) in out.iter_mut().zip(&ty.shape.0) {
        *slot = dim.eval(|name| value_of(&hybrid.symbols, symbols, name)).unwrap_or(0) as usize;
    }
}

/// Copies the first `n` bytes of an argument into a slot, which grows to hold them.
fn fetch(slot: &mut AlignedBytes, n: usize, arg: &Arg<'_>) -> Result<(), RunError> {
    if slot.len() < n {
        *slot = AlignedBytes::zeroed(n);
    }
    let out = &mut slot.as_mut_slice()[..n];
    match &arg.data {
        ArgData::Read(bytes) => out.copy_from_slice(&bytes[..n]),
        ArgData::Write(bytes) => out.copy_from_slice(&bytes[..n]),
        ArgData::State(state) if state.len() < n => return Err(GpuError::ForeignState.into()),
        ArgData::State(state) => state.read(out)?,
    }
    Ok(())
}
