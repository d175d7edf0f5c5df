//! One module on two devices: which instructions go where, and how the parts are wired.
//!
//! [`aether_passes::place`] cuts the entry into parts. Each is prepared and compiled as a module of
//! its own, for its device; what is left of the entry, calls and transfers, becomes a
//! [`Hybrid`]: for every argument of every part where its bytes are.
//!
//! Whether the GPU can run an instruction is not guessed: it is compiled alone, by the passes and
//! the code generator that would compile the part. Equal ones are asked for once.

mod run;

use std::collections::HashMap;
use std::sync::Arc;

use aether_codegen_wgsl::{CompileError, GpuTarget};
use aether_ir::{Func, Module, Op, Symbol, SymbolRange, TensorType, ValueId};
use aether_passes::PassCtx;
use aether_passes::balance::{self, Link, Machines};
use aether_passes::place::{self, Device};
use indexmap::IndexMap;

pub(crate) use run::HybridSession;

use crate::executable::load_parts;
use crate::gpu::{Gpu, Weights};
use crate::{Executable, Files, Options, Prepared, RuntimeError};

/// Which instructions of the entry run on the GPU, where there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// All of them; one without a kernel there is an error.
    #[default]
    Whole,
    /// All that it has kernels for.
    Supported,
    /// Of these what is worth it by an estimate of times ([`aether_passes::balance`]).
    Balanced,
    /// Of these the last so many calls, and what follows them when there are fewer calls.
    LastCalls(usize),
    /// These, by instruction.
    Fixed(Arc<[Device]>),
}

/// A device for each instruction of the entry.
///
/// # Errors
/// When the function is missing, or the passes fail.
pub(crate) fn devices(
    module: &Module,
    files: &Files,
    opts: &Options,
    gpu: &Arc<Gpu>,
) -> Result<Vec<Device>, RuntimeError> {
    let entry = Arc::from(opts.entry.as_str());
    let Some(func) = module.funcs.get(&entry) else {
        return Err(place::PlaceError::NoFunction(entry).into());
    };
    let mut devices = match &opts.placement {
        Placement::Fixed(devices) => return Ok(devices.to_vec()),
        Placement::LastCalls(n) => place::last_calls(func, *n),
        Placement::Whole | Placement::Supported | Placement::Balanced => {
            vec![Device::Gpu; func.body.len()]
        }
    };
    let on_device = place::on_device(func);
    let mut probe = Probe { module, func, files, opts, gpu, known: HashMap::new() };
    for i in (0..devices.len()).filter(|&i| on_device[i]) {
        if devices[i] == Device::Gpu && !probe.runs(i)? {
            devices[i] = Device::Cpu;
        }
    }
    if opts.placement == Placement::Balanced {
        return balanced(module, func, opts, gpu, &devices);
    }
    Ok(devices)
}

/// The placement that takes the least time, as far as that can be estimated.
fn balanced(
    module: &Module,
    func: &Func,
    opts: &Options,
    gpu: &Gpu,
    supported: &[Device],
) -> Result<Vec<Device>, RuntimeError> {
    let (cpu, adapter) = (opts.cpu()?, gpu.adapter());
    let target = GpuTarget { adapter };
    // An eighth for what runs need beside weights and states.
    let room = gpu.registry().limit().map(|limit| limit - limit / 8);
    let machines =
        Machines { cpu: &PassCtx::new(&cpu), gpu: &PassCtx::new(&target), link: Link::PCIE, room };
    let runs: Vec<bool> = supported.iter().map(|&d| d == Device::Gpu).collect();
    let mut candidates = balance::candidates(module, func, &runs, &machines).into_iter();
    let Some(best) = candidates.next() else { return Ok(supported.to_vec()) };
    tracing::info!("placed: {best}");
    candidates.for_each(|other| tracing::debug!("not placed: {other}"));
    Ok(best.devices)
}

/// The only device that is needed; `None` when it takes two.
pub(crate) fn only(func: &Func, devices: &[Device]) -> Option<Device> {
    let on_device = place::on_device(func);
    let mut used = devices.iter().zip(on_device).filter(|(_, on)| *on).map(|(&d, _)| d);
    let first = used.next().unwrap_or(Device::Cpu);
    used.all(|d| d == first).then_some(first)
}

/// Asks what the GPU can run.
struct Probe<'a> {
    module: &'a Module,
    func: &'a Func,
    files: &'a Files,
    opts: &'a Options,
    gpu: &'a Arc<Gpu>,
    known: HashMap<String, bool>,
}

impl Probe<'_> {
    fn runs(&mut self, i: usize) -> Result<bool, RuntimeError> {
        let inst = &self.func.body[i];
        let alone = place::alone(self.func, i);
        // A function of equal types and constants at equal places compiles alike.
        let types: Vec<&TensorType> = alone.values.iter().map(|v| &v.ty).collect();
        let ops: Vec<_> = alone.body.iter().map(|inst| (inst.op, &inst.attrs)).collect();
        let key = format!("{:?} {:?} {:?} {:?}", ops, inst.symbol, types, alone.params);
        if let Some(&known) = self.known.get(&key) {
            return Ok(known);
        }
        let mut module = self.module.clone();
        module.add_func(alone);
        let opts = Options {
            gpu: Some(self.gpu.clone()),
            placement: Placement::Whole,
            ..self.opts.clone()
        };
        let prepared = Prepared::new(module, self.files, &opts)?;
        let Prepared { module, plan, entry, .. } = &prepared;
        let adapter = self.gpu.adapter();
        let outcome = aether_codegen_wgsl::compile(module, plan, entry, self.files, adapter);
        let runs = match outcome {
            Ok(_) => true,
            Err(
                error @ (CompileError::Unsupported { .. }
                | CompileError::Binding { .. }
                | CompileError::Symbols { .. }),
            ) => {
                let callee = inst.symbol.as_deref().unwrap_or_default();
                tracing::info!(op = %inst.op, callee, %error, "runs on the CPU");
                false
            }
            Err(error) => return Err(error.into()),
        };
        self.known.insert(key, runs);
        Ok(runs)
    }
}

/// The parts of a module, planned.
pub(crate) struct Parts {
    devices: Arc<[Device]>,
    parts: Vec<(Arc<str>, Device, Prepared)>,
}

/// Cuts a module in parts and prepares them; the module with the parts comes with them.
///
/// # Errors
/// When it cannot be cut, or a part cannot be prepared.
pub(crate) fn prepare(
    module: &Module,
    files: &Files,
    opts: &Options,
    devices: Vec<Device>,
) -> Result<(Module, Parts), RuntimeError> {
    let placed = place::place(module, &opts.entry, &devices)?;
    if opts.verify {
        aether_ir::verify(&placed.module).map_err(|found| {
            RuntimeError::Verify(aether_ir::text::explain(&placed.module, &found))
        })?;
    }
    let mut parts = Vec::with_capacity(placed.parts.len());
    for part in &placed.parts {
        let opts = Options {
            entry: part.func.to_string(),
            gpu: opts.gpu.clone().filter(|_| part.device == Device::Gpu),
            placement: Placement::Whole,
            ..opts.clone()
        };
        let prepared = Prepared::new(placed.module.clone(), files, &opts);
        let prepared = prepared.map_err(|e| in_part(&part.func, e))?;
        parts.push((part.func.clone(), part.device, prepared));
    }
    Ok((placed.module, Parts { devices: devices.into(), parts }))
}

fn in_part(part: &Arc<str>, source: RuntimeError) -> RuntimeError {
    RuntimeError::Part { part: part.clone(), source: Box::new(source) }
}

impl Parts {
    pub(crate) fn reports(&self) -> impl Iterator<Item = &aether_passes::StepReport> {
        self.parts.iter().flat_map(|(_, _, prepared)| prepared.reports())
    }

    /// Compiles the parts and wires them. Parts of the CPU are taken from `beside` where that is
    /// cut alike: code of the CPU serves all sizes.
    ///
    /// # Errors
    /// When a part cannot be compiled.
    pub(crate) fn load(
        self,
        entry: &Func,
        symbols: &IndexMap<Symbol, SymbolRange>,
        files: &Files,
        weights: &Weights,
        beside: Option<&Hybrid>,
    ) -> Result<Hybrid, RuntimeError> {
        // More at its end for the GPU leaves the parts of the CPU as they are.
        let beside = beside.filter(|other| {
            let more = self.devices.strip_prefix(&*other.devices);
            more.is_some_and(|more| more.iter().all(|&device| device == Device::Gpu))
        });
        let (mut parts, mut others) = (Vec::with_capacity(self.parts.len()), Vec::new());
        for (k, (name, device, prepared)) in self.parts.into_iter().enumerate() {
            let known = beside.and_then(|other| other.parts.get(k));
            let known = known.filter(|part| part.device == Device::Cpu);
            let executable = known.map(|part| part.executable.clone());
            if executable.is_none() {
                others.push(prepared);
            }
            parts.push((name, device, executable));
        }
        let missing = parts.iter().filter(|(.., known)| known.is_none());
        let names: Vec<Arc<str>> = missing.map(|(name, ..)| name.clone()).collect();
        let loaded = load_parts(others, files, weights).map_err(|(k, e)| in_part(&names[k], e))?;
        let mut loaded = loaded.into_iter().map(Arc::new);
        let parts = parts.into_iter().filter_map(|(name, device, known)| {
            // One was loaded for each that was missing.
            let executable = known.or_else(|| loaded.next())?;
            Some(Part { name, device, executable, args: Vec::new(), kept: Vec::new() })
        });
        let parts = parts.collect();
        Ok(Wiring::new(entry).wire(entry, symbols, self.devices, parts))
    }
}

/// A module of several parts.
pub(crate) struct Hybrid {
    /// Of the entry's instructions, before it was cut.
    devices: Arc<[Device]>,
    parts: Vec<Part>,
    symbols: IndexMap<Symbol, SymbolRange>,
    params: Vec<TensorType>,
    results: Vec<TensorType>,
    aliases: Vec<Option<usize>>,
    sources: Vec<ResultSource>,
    /// For each parameter the part, and its parameter, that takes it over.
    homes: Vec<Option<(usize, usize)>>,
    /// Bytes of each slot, the memory of a value between parts; 0 when it is made on demand.
    slots: Vec<u64>,
}

struct Part {
    name: Arc<str>,
    device: Device,
    executable: Arc<Executable>,
    /// By parameter: its type in the entry, and where its bytes are.
    args: Vec<(TensorType, Source)>,
    /// Results that other parts read: their index, type, and slot.
    kept: Vec<(usize, TensorType, usize)>,
}

/// Where the bytes of a part's argument are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// In an argument of the run, which the part takes over.
    Own { param: usize },
    /// In an argument of the run; through the slot when that is on another device.
    Read { param: usize, slot: usize },
    /// In an argument of the run, of which the part takes over a copy, in the slot.
    Copy { param: usize, slot: usize },
    /// In a slot, which the part takes over when `write`.
    Slot { slot: usize, write: bool },
}

/// Where a result is after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResultSource {
    /// In the argument that it took over.
    Alias,
    /// In the part that computed it.
    Part { part: usize, result: usize },
    /// In a slot.
    Slot { slot: usize },
    /// In an argument, of which the slot gets a copy when all parts have run.
    Copy { param: usize, slot: usize },
}

/// Where a value of the entry is.
#[derive(Clone, Copy)]
enum Place {
    Param(usize),
    Slot(usize),
    Part { part: usize, result: usize, slot: Option<usize> },
}

/// Follows the values of the entry through its parts.
struct Wiring {
    places: Vec<Option<Place>>,
    /// Whether a part or transfer reads the value.
    read: Vec<bool>,
    homes: Vec<Option<(usize, usize)>>,
    slots: Vec<u64>,
}

impl Wiring {
    fn new(entry: &Func) -> Wiring {
        let mut places = vec![None; entry.values.len()];
        for (i, p) in entry.params.iter().enumerate() {
            places[p.index()] = Some(Place::Param(i));
        }
        let mut read = vec![false; entry.values.len()];
        for v in entry.body.iter().flat_map(|inst| inst.inputs()) {
            read[v.index()] = true;
        }
        Wiring { places, read, homes: vec![None; entry.params.len()], slots: Vec::new() }
    }

    fn slot(&mut self, bytes: u64) -> usize {
        self.slots.push(bytes);
        self.slots.len() - 1
    }

    fn wire(
        mut self,
        entry: &Func,
        symbols: &IndexMap<Symbol, SymbolRange>,
        devices: Arc<[Device]>,
        mut parts: Vec<Part>,
    ) -> Hybrid {
        let size = |v: ValueId| entry.ty(v).max_bytes(symbols).unwrap_or(u64::MAX);
        let mut k = 0;
        for inst in &entry.body {
            if inst.op == Op::Transfer {
                let (from, to) = (inst.operands[0].value, inst.results[0]);
                self.places[to.index()] = self.places[from.index()];
                continue;
            }
            let part = &mut parts[k];
            for (j, operand) in inst.operands.iter().enumerate() {
                let source = self.source(k, j, operand.value, operand.donated);
                part.args.push((entry.ty(operand.value).clone(), source));
            }
            let aliases = part.executable.result_aliases().to_vec();
            for (result, &v) in inst.results.iter().enumerate() {
                let taken = aliases.get(result).copied().flatten().map(|j| part.args[j].1);
                let place = match taken {
                    Some(Source::Own { param } | Source::Read { param, .. }) => Place::Param(param),
                    Some(Source::Copy { slot, .. } | Source::Slot { slot, .. }) => {
                        self.slots[slot] = self.slots[slot].max(size(v));
                        Place::Slot(slot)
                    }
                    None => {
                        let slot = self.read[v.index()].then(|| self.slot(size(v)));
                        part.kept.extend(slot.map(|slot| (result, entry.ty(v).clone(), slot)));
                        Place::Part { part: k, result, slot }
                    }
                };
                self.places[v.index()] = Some(place);
            }
            k += 1;
        }
        let params = entry.params.iter().map(|&p| entry.ty(p).clone()).collect();
        let mut aliases: Vec<Option<usize>> = Vec::with_capacity(entry.returns.len());
        let mut sources = Vec::with_capacity(entry.returns.len());
        for &v in &entry.returns {
            let mut alias = None;
            sources.push(match self.places[v.index()] {
                Some(Place::Param(param)) => {
                    let taken = !entry.params.contains(&v);
                    if taken && !aliases.contains(&Some(param)) {
                        alias = Some(param);
                        ResultSource::Alias
                    } else {
                        ResultSource::Copy { param, slot: self.slot(size(v)) }
                    }
                }
                Some(Place::Part { part, result, .. }) => ResultSource::Part { part, result },
                Some(Place::Slot(slot)) => ResultSource::Slot { slot },
                // Verified: every value is defined.
                None => ResultSource::Slot { slot: self.slot(size(v)) },
            });
            aliases.push(alias);
        }
        Hybrid {
            devices,
            parts,
            symbols: symbols.clone(),
            params,
            results: entry.result_types.clone(),
            aliases,
            sources,
            homes: self.homes,
            slots: self.slots,
        }
    }

    fn source(&mut self, part: usize, j: usize, v: ValueId, donated: bool) -> Source {
        match self.places[v.index()] {
            Some(Place::Param(param)) if !donated => Source::Read { param, slot: self.slot(0) },
            Some(Place::Param(param)) if self.homes[param].is_none() => {
                self.homes[param] = Some((part, j));
                Source::Own { param }
            }
            Some(Place::Param(param)) => Source::Copy { param, slot: self.slot(0) },
            Some(Place::Slot(slot) | Place::Part { slot: Some(slot), .. }) => {
                Source::Slot { slot, write: donated }
            }
            // Verified: what is read was marked so.
            Some(Place::Part { slot: None, .. }) | None => {
                Source::Slot { slot: self.slot(0), write: donated }
            }
        }
    }
}

impl Hybrid {
    /// The devices of the entry's instructions, before it was cut.
    pub(crate) fn devices(&self) -> &Arc<[Device]> {
        &self.devices
    }

    /// The parts, in the order in which they run.
    pub(crate) fn executables(&self) -> impl Iterator<Item = &Arc<Executable>> {
        self.parts.iter().map(|part| &part.executable)
    }

    /// Whether parameters are taken over by the same parts, on the same devices.
    pub(crate) fn shares_states(&self, other: &Hybrid) -> bool {
        let devices = |h: &Hybrid| -> Vec<Device> { h.parts.iter().map(|p| p.device).collect() };
        let mut pairs = self.executables().zip(other.executables());
        self.homes == other.homes
            && devices(self) == devices(other)
            && pairs.all(|(a, b)| a.shares_states(b))
    }

    pub(crate) fn params(&self) -> &[TensorType] {
        &self.params
    }

    pub(crate) fn results(&self) -> &[TensorType] {
        &self.results
    }

    pub(crate) fn result_aliases(&self) -> &[Option<usize>] {
        &self.aliases
    }
}
