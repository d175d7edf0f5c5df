//! Tiles of f16 products with cooperative matrices of 16x16 and f32 sums.
//!
//! The tile's numbers go through workgroup memory in two halves that take turns: while a step
//! along k is multiplied the next is on its way, and one barrier a step suffices. Lines of
//! workgroup memory are padded by 16 bytes, so that neighbours lie in other banks. The sums go
//! through workgroup memory once more, a column of fragments at a time, to be rounded and stored.

use std::fmt::Write as _;

use super::{Dense, Epilogue, tile_text};
use crate::adapter::Adapter;
use crate::kernel::{Groups, Launch};
use crate::templates::Site;
use crate::templates::text::{Elements, Source, dim_text};

/// How a product is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows and columns, multiples of 16 times the subgroups along them.
    pub rows: u32,
    pub columns: u32,
    /// Numbers along k in a step, a multiple of 16.
    pub step: u32,
    /// Subgroups along the rows and along the columns.
    pub subgroups: (u32, u32),
    /// Halves of workgroup memory: two, or one where there is no room.
    pub halves: u32,
}

impl Tile {
    const fn new(rows: u32, columns: u32, step: u32, subgroups: (u32, u32), halves: u32) -> Tile {
        Tile { rows, columns, step, subgroups, halves }
    }

    /// A good tile, or `None` when the adapter or the sizes do not allow any.
    pub fn choose(dense: &Dense, adapter: &Adapter) -> Option<Tile> {
        let allowed = adapter.cooperative_matrix
            && adapter.f16
            && adapter.subgroup == Some(32)
            && dense.depth.is_multiple_of(8)
            && dense.columns.is_multiple_of(8);
        let all = [
            Tile::new(128, 256, 32, (2, 4), 1),
            Tile::new(128, 128, 32, (2, 2), 1),
            Tile::new(64, 64, 64, (2, 2), 1),
        ];
        let stack = dense.stack.as_const().unwrap_or(1).max(1);
        // Fewer tiles than multiprocessors leave some idle.
        let busy = |t: &Tile| {
            let down = (dense.most_rows as u64).div_ceil(u64::from(t.rows));
            stack * down * (dense.columns as u64).div_ceil(u64::from(t.columns)) >= 120
        };
        let fits = |t: &Tile| {
            t.invocations() <= adapter.workgroup_invocations
                && t.bytes(dense.transposed) <= adapter.workgroup_bytes
        };
        let all: Vec<Tile> = all.into_iter().filter(|t| allowed && fits(t)).collect();
        all.iter().copied().find(busy).or(all.last().copied())
    }

    fn invocations(&self) -> u32 {
        32 * self.subgroups.0 * self.subgroups.1
    }

    /// Fragments of 16x16 of a subgroup.
    fn fragments(&self) -> (u32, u32) {
        (self.rows / 16 / self.subgroups.0, self.columns / 16 / self.subgroups.1)
    }

    /// Bytes of workgroup memory.
    pub fn bytes(&self, transposed: bool) -> u32 {
        let (x, w) = (self.x(), self.w(transposed));
        self.halves * (x.vectors() + w.vectors()) * 8 + self.invocations() / 32 * SUMS * 4
    }

    fn x(&self) -> Memory {
        Memory { lines: self.rows, across: self.step / 4 }
    }

    fn w(&self, transposed: bool) -> Memory {
        match transposed {
            true => Memory { lines: self.columns, across: self.step / 4 },
            false => Memory { lines: self.step, across: self.columns / 4 },
        }
    }
}

/// f32 of a subgroup's fragment on its way out, with a stride of [`SUMS_STRIDE`].
const SUMS: u32 = 16 * SUMS_STRIDE;
const SUMS_STRIDE: u32 = 20;

/// Lines of vectors of four f16 in workgroup memory.
#[derive(Clone, Copy)]
struct Memory {
    lines: u32,
    across: u32,
}

impl Memory {
    fn stride(&self) -> u32 {
        self.across + 2
    }

    fn vectors(&self) -> u32 {
        self.lines * self.stride()
    }
}

/// One of the two operands on its way to workgroup memory.
struct Side<'a> {
    /// Of locals and of the workgroup memory.
    name: &'a str,
    /// The binding.
    buffer: &'a str,
    memory: Memory,
    invocations: u32,
    /// Vectors of a line of the binding.
    line: usize,
    /// Lines are along k.
    along: bool,
    /// First line of the tile (or first vector), and the last that there is.
    first: String,
    last: String,
    base: String,
    depth: usize,
    step: u32,
}

impl Side<'_> {
    /// Pairs of vectors that an invocation copies.
    fn loads(&self) -> u32 {
        (self.memory.lines * self.memory.across / 2).div_ceil(self.invocations)
    }

    fn places(&self) -> String {
        let Side { name: s, line, first, last, base, memory, .. } = self;
        let (across, all) = (memory.across / 2, memory.lines * memory.across / 2);
        let mut t = String::new();
        for j in 0..self.loads() {
            let from = match self.along {
                true => format!("min({first} + {s}l{j}, {last}) * {line}u + 2u * {s}c{j}"),
                false => format!("{s}l{j} * {line}u + min({first} + 2u * {s}c{j}, {last})"),
            };
            let _ = write!(
                t,
                "let {s}e{j} = (tid + {}u) % {all}u;
let {s}l{j} = {s}e{j} / {across}u;
let {s}c{j} = {s}e{j} % {across}u;
let {s}from{j} = {base} + {from};
let {s}to{j} = {s}l{j} * {}u + 2u * {s}c{j};
var {s}v{j}: vec4<f16>;
var {s}u{j}: vec4<f16>;
",
                j * self.invocations,
                memory.stride(),
            );
        }
        t
    }

    /// Reads a step.
    fn load(&self, step: &str) -> String {
        let Side { name: s, buffer, line, depth, .. } = self;
        let mut t = String::new();
        let per = self.step as usize;
        let advance = if self.along { per / 4 } else { per * line };
        for j in 0..self.loads() {
            let at = format!("{s}from{j} + {step} * {advance}u");
            let read = format!("{s}v{j} = {buffer}[{at}];\n{s}u{j} = {buffer}[{at} + 1u];\n");
            if depth.is_multiple_of(per) {
                t.push_str(&read);
                continue;
            }
            // What lies beyond k counts zero on both sides: a number times zero may be NaN.
            let k = if self.along { format!("8u * {s}c{j}") } else { format!("{s}l{j}") };
            let _ = write!(
                t,
                "{s}v{j} = vec4<f16>();\n{s}u{j} = vec4<f16>();\nif {step} * {per}u + {k} < {depth}u {{\n{read}}}\n"
            );
        }
        t
    }

    /// Stores what was read in a half of the memory.
    fn store(&self, half: &str) -> String {
        let s = self.name;
        let half = format!("{half} * {}u", self.memory.vectors());
        let mut t = String::new();
        for j in 0..self.loads() {
            let _ = write!(
                t,
                "{s}t[{half} + {s}to{j}] = {s}v{j};\n{s}t[{half} + {s}to{j} + 1u] = {s}u{j};\n"
            );
        }
        t
    }
}

/// The dispatch with a tile.
pub fn launch(dense: &Dense, site: &Site, tile: &Tile) -> Launch {
    let mut source = Source::new("matmul_halves");
    source.needs.f16 = true;
    source.needs.subgroups = true;
    source.needs.cooperative_matrix = true;
    let x = source.bind(site.operands[0], "x", Elements::F16x4).name;
    let w = source.bind(site.operands[1], "w", Elements::F16x4).name;
    let epilogue = Epilogue::declare(dense, site, &mut source);
    let Dense { depth: k, columns: n, transposed, .. } = *dense;
    let (of_x, of_w) = (tile.x(), tile.w(transposed));
    let across = n.div_ceil(tile.columns as usize) as u64;
    let sides = [
        Side {
            name: "x",
            buffer: &x,
            memory: of_x,
            invocations: tile.invocations(),
            line: k / 4,
            along: true,
            first: "row0".to_owned(),
            last: "(rows - 1u)".to_owned(),
            base: format!("stack * rows * {}u", k / 4),
            depth: k,
            step: tile.step,
        },
        Side {
            name: "w",
            buffer: &w,
            memory: of_w,
            invocations: tile.invocations(),
            line: if transposed { k / 4 } else { n / 4 },
            along: transposed,
            first: if transposed { "column0".to_owned() } else { "column0 / 4u".to_owned() },
            last: if transposed { format!("{}u", n - 1) } else { format!("{}u", n / 4 - 2) },
            base: if dense.shared { "0u".to_owned() } else { format!("stack * {}u", k * n / 4) },
            depth: k,
            step: tile.step,
        },
    ];
    let mut t = format!(
        "var<workgroup> xt: array<vec4<f16>, {}>;
var<workgroup> wt: array<vec4<f16>, {}>;
var<workgroup> sums: array<f32, {}>;
@compute @workgroup_size({})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) tid: u32, @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32) {{
{}let rows = {};
let row0 = down * {}u;
let column0 = across * {}u;
let sgm = sg / {s}u;
let sgn = sg % {s}u;
",
        tile.halves * of_x.vectors(),
        tile.halves * of_w.vectors(),
        tile.invocations() / 32 * SUMS,
        tile.invocations(),
        tile_text(across),
        dim_text(&dense.rows, site.symbols),
        tile.rows,
        tile.columns,
        s = tile.subgroups.1,
    );
    sides.iter().for_each(|side| t.push_str(&side.places()));
    let (fm, fn_) = tile.fragments();
    for m in 0..fm {
        for n in 0..fn_ {
            let _ = writeln!(t, "var acc_{m}_{n} = coop_mat16x16<f32, C>();");
        }
    }
    let steps = k.div_ceil(tile.step as usize);
    let load = |step: &str| sides.iter().map(|side| side.load(step)).collect::<String>();
    let store = |half: &str| sides.iter().map(|side| side.store(half)).collect::<String>();
    let multiply = multiply(tile, transposed);
    t.push_str(&load("0u"));
    if tile.halves == 2 {
        let _ = write!(
            t,
            "{}workgroupBarrier();
for (var step = 0u; step < {steps}u; step += 1u) {{
let more = step + 1u < {steps}u;
if more {{
{}}}
let xh = step % 2u * {}u;
let wh = step % 2u * {}u;
{multiply}if more {{
{}}}
workgroupBarrier();
}}
",
            store("0u"),
            load("(step + 1u)"),
            of_x.vectors(),
            of_w.vectors(),
            store("((step + 1u) % 2u)"),
        );
    } else {
        let _ = write!(
            t,
            "let xh = 0u;
let wh = 0u;
for (var step = 0u; step < {steps}u; step += 1u) {{
workgroupBarrier();
{}workgroupBarrier();
if step + 1u < {steps}u {{
{}}}
{multiply}}}
",
            store("0u"),
            load("(step + 1u)"),
        );
    }
    for m in 0..fm {
        for n_ in 0..fn_ {
            let _ = write!(
                t,
                "workgroupBarrier();
coopStoreT(acc_{m}_{n_}, &sums[sg * {SUMS}u], {SUMS_STRIDE}u);
workgroupBarrier();
for (var e = lane; e < 64u; e += 32u) {{
let row = row0 + sgm * {}u + {}u + e / 4u;
let quad = column0 / 4u + sgn * {}u + {}u + e % 4u;
let at = sg * {SUMS}u + e / 4u * {SUMS_STRIDE}u + e % 4u * 4u;
if row < rows && quad < {}u {{
{}}}
}}
",
                fm * 16,
                m * 16,
                fn_ * 4,
                n_ * 4,
                n / 4,
                epilogue.store(
                    "stack * rows + row",
                    "quad",
                    "vec4<f32>(sums[at], sums[at + 1u], sums[at + 2u], sums[at + 3u])"
                ),
            );
        }
    }
    t.push_str("}\n");
    source.push(&t);
    source.launch([
        Groups::of(dense.rows.clone(), tile.rows),
        Groups::of(across, 1),
        Groups::of(dense.stack.clone(), 1),
    ])
}

/// A step's products of a subgroup; `xh` and `wh` are the first vectors of the halves.
fn multiply(tile: &Tile, transposed: bool) -> String {
    let (xs, ws) = (tile.x().stride(), tile.w(transposed).stride());
    let (fm, fn_) = tile.fragments();
    let mut t = String::new();
    for kk in 0..tile.step / 16 {
        for m in 0..fm {
            let _ = write!(
                t,
                "let ai_{kk}_{m} = xh + (sgm * {}u + {}u) * {xs}u + {}u;
let a_{kk}_{m} = coopLoadT<coop_mat16x16<f16, A>>(&xt[ai_{kk}_{m}], {xs}u);
",
                fm * 16,
                m * 16,
                kk * 4,
            );
        }
        for n in 0..fn_ {
            let (at, load) = match transposed {
                true => (
                    format!("(sgn * {}u + {}u) * {ws}u + {}u", fn_ * 16, n * 16, kk * 4),
                    "coopLoad",
                ),
                false => {
                    (format!("{}u + sgn * {}u + {}u", kk * 16 * ws, fn_ * 4, n * 4), "coopLoadT")
                }
            };
            let _ = write!(
                t,
                "let bi_{kk}_{n} = wh + {at};
let b_{kk}_{n} = {load}<coop_mat16x16<f16, B>>(&wt[bi_{kk}_{n}], {ws}u);
"
            );
            for m in 0..fm {
                let _ = writeln!(
                    t,
                    "acc_{m}_{n} = coopMultiplyAdd(a_{kk}_{m}, b_{kk}_{n}, acc_{m}_{n});"
                );
            }
        }
    }
    t
}
