//! The CPU against the reference interpreter: text in, numbers out, with every instruction set of
//! this machine, one thread and several, passes on and off.

use aether_codegen_cpu::Isa;
use aether_ir::interp::Interpreter;
use aether_ir::tensor::ConcreteType;
use aether_ir::text::parse_and_verify;
use aether_ir::{Bindings, DType, Module, Tensor, quant};
use aether_runtime::{Executable, Files, Options, run_executable};
use std::sync::Arc;

/// A module, the sizes its symbols get, and the distance allowed relative to the largest value.
struct Case {
    name: &'static str,
    source: &'static str,
    symbols: &'static [(&'static str, u64)],
    tolerance: f64,
}

/// Exact arithmetic but for the order of sums and the last places of transcendental functions.
const FLOAT: f64 = 2e-6;
/// Activations rounded to 8 bits.
const QUANT: f64 = 2e-2;

const CASES: &[Case] = &[
    Case {
        name: "elementwise chain with broadcasts",
        source: "module @m {\n  sym s in 1..=64\n  func @main(%x: tensor<[s]x33xf32>, %r: tensor<33xf32>, %c: tensor<f32>) -> tensor<[s]x33xf32> {\n    %0 = mul %x, %r : tensor<[s]x33xf32>\n    %1 = sub %c, %0 : tensor<[s]x33xf32>\n    %2 = silu %1 : tensor<[s]x33xf32>\n    %3 = add %2, %x : tensor<[s]x33xf32>\n    %4 = softmax %3 {axis = -1} : tensor<[s]x33xf32>\n    return %4\n  }\n}\n",
        symbols: &[("s", 7)],
        tolerance: FLOAT,
    },
    Case {
        name: "plain product",
        source: "module @m {\n  func @main(%x: tensor<37x65xf32>, %w: tensor<65x50xf32>) -> tensor<37x50xf32> {\n    %0 = matmul %x, %w : tensor<37x50xf32>\n    %1 = relu %0 : tensor<37x50xf32>\n    return %1\n  }\n}\n",
        symbols: &[],
        tolerance: FLOAT,
    },
    Case {
        name: "transposed f16 product with residual",
        source: "module @m {\n  sym s in 1..=64\n  func @main(%x: tensor<[s]x65xf32>, %w: tensor<50x65xf16>, %r: tensor<[s]x50xf32>) -> tensor<[s]x50xf32> {\n    %0 = matmul %x, %w {transpose_b = true} : tensor<[s]x50xf32>\n    %1 = add %0, %r : tensor<[s]x50xf32>\n    return %1\n  }\n}\n",
        symbols: &[("s", 19)],
        tolerance: FLOAT,
    },
    Case {
        name: "products with activations behind them",
        source: "module @m {\n  sym s in 1..=64\n  func @main(%x: tensor<[s]x65xf32>, %w: tensor<50x65xf16>, %p: tensor<65x50xf32>, %b: tensor<50xf32>, %r: tensor<[s]x50xf32>) -> (tensor<[s]x50xf32>, tensor<[s]x50xf32>, tensor<[s]x50xf32>, tensor<[s]x50xf32>) {\n    %0 = matmul %x, %w {transpose_b = true} : tensor<[s]x50xf32>\n    %1 = add %b, %0 : tensor<[s]x50xf32>\n    %2 = gelu %1 : tensor<[s]x50xf32>\n    %3 = matmul %x, %p : tensor<[s]x50xf32>\n    %4 = add %3, %r : tensor<[s]x50xf32>\n    %5 = silu %4 : tensor<[s]x50xf32>\n    %6 = matmul %x, %p : tensor<[s]x50xf32>\n    %7 = add %6, %b : tensor<[s]x50xf32>\n    %8 = tanh %7 : tensor<[s]x50xf32>\n    %9 = matmul %x, %w {transpose_b = true} : tensor<[s]x50xf32>\n    %10 = relu %9 : tensor<[s]x50xf32>\n    return %2, %5, %8, %10\n  }\n}\n",
        symbols: &[("s", 53)],
        tolerance: FLOAT,
    },
    Case {
        name: "reductions and movement by the reference",
        source: "module @m {\n  func @main(%x: tensor<4x6xf32>) -> (tensor<4xf32>, tensor<6x4xf32>, tensor<4xi32>) {\n    %0 = reduce_sum %x {axes = [1]} : tensor<4xf32>\n    %1 = transpose %x {perm = [1, 0]} : tensor<6x4xf32>\n    %2 = argmax %x {axis = -1} : tensor<4xi32>\n    return %0, %1, %2\n  }\n}\n",
        symbols: &[],
        tolerance: FLOAT,
    },
    Case {
        name: "a value returned twice, a parameter returned",
        source: "module @m {\n  func @main(%x: tensor<8xf32>) -> (tensor<8xf32>, tensor<8xf32>, tensor<8xf32>) {\n    %0 = neg %x : tensor<8xf32>\n    return %0, %0, %x\n  }\n}\n",
        symbols: &[],
        tolerance: FLOAT,
    },
    Case {
        name: "attention that looks ahead, with a window and without",
        source: "module @m {\n  sym s in 1..=32\n  func @main(%q: tensor<[s]x4x16xf32>, %k: tensor<64x2x16xf32>, %v: tensor<64x2x16xf32>, %past: tensor<i32>) -> (tensor<[s]x4x16xf32>, tensor<[s]x4x16xf32>) {\n    %0 = attention %q, %k, %v, %past {scale = 0.25, causal = false} : tensor<[s]x4x16xf32>\n    %1 = attention %q, %k, %v, %past {scale = 0.25, causal = false, window = 4} : tensor<[s]x4x16xf32>\n    return %0, %1\n  }\n}\n",
        symbols: &[("s", 29)],
        tolerance: 1e-5,
    },
    Case {
        name: "attention over a donated cache",
        source: "module @m {\n  sym s in 1..=32\n  func @main(%q: tensor<[s]x4x16xf32>, %k: tensor<[s]x2x16xf32>, %kc: tensor<64x2x16xf16>, %vc: tensor<64x2x16xf16>, %past: tensor<i32>) -> (tensor<[s]x4x16xf32>, tensor<64x2x16xf16>, tensor<64x2x16xf16>) {\n    %0 = rope %q, %past {mode = \"neox\", theta = 10000.0, n_dims = 16} : tensor<[s]x4x16xf32>\n    %1 = rope %k, %past {mode = \"norm\", theta = 10000.0, n_dims = 8} : tensor<[s]x2x16xf32>\n    %2 = kv_append donate %kc, %1, %past : tensor<64x2x16xf16>\n    %3 = kv_append donate %vc, %k, %past : tensor<64x2x16xf16>\n    %4 = attention %0, %2, %3, %past {scale = 0.25} : tensor<[s]x4x16xf32>\n    return %4, %2, %3\n  }\n}\n",
        symbols: &[("s", 9)],
        // The caches are f16: a value may round to the neighbour.
        tolerance: 1e-3,
    },
];

fn module(source: &str) -> Module {
    parse_and_verify(source)
        .unwrap_or_else(|d| panic!("{}", aether_ir::diag::render(&d, source, "case")))
}

fn random_inputs(module: &Module, symbols: &[(&str, u64)], rng: &mut fastrand::Rng) -> Vec<Tensor> {
    let bindings: Bindings = symbols.iter().map(|&(n, v)| (n.into(), v)).collect();
    let main = &module.funcs["main"];
    let mut inputs = Vec::new();
    for &p in &main.params {
        let ty = ConcreteType::of(main.ty(p), &bindings).unwrap();
        let n: usize = ty.shape.iter().product();
        let tensor = if ty.dtype == DType::I32 {
            Tensor::from_i64(DType::I32, &ty.shape, &vec![3; n]).unwrap()
        } else {
            let values: Vec<f64> = (0..n).map(|_| rng.f64() * 2.0 - 1.0).collect();
            Tensor::from_f64(ty.dtype, &ty.shape, &values).unwrap()
        };
        inputs.push(tensor);
    }
    inputs
}

/// The largest distance between two results, relative to the largest value.
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let (got, want) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let scale = want.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    got.iter().zip(&want).fold(0.0, |m: f64, (g, w)| {
        let d = (g - w).abs() / scale;
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    })
}

fn check(name: &str, module: &Module, inputs: &[Tensor], tolerance: f64) {
    let want = Interpreter::new(module).run("main", inputs.to_vec()).unwrap();
    for isa in Isa::available() {
        for threads in [1, 3] {
            for pipeline in [aether_runtime::DEFAULT_PIPELINE, "", "layout", "fuse,layout"] {
                let opts = Options {
                    threads,
                    isa: Some(isa),
                    pipeline: Some(pipeline.to_owned()),
                    verify: true,
                    ..Options::default()
                };
                let exe = Executable::compile(module.clone(), &Files::new(), &opts)
                    .unwrap_or_else(|e| panic!("{name}: {e}"));
                let got = run_executable(&Arc::new(exe), inputs.to_vec())
                    .unwrap_or_else(|e| panic!("{name}: {e}"));
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let d = distance(got, want);
                    assert!(
                        d <= tolerance,
                        "{name}: result {i} is off by {d:e} with {isa}, {threads} threads, \
                         pipeline \"{pipeline}\""
                    );
                }
            }
        }
    }
}

#[test]
fn cases_agree_with_the_interpreter() {
    let mut rng = fastrand::Rng::with_seed(1);
    for case in CASES {
        let module = module(case.source);
        let inputs = random_inputs(&module, case.symbols, &mut rng);
        check(case.name, &module, &inputs, case.tolerance);
    }
}

/// Products with every quantised type, alone and fused, over constants that layout packs.
#[test]
fn quantised_products_agree_with_the_interpreter() {
    let mut rng = fastrand::Rng::with_seed(2);
    for dtype in DType::quantized() {
        let (rows, cols) = (40usize, 512usize);
        let mut hex = Vec::new();
        for _ in 0..2 {
            let values: Vec<f32> = (0..rows * cols).map(|_| rng.f32() - 0.5).collect();
            let mut bytes = vec![0; dtype.row_bytes(cols).unwrap() * rows];
            quant::quantize(dtype, &values, &mut bytes).unwrap();
            hex.push(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
        }
        let w = format!("tensor<{rows}x{cols}x{dtype}>");
        let y = format!("tensor<[s]x{rows}xf32>");
        let source = format!(
            "module @m {{\n  sym s in 1..=64\n  const @g : {w} = dense<0x{}>\n  const @u : {w} = dense<0x{}>\n  \
             func @layer(%x: tensor<[s]x{cols}xf32>, %g: {w}, %u: {w}, %r: {y}, %b: tensor<{rows}xf32>) -> ({y}, {y}, {y}) {{\n    \
             %0 = matmul %x, %g {{transpose_b = true}} : {y}\n    \
             %1 = matmul %x, %u {{transpose_b = true}} : {y}\n    \
             %2 = silu %0 : {y}\n    \
             %3 = mul %2, %1 : {y}\n    \
             %4 = matmul %x, %u {{transpose_b = true}} : {y}\n    \
             %5 = add %4, %r : {y}\n    \
             %6 = matmul %x, %g {{transpose_b = true}} : {y}\n    \
             %7 = add %6, %b : {y}\n    \
             %8 = sigmoid %7 : {y}\n    \
             return %3, %5, %8\n  }}\n  \
             func @main(%x: tensor<[s]x{cols}xf32>, %r: {y}, %b: tensor<{rows}xf32>, %i: tensor<2xi32>) -> ({y}, {y}, {y}, tensor<2x{cols}xf32>) {{\n    \
             %g = constant @g : {w}\n    %u = constant @u : {w}\n    \
             %0, %1, %2 = call @layer %x, %g, %u, %r, %b : {y}, {y}, {y}\n    \
             %3 = gather %g, %i {{axis = 0}} : tensor<2x{cols}xf32>\n    \
             return %0, %1, %2, %3\n  }}\n}}\n",
            hex[0], hex[1],
        );
        let module = module(&source);
        for s in [1, 2, 21] {
            let inputs = random_inputs(&module, &[("s", s)], &mut rng);
            check(&format!("{dtype}, {s} tokens"), &module, &inputs, QUANT);
        }
    }
}

/// Rows with experts picked for them, with every quantised type, from one token to many: one row for
/// all picks of a token, and one for each.
#[test]
fn products_of_experts_agree_with_the_interpreter() {
    let mut rng = fastrand::Rng::with_seed(3);
    let (experts, n, cols, picks) = (5usize, 32usize, 256usize, 3usize);
    for dtype in DType::quantized().chain([DType::F32, DType::F16, DType::Bf16]) {
        let values: Vec<f32> = (0..experts * n * cols).map(|_| rng.f32() - 0.5).collect();
        let bytes = if dtype.is_quantized() {
            let mut bytes = vec![0; dtype.row_bytes(cols).unwrap() * experts * n];
            quant::quantize(dtype, &values, &mut bytes).unwrap();
            bytes
        } else {
            let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
            Tensor::from_f64(dtype, &[experts * n, cols], &values).unwrap().bytes().to_vec()
        };
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let w = format!("tensor<{}x{cols}x{dtype}>", experts * n);
        let y = format!("tensor<[s]x{picks}x{n}xf32>");
        let source = format!(
            "module @m {{\n  sym s in 1..=64\n  const @w : {w} = dense<0x{hex}>\n  \
             func @main(%x: tensor<[s]x1x{cols}xf32>, %z: tensor<[s]x{picks}x{cols}xf32>, %i: tensor<[s]x{picks}xi32>) -> ({y}, {y}) {{\n    \
             %w = constant @w : {w}\n    \
             %0 = expert_matmul %x, %w, %i {{experts = {experts}}} : {y}\n    \
             %1 = expert_matmul %z, %w, %i {{experts = {experts}}} : {y}\n    \
             return %0, %1\n  }}\n}}\n",
        );
        let module = module(&source);
        for s in [1usize, 3, 64] {
            let mut inputs = random_inputs(&module, &[("s", s as u64)], &mut rng);
            // The last expert is never picked, the first often.
            let ids: Vec<i64> = (0..s * picks).map(|_| rng.i64(-3..4).max(0)).collect();
            inputs[2] = Tensor::from_i64(DType::I32, &[s, picks], &ids).unwrap();
            let tolerance = if dtype.is_quantized() { QUANT } else { FLOAT };
            check(&format!("experts of {dtype}, {s} tokens"), &module, &inputs, tolerance);
        }
    }
}

/// An expert that there is not ends the run with an error.
#[test]
fn experts_out_of_range_are_errors() {
    let module = module(
        "module @m {\n  func @main(%x: tensor<2x1x4xf32>, %w: tensor<6x4xf32>, %i: tensor<2x2xi32>) -> tensor<2x2x3xf32> {\n    \
         %0 = expert_matmul %x, %w, %i {experts = 2} : tensor<2x2x3xf32>\n    return %0\n  }\n}\n",
    );
    for bad in [2, -1] {
        let mut inputs = random_inputs(&module, &[], &mut fastrand::Rng::with_seed(4));
        inputs[2] = Tensor::from_i64(DType::I32, &[2, 2], &[0, 1, bad, 0]).unwrap();
        let exe = Executable::compile(module.clone(), &Files::new(), &Options::default()).unwrap();
        let error = run_executable(&Arc::new(exe), inputs.clone()).err().unwrap().to_string();
        assert!(error.contains(&format!("expert {bad} is not among the 2")), "{error}");
        let error = Interpreter::new(&module).run("main", inputs).err().unwrap().to_string();
        assert!(error.contains(&format!("expert {bad} is not among the 2")), "{error}");
    }
}
