//! A target that is no machine: what a pass does to a module can be looked at, and expected in a
//! test, without the figures of one processor.
//!
//! Costs are bytes moved, weight bytes multiplied per row, and launches. It wants quantised weights
//! packed, has every fused op, needs scratch for products, and writes elementwise results over
//! operands that die. Nothing can be compiled for it.

use aether_ir::target::{Cost, Target};
use aether_ir::{Func, Inst, Layout, Op, Symbol, SymbolRange, TensorType};
use indexmap::IndexMap;

/// The target. It is the same everywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct GenericTarget;

impl Target for GenericTarget {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn weight_layout(&self, weight: &TensorType) -> Layout {
        if weight.dtype.is_quantized() { Layout::R16 } else { Layout::RowMajor }
    }

    fn supports(&self, op: Op, _operands: &[&TensorType]) -> bool {
        matches!(op, Op::MatmulAdd | Op::MatmulAct | Op::MatmulGated | Op::MatmulMulti | Op::Fused)
    }

    fn cost(
        &self,
        op: Op,
        operands: &[&TensorType],
        results: &[&TensorType],
        sizes: &dyn Fn(&str) -> u64,
    ) -> Cost {
        let bytes = |types: &[&TensorType]| -> f64 {
            types.iter().map(|t| t.bytes(|s| Some(sizes(s))).unwrap_or(0) as f64).sum()
        };
        let flops = match op {
            Op::Matmul | Op::MatmulAdd | Op::MatmulAct | Op::MatmulGated | Op::MatmulMulti => {
                let rows = results[0].shape.0[0].eval(|s| Some(sizes(s))).unwrap_or(1);
                rows as f64 * bytes(&operands[1..])
            }
            _ => 0.0,
        };
        Cost { bytes: bytes(operands) + bytes(results), flops, launches: 1.0 }
    }

    fn seconds(&self, cost: &Cost) -> f64 {
        cost.bytes / 20e9 + cost.flops / 200e9 + cost.launches * 1e-6
    }

    fn scratch_bytes(
        &self,
        func: &Func,
        inst: &Inst,
        symbols: &IndexMap<Symbol, SymbolRange>,
    ) -> u64 {
        match inst.op {
            Op::Matmul | Op::MatmulAdd | Op::MatmulGated | Op::MatmulMulti => {
                func.ty(inst.operands[0].value).max_bytes(symbols).unwrap_or(0) / 4
            }
            _ => 0,
        }
    }

    fn in_place(&self, op: Op, operand: usize) -> bool {
        match op {
            Op::Fused => true,
            Op::Neg | Op::Exp | Op::Silu | Op::Softmax => operand == 0,
            Op::Add | Op::Mul | Op::Sub => operand < 2,
            _ => false,
        }
    }
}
