//! Products of plain numbers for many tokens in f32: tiles of the activations and of the weights
//! go through workgroup memory, each invocation sums eight by eight results in registers.
//!
//! The weights are `[rows, k]` of f32, f16 or bf16, or `[k, rows]` of f32. Steps along k are 16
//! long; numbers beyond k count zero. While a step is multiplied the numbers of the next are on
//! their way.

use std::fmt::Write as _;

use aether_ir::DType;

use super::Site;
use super::matvec::plain_values;
use super::prepare::Area;
use super::product::{Epilogue, Product};
use super::text::{Elements, Source, dim_text};
use crate::adapter::Adapter;
use crate::kernel::{Groups, Launch};

/// Tokens and rows of a tile.
const TILE: usize = 128;
/// Numbers along k in a step.
const STEP: usize = 16;
const INVOCATIONS: usize = 256;

/// Whether the adapter and the sizes allow it. `transposed`: the weights are `[rows, k]`.
pub fn fits(product: &Product, adapter: &Adapter, transposed: bool) -> bool {
    let plain = |w: &super::product::Weight| match w.dtype {
        DType::F32 => transposed || w.rows.is_multiple_of(4),
        DType::F16 | DType::Bf16 => transposed && product.k.is_multiple_of(8),
        _ => false,
    };
    adapter.workgroup_invocations as usize >= INVOCATIONS
        && adapter.workgroup_bytes as usize >= 2 * TILE * STEP * 4
        && product.k.is_multiple_of(4)
        && !product.gated
        && product.weights.iter().all(plain)
}

/// The product with weight `i`; `area` holds the activations after a norm.
pub fn launch(
    product: &Product,
    site: &Site,
    area: Option<&Area>,
    i: usize,
    transposed: bool,
) -> Launch {
    let (k, weight) = (product.k, product.weights[i]);
    let n = weight.rows;
    let mut source = Source::new("matmul_tiled");
    let x = match area {
        Some(area) => area.declare(&mut source).0,
        None => source.bind(site.operands[0], "x", Elements::F32x4),
    };
    let w = source.bind(site.operands[1 + i], &format!("w{i}"), Elements::U32x4).name;
    let epilogue = Epilogue::declare(product, site, &mut source);
    let tokens = dim_text(&product.tokens, site.symbols);
    // Numbers in 16 bytes of the weights.
    let width = 16 / weight.dtype.block_bytes();
    let x_loads = TILE * STEP / 4 / INVOCATIONS;
    let w_loads = TILE * STEP / width / INVOCATIONS;
    let (x_across, w_across) = (STEP / 4, STEP / width);
    let mut t = format!(
        "var<workgroup> xt: array<vec4<f32>, {size}>;
var<workgroup> wt: array<vec4<f32>, {size}>;
@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
let token0 = id.y * {TILE}u;
let row0 = id.x * {TILE}u;
let tx = tid % 16u;
let ty = tid / 16u;
",
        size = TILE * STEP / 4
    );
    for j in 0..x_loads {
        let _ = write!(
            t,
            "let xe{j} = tid + {}u;
let xq{j} = xe{j} % {x_across}u;
let xr{j} = min(token0 + xe{j} / {x_across}u, {tokens} - 1u) * {}u;
var xv{j}: vec4<f32>;
",
            j * INVOCATIONS,
            k / 4
        );
    }
    for j in 0..w_loads {
        let _ = writeln!(t, "let we{j} = tid + {}u;", j * INVOCATIONS);
        if transposed {
            let _ = write!(
                t,
                "let wq{j} = we{j} % {w_across}u;
let wr{j} = min(row0 + we{j} / {w_across}u, {}u) * {}u;
",
                n - 1,
                k / width
            );
        } else {
            let _ = write!(
                t,
                "let wk{j} = we{j} / {}u;
let wn{j} = min(row0 / 4u + we{j} % {}u, {}u);
",
                TILE / 4,
                TILE / 4,
                n / 4 - 1
            );
        }
        let _ = writeln!(t, "var wv{j}: vec4<u32>;");
    }
    for a in 0..8 {
        let _ = writeln!(t, "var acc{a}_0 = vec4<f32>();\nvar acc{a}_1 = vec4<f32>();");
    }
    let whole = k.is_multiple_of(STEP);
    let load = |step: &str| {
        let mut t = String::new();
        for j in 0..x_loads {
            let at = format!("{step} * {x_across}u + xq{j}");
            let _ = match whole {
                true => writeln!(t, "xv{j} = {}[xr{j} + {at}];", x.name),
                false => writeln!(
                    t,
                    "xv{j} = select(vec4<f32>(), {}[xr{j} + min({at}, {last}u)], {at} <= {last}u);",
                    x.name,
                    last = k / 4 - 1
                ),
            };
        }
        for j in 0..w_loads {
            // Beyond k the activations are zero; the weights repeat the last.
            let _ = if transposed {
                let at = format!("min({step} * {w_across}u + wq{j}, {}u)", k / width - 1);
                writeln!(t, "wv{j} = {w}[wr{j} + {at}];")
            } else {
                let at = format!("min({step} * {STEP}u + wk{j}, {}u)", k - 1);
                writeln!(t, "wv{j} = {w}[{at} * {}u + wn{j}];", n / 4)
            };
        }
        t
    };
    t.push_str(&load("0u"));
    let steps = k.div_ceil(STEP);
    let _ = writeln!(t, "for (var step = 0u; step < {steps}u; step += 1u) {{\nworkgroupBarrier();");
    let scatter = |t: &mut String, memory: &str, e: &str, k0: &str, r: &str, across: usize| {
        for (c, part) in ["x", "y", "z", "w"].iter().enumerate() {
            let _ = writeln!(
                t,
                "{memory}[({k0} + {c}u) * {}u + {e} / {across}u / 4u][{e} / {across}u % 4u] = {r}.{part};",
                TILE / 4
            );
        }
    };
    for j in 0..x_loads {
        scatter(
            &mut t,
            "xt",
            &format!("xe{j}"),
            &format!("4u * xq{j}"),
            &format!("xv{j}"),
            x_across,
        );
    }
    for j in 0..w_loads {
        if transposed {
            let _ = writeln!(t, "let c_{j} = wv{j};");
            t.push_str(&plain_values(weight.dtype, &format!("_{j}")));
            for part in 0..width / 4 {
                scatter(
                    &mut t,
                    "wt",
                    &format!("we{j}"),
                    &format!("{width}u * wq{j} + {}u", 4 * part),
                    &format!("v{part}_{j}"),
                    w_across,
                );
            }
        } else {
            let _ = writeln!(t, "wt[we{j}] = bitcast<vec4<f32>>(wv{j});");
        }
    }
    let _ = write!(
        t,
        "workgroupBarrier();
if step + 1u < {steps}u {{
{}}}
for (var kk = 0u; kk < {STEP}u; kk += 1u) {{
let x0 = xt[kk * {q}u + ty];
let x1 = xt[kk * {q}u + ty + 16u];
let w0_ = wt[kk * {q}u + tx];
let w1_ = wt[kk * {q}u + tx + 16u];
",
        load("(step + 1u)"),
        q = TILE / 4
    );
    for a in 0..8 {
        let part = ["x", "y", "z", "w"][a % 4];
        let _ = writeln!(
            t,
            "acc{a}_0 += x{h}.{part} * w0_;\nacc{a}_1 += x{h}.{part} * w1_;",
            h = a / 4
        );
    }
    t.push_str("}\n}\n");
    for a in 0..8 {
        let _ = writeln!(
            t,
            "if token0 + ty * 4u + {at}u < {tokens} {{\nlet token = token0 + ty * 4u + {at}u;",
            at = a / 4 * 64 + a % 4
        );
        for half in 0..2 {
            for (c, part) in ["x", "y", "z", "w"].iter().enumerate() {
                let row = format!("(row0 + tx * 4u + {}u)", half * 64 + c);
                let value = format!("acc{a}_{half}.{part}");
                let store = epilogue.store(i, "token", &row, &[&value]);
                let _ = match n.is_multiple_of(TILE) {
                    true => write!(t, "{store}"),
                    false => writeln!(t, "if {row} < {n}u {{ {} }}", store.trim_end()),
                };
            }
        }
        t.push_str("}\n");
    }
    t.push_str("}\n");
    source.push(&t);
    source.launch([
        Groups::of(n, TILE as u32),
        Groups::of(product.tokens.clone(), TILE as u32),
        Groups::one(),
    ])
}
