//! The matrix product of plain floats, with stacked matrices and an epilogue: tiles of 64x64 sums,
//! 4x4 of them an invocation's, the operands in workgroup memory in steps of 16 along k.

use aether_ir::{Dim, Op, Shape};

use super::build::Build;
use super::loops::broadcast_index;
use super::{Lower, Site, text};
use crate::error::CompileError;

/// Rows and columns of a workgroup's tile.
const TILE: u32 = 64;

/// Products.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    if super::product::lower(lower, site)? || super::dense::lower(lower, site)? {
        return Ok(());
    }
    let (x, w, out) = (&site.inputs[0], &site.inputs[1], &site.outputs[0]);
    let floats = [x, w, out].iter().all(|v| text::value_type(v.ty.dtype) == Some("f32"));
    if !floats || matches!(site.inst.op, Op::MatmulGated | Op::MatmulMulti) {
        return site.unsupported(format!("{} by {}", x.ty, w.ty));
    }
    let transposed = match site.inst.op {
        Op::MatmulAdd => true,
        _ => site.inst.attrs.bool("transpose_b", false),
    };
    let rank = out.ty.rank();
    let (m, n) = (&out.dims()[rank - 2], &out.dims()[rank - 1]);
    let k = &x.dims()[x.ty.rank() - 1];
    let stack = Shape(out.dims()[..rank - 2].to_vec());
    let stacks = stack.numel();
    let mut build = Build::new("matmul");
    let (a, b) = (build.read(x), build.read(w));
    let [mt, nt, kt] = [m, n, k].map(|d| lower.dim(d));
    build.line(format!("let rows = {mt}; let columns = {nt}; let depth = {kt};"));
    build.line(format!(
        "let across = (columns + {t}u) / {TILE}u; let down = (rows + {t}u) / {TILE}u;",
        t = TILE - 1
    ));
    build.line("let stack = group / (across * down); let tile = group % (across * down);");
    build.line(format!("if stack >= {} {{ return; }}", lower.dim(&stacks)));
    // The matrices of this stack.
    if stack.rank() > 0 {
        build.line("var rest = stack;");
    }
    for (axis, d) in stack.0.iter().enumerate().rev() {
        let d = lower.dim(d);
        build.line(format!("let i{axis} = rest % {d}; rest = rest / {d};"));
    }
    let lead = |v: &super::View| {
        let shape = Shape(v.dims()[..v.ty.rank() - 2].to_vec());
        broadcast_index(lower, &shape, &stack)
    };
    build.line(format!("let from_x = ({}) * rows * depth;", lead(x)));
    build.line(format!("let from_w = ({}) * columns * depth;", lead(w)));
    build.line(format!(
        "let top = (tile / across) * {TILE}u; let left = (tile % across) * {TILE}u;"
    ));
    build.line("let ty = lane / 16u; let tx = lane % 16u;");
    // Padded rows: neighbours in a column lie in different banks.
    build
        .globals
        .push_str("var<workgroup> xs: array<f32, 1088>;\nvar<workgroup> ws: array<f32, 1088>;\n");
    build.line("var sums: array<vec4<f32>, 4>;");
    build.line("for (var at = 0u; at < depth; at += 16u) {");
    build.line("for (var i = 0u; i < 4u; i++) {");
    build.line("let r = lane / 16u + i * 16u; let c = lane % 16u;");
    build.line("var value = 0.0;");
    build.line("if top + r < rows && at + c < depth {");
    build.line("let e = from_x + (top + r) * depth + at + c;");
    build.line(format!("value = {};", text::load(&a, "e", x.ty.dtype)));
    build.line("}");
    build.line("xs[c * 68u + r] = value;");
    build.line("value = 0.0;");
    if transposed {
        build.line("if left + r < columns && at + c < depth {");
        build.line("let e = from_w + (left + r) * depth + at + c;");
        build.line(format!("value = {};", text::load(&b, "e", w.ty.dtype)));
        build.line("}");
        build.line("ws[c * 68u + r] = value;");
    } else {
        build.line("let wr = lane / 64u + i * 4u; let wc = lane % 64u;");
        build.line("if at + wr < depth && left + wc < columns {");
        build.line("let e = from_w + (at + wr) * columns + left + wc;");
        build.line(format!("value = {};", text::load(&b, "e", w.ty.dtype)));
        build.line("}");
        build.line("ws[wr * 68u + wc] = value;");
    }
    build.line("}");
    build.line("workgroupBarrier();");
    build.line("for (var c = 0u; c < 16u; c++) {");
    build.line("let y = c * 68u + ty * 4u; let z = c * 68u + tx * 4u;");
    build.line("let w4 = vec4<f32>(ws[z], ws[z + 1u], ws[z + 2u], ws[z + 3u]);");
    for i in 0..4 {
        build.line(format!("sums[{i}] += xs[y + {i}u] * w4;"));
    }
    build.line("}");
    build.line("workgroupBarrier();");
    build.line("}");
    build.line("for (var i = 0u; i < 4u; i++) {");
    build.line("for (var j = 0u; j < 4u; j++) {");
    build.line("let row = top + ty * 4u + i; let column = left + tx * 4u + j;");
    build.line("if row < rows && column < columns {");
    build.line("let e = (stack * rows + row) * columns + column;");
    build.line("var y = sums[i][j];");
    if let Some(r) = site.inputs.get(2) {
        let buffer = build.read(r);
        let index = if r.ty.rank() == 1 && rank > 1 { "column" } else { "e" };
        build.line(format!("y = y + {};", text::load(&buffer, index, r.ty.dtype)));
    }
    if site.inst.op == Op::MatmulAct {
        let function = match site.inst.attrs.str("act") {
            Some("relu") => "relu_nan",
            Some("silu") => "silu",
            Some("gelu") => "gelu",
            Some("gelu_tanh") => "gelu_tanh",
            Some("sigmoid") => "sigmoid",
            Some("tanh") => "tanh_all",
            other => return site.unsupported(format!("activation {other:?}")),
        };
        build.line(format!("y = {function}(y);"));
    }
    let bits = text::to_bits("y", out.ty.dtype);
    let store = build.store(out, "e", &bits);
    build.line(store);
    build.line("}}}");
    // One group for each tile: symbols are rounded up by the tile.
    let tiles = |d: &Dim| d.as_const().map(|n| n.div_ceil(u64::from(TILE)));
    let groups = match (tiles(m), tiles(n)) {
        (Some(m), Some(n)) => &stacks * &Dim::new(m * n),
        // More groups than needed return at once.
        (None, Some(n)) => &(&stacks * &(m + &Dim::new(63))) * &Dim::new(n),
        (Some(m), None) => &(&stacks * &(n + &Dim::new(63))) * &Dim::new(m),
        (None, None) => &(&stacks * &(n + &Dim::new(63))) * &(m + &Dim::new(63)),
    };
    let per = match (m.as_const(), n.as_const()) {
        (Some(_), Some(_)) => 1,
        (None, None) => TILE * TILE,
        _ => TILE,
    };
    build.finish(lower, site, groups, per)
}
