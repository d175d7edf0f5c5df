//! Fusions that take several results at once for targets where the number of kernels decides:
//! norms in products, ropes with the appends.

use aether_ir::target::{Cost, Target};
use aether_ir::{
    DType, Func, Inst, Interpreter, Layout, Module, Op, Symbol, SymbolRange, Tensor, TensorType,
};
use aether_passes::generic::GenericTarget;
use aether_passes::{Pass, PassCtx, pass};
use indexmap::IndexMap;

/// As the generic target, with a kernel for everything.
struct Everything;

impl Target for Everything {
    fn name(&self) -> &'static str {
        "everything"
    }

    fn weight_layout(&self, _: &TensorType) -> Layout {
        Layout::RowMajor
    }

    fn supports(&self, _: Op, _: &[&TensorType]) -> bool {
        true
    }

    fn cost(
        &self,
        op: Op,
        operands: &[&TensorType],
        results: &[&TensorType],
        sizes: &dyn Fn(&str) -> u64,
    ) -> Cost {
        GenericTarget.cost(op, operands, results, sizes)
    }

    fn seconds(&self, cost: &Cost) -> f64 {
        GenericTarget.seconds(cost)
    }

    fn scratch_bytes(&self, _: &Func, _: &Inst, _: &IndexMap<Symbol, SymbolRange>) -> u64 {
        0
    }

    fn in_place(&self, _: Op, _: usize) -> bool {
        false
    }
}

/// A layer's attention and gate, as the model builders write them.
const LAYER: &str = "module @m {
  func @main(%x: tensor<2x8xf32>, %past: tensor<i32>, %k0: tensor<6x1x4xf32>, %v0: tensor<6x1x4xf32>, %g: tensor<8xf32>, %wq: tensor<8x8xf32>, %wk: tensor<4x8xf32>, %wv: tensor<4x8xf32>, %wg: tensor<6x8xf32>, %wu: tensor<6x8xf32>, %bk: tensor<4xf32>) -> (tensor<2x8xf32>, tensor<2x6xf32>, tensor<6x1x4xf32>, tensor<6x1x4xf32>) {
    %n = rms_norm %x, %g {eps = 1e-5} : tensor<2x8xf32>
    %q = matmul %n, %wq {transpose_b = true} : tensor<2x8xf32>
    %kp = matmul %n, %wk {transpose_b = true} : tensor<2x4xf32>
    %k = add %kp, %bk : tensor<2x4xf32>
    %v = matmul %n, %wv {transpose_b = true} : tensor<2x4xf32>
    %qh = reshape %q : tensor<2x2x4xf32>
    %kh = reshape %k : tensor<2x1x4xf32>
    %vh = reshape %v : tensor<2x1x4xf32>
    %qr = rope %qh, %past {mode = \"neox\", theta = 10000.0, n_dims = 4} : tensor<2x2x4xf32>
    %kr = rope %kh, %past {mode = \"neox\", theta = 10000.0, n_dims = 4} : tensor<2x1x4xf32>
    %k1 = kv_append donate %k0, %kr, %past : tensor<6x1x4xf32>
    %v1 = kv_append donate %v0, %vh, %past : tensor<6x1x4xf32>
    %a = attention %qr, %k1, %v1, %past {scale = 0.5} : tensor<2x2x4xf32>
    %flat = reshape %a : tensor<2x8xf32>
    %m = rms_norm %flat, %g {eps = 1e-6} : tensor<2x8xf32>
    %gate = matmul %m, %wg {transpose_b = true} : tensor<2x6xf32>
    %up = matmul %m, %wu {transpose_b = true} : tensor<2x6xf32>
    %act = silu %gate : tensor<2x6xf32>
    %h = mul %act, %up : tensor<2x6xf32>
    return %flat, %h, %k1, %v1
  }
}
";

fn fused(text: &str, disable: &[&str]) -> Module {
    let mut module = aether_ir::parse_and_verify(text).unwrap();
    let mut ctx = PassCtx::new(&Everything);
    ctx.disabled.extend(disable.iter().map(|name| (*name).to_owned()));
    let fuse: &dyn Pass = pass("fuse").unwrap();
    fuse.run(&mut module, &ctx).unwrap();
    aether_ir::verify(&module)
        .unwrap_or_else(|d| panic!("{}", aether_ir::text::explain(&module, &d)));
    module
}

fn ops(module: &Module) -> Vec<Op> {
    module.funcs["main"].body.iter().map(|inst| inst.op).collect()
}

#[test]
fn a_layer_becomes_few_kernels_and_keeps_its_meaning() {
    let module = fused(LAYER, &[]);
    let ops = ops(&module);
    for (op, count) in [
        (Op::RmsNorm, 0),
        (Op::NormMatmulMulti, 1),
        (Op::NormMatmulGated, 1),
        (Op::RopeAppend, 1),
        (Op::Rope, 0),
        (Op::KvAppend, 0),
    ] {
        assert_eq!(ops.iter().filter(|o| **o == op).count(), count, "{op}: {ops:?}");
    }
    let before = aether_ir::parse_and_verify(LAYER).unwrap();
    let mut rng = fastrand::Rng::with_seed(11);
    let main = &before.funcs["main"];
    let args: Vec<Tensor> = main
        .params
        .iter()
        .map(|&p| {
            let ty = main.ty(p);
            let shape: Vec<usize> =
                ty.shape.as_const().unwrap().into_iter().map(|d| d as usize).collect();
            match ty.dtype {
                DType::I32 => Tensor::scalar_i32(3),
                _ => {
                    let n = shape.iter().product();
                    let values: Vec<f32> = (0..n).map(|_| rng.f32() - 0.5).collect();
                    Tensor::from_f32(&shape, &values).unwrap()
                }
            }
        })
        .collect();
    let run = |m: &Module| Interpreter::new(m).run("main", args.clone()).unwrap();
    for (found, want) in run(&module).iter().zip(&run(&before)) {
        let (found, want) = (found.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
        let close = found.iter().zip(&want).all(|(f, w)| (f - w).abs() < 1e-5);
        assert!(close, "{found:?}\n{want:?}");
    }
}

#[test]
fn each_can_be_switched_off() {
    let off = ops(&fused(LAYER, &["norm-matmul", "rope-append"]));
    assert!(off.contains(&Op::RmsNorm) && off.contains(&Op::Rope), "{off:?}");
    let norms = ops(&fused(LAYER, &["rope-append"]));
    assert!(!norms.contains(&Op::RmsNorm) && norms.contains(&Op::KvAppend), "{norms:?}");
}

#[test]
fn what_is_read_elsewhere_stays() {
    // The norm is returned too; the turned k is read again.
    let text = LAYER
        .replace("return %flat,", "return %n,")
        .replace("%act = silu %gate", "%gone = neg %kr : tensor<2x1x4xf32>\n    %act = silu %gate");
    let ops = ops(&fused(&text, &[]));
    assert!(ops.contains(&Op::RmsNorm) && ops.contains(&Op::Rope), "{ops:?}");
    assert!(!ops.contains(&Op::NormMatmulMulti) && !ops.contains(&Op::RopeAppend), "{ops:?}");
}
