//! Attention for many tokens with cooperative matrices of 16x16 f16 and f32 sums.
//!
//! A workgroup takes a tile of queries, sixteen a subgroup, those of a kv head's query heads
//! together, and goes over tiles of keys (Dao et al. 2022). Scores go through workgroup memory,
//! where two lanes share a row, and return as f16 weights. The sums stay where they are: weights
//! are taken from a maximum that may lag behind, and only when a row's greatest score has grown by
//! more than [`SLACK`] are the sums of the workgroup scaled, which happens a few times in all.
//!
//! Over slots, the tokens of a tile are taken in runs of one sequence, each with its own keys; tokens
//! that go alone are left to [`super::attention`]'s parts.
//!
//! Queries are rounded to f16 after a power of two has brought their greatest number near one.
//!
//! Matrices must lie at multiples of 16 bytes (Vulkan's rules for cooperative matrices), and drivers
//! lay arrays of workgroup memory one after another at their own alignment of 8 or 4: each is a
//! multiple of 16 bytes long.

use std::fmt::Write as _;

use aether_ir::DType;

use super::Site;
use super::attention::{Attention, LOWEST};
use super::text::{Elements, Source, dim_text};
use crate::adapter::Adapter;
use crate::kernel::{Groups, Launch};

/// Keys of a tile.
const KEYS: usize = 32;
/// f32 between rows of scores: rows are padded.
const SCORES: usize = KEYS + 4;
/// Vectors of four f16 between rows of weights.
const WEIGHTS: usize = KEYS / 4 + 2;
/// How far a row's greatest score may be above what its weights are taken from: they stay far
/// below the greatest f16.
const SLACK: f32 = 6.0;

/// Sizes of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    pub subgroups: usize,
    /// Query heads of a kv head that are taken together.
    pub heads: usize,
}

impl Tile {
    /// A tile; `None` when the adapter or the sizes do not allow any.
    pub fn choose(a: &Attention, adapter: &Adapter) -> Option<Tile> {
        let sizes = |d: usize| d.is_multiple_of(16) && d <= 128;
        let allowed = adapter.cooperative_matrix
            && adapter.f16
            && adapter.subgroup == Some(32)
            && a.cache == DType::F16
            && sizes(a.d)
            && sizes(a.dv);
        let shared = a.heads / a.kv_heads;
        let heads = [8, 4, 2, 1].into_iter().find(|h| shared.is_multiple_of(*h))?;
        let tile = Tile { subgroups: 4, heads };
        let fits = tile.bytes(a) <= adapter.workgroup_bytes as usize
            && 32 * tile.subgroups <= adapter.workgroup_invocations as usize;
        (allowed && fits).then_some(tile)
    }

    fn rows(&self) -> usize {
        16 * self.subgroups
    }

    /// Vectors for the queries, and then for a tile of keys and values.
    fn vectors(&self, a: &Attention) -> usize {
        (self.rows() * stride(a.d)).max(KEYS * (stride(a.d) + stride(a.dv)))
    }

    fn bytes(&self, a: &Attention) -> usize {
        8 * self.vectors(a) + self.rows() * (4 * SCORES + 8 * WEIGHTS + 4) + 16
    }
}

/// Vectors of four f16 between rows of `d` numbers: rows are padded.
fn stride(d: usize) -> usize {
    d / 4 + 2
}

/// The dispatch.
pub fn launch(a: &Attention, site: &Site, tile: &Tile) -> Launch {
    let mut source = Source::new("attention_coop");
    source.needs.f16 = true;
    source.needs.subgroups = true;
    source.needs.cooperative_matrix = true;
    let q = source.bind(site.operands[0], "q", Elements::F32x4).name;
    let k = source.bind(site.operands[1], "k", Elements::F16x4).name;
    let v = source.bind(site.operands[2], "v", Elements::F16x4).name;
    let past = source.bind(site.operands[3], "past_tokens", Elements::I32);
    let places = a.places(site, &mut source, &past);
    let out = source.result(0, "out0", Elements::F32x4).name;
    let (rows, heads, invocations) = (tile.rows(), tile.heads, 32 * tile.subgroups);
    let (ks, vs) = (stride(a.d), stride(a.dv));
    let of_tile = rows / heads;
    let tokens = dim_text(&a.tokens, site.symbols);
    let (known, range) = a.range(&tokens, &past);
    let (known, position) = match &places {
        None => (known, "past + mine".to_owned()),
        Some(_) => (format!("let all = {}u;\n", a.context), "place(mine)".to_owned()),
    };
    let (dq, vq) = (a.d / 4, a.dv / 4);
    let mut t = format!(
        "var<workgroup> kv: array<vec4<f16>, {}>;
var<workgroup> scores: array<f32, {}>;
var<workgroup> weights: array<vec4<f16>, {}>;
var<workgroup> scales: array<f32, {rows}>;
var<workgroup> grown: array<atomic<u32>, 4>;
@compute @workgroup_size({invocations})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32, @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32) {{
let head0 = id.x * {heads}u;
let kv_head = head0 / {}u;
let token0 = id.y * {of_tile}u;
{known}let row = sg * 16u + lane / 2u;
let side = lane % 2u;
let mine = min(token0 + row / {heads}u, {tokens} - 1u);
let position = {position};
{range}let first_q = (mine * {}u + head0 + row % {heads}u) * {dq}u + side * {}u;
var high = 0.0;
for (var i = 0u; i < {}u; i += 1u) {{
    let x = abs({q}[first_q + i]);
    high = max(high, max(max(x.x, x.y), max(x.z, x.w)));
}}
high = max(high, subgroupShuffleXor(high, 1u));
let exponent = clamp(bitcast<u32>(high) >> 23u, 1u, 253u);
let up = bitcast<f32>(exponent << 23u);
let down = bitcast<f32>((254u - exponent) << 23u);
for (var i = 0u; i < {}u; i += 1u) {{
    kv[row * {ks}u + side * {}u + i] = vec4<f16>({q}[first_q + i] * down);
}}
workgroupBarrier();
",
        tile.vectors(a),
        rows * SCORES,
        rows * WEIGHTS,
        a.heads / a.kv_heads,
        a.heads,
        dq / 2,
        dq / 2,
        dq / 2,
        dq / 2,
    );
    for i in 0..a.d / 16 {
        let _ = write!(
            t,
            "let qi_{i} = sg * {}u + {}u;
let q_{i} = coopLoadT<coop_mat16x16<f16, A>>(&kv[qi_{i}], {ks}u);
",
            16 * ks,
            4 * i
        );
    }
    for j in 0..a.dv / 16 {
        let _ = writeln!(t, "var acc_{j} = coop_mat16x16<f32, C>();");
    }
    // The keys that some row of the tile sees, or of a run of one sequence's tokens in it.
    let before = |position: &str| match a.window {
        0 => "0u".to_owned(),
        w => format!("max({position} + 1u, {w}u) - {w}u"),
    };
    let _ = write!(t, "var most = f32({LOWEST});\nvar weight = 0.0;\n");
    match &places {
        None => {
            let end = format!("min(past + token0 + {of_tile}u, all)");
            let _ = write!(
                t,
                "let base = 0u;
let own = true;
let tiles_first = {};
let tiles_end = {};
",
                before("past + token0"),
                if a.causal { &end } else { "all" }
            );
        }
        Some(_) => {
            let _ = write!(
                t,
                "let end_token = min(token0 + {of_tile}u, {tokens});
for (var run = token0; run < end_token; ) {{
let from_token = run;
let base = slot(from_token) * {}u;
var low = all;
var high = 0u;
while run < end_token && slot(run) * {}u == base {{
    low = min(low, place(run));
    high = max(high, place(run) + 1u);
    run += 1u;
}}
let own = mine >= from_token && mine < run;
let tiles_first = {};
let tiles_end = select(high, tiles_first, lonely(from_token, {tokens}));
",
                a.context,
                a.context,
                before("low")
            );
        }
    }
    let _ = write!(
        t,
        "for (var tile = tiles_first; tile < tiles_end; tile += {KEYS}u) {{
workgroupBarrier();
if tid == 0u {{ atomicStore(&grown[0], 0u); }}
"
    );
    // Keys beyond the last repeat it, and are not counted.
    for (cache, quads, stride, at) in [(&k, dq, ks, 0), (&v, vq, vs, KEYS * ks)] {
        let pairs = quads / 2;
        let n = KEYS * pairs;
        for load in 0..n.div_ceil(invocations) {
            let guard = (load + 1) * invocations > n;
            let e = format!("(tid + {}u)", load * invocations);
            let _ = write!(
                t,
                "{}{{
let line = {e} / {pairs}u;
let c = {e} % {pairs}u * 2u;
let source = ((base + min(tile + line, all - 1u)) * {}u + kv_head) * {quads}u + c;
let to = {at}u + line * {stride}u + c;
kv[to] = {cache}[source];
kv[to + 1u] = {cache}[source + 1u];
}}
",
                if guard { format!("if {e} < {n}u ") } else { String::new() },
                a.kv_heads,
            );
        }
    }
    t.push_str("workgroupBarrier();\n");
    for n in 0..KEYS / 16 {
        let _ = writeln!(t, "var s_{n} = coop_mat16x16<f32, C>();");
        for i in 0..a.d / 16 {
            let _ = write!(
                t,
                "let ki_{n}_{i} = {}u;
let k_{n}_{i} = coopLoad<coop_mat16x16<f16, B>>(&kv[ki_{n}_{i}], {ks}u);
s_{n} = coopMultiplyAdd(q_{i}, k_{n}_{i}, s_{n});
",
                16 * n * ks + 4 * i
            );
        }
        let _ = write!(
            t,
            "let to_{n} = sg * {}u + {}u;
coopStoreT(s_{n}, &scores[to_{n}], {SCORES}u);
",
            16 * SCORES,
            16 * n
        );
    }
    let half = KEYS / 2;
    let _ = write!(
        t,
        "workgroupBarrier();
let at = row * {SCORES}u + side * {half}u;
let key = tile + side * {half}u;
var now = f32({LOWEST});
"
    );
    for j in 0..half {
        let _ = write!(
            t,
            "let live_{j} = own && key + {j}u >= first && key + {j}u < last;
let score_{j} = {};
if live_{j} {{ now = max(now, score_{j}); }}
",
            a.score(&format!("(scores[at + {j}u] * up)"))
        );
    }
    let _ = write!(
        t,
        "now = max(now, subgroupShuffleXor(now, 1u));
let grows = now > most + {SLACK:e};
now = select(most, now, grows);
let scale = exp(most - now);
most = now;
weight *= scale;
if grows {{ atomicStore(&grown[0], 1u); }}
if side == 0u {{ scales[row] = scale; }}
"
    );
    for quad in 0..half / 4 {
        let p = |i: usize| {
            let j = 4 * quad + i;
            format!("select(0.0, exp(score_{j} - now), live_{j})")
        };
        let _ = write!(
            t,
            "let p_{quad} = vec4<f32>({}, {}, {}, {});
weight += p_{quad}.x + p_{quad}.y + p_{quad}.z + p_{quad}.w;
weights[row * {WEIGHTS}u + side * {}u + {quad}u] = vec4<f16>(p_{quad});
",
            p(0),
            p(1),
            p(2),
            p(3),
            half / 4
        );
    }
    t.push_str("let any_grown = workgroupUniformLoad(&grown[0]);\nif any_grown != 0u {\n");
    for j in 0..a.dv / 16 {
        let _ = write!(
            t,
            "coopStoreT(acc_{j}, &scores[sg * {of}u], {SCORES}u);
workgroupBarrier();
for (var e = lane; e < 256u; e += 32u) {{
    scores[sg * {of}u + e / 16u * {SCORES}u + e % 16u] *= scales[sg * 16u + e / 16u];
}}
workgroupBarrier();
acc_{j} = coopLoadT<coop_mat16x16<f32, C>>(&scores[sg * {of}u], {SCORES}u);
workgroupBarrier();
",
            of = 16 * SCORES
        );
    }
    t.push_str("}\n");
    for kk in 0..KEYS / 16 {
        let _ = write!(
            t,
            "let wi_{kk} = sg * {}u + {}u;
let w_{kk} = coopLoadT<coop_mat16x16<f16, A>>(&weights[wi_{kk}], {WEIGHTS}u);
",
            16 * WEIGHTS,
            4 * kk
        );
        for j in 0..a.dv / 16 {
            let _ = write!(
                t,
                "let vi_{kk}_{j} = {}u;
let v_{kk}_{j} = coopLoadT<coop_mat16x16<f16, B>>(&kv[vi_{kk}_{j}], {vs}u);
acc_{j} = coopMultiplyAdd(w_{kk}, v_{kk}_{j}, acc_{j});
",
                KEYS * ks + 16 * kk * vs + 4 * j
            );
        }
    }
    let _ = write!(
        t,
        "}}
{}weight += subgroupShuffleXor(weight, 1u);
if side == 0u {{ scales[row] = 1.0 / weight; }}
",
        if places.is_some() { "}\n" } else { "" }
    );
    for j in 0..a.dv / 16 {
        let _ = write!(
            t,
            "workgroupBarrier();
coopStoreT(acc_{j}, &scores[sg * {of}u], {SCORES}u);
workgroupBarrier();
for (var e = lane; e < 64u; e += 32u) {{
    let r = sg * 16u + e / 4u;
    let token = token0 + r / {heads}u;
    let at = r * {SCORES}u + e % 4u * 4u;
    if token < {tokens}{stored} {{
        let sums = vec4<f32>(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
        {out}[(token * {}u + head0 + r % {heads}u) * {vq}u + {}u + e % 4u] = sums * scales[r];
    }}
}}
",
            a.heads,
            4 * j,
            of = 16 * SCORES,
            stored = if places.is_some() {
                format!(" && !lonely(token, {tokens})")
            } else {
                String::new()
            },
        );
    }
    t.push_str("}\n");
    source.push(&t);
    source.launch([
        Groups::of(a.heads / heads, 1),
        Groups::of(a.tokens.clone(), of_tile as u32),
        Groups::one(),
    ])
}
