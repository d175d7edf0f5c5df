//! Sliding windows: pooling and convolution, an invocation for each result element.

use aether_ir::op::window::Window;
use aether_ir::{Dim, Op};

use super::build::{Build, WORKGROUP};
use super::{Lower, Site, View, text};
use crate::error::CompileError;

/// window_sum, window_max, conv.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (x, out) = (&site.inputs[0], &site.outputs[0]);
    let Some(kind) = text::value_type(x.ty.dtype).filter(|&kind| kind != "bool") else {
        return site.unsupported(format!("{}", x.ty));
    };
    let conv = site.inst.op == Op::Conv;
    let sizes: Vec<i64> = match conv {
        true => site.inputs[1].dims()[2..]
            .iter()
            .map(|d| d.as_const().map_or(0, |k| k as i64))
            .collect(),
        false => site.inst.attrs.ints("window").unwrap_or_default().to_vec(),
    };
    let windows = match Window::of(&site.inst.attrs, &sizes) {
        Ok(windows) => windows,
        Err(e) => return site.unsupported(e),
    };
    let name = match site.inst.op {
        Op::Conv => "conv",
        Op::WindowSum => "window_sum",
        _ => "window_max",
    };
    let mut build = Build::new(name);
    let source = build.read(x);
    build.line(format!("let count = {};", lower.dim(&out.numel())));
    build.line("let e = unit;");
    build.line("if e >= count { return; }");
    build.line("var rest = e;");
    for (axis, d) in out.dims().iter().enumerate().rev() {
        let d = lower.dim(d);
        build.line(format!("let i{axis} = rest % {d}; rest = rest / {d};"));
    }
    let first = out.ty.rank() - windows.len();
    let plane = lower.product(&x.dims()[first..]);
    let taps = |build: &mut Build, inner: &[String]| {
        build.line("var spot0 = 0u; var tap0 = 0u;");
        for (i, w) in windows.iter().enumerate() {
            let axis = first + i;
            let length = lower.dim(&x.dims()[axis]);
            build.line(format!("for (var j{i} = 0; j{i} < {}; j{i}++) {{", w.size));
            build.line(format!(
                "let p{i} = i32(i{axis}) * {} + j{i} * {} - ({});",
                w.stride, w.dilation, w.lo
            ));
            let spread = match w.lhs_dilation {
                1 => String::new(),
                d => format!(" || p{i} % {d} != 0"),
            };
            build.line(format!(
                "if p{i} < 0{spread} || u32(p{i} / {d}) >= {length} {{ continue; }}",
                d = w.lhs_dilation
            ));
            build.line(format!(
                "let spot{n} = spot{i} * {length} + u32(p{i} / {d}); \
                 let tap{n} = tap{i} * {size}u + u32(j{i});",
                n = i + 1,
                d = w.lhs_dilation,
                size = w.size
            ));
        }
        let n = windows.len();
        build.line(format!("let spot = spot{n}; let tap = tap{n};"));
        inner.iter().for_each(|line| build.line(line));
        windows.iter().for_each(|_| build.line("}"));
    };
    // The plane of the leading axes.
    let mut lead = "0u".to_owned();
    for axis in 0..first {
        lead = format!("({lead} * {} + i{axis})", lower.dim(&out.dims()[axis]));
    }
    let dtype = x.ty.dtype;
    match site.inst.op {
        Op::Conv => {
            let w = &site.inputs[1];
            let weights = build.read(w);
            let groups = site.inst.attrs.int("groups", 1).max(1) as u64;
            let own = lower.dim(&w.dims()[1]);
            let Some(per_group) = w.dims()[0].exact_div(&Dim::new(groups)) else {
                return site.unsupported("groups that do not divide the channels");
            };
            build.line(format!("let begin = (i1 / {}) * {own};", lower.dim(&per_group)));
            build.line("var sum = 0.0;");
            let taps_in_kernel: i64 = sizes.iter().product();
            build.line(format!("for (var c = 0u; c < {own}; c++) {{"));
            build.line(format!(
                "let image = (i0 * {} + begin + c) * {plane}; \
                 let kernel = (i1 * {own} + c) * {taps_in_kernel}u;",
                lower.dim(&x.dims()[1])
            ));
            let (a, b) = (text::load(&source, "at", dtype), text::load(&weights, "by", w.ty.dtype));
            taps(
                &mut build,
                &[
                    "let at = image + spot; let by = kernel + tap;".to_owned(),
                    format!("sum += {a} * {b};"),
                ],
            );
            build.line("}");
            finish(lower, site, build, out, "sum")
        }
        Op::WindowSum => {
            build.line(format!("let base = {lead} * {plane};"));
            build.line(format!("var sum = {kind}(0);"));
            let value = text::load(&source, "at", dtype);
            taps(
                &mut build,
                &["let at = base + spot;".to_owned(), format!("sum = sum + {value};")],
            );
            finish(lower, site, build, out, "sum")
        }
        _ => {
            build.line(format!("let base = {lead} * {plane};"));
            build.line(format!("var best = {kind}(0); var place = 0u; var found = false;"));
            let value = text::load(&source, "at", dtype);
            let greater = match kind {
                "f32" => "v > best || (is_nan(v) && !is_nan(best))",
                _ => "v > best",
            };
            taps(
                &mut build,
                &[
                    "let at = base + spot;".to_owned(),
                    format!("let v = {value};"),
                    format!("if !found || {greater} {{ best = v; place = spot; found = true; }}"),
                ],
            );
            let places = build.write(&site.outputs[1]);
            build.line(format!("{places}[e] = place;"));
            finish(lower, site, build, out, "best")
        }
    }
}

fn finish(
    lower: &mut Lower,
    site: &Site,
    mut build: Build,
    out: &View,
    value: &str,
) -> Result<(), CompileError> {
    let bits = text::to_bits(value, out.ty.dtype);
    let store = build.store(out, "e", &bits);
    build.line(store);
    build.finish(lower, site, out.numel(), WORKGROUP)
}
