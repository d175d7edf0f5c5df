//! Softmax and norms along an axis. Along the last one by the template where it has the type and
//! length, else by a workgroup for each row; along another by an invocation for each row.

use aether_ir::{Dim, Op};

use super::build::{Build, WORKGROUP};
use super::{Lower, Site, text};
use crate::error::CompileError;
use crate::templates::norm::{Kind, Norm};

/// The template along the last axis; `None` for types and lengths that it has not.
fn template(site: &Site) -> Option<Norm> {
    let x = &site.inputs[0];
    let eps = (site.inst.attrs.float("eps", 0.0) as f32).to_bits();
    let kind = match site.inst.op {
        Op::Softmax => Kind::Softmax,
        Op::LogSoftmax => Kind::LogSoftmax,
        Op::RmsNorm => Kind::Rms(eps),
        Op::LayerNorm => Kind::Layer(eps),
        _ => return None,
    };
    let dtype = x.ty.dtype;
    let (length, leading) = x.dims().split_last()?;
    let length = length.as_const()? as usize;
    let rows = leading.iter().fold(Dim::new(1), |acc, d| &acc * d);
    let same = site.inputs.iter().chain(&site.outputs).all(|v| v.ty.dtype == dtype);
    same.then_some(Norm { kind, dtype, rows, length })
}

/// Softmax, log_softmax, rms_norm, layer_norm.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (x, out) = (&site.inputs[0], &site.outputs[0]);
    let dtype = x.ty.dtype;
    if text::value_type(dtype) != Some("f32") {
        return site.unsupported(format!("{}", x.ty));
    }
    let op = site.inst.op;
    let softmax = matches!(op, Op::Softmax | Op::LogSoftmax);
    let axis = if softmax { site.axis(x)? } else { x.ty.rank() - 1 };
    let last = axis + 1 == x.ty.rank();
    if last && let Some(norm) = template(site).filter(|n| n.is_supported(&lower.adapter)) {
        return lower.templates(site, |t| vec![norm.launch(t)]);
    }
    let mut build = Build::new(if softmax { "softmax" } else { "norm" });
    let dims = x.dims();
    let product = |dims: &[Dim]| dims.iter().fold(Dim::new(1), |acc, d| &acc * d);
    let inner = lower.product(&dims[axis + 1..]);
    let rows = &product(&dims[..axis]) * &product(&dims[axis + 1..]);
    let source = build.read(x);
    build.line(format!("let length = {};", lower.dim(&dims[axis])));
    build.line(format!("let g = {};", if last { "group" } else { "unit" }));
    build.line(format!("if g >= {} {{ return; }}", lower.dim(&rows)));
    let element = match last {
        true => "g * length + r".to_owned(),
        false => format!("((g / {inner}) * length + r) * {inner} + g % {inner}"),
    };
    let value = text::load(&source, "e", dtype);
    let each = |build: &mut Build, lines: &[String]| {
        let (first, step) = if last { ("lane", "256u") } else { ("0u", "1u") };
        build.line(format!("for (var r = {first}; r < length; r += {step}) {{"));
        build.line(format!("let e = {element};"));
        build.line(format!("let x = {value};"));
        lines.iter().for_each(|line| build.line(line));
        build.line("}");
    };
    let total = |build: &mut Build, own: &str, greatest: bool| match last {
        false => own.to_owned(),
        true => build.across(own, "f32", |a, b| match greatest {
            true => format!("max_nan({a}, {b})"),
            false => format!("({a} + {b})"),
        }),
    };
    let result = match op {
        Op::Softmax | Op::LogSoftmax => {
            let lowest = text::float(f32::NEG_INFINITY);
            build.line(format!("var own_max = {lowest};"));
            each(&mut build, &["own_max = max_nan(own_max, x);".to_owned()]);
            let greatest = total(&mut build, "own_max", true);
            build.line(format!("let greatest = {greatest};"));
            build.line("var own = 0.0;");
            each(&mut build, &["own += exp(x - greatest);".to_owned()]);
            let sum = total(&mut build, "own", false);
            build.line(format!("let sum = {sum};"));
            if op == Op::Softmax { "exp(x - greatest) / sum" } else { "x - greatest - log(sum)" }
        }
        .to_owned(),
        Op::RmsNorm => {
            build.line("var own = 0.0;");
            each(&mut build, &["own += x * x;".to_owned()]);
            let sum = total(&mut build, "own", false);
            let eps = text::float(site.inst.attrs.float("eps", 0.0) as f32);
            build.line(format!("let factor = inverseSqrt({sum} / f32(length) + {eps});"));
            let weight = build.read(&site.inputs[1]);
            format!("x * factor * {}", text::load(&weight, "r", site.inputs[1].ty.dtype))
        }
        _ => {
            build.line("var own = 0.0;");
            each(&mut build, &["own += x;".to_owned()]);
            let sum = total(&mut build, "own", false);
            build.line(format!("let mean = {sum} / f32(length);"));
            build.line("var spread = 0.0;");
            each(&mut build, &["spread += (x - mean) * (x - mean);".to_owned()]);
            let squares = total(&mut build, "spread", false);
            let eps = text::float(site.inst.attrs.float("eps", 0.0) as f32);
            build.line(format!("let factor = inverseSqrt({squares} / f32(length) + {eps});"));
            let [weight, bias] = [1, 2].map(|i| {
                let buffer = build.read(&site.inputs[i]);
                text::load(&buffer, "r", site.inputs[i].ty.dtype)
            });
            format!("(x - mean) * factor * {weight} + {bias}")
        }
    };
    let bits = text::to_bits(&format!("({result})"), out.ty.dtype);
    let store = build.store(out, "e", &bits);
    each(&mut build, &[store]);
    build.finish(lower, site, rows, if last { 1 } else { WORKGROUP })
}
