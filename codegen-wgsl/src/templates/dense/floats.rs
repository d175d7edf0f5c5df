//! Tiles of f32 sums in registers, eight by eight an invocation.
//!
//! The tile's numbers go through workgroup memory in two halves that take turns: while a step
//! along k is multiplied the next is on its way, and one barrier a step suffices.

use std::fmt::Write as _;

use super::{Dense, Epilogue, tile_text};
use crate::adapter::Adapter;
use crate::kernel::{Groups, Launch};
use crate::templates::Site;
use crate::templates::text::{Elements, Source, dim_text};

/// Numbers along k in a step.
const STEP: usize = 16;

/// Rows and columns of a workgroup's tile, multiples of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub rows: usize,
    pub columns: usize,
}

impl Tile {
    /// A good tile, or `None` when the adapter or the sizes do not allow any.
    pub fn choose(dense: &Dense, adapter: &Adapter) -> Option<Tile> {
        if !dense.depth.is_multiple_of(4) || !dense.columns.is_multiple_of(4) {
            return None;
        }
        let all = [(128, 128), (128, 64), (64, 64)].map(|(rows, columns)| Tile { rows, columns });
        let stack = dense.stack.as_const().unwrap_or(1).max(1) as usize;
        // Fewer tiles than multiprocessors leave some idle.
        let busy = |t: &Tile| {
            stack * dense.most_rows.div_ceil(t.rows) * dense.columns.div_ceil(t.columns) >= 120
        };
        let fits = |t: &Tile| {
            t.invocations() <= adapter.workgroup_invocations as usize
                && t.bytes() <= adapter.workgroup_bytes as usize
        };
        let all = all.into_iter().filter(fits).collect::<Vec<_>>();
        all.iter().copied().find(busy).or(all.last().copied())
    }

    fn invocations(&self) -> usize {
        self.rows / 8 * (self.columns / 8)
    }

    /// Vectors in a step of x and of w. Rows are padded: neighbours lie in other banks.
    fn strides(&self) -> (usize, usize) {
        (self.rows / 4 + 1, self.columns / 4 + 1)
    }

    fn bytes(&self) -> usize {
        let (x, w) = self.strides();
        2 * STEP * (x + w) * 16
    }
}

/// One of the two operands on its way to workgroup memory.
struct Side<'a> {
    /// Of locals and of the workgroup memory.
    name: &'a str,
    /// The binding.
    buffer: &'a str,
    /// Rows of the tile, or columns.
    size: usize,
    /// Vectors of a line of workgroup memory.
    stride: usize,
    /// Vectors of a line of the binding.
    line: usize,
    /// Lines of the binding are along k: vectors are turned before they are stored.
    turned: bool,
    /// The first of the tile, and the last line (or vector) that there is.
    first: &'a str,
    last: String,
    base: String,
    depth: usize,
    invocations: usize,
}

impl Side<'_> {
    fn loads(&self) -> usize {
        self.size * STEP / 4 / self.invocations
    }

    /// Where each vector comes from and goes to: `k` is its place along k, `r` along the tile.
    fn places(&self) -> String {
        let Side { name: s, line, first, last, base, .. } = self;
        let mut t = String::new();
        for j in 0..self.loads() {
            let e = format!("(tid + {}u)", j * self.invocations);
            let _ = if self.turned {
                write!(
                    t,
                    "let {s}k{j} = {e} % {q}u;
let {s}r{j} = {e} / {q}u;
let {s}from{j} = {base} + min({first} + {s}r{j}, {last}) * {line}u + {s}k{j};
",
                    q = STEP / 4
                )
            } else {
                write!(
                    t,
                    "let {s}k{j} = {e} / {across}u;
let {s}r{j} = {e} % {across}u;
let {s}from{j} = {base} + {s}k{j} * {line}u + min({first} / 4u + {s}r{j}, {last});
",
                    across = self.size / 4
                )
            };
            let _ = writeln!(t, "var {s}v{j}: vec4<f32>;");
        }
        t
    }

    /// Reads a step.
    fn load(&self, step: &str) -> String {
        let Side { name: s, buffer, line, depth, .. } = self;
        let mut t = String::new();
        // Places along k, those of a step, and how far a step goes in the binding.
        let (all, of_step, advance) = match self.turned {
            true => (depth / 4, STEP / 4, STEP / 4),
            false => (*depth, STEP, STEP * line),
        };
        for j in 0..self.loads() {
            let read = format!("{s}v{j} = {buffer}[{s}from{j} + {step} * {advance}u];");
            let _ = if depth.is_multiple_of(STEP) {
                writeln!(t, "{read}")
            } else {
                // What lies beyond k counts zero on both sides: a number times zero may be NaN.
                let k = format!("{step} * {of_step}u + {s}k{j}");
                writeln!(t, "{s}v{j} = vec4<f32>();\nif {k} < {all}u {{ {read} }}")
            };
        }
        t
    }

    /// Stores what was read in a half of the memory.
    fn store(&self, half: &str) -> String {
        let Side { name: s, stride, .. } = self;
        let half = format!("{half} * {}u", STEP * stride);
        let mut t = String::new();
        for j in 0..self.loads() {
            if !self.turned {
                let _ = writeln!(t, "{s}t[{half} + {s}k{j} * {stride}u + {s}r{j}] = {s}v{j};");
                continue;
            }
            for (c, part) in ["x", "y", "z", "w"].iter().enumerate() {
                let line = format!("(4u * {s}k{j} + {c}u) * {stride}u + {s}r{j} / 4u");
                let _ = writeln!(t, "{s}t[{half} + {line}][{s}r{j} % 4u] = {s}v{j}.{part};");
            }
        }
        t
    }
}

/// The dispatch with a tile.
pub fn launch(dense: &Dense, site: &Site, tile: &Tile) -> Launch {
    let mut source = Source::new("matmul_floats");
    let x = source.bind(site.operands[0], "x", Elements::F32x4).name;
    let w = source.bind(site.operands[1], "w", Elements::F32x4).name;
    let epilogue = Epilogue::declare(dense, site, &mut source);
    let Dense { depth: k, columns: n, transposed, .. } = *dense;
    let rows = dim_text(&dense.rows, site.symbols);
    let (invocations, (xs, ws)) = (tile.invocations(), tile.strides());
    let across = n.div_ceil(tile.columns) as u64;
    let of_x = Side {
        name: "x",
        buffer: &x,
        size: tile.rows,
        stride: xs,
        line: k / 4,
        turned: true,
        first: "row0",
        last: "(rows - 1u)".to_owned(),
        base: format!("stack * rows * {}u", k / 4),
        depth: k,
        invocations,
    };
    let of_w = Side {
        name: "w",
        buffer: &w,
        size: tile.columns,
        stride: ws,
        line: if transposed { k / 4 } else { n / 4 },
        turned: transposed,
        first: "column0",
        last: if transposed { format!("{}u", n - 1) } else { format!("{}u", n / 4 - 1) },
        base: if dense.shared { "0u".to_owned() } else { format!("stack * {}u", k * n / 4) },
        depth: k,
        invocations,
    };
    let tx = tile.columns / 8;
    let mut t = format!(
        "var<workgroup> xt: array<vec4<f32>, {}>;
var<workgroup> wt: array<vec4<f32>, {}>;
@compute @workgroup_size({invocations})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
{}let rows = {rows};
let row0 = down * {}u;
let column0 = across * {}u;
let tx = tid % {tx}u;
let ty = tid / {tx}u;
",
        2 * STEP * xs,
        2 * STEP * ws,
        tile_text(across),
        tile.rows,
        tile.columns,
    );
    t.push_str(&of_x.places());
    t.push_str(&of_w.places());
    for a in 0..8 {
        let _ = writeln!(t, "var acc{a}_0 = vec4<f32>();\nvar acc{a}_1 = vec4<f32>();");
    }
    let steps = k.div_ceil(STEP);
    for side in [&of_x, &of_w] {
        t.push_str(&side.load("0u"));
        t.push_str(&side.store("0u"));
    }
    let _ = write!(
        t,
        "workgroupBarrier();
for (var step = 0u; step < {steps}u; step += 1u) {{
if step + 1u < {steps}u {{
{}{}}}
let xh = step % 2u * {}u + ty;
let wh = step % 2u * {}u + tx;
",
        of_x.load("(step + 1u)"),
        of_w.load("(step + 1u)"),
        STEP * xs,
        STEP * ws,
    );
    for kk in 0..STEP {
        let _ = write!(
            t,
            "{{
let x0 = xt[xh + {}u];
let x1 = xt[xh + {}u];
let w0 = wt[wh + {}u];
let w1 = wt[wh + {}u];
",
            kk * xs,
            kk * xs + tile.rows / 8,
            kk * ws,
            kk * ws + tile.columns / 8,
        );
        for a in 0..8 {
            let part = ["x", "y", "z", "w"][a % 4];
            let _ = writeln!(
                t,
                "acc{a}_0 += x{h}.{part} * w0;\nacc{a}_1 += x{h}.{part} * w1;",
                h = a / 4
            );
        }
        t.push_str("}\n");
    }
    let _ = write!(
        t,
        "if step + 1u < {steps}u {{
{}{}}}
workgroupBarrier();
}}
",
        of_x.store("((step + 1u) % 2u)"),
        of_w.store("((step + 1u) % 2u)"),
    );
    for a in 0..8 {
        let at = a / 4 * (tile.rows / 2) + a % 4;
        let _ = writeln!(
            t,
            "if row0 + ty * 4u + {at}u < rows {{\nlet row = stack * rows + row0 + ty * 4u + {at}u;"
        );
        for half in 0..2 {
            let quad = format!("(column0 / 4u + tx + {}u)", half * tile.columns / 8);
            let store = epilogue.store("row", &quad, &format!("acc{a}_{half}"));
            let _ = writeln!(t, "if {quad} < {}u {{\n{store}}}", n / 4);
        }
        t.push_str("}\n");
    }
    t.push_str("}\n");
    source.push(&t);
    source.launch([
        Groups::of(dense.rows.clone(), tile.rows as u32),
        Groups::of(across, 1),
        Groups::of(dense.stack.clone(), 1),
    ])
}
