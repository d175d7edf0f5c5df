//! Reductions of axes that are not neighbours: an invocation for each result element.

use aether_ir::Dim;

use super::build::{Build, WORKGROUP};
use super::movement::row_major;
use super::ops::Reduction;
use super::{Lower, Site, text};
use crate::error::CompileError;

/// A reduction over any axes.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (x, out) = (&site.inputs[0], &site.outputs[0]);
    let dtype = x.ty.dtype;
    let Some(reduction) = Reduction::of(site.inst.op, dtype) else {
        return site.unsupported(format!("a reduction of {dtype}"));
    };
    let axes = site.inst.attrs.ints("axes").unwrap_or_default();
    let axes: Vec<usize> = axes.iter().filter_map(|&a| x.ty.shape.axis(a)).collect();
    let mut build = Build::new("reduce_axes");
    let source = build.read(x);
    let (kept, reduced): (Vec<usize>, Vec<usize>) =
        (0..x.ty.rank()).partition(|axis| !axes.contains(axis));
    let length = reduced.iter().fold(Dim::new(1), |acc, &axis| &acc * &x.dims()[axis]);
    build.line(format!("if unit >= {} {{ return; }}", lower.dim(&out.numel())));
    let split = |build: &mut Build, axes: &[usize]| {
        for &axis in axes.iter().rev() {
            let d = match x.dims()[axis].is(0) {
                // Nothing has an element there, but a shader must not divide by zero.
                true => "1u".to_owned(),
                false => lower.dim(&x.dims()[axis]),
            };
            build.line(format!("let i{axis} = rest % {d}; rest = rest / {d};"));
        }
    };
    build.line("var rest = unit;");
    split(&mut build, &kept);
    let kind = text::value_type(dtype).unwrap_or("f32");
    build.line(format!("let length = {};", lower.dim(&length)));
    build.line(format!("var sum: {kind} = {};", reduction.start));
    build.line("for (var r = 0u; r < length; r++) {");
    build.line("rest = r;");
    split(&mut build, &reduced);
    let places: Vec<String> = (0..x.ty.rank()).map(|axis| format!("i{axis}")).collect();
    build.line(format!("let e = {};", row_major(lower, &x.ty.shape, &places)));
    build.line(format!("let v = {};", text::load(&source, "e", dtype)));
    build.line(format!("sum = {};", reduction.join("sum", "v")));
    build.line("}");
    let bits = text::to_bits(&reduction.end("sum", "length"), dtype);
    let store = build.store(out, "unit", &bits);
    build.line(store);
    build.finish(lower, site, out.numel(), WORKGROUP)
}
