//! `attention`: scaled dot products over a cache, in two forms.
//!
//! - **Parts**, for few tokens: the keys that a token sees are cut into a fixed number of parts,
//!   so that a dispatch has the same size at every length; a part may be empty. A workgroup takes
//!   a part for the query heads that share a kv head, a second dispatch puts the parts together
//!   (flash decoding: Dao et al. 2023).
//! - **Tiles**, for many: a workgroup takes a tile of queries and goes over tiles of keys with a
//!   running maximum and sum (Dao et al. 2022). In [`attention_coop`](super::attention_coop) where
//!   there are cooperative matrices, else in [`attention_tiles`](super::attention_tiles).
//!
//! Operands: q f32 `[tokens, heads, d]`, the caches `[context, kv_heads, d]` and
//! `[context, kv_heads, dv]` of f16 or f32, `past` i32. Result f32 `[tokens, heads, dv]`. A past
//! that leaves no room for the tokens is taken as the greatest that does.
//!
//! With slots the caches are `[slots, context, kv_heads, …]` and instead of `past` there are the
//! positions and the slots of the tokens, i32; always in parts, since neighbours need not belong
//! together. Places out of range are taken as the nearest; appending to the cache refuses them.

use std::fmt::Write as _;

use aether_ir::{DType, Dim};

use super::text::{Elements, Source, Var, dim_text};
use super::{Site, attention_coop, attention_tiles};
use crate::adapter::Adapter;
use crate::kernel::{Groups, Launch};

/// The sizes of an attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub d: usize,
    pub dv: usize,
    pub tokens: Dim,
    pub most_tokens: usize,
    /// Rows of the caches.
    pub context: usize,
    /// Element type of the caches.
    pub cache: DType,
    pub scale: f32,
    pub causal: bool,
    /// 0 for all keys.
    pub window: usize,
    /// 0 for none.
    pub softcap: f32,
    /// How many sequences the caches hold, when each token has a place of its own.
    pub slots: Option<usize>,
}

/// Stands for minus infinity, from which differences are taken.
pub(super) const LOWEST: &str = "-3e38";

/// Most query heads of a workgroup.
const HEADS: usize = 8;

/// Loads of a row of the cache that are under way at the same time.
const AHEAD: usize = 8;

/// Keys in a tile of a part: one for each invocation.
const KEYS: usize = 128;

impl Attention {
    /// Whether there is a kernel.
    pub fn is_supported(&self) -> bool {
        matches!(self.cache, DType::F16 | DType::F32)
            && self.kv_heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && self.context > 0
            && self.d > 0
            && self.dv > 0
            && self.dv.div_ceil(self.width(self.dv)) <= KEYS
            && self.d <= 1024
            && self.context <= i32::MAX as usize
            && (self.slots.is_some() || self.most_tokens <= self.context)
            && (self.slots.is_none() || self.causal)
    }

    /// Elements of a row of length `len` that are read at once.
    pub(super) fn width(&self, len: usize) -> usize {
        match self.cache {
            DType::F16 if len.is_multiple_of(8) => 8,
            DType::F32 if len.is_multiple_of(4) => 4,
            _ => 1,
        }
    }

    /// How a cache with rows of that length is bound.
    pub(super) fn elements(&self, len: usize) -> Elements {
        match (self.cache, self.width(len)) {
            (DType::F16, 8) => Elements::U32x4,
            (DType::F16, _) => Elements::U32,
            (_, 4) => Elements::F32x4,
            _ => Elements::F32,
        }
    }

    /// Query heads that a workgroup takes: a divisor of those that share a kv head.
    fn group(&self) -> usize {
        let shared = self.heads / self.kv_heads;
        (1..=shared.min(HEADS)).rev().find(|g| shared.is_multiple_of(*g)).unwrap_or(1)
    }

    /// Parts that the keys are cut into: enough for two workgroups on each of 132
    /// multiprocessors, of at least 64 keys.
    fn parts(&self) -> usize {
        let groups = self.heads / self.group() * self.most_tokens.min(4);
        let seen = if self.window > 0 { self.window.min(self.context) } else { self.context };
        264usize.div_ceil(groups).min(seen.div_ceil(64)).clamp(1, 64)
    }

    fn is_tiled(&self, adapter: &Adapter) -> bool {
        let coop = || attention_coop::Tile::choose(self, adapter).is_some();
        match self.slots {
            // As many go alone, each a token of its sequence.
            Some(_) => self.most_tokens > 64 && coop(),
            None => {
                self.most_tokens > 8
                    && (coop() || attention_tiles::Tile::choose(self, adapter).is_some())
            }
        }
    }

    /// Bytes of scratch that the launches use.
    pub fn scratch_bytes(&self, adapter: &Adapter) -> u64 {
        if (self.is_tiled(adapter) && self.slots.is_none()) || self.parts() == 1 {
            return 0;
        }
        (self.most_tokens * self.heads * self.parts() * (self.dv + 2) * 4) as u64
    }

    /// The dispatches, in order.
    pub fn launches(&self, site: &Site) -> Vec<Launch> {
        if self.is_tiled(site.adapter)
            && let Some(tile) = attention_coop::Tile::choose(self, site.adapter)
        {
            let mut all = vec![attention_coop::launch(self, site, &tile)];
            if self.slots.is_some() {
                all.extend(self.in_parts(site, true));
            }
            return all;
        }
        if self.is_tiled(site.adapter)
            && let Some(tile) = attention_tiles::Tile::choose(self, site.adapter)
        {
            return vec![attention_tiles::launch(self, site, &tile)];
        }
        self.in_parts(site, false)
    }

    /// Every token by itself; with `lonely`, of slots those that have no neighbour of their own
    /// sequence.
    fn in_parts(&self, site: &Site, lonely: bool) -> Vec<Launch> {
        let mut all = vec![self.part(site, lonely)];
        if self.parts() > 1 {
            all.push(self.combine(site, lonely));
        }
        all
    }

    /// Binds the slots, and declares `slot(token)`, `place(token)` in it, and `lonely(token,
    /// tokens)`: that its neighbours are of other sequences. `None` without slots.
    pub(super) fn places(&self, site: &Site, source: &mut Source, past: &Var) -> Option<Var> {
        let n = self.slots?;
        let slots = source.bind(site.operands[4], "slots", Elements::I32);
        source.push(&format!(
            "fn slot(token: u32) -> u32 {{ return u32(clamp({s}[token], 0, {})); }}
fn place(token: u32) -> u32 {{ return u32(clamp({}[token], 0, {})); }}
fn lonely(token: u32, tokens: u32) -> bool {{
    let own = {s}[token];
    let before = token > 0u && {s}[max(token, 1u) - 1u] == own;
    return !before && !(token + 1u < tokens && {s}[min(token + 1u, tokens - 1u)] == own);
}}",
            n.max(1) - 1,
            past.name,
            self.context - 1,
            s = slots.name,
        ));
        Some(slots)
    }

    /// `past`, and `first` and `last` of the keys that `position` sees, for the number of tokens
    /// in the text `tokens`.
    pub(super) fn range(&self, tokens: &str, past: &Var) -> (String, String) {
        let known = format!(
            "let past = min(u32(max({}[0], 0)), {}u - min({tokens}, {}u));\nlet all = min(past + {tokens}, {}u);\n",
            past.name, self.context, self.context, self.context
        );
        let first = match self.window {
            0 => "let first = 0u;\n".to_owned(),
            w => format!("let first = max(position + 1u, {w}u) - {w}u;\n"),
        };
        let last = if self.causal { "min(position + 1u, all)" } else { "all" };
        (known, format!("{first}let last = {last};\n"))
    }

    /// The score `s` scaled and capped.
    pub(super) fn score(&self, s: &str) -> String {
        let scaled = format!("({s} * f32({:e}))", self.scale);
        if self.softcap > 0.0 {
            let cap = format!("f32({:e})", self.softcap);
            return format!("({cap} * (1.0 - 2.0 / (exp(2.0 * {scaled} / {cap}) + 1.0)))");
        }
        scaled
    }

    fn part(&self, site: &Site, lonely: bool) -> Launch {
        let (g, parts, d, dv) = (self.group(), self.parts(), self.d, self.dv);
        let mut source = Source::new("attention_parts");
        let q = source.bind(site.operands[0], "q", Elements::f32(d));
        let k = source.bind(site.operands[1], "k", self.elements(d));
        let v = source.bind(site.operands[2], "v", self.elements(dv));
        let past = source.bind(site.operands[3], "past_tokens", Elements::I32);
        let slots = self.places(site, &mut source, &past);
        let out = if parts == 1 {
            source.result(0, "out0", Elements::F32)
        } else {
            let bytes = self.scratch_bytes(site.adapter);
            source.scratch(0, bytes, "part_sums", Elements::F32)
        };
        let width = self.width(dv);
        let quads = width.div_ceil(4);
        // Invocations along a value row, and keys that go side by side.
        let lanes = dv / width;
        let side = KEYS / lanes;
        let vector = if width == 1 { "f32" } else { "vec4<f32>" };
        let tokens = dim_text(&self.tokens, site.symbols);
        let (known, range) = self.range(&tokens, &past);
        // Where the token is, and the first row of its cache.
        let known = match &slots {
            None => format!("{known}let position = past + token;\nlet base = 0u;\n"),
            Some(_) => format!(
                "let position = place(token);
let base = slot(token) * {}u;
let all = {}u;
",
                self.context, self.context
            ),
        };
        let leave = match lonely {
            true => format!("if !lonely(token, {tokens}) {{ return; }}\n"),
            false => String::new(),
        };
        let qw = if self.width(d) == 1 { "f32" } else { "vec4<f32>" };
        let qn = if self.width(d) == 1 { d } else { d / 4 };
        let taken = 4 * g * (d + KEYS + 17);
        let left = (site.adapter.workgroup_bytes as usize).saturating_sub(taken);
        let at_once = (left / (KEYS * quads * 4 * width.min(4))).clamp(1, g);
        let mut t = format!(
            "var<workgroup> qs: array<{qw}, {}>;
var<workgroup> ps: array<f32, {}>;
var<workgroup> red: array<f32, {}>;
var<workgroup> top: array<f32, {g}>;
var<workgroup> sums: array<{vector}, {}>;
@compute @workgroup_size({KEYS})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
let head0 = id.x * {g}u;
let kv = head0 / {}u;
let token = id.z;
{leave}{known}{range}let span = (max(last, first) - first + {}u) / {}u * 32u;
let begin = min(first + id.y * span, last);
let end = min(begin + span, last);
for (var i = tid; i < {}u; i += {KEYS}u) {{
    qs[i] = {};
}}
let lane = tid % {lanes}u;
let key_side = tid / {lanes}u;
",
            g * qn,
            g * KEYS,
            16 * g,
            at_once * KEYS * quads,
            self.heads / self.kv_heads,
            parts * 32 - 1,
            parts * 32,
            g * qn,
            if self.width(d) == 1 {
                q.at(&format!("(token * {}u + head0) * {qn}u + i", self.heads))
            } else {
                q.quad(&format!("(token * {}u + head0) * {qn}u + i", self.heads))
            },
        );
        for h in 0..g {
            let _ = writeln!(t, "var most_{h} = f32({LOWEST});\nvar weight_{h} = 0.0;");
            for i in 0..quads {
                let _ = writeln!(t, "var acc_{h}_{i} = {vector}();");
            }
        }
        let _ = writeln!(
            t,
            "for (var tile = begin; tile < end; tile += {KEYS}u) {{\nlet key = tile + tid;\nworkgroupBarrier();"
        );
        for h in 0..g {
            let _ = writeln!(t, "var s_{h} = 0.0;");
        }
        let _ = writeln!(t, "if key < end {{");
        let row = format!("((base + key) * {}u + kv) * {d}u", self.kv_heads);
        t.push_str(&self.scores(&k, &row, g));
        for h in 0..g {
            let _ = writeln!(t, "s_{h} = {};", self.score(&format!("s_{h}")));
        }
        let _ = writeln!(t, "}} else {{");
        for h in 0..g {
            let _ = writeln!(t, "s_{h} = f32({LOWEST});");
        }
        let _ = writeln!(t, "}}");
        for h in 0..g {
            let _ = writeln!(t, "ps[{}u + tid] = s_{h};", h * KEYS);
        }
        let _ = write!(
            t,
            "workgroupBarrier();
if tid < {n}u {{
    let at = tid / 16u * {KEYS}u + tid % 16u;
    var m = ps[at];
    for (var i = 1u; i < {}u; i += 1u) {{ m = max(m, ps[at + 16u * i]); }}
    red[tid] = m;
}}
workgroupBarrier();
if tid < {g}u {{
    var m = red[16u * tid];
    for (var i = 1u; i < 16u; i += 1u) {{ m = max(m, red[16u * tid + i]); }}
    top[tid] = m;
}}
workgroupBarrier();
",
            KEYS / 16,
            n = 16 * g
        );
        for h in 0..g {
            let _ = write!(
                t,
                "let now_{h} = max(most_{h}, top[{h}u]);
let old_{h} = exp(most_{h} - now_{h});
most_{h} = now_{h};
weight_{h} *= old_{h};
ps[{}u + tid] = select(0.0, exp(s_{h} - now_{h}), key < end);
",
                h * KEYS
            );
            for i in 0..quads {
                let _ = writeln!(t, "acc_{h}_{i} *= old_{h};");
            }
        }
        let _ = write!(
            t,
            "workgroupBarrier();
if key_side < {side}u {{
let count = min({KEYS}u, end - tile);
for (var j0 = key_side; j0 < count; j0 += {}u) {{
",
            side * AHEAD
        );
        // Rows behind the last are read as the last, and count nothing.
        for n in 0..AHEAD {
            let _ = writeln!(t, "let j_{n} = min(j0 + {}u, count - 1u);", n * side);
            let row = format!("((base + tile + j_{n}) * {}u + kv) * {dv}u", self.kv_heads);
            let _ = writeln!(t, "let c{n} = {};", self.load(&v, &row, "lane"));
        }
        for n in 0..AHEAD {
            let _ = writeln!(t, "{{\nlet c = c{n};\nlet counts = j0 + {}u < count;", n * side);
            t.push_str(self.elements_of(&v));
            for h in 0..g {
                let _ = writeln!(
                    t,
                    "let p_{h} = select(0.0, ps[{}u + j_{n}], counts);\nweight_{h} += p_{h};",
                    h * KEYS
                );
                for i in 0..quads {
                    let _ = writeln!(t, "acc_{h}_{i} += p_{h} * e{i};");
                }
            }
            t.push_str("}\n");
        }
        t.push_str("}\n}\n}\n");
        // The sums of the keys that went side by side, of as many heads at once as workgroup memory
        // holds: each vector of a result by one invocation.
        t.push_str("workgroupBarrier();\n");
        for h in 0..g {
            let _ = writeln!(t, "ps[{}u + tid] = weight_{h};", h * KEYS);
            let _ = writeln!(t, "if tid == {h}u {{ top[{h}u] = most_{h}; }}");
        }
        let each = width.min(4);
        let out = &out.name;
        for first in (0..g).step_by(at_once) {
            let heads = at_once.min(g - first);
            if first > 0 {
                t.push_str("workgroupBarrier();\n");
            }
            for h in 0..heads {
                for i in 0..quads {
                    let (at, own) = ((h * quads + i) * KEYS, first + h);
                    let _ = writeln!(t, "sums[{at}u + tid] = acc_{own}_{i};");
                }
            }
            let _ = write!(
                t,
                "workgroupBarrier();
for (var i = tid; i < {all}u; i += {KEYS}u) {{
    let own = i / {per_head}u;
    let h = {first}u + own;
    let quad = i / {lanes}u % {quads}u;
    let l = i % {lanes}u;
    var weight = 0.0;
    var sum = {vector}();
    for (var j = 0u; j < {side}u; j += 1u) {{
        weight += ps[h * {KEYS}u + j * {lanes}u + l];
        sum += sums[(own * {quads}u + quad) * {KEYS}u + j * {lanes}u + l];
    }}
    let row = token * {all_heads}u + head0 + h;
",
                all = heads * lanes * quads,
                per_head = lanes * quads,
                all_heads = self.heads,
            );
            let (base, scale) = if parts == 1 {
                (format!("row * {dv}u"), " / weight")
            } else {
                let stride = dv + 2;
                let _ = write!(
                    t,
                    "    let start = (row * {parts}u + id.y) * {stride}u;
    if l == 0u && quad == 0u {{
        {out}[start + {dv}u] = top[h];
        {out}[start + {}u] = weight;
    }}
",
                    dv + 1,
                );
                ("start".to_owned(), "")
            };
            let _ = writeln!(t, "    let to = {base} + l * {width}u + quad * {each}u;");
            for e in 0..each {
                let part = if width == 1 { String::new() } else { format!("[{e}]") };
                let _ = writeln!(t, "    {out}[to + {e}u] = sum{part}{scale};");
            }
            t.push_str("}\n");
        }
        t.push_str("}\n");
        source.push(&t);
        source.launch([
            Groups::of(self.heads / g, 1),
            Groups::of(parts, 1),
            Groups::of(self.tokens.clone(), 1),
        ])
    }

    /// Adds the products of the key row at element `row` with the queries of `g` heads. Several
    /// loads are under way at a time: their latency is what a short context costs.
    fn scores(&self, k: &Var, row: &str, g: usize) -> String {
        let (width, d) = (self.width(self.d), self.d);
        let quads = width.div_ceil(4);
        let steps = d / width;
        let ahead = (1..=AHEAD).rev().find(|n| steps.is_multiple_of(*n)).unwrap_or(1);
        let mut t = format!("for (var i0 = 0u; i0 < {steps}u; i0 += {ahead}u) {{\n");
        for n in 0..ahead {
            let _ = writeln!(t, "let c{n} = {};", self.load(k, row, &format!("(i0 + {n}u)")));
        }
        for n in 0..ahead {
            let _ = writeln!(t, "{{\nlet i = i0 + {n}u;\nlet c = c{n};");
            t.push_str(self.elements_of(k));
            for h in 0..g {
                for q in 0..quads {
                    let at = format!("qs[{}u + i * {quads}u + {q}u]", h * d / width.min(4));
                    let _ = if width == 1 {
                        writeln!(t, "s_{h} += {at} * e0;")
                    } else {
                        writeln!(t, "s_{h} += dot({at}, e{q});")
                    };
                }
            }
            t.push_str("}\n");
        }
        t.push_str("}\n");
        t
    }

    /// What is read at once, number `i` of the row at element `row`, as it lies in the cache.
    fn load(&self, cache: &Var, row: &str, i: &str) -> String {
        let name = &cache.name;
        match cache.elements {
            Elements::U32x4 => format!("{name}[({row}) / 8u + {i}]"),
            Elements::U32 => {
                format!("({name}[({row} + {i}) / 2u] >> (16u * (({row} + {i}) % 2u)))")
            }
            Elements::F32x4 => format!("{name}[({row}) / 4u + {i}]"),
            _ => format!("{name}[{row} + {i}]"),
        }
    }

    /// `e0`, `e1`: the elements of what was read as `c`.
    fn elements_of(&self, cache: &Var) -> &'static str {
        match cache.elements {
            Elements::U32x4 => {
                "let e0 = vec4(unpack2x16float(c.x), unpack2x16float(c.y));
let e1 = vec4(unpack2x16float(c.z), unpack2x16float(c.w));
"
            }
            Elements::U32 => "let e0 = unpack2x16float(c).x;\n",
            _ => "let e0 = c;\n",
        }
    }

    /// `e0`, `e1`: the elements that are read at once, number `i` of the row at element `row`.
    pub(super) fn read(&self, cache: &Var, row: &str, i: &str) -> String {
        let name = &cache.name;
        match cache.elements {
            Elements::U32x4 => format!(
                "let c = {name}[{row} / 8u + {i}];
let e0 = vec4(unpack2x16float(c.x), unpack2x16float(c.y));
let e1 = vec4(unpack2x16float(c.z), unpack2x16float(c.w));
"
            ),
            Elements::U32 => format!(
                "let at = {row} + {i};
let e0 = unpack2x16float({name}[at / 2u] >> (16u * (at % 2u))).x;
"
            ),
            Elements::F32x4 => format!("let e0 = {name}[{row} / 4u + {i}];\n"),
            _ => format!("let e0 = {name}[{row} + {i}];\n"),
        }
    }

    fn combine(&self, site: &Site, lonely: bool) -> Launch {
        let (parts, dv) = (self.parts(), self.dv);
        let stride = dv + 2;
        let mut source = Source::new("attention_combine");
        let bytes = self.scratch_bytes(site.adapter);
        let partial = source.scratch(0, bytes, "part_sums", Elements::F32).name;
        let out = source.result(0, "out0", Elements::F32).name;
        let mut leave = String::new();
        if lonely {
            let past = source.bind(site.operands[3], "past_tokens", Elements::I32);
            self.places(site, &mut source, &past);
            let tokens = dim_text(&self.tokens, site.symbols);
            leave = format!("if !lonely(id.y, {tokens}) {{ return; }}\n");
        }
        // An invocation weighs a part: there are at most 64.
        source.push(&format!(
            "var<workgroup> shares: array<f32, 64>;
var<workgroup> sums: array<f32, 64>;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
{leave}let row = id.y * {heads}u + id.x;
let start = row * {parts}u * {stride}u;
var top = f32({LOWEST});
var weight = 0.0;
if tid < {parts}u {{
    top = {partial}[start + tid * {stride}u + {dv}u];
    weight = {partial}[start + tid * {stride}u + {dv}u + 1u];
}}
shares[tid] = top;
workgroupBarrier();
var most = top;
for (var i = 0u; i < {parts}u; i += 1u) {{ most = max(most, shares[i]); }}
workgroupBarrier();
let share = exp(top - most);
shares[tid] = select(0.0, share, tid < {parts}u);
sums[tid] = weight * share;
workgroupBarrier();
var total = 0.0;
for (var i = 0u; i < {parts}u; i += 1u) {{ total += sums[i]; }}
for (var j = tid; j < {dv}u; j += 64u) {{
    var sum = 0.0;
    for (var i0 = 0u; i0 < {parts}u; i0 += {AHEAD}u) {{
{loads}    }}
    {out}[row * {dv}u + j] = sum / total;
}}
}}",
            heads = self.heads,
            loads = combine_loads(&partial, parts, stride),
        ));
        source.launch([
            Groups::of(self.heads, 1),
            Groups::of(self.tokens.clone(), 1),
            Groups::one(),
        ])
    }
}

/// Statements that add some parts to `sum`, their loads before the first is used.
fn combine_loads(partial: &str, parts: usize, stride: usize) -> String {
    let last = parts - 1;
    let mut t = String::new();
    for n in 0..AHEAD {
        let _ = writeln!(
            t,
            "        let x{n} = {partial}[start + min(i0 + {n}u, {last}u) * {stride}u + j];"
        );
    }
    for n in 0..AHEAD {
        let _ =
            writeln!(t, "        if i0 + {n}u < {parts}u {{ sum += x{n} * shares[i0 + {n}u]; }}");
    }
    t
}
