//! Norms.

use aether_codegen_cpu::kernels::isa::Isa;
use aether_codegen_cpu::kernels::norm;

use crate::support::{LENGTHS, assert_close, random};

#[test]
fn norms_of_every_length() {
    let mut rng = fastrand::Rng::with_seed(5);
    for isa in Isa::available() {
        for n in LENGTHS.into_iter().filter(|&n| n > 0).chain([576, 1536, 4096]) {
            let mut x = random(&mut rng, n, 3.0);
            x.iter_mut().for_each(|x| *x += 1.0);
            let (w, b) = (random(&mut rng, n, 2.0), random(&mut rng, n, 2.0));
            let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let mean = wide.iter().sum::<f64>() / n as f64;
            let square = wide.iter().map(|x| x * x).sum::<f64>() / n as f64;
            let var = wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            let mut out = vec![0.0; n];
            for weight in [None, Some(&w[..])] {
                let at = |v: Option<&[f32]>, i: usize, or: f64| v.map_or(or, |v| f64::from(v[i]));
                norm::rms_norm(isa, &x, weight, 1e-5, &mut out);
                let want: Vec<f64> =
                    (0..n).map(|i| wide[i] / (square + 1e-5).sqrt() * at(weight, i, 1.0)).collect();
                assert_close(&out, &want, 2e-6, &format!("rms_norm {n} {isa}"));
                for bias in [None, Some(&b[..])] {
                    norm::layer_norm(isa, &x, weight, bias, 1e-5, &mut out);
                    let scale = 1.0 / (var + 1e-5).sqrt();
                    let want: Vec<f64> = (0..n)
                        .map(|i| (wide[i] - mean) * scale * at(weight, i, 1.0) + at(bias, i, 0.0))
                        .collect();
                    assert_close(&out, &want, 4e-6, &format!("layer_norm {n} {isa}"));
                }
            }
            let mut sum = x.clone();
            let mut fused = vec![0.0; n];
            norm::add_rms_norm(isa, &mut sum, &b, Some(&w), 1e-5, &mut fused);
            norm::rms_norm(isa, &sum, Some(&w), 1e-5, &mut out);
            assert!(sum.iter().zip(&x).zip(&b).all(|((s, x), b)| *s == x + b) && fused == out);
        }
    }
}
