//! Which instructions of a function are worth a GPU: some placements, each with its estimated time.
//!
//! The targets say what an instruction costs ([`crate::cost`]); to that come values that cross,
//! and weights that pass through the GPU's memory when there is no room for all that is placed
//! there. Looked at are the CPU alone, all that the GPU can run, and of that the last calls, one
//! more at a time: the shapes that [`place`](crate::place) cuts into few parts. Sizes are those of
//! the contexts, by default the least of every symbol: of a language model one token.

use std::collections::HashSet;
use std::fmt;

use aether_ir::{Func, Module, Op, TensorType, ValueId};

use crate::cost;
use crate::pass::PassCtx;
use crate::place::{Device, last_calls, on_device};

/// What lies between the two devices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Values that cross.
    pub bytes_per_second: f64,
    /// Weights that pass through: read, packed and sent.
    pub streamed_bytes_per_second: f64,
    /// Of a part of the GPU, beside its work: sending it off and waiting for it.
    pub seconds_per_part: f64,
}

impl Link {
    /// A PCIe bus of the fourth generation, and a host of some cores.
    pub const PCIE: Link =
        Link { bytes_per_second: 12e9, streamed_bytes_per_second: 5e9, seconds_per_part: 50e-6 };
}

/// Two devices.
pub struct Machines<'a> {
    pub cpu: &'a PassCtx<'a>,
    pub gpu: &'a PassCtx<'a>,
    pub link: Link,
    /// Bytes of weights and states that the GPU holds; as many as there are when `None`.
    pub room: Option<u64>,
}

/// A placement and what one run of it takes, as far as that can be estimated.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// For people: `the last 3 calls on the GPU`.
    pub name: String,
    pub devices: Vec<Device>,
    /// Seconds that each device computes, and that values take from one to the other.
    pub cpu: f64,
    pub gpu: f64,
    pub transfer: f64,
    /// Bytes of weights and states on the GPU, and of those the bytes that find no room; the
    /// seconds that they take to pass through.
    pub held: u64,
    pub streamed: u64,
    pub stream: f64,
}

impl Candidate {
    /// Seconds of a run.
    pub fn seconds(&self) -> f64 {
        self.cpu + self.transfer + self.gpu.max(self.stream)
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |s: f64| s * 1e3;
        write!(
            f,
            "{}: {:.3} ms (CPU {:.3}, GPU {:.3}, transfers {:.3}",
            self.name,
            ms(self.seconds()),
            ms(self.cpu),
            ms(self.gpu),
            ms(self.transfer)
        )?;
        if self.streamed > 0 {
            let mib = |n: u64| n as f64 / f64::from(1 << 20);
            let (streamed, held) = (mib(self.streamed), mib(self.held));
            write!(f, ", {streamed:.1} of {held:.1} MiB pass through in {:.3}", ms(self.stream))?;
        }
        f.write_str(")")
    }
}

/// The placements of a function's instructions, the best first; of equals the one with more on the
/// GPU. `runs` tells which the GPU can run.
pub fn candidates(
    module: &Module,
    func: &Func,
    runs: &[bool],
    machines: &Machines<'_>,
) -> Vec<Candidate> {
    let n = func.body.len();
    let calls = func.body.iter().filter(|inst| inst.op == Op::Call).count();
    let estimate = Estimate::new(module, func, machines);
    let supported = |devices: Vec<Device>| -> Vec<Device> {
        let on = |(i, d): (usize, Device)| {
            if runs.get(i) == Some(&true) { d } else { Device::Cpu }
        };
        devices.into_iter().enumerate().map(on).collect()
    };
    let mut all: Vec<(String, Vec<Device>)> =
        vec![("all on the GPU that it can run".to_owned(), supported(vec![Device::Gpu; n]))];
    for last in (1..=calls + 1).rev() {
        let name = match last > calls {
            true => "all calls and what follows on the GPU".to_owned(),
            false => format!("the last {last} of {calls} calls on the GPU"),
        };
        all.push((name, supported(last_calls(func, last))));
    }
    all.push(("all on the CPU".to_owned(), vec![Device::Cpu; n]));
    let mut seen = HashSet::new();
    let mut found: Vec<Candidate> = all
        .into_iter()
        .filter(|(_, devices)| seen.insert(devices.clone()))
        .map(|(name, devices)| estimate.of(name, devices))
        .collect();
    // Stable: of equals the first has most on the GPU.
    found.sort_by(|a, b| a.seconds().total_cmp(&b.seconds()));
    found
}

/// What each instruction takes on each device.
struct Estimate<'a> {
    func: &'a Func,
    machines: &'a Machines<'a>,
    on_device: Vec<bool>,
    cpu: Vec<f64>,
    gpu: Vec<f64>,
    /// By value, its bytes.
    bytes: Vec<u64>,
    /// By value, whether it is computed from constants alone.
    fixed: Vec<bool>,
}

impl<'a> Estimate<'a> {
    fn new(module: &Module, func: &'a Func, machines: &'a Machines<'a>) -> Estimate<'a> {
        let seconds = |ctx: &PassCtx| -> Vec<f64> {
            let of = |inst: &aether_ir::Inst| {
                let callee = inst.symbol.as_ref().filter(|_| inst.op == Op::Call);
                let cost = match callee {
                    Some(callee) => cost::of_func(module, ctx, callee),
                    None => cost::of_inst(module, ctx, func, inst),
                };
                ctx.target.seconds(&cost)
            };
            func.body.iter().map(of).collect()
        };
        let size = |ty: &TensorType| {
            ty.bytes(|s| Some(machines.cpu.size_of(module, s))).unwrap_or(u64::MAX)
        };
        Estimate {
            func,
            machines,
            on_device: on_device(func),
            cpu: seconds(machines.cpu),
            gpu: seconds(machines.gpu),
            bytes: func.values.iter().map(|v| size(&v.ty)).collect(),
            fixed: crate::plan::load_time(func),
        }
    }

    fn of(&self, name: String, devices: Vec<Device>) -> Candidate {
        let Machines { link, room, .. } = self.machines;
        let func = self.func;
        let mut home: Vec<Option<Device>> = vec![None; func.values.len()];
        let (mut cpu, mut gpu) = (0.0, 0.0);
        let mut crossing: HashSet<(ValueId, Device)> = HashSet::new();
        let mut on_gpu: HashSet<ValueId> = HashSet::new();
        let (mut parts, mut before) = (0usize, Device::Cpu);
        for (i, inst) in func.body.iter().enumerate().filter(|(i, _)| self.on_device[*i]) {
            let device = devices[i];
            match device {
                Device::Cpu => cpu += self.cpu[i],
                Device::Gpu => gpu += self.gpu[i],
            }
            parts += usize::from(device == Device::Gpu && before == Device::Cpu);
            before = device;
            for operand in &inst.operands {
                let v = operand.value;
                if self.fixed[v.index()] || operand.donated {
                    // Weights and states stay where they are used.
                    on_gpu.extend((device == Device::Gpu).then_some(v));
                } else if home[v.index()].unwrap_or(Device::Cpu) != device {
                    crossing.insert((v, device));
                }
            }
            inst.results.iter().for_each(|r| home[r.index()] = Some(device));
        }
        // Results are wanted on the host, but for states.
        let donated: HashSet<ValueId> = func
            .body
            .iter()
            .flat_map(|inst| inst.operands.iter().filter(|o| o.donated).map(|o| o.value))
            .collect();
        let kept = |v: &ValueId| {
            let ty = func.ty(*v);
            donated.iter().any(|d| func.params.contains(d) && func.ty(*d) == ty)
        };
        for v in func.returns.iter().filter(|v| !kept(v)) {
            if home[v.index()] == Some(Device::Gpu) {
                crossing.insert((*v, Device::Cpu));
            }
        }
        let sum = |values: &mut dyn Iterator<Item = ValueId>| {
            values.fold(0u64, |sum, v| sum.saturating_add(self.bytes[v.index()]))
        };
        let moved = sum(&mut crossing.iter().map(|(v, _)| *v));
        let held = sum(&mut on_gpu.iter().copied());
        let streamed = room.map_or(0, |room| held.saturating_sub(room));
        Candidate {
            name,
            devices,
            cpu,
            gpu,
            transfer: moved as f64 / link.bytes_per_second + parts as f64 * link.seconds_per_part,
            held,
            streamed,
            stream: streamed as f64 / link.streamed_bytes_per_second,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generic::GenericTarget;
    use aether_ir::parse_and_verify;
    use aether_ir::target::{Cost, Target};

    /// Four layers of a weight each, a head, and one op that the GPU cannot run, if `odd`.
    fn module(width: usize) -> Module {
        let w = format!("tensor<{width}x{width}xf32>");
        let x = format!("tensor<[s]x{width}xf32>");
        let mut text = "module @m {\n  sym s in 1..=8\n".to_owned();
        for i in 0..4 {
            text += &format!(
                "  const @w{i}: {w} = file(\"w.bin\", {}, {})\n",
                i * width * width * 4,
                width * width * 4
            );
        }
        text += &format!(
            "  func @layer(%x: {x}, %w: {w}) -> {x} {{
    %y = matmul %x, %w {{transpose_b = true}} : {x}
    %z = silu %y : {x}
    return %z
  }}
  func @main(%x: {x}) -> {x} {{\n"
        );
        let mut last = "x".to_owned();
        for i in 0..4 {
            text += &format!("    %w{i} = constant @w{i} : {w}\n");
            text += &format!("    %x{i} = call @layer %{last}, %w{i} : {x}\n");
            last = format!("x{i}");
        }
        text += &format!("    %y = exp %{last} : {x}\n    return %y\n  }}\n}}\n");
        parse_and_verify(&text).unwrap_or_else(|d| panic!("{text}\n{d:?}"))
    }

    /// A GPU a hundred times as fast as the generic target.
    struct Fast;

    impl Target for Fast {
        fn name(&self) -> &'static str {
            "fast"
        }
        fn weight_layout(&self, weight: &TensorType) -> aether_ir::Layout {
            GenericTarget.weight_layout(weight)
        }
        fn supports(&self, op: Op, operands: &[&TensorType]) -> bool {
            GenericTarget.supports(op, operands)
        }
        fn cost(
            &self,
            op: Op,
            operands: &[&TensorType],
            results: &[&TensorType],
            sizes: &dyn Fn(&str) -> u64,
        ) -> Cost {
            GenericTarget.cost(op, operands, results, sizes)
        }
        fn scratch_bytes(
            &self,
            func: &Func,
            inst: &aether_ir::Inst,
            symbols: &indexmap::IndexMap<aether_ir::Symbol, aether_ir::SymbolRange>,
        ) -> u64 {
            GenericTarget.scratch_bytes(func, inst, symbols)
        }
        fn in_place(&self, op: Op, operand: usize) -> bool {
            GenericTarget.in_place(op, operand)
        }
        fn seconds(&self, cost: &Cost) -> f64 {
            GenericTarget.seconds(cost) / 100.0
        }
    }

    fn best(module: &Module, runs: &[bool], room: Option<u64>) -> Candidate {
        let (cpu, gpu) = (PassCtx::new(&GenericTarget), PassCtx::new(&Fast));
        let machines = Machines { cpu: &cpu, gpu: &gpu, link: Link::PCIE, room };
        let func = &module.funcs["main"];
        let all = candidates(module, func, runs, &machines);
        assert!(all.is_sorted_by(|a, b| a.seconds() <= b.seconds()));
        all.into_iter().next().unwrap()
    }

    #[test]
    fn large_work_goes_to_the_gpu_and_small_stays() {
        let (large, small) = (module(2048), module(16));
        let n = large.funcs["main"].body.len();
        let on = |c: &Candidate| c.devices.iter().filter(|d| **d == Device::Gpu).count();
        let found = best(&large, &vec![true; n], None);
        assert_eq!((on(&found), found.streamed), (n, 0), "{found}");
        let found = best(&small, &vec![true; n], None);
        assert_eq!(on(&found), 0, "a round trip costs more: {found}");
        // What the GPU cannot run is never placed there.
        let mut runs = vec![true; n];
        runs[n - 1] = false;
        let found = best(&large, &runs, None);
        assert_eq!((found.devices[n - 1], on(&found)), (Device::Cpu, n - 1), "{found}");
        assert_eq!(on(&best(&large, &vec![false; n], None)), 0);
    }

    #[test]
    fn what_finds_no_room_is_computed_where_it_is() {
        let module = module(2048);
        let n = module.funcs["main"].body.len();
        let weight = 2048 * 2048 * 4u64;
        let calls = |c: &Candidate| {
            let func = &module.funcs["main"];
            let on = |i: &usize| func.body[*i].op == Op::Call && c.devices[*i] == Device::Gpu;
            (0..n).filter(on).count()
        };
        // The CPU reads 20 GB/s, weights pass through at 5.
        for (room, want) in [(4, 4), (3, 3), (2, 2), (1, 1), (0, 0)] {
            let found = best(&module, &vec![true; n], Some(room * weight + 100));
            assert_eq!((calls(&found), found.streamed), (want, 0), "{found}");
        }
        let found = best(&module, &vec![true; n], Some(4 * weight));
        assert!(found.to_string().contains("ms (CPU"), "{found}");
    }
}
