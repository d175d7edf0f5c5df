//! The products of a workgroup's rows, and their sums over lanes.

use std::fmt::Write as _;

use super::Plan;
use super::stage::limit;
use crate::templates::product::Epilogue;

/// The rows of one weight, or of a gated pair.
pub fn rows(
    plan: &Plan,
    weights: &[usize],
    first_group: u32,
    prologue: &str,
    staging: &dyn Fn(&str) -> String,
    epilogue: &Epilogue,
) -> String {
    let v = &plan.variant;
    let n = plan.product.weights[weights[0]].rows;
    let of_pass = v.subgroups * v.rows;
    let mut t = String::new();
    let passes = v.passes > 1;
    if passes {
        let _ = writeln!(t, "for (var turn = 0u; turn < {}u; turn += 1u) {{", v.passes);
        let of_group = of_pass * v.passes;
        let _ = writeln!(
            t,
            "let row = (group - {first_group}u) * {of_group}u + turn * {of_pass}u + sg * {}u;",
            v.rows
        );
    } else {
        let _ = writeln!(t, "let row = (group - {first_group}u) * {of_pass}u + sg * {}u;", v.rows);
    }
    // Slot i reads row `row + i / weights` of weight `weights[i % weights]`.
    let slots: Vec<(usize, usize)> =
        (0..v.rows as usize).flat_map(|r| weights.iter().map(move |w| (r, *w))).collect();
    for (i, (r, w)) in slots.iter().enumerate() {
        let vectors = plan.rows[*w].vectors(plan.product.k);
        let _ = writeln!(t, "let r{i} = min(row + {r}u, {n}u - 1u) * {vectors}u;");
        for token in 0..v.tokens {
            let _ = writeln!(t, "var acc_{i}_{token} = 0.0;");
        }
    }
    let one_chunk = plan.chunks() == 1;
    if one_chunk {
        t.push_str(&blocks(plan, &slots, "0u", prologue));
    } else {
        let _ = writeln!(
            t,
            "for (var chunk = 0u; chunk < {}u; chunk += {}u) {{\nworkgroupBarrier();",
            plan.blocks, plan.chunk
        );
        t.push_str(&staging("chunk"));
        t.push_str("workgroupBarrier();\n");
        t.push_str(&blocks(plan, &slots, "chunk", ""));
        t.push_str("}\n");
    }
    t.push_str(&finish(plan, &slots, weights, n, epilogue));
    if passes {
        t.push_str("}\n");
    }
    t
}

/// The products of a lane's blocks of a chunk.
fn blocks(plan: &Plan, slots: &[(usize, usize)], chunk: &str, prologue: &str) -> String {
    let v = &plan.variant;
    let mut t = String::new();
    let stride = plan.lanes * v.steps;
    // Whether every lane's every step has a block.
    let even = plan.chunk.is_multiple_of(stride as usize) && plan.blocks.is_multiple_of(plan.chunk);
    let limit = limit(plan, chunk);
    let place = |step: u32, b: &str| {
        let b = format!("{b} + {}u", step * plan.lanes);
        if even { format!("{chunk} + {b}") } else { format!("{chunk} + min({b}, {limit} - 1u)") }
    };
    // Loads of all slots and steps at `b`, each line made by `line(name, type, expression)`.
    let loads = |b: &str, line: &dyn Fn(&str, &str, &str) -> String| {
        let mut t = String::new();
        for step in 0..v.steps {
            let _ = writeln!(t, "let l{b}_{step} = {};", place(step, b));
            for (i, (_, w)) in slots.iter().enumerate() {
                let (w, row) = (&plan.weights[*w].name, &plan.rows[*w]);
                for (name, ty, e) in row.loads(w, &format!("r{i}"), &format!("l{b}_{step}")) {
                    t.push_str(&line(&format!("{name}_{i}_{step}"), ty, &e));
                }
            }
        }
        t
    };
    if v.prefetch {
        t.push_str("let b0 = lane;\n");
        t.push_str(&loads("b0", &|name, ty, e| format!("var next_{name}: {ty} = {e};\n")));
    }
    if !prologue.is_empty() {
        t.push_str(prologue);
        t.push_str("workgroupBarrier();\n");
    }
    let _ = writeln!(t, "for (var b = lane; b < {limit}; b += {stride}u) {{");
    if v.prefetch {
        t.push_str(&loads("b", &|name, _, _| format!("let {name} = next_{name};\n")));
        let _ = writeln!(t, "let bn = b + {stride}u;\nif bn < {limit} {{");
        t.push_str(&loads("bn", &|name, _, e| format!("next_{name} = {e};\n")));
        t.push_str("}\n");
    } else {
        t.push_str(&loads("b", &|name, _, e| format!("let {name} = {e};\n")));
    }
    for step in 0..v.steps {
        let block = format!("lb_{step}");
        for (i, (_, w)) in slots.iter().enumerate() {
            t.push_str(&plan.rows[*w].prepare(&block, &format!("_{i}_{step}")));
        }
        let _ = writeln!(t, "let p_{step} = {block} - {chunk};");
        for token in 0..v.tokens {
            let x = format!("_x{token}_{step}");
            let valid = format!("b + {}u < {limit}", step * plan.lanes);
            t.push_str(&staged(plan, token, &format!("p_{step}"), &x, (!even).then_some(&valid)));
            for (i, (_, w)) in slots.iter().enumerate() {
                let product = plan.rows[*w].product(&format!("_{i}_{step}"), &x);
                let _ = writeln!(t, "acc_{i}_{token} += {product};");
            }
        }
    }
    t.push_str("}\n");
    t
}

/// Reads a block of activations from workgroup memory; its factor `f` is 0 unless `valid`.
fn staged(plan: &Plan, token: u32, p: &str, x: &str, valid: Option<&String>) -> String {
    let size = plan.chunk;
    let at = token as usize * size;
    let factor = |f: &str| match valid {
        Some(valid) => format!("select(0.0, {f}, {valid})"),
        None => f.to_owned(),
    };
    if plan.is_quantized() {
        return format!(
            "let x0{x} = codes[{}u + {p}];
let x1{x} = codes[{}u + {p}];
let xs{x} = scales[{at}u + {p}];
let f{x} = {};
let s0{x} = (bitcast<i32>(xs{x}.y) << 16u) >> 16u;
let s1{x} = bitcast<i32>(xs{x}.y) >> 16u;
",
            2 * at,
            2 * at + size,
            factor(&format!("bitcast<f32>(xs{x}.x)")),
        );
    }
    let mut t = format!("let f{x} = {};\n", factor("1.0"));
    let quads = plan.quads();
    for q in 0..quads {
        let _ = writeln!(t, "let x{q}{x} = staged[{}u + {p}];", at * quads + q * size);
    }
    t
}

/// Sums over the lanes and stores.
fn finish(
    plan: &Plan,
    slots: &[(usize, usize)],
    weights: &[usize],
    n: usize,
    epilogue: &Epilogue,
) -> String {
    let v = &plan.variant;
    let mut t = String::new();
    let sums = slots.len() as u32 * v.tokens;
    if plan.subgroup {
        for i in 0..slots.len() {
            for token in 0..v.tokens {
                let _ = writeln!(t, "let sum_{i}_{token} = subgroupAdd(acc_{i}_{token});");
            }
        }
    } else {
        if v.passes > 1 {
            t.push_str("workgroupBarrier();\n");
        }
        for i in 0..slots.len() as u32 {
            for token in 0..v.tokens {
                let at = i * v.tokens + token;
                let _ = writeln!(
                    t,
                    "lane_sums[(sg * {sums}u + {at}u) * 32u + lane] = acc_{i}_{token};"
                );
            }
        }
        t.push_str("workgroupBarrier();\n");
    }
    // One lane for each stored number.
    for r in 0..v.rows as usize {
        for token in 0..v.tokens {
            let lane = (r as u32 * v.tokens + token) % plan.lanes;
            let mut guard = format!("lane == {lane}u");
            if !n.is_multiple_of((v.subgroups * v.rows * v.passes) as usize) {
                let _ = write!(guard, " && row + {r}u < {n}u");
            }
            if !plan.product.tokens.is(1) {
                let _ = write!(guard, " && token0 + {token}u < {}", plan.tokens);
            }
            let _ = writeln!(t, "if {guard} {{");
            let mut values = Vec::new();
            for j in 0..weights.len() {
                let i = r * weights.len() + j;
                if !plan.subgroup {
                    let at = i as u32 * v.tokens + token;
                    let _ = writeln!(
                        t,
                        "var sum_{i}_{token} = 0.0;
for (var i = 0u; i < 32u; i += 1u) {{ sum_{i}_{token} += lane_sums[(sg * {sums}u + {at}u) * 32u + i]; }}"
                    );
                }
                values.push(format!("sum_{i}_{token}"));
            }
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let token = format!("(token0 + {token}u)");
            t.push_str(&epilogue.store(weights[0], &token, &format!("(row + {r}u)"), &values));
            t.push_str("}\n");
        }
    }
    t
}
