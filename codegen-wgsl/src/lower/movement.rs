//! Ops that move elements and compute nothing: the bits of each result element come from one place.

use aether_ir::{Dim, Op, Shape};

use super::build::{Build, WORKGROUP, words};
use super::{Lower, Site, View, text};
use crate::error::CompileError;

/// The whole operands to the results, unless they are the same bytes.
pub fn copy(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    for (from, to) in site.inputs.iter().zip(&site.outputs) {
        if from.binding != to.binding {
            copy_one(lower, site, from, to)?;
        }
    }
    Ok(())
}

/// One value to another place, word by word.
pub fn copy_one(
    lower: &mut Lower,
    site: &Site,
    from: &View,
    to: &View,
) -> Result<(), CompileError> {
    let mut build = Build::new("copy");
    let (source, target) = (build.read(from), build.write(to));
    // Whole words: the last one may hold bytes of nothing.
    let bytes = match from.ty.dtype.block_bytes() {
        size @ (1 | 2) => {
            let count = lower.dim(&from.numel());
            build.line(format!("let count = ({count} * {size}u + 3u) / 4u;"));
            &from.numel() * &Dim::new(size as u64)
        }
        size if !from.ty.dtype.is_quantized() => {
            let words = &from.numel() * &Dim::new(size as u64 / 4);
            build.line(format!("let count = {};", lower.dim(&words)));
            &words * &Dim::new(4)
        }
        _ => match from.ty.bytes(|_| None) {
            Some(bytes) => {
                build.line(format!("let count = {}u;", bytes.div_ceil(4)));
                Dim::new(bytes)
            }
            None => return site.unsupported(format!("copying {}", from.ty)),
        },
    };
    build.line("if unit >= count { return; }");
    build.line(format!("{target}[unit] = {source}[unit];"));
    build.finish(lower, site, bytes, WORKGROUP * 4)
}

/// Transpose, slice, concat, pad, flip.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let out = site.outputs[0].clone();
    if out.ty.dtype.is_quantized() {
        return site.unsupported(format!("moving parts of {}", out.ty));
    }
    let attrs = &site.inst.attrs;
    let rank = out.ty.rank();
    let name = match site.inst.op {
        Op::Transpose => "transpose",
        Op::Slice => "slice",
        Op::Concat => "concat",
        Op::Pad => "pad",
        _ => "flip",
    };
    let build = Build::new(name);
    let x = site.inputs.first().cloned();
    let Some(x) = x else { return site.unsupported("nothing is moved") };
    let ints = |name: &str| attrs.ints(name).unwrap_or_default().to_vec();
    match site.inst.op {
        Op::Transpose => {
            let perm = ints("perm");
            // Axis i of the result is axis perm[i] of the operand.
            let mut places = vec![String::new(); rank];
            for (i, &p) in perm.iter().enumerate() {
                places[p as usize] = format!("i{i}");
            }
            let index = row_major(lower, &x.ty.shape, &places);
            each(lower, site, build, &out, &|| vec![assign(&x, &index)], std::slice::from_ref(&x))
        }
        Op::Slice => {
            let (starts, steps) = (ints("starts"), ints("steps"));
            let places: Vec<String> = (0..rank)
                .map(|i| {
                    let step = steps.get(i).copied().unwrap_or(1);
                    let start = starts.get(i).copied().unwrap_or(0);
                    match (start, step) {
                        (0, 1) => format!("i{i}"),
                        _ => format!("({start}u + i{i} * {step}u)"),
                    }
                })
                .collect();
            let index = row_major(lower, &x.ty.shape, &places);
            each(lower, site, build, &out, &|| vec![assign(&x, &index)], std::slice::from_ref(&x))
        }
        Op::Flip => {
            let axes: Vec<usize> =
                ints("axes").iter().filter_map(|&a| x.ty.shape.axis(a)).collect();
            let places: Vec<String> = (0..rank)
                .map(|i| match axes.contains(&i) {
                    true => format!("({} - 1u - i{i})", lower.dim(&x.dims()[i])),
                    false => format!("i{i}"),
                })
                .collect();
            let index = row_major(lower, &x.ty.shape, &places);
            each(lower, site, build, &out, &|| vec![assign(&x, &index)], std::slice::from_ref(&x))
        }
        Op::Pad => {
            let low = ints("low");
            let value = match attrs.get("value") {
                Some(&aether_ir::Attr::Int(n)) if out.ty.dtype.is_int() => {
                    aether_ir::Tensor::from_i64(out.ty.dtype, &[1], &[n])
                }
                _ => aether_ir::Tensor::splat(out.ty.dtype, &[1], attrs.float("value", 0.0)),
            };
            let value = value.ok().map(|value| constant_words(&value));
            let Some(value) = value else {
                return site.unsupported(format!("padding of {}", out.ty));
            };
            let mut inside = Vec::new();
            let places: Vec<String> = (0..rank)
                .map(|i| {
                    let before = low.get(i).copied().unwrap_or(0);
                    inside.push(format!("(i{i} - {before}u) < {}", lower.dim(&x.dims()[i])));
                    format!("(i{i} - {before}u)")
                })
                .collect();
            let index = row_major(lower, &x.ty.shape, &places);
            let inside = if inside.is_empty() { "true".to_owned() } else { inside.join(" && ") };
            let lines = || {
                let mut lines: Vec<String> =
                    value.iter().enumerate().map(|(w, v)| format!("bits{w} = {v};")).collect();
                lines.push(format!("if {inside} {{"));
                lines.push(assign(&x, &index));
                lines.push("}".to_owned());
                lines
            };
            each(lower, site, build, &out, &lines, std::slice::from_ref(&x))
        }
        _ => {
            let axis = site.axis(&out)?;
            let inputs = site.inputs.clone();
            let mut starts = vec![Dim::new(0)];
            for x in &inputs {
                let next = starts.last().map(|s| s + &x.dims()[axis]).unwrap_or(Dim::new(0));
                starts.push(next);
            }
            let parts: Vec<(String, String)> = inputs
                .iter()
                .zip(starts.windows(2))
                .map(|(x, ends)| {
                    let places: Vec<String> = (0..rank)
                        .map(|i| match i == axis {
                            true => format!("(i{i} - {})", lower.dim(&ends[0])),
                            false => format!("i{i}"),
                        })
                        .collect();
                    (lower.dim(&ends[1]), row_major(lower, &x.ty.shape, &places))
                })
                .collect();
            let lines = || {
                let mut lines = Vec::new();
                for (i, ((end, index), x)) in parts.iter().zip(&inputs).enumerate() {
                    let word = if i == 0 { "if" } else { "else if" };
                    lines.push(format!("{word} i{axis} < {end} {{"));
                    lines.push(assign(x, index));
                    lines.push("}".to_owned());
                }
                lines
            };
            each(lower, site, build, &out, &lines, &inputs)
        }
    }
}

/// A marker for the buffer of an operand, replaced once it is bound.
fn assign(x: &View, index: &str) -> String {
    let buffer = format!("<{:?}>", x.binding);
    match x.ty.dtype.block_bytes() {
        8 => format!("bits0 = {buffer}[({index}) * 2u]; bits1 = {buffer}[({index}) * 2u + 1u];"),
        _ => format!("let at = {index}; bits0 = {};", text::load_bits(&buffer, "at", x.ty.dtype)),
    }
}

/// The index of a place in a row-major tensor.
pub fn row_major(lower: &Lower, shape: &Shape, places: &[String]) -> String {
    let mut terms = Vec::new();
    for (axis, place) in places.iter().enumerate() {
        let stride = shape.0[axis + 1..].iter().fold(Dim::new(1), |acc, d| &acc * d);
        terms.push(match stride.is(1) {
            true => place.clone(),
            false => format!("{place} * {}", lower.dim(&stride)),
        });
    }
    if terms.is_empty() { "0u".to_owned() } else { terms.join(" + ") }
}

/// The words of a single element.
fn constant_words(value: &aether_ir::Tensor) -> Vec<String> {
    let words = value.bytes().chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        format!("{}u", u32::from_le_bytes(word))
    });
    words.collect()
}

/// Computes `bits0` (and `bits1`) of every element of a result, each word by one invocation.
/// `lines` are statements that set them from `i0`, `i1`, ….
fn each(
    lower: &mut Lower,
    site: &Site,
    mut build: Build,
    out: &View,
    lines: &dyn Fn() -> Vec<String>,
    inputs: &[View],
) -> Result<(), CompileError> {
    let dtype = out.ty.dtype;
    let per = text::per_word(dtype);
    let names: Vec<(String, String)> =
        inputs.iter().map(|x| (format!("<{:?}>", x.binding), build.read(x))).collect();
    let target = build.write(out);
    build.line(format!("let count = {};", lower.dim(&out.numel())));
    build.line(format!("let first = unit * {per}u;"));
    build.line("if first >= count { return; }");
    if per > 1 {
        build.line("var word = 0u;");
        build.line(format!("for (var j = 0u; j < {per}u; j++) {{"));
        build.line("let e = first + j;");
        build.line("if e >= count { break; }");
    } else {
        build.line("let e = first;");
    }
    if out.ty.rank() > 0 {
        build.line("var rest = e;");
    }
    for (axis, d) in out.dims().iter().enumerate().rev() {
        let d = lower.dim(d);
        build.line(format!("let i{axis} = rest % {d}; rest = rest / {d};"));
    }
    build.line("var bits0 = 0u;");
    if words(dtype) == 2 {
        build.line("var bits1 = 0u;");
    }
    for mut line in lines() {
        for (marker, name) in &names {
            line = line.replace(marker, name);
        }
        build.line(line);
    }
    if per > 1 {
        build.line(format!("word |= bits0 << (j * {}u);", 32 / per));
        build.line("}");
        build.line(format!("{target}[unit] = word;"));
    } else if words(dtype) == 2 {
        build.line(format!("{target}[e * 2u] = bits0; {target}[e * 2u + 1u] = bits1;"));
    } else {
        build.line(format!("{target}[e] = bits0;"));
    }
    build.finish(lower, site, out.numel(), WORKGROUP * per as u32)
}
