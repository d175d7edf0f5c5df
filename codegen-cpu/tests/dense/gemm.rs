//! Products with dense weights, and of two activations.

use aether_codegen_cpu::kernels::gemm::{self, Weights};
use aether_codegen_cpu::kernels::isa::Isa;
use half::{bf16, f16};

use crate::support::{Element, assert_close, random};

fn check_linear<E: Element>(isa: Isa, tokens: usize, rows: usize, k: usize) {
    let mut rng = fastrand::Rng::with_seed((tokens * 7919 + rows * 31 + k) as u64);
    let w: Vec<E> = random(&mut rng, rows * k, 1.0).into_iter().map(E::make).collect();
    let x = random(&mut rng, tokens * k, 1.0);
    let out_row = rows + 3;
    let mut want = vec![5.0; tokens * out_row];
    for t in 0..tokens {
        for r in 0..rows {
            want[t * out_row + r] =
                (0..k).map(|i| f64::from(x[t * k + i]) * w[r * k + i].value()).sum();
        }
    }
    let weights = Weights { data: &w, rows, k };
    let mut packed = vec![f32::NAN; gemm::packed_len(isa, tokens, k)];
    let mut scratch = vec![f32::NAN; gemm::scratch_len(isa, tokens)];
    let name = format!("{tokens}x{rows}x{k} {isa}");
    let mut out = vec![5.0; tokens * out_row];
    // SAFETY: the buffers are as long as the functions say, and one thread uses them.
    unsafe {
        for p in 0..gemm::panels(isa, tokens) {
            gemm::pack_rows(isa, &x, tokens, k, p, packed.as_mut_ptr());
        }
        for range in [0..rows / 3, rows / 3..rows] {
            let (x, o) = ((&packed[..], tokens), (out.as_mut_ptr(), out_row));
            gemm::linear(isa, weights, range, x, o, &mut scratch);
        }
        let tolerance = 1e-6 * (k as f64).sqrt().max(1.0);
        assert_close(&out, &want, tolerance, &format!("linear {name}"));
        out.fill(5.0);
        for range in [0..rows / 3, rows / 3..rows] {
            gemm::gemv(isa, weights, range, (&x, tokens), (out.as_mut_ptr(), out_row));
        }
        assert_close(&out, &want, tolerance, &format!("gemv {name}"));
    }
}

#[test]
fn layer_products() {
    for isa in Isa::available() {
        for (tokens, rows, k) in [
            (1, 1, 1),
            (1, 37, 100),
            (2, 5, 64),
            (3, 9, 33),
            (7, 16, 576),
            (8, 8, 384),
            (17, 13, 385),
            (48, 24, 31),
            (49, 7, 800),
            (97, 10, 40),
            (5, 3, 0),
        ] {
            check_linear::<f32>(isa, tokens, rows, k);
            check_linear::<f16>(isa, tokens, rows, k);
            check_linear::<bf16>(isa, tokens, rows, k);
        }
    }
}

#[test]
fn general_products() {
    let mut rng = fastrand::Rng::with_seed(10);
    for isa in Isa::available() {
        for (m, k, n) in
            [(1, 1, 1), (3, 5, 2), (9, 400, 49), (16, 64, 48), (70, 900, 101), (4, 0, 6)]
        {
            let (a, b) = (random(&mut rng, m * k, 1.0), random(&mut rng, k * n, 1.0));
            let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let mut want = vec![0.0; m * n];
            for i in 0..m {
                for j in 0..n {
                    want[i * n + j] =
                        (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum();
                }
            }
            let mut plain = vec![1.0; m * n];
            gemm::matmul_f64(&wide(&a), &wide(&b), (k, n), 0..m, &mut plain);
            assert!(plain.iter().zip(&want).all(|(p, w)| (p - w).abs() < 1e-12));
            let mut packed = vec![f32::NAN; gemm::packed_len(isa, n, k)];
            let mut scratch = vec![f32::NAN; gemm::scratch_len(isa, n)];
            let mut c = vec![f32::NAN; m * n];
            // SAFETY: the buffers are as long as the functions say, and one thread uses them.
            unsafe {
                for p in 0..gemm::panels(isa, n) {
                    gemm::pack_columns(isa, &b, n, k, p, packed.as_mut_ptr());
                }
                let a = Weights { data: &a, rows: m, k };
                gemm::matmul(isa, a, 0..m, (&packed, n), (c.as_mut_ptr(), n), &mut scratch);
            }
            assert_close(&c, &want, 1e-6 * (k as f64 + 1.0).sqrt(), &format!("{m}x{k}x{n} {isa}"));
        }
    }
}
