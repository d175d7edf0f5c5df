//! What was fused, and why: the figures of each fused op beside those of its parts.
//!
//! The parts of an op that stands for a fixed composition are spelt out here and priced by the
//! same target. An op whose symbol names its body (`fused`) is priced instruction by instruction.

use aether_ir::target::Cost;
use aether_ir::{Func, Inst, Module, Op, TensorType};
use aether_passes::{PassCtx, cost};

use super::html::{self, Cell};

/// One fused op and what it replaced.
struct Row {
    func: String,
    op: String,
    parts: String,
    fused: Cost,
    apart: Cost,
}

/// The table of every fused op; nothing when there is none.
pub fn table(module: &Module, ctx: &PassCtx) -> String {
    let mut rows: Vec<(usize, Row)> = Vec::new();
    for func in module.funcs.values() {
        for inst in &func.body {
            let Some(row) = row(module, ctx, func, inst) else { continue };
            // Equal decisions of one function are one row.
            let same = rows.iter_mut().find(|(_, r)| {
                r.func == row.func && r.op == row.op && r.fused == row.fused && r.apart == row.apart
            });
            match same {
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
            vec![
                Cell::Code(format!("@{}", row.func)),
                Cell::Code(row.op),
                Cell::Number(n.to_string()),
                Cell::Code(row.parts),
                Cell::Number(pair(html::bytes(row.apart.bytes), html::bytes(row.fused.bytes))),
                Cell::Number(format!("{:.0} → {:.0}", row.apart.launches, row.fused.launches)),
                Cell::Bar(
                    gain,
                    format!(
                        "{} ({:.0} %)",
                        pair(html::seconds(apart), html::seconds(fused)),
                        gain * 100.0
                    ),
                ),
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

fn row(module: &Module, ctx: &PassCtx, func: &Func, inst: &Inst) -> Option<Row> {
    let price = |op: Op, operands: &[&TensorType], results: &[&TensorType]| {
        ctx.target.cost(op, operands, results, &|s| ctx.size_of(module, s))
    };
    let types: Vec<&TensorType> = inst.inputs().map(|v| func.ty(v)).collect();
    let results: Vec<&TensorType> = inst.results.iter().map(|&r| func.ty(r)).collect();
    let product = |w: &TensorType, y: &TensorType| price(Op::Matmul, &[types[0], w], &[y]);
    let (parts, apart) = match inst.op {
        Op::MatmulAdd => {
            let y = results[0];
            (
                "matmul, add".to_owned(),
                sum([product(types[1], y), price(Op::Add, &[y, types[2]], &[y])]),
            )
        }
        Op::MatmulGated => {
            let y = results[0];
            let act = inst.attrs.str("act").unwrap_or_default();
            let all = [
                product(types[1], y),
                product(types[2], y),
                price(Op::from_name(act)?, &[y], &[y]),
                price(Op::Mul, &[y, y], &[y]),
            ];
            (format!("matmul, matmul, {act}, mul"), sum(all))
        }
        Op::MatmulMulti => {
            let products = results.iter().enumerate().map(|(i, y)| product(types[1 + i], y));
            (format!("{} × matmul of one operand", results.len()), sum(products))
        }
        op if op.name() == "fused" => {
            let body = module.funcs.get(inst.symbol.as_ref()?)?;
            let ops: Vec<&str> = body.body.iter().map(|i| i.op.name()).collect();
            (ops.join(", "), sum(body.body.iter().map(|i| cost::of_inst(module, ctx, body, i))))
        }
        _ => return None,
    };
    let symbol = inst.symbol.as_ref().map_or(String::new(), |s| format!(" @{s}"));
    Some(Row {
        func: func.name.to_string(),
        op: format!("{}{symbol}", inst.op),
        parts,
        fused: cost::of_inst(module, ctx, func, inst),
        apart,
    })
}

fn sum(costs: impl IntoIterator<Item = Cost>) -> Cost {
    costs.into_iter().fold(Cost::default(), |a, b| Cost {
        bytes: a.bytes + b.bytes,
        flops: a.flops + b.flops,
        launches: a.launches + b.launches,
    })
}
