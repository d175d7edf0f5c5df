//! Products for many tokens with cooperative matrices of 16x16 f16 and f32 sums.
//!
//! A workgroup makes a tile of tokens by rows of the weights. In steps along k its invocations
//! copy the tile's activations ([`prepare`]) and the unpacked weights to workgroup memory, while
//! the numbers of the next step are on their way; each subgroup multiplies its part of the tile.
//! The sums go through workgroup memory to the epilogue, which undoes the rows' powers of two.
//!
//! Few tokens make few tiles, too few to keep the device busy while each waits for memory. There
//! several workgroups share a tile, each with a part of k, and a dispatch adds up their sums.
//!
//! Rows in workgroup memory are padded by 16 bytes so that neighbouring rows lie in other banks.
//! Codes become f16 by their bits: `0x6400 | code` is `1024 + code`. That takes elements 0 and 2,
//! then 1 and 3 of each word, which is the order in which the activations are prepared.
//!
//! Weights are rounded to f16: those above 65504 become infinite. f32 weights are left to `tall`.

mod unpack;

use std::fmt::Write as _;

use aether_ir::{DType, Layout};

use self::unpack::Row;
use super::Site;
use super::blocks::Codec;
use super::prepare::{self, Area, Form};
use super::product::{Epilogue, Product};
use super::text::{Elements, Source, Var, dim_text};
use crate::adapter::Adapter;
use crate::kernel::{Groups, Launch};

/// How a product is cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Tokens and rows of a tile, multiples of 16 times the subgroups along them.
    pub tokens: u32,
    pub rows: u32,
    /// Blocks of 32 elements along k in a step.
    pub blocks: u32,
    /// Subgroups along the tokens and along the rows.
    pub across: (u32, u32),
    /// Workgroup memory is declared in vectors of four, which are stored whole.
    pub wide: bool,
    /// Workgroups that share a tile, each with a part of k.
    pub splits: u32,
}

impl Tile {
    /// A good tile, or `None` when the adapter or the weights do not allow any.
    pub fn choose(product: &Product, adapter: &Adapter) -> Option<Tile> {
        let fits = |w: &super::product::Weight| {
            w.layout == Layout::Planes || matches!(w.dtype, DType::F16 | DType::Bf16)
        };
        let allowed = adapter.cooperative_matrix
            && adapter.f16
            && adapter.subgroup == Some(32)
            && adapter.workgroup_bytes >= 40 << 10
            && product.k.is_multiple_of(32)
            && product.weights.iter().all(fits);
        let rows: usize = product.weights.iter().map(|w| w.rows).sum();
        let (tokens, across) = match product.most_tokens {
            ..=16 => (16, (1, 4)),
            17..=32 => (32, (1, 4)),
            33..=64 => (64, (1, 4)),
            // Fewer tiles than multiprocessors leave some idle.
            n if n.div_ceil(128) * rows.div_ceil(128) < 100 => (64, (2, 2)),
            _ => (128, (2, 2)),
        };
        let tile = Tile { tokens, rows: 128, blocks: 1, across, wide: true, splits: 1 };
        let tiles = product.most_tokens.div_ceil(tokens as usize) * rows.div_ceil(128);
        // Four on each of 132 multiprocessors, of some steps each.
        let splits = if tokens > 64 { 1 } else { (528 / tiles).min(product.k / 32 / 4).max(1) };
        let tile = Tile { splits: splits as u32, ..tile };
        allowed.then_some(tile)
    }

    fn invocations(&self) -> u32 {
        32 * self.across.0 * self.across.1
    }

    /// Vectors of four f16 in a row of workgroup memory.
    fn stride(&self) -> u32 {
        8 * self.blocks + 2
    }

    /// Declares the memory `xt` or `wt` of some rows, and `put_x` or `put_w`, which store four
    /// numbers.
    fn memory(&self, name: &str, rows: u32) -> String {
        let n = rows * self.stride();
        if self.wide {
            return format!(
                "var<workgroup> {name}t: array<vec4<f16>, {n}>;
fn put_{name}(at: u32, v: vec4<f16>) {{ {name}t[at] = v; }}
"
            );
        }
        format!(
            "var<workgroup> {name}t: array<f16, {}>;
fn put_{name}(at: u32, v: vec4<f16>) {{
    let i = 4u * at;
    {name}t[i] = v.x;
    {name}t[i + 1u] = v.y;
    {name}t[i + 2u] = v.z;
    {name}t[i + 3u] = v.w;
}}
",
            4 * n
        )
    }

    /// Fragments of 16x16 of a subgroup.
    fn fragments(&self) -> (u32, u32) {
        (self.tokens / 16 / self.across.0, self.rows / 16 / self.across.1)
    }
}

/// The prepared activations.
pub fn area(product: &Product) -> Area {
    let exchanged = product.weights[0].layout == Layout::Planes;
    Area::new(Form::Halves { exchanged }, product)
}

/// f32 of scratch, behind the prepared activations, for sums of parts of k: of each part, each
/// token, the rows of all weights.
pub fn partial_bytes(product: &Product, tile: &Tile) -> u64 {
    if tile.splits == 1 {
        return 0;
    }
    let sums = tile.splits as usize * product.most_tokens * bound_rows(product);
    (sums as u64 * 4).next_multiple_of(256)
}

/// The bound rows of all weights.
fn bound_rows(product: &Product) -> usize {
    product.weights.iter().map(|w| w.rows).sum()
}

/// The dispatches with a tile.
pub fn launches(product: &Product, site: &Site, tile: &Tile) -> Vec<Launch> {
    let area = area(product);
    let blocks =
        if (product.k / 32).is_multiple_of(tile.blocks as usize) { tile.blocks } else { 1 };
    let tile = &Tile { blocks, ..*tile };
    let mut all = vec![prepare::launch(product, site, &area), multiply(product, site, &area, tile)];
    if tile.splits > 1 {
        all.push(add_up(product, site, &area, tile));
    }
    all
}

struct Plan<'a> {
    product: &'a Product,
    tile: Tile,
    rows: Vec<Row>,
    names: Vec<String>,
    /// First tile of each weight, and the end.
    starts: Vec<u32>,
}

impl Plan<'_> {
    /// Blocks of the weight tile that each invocation copies.
    fn copies(&self) -> u32 {
        (self.tile.rows * self.tile.blocks).div_ceil(self.tile.invocations())
    }

    /// Vectors of the activation tile that each invocation copies.
    fn vectors(&self) -> u32 {
        (self.tile.tokens * 8 * self.tile.blocks).div_ceil(self.tile.invocations())
    }

    /// Text for the weight that the workgroup's tile belongs to.
    fn by_weight(&self, text: &dyn Fn(usize) -> String) -> String {
        let weights = self.starts.len() - 1;
        if weights == 1 {
            return text(0);
        }
        let mut t = String::new();
        for w in 0..weights {
            let head = match w {
                0 => format!("if group < {}u {{\n", self.starts[1]),
                _ if w + 1 == weights => "else {\n".to_owned(),
                _ => format!("else if group < {}u {{\n", self.starts[w + 1]),
            };
            let _ = writeln!(t, "{head}{}}}", text(w));
        }
        t
    }

    /// Statements for each block that an invocation copies; `text(copy, weight)`.
    fn by_copy(&self, weight: usize, text: &dyn Fn(u32, usize) -> String) -> String {
        let mut t = String::new();
        for copy in 0..self.copies() {
            if self.product.gated {
                // Sixteen rows of the gate, sixteen of the other, and so on.
                let _ = writeln!(
                    t,
                    "if (wrow_{copy} / 16u) % 2u == 0u {{\n{}}} else {{\n{}}}",
                    text(copy, 0),
                    text(copy, 1)
                );
            } else {
                t.push_str(&text(copy, weight));
            }
        }
        t
    }
}

fn multiply(product: &Product, site: &Site, area: &Area, tile: &Tile) -> Launch {
    let mut source = Source::new("matmul_coop");
    source.needs.f16 = true;
    source.needs.subgroups = true;
    source.needs.cooperative_matrix = true;
    let (x, factors) = area.declare(&mut source);
    let mut names = Vec::new();
    let mut rows = Vec::new();
    for (i, w) in product.weights.iter().enumerate() {
        let operand = site.operands[1 + i];
        names.push(source.bind(operand, &format!("w{i}"), Elements::U32x4).name);
        rows.push(match Codec::new(w.dtype, product.k) {
            Some(codec) => Row::Blocks(codec),
            None => Row::Plain(w.dtype, product.k / 8),
        });
    }
    let store = match tile.splits {
        1 => Store::Whole(Epilogue::declare(product, site, &mut source)),
        _ => {
            let bytes = partial_bytes(product, tile);
            Store::Part(source.scratch(area.bytes(), bytes, "partial", Elements::F32).name)
        }
    };
    let of_tile = if product.gated { tile.rows / 2 } else { tile.rows };
    let parts = if product.gated { 1 } else { product.weights.len() };
    let mut starts = vec![0];
    for w in &product.weights[..parts] {
        starts.push(starts[starts.len() - 1] + (w.rows as u32).div_ceil(of_tile));
    }
    let plan = Plan { product, tile: *tile, rows, names, starts };
    let tiles = plan.starts[parts];
    let text = entry(&plan, &x, factors.as_ref(), &store, &dim_text(&product.tokens, site.symbols));
    source.push(&text);
    source.launch([
        Groups::of(product.tokens.clone(), tile.tokens),
        Groups::of(u64::from(tiles), 1),
        Groups::of(u64::from(tile.splits), 1),
    ])
}

/// Adds the sums of the parts of k, and does the rest.
fn add_up(product: &Product, site: &Site, area: &Area, tile: &Tile) -> Launch {
    const INVOCATIONS: usize = 128;
    let mut source = Source::new("matmul_coop_sum");
    let factors = area.declare_scales(&mut source);
    let bytes = partial_bytes(product, tile);
    let partial = source.scratch(area.bytes(), bytes, "partial", Elements::F32).name;
    let epilogue = Epilogue::declare(product, site, &mut source);
    let all = bound_rows(product);
    let results = if product.gated { all / 2 } else { all };
    let per = product.most_tokens * all;
    let sum = |name: &str, at: &str| {
        let terms = (0..tile.splits as usize)
            .map(|i| format!("    {name} += {partial}[{at} + {}u];\n", i * per));
        format!("var {name} = 0.0;\n{}", terms.collect::<String>())
    };
    let mut t = format!(
        "@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
let column = id.x * {INVOCATIONS}u + tid;
let token = id.y;
if column >= {results}u || token >= {} {{ return; }}
let factor = {};
let place = token * {all}u + column;
{}",
        dim_text(&product.tokens, site.symbols),
        factors.map_or("1.0".to_owned(), |f| f.at("token")),
        sum("first", "place"),
    );
    if product.gated {
        t.push_str(&sum("other", &format!("place + {results}u")));
        t.push_str(&epilogue.store(0, "token", "column", &["first * factor", "(other * factor)"]));
    } else {
        let mut start = 0;
        for (w, weight) in product.weights.iter().enumerate() {
            let end = start + weight.rows;
            let row = format!("(column - {start}u)");
            let _ = write!(
                t,
                "if column >= {start}u && column < {end}u {{\n{}}}\n",
                epilogue.store(w, "token", &row, &["(first * factor)"])
            );
            start = end;
        }
    }
    t.push_str("}\n");
    source.push(&t);
    source.launch([
        Groups::of(results, INVOCATIONS as u32),
        Groups::of(product.tokens.clone(), 1),
        Groups::one(),
    ])
}

/// What becomes of a tile's sums.
enum Store<'a> {
    Whole(Epilogue<'a>),
    /// They go to this scratch.
    Part(String),
}

fn entry(plan: &Plan, x: &Var, factors: Option<&Var>, to: &Store, tokens: &str) -> String {
    let (tile, k) = (plan.tile, plan.product.k as u32);
    let (stride, wg) = (tile.stride(), tile.invocations());
    let (fm, fn_) = tile.fragments();
    let subgroups = tile.across.0 * tile.across.1;
    let out_stride = fn_ * 16 + 4;
    // Elements of the declared memory in a vector of four numbers.
    let unit = if tile.wide { 1 } else { 4 };
    let mut t = format!(
        "{}{}var<workgroup> sums: array<f32, {}>;
@compute @workgroup_size({wg})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32, @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32) {{
let group = id.y;
let token0 = id.x * {}u;
let sgm = sg / {}u;
let sgn = sg % {}u;
",
        tile.memory("x", tile.tokens),
        tile.memory("w", tile.rows),
        subgroups * 16 * out_stride,
        tile.tokens,
        tile.across.1,
        tile.across.1,
    );
    // Where each invocation's copies come from and go to. Scratch rows go to a multiple of 128.
    let quads = 8 * tile.blocks;
    for i in 0..plan.vectors() {
        let _ = write!(
            t,
            "let xe_{i} = (tid + {}u) % {}u;
let xfrom_{i} = (token0 + xe_{i} / {quads}u) * {}u + xe_{i} % {quads}u;
let xto_{i} = xe_{i} / {quads}u * {stride}u + xe_{i} % {quads}u;
",
            i * wg,
            tile.tokens * quads,
            k / 4
        );
    }
    for copy in 0..plan.copies() {
        let _ = write!(
            t,
            "let we_{copy} = (tid + {}u) % {}u;
let wrow_{copy} = we_{copy} / {blocks}u;
let wblock_{copy} = we_{copy} % {blocks}u;
let wto_{copy} = wrow_{copy} * {stride}u + wblock_{copy} * 8u;
var r_{copy} = 0u;
",
            copy * wg,
            tile.rows * tile.blocks,
            blocks = tile.blocks,
        );
    }
    t.push_str(&plan.by_weight(&|w| {
        plan.by_copy(w, &|copy, w| {
            let n = plan.product.weights[w].rows;
            let row = if plan.product.gated {
                format!("group * {}u + wrow_{copy} / 32u * 16u + wrow_{copy} % 16u", tile.rows / 2)
            } else {
                format!("(group - {}u) * {}u + wrow_{copy}", plan.starts[w], tile.rows)
            };
            format!("r_{copy} = min({row}, {n}u - 1u) * {}u;\n", plan.rows[w].vectors())
        })
    }));
    // The numbers on their way: of all weights, since their types may differ.
    let mut declared = Vec::new();
    for row in &plan.rows {
        for (name, ty, _) in row.loads("", "", "") {
            for copy in 0..plan.copies() {
                let line = format!("var {name}_{copy}: {ty};\n");
                if !declared.contains(&line) {
                    t.push_str(&line);
                    declared.push(line);
                }
            }
        }
    }
    let load = |step: &str| {
        let mut t = String::new();
        for i in 0..plan.vectors() {
            let _ = writeln!(t, "xv_{i} = {}[xfrom_{i} + {step} * {quads}u];", x.name);
        }
        for copy in 0..plan.copies() {
            let _ = writeln!(t, "b_{copy} = {step} * {}u + wblock_{copy};", tile.blocks);
        }
        t + &plan.by_weight(&|w| {
            plan.by_copy(w, &|copy, w| {
                let mut t = String::new();
                let loads =
                    plan.rows[w].loads(&plan.names[w], &format!("r_{copy}"), &format!("b_{copy}"));
                for (name, _, e) in loads {
                    let _ = writeln!(t, "{name}_{copy} = {e};");
                }
                t
            })
        })
    };
    for i in 0..plan.vectors() {
        let _ = writeln!(t, "var xv_{i}: vec4<f16>;");
    }
    for copy in 0..plan.copies() {
        let _ = writeln!(t, "var b_{copy}: u32;");
    }
    for m in 0..fm {
        for n in 0..fn_ {
            let _ = writeln!(t, "var acc_{m}_{n} = coop_mat16x16<f32, C>();");
        }
    }
    let steps = k / 32 / tile.blocks;
    let (first, end) = match tile.splits {
        1 => ("0u", format!("{steps}u")),
        n => {
            let of_part = steps.div_ceil(n);
            let _ = write!(
                t,
                "let first_step = min(id.z * {of_part}u, {steps}u);
let end_step = min(first_step + {of_part}u, {steps}u);
"
            );
            ("first_step", "end_step".to_owned())
        }
    };
    // A part that has none reads a step that there is.
    t.push_str(&load(&if tile.splits > 1 {
        format!("min({first}, {}u)", steps - 1)
    } else {
        first.to_owned()
    }));
    let _ =
        writeln!(t, "for (var step = {first}; step < {end}; step += 1u) {{\nworkgroupBarrier();");
    for i in 0..plan.vectors() {
        let _ = writeln!(t, "put_x(xto_{i}, xv_{i});");
    }
    t.push_str(&plan.by_weight(&|w| {
        plan.by_copy(w, &|copy, w| {
            let text = plan.rows[w].unpack(
                &format!("b_{copy}"),
                &format!("_{copy}"),
                &format!("wto_{copy}"),
            );
            format!("{{\n{text}}}\n")
        })
    }));
    let _ = write!(t, "workgroupBarrier();\nif step + 1u < {end} {{\n{}}}\n", load("(step + 1u)"));
    for kk in 0..2 * tile.blocks {
        for m in 0..fm {
            let _ = write!(
                t,
                "let ai_{kk}_{m} = ((sgm * {}u + {}u) * {stride}u + {}u) * {unit}u;
let a_{kk}_{m} = coopLoadT<coop_mat16x16<f16, A>>(&xt[ai_{kk}_{m}], {}u);
",
                fm * 16,
                m * 16,
                kk * 4,
                stride * unit
            );
        }
        for n in 0..fn_ {
            let _ = write!(
                t,
                "let bi_{kk}_{n} = ((sgn * {}u + {}u) * {stride}u + {}u) * {unit}u;
let b_{kk}_{n}_ = coopLoad<coop_mat16x16<f16, B>>(&wt[bi_{kk}_{n}], {}u);
",
                fn_ * 16,
                n * 16,
                kk * 4,
                stride * unit
            );
            for m in 0..fm {
                let _ = writeln!(
                    t,
                    "acc_{m}_{n} = coopMultiplyAdd(a_{kk}_{m}, b_{kk}_{n}_, acc_{m}_{n});"
                );
            }
        }
    }
    t.push_str("}\n");
    for m in 0..fm {
        t.push_str("workgroupBarrier();\n");
        for n in 0..fn_ {
            let _ = write!(
                t,
                "let to_{m}_{n} = sg * {}u + {}u;
coopStoreT(acc_{m}_{n}, &sums[to_{m}_{n}], {out_stride}u);
",
                16 * out_stride,
                n * 16
            );
        }
        t.push_str("workgroupBarrier();\n");
        t.push_str(&plan.by_weight(&|w| store(plan, w, m, factors, to, tokens)));
    }
    t.push_str("}\n");
    t
}

/// Stores the sums of a subgroup's fragments at tokens `16 * m`.
fn store(plan: &Plan, w: usize, m: u32, factors: Option<&Var>, to: &Store, tokens: &str) -> String {
    let tile = plan.tile;
    let (fm, fn_) = tile.fragments();
    let out_stride = fn_ * 16 + 4;
    let gated = plan.product.gated;
    let columns = if gated { fn_ * 8 } else { fn_ * 16 };
    let of_tile = if gated { tile.rows / 2 } else { tile.rows };
    let n = plan.product.weights[w].rows;
    let base = format!("sg * {}u + e / {columns}u * {out_stride}u", 16 * out_stride);
    let at = match gated {
        true => format!("{base} + c / 16u * 32u + c % 16u"),
        false => format!("{base} + c"),
    };
    let text = match to {
        Store::Whole(epilogue) => {
            let values: &[&str] = match gated {
                true => &["sums[at] * factor", "(sums[at + 16u] * factor)"],
                false => &["(sums[at] * factor)"],
            };
            let factor = factors.map_or("1.0".to_owned(), |f| f.at("token"));
            format!("let factor = {factor};\n{}", epilogue.store(w, "token", "row", values))
        }
        Store::Part(partial) => {
            let p = plan.product;
            let all = bound_rows(p);
            let before: usize = p.weights[..w].iter().map(|w| w.rows).sum();
            let mut t = format!(
                "let to = (id.z * {}u + token) * {all}u + row + {before}u;
{partial}[to] = sums[at];
",
                p.most_tokens
            );
            if gated {
                let _ = writeln!(t, "{partial}[to + {n}u] = sums[at + 16u];");
            }
            t
        }
    };
    format!(
        "for (var e = lane; e < {}u; e += 32u) {{
    let c = e % {columns}u;
    let token = token0 + sgm * {}u + {}u + e / {columns}u;
    let row = (group - {}u) * {of_tile}u + sgn * {columns}u + c;
    if token < {tokens} && row < {n}u {{
        let at = {at};
        {text}    }}
}}
",
        16 * columns,
        fm * 16,
        m * 16,
        plan.starts[w],
    )
}
