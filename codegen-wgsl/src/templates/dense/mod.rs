//! Products of plain numbers: `matmul` and `matmul_act` with both operands f32 or both f16, the
//! right one `[k, n]` or (with `transpose_b`) `[n, k]`, alone or a stack of them.
//!
//! Operands of the [`Site`]: x, w, then an addend. The result has x's type; sums are f32. Rows of
//! all operands are whole vectors: k and n are multiples of four numbers of f32, eight of f16.
//!
//! [`halves`] uses cooperative matrices, [`floats`] sums in registers.

mod floats;
pub mod halves;

use aether_ir::{DType, Dim};

use super::Site;
use super::text::{Elements, Source, Var, activation};
use crate::adapter::Adapter;
use crate::kernel::Launch;

/// A product, or a stack of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dense {
    /// Of x, w and the result: f32 or f16.
    pub dtype: DType,
    /// How many products lie one after another.
    pub stack: Dim,
    /// Rows of x in each.
    pub rows: Dim,
    /// The most that `rows` can be.
    pub most_rows: usize,
    /// Columns of the result.
    pub columns: usize,
    pub depth: usize,
    /// w is `[n, k]`.
    pub transposed: bool,
    /// All products of the stack have the same w.
    pub shared: bool,
    /// What is added: a row, or something of the result's shape.
    pub addend: Option<Addend>,
    pub act: Option<String>,
}

/// The shape of an addend of the result's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addend {
    Row,
    Whole,
}

/// The kernel for a product.
enum Road {
    Halves(halves::Tile),
    Floats(floats::Tile),
}

impl Dense {
    fn road(&self, adapter: &Adapter) -> Option<Road> {
        // Few rows leave most of a tile empty.
        if self.most_rows < 16 || self.depth == 0 || self.columns == 0 {
            return None;
        }
        match self.dtype {
            DType::F16 => halves::Tile::choose(self, adapter).map(Road::Halves),
            DType::F32 => floats::Tile::choose(self, adapter).map(Road::Floats),
            _ => None,
        }
    }

    /// Whether there is a kernel.
    pub fn is_supported(&self, adapter: &Adapter) -> bool {
        self.road(adapter).is_some()
    }

    /// The dispatch; `None` when there is no kernel.
    pub fn launch(&self, site: &Site) -> Option<Launch> {
        Some(match self.road(site.adapter)? {
            Road::Halves(tile) => halves::launch(self, site, &tile),
            Road::Floats(tile) => floats::launch(self, site, &tile),
        })
    }

    /// Numbers of a vector of the operands' bindings.
    fn elements(&self) -> Elements {
        match self.dtype {
            DType::F16 => Elements::F16x4,
            _ => Elements::F32x4,
        }
    }
}

/// What is done with four sums before they are stored.
struct Epilogue {
    addend: Option<(Addend, Var)>,
    result: Var,
    act: bool,
    half: bool,
    columns: usize,
}

impl Epilogue {
    fn declare(dense: &Dense, site: &Site, source: &mut Source) -> Epilogue {
        let addend = dense.addend.map(|shape| {
            let var = source.bind(site.operands[2], "addend", dense.elements());
            (shape, var)
        });
        let result = source.result(0, "out", dense.elements());
        if let Some(act) = &dense.act {
            source.push(activation(act));
        }
        Epilogue {
            addend,
            result,
            act: dense.act.is_some(),
            half: dense.dtype == DType::F16,
            columns: dense.columns,
        }
    }

    /// Stores the `vec4<f32>` named `sum` at a row (counted over the whole stack) and a vector of
    /// the columns.
    fn store(&self, row: &str, quad: &str, sum: &str) -> String {
        let at = format!("({row}) * {}u + {quad}", self.columns / 4);
        let mut t = format!("var y = {sum};\n");
        if let Some((shape, var)) = &self.addend {
            let index = if *shape == Addend::Row { quad } else { &at };
            t.push_str(&format!("y += vec4<f32>({}[{index}]);\n", var.name));
        }
        if self.act {
            t.push_str("y = vec4<f32>(act(y.x), act(y.y), act(y.z), act(y.w));\n");
        }
        let y = if self.half { "vec4<f16>(y)" } else { "y" };
        t.push_str(&format!("{}[{at}] = {y};\n", self.result.name));
        t
    }
}

/// Statements that name the tile of a workgroup `id`: `across` (a tile along the columns), `down`
/// (along the rows) and `stack`. Tiles that run at the same time form squares, which read fewer
/// rows and columns than a line of tiles.
fn tile_text(tiles_across: u64) -> String {
    format!(
        "let line = id.y * groups.x + id.x;
let block = line / {width}u;
let first = block * {SQUARE}u;
let high = min(groups.x - first, {SQUARE}u);
let down = first + line % {width}u % high;
let across = line % {width}u / high;
let stack = id.z;
",
        width = tiles_across * SQUARE
    )
}

/// Tiles along the side of a square.
const SQUARE: u64 = 8;
