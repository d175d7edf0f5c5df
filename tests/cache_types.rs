//! The ops of a cache of blocks: kernels on the CPU, refused by the GPU's compiler, which is how
//! placement learns to leave them to the CPU.

use aether_codegen_cpu::CpuTarget;
use aether_codegen_wgsl::{Adapter, CompileError, GpuTarget};
use aether_ir::target::Target;
use aether_ir::{Attrs, DType, Op, TensorType};
use aether_runtime::Files;

const APPEND: &str = "module @m {
  func @main(%c: tensor<64x2x32xTYPE>, %x: tensor<3x2x32xf32>, %past: tensor<i32>) -> tensor<64x2x32xTYPE> {
    %0 = kv_append donate %c, %x, %past : tensor<64x2x32xTYPE>
    return %0
  }
}";
const ATTENTION: &str = "module @m {
  func @main(%q: tensor<3x4x32xf32>, %k: tensor<64x2x32xTYPE>, %v: tensor<64x2x32xTYPE>, %past: tensor<i32>) -> tensor<3x4x32xf32> {
    %0 = attention %q, %k, %v, %past {scale = 0.125} : tensor<3x4x32xf32>
    return %0
  }
}";
const MIXED: &str = "module @m {
  func @main(%q: tensor<3x4x32xf32>, %k: tensor<64x2x32xf16>, %v: tensor<64x2x32xTYPE>, %past: tensor<i32>) -> tensor<3x4x32xf32> {
    %0 = attention %q, %k, %v, %past {scale = 0.125} : tensor<3x4x32xf32>
    return %0
  }
}";

#[test]
fn the_gpu_refuses_blocks_and_takes_floats() {
    for text in [APPEND, ATTENTION, MIXED] {
        for (ty, runs) in [("f16", true), ("f32", true), ("q8_0", false), ("q4_0", false)] {
            let module = aether_ir::parse_and_verify(&text.replace("TYPE", ty)).unwrap();
            let adapter = Adapter::LEAST;
            let plan = aether_passes::plan(&module, &GpuTarget { adapter }).unwrap();
            let outcome =
                aether_codegen_wgsl::compile(&module, &plan, "main", &Files::new(), adapter);
            match outcome {
                Ok(_) => assert!(runs, "{ty}: {text}"),
                Err(CompileError::Unsupported { message, .. }) => {
                    assert!(!runs && message.contains(ty), "{ty}: {message}");
                }
                Err(other) => panic!("{ty}: {other}"),
            }
        }
    }
}

#[test]
fn the_cpu_has_kernels_for_both() {
    let target = CpuTarget::detect(1);
    let rows = TensorType::new(DType::F32, [3u64, 2, 32]);
    let cache = |dtype| TensorType::new(dtype, [64u64, 2, 32]);
    let table = [
        (DType::F16, true),
        (DType::F32, true),
        (DType::Q8_0, true),
        (DType::Q4_0, true),
        (DType::Q5_1, false),
    ];
    for (dtype, has) in table {
        let c = cache(dtype);
        let of = |op, operands: &[&TensorType]| target.has_kernel(op, &Attrs::new(), operands);
        assert_eq!(of(Op::KvAppend, &[&c, &rows]), has, "{dtype}");
        assert_eq!(of(Op::Attention, &[&rows, &c, &c]), has, "{dtype}");
        assert_eq!(of(Op::Attention, &[&rows, &cache(DType::F16), &c]), has, "{dtype}");
    }
}
