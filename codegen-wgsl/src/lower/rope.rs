//! Rotary position embedding.
//!
//! A frequency is kept as a fraction of a turn with 64 bits, by which a position is multiplied
//! modulo a turn, in integers: a token far into the context is turned as precisely as the first.

use aether_ir::Dim;
use aether_ir::op::rope::frequencies;

use super::build::{Build, WORKGROUP};
use super::cache::place;
use super::{Lower, Site, View, text};
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

/// What turns elements: the table of fractions, bound, and the magnitude.
struct Turning {
    half: usize,
    magnitude: f32,
}

/// Binds the table of an op's frequencies and declares `rotation`.
fn turning(
    lower: &mut Lower,
    site: &Site,
    build: &mut Build,
    factors: Option<&View>,
) -> Result<Turning, CompileError> {
    let factors = match factors {
        None => Vec::new(),
        Some(factors) => match lower.constant_f32(factors)? {
            Some(values) => values.into_iter().map(f64::from).collect(),
            None => return site.unsupported("its factors are no constant"),
        },
    };
    let (table, magnitude) = frequencies(&site.inst.attrs, &factors);
    let half = table.len();
    let words: Vec<u32> = table.into_iter().flat_map(fraction).collect();
    let table = lower.table(&words);
    let fractions = build.read(&table);
    build.globals.push_str(&ROTATION.replace("TABLE", &fractions));
    Ok(Turning { half, magnitude: magnitude as f32 })
}

/// The position of a token as WGSL, from the operand that says it.
fn position(build: &mut Build, positions: &View, token: &str) -> String {
    let buffer = build.read(positions);
    match positions.ty.rank() {
        0 => format!("(bitcast<i32>({buffer}[0]) + i32({token}))"),
        _ => format!("bitcast<i32>({buffer}[{token}])"),
    }
}

/// rope.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (x, positions, out) = (&site.inputs[0], &site.inputs[1], &site.outputs[0]);
    let dtype = x.ty.dtype;
    if text::value_type(dtype) != Some("f32") {
        return site.unsupported(format!("{}", x.ty));
    }
    let mut build = Build::new("rope");
    let Turning { half, magnitude } = turning(lower, site, &mut build, site.inputs.get(2))?;
    let source = build.read(x);
    let width = x.dims()[2].as_const().unwrap_or(0);
    let heads = lower.dim(&x.dims()[1]);
    // An invocation turns a pair; behind the pairs it copies two elements.
    let units = width.div_ceil(2);
    build.line(format!("let count = {} * {units}u;", lower.product(&x.dims()[..2])));
    build.line("if unit >= count { return; }");
    build.line(format!("let i = unit % {units}u; let head = unit / {units}u;"));
    build.line(format!("let base = head * {width}u;"));
    build.line(format!("if i >= {half}u {{"));
    build.line(format!("let rest_end = base + min(2u * i + 2u, {width}u);"));
    build.line("for (var e = base + 2u * i; e < rest_end; e++) {");
    let kept = build.store(out, "e", &text::load_bits(&source, "e", dtype));
    build.line(kept);
    build.line("}");
    build.line("return;");
    build.line("}");
    let at = position(&mut build, positions, &format!("(head / {heads})"));
    build.line(format!("let turned = rotation({at}, i) * {};", text::float(magnitude)));
    pair(site, &mut build, half);
    build.line(format!("let p = {};", text::load(&source, "a", dtype)));
    build.line(format!("let q = {};", text::load(&source, "b", dtype)));
    for (index, value) in
        [("a", "p * turned.y - q * turned.x"), ("b", "p * turned.x + q * turned.y")]
    {
        let store = build.store(out, index, &text::to_bits(&format!("({value})"), dtype));
        build.line(store);
    }
    let count = &(&x.dims()[0] * &x.dims()[1]) * &Dim::new(units);
    build.finish(lower, site, count, WORKGROUP)
}

/// `a` and `b`: the elements of pair `i` from `base` on.
fn pair(site: &Site, build: &mut Build, half: usize) {
    match site.inst.attrs.str("mode") == Some("neox") {
        true => build.line(format!("let a = base + i; let b = a + {half}u;")),
        false => build.line("let a = base + 2u * i; let b = a + 1u;"),
    }
}

/// rope_append: an invocation makes two neighbouring elements of q, of the cache of k or of that
/// of v, so that a word of two halves has one writer.
pub fn append(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let [q, k, v] = [0, 1, 2].map(|i| &site.inputs[i]);
    let caches = [&site.inputs[3], &site.inputs[4]];
    let outs = [1, 2].map(|i| &site.outputs[i]);
    let slots = usize::from(caches[0].ty.rank() > 3);
    let places = &site.inputs[5..6 + slots];
    for (cache, out) in caches.iter().zip(outs) {
        if cache.binding != out.binding {
            super::movement::copy_one(lower, site, cache, out)?;
        }
    }
    let mut build = Build::new("rope_append");
    let factors = site.inputs.get(6 + slots);
    let Turning { half, magnitude } = turning(lower, site, &mut build, factors)?;
    place(lower, &mut build, outs[0], places);
    let number = |view: &View, axis: usize| view.dims()[axis].as_const().unwrap_or(0);
    let (heads, width) = (number(q, 1), number(q, 2));
    let (kv_heads, v_width) = (number(v, 1), number(v, 2));
    let tokens = lower.dim(&q.dims()[0]);
    let parts = [heads * width / 2, kv_heads * width / 2, kv_heads * v_width / 2];
    let all: u64 = parts.iter().sum();
    let [qs, ks, vs] = [q, k, v].map(|view| build.read(view));
    build.line(format!("let token = unit / {all}u; let w = unit % {all}u;"));
    build.line(format!("if token >= {tokens} {{ return; }}"));
    let at = position(&mut build, &places[0], "token");
    build.globals.push_str(&format!(
        "fn turned(x: f32, y: f32, first: bool, position: i32, i: u32) -> f32 {{ \
         let t = rotation(position, i) * {}; \
         return select(x * t.x + y * t.y, x * t.y - y * t.x, first); }}\n",
        text::float(magnitude)
    ));
    let neox = site.inst.attrs.str("mode") == Some("neox");
    // Element e of a head: its pair, the pair's elements, and whether it is the first.
    build.globals.push_str(&match neox {
        true => format!(
            "fn pair_of(e: u32) -> vec3<u32> {{ let i = e % {half}u; \
             return vec3<u32>(i, i, i + {half}u); }}\n"
        ),
        false => "fn pair_of(e: u32) -> vec3<u32> { let i = e / 2u; \
                  return vec3<u32>(i, 2u * i, 2u * i + 1u); }\n"
            .to_owned(),
    });
    let value = |buffer: &str, base: &str, e: &str, view: &View| {
        let at_pair = |part: &str| {
            text::load(buffer, &format!("({base} + pair_of({e}).{part})"), view.ty.dtype)
        };
        let own = text::load(buffer, &format!("({base} + {e})"), view.ty.dtype);
        let turn = format!(
            "turned({}, {}, pair_of({e}).y == {e}, at, pair_of({e}).x)",
            at_pair("y"),
            at_pair("z")
        );
        match 2 * half as u64 == width {
            true => turn,
            false => format!("select({own}, {turn}, {e} < {}u)", 2 * half),
        }
    };
    build.line(format!("let at = {at};"));
    let store = |build: &mut Build, view: &View, index: &str, two: [String; 2]| {
        let target = build.write(view);
        let bits = two.map(|v| text::to_bits(&v, view.ty.dtype));
        match text::per_word(view.ty.dtype) {
            2 => build
                .line(format!("{target}[({index}) / 2u] = {} | ({} << 16u);", bits[0], bits[1])),
            _ => build.line(format!(
                "{target}[{index}] = {}; {target}[{index} + 1u] = {};",
                bits[0], bits[1]
            )),
        }
    };
    build.line(format!("if w < {}u {{", parts[0]));
    build.line(format!("let e = (2u * w) % {width}u;"));
    build.line(format!("let base = token * {}u + 2u * w - e;", heads * width));
    let two = ["e", "(e + 1u)"].map(|e| value(&qs, "base", e, q));
    store(&mut build, &site.outputs[0], "base + e", two);
    build.line(format!("}} else if w < {}u {{", parts[0] + parts[1]));
    build.line(format!("let first = 2u * (w - {}u);", parts[0]));
    build.line(format!("let e = first % {width}u;"));
    build.line(format!("let base = token * {}u + first - e;", kv_heads * width));
    let two = ["e", "(e + 1u)"].map(|e| value(&ks, "base", e, k));
    let row = format!("place(token) * {}u + first", kv_heads * width);
    store(&mut build, outs[0], &row, two);
    build.line("} else {");
    build.line(format!("let first = 2u * (w - {}u);", parts[0] + parts[1]));
    build.line(format!("let base = token * {}u + first;", kv_heads * v_width));
    let two = ["base", "(base + 1u)"].map(|e| text::load(&vs, e, v.ty.dtype));
    let row = format!("place(token) * {}u + first", kv_heads * v_width);
    store(&mut build, outs[1], &row, two);
    build.line("}");
    let count = &q.dims()[0] * &Dim::new(all);
    build.finish(lower, site, count, WORKGROUP)
}
