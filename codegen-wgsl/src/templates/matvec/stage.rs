//! Bringing the activations to workgroup memory.

use std::fmt::Write as _;

use super::Plan;
use crate::templates::prepare::quantize;
use crate::templates::text::Var;

/// `inv0`, …: one over the root mean square of each token's activations.
pub fn rms(plan: &Plan, x: &Var, eps: f32) -> String {
    let (k, wg) = (plan.product.k, plan.invocations());
    let mut t = String::new();
    for token in 0..plan.variant.tokens {
        let row = token_row(plan, token);
        let _ = writeln!(
            t,
            "var square{token} = 0.0;
for (var i = tid; i < {}u; i += {wg}u) {{
    let v = {};
    square{token} += dot(v, v);
}}",
            k / 4,
            x.quad(&format!("{row} * {}u + i", k / 4))
        );
        t.push_str(&rms_of(plan, token, eps));
    }
    t
}

/// `inv` of a token from every invocation's share of the sum of squares.
fn rms_of(plan: &Plan, token: u32, eps: f32) -> String {
    let (k, wg) = (plan.product.k, plan.invocations());
    let (share, parts) = match plan.subgroup {
        true => (
            format!(
                "square{token} = subgroupAdd(square{token});\nif lane == 0u {{ squares[sg] = square{token}; }}"
            ),
            plan.variant.subgroups,
        ),
        false => (format!("squares[tid] = square{token};"), wg),
    };
    format!(
        "{share}
workgroupBarrier();
square{token} = 0.0;
for (var i = 0u; i < {parts}u; i += 1u) {{ square{token} += squares[i]; }}
workgroupBarrier();
let inv{token} = inverseSqrt(square{token} / {k}.0 + f32({eps:e}));
"
    )
}

/// The row of x of a workgroup's token; the last one stands for those beyond.
fn token_row(plan: &Plan, token: u32) -> String {
    if plan.product.tokens.is(1) {
        return "0u".to_owned();
    }
    format!("min(token0 + {token}u, {} - 1u)", plan.tokens)
}

/// Copies a chunk of every token's activations to workgroup memory.
pub fn stage(plan: &Plan, x: &Var, norm: Option<&(f32, Var)>, chunk: &str) -> String {
    let mut t = String::new();
    for token in 0..plan.variant.tokens {
        let quad = |i: &str| {
            let v = x.quad(&format!("{} * {}u + {i}", token_row(plan, token), plan.product.k / 4));
            match norm {
                Some((_, w)) => format!("{v} * inv{token} * {}", w.quad(i)),
                None => v,
            }
        };
        t.push_str(&match (plan.is_quantized(), plan.by_eight()) {
            (true, true) => stage_by_eight(plan, token, chunk, &quad("quad")),
            (true, false) => stage_by_one(plan, token, chunk, &quad("(quad + i)")),
            (false, _) => {
                let (quads, size) = (plan.quads(), plan.chunk);
                let limit = limit(plan, chunk);
                format!(
                    "for (var i = tid; i < {quads}u * {limit}; i += {}u) {{
    let quad = {quads}u * ({chunk}) + i;
    staged[{}u + i % {quads}u * {size}u + i / {quads}u] = {};
}}
",
                    plan.invocations(),
                    token as usize * quads * size,
                    quad("quad")
                )
            }
        });
    }
    t
}

/// Blocks of the chunk that begins at a block.
pub fn limit(plan: &Plan, chunk: &str) -> String {
    match plan.blocks.is_multiple_of(plan.chunk) {
        true => format!("{}u", plan.chunk),
        false => format!("min({}u, {}u - {chunk})", plan.chunk, plan.blocks),
    }
}

/// Eight lanes quantise a block: the lane's four codes, the scale, the packed sums of the halves.
pub const QUANTIZED: &str = "fn quantized(v: vec4<f32>) -> vec3<u32> {
    let bits = bitcast<vec4<u32>>(v) & vec4(0x7fffffffu);
    var most = max(max(bits.x, bits.y), max(bits.z, bits.w));
    most = max(most, subgroupShuffleXor(most, 1u));
    most = max(most, subgroupShuffleXor(most, 2u));
    most = max(most, subgroupShuffleXor(most, 4u));
    let range = bitcast<f32>(most);
    let ok = most < 0x7f800000u;
    let word = pack4xI8(vec4<i32>(round(v * select(0.0, 127.0 / range, ok && range > 1e-30))));
    var sum = dot4I8Packed(word, 0x01010101u);
    sum += subgroupShuffleXor(sum, 1u);
    sum += subgroupShuffleXor(sum, 2u);
    let other = subgroupShuffleXor(sum, 4u);
    let scale = select(most | 0x7fc00000u, bitcast<u32>(range / 127.0), ok);
    return vec3(word, scale, (bitcast<u32>(sum) & 0xffffu) | (bitcast<u32>(other) << 16u));
}
";

/// Stores what `quantized` gives for vector `i` of a chunk.
fn keep(plan: &Plan, token: u32, i: &str, r: &str) -> String {
    let (size, at) = (plan.chunk, token as usize * plan.chunk);
    format!(
        "codes[{}u + ({i} / 4u % 2u) * {size}u + {i} / 8u][{i} % 4u] = {r}.x;
if {i} % 8u == 0u {{ scales[{at}u + {i} / 8u] = {r}.yz; }}
",
        2 * at
    )
}

/// Eight lanes take a block.
fn stage_by_eight(plan: &Plan, token: u32, chunk: &str, v: &str) -> String {
    let wg = plan.invocations();
    format!(
        "for (var base = 0u; base < 8u * {limit}; base += {wg}u) {{
    let i = min(base + tid, 8u * {limit} - 1u);
    let quad = 8u * ({chunk}) + i;
    let r = quantized({v});
    if base + tid < 8u * {limit} {{
{}    }}
}}
",
        keep(plan, token, "i", "r"),
        limit = limit(plan, chunk),
    )
}

/// As [`stage`] after [`rms`], for rows that the workgroup's registers hold: every number is
/// read once, and all reads are on their way at the same time.
pub fn held(plan: &Plan, x: &Var, norm: Option<&(f32, Var)>) -> String {
    let (k, wg) = (plan.product.k, plan.invocations());
    let quads = (k / 4) as u32;
    let parts = quads.div_ceil(wg);
    let whole = |j: u32| (j + 1) * wg <= quads;
    let mut t = String::new();
    for j in 0..parts {
        let i = format!("tid + {}u", j * wg);
        let i = if whole(j) { i } else { format!("min({i}, {}u)", quads - 1) };
        let _ = writeln!(t, "let i_{j} = {i};");
        for token in 0..plan.variant.tokens {
            let at = format!("{} * {quads}u + i_{j}", token_row(plan, token));
            let _ = writeln!(t, "var h{token}_{j} = {};", x.quad(&at));
        }
        if let Some((_, w)) = norm {
            let _ = writeln!(t, "let n_{j} = {};", w.quad(&format!("i_{j}")));
        }
    }
    for token in 0..plan.variant.tokens {
        if let Some((eps, _)) = norm {
            let _ = writeln!(t, "var square{token} = 0.0;");
            for j in 0..parts {
                let square = format!("dot(h{token}_{j}, h{token}_{j})");
                let square = match whole(j) {
                    true => square,
                    false => format!("select(0.0, {square}, tid + {}u < {quads}u)", j * wg),
                };
                let _ = writeln!(t, "square{token} += {square};");
            }
            t.push_str(&rms_of(plan, token, *eps));
            for j in 0..parts {
                let _ = writeln!(t, "h{token}_{j} = h{token}_{j} * inv{token} * n_{j};");
            }
        }
        for j in 0..parts {
            let _ = writeln!(t, "let r{token}_{j} = quantized(h{token}_{j});");
            let keep = keep(plan, token, &format!("i_{j}"), &format!("r{token}_{j}"));
            t.push_str(&match whole(j) {
                true => keep,
                false => format!("if tid + {}u < {quads}u {{\n{keep}}}\n", j * wg),
            });
        }
    }
    t
}

/// One lane quantises a block.
fn stage_by_one(plan: &Plan, token: u32, chunk: &str, v: &str) -> String {
    let (wg, size) = (plan.invocations(), plan.chunk);
    let at = token as usize * size;
    format!(
        "for (var block = tid; block < {}; block += {wg}u) {{
    let quad = 8u * ({chunk} + block);
{}}}
",
        limit(plan, chunk),
        quantize(
            v,
            &|i, word| format!(
                "codes[{}u + ({i} / 4u) * {size}u + block][{i} % 4u] = {word};",
                2 * at
            ),
            &|scale, sums| format!("scales[{at}u + block] = vec2({scale}, {sums});"),
        )
    )
}
