//! Appending rows to a cache, and where tokens stand in it.

use super::build::{Build, WORKGROUP, Words};
use super::{Lower, Site, View, text};
use crate::error::CompileError;

/// `fn place(t) -> u32`: the row of the cache, over all slots, where token `t` stands. A place
/// beyond the context ends the run with an error. `places` are the scalar `past`, or the
/// positions and slots of every token.
pub fn place(lower: &Lower, build: &mut Build, cache: &View, places: &[View]) {
    build.can_fail();
    let front = usize::from(places.len() > 1);
    let context = lower.dim(&cache.dims()[front]);
    let position = build.read(&places[0]);
    let body = match places.get(1) {
        None => format!(
            "let at = {position}[0] + t; if at >= {context} {{ fail(3u, at + 1u); return 0u; }} \
             return at;"
        ),
        Some(slots) => {
            let slot = build.read(slots);
            let count = lower.dim(&cache.dims()[0]);
            format!(
                "let at = {position}[t]; let slot = {slot}[t]; \
                 if at >= {context} {{ fail(3u, at + 1u); return 0u; }} \
                 if slot >= {count} {{ fail(2u, slot); return 0u; }} \
                 return slot * {context} + at;"
            )
        }
    };
    build.globals.push_str(&format!("fn place(t: u32) -> u32 {{ {body} }}\n"));
}

/// kv_append.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (cache, rows, out) = (&site.inputs[0], &site.inputs[1], &site.outputs[0]);
    if [cache, rows].iter().any(|x| text::value_type(x.ty.dtype) != Some("f32")) {
        return site.unsupported(format!("{} to {}", rows.ty, cache.ty));
    }
    if cache.binding != out.binding {
        super::movement::copy_one(lower, site, cache, out)?;
    }
    let mut build = Build::new("kv_append");
    place(lower, &mut build, cache, &site.inputs[2..]);
    let source = build.read(rows);
    let width = lower.product(&rows.dims()[1..]);
    let (from, to) = (rows.ty.dtype, out.ty.dtype);
    let per = text::per_word(to) as u32;
    let even = rows.dims()[1..]
        .iter()
        .try_fold(1, |n, d| d.as_const().map(|d| n * d))
        .is_some_and(|n| n % u64::from(per) == 0);
    build.line(format!("let width = {width};"));
    build.line(format!("let first = unit * {per}u;"));
    build.line(format!("if first >= {} {{ return; }}", lower.dim(&rows.numel())));
    let value = |e: &str| text::to_bits(&text::load(&source, e, from), to);
    if even {
        // Rows begin at whole words.
        let target = build.bind(out, Words::Single);
        let mut word = value("first");
        for i in 1..per {
            let bits = value(&format!("(first + {i}u)"));
            word = format!("{word} | ({bits} << {}u)", i * (32 / per));
        }
        build.line(format!(
            "{target}[(place(first / width) * width + first % width) / {per}u] = {word};"
        ));
    } else {
        build.line(format!(
            "for (var e = first; e < min(first + {per}u, {}); e++) {{",
            lower.dim(&rows.numel())
        ));
        let store = build.store(out, "(place(e / width) * width + e % width)", &value("e"));
        build.line(store);
        build.line("}");
    }
    build.finish(lower, site, rows.numel(), WORKGROUP * per)
}
