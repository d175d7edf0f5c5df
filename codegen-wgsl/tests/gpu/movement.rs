//! Rows of tables, argmax and top_k.

use aether_codegen_wgsl::kernel::Launch;
use aether_codegen_wgsl::templates::gather::GatherRows;
use aether_codegen_wgsl::templates::pick::Pick;
use aether_codegen_wgsl::templates::{Operand, Site};
use aether_ir::tensor::ConcreteType;
use aether_ir::{Attrs, DType, Dim, Op, Symbol, Tensor};
use indexmap::IndexSet;

use crate::sample::{GPU, adapters, assert_close, device_bytes, floats, matrix, meaning, operands};

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
fn rows_of_quantised_tables() {
    let mut rng = fastrand::Rng::with_seed(3);
    for dtype in DType::all().filter(|d| !d.planes().is_empty()) {
        let table = matrix(&mut rng, dtype, 20, 512);
        let indices = Tensor::from_i32(&[3], &[19, 0, 7]).unwrap();
        let attrs = Attrs::new().with("axis", 0i64);
        let want = meaning(Op::Gather, &[&table, &indices], &attrs, &[f32s(&[3, 512])]);
        let kernel = GatherRows { dtype, rows: 20, k: 512, n: Dim::new(3), part: 0..20 };
        let bytes = [device_bytes(&table), indices.bytes().to_vec()];
        let launches = |s: &Site| kernel.launches(s).unwrap();
        for found in run(&launches, &operands(2), &bytes, &[3 * 512 * 4], 0) {
            let want = want[0].to_f32_vec().unwrap();
            assert_close(dtype.name(), &floats(&found[0]), &want, 1e-6);
        }
    }
}

#[test]
fn the_greatest_and_the_k_greatest() {
    let mut rng = fastrand::Rng::with_seed(5);
    let sizes = [(1, 1, 1), (2, 1000, 7), (3, 5000, 40), (2, 5000, 1), (1, 150_000, 64)];
    for (rows, n, k) in sizes {
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
