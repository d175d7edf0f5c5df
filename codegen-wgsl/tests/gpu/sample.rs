//! Random tensors, and comparing with the interpreter.

use std::sync::LazyLock;

use aether_codegen_wgsl::Adapter;
use aether_codegen_wgsl::kernel::{Access, Bind};
use aether_codegen_wgsl::planes::pack_rows;
use aether_codegen_wgsl::templates::Operand;
use aether_ir::tensor::{ConcreteType, EvalCtx};
use aether_ir::{Attrs, DType, Op, Tensor};

use crate::harness::Gpu;

pub static GPU: LazyLock<Gpu> = LazyLock::new(|| Gpu::open().expect("a Vulkan adapter"));

/// The adapter as it is, and with fields cleared to force each fallback.
pub fn adapters() -> Vec<Adapter> {
    let real = GPU.adapter;
    let least = Adapter { subgroup: None, f16: false, cooperative_matrix: false, ..real };
    let mut all = vec![real, Adapter { workgroup_bytes: 16 << 10, ..least }];
    if real.cooperative_matrix {
        all.push(Adapter { cooperative_matrix: false, ..real });
    } else {
        // Emulated by the harness.
        all.push(Adapter {
            cooperative_matrix: true,
            subgroup: Some(32),
            workgroup_bytes: 48 << 10,
            ..real
        });
    }
    all
}

/// Operands bound one after another.
pub fn operands(n: usize) -> Vec<Operand> {
    (0..n).map(|i| Operand { bind: Bind::Operand(i), access: Access::Read }).collect()
}

/// Values of a normal distribution, nearly.
pub fn normal(rng: &mut fastrand::Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| (0..6).map(|_| rng.f32() - 0.5).sum::<f32>() * 1.4).collect()
}

/// A random f32 tensor.
pub fn activations(rng: &mut fastrand::Rng, shape: &[usize]) -> Tensor {
    let values = normal(rng, shape.iter().product());
    Tensor::from_f32(shape, &values).unwrap()
}

/// A random matrix of any type.
pub fn matrix(rng: &mut fastrand::Rng, dtype: DType, rows: usize, k: usize) -> Tensor {
    let values: Vec<f32> = normal(rng, rows * k).iter().map(|v| v * 0.3).collect();
    let mut bytes = vec![0; rows * dtype.row_bytes(k).unwrap()];
    aether_ir::quant::quantize(dtype, &values, &mut bytes).unwrap();
    Tensor::new(ConcreteType::new(dtype, vec![rows, k]), bytes).unwrap()
}

/// The bytes of a tensor as a kernel reads them: quantised ones in planes.
pub fn device_bytes(t: &Tensor) -> Vec<u8> {
    let k = *t.shape().last().unwrap_or(&1);
    match t.dtype().planes_row_bytes(k) {
        Some(row) => {
            let mut out = vec![0; t.numel() / k * row];
            pack_rows(t.dtype(), k, t.bytes(), &mut out).unwrap();
            out
        }
        None => t.bytes().to_vec(),
    }
}

/// The interpreter's results.
pub fn meaning(
    op: Op,
    operands: &[&Tensor],
    attrs: &Attrs,
    results: &[ConcreteType],
) -> Vec<Tensor> {
    let eval = op.info().eval.expect("a meaning");
    eval(&EvalCtx { operands, attrs, results }).expect("operands that fit")
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Fails unless `found` differs from `want` by at most `tolerance` of the root mean square of
/// `want`, and is not finite where `want` is not.
pub fn assert_close(what: &str, found: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(found.len(), want.len(), "{what}");
    let finite: Vec<f32> = want.iter().copied().filter(|v| v.is_finite()).collect();
    let mean = finite.iter().map(|v| v * v).sum::<f32>() / finite.len().max(1) as f32;
    let bound = tolerance * mean.sqrt().max(1e-3);
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        let same = if w.is_finite() { (f - w).abs() <= bound } else { !f.is_finite() };
        assert!(same, "{what}: element {i} is {f}, not {w} (within {bound})");
    }
}
