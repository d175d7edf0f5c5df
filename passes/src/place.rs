//! Placement: one function cut into parts, each for one device.
//!
//! [`place`] is told the device of each instruction of the entry. It orders the body so that
//! devices change seldom, makes a function of each run of instructions of one device
//! (`@main.cpu.0`, `@main.gpu.1`, …), and leaves in the entry the calls of these parts and a
//! `transfer` for each value that a part reads from the other device. The meaning stays the same.
//!
//! - What is computed from constants alone belongs to no device: each part that reads it has it.
//! - A value that is given away stays so: all other uses come before, so the part gives it away
//!   inside, and its call does. Parameters are not transferred: a part takes them where they are.
//! - Each part can be compiled alone: every symbol of its types is the length of an axis of some
//!   parameter. Where no value that it reads has such an axis, it takes one that has.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use aether_ir::{Attrs, DType, Dim, Func, Inst, Module, Op, Operand, Symbol, TensorType, ValueId};

use crate::plan::load_time;
use crate::util::fresh_func;

/// What a part runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    Cpu,
    Gpu,
}

impl Device {
    /// As `transfer` writes it.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu => "gpu",
        }
    }

    fn other(self) -> Device {
        match self {
            Device::Cpu => Device::Gpu,
            Device::Gpu => Device::Cpu,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A module cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    #[error("there is no function @{0}")]
    NoFunction(Arc<str>),
    #[error("@{func} has {expected} instructions, and {found} devices are given")]
    Devices { func: Arc<str>, expected: usize, found: usize },
    /// A part could not learn the symbol's value.
    #[error(
        "@{func} cannot be split: no parameter of it has an axis whose length is `{symbol}` alone"
    )]
    Symbol { func: Arc<str>, symbol: Symbol },
}

/// A function of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub func: Arc<str>,
    pub device: Device,
}

/// A module whose entry calls parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    pub module: Module,
    /// In the order of their calls.
    pub parts: Vec<Part>,
}

/// For each instruction whether it runs on a device, rather than once at load.
pub fn on_device(func: &Func) -> Vec<bool> {
    let fixed = load_time(func);
    func.body.iter().map(|inst| !runs_at_load(inst, &fixed)).collect()
}

fn runs_at_load(inst: &Inst, fixed: &[bool]) -> bool {
    !inst.results.is_empty() && inst.results.iter().all(|r| fixed[r.index()])
}

/// The last `n` calls of a function on the GPU, the rest on the CPU. What stands between these
/// calls goes with them; what stands behind the last call does when `n` exceeds their number.
pub fn last_calls(func: &Func, n: usize) -> Vec<Device> {
    let calls: Vec<usize> = (0..func.body.len()).filter(|&i| func.body[i].op == Op::Call).collect();
    let begin = match calls.len().checked_sub(n) {
        Some(first) => calls.get(first).copied().unwrap_or(func.body.len()),
        None => calls.first().copied().unwrap_or(0),
    };
    let end = match calls.last() {
        Some(&last) if n <= calls.len() => last + 1,
        None if n == 0 => 0,
        _ => func.body.len(),
    };
    let device = |i| if (begin..end).contains(&i) { Device::Gpu } else { Device::Cpu };
    (0..func.body.len()).map(device).collect()
}

/// A function of the name of `func` with one of its instructions, what that computes being
/// returned: for asking whether a device can run it.
pub fn alone(func: &Func, inst: usize) -> Func {
    let fixed = load_time(func);
    let run = Run { device: Device::Cpu, insts: vec![inst], extra: Vec::new() };
    let outputs = func.body[inst].results.clone();
    part(func, &fixed, func.name.clone(), &run, &outputs).func
}

/// Instructions that run on one device one after another.
struct Run {
    device: Device,
    insts: Vec<usize>,
    /// Values that it takes only for their shapes.
    extra: Vec<ValueId>,
}

/// Cuts a function of a verified module into parts; `devices` has one device per instruction.
///
/// # Errors
/// When there is no such function, the number of devices is another, or a part cannot learn a
/// symbol.
pub fn place(module: &Module, entry: &str, devices: &[Device]) -> Result<Placed, PlaceError> {
    let mut func =
        module.funcs.get(entry).ok_or_else(|| PlaceError::NoFunction(entry.into()))?.clone();
    if devices.len() != func.body.len() {
        let (expected, found) = (func.body.len(), devices.len());
        return Err(PlaceError::Devices { func: func.name, expected, found });
    }
    let mut fixed = load_time(&func);
    let mut runs = order(&func, &fixed, devices);
    if runs.is_empty() && func.returns.iter().any(|v| fixed[v.index()]) {
        // Constants alone are returned: somebody has to do it.
        runs.push(Run { device: Device::Cpu, insts: Vec::new(), extra: Vec::new() });
    }
    bind_symbols(module, &mut func, &mut fixed, &mut runs)?;
    let mut placed = Placed { module: module.clone(), parts: Vec::new() };
    let mut new = Func::new(func.name.clone());
    new.result_types = func.result_types.clone();
    // Where each value of the old entry is in the new one; on no device for parameters.
    let mut home: HashMap<ValueId, (ValueId, Option<Device>)> = HashMap::new();
    for &p in &func.params {
        let value = copy_value(&func, &mut new, p);
        new.params.push(value);
        home.insert(p, (value, None));
    }
    let mut sent: HashMap<(ValueId, Device), ValueId> = HashMap::new();
    let mut number = 0;
    for (k, run) in runs.iter().enumerate() {
        let outputs = outputs(&func, &fixed, &runs, k);
        let prefix = format!("{entry}.{}", run.device);
        let name = fresh_func(&placed.module, &prefix, &mut number);
        let part = part(&func, &fixed, name.clone(), run, &outputs);
        let mut operands = Vec::with_capacity(part.params.len());
        for &(v, donated) in &part.params {
            let Some(&(mut value, on)) = home.get(&v) else { continue };
            if on.is_some_and(|on| on != run.device) {
                value = *sent.entry((v, run.device)).or_insert_with(|| {
                    let to = new.add_value(func.ty(v).clone(), None);
                    let attrs = Attrs::new().with("to", run.device.name());
                    new.body.push(inst(Op::Transfer, vec![value.into()], attrs, None, vec![to]));
                    to
                });
            }
            operands.push(Operand { value, donated });
        }
        let results: Vec<ValueId> =
            outputs.iter().map(|&v| copy_value(&func, &mut new, v)).collect();
        for (&v, &value) in outputs.iter().zip(&results) {
            home.insert(v, (value, Some(run.device)));
        }
        new.body.push(inst(Op::Call, operands, Attrs::new(), Some(name.clone()), results));
        placed.module.add_func(part.func);
        placed.parts.push(Part { func: name, device: run.device });
    }
    new.returns = func.returns.iter().filter_map(|v| home.get(v)).map(|&(v, _)| v).collect();
    placed.module.add_func(new);
    Ok(placed)
}

fn inst(
    op: Op,
    operands: Vec<Operand>,
    attrs: Attrs,
    symbol: Option<Arc<str>>,
    results: Vec<ValueId>,
) -> Inst {
    Inst { op, operands, attrs, symbol, results, span: 0..0 }
}

fn copy_value(from: &Func, to: &mut Func, v: ValueId) -> ValueId {
    let data = &from.values[v.index()];
    let value = to.add_value(data.ty.clone(), data.name.clone());
    to.values[value.index()].span = data.span.clone();
    value
}

/// The body in runs: an order of its instructions that keeps every value before its uses, and the
/// use that a value is given away by behind its others.
fn order(func: &Func, fixed: &[bool], devices: &[Device]) -> Vec<Run> {
    let n = func.body.len();
    let placed: Vec<bool> = func.body.iter().map(|inst| !runs_at_load(inst, fixed)).collect();
    let definitions = func.definitions();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); func.values.len()];
    for i in (0..n).filter(|&i| placed[i]) {
        func.body[i].inputs().for_each(|v| users[v.index()].push(i));
    }
    let mut after: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); n];
    let mut waits = vec![0; n];
    for i in (0..n).filter(|&i| placed[i]) {
        let mut before = BTreeSet::new();
        for operand in &func.body[i].operands {
            let v = operand.value.index();
            before.extend(definitions[v].filter(|&d| placed[d]));
            if operand.donated {
                before.extend(users[v].iter().copied().filter(|&j| j != i));
            }
        }
        waits[i] = before.len();
        before.into_iter().for_each(|j| {
            after[j].insert(i);
        });
    }
    // Going on with one device as long as it goes gives the fewest runs for the device that
    // begins; so both are tried.
    let schedule = |first: Device| {
        let mut waits = waits.clone();
        let mut ready: BTreeSet<usize> = (0..n).filter(|&i| placed[i] && waits[i] == 0).collect();
        let (mut device, mut runs) = (first, Vec::<Run>::new());
        while let Some(&any) = ready.first() {
            let next = ready.iter().copied().find(|&i| devices[i] == device);
            let Some(i) = next else {
                device = devices[any];
                continue;
            };
            ready.remove(&i);
            match runs.last_mut() {
                Some(run) if run.device == device => run.insts.push(i),
                _ => runs.push(Run { device, insts: vec![i], extra: Vec::new() }),
            }
            for &j in &after[i] {
                waits[j] -= 1;
                if waits[j] == 0 {
                    ready.insert(j);
                }
            }
        }
        runs
    };
    let first = (0..n).find(|&i| placed[i]).map_or(Device::Cpu, |i| devices[i]);
    let (runs, others) = (schedule(first), schedule(first.other()));
    if others.len() < runs.len() { others } else { runs }
}

/// What run `k` has to hand out: values that other runs read or that are returned; of constants
/// that are returned, the last run.
fn outputs(func: &Func, fixed: &[bool], runs: &[Run], k: usize) -> Vec<ValueId> {
    let elsewhere = runs.iter().enumerate().filter(|&(j, _)| j != k).flat_map(|(_, run)| {
        let read = run.insts.iter().flat_map(|&i| func.body[i].inputs());
        read.chain(run.extra.iter().copied())
    });
    let wanted: HashSet<ValueId> = elsewhere.chain(func.returns.iter().copied()).collect();
    let own = runs[k].insts.iter().flat_map(|&i| func.body[i].results.iter().copied());
    let mut outputs: Vec<ValueId> = own.filter(|v| wanted.contains(v)).collect();
    if k + 1 == runs.len() {
        for &v in func.returns.iter().filter(|v| fixed[v.index()]) {
            if !outputs.contains(&v) {
                outputs.push(v);
            }
        }
    }
    outputs
}

/// A part: the function, and for each parameter the value of the entry and whether it is given
/// away.
struct PartFunc {
    func: Func,
    params: Vec<(ValueId, bool)>,
}

/// The values that a run reads and does not define, in order of first use.
fn inputs(func: &Func, fixed: &[bool], run: &Run) -> Vec<(ValueId, bool)> {
    let own: HashSet<ValueId> =
        run.insts.iter().flat_map(|&i| func.body[i].results.iter().copied()).collect();
    let read = run.insts.iter().flat_map(|&i| func.body[i].operands.iter().copied());
    let mut params: Vec<(ValueId, bool)> = Vec::new();
    for operand in read.chain(run.extra.iter().map(|&v| v.into())) {
        let v = operand.value;
        if own.contains(&v) || fixed[v.index()] {
            continue;
        }
        match params.iter_mut().find(|(known, _)| *known == v) {
            Some((_, donated)) => *donated |= operand.donated,
            None => params.push((v, operand.donated)),
        }
    }
    params
}

fn part(func: &Func, fixed: &[bool], name: Arc<str>, run: &Run, outputs: &[ValueId]) -> PartFunc {
    let params = inputs(func, fixed, run);
    let mut new = Func::new(name);
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for &(v, _) in &params {
        let value = copy_value(func, &mut new, v);
        new.params.push(value);
        map.insert(v, value);
    }
    let read = run.insts.iter().flat_map(|&i| func.body[i].inputs());
    let mut wanted: HashSet<ValueId> =
        read.chain(outputs.iter().copied()).filter(|v| fixed[v.index()]).collect();
    let mut body: Vec<&Inst> = Vec::new();
    for inst in func.body.iter().rev().filter(|inst| runs_at_load(inst, fixed)) {
        if inst.results.iter().any(|r| wanted.contains(r)) {
            wanted.extend(inst.inputs());
            body.push(inst);
        }
    }
    body.reverse();
    let at_load = body.len();
    body.extend(run.insts.iter().map(|&i| &func.body[i]));
    for (at, inst) in body.into_iter().enumerate() {
        let mut inst = inst.clone();
        for operand in &mut inst.operands {
            // Verified: each is a parameter or was defined before.
            operand.value = map.get(&operand.value).copied().unwrap_or(operand.value);
            // All copies of constants come first, so that one of them has later uses.
            operand.donated &= at >= at_load;
        }
        for r in &mut inst.results {
            let value = copy_value(func, &mut new, *r);
            map.insert(*r, value);
            *r = value;
        }
        new.body.push(inst);
    }
    new.returns = outputs.iter().filter_map(|v| map.get(v)).copied().collect();
    new.result_types = outputs.iter().map(|&v| func.ty(v).clone()).collect();
    PartFunc { func: new, params }
}

/// Gives every run a value to learn each of its symbols from.
fn bind_symbols(
    module: &Module,
    func: &mut Func,
    fixed: &mut Vec<bool>,
    runs: &mut [Run],
) -> Result<(), PlaceError> {
    let tells =
        |func: &Func, v: ValueId, s: &str| func.ty(v).shape.0.iter().any(|d| d.is_symbol(s));
    for k in 0..runs.len() {
        let mut needed = BTreeSet::new();
        let mut seen = HashSet::new();
        for &i in &runs[k].insts {
            let inst = &func.body[i];
            inst.inputs()
                .chain(inst.results.iter().copied())
                .for_each(|v| symbols(func.ty(v), &mut needed));
            if inst.op.is_call() {
                callees(module, inst, &mut seen, &mut needed);
            }
        }
        for symbol in needed {
            let read = inputs(func, fixed, &runs[k]);
            if read.iter().any(|&(v, _)| tells(func, v, &symbol)) {
                continue;
            }
            let given: HashSet<ValueId> = runs[..k]
                .iter()
                .flat_map(|run| &run.insts)
                .flat_map(|&i| &func.body[i].operands)
                .filter(|o| o.donated)
                .map(|o| o.value)
                .collect();
            let earlier = runs[..k].iter().flat_map(|run| &run.insts);
            let computed = earlier.flat_map(|&i| func.body[i].results.iter());
            let alive = func.params.iter().chain(computed).copied();
            let found = alive
                .filter(|v| !given.contains(v) && !fixed[v.index()])
                .find(|&v| tells(func, v, &symbol));
            let witness = match found {
                Some(v) => v,
                None => {
                    let v = left_behind(func, runs, k, &symbol)?;
                    fixed.resize(func.values.len(), false);
                    v
                }
            };
            runs[k].extra.push(witness);
        }
    }
    Ok(())
}

/// A value of the symbol's length, made by the run that gave away a parameter of that length.
fn left_behind(
    func: &mut Func,
    runs: &mut [Run],
    k: usize,
    symbol: &Symbol,
) -> Result<ValueId, PlaceError> {
    let told = |func: &Func, v: ValueId| func.ty(v).shape.0.iter().any(|d| d.is_symbol(symbol));
    let run = runs[..k].iter_mut().find(|run| {
        let mut read = run.insts.iter().flat_map(|&i| func.body[i].inputs());
        read.any(|v| func.params.contains(&v) && told(func, v))
    });
    let Some(run) = run else {
        return Err(PlaceError::Symbol { func: func.name.clone(), symbol: symbol.clone() });
    };
    let v = func.add_value(TensorType::new(DType::I32, [Dim::symbol(&**symbol)]), None);
    let attrs = Attrs::new().with("value", 0.0);
    run.insts.push(func.body.len());
    func.body.push(inst(Op::Splat, Vec::new(), attrs, None, vec![v]));
    Ok(v)
}

fn symbols(ty: &TensorType, into: &mut BTreeSet<Symbol>) {
    into.extend(ty.shape.0.iter().flat_map(Dim::symbols));
}

/// The symbols of all functions that a call reaches.
fn callees(
    module: &Module,
    inst: &Inst,
    seen: &mut HashSet<Arc<str>>,
    into: &mut BTreeSet<Symbol>,
) {
    let mut pending: Vec<Arc<str>> = inst.symbol.iter().cloned().collect();
    while let Some(name) = pending.pop() {
        let Some(func) = module.funcs.get(&name) else { continue };
        if seen.insert(name) {
            func.values.iter().for_each(|v| symbols(&v.ty, into));
            let calls = func.body.iter().filter(|inst| inst.op.is_call());
            pending.extend(calls.filter_map(|inst| inst.symbol.clone()));
        }
    }
}
