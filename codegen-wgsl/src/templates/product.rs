//! Products of activations with weights: `matmul` (with `transpose_b`), `matmul_add`,
//! `matmul_act`, `matmul_gated` and `matmul_multi`, and an rms norm before them.
//!
//! Operands of the [`Site`]: x, the weights, the addends, then the norm's weight. Results: one
//! for each weight, or one for a gated pair. Activations and results are f32; weights are
//! quantised in planes, or f32, f16 or bf16, row-major.

use aether_ir::{DType, Dim, Layout};

use super::text::{Source, Var, activation};
use super::{Operand, Site, coop, matvec, tall};
use crate::adapter::Adapter;
use crate::kernel::Launch;

/// A matrix `[rows, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Weight {
    pub dtype: DType,
    pub layout: Layout,
    pub rows: usize,
}

/// Something added to the product with weight `weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addend {
    pub weight: usize,
    /// One row for all tokens, not one for each.
    pub row: bool,
}

/// Products of `x` f32 `[tokens, k]` with weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    pub k: usize,
    pub tokens: Dim,
    /// The most tokens that a run may have: what the kernel is chosen by.
    pub most_tokens: usize,
    pub weights: Vec<Weight>,
    pub addends: Vec<Addend>,
    /// Name of an activation of the sum; with `gated`, of the first product.
    pub act: Option<String>,
    /// The result is `act(x · w_0ᵀ) * (x · w_1ᵀ)`.
    pub gated: bool,
    /// Bits of the f32 `eps`: x is first rms-normed with a weight f32 `[k]`.
    pub norm: Option<u32>,
    /// The bindings of all weights hold only rows from the first number on, and results have
    /// the second number of columns.
    pub part: Option<(usize, usize)>,
}

impl Product {
    /// Whether there is a kernel: quantised weights in planes, or plain ones; not both kinds in
    /// one product.
    pub fn is_supported(&self) -> bool {
        let plain = |w: &Weight| {
            matches!(w.dtype, DType::F32 | DType::F16 | DType::Bf16)
                && w.layout == Layout::RowMajor
                && self.k.is_multiple_of(16 / w.dtype.block_bytes())
        };
        let planes =
            |w: &Weight| w.layout == Layout::Planes && w.dtype.planes_row_bytes(self.k).is_some();
        let shapes = !self.weights.is_empty()
            && self.k > 0
            && self.weights.iter().all(|w| w.rows > 0)
            && self.addends.iter().all(|a| a.weight < self.weights.len())
            && (!self.gated
                || (self.weights.len() == 2
                    && self.weights[0].rows == self.weights[1].rows
                    && self.addends.is_empty()))
            && (self.norm.is_none() || self.k.is_multiple_of(4));
        let one_size = self
            .weights
            .iter()
            .all(|w| w.dtype.block_bytes() == self.weights[0].dtype.block_bytes());
        shapes && (self.weights.iter().all(planes) || (self.weights.iter().all(plain) && one_size))
    }

    /// Columns of the result of weight `i`.
    pub fn columns(&self, i: usize) -> usize {
        self.part.map_or(self.weights[i].rows, |p| p.1)
    }

    /// The first column that the bindings' rows make.
    pub fn first(&self) -> usize {
        self.part.map_or(0, |p| p.0)
    }

    /// Place of addend `i` among the operands.
    pub fn addend_operand(&self, i: usize) -> usize {
        1 + self.weights.len() + i
    }

    /// Place of the norm's weight among the operands.
    pub fn norm_operand(&self) -> usize {
        1 + self.weights.len() + self.addends.len()
    }

    fn road(&self, adapter: &Adapter) -> Road {
        if self.most_tokens > FEW_BESIDE_TILES
            && let Some(tile) = coop::Tile::choose(self, adapter)
        {
            Road::Tiles(tile)
        } else if self.most_tokens <= FEW {
            Road::Rows(matvec::Variant::choose(self, adapter))
        } else {
            Road::Tall
        }
    }

    /// Bytes of scratch that the launches use.
    pub fn scratch_bytes(&self, adapter: &Adapter) -> u64 {
        match self.road(adapter) {
            Road::Rows(_) => 0,
            Road::Tiles(tile) => coop::area(self).bytes() + coop::partial_bytes(self, &tile),
            Road::Tall => tall::area(self).map_or(0, |area| area.bytes()),
        }
    }

    /// The dispatches, in order.
    pub fn launches(&self, site: &Site) -> Vec<Launch> {
        match self.road(site.adapter) {
            Road::Rows(variant) => vec![matvec::launch(self, site, &variant)],
            Road::Tiles(tile) => coop::launches(self, site, &tile),
            Road::Tall => tall::launches(self, site),
        }
    }
}

/// Most tokens for which the rows of the weights are read by subgroups.
const FEW: usize = 8;
/// The same where there are cooperative matrices, which take sixteen tokens in the time of three.
const FEW_BESIDE_TILES: usize = 2;

/// The kernel for a product.
enum Road {
    Rows(matvec::Variant),
    Tiles(coop::Tile),
    Tall,
}

/// The bindings that epilogues read and write, and their text.
pub struct Epilogue<'a> {
    product: &'a Product,
    addends: Vec<Var>,
    results: Vec<Var>,
}

impl<'a> Epilogue<'a> {
    /// Declares results, addends and the activation.
    pub fn declare(product: &'a Product, site: &Site, source: &mut Source) -> Epilogue<'a> {
        let operand = |i: usize| -> Operand { site.operands[i] };
        let mut epilogue = Epilogue { product, addends: Vec::new(), results: Vec::new() };
        for (i, addend) in product.addends.iter().enumerate() {
            let elements = super::text::Elements::f32(product.columns(addend.weight));
            let bind = operand(product.addend_operand(i));
            epilogue.addends.push(source.bind(bind, &format!("addend{i}"), elements));
        }
        let results = if product.gated { 1 } else { product.weights.len() };
        for i in 0..results {
            let elements = super::text::Elements::F32;
            epilogue.results.push(source.result(i, &format!("out{i}"), elements));
        }
        if let Some(act) = &product.act {
            source.push(activation(act));
        }
        epilogue
    }

    /// Stores the sum `value` (for a gated product `(gate, up)`) of weight `weight` at a token
    /// and a row of the bound rows.
    pub fn store(&self, weight: usize, token: &str, row: &str, value: &[&str]) -> String {
        let p = self.product;
        let column = match p.first() {
            0 => row.to_owned(),
            n => format!("({row} + {n}u)"),
        };
        let one = p.tokens.is(1);
        let at = if one {
            column.clone()
        } else {
            format!("{token} * {}u + {column}", p.columns(weight))
        };
        let act = |v: &str| if p.act.is_some() { format!("act({v})") } else { v.to_owned() };
        if p.gated {
            return format!("{}[{at}] = {} * {};\n", self.results[0].name, act(value[0]), value[1]);
        }
        let mut sum = value[0].to_owned();
        for (addend, var) in p.addends.iter().zip(&self.addends).filter(|a| a.0.weight == weight) {
            let index = if addend.row { &column } else { &at };
            sum = format!("({sum} + {})", var.at(index));
        }
        format!("{}[{at}] = {};\n", self.results[weight].name, act(&sum))
    }
}
