//! Rotary position embedding.
//!
//! A frequency is kept as a fraction of a turn with 64 bits, by which a position is multiplied
//! modulo a turn, in integers: a token far into the context is turned as precisely as the first.

use aether_ir::op::rope::frequencies;

use super::build::{Build, WORKGROUP};
use super::{Lower, Site, text};
use crate::error::CompileError;

/// `fn rotation(position, pair) -> vec2<f32>`: sine and cosine, from a table of fractions.
const ROTATION: &str = "\
fn upper(a: u32, b: u32) -> u32 {
    let low = (a & 65535u) * (b & 65535u);
    let x = (a >> 16u) * (b & 65535u) + (low >> 16u);
    let y = (a & 65535u) * (b >> 16u) + (x & 65535u);
    return (a >> 16u) * (b >> 16u) + (x >> 16u) + (y >> 16u);
}
fn rotation(position: i32, pair: u32) -> vec2<f32> {
    let steps = u32(abs(position));
    let turn = steps * TABLE[pair * 2u] + upper(steps, TABLE[pair * 2u + 1u]);
    let sine_cosine = sin_cos(f32(bitcast<i32>(turn)) * 1.4629181e-9);
    return vec2<f32>(select(sine_cosine.x, -sine_cosine.x, position < 0), sine_cosine.y);
}
";

/// A frequency in radians per position as a fraction of a turn, in two words, the upper first.
fn fraction(radians: f64) -> [u32; 2] {
    let turns = radians / std::f64::consts::TAU;
    let part = turns - turns.floor();
    let upper = (part * 4_294_967_296.0).floor();
    let rest = part * 4_294_967_296.0 - upper;
    [upper as u32, (rest * 4_294_967_296.0) as u32]
}

/// rope.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (x, positions, out) = (&site.inputs[0], &site.inputs[1], &site.outputs[0]);
    let dtype = x.ty.dtype;
    if text::value_type(dtype) != Some("f32") {
        return site.unsupported(format!("{}", x.ty));
    }
    let attrs = &site.inst.attrs;
    let factors = match site.inputs.get(2) {
        None => Vec::new(),
        Some(factors) => match lower.constant_f32(factors)? {
            Some(values) => values.into_iter().map(f64::from).collect(),
            None => return site.unsupported("its factors are no constant"),
        },
    };
    let (table, magnitude) = frequencies(attrs, &factors);
    let half = table.len();
    let words: Vec<u32> = table.into_iter().flat_map(fraction).collect();
    let table = lower.table(&words);
    let mut build = Build::new("rope");
    let fractions = build.read(&table);
    build.globals.push_str(&ROTATION.replace("TABLE", &fractions));
    let source = build.read(x);
    let position = build.read(positions);
    let width = x.dims()[2].as_const().unwrap_or(0);
    let heads = lower.dim(&x.dims()[1]);
    // An invocation turns a pair; behind the pairs it copies two elements.
    let units = width.div_ceil(2);
    build.line(format!("let count = {} * {units}u;", lower.product(&x.dims()[..2])));
    build.line("if unit >= count { return; }");
    build.line(format!("let i = unit % {units}u; let head = unit / {units}u;"));
    build.line(format!("let base = head * {width}u;"));
    build.line(format!("if i >= {half}u {{"));
    build.line(format!(
        "for (var e = base + 2u * i; e < base + min(2u * i + 2u, {width}u); e++) {{"
    ));
    let kept = build.store(out, "e", &text::load_bits(&source, "e", dtype));
    build.line(kept);
    build.line("}");
    build.line("return;");
    build.line("}");
    let at = match positions.ty.rank() {
        0 => format!("(bitcast<i32>({position}[0]) + i32(head / {heads}))"),
        _ => format!("bitcast<i32>({position}[head / {heads}])"),
    };
    build.line(format!("let turned = rotation({at}, i) * {};", text::float(magnitude as f32)));
    match attrs.str("mode") == Some("neox") {
        true => build.line(format!("let a = base + i; let b = a + {half}u;")),
        false => build.line("let a = base + 2u * i; let b = a + 1u;"),
    }
    build.line(format!("let p = {};", text::load(&source, "a", dtype)));
    build.line(format!("let q = {};", text::load(&source, "b", dtype)));
    for (index, value) in
        [("a", "p * turned.y - q * turned.x"), ("b", "p * turned.x + q * turned.y")]
    {
        let store = build.store(out, index, &text::to_bits(&format!("({value})"), dtype));
        build.line(store);
    }
    let count = &(&x.dims()[0] * &x.dims()[1]) * &aether_ir::Dim::new(units);
    build.finish(lower, site, count, WORKGROUP)
}
