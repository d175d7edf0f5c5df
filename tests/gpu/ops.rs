//! Every op, on the oracle's cases and on random operands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aether_ir::tensor::ConcreteType;
use aether_ir::{
    Attrs, ConstData, DType, FuncBuilder, Interpreter, Layout, Module, Op, Tensor, TensorType,
};
use aether_runtime::{Arena, run_executable};

use super::oracle;
use super::support::{check, compile, difference};

/// Whether WGSL has no numbers of a type.
fn foreign(t: &Tensor) -> bool {
    matches!(t.dtype(), DType::F64 | DType::I64) || t.dtype().is_quantized()
}

#[test]
fn ops_agree_with_the_oracles_cases() {
    let mut seen: BTreeMap<Op, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut refused = BTreeSet::new();
    for case in oracle::cases(Path::new(env!("CARGO_MANIFEST_DIR"))) {
        let oracle::Case { op, mut attrs, operands, results: want, what } = case;
        if operands.iter().chain(&want).any(|t| t.layout() != Layout::RowMajor) {
            continue;
        }
        if let (Op::Slice, Some(limits)) = (op, attrs.ints("limits")) {
            // A whole axis is written so when its length is a symbol; here it is a number.
            let whole = |(&limit, &n): (&i64, &usize)| if limit == -1 { n as i64 } else { limit };
            let limits = limits.iter().zip(operands[0].shape()).map(whole).collect::<Vec<_>>();
            attrs = attrs.with("limits", limits);
        }
        let declared: Vec<TensorType> = want.iter().map(|t| t.ty().to_type()).collect();
        match check(op, &attrs, &operands, &declared) {
            Ok(None) => *seen.entry(op).or_default() += 1,
            Ok(Some(why)) => {
                let types: Vec<ConcreteType> = operands.iter().map(Tensor::ty).collect();
                wrong.push(format!("{what} of {types:?}: {why}"));
            }
            Err(e) => {
                let may = operands.iter().chain(&want).any(foreign);
                if may {
                    refused.insert(op);
                } else {
                    wrong.push(format!("{what}: {e}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen.len() > 50, "{seen:?}, refused {refused:?}");
}

fn agrees(op: Op, attrs: &Attrs, operands: &[Tensor], declared: &[TensorType]) {
    let types: Vec<ConcreteType> = operands.iter().map(Tensor::ty).collect();
    let found = check(op, attrs, operands, declared).unwrap_or_else(|e| panic!("{op}: {e}"));
    assert_eq!(found, None, "{op} {attrs:?} of {types:?}");
}

fn random(rng: &mut fastrand::Rng, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| 2.0 * rng.f32() - 1.0).collect();
    Tensor::from_f32(shape, &values).unwrap()
}

#[test]
fn rope_at_small_and_large_positions() {
    let mut rng = fastrand::Rng::with_seed(1);
    let base =
        |mode: &str| Attrs::new().with("mode", mode).with("theta", 10000.0).with("n_dims", 32i64);
    let yarn = base("neox")
        .with("freq_scale", 0.25)
        .with("ext_factor", 1.0)
        .with("n_ctx_orig", 4096i64)
        .with("attn_factor", 1.1);
    let factors: Vec<f32> = (0..16).map(|i| 1.0 + i as f32 * 0.3).collect();
    let factors = Tensor::from_f32(&[16], &factors).unwrap();
    for (attrs, factors) in
        [(base("norm"), None), (base("neox"), None), (yarn, None), (base("norm"), Some(&factors))]
    {
        for position in [0, 1, 77, 4095, 131_071, 1_000_003, -5] {
            let mut operands = vec![random(&mut rng, &[3, 2, 40]), Tensor::scalar_i32(position)];
            operands.extend(factors.cloned());
            agrees(Op::Rope, &attrs, &operands, &[]);
        }
    }
}

#[test]
fn rope_with_the_appends() {
    let mut rng = fastrand::Rng::with_seed(2);
    for (mode, n_dims) in [("norm", 16i64), ("neox", 12)] {
        let attrs = Attrs::new().with("mode", mode).with("theta", 1e6).with("n_dims", n_dims);
        for dtype in [DType::F16, DType::F32] {
            let cache = |heads: usize, d: usize| Tensor::splat(dtype, &[9, heads, d], 0.5).unwrap();
            let operands = [
                random(&mut rng, &[2, 4, 16]),
                random(&mut rng, &[2, 2, 16]),
                random(&mut rng, &[2, 2, 8]),
                cache(2, 16),
                cache(2, 8),
                Tensor::scalar_i32(5),
            ];
            agrees(Op::RopeAppend, &attrs, &operands, &[]);
        }
    }
}

#[test]
fn long_rows() {
    let mut rng = fastrand::Rng::with_seed(4);
    let axis = Attrs::new().with("axis", 1i64);
    let eps = Attrs::new().with("eps", 1e-5);
    for (rows, n) in [(1, 1), (3, 100), (70, 129), (2, 5000)] {
        let (x, w, b) =
            (random(&mut rng, &[rows, n]), random(&mut rng, &[n]), random(&mut rng, &[n]));
        agrees(Op::Softmax, &axis, std::slice::from_ref(&x), &[]);
        agrees(Op::LogSoftmax, &axis, std::slice::from_ref(&x), &[]);
        agrees(Op::RmsNorm, &eps, &[x.clone(), w.clone()], &[]);
        agrees(Op::LayerNorm, &eps, &[x, w, b], &[]);
    }
    for (rows, n, k) in [(2, 1000, 7i64), (3, 9000, 1), (1, 150_000, 64)] {
        // Few distinct values: many are equal.
        let mut values: Vec<f32> = (0..rows * n).map(|_| rng.i32(-300..300) as f32 * 0.5).collect();
        values[n / 2] = f32::NAN;
        let x = Tensor::from_f32(&[rows, n], &values).unwrap();
        agrees(Op::Argmax, &axis, std::slice::from_ref(&x), &[]);
        agrees(Op::TopK, &Attrs::new().with("k", k), &[x], &[]);
    }
}

/// A table that is laid out for the GPU, and an index beyond its end.
#[test]
fn rows_of_quantised_tables_are_picked_or_refused() {
    let ty = TensorType::new(DType::Q8_0, [5u64, 32]);
    let mut f = FuncBuilder::new("main");
    let indices = f.param("i", TensorType::new(DType::I32, [2u64]));
    let table = f.constant("table", ty.clone());
    let rows = f.op(Op::Gather, &[table, indices], Attrs::new().with("axis", 0i64)).unwrap();
    let mut module = Module::new("m");
    module.add_func(f.finish(&[rows]));
    let mut rng = fastrand::Rng::with_seed(5);
    let values: Vec<f32> = (0..5 * 32).map(|_| rng.f32() - 0.5).collect();
    let mut bytes = vec![0; 5 * 34];
    aether_ir::quant::quantize(DType::Q8_0, &values, &mut bytes).unwrap();
    module.add_const("table", ty, ConstData::Dense(bytes.into()));
    let exe = compile(&module, "layout", Arena::Shared).unwrap();
    assert!(aether_ir::text::print_module(exe.module()).contains("planes"));
    let run = |i: [i32; 2]| {
        let indices = Tensor::from_i32(&[2], &i).unwrap();
        let want = Interpreter::new(&module).run("main", vec![indices.clone()]);
        (run_executable(&exe, vec![indices]), want)
    };
    let (got, want) = run([4, 0]);
    assert_eq!(difference(&got.unwrap()[0], &want.unwrap()[0]), None);
    for i in [[5, 0], [0, -1]] {
        let (got, want) = run(i);
        let error = got.unwrap_err().to_string();
        assert!(error.contains("out of range") && want.is_err(), "{error}");
    }
}
