//! Products of plain numbers and norms of rows against the meaning.

use aether_codegen_wgsl::templates::Site;
use aether_codegen_wgsl::templates::dense::{Addend, Dense};
use aether_codegen_wgsl::templates::norm::{Kind, Norm};
use aether_ir::tensor::ConcreteType;
use aether_ir::{Attrs, DType, Dim, Op, Symbol, Tensor};
use indexmap::IndexSet;

use crate::sample::{GPU, adapters, assert_close, normal, operands};

fn tensor(rng: &mut fastrand::Rng, dtype: DType, shape: &[usize]) -> Tensor {
    let values = normal(rng, shape.iter().product());
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    Tensor::from_f64(dtype, shape, &values).unwrap()
}

/// The numbers of a result's bytes.
fn numbers(dtype: DType, shape: &[usize], bytes: &[u8]) -> Vec<f32> {
    let ty = ConcreteType::new(dtype, shape.to_vec());
    let n = shape.iter().product::<usize>() * dtype.block_bytes();
    Tensor::new(ty, bytes[..n].to_vec()).unwrap().to_f32_vec().unwrap()
}

fn check(dense: &Dense, stack: usize, rows: usize, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let Dense { dtype, columns: n, depth: k, transposed, shared, .. } = *dense;
    let x = tensor(&mut rng, dtype, &[stack, rows, k]);
    let [a, b] = if transposed { [n, k] } else { [k, n] };
    let w = match shared {
        true => tensor(&mut rng, dtype, &[a, b]),
        false => tensor(&mut rng, dtype, &[stack, a, b]),
    };
    let shape = [stack, rows, n];
    let r = dense.addend.map(|addend| match addend {
        Addend::Row => tensor(&mut rng, dtype, &[n]),
        Addend::Whole => tensor(&mut rng, dtype, &shape),
    });
    let attrs = Attrs::new().with("transpose_b", transposed);
    let ty = ConcreteType::new(dtype, shape.to_vec());
    let given: Vec<&Tensor> = [&x, &w].into_iter().chain(&r).collect();
    let (op, attrs) = match &dense.act {
        Some(act) => (Op::MatmulAct, attrs.with("act", act.as_str())),
        None if r.is_some() => (Op::MatmulAdd, Attrs::new()),
        None => (Op::Matmul, attrs),
    };
    let want = crate::sample::meaning(op, &given, &attrs, &[ty]);
    let bytes: Vec<Vec<u8>> = given.iter().map(|t| t.bytes().to_vec()).collect();
    let symbols: IndexSet<Symbol> = ["s0".into()].into();
    for adapter in adapters().iter().filter(|a| dense.is_supported(a)) {
        let site = Site { adapter, symbols: &symbols, operands: &operands(given.len()) };
        let size = stack * rows * n * dtype.block_bytes();
        let launches = [dense.launch(&site).unwrap()];
        let too_slow = GPU.emulates(adapter) && (rows * n > 1 << 14 || dense.addend.is_some());
        if too_slow || !GPU.can_run(adapter, &launches) {
            continue;
        }
        let found = GPU.run(&launches, &bytes, &[size], 0, &[rows as u32]);
        let tolerance = if dtype == DType::F16 { 4e-3 } else { 1e-4 };
        let what = format!("{dense:?} {rows}");
        let found = numbers(dtype, &shape, &found[0]);
        assert_close(&what, &found, &want[0].to_f32_vec().unwrap(), tolerance);
    }
}

#[test]
fn dense_products() {
    for dtype in [DType::F32, DType::F16] {
        for (i, (stack, rows, n, k)) in
            [(1, 256, 192, 128), (3, 70, 72, 40), (1, 129, 264, 72), (2, 1024, 1024, 32)]
                .into_iter()
                .enumerate()
        {
            for transposed in [false, true] {
                let plain = Dense {
                    dtype,
                    stack: Dim::new(stack),
                    rows: Dim::symbol("s0"),
                    most_rows: rows,
                    columns: n,
                    depth: k,
                    transposed,
                    shared: false,
                    addend: None,
                    act: None,
                };
                check(&plain, stack as usize, rows, i as u64);
                let act = Some("relu".to_owned());
                let whole =
                    Dense { addend: Some(Addend::Whole), act: act.clone(), ..plain.clone() };
                check(&whole, stack as usize, rows - 3, i as u64);
                if transposed {
                    let row = Dense { addend: Some(Addend::Row), shared: true, ..plain.clone() };
                    check(&row, stack as usize, rows - 60, i as u64);
                }
            }
        }
    }
}

/// What lies beyond the depth of a tile's last step must not count, whatever it is.
#[test]
fn infinite_weights_beside_the_end() {
    for dtype in [DType::F32, DType::F16] {
        let (rows, n, k) = (64, 64, 40);
        let x = Tensor::from_f64(dtype, &[1, rows, k], &vec![1.0; rows * k]).unwrap();
        let mut values = vec![1.0; 2 * k * n];
        values[k * n..].fill(f64::INFINITY);
        let w = Tensor::from_f64(dtype, &[2, k, n], &values).unwrap();
        let dense = Dense {
            dtype,
            stack: Dim::new(1),
            rows: Dim::new(rows as u64),
            most_rows: rows,
            columns: n,
            depth: k,
            transposed: false,
            shared: true,
            addend: None,
            act: None,
        };
        let symbols: IndexSet<Symbol> = IndexSet::new();
        for adapter in adapters().iter().filter(|a| dense.is_supported(a)) {
            let site = Site { adapter, symbols: &symbols, operands: &operands(2) };
            let bytes = [x.bytes().to_vec(), w.bytes().to_vec()];
            let size = rows * n * dtype.block_bytes();
            let launches = [dense.launch(&site).unwrap()];
            if !GPU.can_run(adapter, &launches) {
                continue;
            }
            let found = GPU.run(&launches, &bytes, &[size], 0, &[]);
            assert!(numbers(dtype, &[rows, n], &found[0]).iter().all(|&v| v == k as f32));
        }
    }
}

#[test]
fn norms_of_rows() {
    let eps = 1e-5f32.to_bits();
    let kinds = [
        (Op::Softmax, Kind::Softmax),
        (Op::LogSoftmax, Kind::LogSoftmax),
        (Op::RmsNorm, Kind::Rms(eps)),
        (Op::LayerNorm, Kind::Layer(eps)),
    ];
    let mut rng = fastrand::Rng::with_seed(3);
    for (op, kind) in kinds {
        for dtype in [DType::F32, DType::F16] {
            for (rows, length) in [(5, 4), (3, 132), (2, 4096), (1, 16380)] {
                let x = tensor(&mut rng, dtype, &[rows, length]);
                let more = match op {
                    Op::LayerNorm => 2,
                    Op::RmsNorm => 1,
                    _ => 0,
                };
                let more: Vec<Tensor> =
                    (0..more).map(|_| tensor(&mut rng, dtype, &[length])).collect();
                let given: Vec<&Tensor> = std::iter::once(&x).chain(&more).collect();
                let attrs = match op {
                    Op::Softmax | Op::LogSoftmax => Attrs::new().with("axis", -1i64),
                    _ => Attrs::new().with("eps", f64::from(1e-5f32)),
                };
                let ty = ConcreteType::new(dtype, vec![rows, length]);
                let want = crate::sample::meaning(op, &given, &attrs, &[ty]);
                let bytes: Vec<Vec<u8>> = given.iter().map(|t| t.bytes().to_vec()).collect();
                let norm = Norm { kind, dtype, rows: Dim::new(rows as u64), length };
                let symbols: IndexSet<Symbol> = IndexSet::new();
                for adapter in adapters().iter().filter(|a| norm.is_supported(a)) {
                    let site =
                        Site { adapter, symbols: &symbols, operands: &operands(given.len()) };
                    let size = rows * length * dtype.block_bytes();
                    let launches = [norm.launch(&site)];
                    if !GPU.can_run(adapter, &launches) {
                        continue;
                    }
                    let found = GPU.run(&launches, &bytes, &[size], 0, &[]);
                    let found = numbers(dtype, &[rows, length], &found[0]);
                    let tolerance = if dtype == DType::F16 { 4e-3 } else { 1e-4 };
                    let what = format!("{norm:?}");
                    assert_close(&what, &found, &want[0].to_f32_vec().unwrap(), tolerance);
                }
            }
        }
    }
}
