//! Rows times the matrices of the experts picked for them, in plain floats: an invocation makes one
//! number. Quantised experts have no kernel here: the placement leaves them to the CPU.

use super::build::{Build, WORKGROUP};
use super::{Lower, Site, index, text};
use crate::error::CompileError;

/// `expert_matmul`.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (x, w, picks) = (&site.inputs[0], &site.inputs[1], &site.inputs[2]);
    let out = &site.outputs[0];
    let floats = [x, w, out].iter().all(|v| text::value_type(v.ty.dtype) == Some("f32"));
    if !floats {
        return site.unsupported(format!("{} by {}", x.ty, w.ty));
    }
    let experts = site.inst.attrs.int("experts", 1).max(1);
    let mut build = Build::new("expert_matmul");
    index::pick(&mut build, picks, &format!("{experts}u"));
    let (a, b) = (build.read(x), build.read(w));
    let depth = lower.dim(&x.dims()[2]);
    let per_token = lower.dim(&picks.dims()[1]);
    let rows = lower.dim(&out.dims()[2]);
    build.line(format!("let e = unit; if e >= {} {{ return; }}", lower.dim(&out.numel())));
    build.line(format!("let place = e / {rows}; let row = pick(place) * {rows} + e % {rows};"));
    // One row of x may serve all picks of its token.
    let shared = x.dims()[1] != picks.dims()[1];
    let from = if shared { format!("place / {per_token}") } else { "place".to_owned() };
    build.line(format!("let from_x = ({from}) * {depth}; let from_w = row * {depth};"));
    build.line("var y = 0.0;");
    build.line(format!("for (var i = 0u; i < {depth}; i++) {{"));
    build.line(format!(
        "y += {} * {};",
        text::load(&a, "(from_x + i)", x.ty.dtype),
        text::load(&b, "(from_w + i)", w.ty.dtype)
    ));
    build.line("}");
    let bits = text::to_bits("y", out.ty.dtype);
    let store = build.store(out, "e", &bits);
    build.line(store);
    build.finish(lower, site, out.numel(), WORKGROUP)
}
