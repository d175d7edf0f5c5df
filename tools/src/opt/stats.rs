//! `--stats` and `--timing`: what the passes did, in numbers.

use std::fmt::Write as _;

use aether_ir::target::Cost;
use aether_ir::{Module, Op, TensorType};
use aether_passes::{PassCtx, StepReport};

/// What running a module once costs, by the target's estimate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Instructions that run, those of called functions counted at each call.
    ops: u64,
    cost: Cost,
    seconds: f64,
}

impl Totals {
    /// The totals over the functions that are run from outside.
    pub fn of(module: &Module, ctx: &PassCtx) -> Totals {
        let mut known = vec![None; module.funcs.len()];
        aether_passes::util::entries(module)
            .into_iter()
            .map(|entry| function(module, ctx, entry, &mut known))
            .fold(Totals::default(), |sum, one| sum + one)
    }
}

impl std::ops::Add for Totals {
    type Output = Totals;

    fn add(self, other: Totals) -> Totals {
        Totals {
            ops: self.ops.saturating_add(other.ops),
            cost: Cost {
                bytes: self.cost.bytes + other.cost.bytes,
                flops: self.cost.flops + other.cost.flops,
                launches: self.cost.launches + other.cost.launches,
            },
            seconds: self.seconds + other.seconds,
        }
    }
}

/// The totals of one function; calls nest at most as deep as the verifier allows.
fn function(module: &Module, ctx: &PassCtx, f: usize, known: &mut [Option<Totals>]) -> Totals {
    if let Some(found) = known[f] {
        return found;
    }
    let func = &module.funcs[f];
    let mut sum = Totals::default();
    for inst in &func.body {
        let callee = inst.symbol.as_ref().and_then(|s| module.funcs.get_index_of(s));
        let one = match (inst.op, callee) {
            (Op::Call, Some(callee)) => function(module, ctx, callee, known),
            _ => {
                let operands: Vec<&TensorType> = inst.inputs().map(|v| func.ty(v)).collect();
                let results: Vec<&TensorType> = inst.results.iter().map(|&r| func.ty(r)).collect();
                let sizes = |symbol: &str| ctx.size_of(module, symbol);
                let cost = ctx.target.cost(inst.op, &operands, &results, &sizes);
                Totals { ops: 1, cost, seconds: ctx.target.seconds(&cost) }
            }
        };
        sum = sum + one;
    }
    known[f] = Some(sum);
    sum
}

/// The table of `--stats`.
pub fn text(before: &Totals, after: &Totals, reports: &[StepReport]) -> String {
    let mut text = format!("{:<14} {:>14} {:>14}\n", "", "before", "after");
    let rows: [(&str, f64, f64); 4] = [
        ("operations", before.ops as f64, after.ops as f64),
        ("bytes", before.cost.bytes, after.cost.bytes),
        ("flops", before.cost.flops, after.cost.flops),
        ("launches", before.cost.launches, after.cost.launches),
    ];
    for (name, before, after) in rows {
        let _ = writeln!(text, "{name:<14} {before:>14.0} {after:>14.0}");
    }
    let micros = (before.seconds * 1e6, after.seconds * 1e6);
    let _ = writeln!(text, "{:<14} {:>14.1} {:>14.1}", "estimated µs", micros.0, micros.1);
    for report in reports {
        for (name, count) in &report.stats.counters {
            let _ = writeln!(text, "{:<14} {name:<32} {count:>10}", report.pass);
        }
    }
    text
}

/// The table of `--timing`.
pub fn timing(reports: &[StepReport]) -> String {
    let mut text = String::new();
    let total: f64 = reports.iter().map(|r| r.time.as_secs_f64()).sum();
    for report in reports {
        let time = report.time.as_secs_f64();
        let _ = writeln!(
            text,
            "{:<10} {:>9.3} ms {:>5.1} %  {:>6} -> {:<6} instructions",
            report.pass,
            time * 1e3,
            if total > 0.0 { time / total * 100.0 } else { 0.0 },
            report.insts.0,
            report.insts.1
        );
    }
    let _ = writeln!(text, "{:<10} {:>9.3} ms", "all", total * 1e3);
    text
}
