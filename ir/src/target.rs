//! What passes ask of a target, so that they need not know any kernel.
//!
//! Each code generator implements [`Target`].

use indexmap::IndexMap;

use crate::attr::Attrs;
use crate::dim::{Symbol, SymbolRange};
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
