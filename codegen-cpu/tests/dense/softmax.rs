//! Softmax, its logarithm, and the best entries of a row.

use aether_codegen_cpu::kernels::isa::Isa;
use aether_codegen_cpu::kernels::softmax;

use crate::support::{LENGTHS, assert_close, random};

#[test]
fn softmax_and_its_logarithm() {
    let mut rng = fastrand::Rng::with_seed(7);
    for isa in Isa::available() {
        for n in LENGTHS {
            for (scale, cap) in [(1.0, None), (0.125, None), (0.5, Some(30.0)), (2.0, Some(5.0))] {
                let mut x = random(&mut rng, n, 90.0);
                for _ in 0..n / 5 {
                    x[rng.usize(..n)] = if cap.is_none() { f32::NEG_INFINITY } else { -1e5 };
                }
                let y: Vec<f64> = x
                    .iter()
                    .map(|&x| {
                        let s = f64::from(x) * f64::from(scale);
                        cap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
                    })
                    .collect();
                let top = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = y.iter().map(|y| (y - top).exp()).sum();
                let want: Vec<f64> = y.iter().map(|y| (y - top).exp() / sum).collect();
                let mut got = x.clone();
                softmax::softmax(isa, &mut got, scale, cap);
                assert_close(&got, &want, 2e-6, &format!("softmax {n} {isa}"));
                let mut got = x.clone();
                softmax::log_softmax(isa, &mut got, scale, cap);
                for (g, y) in got.iter().zip(&y) {
                    let want = y - top - sum.ln();
                    let ok = if want.is_infinite() {
                        f64::from(*g) == want
                    } else {
                        (f64::from(*g) - want).abs() < 2e-5 * (1.0 + want.abs().min(10.0))
                    };
                    assert!(ok, "log_softmax {n} {isa}: {g} want {want}");
                }
            }
        }
        for n in [1, 16, 21] {
            let mut x = vec![f32::NEG_INFINITY; n];
            softmax::softmax(isa, &mut x, 1.0, None);
            assert!(x.iter().all(|&x| x == 0.0));
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = vec![1.0; n];
                x[n / 2] = bad;
                softmax::softmax(isa, &mut x, 1.0, None);
                assert!(x.iter().all(|x| x.is_nan()), "{bad} of {n} on {isa}: {x:?}");
            }
        }
    }
}

#[test]
fn the_best_entries_of_a_row() {
    let mut rng = fastrand::Rng::with_seed(8);
    for isa in Isa::available() {
        for n in LENGTHS.into_iter().chain([5000, 20_001]) {
            // Few distinct values, so that equals are common.
            let mut x: Vec<f32> = (0..n).map(|_| rng.u32(0..n as u32 / 2 + 3) as f32).collect();
            for _ in 0..n / 10 {
                x[rng.usize(..n)] = f32::NAN;
                x[rng.usize(..n)] = f32::NEG_INFINITY;
            }
            let mut order: Vec<u32> = (0..n as u32).filter(|&i| !x[i as usize].is_nan()).collect();
            order.sort_by(|&a, &b| x[b as usize].total_cmp(&x[a as usize]).then(a.cmp(&b)));
            assert_eq!(softmax::argmax(isa, &x), order.first().map(|&i| i as usize));
            for k in [0, 1, 2, 7, 40, n] {
                let mut out = vec![0; k];
                let found = softmax::top_k(isa, &x, &mut out);
                let want = &order[..k.min(order.len())];
                assert_eq!(&out[..found], want, "top {k} of {n} on {isa}");
            }
        }
    }
}
