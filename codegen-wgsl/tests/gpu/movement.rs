//! Rope and appending, rows of tables, the norms and softmax, argmax and top_k.

use aether_codegen_wgsl::kernel::Launch;
use aether_codegen_wgsl::templates::gather::GatherRows;
use aether_codegen_wgsl::templates::pick::Pick;
use aether_codegen_wgsl::templates::rope::{Positions, RotateAppend, Rotation, Rows};
use aether_codegen_wgsl::templates::rows::{RowKernel, RowOp};
use aether_codegen_wgsl::templates::{Operand, Site};
use aether_ir::tensor::ConcreteType;
use aether_ir::{Attrs, DType, Dim, Op, Symbol, Tensor};
use indexmap::IndexSet;

use crate::sample::{
    GPU, activations, adapters, assert_close, device_bytes, floats, matrix, meaning, operands,
};

fn run(
    launches: &dyn Fn(&Site) -> Vec<Launch>,
    list: &[Operand],
    bytes: &[Vec<u8>],
    results: &[usize],
    scratch: u64,
) -> Vec<Vec<Vec<u8>>> {
    let symbols: IndexSet<Symbol> = IndexSet::new();
    let run = |adapter| {
        let site = Site { adapter, symbols: &symbols, operands: list };
        GPU.run(&launches(&site), bytes, results, scratch, &[])
    };
    adapters().iter().map(run).collect()
}

fn f32s(shape: &[usize]) -> ConcreteType {
    ConcreteType::new(DType::F32, shape.to_vec())
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
            let x = activations(&mut rng, &[3, 2, 40]);
            let pos = Tensor::scalar_i32(position);
            let mut list = vec![&x, &pos];
            list.extend(factors);
            let want = meaning(Op::Rope, &list, &attrs, &[f32s(&[3, 2, 40])]);
            let values = factors.map_or(Vec::new(), |f| f.to_f64_vec().unwrap());
            let rope = RotateAppend {
                tokens: Dim::new(3),
                most_tokens: 3,
                positions: Positions::First,
                rows: vec![Rows {
                    heads: 2,
                    d: 40,
                    rotation: Some(Rotation::new(&attrs, &values)),
                    cache: None,
                }],
            };
            assert!(rope.is_supported());
            let bytes = [x.bytes().to_vec(), pos.bytes().to_vec()];
            for found in run(&|s| rope.launches(s), &operands(2), &bytes, &[960], 0) {
                let want = want[0].to_f32_vec().unwrap();
                assert_close(&format!("{attrs:?} {position}"), &floats(&found[0]), &want, 5e-6);
            }
        }
    }
}

#[test]
fn a_layers_rope_and_append_in_one() {
    let mut rng = fastrand::Rng::with_seed(2);
    let attrs = Attrs::new().with("mode", "norm").with("theta", 1e6).with("n_dims", 16i64);
    for cache in [DType::F16, DType::F32] {
        let (q, k, v) = (
            activations(&mut rng, &[2, 4, 16]),
            activations(&mut rng, &[2, 2, 16]),
            activations(&mut rng, &[2, 2, 16]),
        );
        let past = Tensor::scalar_i32(5);
        let rotated = |x: &Tensor| meaning(Op::Rope, &[x, &past], &attrs, &[f32s(x.shape())]);
        let old = Tensor::splat(cache, &[9, 2, 16], 0.5).unwrap();
        let appended = |x: &Tensor| {
            let ty = ConcreteType::new(cache, vec![9, 2, 16]);
            meaning(Op::KvAppend, &[&old, x, &past], &Attrs::new(), &[ty])[0].clone()
        };
        let (want_k, want_v) = (appended(&rotated(&k)[0]), appended(&v));
        let rotation = Some(Rotation::new(&attrs, &[]));
        let rows = |heads, rotation, cache| Rows { heads, d: 16, rotation, cache };
        let layer = RotateAppend {
            tokens: Dim::new(2),
            most_tokens: 2,
            positions: Positions::First,
            rows: vec![
                rows(4, rotation.clone(), None),
                rows(2, rotation, Some((9, cache))),
                rows(2, None, Some((9, cache))),
            ],
        };
        // The position and `past` are one value, which is bound once.
        let mut list = operands(5);
        list[4] = list[3];
        let mut bytes: Vec<Vec<u8>> =
            [&q, &k, &v, &past].iter().map(|t| t.bytes().to_vec()).collect();
        bytes.push(Vec::new());
        let size = 9 * 2 * 16 * cache.block_bytes();
        for found in run(&|s| layer.launches(s), &list, &bytes, &[512, size, size], 0) {
            let want = rotated(&q)[0].to_f32_vec().unwrap();
            assert_close("q", &floats(&found[0]), &want, 5e-6);
            for (found, want) in [(&found[1], &want_k), (&found[2], &want_v)] {
                let row = size / 9;
                // Rows that are not appended are left as they were.
                assert!(found[..5 * row].iter().chain(&found[7 * row..]).all(|b| *b == 0xff));
                let ty = ConcreteType::new(cache, vec![2, 32]);
                let new = Tensor::new(ty, found[5 * row..7 * row].to_vec()).unwrap();
                let want = &want.to_f32_vec().unwrap()[5 * 32..7 * 32];
                assert_close("cache", &new.to_f32_vec().unwrap(), want, 2e-3);
            }
        }
    }
}

#[test]
fn rows_of_quantised_tables() {
    let mut rng = fastrand::Rng::with_seed(3);
    for dtype in DType::all().filter(|d| !d.planes().is_empty()) {
        let table = matrix(&mut rng, dtype, 20, 512);
        let indices = Tensor::from_i32(&[3], &[19, 0, 7]).unwrap();
        let attrs = Attrs::new().with("axis", 0i64);
        let want = meaning(Op::Gather, &[&table, &indices], &attrs, &[f32s(&[3, 512])]);
        let kernel = GatherRows { dtype, rows: 20, k: 512, n: Dim::new(4) };
        // One more, out of range.
        let given = Tensor::from_i32(&[4], &[19, 0, 7, 20]).unwrap();
        let bytes = [device_bytes(&table), given.bytes().to_vec()];
        let launches = |s: &Site| kernel.launches(s).unwrap();
        for found in run(&launches, &operands(2), &bytes, &[4 * 512 * 4], 0) {
            let found = floats(&found[0]);
            let want = want[0].to_f32_vec().unwrap();
            assert_close(dtype.name(), &found[..3 * 512], &want, 1e-6);
            assert!(found[3 * 512..].iter().all(|v| v.is_nan()), "{dtype}");
        }
    }
}

#[test]
fn softmax_and_norms() {
    let mut rng = fastrand::Rng::with_seed(4);
    for (rows, n) in [(1, 1), (3, 100), (70, 129), (2, 5000)] {
        let x = activations(&mut rng, &[rows, n]);
        let (w, b) = (activations(&mut rng, &[n]), activations(&mut rng, &[n]));
        let eps = Attrs::new().with("eps", f64::from(1e-5f32));
        let axis = Attrs::new().with("axis", 1i64);
        for (op, kernel, list, attrs) in [
            (Op::Softmax, RowOp::Softmax, vec![&x], &axis),
            (Op::LogSoftmax, RowOp::LogSoftmax, vec![&x], &axis),
            (Op::RmsNorm, RowOp::RmsNorm { eps: 1e-5 }, vec![&x, &w], &eps),
            (Op::LayerNorm, RowOp::LayerNorm { eps: 1e-5 }, vec![&x, &w, &b], &eps),
        ] {
            let want = meaning(op, &list, attrs, &[f32s(&[rows, n])]);
            let kernel = RowKernel { op: kernel, rows: Dim::from(rows), n: Dim::from(n) };
            let bytes: Vec<Vec<u8>> = list.iter().map(|t| t.bytes().to_vec()).collect();
            let size = rows * n * 4;
            let launches = |s: &Site| kernel.launches(s);
            for found in run(&launches, &operands(list.len()), &bytes, &[size], 0) {
                let want = want[0].to_f32_vec().unwrap();
                assert_close(&format!("{op} {rows}x{n}"), &floats(&found[0]), &want, 1e-4);
            }
        }
    }
}

#[test]
fn the_greatest_and_the_k_greatest() {
    let mut rng = fastrand::Rng::with_seed(5);
    for (rows, n, k) in [(1, 1, 1), (2, 1000, 7), (3, 5000, 40), (1, 150_000, 64)] {
        // Few distinct values: many are equal. Zeros of both signs and NaN.
        let mut values: Vec<f32> = (0..rows * n).map(|_| rng.i32(-300..300) as f32 * 0.5).collect();
        values[n / 2] = -0.0;
        if n > 1000 {
            values[n - 3] = f32::NAN;
            values[n - 7] = -f32::NAN;
        }
        let x = Tensor::from_f32(&[rows, n], &values).unwrap();
        let index = ConcreteType::new(DType::I32, vec![rows]);
        let axis = Attrs::new().with("axis", 1i64);
        let want = meaning(Op::Argmax, &[&x], &axis, &[index]);
        let pick = Pick { rows: Dim::from(rows), most_rows: rows, n, k: None };
        let bytes = [x.bytes().to_vec()];
        let scratch = pick.scratch_bytes();
        for found in run(&|s| pick.launches(s), &operands(1), &bytes, &[rows * 4], scratch) {
            assert_eq!(found[0], want[0].bytes().to_vec(), "argmax {rows}x{n}");
        }
        let types = [f32s(&[rows, k]), ConcreteType::new(DType::I32, vec![rows, k])];
        let attrs = Attrs::new().with("k", k as i64);
        let want = meaning(Op::TopK, &[&x], &attrs, &types);
        let pick = Pick { k: Some(k), ..pick };
        let (scratch, size) = (pick.scratch_bytes(), rows * k * 4);
        for found in run(&|s| pick.launches(s), &operands(1), &bytes, &[size, size], scratch) {
            assert_eq!(found[1], want[1].bytes().to_vec(), "top_k {rows}x{n}");
            assert_eq!(found[0], want[0].bytes().to_vec(), "values {rows}x{n}");
        }
    }
}
