//! The GPU as the passes see it: layouts, fusions, costs.

use aether_ir::fusion::Role;
use aether_ir::target::{Cost, Target};
use aether_ir::{DType, Func, Inst, Layout, Op, Symbol, SymbolRange, TensorType};
use indexmap::IndexMap;

use crate::adapter::Adapter;
use crate::lower::{attention, order, product};

/// Device memory bytes per second that costs assume; ratios matter, not the figure.
const BYTES_PER_SECOND: f64 = 2e12;
/// Multiply-adds per second.
const FLOPS_PER_SECOND: f64 = 2e13;
/// Seconds from one dispatch to one that depends on it.
const SECONDS_PER_LAUNCH: f64 = 4e-6;

/// A GPU.
#[derive(Clone, Copy, Debug)]
pub struct GpuTarget {
    pub adapter: Adapter,
}

impl Target for GpuTarget {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn weight_layout(&self, weight: &TensorType) -> Layout {
        let known = weight.rank() == 2 && weight.shape.as_const().is_some();
        let planes = known && !weight.dtype.planes().is_empty();
        if planes { Layout::Planes } else { Layout::RowMajor }
    }

    fn packs_tables(&self) -> bool {
        true
    }

    fn supports(&self, op: Op, operands: &[&TensorType]) -> bool {
        let f32_left = operands.first().is_some_and(|x| x.dtype == DType::F32 && x.rank() == 2);
        // Fusion may run before or after layout: a quantised weight of known shape will be in
        // planes.
        let planes = |w: &&TensorType| !w.dtype.planes().is_empty() && w.shape.as_const().is_some();
        let dense = |w: &&TensorType| {
            w.rank() == 2 && matches!(w.dtype, DType::F32 | DType::F16 | DType::Bf16)
        };
        let weight = |w: &&TensorType| planes(w) || dense(w);
        match op {
            Op::MatmulGated => f32_left && operands.iter().skip(1).take(2).all(weight),
            Op::MatmulAdd | Op::MatmulAct => {
                let [x, w, ..] = operands else { return false };
                let halves = x.dtype == DType::F16 && w.dtype == DType::F16;
                (x.dtype == DType::F32 && weight(w)) || halves
            }
            Op::MatmulMulti => f32_left,
            // Each workgroup norms anew: only for few tokens is that less than a kernel more.
            Op::NormMatmulMulti | Op::NormMatmulGated => {
                let few = operands[0].shape.0[..operands[0].rank() - 1]
                    .iter()
                    .try_fold(1, |n, d| d.as_const().map(|d| n * d))
                    .is_some_and(|n| n <= 8);
                let wide = operands[0].shape.0.last().and_then(aether_ir::Dim::as_const);
                few && f32_left
                    && wide.is_some_and(|k| k % 4 == 0)
                    && operands[1].dtype == DType::F32
                    && operands.iter().skip(2).all(|w| weight(w) || w.dtype == DType::F32)
            }
            // A cache's words are written whole.
            Op::RopeAppend => operands[..5].iter().all(|ty| {
                let even =
                    ty.shape.0.last().is_some_and(|d| d.as_const().is_some_and(|d| d % 4 == 0));
                even && matches!(ty.dtype, DType::F32 | DType::F16)
            }),
            _ => true,
        }
    }

    fn cost(
        &self,
        op: Op,
        operands: &[&TensorType],
        results: &[&TensorType],
        sizes: &dyn Fn(&str) -> u64,
    ) -> Cost {
        Cost::of(op, operands, results, sizes)
    }

    fn seconds(&self, cost: &Cost) -> f64 {
        (cost.bytes / BYTES_PER_SECOND).max(cost.flops / FLOPS_PER_SECOND)
            + cost.launches * SECONDS_PER_LAUNCH
    }

    fn scratch_bytes(
        &self,
        func: &Func,
        inst: &Inst,
        symbols: &IndexMap<Symbol, SymbolRange>,
    ) -> u64 {
        match inst.op {
            Op::Matmul
            | Op::MatmulAdd
            | Op::MatmulAct
            | Op::MatmulGated
            | Op::MatmulMulti
            | Op::NormMatmulMulti
            | Op::NormMatmulGated => {
                let operands: Vec<&TensorType> = inst.inputs().map(|v| func.ty(v)).collect();
                let results: Vec<&TensorType> = inst.results.iter().map(|&v| func.ty(v)).collect();
                product::scratch_bytes(inst, &operands, &results, symbols, &self.adapter)
            }
            Op::Argmax | Op::TopK => inst
                .inputs()
                .next()
                .and_then(|x| order::template(inst, func.ty(x), symbols))
                .map_or(0, |pick| pick.scratch_bytes()),
            Op::Attention => {
                let operands: Vec<&TensorType> = inst.inputs().map(|v| func.ty(v)).collect();
                attention::template(inst, &operands, symbols)
                    .map_or(0, |attention| attention.scratch_bytes(&self.adapter))
            }
            _ => 0,
        }
    }

    fn in_place(&self, op: Op, _operand: usize) -> bool {
        // An invocation reads its own elements before it writes them; a fused body may read those
        // of others.
        matches!(Role::of(op), Some(Role::Map)) && op != Op::Broadcast
    }
}
