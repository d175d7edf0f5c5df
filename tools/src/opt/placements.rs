//! `--placements`: which instructions are worth a GPU, by the estimate that `--device auto` goes by.

use std::fmt::Write as _;

use aether_codegen_cpu::CpuTarget;
use aether_codegen_wgsl::{Adapter, GpuTarget};
use aether_ir::Module;
use aether_passes::balance::{Link, Machines, candidates};
use aether_passes::{PassCtx, util};

/// The placements of every entry, the best first, with their estimated times. Every op is taken to
/// have a kernel on the GPU, of which nothing else is asked: there need not be one.
pub fn text(module: &Module, cpu: &CpuTarget, memory: Option<u64>) -> String {
    let target = GpuTarget { adapter: Adapter::LEAST };
    let machines = Machines {
        cpu: &PassCtx::new(cpu),
        gpu: &PassCtx::new(&target),
        link: Link::PCIE,
        room: memory,
    };
    let mut text = String::new();
    for func in util::entries(module).into_iter().map(|f| &module.funcs[f]) {
        let _ = writeln!(text, "placements of @{}:", func.name);
        for candidate in candidates(module, func, &vec![true; func.body.len()], &machines) {
            let _ = writeln!(text, "  {candidate}");
        }
    }
    text
}
