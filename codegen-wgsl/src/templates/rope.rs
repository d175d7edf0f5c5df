//! Rotary embedding and appending to the cache, alone or together.
//!
//! Angles of large positions are exact: an angle grows by the same part of a turn with each
//! position, so that part is held as a 64-bit fraction and multiplied by the position in integers,
//! which drops whole turns. Sine and cosine of what is left come from polynomials over an eighth
//! of a turn, since the built-in functions may be off by 2^-11. No table is needed.
//!
//! An invocation makes two neighbouring elements, which are one word of an f16 cache.

use std::fmt::Write as _;

use aether_ir::op::rope::frequencies;
use aether_ir::{Attrs, DType, Dim};

use super::Site;
use super::text::{Elements, Source, Var, dim_text};
use crate::kernel::{Groups, Launch};

/// How heads are rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// For each pair the part of a turn per position, in 2^-64.
    steps: Vec<u64>,
    magnitude: f32,
    neox: bool,
}

impl Rotation {
    /// From the attributes of the op and the values of its factors (none: empty).
    pub fn new(attrs: &Attrs, factors: &[f64]) -> Rotation {
        let (frequencies, magnitude) = frequencies(attrs, factors);
        let steps = frequencies.into_iter().map(|radians| {
            let turns = radians / std::f64::consts::TAU;
            let part = turns - turns.floor();
            let high = (part * 4294967296.0).floor();
            let low = (part * 4294967296.0 - high) * 4294967296.0;
            ((high as u64) << 32).wrapping_add(low as u64)
        });
        Rotation {
            steps: steps.collect(),
            magnitude: magnitude as f32,
            neox: attrs.str("mode") == Some("neox"),
        }
    }
}

/// Where the position of a token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// An i32 scalar: the first token's.
    First,
    /// One i32 for each token.
    Each,
}

/// What is done to rows `[tokens, heads, d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    pub heads: usize,
    pub d: usize,
    pub rotation: Option<Rotation>,
    /// The rows go to a cache of so many rows and that type at `past`; otherwise they are a result
    /// of their own, f32.
    pub cache: Option<(usize, DType)>,
}

/// One dispatch over several kinds of rows of the same tokens.
///
/// Operands: the rows, f32, in order; the positions (when something is rotated); `past` (when
/// there is a cache). Results in order; a cache is written in place.
#[derive(Clone, Debug, PartialEq)]
pub struct RotateAppend {
    pub tokens: Dim,
    pub most_tokens: usize,
    pub positions: Positions,
    pub rows: Vec<Rows>,
}

impl RotateAppend {
    /// Whether there is a kernel.
    pub fn is_supported(&self) -> bool {
        self.rows.iter().all(|r| {
            let pairs = r.rotation.as_ref().map_or(0, |rotation| rotation.steps.len());
            let cache = r.cache.is_none_or(|(context, dtype)| {
                matches!(dtype, DType::F16 | DType::F32) && self.most_tokens <= context
            });
            r.d.is_multiple_of(2) && r.heads > 0 && r.d > 0 && 2 * pairs <= r.d && cache
        }) && !self.rows.is_empty()
    }

    /// The dispatches, in order.
    pub fn launches(&self, site: &Site) -> Vec<Launch> {
        vec![self.launch(site)]
    }

    fn launch(&self, site: &Site) -> Launch {
        let rotates = self.rows.iter().any(|r| r.rotation.is_some());
        let mut source = Source::new(if rotates { "rope" } else { "kv_append" });
        let mut operand = site.operands.iter().copied();
        let mut next = |source: &mut Source, name: &str, elements| {
            // The caller binds what the template names.
            let operand = operand.next().expect("an operand for each name");
            source.bind(operand, name, elements)
        };
        let inputs: Vec<Var> = (0..self.rows.len())
            .map(|i| next(&mut source, &format!("x{i}"), Elements::F32))
            .collect();
        let positions = rotates.then(|| next(&mut source, "positions", Elements::I32));
        let appends = self.rows.iter().any(|r| r.cache.is_some());
        let past = appends.then(|| next(&mut source, "past_tokens", Elements::I32));
        let outputs: Vec<Var> = self
            .rows
            .iter()
            .enumerate()
            .map(|(i, r)| {
                let half = matches!(r.cache, Some((_, DType::F16)));
                let elements = if half { Elements::U32 } else { Elements::F32 };
                source.result(i, &format!("out{i}"), elements)
            })
            .collect();
        if rotates {
            source.push(TURN);
        }
        let tokens = dim_text(&self.tokens, site.symbols);
        let pairs: usize = self.rows.iter().map(|r| r.heads * r.d / 2).sum();
        for (i, r) in self.rows.iter().enumerate() {
            source.push(&value(i, r, &inputs[i]));
        }
        let mut t = String::from(
            "@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
let token = id.y;
",
        );
        if let Some(positions) = &positions {
            let _ = match self.positions {
                Positions::First => {
                    writeln!(t, "let position = {}[0] + i32(token);", positions.name)
                }
                Positions::Each => writeln!(t, "let position = {}[token];", positions.name),
            };
        }
        let mut start = 0;
        for (i, r) in self.rows.iter().enumerate() {
            let n = r.heads * r.d / 2;
            let _ = writeln!(t, "if id.x >= {start}u && id.x < {}u {{", start + n);
            let _ = writeln!(t, "let e = 2u * (id.x - {start}u);");
            let at = format!("token * {}u + e", r.heads * r.d);
            let args = if r.rotation.is_some() { ", position" } else { "" };
            for part in 0..2 {
                let _ = writeln!(
                    t,
                    "let v{part} = value{i}({at}, (e + {part}u) % {}u, {part}u{args});",
                    r.d
                );
            }
            let row = match (&r.cache, &past) {
                (Some((context, _)), Some(past)) => {
                    let _ = writeln!(
                        t,
                        "let row = min(u32(max({}[0], 0)), {context}u - min({tokens}, {context}u)) + token;",
                        past.name
                    );
                    "row"
                }
                _ => "token",
            };
            let to = format!("{row} * {}u + e", r.heads * r.d);
            let out = &outputs[i].name;
            let _ = if outputs[i].elements == Elements::U32 {
                writeln!(t, "{out}[({to}) / 2u] = pack2x16float(vec2(v0, v1));")
            } else {
                writeln!(t, "{out}[{to}] = v0;\n{out}[{to} + 1u] = v1;")
            };
            t.push_str("}\n");
            start += n;
        }
        t.push_str("}\n");
        source.push(&t);
        source.launch([Groups::of(pairs, 64), Groups::of(self.tokens.clone(), 1), Groups::one()])
    }
}

/// Sine and cosine of a 32-bit fraction of a turn, by Taylor's polynomials over an eighth.
const TURN: &str = "fn turn(part: u32) -> vec2<f32> {
    let quarter = (part + 0x20000000u) >> 30u;
    let x = f32(bitcast<i32>(part - (quarter << 30u))) * 1.4629180792671596e-9;
    let y = x * x;
    let s = x * (1.0 + y * (-0.16666667 + y * (0.008333333 + y * (-0.0001984127 + y * 2.7557319e-6))));
    let c = 1.0 + y * (-0.5 + y * (0.041666668 + y * (-0.0013888889 + y * (2.4801587e-5 - y * 2.7557319e-7))));
    let even = quarter % 2u == 0u;
    let cosine = select(select(s, -s, quarter == 1u), select(c, -c, quarter == 2u), even);
    let sine = select(select(c, -c, quarter == 3u), select(s, -s, quarter == 2u), even);
    return vec2(cosine, sine);
}
fn high_word(a: u32, b: u32) -> u32 {
    let al = a & 0xffffu;
    let ah = a >> 16u;
    let bl = b & 0xffffu;
    let bh = b >> 16u;
    let mid = ah * bl + ((al * bl) >> 16u);
    let low = al * bh + (mid & 0xffffu);
    return ah * bh + (mid >> 16u) + (low >> 16u);
}
";

/// `value`: the element `e` of a head, element `at + part` of input `x`.
fn value(i: usize, r: &Rows, x: &Var) -> String {
    let x = &x.name;
    let Some(rotation) = &r.rotation else {
        return format!(
            "fn value{i}(at: u32, e: u32, part: u32) -> f32 {{ return {x}[at + part]; }}\n"
        );
    };
    let pairs = rotation.steps.len();
    let steps: Vec<String> = rotation
        .steps
        .iter()
        .map(|s| format!("vec2({}u, {}u)", s >> 32, s & 0xffff_ffff))
        .collect();
    // The pair, whether the element is its second, and where the other one is.
    let (pair, second, other) = if rotation.neox {
        (
            format!("e % {pairs}u"),
            format!("e >= {pairs}u"),
            format!("select(at + part + {pairs}u, at + part - {pairs}u, second)"),
        )
    } else {
        (
            "e / 2u".to_owned(),
            "e % 2u == 1u".to_owned(),
            "select(at + part + 1u, at + part - 1u, second)".to_owned(),
        )
    };
    format!(
        "var<private> steps{i}: array<vec2<u32>, {pairs}> = array<vec2<u32>, {pairs}>({});
fn value{i}(at: u32, e: u32, part: u32, position: i32) -> f32 {{
    let v = {x}[at + part];
    if e >= {}u {{ return v; }}
    let second = {second};
    let step = steps{i}[{pair}];
    let p = bitcast<u32>(abs(position));
    let angle = turn(p * step.x + high_word(p, step.y)) * f32({:e});
    let sine = select(angle.y, -angle.y, (position < 0) != second);
    return v * angle.x - {x}[{other}] * sine;
}}
",
        steps.join(", "),
        2 * pairs,
        rotation.magnitude,
    )
}
