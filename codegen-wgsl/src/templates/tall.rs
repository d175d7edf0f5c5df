//! Products for many tokens without cooperative matrices: an invocation takes one row of the
//! weights and several tokens, so that a block is unpacked once for all of them. All invocations
//! of a subgroup read the same activations.

use std::fmt::Write as _;

use aether_ir::DType;

use super::Site;
use super::blocks::{Codec, DOT16};
use super::prepare::{self, Area, Form};
use super::product::{Epilogue, Product};
use super::text::{Elements, Source, dim_text};
use super::tiled;
use crate::kernel::{Groups, Launch};

const ROWS: u32 = 64;

/// The form that the kernel reads, when it does not read x itself.
pub fn area(product: &Product) -> Option<Area> {
    let quantized = product.weights[0].dtype.is_quantized();
    match (quantized, product.norm) {
        (true, _) => Some(Area::new(Form::Codes, product)),
        (false, Some(_)) => Some(Area::new(Form::Floats, product)),
        (false, None) => None,
    }
}

/// The dispatches.
pub fn launches(product: &Product, site: &Site) -> Vec<Launch> {
    let area = area(product);
    let mut all: Vec<Launch> =
        area.iter().map(|area| prepare::launch(product, site, area)).collect();
    if product.gated {
        all.push(multiply(product, site, area.as_ref(), &[0, 1]));
    } else {
        // Software drivers have narrow subgroups; going through workgroup memory costs them more
        // than it saves.
        let wide = site.adapter.subgroup.is_some_and(|n| n >= 16);
        let tiled = wide && tiled::fits(product, site.adapter, true);
        for i in 0..product.weights.len() {
            all.push(match tiled {
                true => tiled::launch(product, site, area.as_ref(), i, true),
                false => multiply(product, site, area.as_ref(), &[i]),
            });
        }
    }
    all
}

/// The product with one weight, or with a gated pair.
fn multiply(product: &Product, site: &Site, area: Option<&Area>, weights: &[usize]) -> Launch {
    let tokens = if weights.len() == 2 { 4 } else { 8 };
    let k = product.k;
    let mut source = Source::new("matmul");
    let (x, factors) = match area {
        Some(area) => area.declare(&mut source),
        None => (source.bind(site.operands[0], "x", Elements::F32x4), None),
    };
    let names: Vec<String> = weights
        .iter()
        .map(|w| source.bind(site.operands[1 + w], &format!("w{w}"), Elements::U32x4).name)
        .collect();
    let epilogue = Epilogue::declare(product, site, &mut source);
    let count = dim_text(&product.tokens, site.symbols);
    let n = product.weights[weights[0]].rows;
    let mut t = format!(
        "@compute @workgroup_size({ROWS})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
let row = id.x * {ROWS}u + tid;
let bound = min(row, {n}u - 1u);
let token0 = id.y * {tokens}u;
"
    );
    for i in 0..weights.len() {
        for token in 0..tokens {
            let _ = writeln!(t, "var acc_{i}_{token} = 0.0;");
        }
    }
    for token in 0..tokens {
        let _ = writeln!(t, "let t{token} = min(token0 + {token}u, {count} - 1u);");
    }
    match &factors {
        Some(factors) => {
            source.push(DOT16);
            let codecs: Vec<Codec> =
                weights.iter().filter_map(|w| Codec::new(product.weights[*w].dtype, k)).collect();
            t.push_str(&blocks(&codecs, &names, k / 32, tokens, &x.name, &factors.name));
        }
        None => {
            let dtypes: Vec<DType> = weights.iter().map(|w| product.weights[*w].dtype).collect();
            t.push_str(&plain(&dtypes, &names, k, tokens, &x.name));
        }
    }
    let _ = writeln!(t, "if row >= {n}u {{ return; }}");
    for token in 0..tokens {
        let values: Vec<String> = (0..weights.len()).map(|i| format!("acc_{i}_{token}")).collect();
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let _ = writeln!(
            t,
            "if token0 + {token}u < {count} {{ {} }}",
            epilogue.store(weights[0], &format!("(token0 + {token}u)"), "row", &values).trim_end()
        );
    }
    t.push_str("}\n");
    source.push(&t);
    source.launch([Groups::of(n, ROWS), Groups::of(product.tokens.clone(), tokens), Groups::one()])
}

fn blocks(
    codecs: &[Codec],
    names: &[String],
    blocks: usize,
    tokens: u32,
    x: &str,
    factors: &str,
) -> String {
    let mut t = String::new();
    for (i, codec) in codecs.iter().enumerate() {
        let _ = writeln!(t, "let r{i} = bound * {}u;", codec.row);
    }
    let _ = writeln!(t, "for (var b = 0u; b < {blocks}u; b += 1u) {{");
    for (i, codec) in codecs.iter().enumerate() {
        let s = format!("_{i}");
        for (name, _, e) in codec.loads(&names[i], &format!("r{i}"), "b") {
            let _ = writeln!(t, "let {name}{s} = {e};");
        }
        t.push_str(&codec.codes(&s));
        t.push_str(&codec.scale_text("b", &s));
    }
    for token in 0..tokens {
        let _ = write!(
            t,
            "let x0_{token} = {x}[t{token} * {}u + b];
let x1_{token} = {x}[t{token} * {}u + {blocks}u + b];
let f_{token} = bitcast<f32>({factors}[2u * (t{token} * {blocks}u + b)]);
let packed_{token} = bitcast<i32>({factors}[2u * (t{token} * {blocks}u + b) + 1u]);
let s0_{token} = (packed_{token} << 16u) >> 16u;
let s1_{token} = packed_{token} >> 16u;
",
            2 * blocks,
            2 * blocks
        );
        for (i, codec) in codecs.iter().enumerate() {
            let dot = codec.dot(
                &format!("_{i}"),
                [&format!("x0_{token}"), &format!("x1_{token}")],
                [&format!("s0_{token}"), &format!("s1_{token}")],
            );
            let _ = writeln!(t, "acc_{i}_{token} += f_{token} * {dot};");
        }
    }
    t.push_str("}\n");
    t
}

/// f32, f16 and bf16 by 16 bytes.
fn plain(dtypes: &[DType], names: &[String], k: usize, tokens: u32, x: &str) -> String {
    let mut t = String::new();
    let quads = 4 / dtypes[0].block_bytes();
    let vectors = k / 4 / quads;
    let _ = writeln!(t, "for (var b = 0u; b < {vectors}u; b += 1u) {{");
    for (i, (dtype, name)) in dtypes.iter().zip(names).enumerate() {
        let _ = writeln!(t, "let c_{i} = {name}[bound * {vectors}u + b];");
        t.push_str(&super::matvec::plain_values(*dtype, &format!("_{i}")));
    }
    for token in 0..tokens {
        for q in 0..quads {
            let _ =
                writeln!(t, "let x{q}_{token} = {x}[t{token} * {}u + b * {quads}u + {q}u];", k / 4);
            for i in 0..dtypes.len() {
                let _ = writeln!(t, "acc_{i}_{token} += dot(v{q}_{i}, x{q}_{token});");
            }
        }
    }
    t.push_str("}\n");
    t
}
