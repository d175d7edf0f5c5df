//! What passes ask of a target, so that they need not know any kernel.
//!
//! Each code generator implements [`Target`].

use indexmap::IndexMap;

use crate::attr::Attrs;
use crate::dim::{Dim, Symbol, SymbolRange};
use crate::module::{Func, Inst};
use crate::op::Op;
use crate::types::{Layout, TensorType};

/// The estimated cost of one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes read and written in main memory.
    pub bytes: f64,
    /// Multiply-adds.
    pub flops: f64,
    /// Kernel launches or thread synchronisations.
    pub launches: f64,
}

impl Cost {
    /// What an op moves and multiplies whatever the target: operands are read once and results
    /// written once, products multiply as deep as their left operand is long. Constants, and what
    /// moves nothing, cost nothing. Launches are one; symbols count with their value in `sizes`.
    pub fn of(
        op: Op,
        operands: &[&TensorType],
        results: &[&TensorType],
        sizes: &dyn Fn(&str) -> u64,
    ) -> Cost {
        let bytes = |ty: &TensorType| ty.bytes(|s| Some(sizes(s))).unwrap_or(0) as f64;
        let length = |d: &Dim| d.eval(|s| Some(sizes(s))).unwrap_or(1) as f64;
        let numel = |ty: &TensorType| ty.shape.0.iter().map(length).product::<f64>();
        let free = matches!(op, Op::Constant | Op::Pack | Op::Reshape | Op::Splat | Op::Iota);
        if free || matches!(op, Op::StopGradient | Op::Barrier | Op::Transfer) {
            return Cost::default();
        }
        let out: f64 = results.iter().map(|ty| numel(ty)).sum();
        let depth = operands.first().and_then(|x| x.shape.0.last()).map_or(1.0, length);
        let flops = match op {
            Op::Matmul | Op::MatmulAdd | Op::MatmulAct | Op::MatmulMulti => out * depth,
            Op::NormMatmulMulti | Op::ExpertMatmul => out * depth,
            Op::MatmulGated | Op::NormMatmulGated => 2.0 * out * depth,
            // Every result reads a kernel's channels: the weights but for their output channels.
            Op::Conv => {
                let channels = |w: &TensorType| w.shape.0.first().map_or(1.0, length).max(1.0);
                out * operands.get(1).map_or(1.0, |w| numel(w) / channels(w))
            }
            _ => operands.iter().map(|ty| numel(ty)).sum::<f64>().max(out),
        };
        let moved = operands.iter().chain(results).map(|ty| bytes(ty)).sum();
        Cost { bytes: moved, flops, launches: 1.0 }
    }
}

/// A target as the passes see it.
pub trait Target {
    /// The name used on command lines, for instance `cpu`.
    fn name(&self) -> &'static str;

    /// The layout in which the target's product wants the matrix `weight` ([n, k], read with
    /// `transpose_b`); `RowMajor` when it has no better one.
    fn weight_layout(&self, weight: &TensorType) -> Layout;

    /// Whether quantised tables that only `gather` reads are laid out as weights too: where it has
    /// no kernel that reads them as they are in a file.
    fn packs_tables(&self) -> bool {
        false
    }

    /// Whether the target has a kernel for an op that fusion introduces, given the types.
    fn supports(&self, op: Op, operands: &[&TensorType]) -> bool;

    /// Whether the target has a kernel for this op with these attributes, or else carries it out
    /// slowly by its reference meaning. Rules that recognise an op in its parts ask.
    fn has_kernel(&self, _op: Op, _attrs: &Attrs, _operands: &[&TensorType]) -> bool {
        true
    }

    /// The cost of an op at the given types; symbols count with their value in `sizes`.
    fn cost(
        &self,
        op: Op,
        operands: &[&TensorType],
        results: &[&TensorType],
        sizes: &dyn Fn(&str) -> u64,
    ) -> Cost;

    /// Seconds that a cost stands for on this target.
    fn seconds(&self, cost: &Cost) -> f64;

    /// Scratch bytes an instruction's kernel needs beside its results, at the upper bounds of
    /// the symbols.
    fn scratch_bytes(
        &self,
        func: &Func,
        inst: &Inst,
        symbols: &IndexMap<Symbol, SymbolRange>,
    ) -> u64;

    /// Whether the kernel of this op may write its first result over operand `operand`, which
    /// has the result's type and dies with the instruction.
    fn in_place(&self, op: Op, operand: usize) -> bool;
}
