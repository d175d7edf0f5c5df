//! The memory plan as a picture: instructions to the right, offsets upwards, a box for each range
//! of the frame from the instruction that writes it to the last that reads it.

use std::fmt::Write as _;

use aether_ir::plan::{FuncPlan, Storage};
use aether_ir::{Func, Op, ValueId};

use super::html::{self, escape};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 74.0;
const BOTTOM: f64 = 34.0;
const TOP: f64 = 14.0;

/// A range of the frame and the instructions it is alive at, both included.
struct Range {
    name: String,
    ty: String,
    offset: u64,
    bytes: u64,
    from: usize,
    to: usize,
    temporary: bool,
}

/// The picture of one function's frame, with its figures; empty when it has no frame.
pub fn svg(func: &Func, plan: &FuncPlan) -> String {
    if plan.frame_bytes == 0 {
        return String::new();
    }
    let ranges = ranges(func, plan);
    // Constants are read when the module is loaded: they take no time and no room here.
    let mut columns = Vec::with_capacity(func.body.len());
    let mut steps = 0usize;
    for inst in &func.body {
        columns.push(steps);
        steps += usize::from(!matches!(inst.op, Op::Constant | Op::Pack));
    }
    let width = (WIDTH - LEFT - 8.0) / steps.max(1) as f64;
    let x = |column: usize| LEFT + column as f64 * width;
    let column = |inst: usize| columns.get(inst).copied().unwrap_or(steps.saturating_sub(1));
    let y = |offset: f64| TOP + (1.0 - offset / plan.frame_bytes as f64) * (HEIGHT - TOP - BOTTOM);
    let fragmentation =
        (plan.frame_bytes as f64 / plan.lower_bound.max(1) as f64 - 1.0).max(0.0) * 100.0;
    let mut out = format!(
        "<p class=\"figures\"><b>peak</b> {} <b>lower bound</b> {} <b>fragmentation</b> \
         {fragmentation:.1} % <b>ranges</b> {}</p>\n<div class=\"wide\"><svg class=\"memory\" \
         role=\"img\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n",
        html::bytes(plan.frame_bytes as f64),
        html::bytes(plan.lower_bound as f64),
        ranges.len()
    );
    for part in 0..=4 {
        let offset = plan.frame_bytes as f64 * f64::from(part) / 4.0;
        let at = y(offset);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"axis end\" x=\"{:.0}\" y=\"{:.1}\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            html::bytes(offset)
        );
    }
    let every = (steps / 10).max(1);
    for step in (0..steps).step_by(every) {
        let _ = writeln!(
            out,
            "<text class=\"axis\" x=\"{:.1}\" y=\"{:.0}\">{step}</text>",
            x(step) + width / 2.0,
            HEIGHT - BOTTOM + 16.0
        );
    }
    let _ = writeln!(
        out,
        "<text class=\"axis\" x=\"{:.0}\" y=\"{:.0}\">instruction, constants not counted</text>",
        (LEFT + WIDTH) / 2.0,
        HEIGHT - 4.0
    );
    for (i, range) in ranges.iter().enumerate() {
        let (left, right) = (x(column(range.from)), x(column(range.to) + 1));
        let (top, bottom) = (y((range.offset + range.bytes) as f64), y(range.offset as f64));
        let class = match range.temporary {
            true => "temporary".to_owned(),
            false => format!("c{}", i % 6),
        };
        let _ = writeln!(
            out,
            "<rect class=\"range {class}\" x=\"{left:.2}\" y=\"{top:.2}\" width=\"{:.2}\" \
             height=\"{:.2}\"><title>{}\n{}\nbytes {}..{} ({})\ninstructions {}..={}</title></rect>",
            (right - left).max(0.6),
            (bottom - top).max(0.6),
            escape(&range.name),
            escape(&range.ty),
            range.offset,
            range.offset + range.bytes,
            html::bytes(range.bytes as f64),
            range.from,
            range.to
        );
        if right - left > 60.0 && bottom - top > 13.0 {
            let _ = writeln!(
                out,
                "<text class=\"inside\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                (left + right) / 2.0,
                (top + bottom) / 2.0 + 4.0,
                escape(&range.name)
            );
        }
    }
    let bound = y(plan.lower_bound as f64);
    let _ = writeln!(
        out,
        "<line class=\"bound\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{bound:.1}\" y2=\"{bound:.1}\">\
         <title>lower bound: the greatest sum of bytes alive at one instruction</title></line>\
         </svg></div>"
    );
    out
}

fn ranges(func: &Func, plan: &FuncPlan) -> Vec<Range> {
    let mut life: Vec<Option<(usize, usize)>> = vec![None; func.values.len()];
    let mut alive = |v: ValueId, at: usize| {
        let root = plan.root(v);
        let (from, to) = life[root.index()].unwrap_or((at, at));
        life[root.index()] = Some((from.min(at), to.max(at)));
    };
    for (at, inst) in func.body.iter().enumerate() {
        for v in inst.inputs().chain(inst.results.iter().copied()) {
            alive(v, at);
        }
    }
    for &v in &func.returns {
        alive(v, func.body.len().saturating_sub(1));
    }
    let mut ranges = Vec::new();
    for (i, storage) in plan.storage.iter().enumerate() {
        if let (Storage::Frame { offset, bytes }, Some((from, to))) = (storage, life[i]) {
            let value = &func.values[i];
            let name =
                value.name.as_ref().map_or_else(|| format!("value {i}"), |n| format!("%{n}"));
            let (offset, bytes) = (*offset, *bytes);
            let ty = value.ty.to_string();
            ranges.push(Range { name, ty, offset, bytes, from, to, temporary: false });
        }
    }
    for t in &plan.temporaries {
        let inst = func.body.get(t.inst);
        let name = match inst.and_then(|inst| inst.symbol.as_ref()) {
            Some(callee) => format!("frame of @{callee}"),
            None => format!("scratch of {}", inst.map_or("?", |inst| inst.op.name())),
        };
        let (offset, bytes) = (t.offset, t.bytes);
        let (from, to, ty) = (t.inst, t.inst, String::new());
        ranges.push(Range { name, ty, offset, bytes, from, to, temporary: true });
    }
    ranges
}
