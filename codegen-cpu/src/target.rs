//! The CPU as the passes see it: layouts, fusions, costs, scratch.

use aether_ir::fusion::Role;
use aether_ir::target::{Cost, Target};
use aether_ir::{Attrs, DType, Func, Inst, Layout, Op, Symbol, SymbolRange, TensorType};
use indexmap::IndexMap;

use crate::kernels::attention::Attention;
use crate::kernels::isa::Isa;
use crate::lower::{conv, experts, llm, matmul, order, product, reduce};

/// Main memory bytes per second and core that costs assume; ratios matter, not the figure.
const BYTES_PER_SECOND: f64 = 13e9;
/// Multiply-adds per second and core.
const FLOPS_PER_SECOND: f64 = 100e9;
/// Seconds per step: preparing, claiming, a barrier.
const SECONDS_PER_LAUNCH: f64 = 1e-6;

/// The CPU with a given instruction set and number of workers.
#[derive(Clone, Copy, Debug)]
pub struct CpuTarget {
    pub isa: Isa,
    pub threads: usize,
}

impl CpuTarget {
    /// This machine with so many workers.
    pub fn detect(threads: usize) -> Self {
        CpuTarget { isa: Isa::detect(), threads: threads.max(1) }
    }
}

impl Target for CpuTarget {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn weight_layout(&self, weight: &TensorType) -> Layout {
        let known = weight.rank() == 2 && weight.shape.as_const().is_some();
        if known && weight.dtype.is_quantized() { Layout::R16 } else { Layout::RowMajor }
    }

    fn supports(&self, op: Op, operands: &[&TensorType]) -> bool {
        let f32_left = operands.first().is_some_and(|x| x.dtype == DType::F32);
        let known = |ty: &&TensorType| ty.shape.as_const().is_some();
        // Fusion may run before or after layout: a quantised weight of known shape will be
        // packed.
        let quantized = |w: &&TensorType| w.dtype.is_quantized() && known(w);
        let dense = |w: &&TensorType| {
            let float = matches!(w.dtype, DType::F32 | DType::F16 | DType::Bf16);
            float && w.rank() == 2 && known(w)
        };
        match op {
            Op::MatmulGated => f32_left && operands.iter().skip(1).take(2).all(quantized),
            Op::MatmulAdd | Op::MatmulAct => {
                f32_left && operands.iter().skip(1).take(1).all(|w| quantized(w) || dense(w))
            }
            Op::MatmulMulti => f32_left && operands.iter().skip(1).all(known),
            // A norm is a step of its own, which all workers share.
            Op::NormMatmulMulti | Op::NormMatmulGated | Op::RopeAppend => false,
            _ => true,
        }
    }

    fn has_kernel(&self, op: Op, attrs: &Attrs, operands: &[&TensorType]) -> bool {
        let f32s = |types: &[&TensorType]| types.iter().all(|ty| ty.dtype == DType::F32);
        match (op, operands) {
            (Op::Softmax | Op::LogSoftmax | Op::RmsNorm | Op::LayerNorm, _) => f32s(operands),
            (Op::Rope, [x, ..]) => x.dtype == DType::F32,
            (Op::Attention, [q, k, v, ..]) => {
                q.dtype == DType::F32 && [k, v].iter().all(|ty| llm::reads(ty.dtype))
            }
            (Op::KvAppend, [cache, rows, ..]) => {
                rows.dtype == DType::F32 && llm::appends(cache.dtype)
            }
            (Op::ScatterAdd, [x, ..]) => !matches!(x.dtype, DType::F16 | DType::Bf16),
            (Op::Conv, [x, w]) => conv::handles(x, w),
            (Op::ExpertMatmul, [x, w, _]) => experts::handles(x, w),
            (Op::Matmul, [x, w]) => {
                let transposed = attrs.bool("transpose_b", false);
                let known = w.rank() == 2 && w.shape.as_const().is_some();
                f32s(&[x]) && (f32s(&[w]) || transposed && known && w.dtype != DType::F64)
            }
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
        let mut cost = Cost::of(op, operands, results, sizes);
        // A product prepares its left operand in a step of its own.
        if matches!(
            op,
            Op::Matmul | Op::MatmulAdd | Op::MatmulAct | Op::MatmulMulti | Op::MatmulGated
        ) {
            cost.launches += 1.0;
        }
        // The order of the rows, the rows in it, and the way back.
        if op == Op::ExpertMatmul {
            cost.launches += 3.0;
        }
        cost
    }

    fn seconds(&self, cost: &Cost) -> f64 {
        let cores = self.threads as f64;
        (cost.bytes / (BYTES_PER_SECOND * cores)).max(cost.flops / (FLOPS_PER_SECOND * cores))
            + cost.launches * SECONDS_PER_LAUNCH
    }

    fn scratch_bytes(
        &self,
        func: &Func,
        inst: &Inst,
        symbols: &IndexMap<Symbol, SymbolRange>,
    ) -> u64 {
        let types: Vec<&TensorType> = inst.inputs().map(|v| func.ty(v)).collect();
        let max = |d: &aether_ir::Dim| d.upper_bound(symbols).unwrap_or(0) as usize;
        let machine = (self.isa, self.threads);
        if let (Op::Matmul, [x, w]) = (inst.op, &types[..])
            && let Some(bytes) = matmul::scratch_bytes(inst, (x, w), symbols, machine)
        {
            return bytes;
        }
        match inst.op {
            Op::Matmul | Op::MatmulAct if !inst.attrs.bool("transpose_b", false) => {
                match types[1].shape.0.as_slice() {
                    [k, n] => product::plain_scratch_bytes(self.isa, self.threads, max(k), max(n)),
                    _ => 0,
                }
            }
            Op::ExpertMatmul => experts::scratch_bytes(inst, (types[1], types[2]), symbols),
            Op::Conv => conv::scratch_bytes(inst, (types[0], types[1]), symbols, machine),
            Op::Sort | Op::TopK => order::scratch_bytes(inst, types[0], symbols, self.threads),
            Op::ReduceSum | Op::ReduceMean | Op::ReduceProd | Op::ReduceMax | Op::ReduceMin => {
                let out = inst.results.first().map(|&r| func.ty(r));
                out.map_or(0, |out| reduce::scratch_bytes(inst, out, symbols))
            }
            Op::Matmul | Op::MatmulAdd | Op::MatmulAct | Op::MatmulGated | Op::MatmulMulti => {
                let x = types[0];
                let tokens: usize = x.shape.0[..x.rank().max(1) - 1].iter().map(max).product();
                let weights = match inst.op {
                    Op::MatmulGated => 2,
                    Op::MatmulMulti => inst.attrs.int("weights", 0).max(0) as usize,
                    _ => 1,
                };
                let used = &types[..types.len().min(1 + weights)];
                product::scratch_bytes(self.isa, self.threads, tokens, used)
            }
            Op::Attention => {
                let number = |ty: &TensorType, axis: usize| max(&ty.shape.0[axis]);
                // Over slots the caches have one more axis in front.
                let front = types[1].rank().saturating_sub(3);
                let shape = Attention {
                    tokens: number(types[0], 0),
                    past: 0,
                    causal: true,
                    heads: number(types[0], 1),
                    kv_heads: number(types[1], 1 + front).max(1),
                    head_dim: number(types[0], 2),
                    v_dim: number(types[2], 2 + front),
                    scale: 1.0,
                    window: None,
                    soft_cap: None,
                };
                let per_worker = shape.scratch_len(self.isa).next_multiple_of(64);
                (per_worker * 4 * self.threads) as u64
            }
            _ => 0,
        }
    }

    fn in_place(&self, op: Op, operand: usize) -> bool {
        match op {
            Op::RmsNorm | Op::LayerNorm | Op::Rope | Op::Softmax | Op::LogSoftmax => operand == 0,
            Op::Cumsum | Op::ScatterAdd => operand == 0,
            Op::Fused => true,
            // One loop, as `fused`: an operand of the result's type has all its elements.
            op => Role::of(op) == Some(Role::Map),
        }
    }
}
