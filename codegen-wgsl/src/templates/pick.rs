//! The greatest of rows: `argmax` and `top_k` over the last axis, f32.
//!
//! The order is the interpreter's: NaN is greatest, 0 equals -0, the first of equal ones comes
//! first. Numbers are compared by a key of 32 bits that has this order. Both go in rounds that
//! leave fewer candidates each: `argmax`, and `top_k` of one, the greatest of a part, `top_k` of
//! more the first `k` of 1024 that a workgroup has sorted (bitonic: Batcher 1968).
//!
//! Operand x `[rows, n]`. Results: the index i32; or the values f32 and indices i32, `[rows, k]`.

use aether_ir::Dim;

use super::Site;
use super::text::{Elements, Source};
use crate::kernel::{Groups, Launch};

/// `k` greatest of each row; `argmax` when `k` is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    pub rows: Dim,
    pub most_rows: usize,
    pub n: usize,
    pub k: Option<usize>,
}

/// Numbers that a workgroup sorts.
const SORTED: usize = 1024;

/// Numbers of a part of `argmax`.
const PART: usize = 2048;

const INVOCATIONS: usize = 256;

const KEY: &str = "fn order(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    let size = bits & 0x7fffffffu;
    if size > 0x7f800000u { return 0xffffffffu; }
    if size == 0u { return 0x80000000u; }
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}
fn before(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}
";

impl Pick {
    /// Whether there is a kernel.
    pub fn is_supported(&self) -> bool {
        let few = self.k.is_none_or(|k| (1..=SORTED / 2).contains(&k) && k <= self.n);
        few && self.n > 0 && self.n <= i32::MAX as usize
    }

    /// Whether there is one greatest, for which nothing is sorted.
    fn is_one(&self) -> bool {
        self.k.is_none_or(|k| k == 1)
    }

    /// How many candidates of a row are left after each round; the last is 1 or `k`.
    fn rounds(&self) -> Vec<usize> {
        let (part, keep) = match self.k {
            Some(k) if !self.is_one() => (SORTED, k),
            _ => (PART, 1),
        };
        let mut rounds = Vec::new();
        let mut n = self.n;
        loop {
            let parts = n.div_ceil(part);
            n = parts * keep;
            rounds.push(n);
            if parts == 1 {
                return rounds;
            }
        }
    }

    /// Bytes of scratch that the launches use: indices of the candidates, of two rounds.
    pub fn scratch_bytes(&self) -> u64 {
        2 * self.half()
    }

    fn half(&self) -> u64 {
        ((self.rounds()[0] * self.most_rows * 4) as u64).next_multiple_of(256)
    }

    /// The dispatches, in order.
    pub fn launches(&self, site: &Site) -> Vec<Launch> {
        let rounds = self.rounds();
        let mut from = self.n;
        let mut all = Vec::new();
        for (i, n) in rounds.iter().enumerate() {
            all.push(self.round(site, i, from, *n, i + 1 == rounds.len()));
            from = *n;
        }
        all
    }

    fn round(&self, site: &Site, i: usize, from: usize, to: usize, last: bool) -> Launch {
        let mut source = Source::new(if self.k.is_some() { "top_k" } else { "argmax" });
        let n = self.n;
        let x = source.bind(site.operands[0], "x", Elements::F32).name;
        let half = self.half();
        let input = (i > 0).then(|| {
            let at = if i % 2 == 1 { 0 } else { half };
            source.scratch(at, half, "candidates", Elements::U32).name
        });
        let (values, indices) = match (last, self.k) {
            (true, None) => (None, source.result(0, "out0", Elements::I32).name),
            (true, Some(_)) => {
                let values = source.result(0, "out0", Elements::F32).name;
                (Some(values), source.result(1, "out1", Elements::I32).name)
            }
            (false, _) => {
                let at = if i.is_multiple_of(2) { 0 } else { half };
                (None, source.scratch(at, half, "kept", Elements::U32).name)
            }
        };
        // A candidate as key and index; places beyond the last come after all others. The indices
        // are those of this kernel's own rounds.
        let candidate = match &input {
            None => format!("vec2(order({x}[row * {n}u + i]), i)"),
            Some(input) => format!("candidate(row, {input}[row * {from}u + i])"),
        };
        source.push(KEY);
        source.push(&format!(
            "fn candidate(row: u32, i: u32) -> vec2<u32> {{
    if i >= {n}u {{ return vec2(0u, 0xffffffffu); }}
    return vec2(order({x}[row * {n}u + i]), i);
}}"
        ));
        let cast = if last { "bitcast<i32>(best.y)" } else { "best.y" };
        // The value of the place `at` of a result.
        let value = values.map_or(String::new(), |v| {
            format!("{v}[at] = {x}[row * {n}u + min(best.y, {n}u - 1u)];")
        });
        let body = match self.k.filter(|_| !self.is_one()) {
            None => format!(
                "var<workgroup> held: array<vec2<u32>, {INVOCATIONS}>;
@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
let row = id.y;
var best = vec2(0u, 0xffffffffu);
for (var j = tid; j < {PART}u; j += {INVOCATIONS}u) {{
    let i = id.x * {PART}u + j;
    if i < {from}u {{
        let c = {candidate};
        if before(c, best) {{ best = c; }}
    }}
}}
held[tid] = best;
workgroupBarrier();
for (var m = {}u; m > 0u; m = m / 2u) {{
    if tid < m && before(held[tid + m], held[tid]) {{ held[tid] = held[tid + m]; }}
    workgroupBarrier();
}}
best = held[0];
if tid == 0u {{
    let at = row * {to}u + id.x;
    {indices}[at] = {cast};
    {value}
}}
}}",
                INVOCATIONS / 2
            ),
            Some(k) => format!(
                "var<workgroup> held: array<vec2<u32>, {SORTED}>;
@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
let row = id.y;
for (var j = tid; j < {SORTED}u; j += {INVOCATIONS}u) {{
    let i = id.x * {SORTED}u + j;
    var c = vec2(0u, 0xffffffffu);
    if i < {from}u {{ c = {candidate}; }}
    held[j] = c;
}}
for (var size = 2u; size <= {SORTED}u; size = size * 2u) {{
    for (var step = size / 2u; step > 0u; step = step / 2u) {{
        workgroupBarrier();
        for (var j = tid; j < {}u; j += {INVOCATIONS}u) {{
            let a = 2u * step * (j / step) + j % step;
            let b = a + step;
            let forward = (a & size) == 0u;
            let va = held[a];
            let vb = held[b];
            if before(vb, va) == forward {{
                held[a] = vb;
                held[b] = va;
            }}
        }}
    }}
}}
workgroupBarrier();
for (var j = tid; j < {k}u; j += {INVOCATIONS}u) {{
    let best = held[j];
    let at = row * {to}u + id.x * {k}u + j;
    {indices}[at] = {cast};
    {value}
}}
}}",
                SORTED / 2
            ),
        };
        source.push(&body);
        let part = if self.is_one() { PART } else { SORTED };
        source.launch([
            Groups::of(from, part as u32),
            Groups::of(self.rows.clone(), 1),
            Groups::one(),
        ])
    }
}
