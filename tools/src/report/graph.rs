//! The graph of a function as SVG: instructions in layers by the longest way from a parameter,
//! each layer ordered by where its operands stand (the barycentre heuristic of Sugiyama, 1981).
//!
//! Constants are named in the instruction that reads them, not drawn: they would be most of the
//! picture and say little.

use std::fmt::Write as _;

use aether_ir::target::Cost;
use aether_ir::{Func, Inst, Op, ValueId};

use super::html::{self, escape};

/// Most instructions that are drawn of one function.
pub const MAX_NODES: usize = 600;

const WIDTH: f64 = 168.0;
const HEIGHT: f64 = 40.0;
const GAP_X: f64 = 22.0;
const GAP_Y: f64 = 34.0;
/// Sweeps of the ordering; more change little.
const SWEEPS: usize = 6;
/// Most boxes side by side; a wider layer is broken into rows.
const MAX_ROW: usize = 12;

struct Node {
    title: String,
    label: String,
    class: &'static str,
    tip: String,
    /// Positions of the nodes it reads, and whether the operand is given away.
    reads: Vec<(usize, bool)>,
    layer: usize,
    order: f64,
}

/// What a node shows of its cost.
pub type CostOf<'a> = dyn Fn(&Inst) -> (Cost, f64) + 'a;

/// The picture of a function.
pub fn svg(func: &Func, cost_of: &CostOf) -> String {
    let mut nodes = nodes(func, cost_of);
    let rows = arrange(&mut nodes);
    let widest = rows.iter().map(Vec::len).max().unwrap_or(0).max(1) as f64;
    let width = widest * (WIDTH + GAP_X) + GAP_X;
    let height = rows.len() as f64 * (HEIGHT + GAP_Y) + GAP_Y;
    let mut place = vec![(0.0, 0.0); nodes.len()];
    for (y, row) in rows.iter().enumerate() {
        let used = row.len() as f64 * (WIDTH + GAP_X) - GAP_X;
        for (x, &node) in row.iter().enumerate() {
            let left = (width - used) / 2.0 + x as f64 * (WIDTH + GAP_X);
            place[node] = (left, GAP_Y / 2.0 + y as f64 * (HEIGHT + GAP_Y));
        }
    }
    let mut out = format!(
        "<svg class=\"graph\" role=\"img\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         style=\"min-width:{:.0}px;max-width:{width:.0}px\">\n",
        (width * 0.75).min(1400.0)
    );
    for (to, node) in nodes.iter().enumerate() {
        for &(from, donated) in &node.reads {
            let ((x0, y0), (x1, y1)) = (place[from], place[to]);
            let (x0, y0, x1) = (x0 + WIDTH / 2.0, y0 + HEIGHT, x1 + WIDTH / 2.0);
            let bend = ((y1 - y0) / 2.0).clamp(12.0, 90.0);
            let class = if donated { "edge given" } else { "edge" };
            let _ = writeln!(
                out,
                "<path class=\"{class}\" d=\"M{x0:.0} {y0:.0}C{x0:.0} {:.0} {x1:.0} {:.0} {x1:.0} {y1:.0}\"/>",
                y0 + bend,
                y1 - bend
            );
        }
    }
    for (node, (x, y)) in nodes.iter().zip(&place) {
        let _ = writeln!(
            out,
            "<g class=\"node {}\" transform=\"translate({x:.0} {y:.0})\"><title>{}</title>\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\"/>\
             <text x=\"{2:.0}\" y=\"16\">{3}</text><text class=\"ty\" x=\"{2:.0}\" y=\"31\">{4}</text></g>",
            node.class,
            escape(&node.tip),
            WIDTH / 2.0,
            escape(&short(&node.title, 24)),
            escape(&short(&node.label, 28))
        );
    }
    out.push_str("</svg>\n");
    let left = func.body.len().saturating_sub(MAX_NODES);
    if left > 0 {
        let _ = writeln!(out, "<p class=\"note\">{left} further instructions are not drawn.</p>");
    }
    out
}

fn short(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

/// The kind that colours an op.
pub fn class(op: Op) -> &'static str {
    match op.name() {
        name if name.starts_with("matmul") || name.starts_with("conv") => "product",
        "fused" => "fused",
        "call" => "call",
        "attention" | "kv_append" | "rope" => "attention",
        name if name.contains("norm") || name.contains("softmax") || name.starts_with("reduce") => {
            "reduction"
        }
        "reshape" | "broadcast" | "transpose" | "slice" | "concat" | "gather" => "movement",
        _ => "pointwise",
    }
}

fn nodes(func: &Func, cost_of: &CostOf) -> Vec<Node> {
    let name_of = |v: ValueId| func.values[v.index()].name.as_deref();
    let mut node_of: Vec<Option<usize>> = vec![None; func.values.len()];
    // Constants as they are read, packed ones too.
    let mut constant_of: Vec<Option<String>> = vec![None; func.values.len()];
    let mut nodes = Vec::new();
    for &param in &func.params {
        node_of[param.index()] = Some(nodes.len());
        let ty = func.ty(param).to_string();
        let title = format!("%{}", name_of(param).unwrap_or("?"));
        let tip = format!("parameter {title}: {ty}");
        let class = "param";
        nodes.push(Node { title, label: ty, class, tip, reads: vec![], layer: 0, order: 0.0 });
    }
    for inst in func.body.iter().take(MAX_NODES) {
        if matches!(inst.op, Op::Constant | Op::Pack) {
            let operand = inst.inputs().next().and_then(|v| constant_of[v.index()].clone());
            let symbol = inst.symbol.as_ref().map(|s| format!("@{s}"));
            if let (Some(text), Some(r)) = (symbol.or(operand), inst.results.first()) {
                constant_of[r.index()] = Some(text);
                continue;
            }
        }
        let mut reads = Vec::new();
        let mut constants = Vec::new();
        for operand in &inst.operands {
            match (&constant_of[operand.value.index()], node_of[operand.value.index()]) {
                (Some(text), _) => constants.push(text.as_str()),
                (None, Some(at)) => reads.push((at, operand.donated)),
                (None, None) => {}
            }
        }
        reads.sort_unstable();
        reads.dedup();
        for r in &inst.results {
            node_of[r.index()] = Some(nodes.len());
        }
        let symbol = inst.symbol.as_ref().map_or(String::new(), |s| format!(" @{s}"));
        let label = inst.results.first().map_or(String::new(), |&r| func.ty(r).to_string());
        let layer = reads.iter().map(|&(at, _): &(usize, bool)| {
            let node: &Node = &nodes[at];
            node.layer + 1
        });
        let layer = layer.max().unwrap_or(0);
        let tip = tip(func, inst, &constants, cost_of);
        let title = format!("{}{symbol}", inst.op);
        let class = class(inst.op);
        nodes.push(Node { title, label, class, tip, reads, layer, order: 0.0 });
    }
    let last = nodes.iter().map(|n| n.layer + 1).max().unwrap_or(0);
    let mut reads: Vec<_> =
        func.returns.iter().filter_map(|v| node_of[v.index()]).map(|at| (at, false)).collect();
    reads.sort_unstable();
    reads.dedup();
    let label = format!("{} results", func.returns.len());
    let (title, tip) = ("return".to_owned(), "what the function returns".to_owned());
    nodes.push(Node { title, label, class: "param", tip, reads, layer: last, order: 0.0 });
    nodes
}

fn tip(func: &Func, inst: &Inst, constants: &[&str], cost_of: &CostOf) -> String {
    let name = |v: ValueId| match func.values[v.index()].name.as_deref() {
        Some(name) => format!("%{name}"),
        None => format!("value {}", v.0),
    };
    let results: Vec<String> =
        inst.results.iter().map(|&r| format!("{}: {}", name(r), func.ty(r))).collect();
    let mut tip = format!("{}\n{}", inst.op, results.join("\n"));
    for (key, attr) in &inst.attrs.0 {
        let _ = write!(tip, "\n{key} = {attr:?}");
    }
    match constants {
        [] => {}
        few if few.len() <= 4 => {
            let _ = write!(tip, "\nconstants {}", few.join(", "));
        }
        many => {
            let _ = write!(
                tip,
                "\n{} constants from {} to {}",
                many.len(),
                many[0],
                many[many.len() - 1]
            );
        }
    }
    let (cost, seconds) = cost_of(inst);
    if cost != Cost::default() {
        let _ = write!(
            tip,
            "\n{} moved, {} flops, about {}",
            html::bytes(cost.bytes),
            html::count(cost.flops),
            html::seconds(seconds)
        );
    }
    tip
}

/// Rows of nodes from top to bottom.
fn arrange(nodes: &mut [Node]) -> Vec<Vec<usize>> {
    let layers = nodes.iter().map(|n| n.layer + 1).max().unwrap_or(0);
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); layers];
    // A parameter stands just above its first reader.
    let mut first = vec![usize::MAX; nodes.len()];
    for node in nodes.iter() {
        for &(at, _) in &node.reads {
            first[at] = first[at].min(node.layer);
        }
    }
    for (node, first) in nodes.iter_mut().zip(first) {
        if node.class == "param" && node.reads.is_empty() && first != usize::MAX {
            node.layer = first.saturating_sub(1);
        }
    }
    for (i, node) in nodes.iter().enumerate() {
        rows[node.layer].push(i);
    }
    for row in &rows {
        for (x, &i) in row.iter().enumerate() {
            nodes[i].order = x as f64 - row.len() as f64 / 2.0;
        }
    }
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        for &(at, _) in &node.reads {
            readers[at].push(i);
        }
    }
    for sweep in 0..SWEEPS {
        let order: Vec<usize> = match sweep % 2 {
            0 => (0..layers).collect(),
            _ => (0..layers).rev().collect(),
        };
        for layer in order {
            let row = &mut rows[layer];
            let centre = |i: &usize| -> f64 {
                let near: Vec<f64> = match sweep % 2 {
                    0 => nodes[*i].reads.iter().map(|&(at, _)| nodes[at].order).collect(),
                    _ => readers[*i].iter().map(|&at| nodes[at].order).collect(),
                };
                match near.len() {
                    0 => nodes[*i].order,
                    n => near.iter().sum::<f64>() / n as f64,
                }
            };
            let mut keyed: Vec<(f64, usize)> = row.iter().map(|i| (centre(i), *i)).collect();
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            *row = keyed.into_iter().map(|(_, i)| i).collect();
            let half = row.len() as f64 / 2.0;
            for (x, &i) in row.iter().enumerate() {
                nodes[i].order = x as f64 - half;
            }
        }
    }
    rows.into_iter()
        .flat_map(|row| row.chunks(MAX_ROW).map(<[usize]>::to_vec).collect::<Vec<_>>())
        .collect()
}
