//! Products against the meanings of `matmul` and the ops that fusion makes of it.

use aether_codegen_wgsl::templates::Site;
use aether_codegen_wgsl::templates::matvec::{self, Variant};
use aether_codegen_wgsl::templates::product::{Addend, Product, Weight};
use aether_codegen_wgsl::templates::tiled;
use aether_ir::tensor::ConcreteType;
use aether_ir::{Attrs, DType, Dim, Layout, Op, Symbol, Tensor};
use indexmap::IndexSet;

use crate::sample::{
    GPU, activations, adapters, assert_close, device_bytes, floats, matrix, meaning, operands,
};

const TYPES: [DType; 13] = [
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2K,
    DType::Q3K,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
    DType::F32,
    DType::F16,
    DType::Bf16,
];

fn weight(t: &Tensor) -> Weight {
    let planes = t.dtype().is_quantized();
    let layout = if planes { Layout::Planes } else { Layout::RowMajor };
    Weight { dtype: t.dtype(), layout, rows: t.shape()[0] }
}

fn plain(x: &Tensor, weights: &[&Tensor]) -> Product {
    Product {
        k: x.shape()[1],
        tokens: Dim::from(x.shape()[0]),
        most_tokens: x.shape()[0],
        weights: weights.iter().map(|w| weight(w)).collect(),
        addends: Vec::new(),
        act: None,
        gated: false,
        norm: None,
        part: None,
    }
}

/// Runs the product on every adapter and compares. Activations are rounded to 8 bits, which
/// costs up to a percent of a typical result.
fn check(what: &str, product: &Product, operands_of: &[&Tensor], want: &[Tensor]) {
    let plain = product.weights[0].dtype == DType::F32;
    check_within(if plain { 1e-4 } else { 0.06 }, what, product, operands_of, want);
}

fn check_within(
    tolerance: f32,
    what: &str,
    product: &Product,
    operands_of: &[&Tensor],
    want: &[Tensor],
) {
    assert!(product.is_supported(), "{what}");
    let symbols: IndexSet<Symbol> = ["s0".into()].into();
    let bytes: Vec<Vec<u8>> = operands_of.iter().map(|t| device_bytes(t)).collect();
    let tokens = operands_of[0].shape()[0] as u32;
    for adapter in adapters() {
        let site = Site { adapter: &adapter, symbols: &symbols, operands: &operands(bytes.len()) };
        let sizes: Vec<usize> = want.iter().map(|w| w.numel() * 4).collect();
        let launches = product.launches(&site);
        let too_slow = GPU.emulates(&adapter) && tokens as usize * product.k > 1 << 14;
        if too_slow || !GPU.can_run(&adapter, &launches) {
            continue;
        }
        let found =
            GPU.run(&launches, &bytes, &sizes, product.scratch_bytes(site.adapter), &[tokens]);
        for (f, w) in found.iter().zip(want) {
            let what = format!("{what} {:?}", adapter.subgroup);
            assert_close(&what, &floats(f), &w.to_f32_vec().unwrap(), tolerance);
        }
    }
}

fn result(rows: usize, columns: usize) -> ConcreteType {
    ConcreteType::new(DType::F32, vec![rows, columns])
}

#[test]
fn every_type_and_many_shapes() {
    let mut rng = fastrand::Rng::with_seed(1);
    let attrs = Attrs::new().with("transpose_b", true);
    for dtype in TYPES {
        for (tokens, n, k) in [(1, 37, 256), (3, 65, 1536), (17, 66, 512), (100, 20, 256)] {
            let x = activations(&mut rng, &[tokens, k]);
            let w = matrix(&mut rng, dtype, n, k);
            let want = meaning(Op::Matmul, &[&x, &w], &attrs, &[result(tokens, n)]);
            let what = format!("{dtype} {tokens}x{n}x{k}");
            check(&what, &plain(&x, &[&w]), &[&x, &w], &want);
        }
    }
}

#[test]
fn rows_longer_than_workgroup_memory_and_odd_blocks() {
    let mut rng = fastrand::Rng::with_seed(2);
    let attrs = Attrs::new().with("transpose_b", true);
    let table = [
        (DType::Q4_0, 1, 9, 32),
        (DType::Q8_0, 2, 9, 576),
        (DType::Q4K, 8, 5, 14336),
        (DType::Q6K, 1, 5, 43520),
        (DType::F16, 1, 7, 8),
        (DType::F16, 4, 7, 14344),
        (DType::F32, 1, 7, 20),
    ];
    for (dtype, tokens, n, k) in table {
        let x = activations(&mut rng, &[tokens, k]);
        let w = matrix(&mut rng, dtype, n, k);
        let want = meaning(Op::Matmul, &[&x, &w], &attrs, &[result(tokens, n)]);
        check(&format!("{dtype} {tokens}x{n}x{k}"), &plain(&x, &[&w]), &[&x, &w], &want);
    }
}

#[test]
fn every_way_to_spread_rows() {
    let mut rng = fastrand::Rng::with_seed(8);
    let symbols = IndexSet::new();
    let attrs = Attrs::new().with("act", "silu");
    for tokens in [1, 2] {
        let (n, k) = (37, 1536);
        let x = activations(&mut rng, &[tokens, k]);
        let ones = Tensor::splat(DType::F32, &[k], 1.0).unwrap();
        let (w, u) = (matrix(&mut rng, DType::Q5K, n, k), matrix(&mut rng, DType::Q5K, n, k));
        let eps = Attrs::new().with("eps", 1e-5);
        let normed = meaning(Op::RmsNorm, &[&x, &ones], &eps, &[result(tokens, k)]);
        let want = meaning(Op::MatmulGated, &[&normed[0], &w, &u], &attrs, &[result(tokens, n)]);
        let want = want[0].to_f32_vec().unwrap();
        let product = Product {
            act: Some("silu".to_owned()),
            gated: true,
            norm: Some(1e-5f32.to_bits()),
            ..plain(&x, &[&w, &u])
        };
        let bytes: Vec<Vec<u8>> = [&x, &w, &u, &ones].iter().map(|t| device_bytes(t)).collect();
        for (subgroups, rows, steps, passes, prefetch, held) in [
            (16, 1, 1, 1, true, true),
            (16, 2, 3, 1, false, true),
            (4, 2, 2, 1, true, false),
            (4, 1, 2, 3, false, true),
            (8, 3, 1, 2, false, false),
        ] {
            let tokens_of = tokens as u32;
            let variant =
                Variant { subgroups, rows, steps, passes, prefetch, held, tokens: tokens_of };
            let site = Site { adapter: &GPU.adapter, symbols: &symbols, operands: &operands(4) };
            let launch = matvec::launch(&product, &site, &variant);
            let found = GPU.run(&[launch], &bytes, &[tokens * n * 4], 0, &[]);
            assert_close(&format!("{variant:?}"), &floats(&found[0]), &want, 0.08);
        }
    }
}

#[test]
fn epilogues() {
    let mut rng = fastrand::Rng::with_seed(3);
    for (dtype, tokens) in
        [(DType::Q4K, 1), (DType::Q5_0, 4), (DType::F16, 1), (DType::Q4K, 20), (DType::F32, 9)]
    {
        let (n, k) = (70, 512);
        let x = activations(&mut rng, &[tokens, k]);
        let (w, u) = (matrix(&mut rng, dtype, n, k), matrix(&mut rng, dtype, n, k));
        let (whole, row) = (activations(&mut rng, &[tokens, n]), activations(&mut rng, &[n]));
        let what = format!("{dtype} {tokens}");
        for (r, is_row) in [(&whole, false), (&row, true)] {
            let want = meaning(Op::MatmulAdd, &[&x, &w, r], &Attrs::new(), &[result(tokens, n)]);
            let product =
                Product { addends: vec![Addend { weight: 0, row: is_row }], ..plain(&x, &[&w]) };
            check(&format!("add {what}"), &product, &[&x, &w, r], &want);
        }
        for act in ["relu", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh"] {
            if tokens == 20 && act != "silu" {
                continue;
            }
            let attrs = Attrs::new().with("act", act).with("transpose_b", true);
            let want = meaning(Op::MatmulAct, &[&x, &w, &row], &attrs, &[result(tokens, n)]);
            let product = Product {
                addends: vec![Addend { weight: 0, row: true }],
                act: Some(act.to_owned()),
                ..plain(&x, &[&w])
            };
            // Where an activation saturates the result is small beside the sums.
            let tolerance = if dtype == DType::F32 { 2e-4 } else { 0.25 };
            let what = format!("{act} {what}");
            check_within(tolerance, &what, &product, &[&x, &w, &row], &want);
        }
        let attrs = Attrs::new().with("act", "silu");
        let want = meaning(Op::MatmulGated, &[&x, &w, &u], &attrs, &[result(tokens, n)]);
        let product = Product { act: Some("silu".to_owned()), gated: true, ..plain(&x, &[&w, &u]) };
        check(&format!("gated {what}"), &product, &[&x, &w, &u], &want);
    }
}

#[test]
fn several_weights_of_several_types() {
    let mut rng = fastrand::Rng::with_seed(4);
    for tokens in [1, 5, 19] {
        let k = 256;
        let x = activations(&mut rng, &[tokens, k]);
        let q = matrix(&mut rng, DType::Q4K, 96, k);
        let (key, v) = (matrix(&mut rng, DType::Q4K, 40, k), matrix(&mut rng, DType::Q6K, 33, k));
        let bias = activations(&mut rng, &[33]);
        let attrs = Attrs::new().with("weights", 3i64).with("biases", vec![2i64]);
        let types = [result(tokens, 96), result(tokens, 40), result(tokens, 33)];
        let want = meaning(Op::MatmulMulti, &[&x, &q, &key, &v, &bias], &attrs, &types);
        let product = Product {
            addends: vec![Addend { weight: 2, row: true }],
            ..plain(&x, &[&q, &key, &v])
        };
        check(&format!("multi {tokens}"), &product, &[&x, &q, &key, &v, &bias], &want);
    }
}

#[test]
fn a_norm_before_the_product() {
    let mut rng = fastrand::Rng::with_seed(5);
    for (dtype, tokens, k) in
        [(DType::Q4K, 1, 512), (DType::Q8_0, 3, 576), (DType::F16, 2, 576), (DType::Q4K, 21, 512)]
    {
        let x = activations(&mut rng, &[tokens, k]);
        let (w, g) = (matrix(&mut rng, dtype, 40, k), activations(&mut rng, &[k]));
        let eps = 1e-5f32;
        let attrs = Attrs::new().with("eps", f64::from(eps));
        let normed = meaning(Op::RmsNorm, &[&x, &g], &attrs, &[result(tokens, k)]);
        let attrs = Attrs::new().with("transpose_b", true);
        let want = meaning(Op::Matmul, &[&normed[0], &w], &attrs, &[result(tokens, 40)]);
        let product = Product { norm: Some(eps.to_bits()), ..plain(&x, &[&w]) };
        check(&format!("norm {dtype} {tokens}"), &product, &[&x, &w, &g], &want);
    }
}

#[test]
fn tokens_of_a_symbol_and_a_part_of_the_rows() {
    let mut rng = fastrand::Rng::with_seed(6);
    let attrs = Attrs::new().with("transpose_b", true);
    for tokens in [1, 2, 9, 33] {
        let x = activations(&mut rng, &[tokens, 256]);
        let w = matrix(&mut rng, DType::Q5K, 48, 256);
        let want = meaning(Op::Matmul, &[&x, &w], &attrs, &[result(tokens, 48)]);
        let product = Product { tokens: Dim::symbol("s0"), most_tokens: 40, ..plain(&x, &[&w]) };
        check(&format!("symbol {tokens}"), &product, &[&x, &w], &want);
        // The last 16 rows alone, into columns from 32 on.
        let row = DType::Q5K.row_bytes(256).unwrap();
        let ty = ConcreteType::new(DType::Q5K, vec![16, 256]);
        let part = Tensor::new(ty, w.bytes()[32 * row..].to_vec()).unwrap();
        let product = Product { part: Some((32, 48)), ..plain(&x, &[&part]) };
        let symbols = IndexSet::new();
        let adapter = GPU.adapter;
        let site = Site { adapter: &adapter, symbols: &symbols, operands: &operands(2) };
        let bytes = [device_bytes(&x), device_bytes(&part)];
        let scratch = product.scratch_bytes(site.adapter);
        let found = GPU.run(&product.launches(&site), &bytes, &[tokens * 48 * 4], scratch, &[]);
        let (found, want) = (floats(&found[0]), want[0].to_f32_vec().unwrap());
        for t in 0..tokens {
            assert!(found[t * 48..t * 48 + 32].iter().all(|v| v.is_nan()), "not written");
            let range = t * 48 + 32..(t + 1) * 48;
            assert_close("part", &found[range.clone()], &want[range], 0.06);
        }
    }
}

#[test]
fn infinities_and_nan_come_through() {
    let mut rng = fastrand::Rng::with_seed(7);
    let attrs = Attrs::new().with("transpose_b", true);
    for (dtype, d) in [(DType::Q4_0, 0), (DType::Q6K, 208), (DType::Q4K, 0), (DType::Q8_0, 0)] {
        for bad in [0x7c00u16, 0xfc00, 0x7e00] {
            for tokens in [1, 12] {
                let x = activations(&mut rng, &[tokens, 256]);
                let w = matrix(&mut rng, dtype, 8, 256);
                let mut bytes = w.bytes().to_vec();
                let row = dtype.row_bytes(256).unwrap();
                bytes[3 * row + d..3 * row + d + 2].copy_from_slice(&bad.to_le_bytes());
                let w = Tensor::new(ConcreteType::new(dtype, vec![8, 256]), bytes).unwrap();
                let want = meaning(Op::Matmul, &[&x, &w], &attrs, &[result(tokens, 8)]);
                assert!(!want[0].to_f32_vec().unwrap()[3].is_finite());
                check(&format!("{dtype} {bad:x}"), &plain(&x, &[&w]), &[&x, &w], &want);
            }
        }
    }
    for bad in [f32::INFINITY, f32::NAN] {
        let mut values = activations(&mut rng, &[2, 256]).to_f32_vec().unwrap();
        values[300] = bad;
        let x = Tensor::from_f32(&[2, 256], &values).unwrap();
        let w = matrix(&mut rng, DType::Q4K, 8, 256);
        let want = meaning(Op::Matmul, &[&x, &w], &attrs, &[result(2, 8)]);
        check("activations", &plain(&x, &[&w]), &[&x, &w], &want);
    }
}

/// Tiles through workgroup memory, which the choice leaves to adapters with wide subgroups.
#[test]
fn tiles_of_plain_numbers() {
    let mut rng = fastrand::Rng::with_seed(9);
    let symbols = IndexSet::new();
    for (dtype, tokens, n, k, transposed) in [
        (DType::F32, 130, 200, 36, true),
        (DType::F32, 5, 128, 32, true),
        (DType::F16, 20, 70, 72, true),
        (DType::Bf16, 20, 70, 48, true),
        (DType::F32, 130, 200, 36, false),
        (DType::F32, 60, 128, 64, false),
    ] {
        let x = activations(&mut rng, &[tokens, k]);
        let stored = if transposed { (n, k) } else { (k, n) };
        let w = matrix(&mut rng, dtype, stored.0, stored.1);
        let row = activations(&mut rng, &[n]);
        let attrs = Attrs::new().with("act", "relu").with("transpose_b", transposed);
        let want = meaning(Op::MatmulAct, &[&x, &w, &row], &attrs, &[result(tokens, n)]);
        let product = Product {
            weights: vec![Weight { dtype, layout: Layout::RowMajor, rows: n }],
            addends: vec![Addend { weight: 0, row: true }],
            act: Some("relu".to_owned()),
            ..plain(&x, &[&w])
        };
        let site = Site { adapter: &GPU.adapter, symbols: &symbols, operands: &operands(3) };
        assert!(tiled::fits(&product, site.adapter, transposed));
        let launch = tiled::launch(&product, &site, None, 0, transposed);
        let bytes: Vec<Vec<u8>> = [&x, &w, &row].iter().map(|t| t.bytes().to_vec()).collect();
        let found = GPU.run(&[launch], &bytes, &[tokens * n * 4], 0, &[]);
        let want = want[0].to_f32_vec().unwrap();
        assert_close(&format!("{dtype} {transposed}"), &floats(&found[0]), &want, 1e-4);
    }
}
