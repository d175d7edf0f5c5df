//! What a module costs by op: how often each runs, what it moves, what it computes.

use aether_ir::target::Cost;
use aether_ir::{Inst, Module, Op};
use aether_passes::{PassCtx, cost, util};
use indexmap::IndexMap;

use super::html::{self, Cell};

/// The sum over the instructions of one op.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// Times it runs, calls counted.
    pub runs: u64,
    pub cost: Cost,
    pub seconds: f64,
}

impl Share {
    fn add(&mut self, runs: u64, cost: &Cost, seconds: f64) {
        self.runs = self.runs.saturating_add(runs);
        self.cost.bytes += runs as f64 * cost.bytes;
        self.cost.flops += runs as f64 * cost.flops;
        self.cost.launches += runs as f64 * cost.launches;
        self.seconds += runs as f64 * seconds;
    }
}

/// What every op costs in one run of the entries, and all of them together.
pub struct Costs {
    pub by_op: IndexMap<Op, Share>,
    pub total: Share,
}

impl Costs {
    pub fn of(module: &Module, ctx: &PassCtx) -> Costs {
        let runs = runs(module);
        let mut costs = Costs { by_op: IndexMap::new(), total: Share::default() };
        for (func, &runs) in module.funcs.values().zip(&runs) {
            let real = |inst: &&Inst| !matches!(inst.op, Op::Call | Op::Constant | Op::Pack);
            for inst in func.body.iter().filter(real) {
                let cost = cost::of_inst(module, ctx, func, inst);
                let seconds = ctx.target.seconds(&cost);
                // What the target says costs nothing (a reshape) is no time.
                let seconds = if cost == Cost::default() { 0.0 } else { seconds };
                costs.by_op.entry(inst.op).or_default().add(runs, &cost, seconds);
                costs.total.add(runs, &cost, seconds);
            }
        }
        costs.by_op.sort_by(|a, x, b, y| y.seconds.total_cmp(&x.seconds).then(a.cmp(b)));
        costs
    }

    /// The table by op.
    pub fn table(&self) -> String {
        let rows: Vec<Vec<Cell>> = self
            .by_op
            .iter()
            .map(|(op, share)| {
                let part = share.seconds / self.total.seconds.max(f64::MIN_POSITIVE);
                vec![
                    Cell::Code(op.to_string()),
                    Cell::Number(share.runs.to_string()),
                    Cell::Number(html::bytes(share.cost.bytes)),
                    Cell::Number(html::count(share.cost.flops)),
                    Cell::Number(format!("{:.0}", share.cost.launches)),
                    Cell::Bar(
                        part,
                        format!("{} · {:.1} %", html::seconds(share.seconds), part * 100.0),
                    ),
                ]
            })
            .collect();
        html::table(&["op", "runs", "bytes", "flops", "launches", "estimated time"], &rows)
    }
}

/// How often each function runs in one run of the entries.
fn runs(module: &Module) -> Vec<u64> {
    let mut runs = vec![0u64; module.funcs.len()];
    for entry in util::entries(module) {
        runs[entry] = 1;
    }
    // Callers before callees; a module with a cycle does not verify and has no order.
    let order = petgraph::algo::toposort(&util::call_graph(module), None).unwrap_or_default();
    for f in order.into_iter().map(|node| node.index()) {
        for inst in module.funcs[f].body.iter().filter(|inst| inst.op == Op::Call) {
            if let Some(callee) = inst.symbol.as_ref().and_then(|s| module.funcs.get_index_of(s)) {
                runs[callee] = runs[callee].saturating_add(runs[f]);
            }
        }
    }
    runs
}
