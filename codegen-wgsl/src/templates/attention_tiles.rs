//! Attention for many tokens: a workgroup takes a tile of queries, those of a kv head's query
//! heads together, and goes over tiles of keys. The running maximum and sum of a query are kept
//! by the few invocations that share its row of scores; each invocation keeps some rows by some
//! columns of the result.

use std::fmt::Write as _;

use super::Site;
use super::attention::{Attention, LOWEST};
use super::text::{Elements, Source, dim_text};
use crate::adapter::Adapter;
use crate::kernel::{Groups, Launch};

/// Invocations of a workgroup, and how many of them lie along a value row.
const INVOCATIONS: usize = 128;
const ALONG: usize = 16;

/// Sizes of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Queries: tokens times heads.
    pub rows: usize,
    pub keys: usize,
    /// Query heads of a kv head that are taken together.
    pub heads: usize,
}

impl Tile {
    /// The largest tile that fits the workgroup memory; `None` for rows that are not read in
    /// vectors, or too long.
    pub fn choose(a: &Attention, adapter: &Adapter) -> Option<Tile> {
        if a.width(a.d) == 1 || a.width(a.dv) == 1 || adapter.workgroup_invocations < 128 {
            return None;
        }
        let shared = a.heads / a.kv_heads;
        [(32, 32), (16, 32), (16, 16), (8, 16), (8, 8)].into_iter().find_map(|(rows, keys)| {
            let heads =
                [8, 4, 2, 1].into_iter().find(|h| shared.is_multiple_of(*h) && *h <= rows)?;
            let tile = Tile { rows, keys, heads };
            (tile.bytes(a) <= adapter.workgroup_bytes as usize).then_some(tile)
        })
    }

    fn bytes(&self, a: &Attention) -> usize {
        let longest = a.d.max(a.dv) / 4 + 1;
        let vectors = self.rows * (a.d / 4 + 1) + self.keys * longest;
        16 * vectors + 4 * (self.rows * (self.keys + 1) + INVOCATIONS + self.rows)
    }
}

/// The dispatch.
pub fn launch(a: &Attention, site: &Site, tile: &Tile) -> Launch {
    let mut source = Source::new("attention_tiles");
    let q = source.bind(site.operands[0], "q", Elements::f32(a.d));
    let k = source.bind(site.operands[1], "k", a.elements(a.d));
    let v = source.bind(site.operands[2], "v", a.elements(a.dv));
    let past = source.bind(site.operands[3], "past_tokens", Elements::I32);
    let out = source.result(0, "out0", Elements::F32x4).name;
    let Tile { rows, keys, heads } = *tile;
    let (dq, vq) = (a.d / 4, a.dv / 4);
    let (q_stride, kv_stride) = (dq + 1, a.d.max(a.dv) / 4 + 1);
    let of_tile = rows / heads;
    // Invocations of a row of scores.
    let sharing = INVOCATIONS / rows;
    // Pairs of rows by keys `side` apart.
    let side = (INVOCATIONS / (rows / 2)).min(keys);
    let per = keys / side;
    // Rows of the result of an invocation, and vectors of each.
    let row_groups = INVOCATIONS / ALONG;
    let out_rows = rows.div_ceil(row_groups);
    let out_quads = vq.div_ceil(ALONG);
    let tokens = dim_text(&a.tokens, site.symbols);
    let (known, range) = a.range(&tokens, &past);
    let shared = a.heads / a.kv_heads;
    let mut t = format!(
        "var<workgroup> qs: array<vec4<f32>, {}>;
var<workgroup> kv: array<vec4<f32>, {}>;
var<workgroup> ps: array<f32, {}>;
var<workgroup> red: array<f32, {INVOCATIONS}>;
var<workgroup> row_scale: array<f32, {rows}>;
@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
let head0 = id.x * {heads}u;
let kv_head = head0 / {shared}u;
let token0 = id.y * {of_tile}u;
{known}
let mine = tid / {sharing}u;
let position = past + min(token0 + mine / {heads}u, {tokens} - 1u);
{range}
for (var i = tid; i < {}u; i += {INVOCATIONS}u) {{
    let row = i / {dq}u;
    let token = min(token0 + row / {heads}u, {tokens} - 1u);
    qs[row * {q_stride}u + i % {dq}u] = {};
}}
",
        rows * q_stride,
        keys * kv_stride,
        rows * (keys + 1),
        rows * dq,
        q.quad(&format!("(token * {}u + head0 + row % {heads}u) * {dq}u + i % {dq}u", a.heads)),
    );
    // The keys that some row of the tile sees.
    let first = match a.window {
        0 => "0u".to_owned(),
        w => format!("max(past + token0 + 1u, {w}u) - {w}u"),
    };
    let end = if a.causal { format!("min(past + token0 + {of_tile}u, all)") } else { "all".into() };
    let _ = write!(
        t,
        "var most = f32({LOWEST});
var weight = 0.0;
let row_group = tid / {ALONG}u;
let along = tid % {ALONG}u;
let pair = tid / {side}u;
let key_side = tid % {side}u;
"
    );
    for r in 0..out_rows {
        for i in 0..out_quads {
            let _ = writeln!(t, "var acc_{r}_{i} = vec4<f32>();");
        }
    }
    let _ = writeln!(
        t,
        "let tiles_end = {end};
for (var tile = {first}; tile < tiles_end; tile += {keys}u) {{
workgroupBarrier();"
    );
    // Keys beyond the last repeat it, and are not counted.
    let copy = |cache: &super::text::Var, d: usize| {
        let width = a.width(d);
        let (n, quads) = (d / width, width / 4);
        let row = format!("(min(tile + i / {n}u, all - 1u) * {}u + kv_head) * {d}u", a.kv_heads);
        let mut t = format!("for (var i = tid; i < {}u; i += {INVOCATIONS}u) {{\n", keys * n);
        t.push_str(&a.read(cache, &row, &format!("i % {n}u")));
        for e in 0..quads {
            let _ = writeln!(t, "kv[i / {n}u * {kv_stride}u + i % {n}u * {quads}u + {e}u] = e{e};");
        }
        t + "}\n"
    };
    t.push_str(&copy(&k, a.d));
    let _ = writeln!(t, "workgroupBarrier();\nif pair < {}u {{", rows / 2);
    for r in 0..2 {
        for j in 0..per {
            let _ = writeln!(t, "var s_{r}_{j} = 0.0;");
        }
    }
    let _ = writeln!(t, "for (var i = 0u; i < {dq}u; i += 1u) {{");
    for r in 0..2 {
        let _ = writeln!(t, "let q{r} = qs[(2u * pair + {r}u) * {q_stride}u + i];");
    }
    for j in 0..per {
        let _ = writeln!(t, "let k{j} = kv[(key_side + {}u) * {kv_stride}u + i];", j * side);
        for r in 0..2 {
            let _ = writeln!(t, "s_{r}_{j} += dot(q{r}, k{j});");
        }
    }
    t.push_str("}\n");
    for r in 0..2 {
        for j in 0..per {
            let _ = writeln!(
                t,
                "ps[(2u * pair + {r}u) * {}u + key_side + {}u] = {};",
                keys + 1,
                j * side,
                a.score(&format!("s_{r}_{j}"))
            );
        }
    }
    let _ = write!(
        t,
        "}}
workgroupBarrier();
let at = mine * {}u;
let share = tid % {sharing}u;
var high = f32({LOWEST});
for (var j = share; j < {keys}u; j += {sharing}u) {{
    let key = tile + j;
    if key >= first && key < last {{ high = max(high, ps[at + j]); }}
}}
red[tid] = high;
workgroupBarrier();
for (var j = 0u; j < {sharing}u; j += 1u) {{ high = max(high, red[mine * {sharing}u + j]); }}
let now = max(most, high);
let old = exp(most - now);
most = now;
weight *= old;
for (var j = share; j < {keys}u; j += {sharing}u) {{
    let key = tile + j;
    let p = select(0.0, exp(ps[at + j] - now), key >= first && key < last);
    ps[at + j] = p;
    weight += p;
}}
if share == 0u {{ row_scale[mine] = old; }}
",
        keys + 1
    );
    t.push_str(&copy(&v, a.dv));
    t.push_str("workgroupBarrier();\n");
    let guard = |i: usize| {
        if (i + 1) * ALONG > vq {
            format!("if along + {}u < {vq}u ", i * ALONG)
        } else {
            String::new()
        }
    };
    for r in 0..out_rows {
        let _ = writeln!(t, "let row_{r} = min(row_group + {}u, {}u);", r * row_groups, rows - 1);
        let _ = writeln!(t, "let old_{r} = row_scale[row_{r}];");
        for i in 0..out_quads {
            let _ = writeln!(t, "acc_{r}_{i} *= old_{r};");
        }
    }
    let _ = writeln!(t, "for (var j = 0u; j < {keys}u; j += 1u) {{");
    for i in 0..out_quads {
        let _ = writeln!(
            t,
            "let v{i} = kv[j * {kv_stride}u + min(along + {}u, {}u)];",
            i * ALONG,
            vq - 1
        );
    }
    for r in 0..out_rows {
        let _ = writeln!(t, "let p{r} = ps[row_{r} * {}u + j];", keys + 1);
        for i in 0..out_quads {
            let _ = writeln!(t, "acc_{r}_{i} += p{r} * v{i};");
        }
    }
    let _ = write!(
        t,
        "}}
}}
red[tid] = weight;
workgroupBarrier();
"
    );
    for r in 0..out_rows {
        let _ = write!(
            t,
            "{{
let row = row_group + {}u;
let token = token0 + row / {heads}u;
if row < {rows}u && token < {tokens} {{
    var total = 0.0;
    for (var j = 0u; j < {sharing}u; j += 1u) {{ total += red[row * {sharing}u + j]; }}
    let to = (token * {}u + head0 + row % {heads}u) * {vq}u + along;
",
            r * row_groups,
            a.heads
        );
        for i in 0..out_quads {
            let _ = writeln!(
                t,
                "    {}{{ {out}[to + {}u] = acc_{r}_{i} / total; }}",
                guard(i),
                i * ALONG
            );
        }
        t.push_str("}\n}\n");
    }
    t.push_str("}\n");
    source.push(&t);
    source.launch([
        Groups::of(a.heads / heads, 1),
        Groups::of(a.tokens.clone(), of_tile as u32),
        Groups::one(),
    ])
}
