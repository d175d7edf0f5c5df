//! The table of what was fused, and why.

use aether_ir::Module;
use aether_passes::PassCtx;

use super::html::{self, Cell};
use crate::fusion::{self, Fusion};

/// The table of every fused op; nothing when there is none.
pub fn table(module: &Module, ctx: &PassCtx) -> String {
    let mut rows: Vec<(usize, Fusion)> = Vec::new();
    for func in module.funcs.values() {
        for row in func.body.iter().filter_map(|inst| fusion::of(module, ctx, func, inst)) {
            // Equal decisions of one function are one row.
            match rows.iter_mut().find(|(_, r)| *r == row) {
                Some((n, _)) => *n += 1,
                None => rows.push((1, row)),
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let pair = |a: String, b: String| format!("{a} → {b}");
    let cells: Vec<Vec<Cell>> = rows
        .into_iter()
        .map(|(n, row)| {
            let (apart, fused) = (ctx.target.seconds(&row.apart), ctx.target.seconds(&row.fused));
            let gain = 1.0 - fused / apart.max(f64::MIN_POSITIVE);
            let times = pair(html::seconds(apart), html::seconds(fused));
            vec![
                Cell::Code(format!("@{}", row.func)),
                Cell::Code(row.op),
                Cell::Number(n.to_string()),
                Cell::Code(row.parts),
                Cell::Number(pair(html::bytes(row.apart.bytes), html::bytes(row.fused.bytes))),
                Cell::Number(format!("{:.0} → {:.0}", row.apart.launches, row.fused.launches)),
                Cell::Bar(gain, format!("{times} ({:.0} %)", gain * 100.0)),
            ]
        })
        .collect();
    let headings = [
        "function",
        "fused op",
        "times",
        "stands for",
        "bytes",
        "launches",
        "estimated time saved",
    ];
    html::table(&headings, &cells)
}
