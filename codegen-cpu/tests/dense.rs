//! The dense kernels against plain f64 loops, on every instruction set of this machine.

use aether_codegen_cpu::kernels::attention::{self, Attention, AttentionError};
use aether_codegen_cpu::kernels::elementwise::{self, Binary, Gate, Unary};
use aether_codegen_cpu::kernels::gemm::{self, Weights};
use aether_codegen_cpu::kernels::isa::Isa;
use aether_codegen_cpu::kernels::rope::{self, RopeMode, RopeParams};
use aether_codegen_cpu::kernels::{convert, norm, softmax};
use half::{bf16, f16};

const SIZES: [usize; 14] = [0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 63, 100, 577];

fn random(rng: &mut fastrand::Rng, n: usize, span: f32) -> Vec<f32> {
    (0..n).map(|_| (rng.f32() * 2.0 - 1.0) * span).collect()
}

/// Distance in units of the last place of `want` as an f32 (of the smallest normal at least).
fn ulps(got: f32, want: f64) -> f64 {
    if want.is_nan() {
        return if got.is_nan() { 0.0 } else { f64::INFINITY };
    }
    let near = want as f32;
    if near.is_infinite() || got.is_infinite() {
        // One step below the overflow is as good as the overflow.
        return if got == near || near.abs() == f32::MAX { 0.0 } else { f64::INFINITY };
    }
    let exponent = (want.abs() as f32).max(f32::MIN_POSITIVE).to_bits() >> 23;
    (f64::from(got) - want).abs() / 2f64.powi(exponent as i32 - 127 - 23)
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let ok =
            (f64::from(g) - w).abs() <= tolerance * (1.0 + w.abs()) || (g.is_nan() && w.is_nan());
        assert!(ok, "{what}: element {i} is {g}, want {w}");
    }
}

/// erfc by its continued fraction or series, in f64.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        // erf x = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= 2.0 * x * x / (2 * n + 1) as f64;
            sum += term;
        }
        return 1.0 - sum * (-x * x).exp() * 2.0 / std::f64::consts::PI.sqrt();
    }
    let mut f = 0.0;
    for n in (1..200).rev() {
        f = n as f64 / 2.0 / (x + f);
    }
    (-x * x).exp() / (x + f) / std::f64::consts::PI.sqrt()
}

fn unary_f64(op: Unary, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Relu => {
            if x.is_nan() {
                x
            } else {
                x.max(0.0)
            }
        }
        Unary::Square => x * x,
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Recip => 1.0 / x,
        Unary::Exp => x.exp(),
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => sigmoid(x),
        Unary::Silu => x * sigmoid(x),
        Unary::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x * sigmoid(2.0 * u)
        }
        Unary::GeluErf => 0.5 * x * erfc(-x / 2f64.sqrt()),
        Unary::Erf => 1.0 - erfc(x),
        Unary::Log => x.ln(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
    }
}

/// The operation, the range of inputs, and the error allowed in units of the last place.
const UNARY: [(Unary, f32, f64); 20] = [
    (Unary::Neg, 1e6, 0.0),
    (Unary::Abs, 1e6, 0.0),
    (Unary::Relu, 1e6, 0.0),
    (Unary::Square, 1e6, 0.5),
    (Unary::Sqrt, 1e6, 0.5),
    (Unary::Rsqrt, 1e6, 1.5),
    (Unary::Recip, 1e6, 0.5),
    (Unary::Exp, 87.0, 2.0),
    (Unary::Tanh, 10.0, 3.0),
    (Unary::Sigmoid, 80.0, 3.0),
    (Unary::Silu, 80.0, 4.0),
    (Unary::GeluTanh, 1.0, 8.0),
    (Unary::GeluTanh, 5.0, 64.0),
    (Unary::GeluErf, 12.0, 8.0),
    (Unary::Log, 1e6, 1.0),
    (Unary::Sin, 100.0, 1.0),
    (Unary::Cos, 100.0, 1.0),
    (Unary::Floor, 1e6, 0.0),
    (Unary::Ceil, 1e6, 0.0),
    (Unary::Round, 1e6, 0.0),
];

#[test]
fn unary_operations_are_as_accurate_as_stated() {
    let mut rng = fastrand::Rng::with_seed(1);
    for isa in Isa::available() {
        for (op, span, limit) in UNARY {
            let mut x = random(&mut rng, 40_000, span);
            x.extend(random(&mut rng, 10_000, 1.0));
            x.extend(random(&mut rng, 2_001, 1e-3));
            let mut out = vec![0.0; x.len()];
            elementwise::unary(isa, op, &x, &mut out);
            let mut worst = (0.0, 0.0, 0.0);
            for (&x, &o) in x.iter().zip(&out) {
                let want = unary_f64(op, f64::from(x));
                let e = ulps(o, want);
                if e > worst.0 {
                    worst = (e, x, o);
                }
            }
            // A plain build has no fused multiply-add.
            let limit = if isa == Isa::Scalar { limit * 1.5 } else { limit };
            assert!(worst.0 <= limit, "{op:?} on {isa}: (ulps, x, got) = {worst:?}");
        }
        let x = random(&mut rng, 50_001, 5.0);
        let mut out = vec![0.0; x.len()];
        elementwise::unary(isa, Unary::Erf, &x, &mut out);
        for (&x, &o) in x.iter().zip(&out) {
            assert!((f64::from(o) - (1.0 - erfc(f64::from(x)))).abs() < 2e-7, "erf {x} on {isa}");
        }
    }
}

#[test]
fn special_values_of_unary_operations() {
    const INF: f32 = f32::INFINITY;
    const TABLE: &[(Unary, f32, f32)] = &[
        (Unary::Exp, INF, INF),
        (Unary::Exp, -INF, 0.0),
        (Unary::Exp, 89.0, INF),
        (Unary::Exp, -104.5, 0.0),
        (Unary::Exp, 0.0, 1.0),
        (Unary::Tanh, INF, 1.0),
        (Unary::Tanh, -INF, -1.0),
        (Unary::Tanh, 0.0, 0.0),
        (Unary::Sigmoid, INF, 1.0),
        (Unary::Sigmoid, -INF, 0.0),
        (Unary::Silu, INF, INF),
        (Unary::Silu, -INF, -0.0),
        (Unary::Silu, -1e30, -0.0),
        (Unary::GeluTanh, INF, INF),
        (Unary::GeluTanh, -INF, -0.0),
        (Unary::GeluTanh, -1e30, -0.0),
        (Unary::GeluErf, INF, INF),
        (Unary::GeluErf, -INF, -0.0),
        (Unary::GeluErf, 1e30, 1e30),
        (Unary::Erf, INF, 1.0),
        (Unary::Erf, -INF, -1.0),
        (Unary::Relu, -INF, 0.0),
        (Unary::Sqrt, INF, INF),
        (Unary::Recip, INF, 0.0),
    ];
    for isa in Isa::available() {
        for &(op, x, want) in TABLE {
            // Once in a whole vector and once in a partial one.
            let mut out = [7.0; 19];
            elementwise::unary(isa, op, &[x; 19], &mut out);
            assert!(out.iter().all(|&o| o == want), "{op:?} {x} on {isa}: {out:?}");
        }
        for (op, ..) in UNARY {
            let mut x = [f32::NAN; 19];
            elementwise::unary_assign(isa, op, &mut x);
            assert!(x.iter().all(|x| x.is_nan()), "{op:?} of NaN on {isa}: {x:?}");
        }
        // Subnormal results of exp are kept.
        let mut x = [-90.0f32; 17];
        elementwise::unary_assign(isa, Unary::Exp, &mut x);
        assert!(x.iter().all(|&x| ulps(x, (-90.0f64).exp()) <= 1.0), "{isa}: {x:?}");
    }
}

#[test]
fn binary_operations_of_every_length() {
    let mut rng = fastrand::Rng::with_seed(2);
    type Meaning = fn(f32, f32) -> f32;
    let ops: [(Binary, Meaning); 6] = [
        (Binary::Add, |a, b| a + b),
        (Binary::Sub, |a, b| a - b),
        (Binary::Mul, |a, b| a * b),
        (Binary::Div, |a, b| a / b),
        (Binary::Max, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }),
        (Binary::Min, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.min(b) }),
    ];
    let same = |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan());
    for isa in Isa::available() {
        for n in SIZES {
            let mut a = random(&mut rng, n, 10.0);
            let mut b = random(&mut rng, n, 10.0);
            let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
            for i in 0..n / 4 {
                a[rng.usize(..n)] = special[i % 3];
                b[rng.usize(..n)] = special[(i + i / 3) % 3];
            }
            for (op, f) in ops {
                let mut out = vec![9.0; n];
                elementwise::binary(isa, op, &a, &b, &mut out);
                for i in 0..n {
                    assert!(same(out[i], f(a[i], b[i])), "{op:?} {} {} {isa}", a[i], b[i]);
                }
                let mut c = a.clone();
                elementwise::binary_assign(isa, op, &mut c, &b);
                assert!(c.iter().zip(&out).all(|(&c, &o)| same(c, o)));
                elementwise::binary_scalar(isa, op, &a, 1.5, &mut out);
                assert!(out.iter().zip(&a).all(|(&o, &a)| same(o, f(a, 1.5))));
                // SAFETY: both cover `n`.
                unsafe {
                    let (b, o) = (b.as_ptr(), out.as_mut_ptr());
                    elementwise::binary_left_raw(isa, op, 1.5, b, o, n);
                }
                assert!(out.iter().zip(&b).all(|(&o, &b)| same(o, f(1.5, b))));
                let rows: Vec<f32> = [&a[..], &a[..]].concat();
                let mut wide = vec![0.0; 2 * n];
                elementwise::binary_row(isa, op, &rows, &b, &mut wide);
                for i in 0..2 * n {
                    assert!(same(wide[i], f(rows[i], b[i % n])));
                }
            }
        }
    }
}

#[test]
fn gates_multiply_the_activation() {
    let mut rng = fastrand::Rng::with_seed(3);
    let ops = [
        (Gate::Silu, Unary::Silu),
        (Gate::GeluTanh, Unary::GeluTanh),
        (Gate::GeluErf, Unary::GeluErf),
        (Gate::Relu, Unary::Relu),
        (Gate::Sigmoid, Unary::Sigmoid),
    ];
    for isa in Isa::available() {
        for n in SIZES {
            let (g, u) = (random(&mut rng, n, 6.0), random(&mut rng, n, 6.0));
            for (gate, op) in ops {
                let mut out = vec![0.0; n];
                elementwise::gated(isa, gate, &g, &u, &mut out);
                let want: Vec<f64> = g
                    .iter()
                    .zip(&u)
                    .map(|(&g, &u)| unary_f64(op, f64::from(g)) * f64::from(u))
                    .collect();
                assert_close(&out, &want, 2e-6, &format!("{gate:?} {n} {isa}"));
            }
        }
    }
}

#[test]
fn conversions_match_the_half_crate() {
    let mut rng = fastrand::Rng::with_seed(4);
    let every: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let every_b: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let mut x: Vec<f32> = (0..100_003).map(|_| f32::from_bits(rng.u32(..))).collect();
    x.extend(random(&mut rng, 50_000, 2.0));
    x.extend(random(&mut rng, 5_000, 1e-6));
    // Ties between neighbours, and just about.
    for i in 0..2000u32 {
        let low = f16::from_bits(i as u16 * 15).to_f32();
        let high = f16::from_bits(i as u16 * 15 + 1).to_f32();
        let mid = (low + high) / 2.0;
        x.extend([mid, mid.next_up(), mid.next_down(), f32::from_bits(i << 20 | 0x8000)]);
    }
    x.extend([65504.0, 65519.9, 65520.0, 1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0]);
    for isa in Isa::available() {
        let mut wide = vec![0.0; every.len()];
        convert::f16_to_f32(isa, &every, &mut wide);
        for (h, w) in every.iter().zip(&wide) {
            assert!(w.to_bits() == h.to_f32().to_bits() || (w.is_nan() && h.is_nan()), "{h:?}");
        }
        convert::bf16_to_f32(isa, &every_b, &mut wide);
        for (h, w) in every_b.iter().zip(&wide) {
            assert!(w.to_bits() == h.to_f32().to_bits() || (w.is_nan() && h.is_nan()), "{h:?}");
        }
        let mut narrow = vec![f16::ZERO; x.len()];
        convert::f32_to_f16(isa, &x, &mut narrow);
        for (x, h) in x.iter().zip(&narrow) {
            let want = f16::from_f32(*x);
            assert!(*h == want || (h.is_nan() && want.is_nan()), "{x} to {h}, want {want}, {isa}");
        }
        for n in SIZES {
            let mut a = vec![f16::ONE; n + 1];
            convert::f32_to_f16(isa, &x[..n], &mut a[..n]);
            assert!(a[n] == f16::ONE && (0..n).all(|i| a[i].to_bits() == narrow[i].to_bits()));
        }
    }
    let mut b = vec![bf16::ZERO; x.len()];
    convert::f32_to_bf16(&x, &mut b);
    for (x, h) in x.iter().zip(&b) {
        let want = bf16::from_f32(*x);
        assert!(*h == want || (h.is_nan() && want.is_nan()), "{x} to {h}, want {want}");
    }
    let mut ints = [0i8; 6];
    convert::cast_from_f32(&[1.9, -1.9, 300.0, -300.0, f32::NAN, 0.0], &mut ints);
    assert_eq!(ints, [1, -1, 127, -128, 0, 0]);
    let mut floats = [0.0; 3];
    convert::cast_to_f32(&[i64::MAX, -3, 16_777_217], &mut floats);
    assert_eq!(floats, [9_223_372_036_854_775_807f32, -3.0, 16_777_216.0]);
}

#[test]
fn norms_of_every_length() {
    let mut rng = fastrand::Rng::with_seed(5);
    for isa in Isa::available() {
        for n in SIZES.into_iter().filter(|&n| n > 0).chain([576, 1536, 4096]) {
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

#[test]
fn rope_turns_pairs() {
    let mut rng = fastrand::Rng::with_seed(6);
    for isa in Isa::available() {
        for (head_dim, n_dims) in [(2, 2), (8, 6), (64, 64), (80, 80), (128, 64), (96, 96)] {
            let plain = RopeParams::new(n_dims, 10_000.0);
            let factors: Vec<f32> = (0..n_dims / 2).map(|_| 1.0 + rng.f32() * 7.0).collect();
            let yarn = RopeParams {
                freq_scale: 0.25,
                ext_factor: 1.0,
                attn_factor: 1.1,
                original_context: 4096,
                ..plain
            };
            for (p, f) in [(plain, None), (plain, Some(&factors[..])), (yarn, None)] {
                let pairs = n_dims / 2;
                let position = 1234.0;
                let (mut cos, mut sin) = (vec![0.0; pairs], vec![0.0; pairs]);
                p.fill_table(position, f, &mut cos, &mut sin);
                for mode in [RopeMode::Norm, RopeMode::Neox] {
                    let x = random(&mut rng, 3 * head_dim, 2.0);
                    let mut want: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                    for head in want.chunks_exact_mut(head_dim) {
                        for i in 0..pairs {
                            let mut angle = position * 1e4f64.powf(-2.0 * i as f64 / n_dims as f64);
                            angle /= f.map_or(1.0, |f| f64::from(f[i]));
                            let mut m = 1.0;
                            if p == yarn {
                                // The paper's ramp, over the turns of the pair, linear in the
                                // pair's number between the rounded bounds.
                                let pair = |turns: f64| {
                                    n_dims as f64 * (4096.0 / (turns * std::f64::consts::TAU)).ln()
                                        / (2.0 * 1e4f64.ln())
                                };
                                let low = pair(32.0).floor().max(0.0);
                                let high = pair(1.0).ceil().min(n_dims as f64 - 1.0);
                                let t =
                                    ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                                angle = angle * (1.0 - t) + angle / 4.0 * t;
                                m = f64::from(1.1f32) * (1.0 + 0.1 * 4f64.ln());
                            }
                            let (a, b) = match mode {
                                RopeMode::Norm => (2 * i, 2 * i + 1),
                                RopeMode::Neox => (i, i + pairs),
                            };
                            let (u, v) = (head[a], head[b]);
                            head[a] = m * (u * angle.cos() - v * angle.sin());
                            head[b] = m * (u * angle.sin() + v * angle.cos());
                        }
                    }
                    let mut got = x.clone();
                    rope::rope(isa, mode, &mut got, head_dim, &cos, &sin);
                    assert_close(&got, &want, 1e-6, &format!("{mode:?} {head_dim} {isa}"));
                    let mut copy = vec![0.0; x.len()];
                    // SAFETY: shapes as above.
                    unsafe {
                        let (c, s) = (cos.as_ptr(), sin.as_ptr());
                        let (x, o) = (x.as_ptr(), copy.as_mut_ptr());
                        rope::rope_raw(isa, mode, x, o, (3, head_dim), (c, s, pairs));
                    }
                    assert_eq!(copy, got);
                }
            }
        }
    }
}

#[test]
fn softmax_and_its_logarithm() {
    let mut rng = fastrand::Rng::with_seed(7);
    for isa in Isa::available() {
        for n in SIZES {
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
        for n in SIZES.into_iter().chain([5000, 20_001]) {
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

/// An element type of weights.
trait Element: aether_codegen_cpu::kernels::Load {
    fn make(x: f32) -> Self;
    fn value(self) -> f64;
}
impl Element for f32 {
    fn make(x: f32) -> f32 {
        x
    }
    fn value(self) -> f64 {
        f64::from(self)
    }
}
impl Element for f16 {
    fn make(x: f32) -> f16 {
        f16::from_f32(x)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}
impl Element for bf16 {
    fn make(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

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
            [(1, 1, 1), (3, 5, 2), (9, 400, 49), (16, 64, 48), (20, 900, 101), (4, 0, 6)]
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
                gemm::matmul(isa, a, 0..m, (&packed, n), c.as_mut_ptr(), &mut scratch);
            }
            assert_close(&c, &want, 1e-6 * (k as f64 + 1.0).sqrt(), &format!("{m}x{k}x{n} {isa}"));
        }
    }
}

fn attention_f64(s: &Attention, q: &[f32], k: &[f64], v: &[f64]) -> Vec<f64> {
    let group = s.heads / s.kv_heads;
    let mut out = Vec::new();
    for t in 0..s.tokens {
        for h in 0..s.heads {
            let position = s.past + t;
            let low = s.window.map_or(0, |w| (position + 1).saturating_sub(w));
            let scores: Vec<f64> = (low..=position)
                .map(|j| {
                    let q = &q[(t * s.heads + h) * s.head_dim..][..s.head_dim];
                    let k = &k[(j * s.kv_heads + h / group) * s.head_dim..][..s.head_dim];
                    let dot: f64 = q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum();
                    let x = dot * f64::from(s.scale);
                    s.soft_cap.map_or(x, |c| f64::from(c) * (x / f64::from(c)).tanh())
                })
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
            for c in 0..s.v_dim {
                let at = |j: usize| v[((low + j) * s.kv_heads + h / group) * s.v_dim + c];
                let total: f64 =
                    scores.iter().enumerate().map(|(j, x)| (x - top).exp() * at(j)).sum();
                out.push(total / sum);
            }
        }
    }
    out
}

fn check_attention<E: Element>(isa: Isa, s: &Attention) {
    let mut rng = fastrand::Rng::with_seed((s.tokens * 131 + s.past * 7 + s.head_dim) as u64);
    let context = s.past + s.tokens + 2;
    let q = random(&mut rng, s.tokens * s.heads * s.head_dim, 2.0);
    let make = |n: usize, rng: &mut fastrand::Rng| -> Vec<E> {
        let mut x: Vec<E> = random(rng, n, 2.0).into_iter().map(E::make).collect();
        // What lies beyond the tokens must not matter.
        let row = n / context;
        x[(context - 2) * row..].fill(E::make(f32::NAN));
        x
    };
    let k = make(context * s.kv_heads * s.head_dim, &mut rng);
    let v = make(context * s.kv_heads * s.v_dim, &mut rng);
    s.validate(context).unwrap();
    let wide = |x: &[E]| x.iter().map(|x| x.value()).collect::<Vec<_>>();
    let want = attention_f64(s, &q, &wide(&k), &wide(&v));
    let mut out = vec![f32::NAN; want.len()];
    let mut scratch = vec![f32::NAN; s.scratch_len(isa)];
    for unit in 0..s.units() {
        // SAFETY: `out` has the shape's size and one thread uses it.
        unsafe {
            attention::attention(isa, s, (&q, &k, &v), out.as_mut_ptr(), unit, &mut scratch);
        }
    }
    assert_close(&out, &want, 1e-5, &format!("{s:?} {isa}"));
    if s.tokens == 1 {
        // The same in parts, one of them empty.
        let keys = s.decode_keys();
        let (a, b) = (keys.start + keys.len() / 3, keys.start + keys.len() / 2);
        let group = s.heads / s.kv_heads;
        out.fill(f32::NAN);
        for h in 0..s.kv_heads {
            let mut partials = vec![f32::NAN; 4 * s.partial_len()];
            for (part, keys) in partials.chunks_exact_mut(s.partial_len()).zip([
                keys.start..a,
                a..a,
                a..b,
                b..keys.end,
            ]) {
                attention::decode_part(isa, s, (&q, &k, &v), h, keys, part, &mut scratch);
            }
            let heads = &mut out[h * group * s.v_dim..(h + 1) * group * s.v_dim];
            attention::decode_merge(isa, s, &mut partials, 4, heads);
        }
        assert_close(&out, &want, 1e-5, &format!("in parts: {s:?} {isa}"));
    }
}

#[test]
fn attention_of_many_shapes() {
    let base = Attention {
        tokens: 1,
        past: 0,
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
        v_dim: 16,
        scale: 0.25,
        window: None,
        soft_cap: None,
    };
    let heads =
        |heads, kv_heads, head_dim, v_dim| Attention { heads, kv_heads, head_dim, v_dim, ..base };
    let shapes = [
        base,
        heads(9, 3, 64, 64),
        heads(14, 2, 64, 64),
        heads(4, 1, 256, 256),
        heads(1, 1, 1, 1),
        heads(5, 5, 80, 80),
        heads(8, 4, 96, 96),
        heads(2, 2, 13, 7),
        heads(2, 1, 24, 16),
        heads(100, 1, 8, 8),
        Attention { soft_cap: Some(5.0), ..base },
    ];
    let spans =
        [(1, 0), (1, 1), (1, 62), (1, 300), (2, 0), (5, 0), (33, 0), (70, 0), (40, 130), (3, 64)];
    for isa in Isa::available() {
        for s in shapes {
            for (tokens, past) in spans {
                for window in [None, Some(1), Some(20), Some(1000)] {
                    let s = Attention { tokens, past, window, ..s };
                    check_attention::<f16>(isa, &s);
                    if window.is_none() {
                        check_attention::<f32>(isa, &s);
                    }
                }
            }
        }
        let long = heads(3, 1, 64, 64);
        check_attention::<f16>(isa, &Attention { past: 8191, ..long });
        check_attention::<f16>(isa, &Attention { past: 3000, tokens: 37, ..long });
        check_attention::<bf16>(isa, &Attention { past: 100, tokens: 3, ..long });
    }
}

#[test]
fn attention_keeps_nan_and_survives_large_scores() {
    let s = Attention {
        tokens: 3,
        past: 70,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        v_dim: 8,
        scale: 1.0,
        window: None,
        soft_cap: None,
    };
    for isa in Isa::available() {
        for tokens in [1, 3] {
            let s = Attention { tokens, ..s };
            let n = (s.past + s.tokens) * 8;
            let mut scratch = vec![0.0; s.scratch_len(isa)];
            let mut out = vec![0.0; s.tokens * 16];
            let mut run = |q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]| {
                for unit in 0..s.units() {
                    // SAFETY: `out` has the shape's size and one thread uses it.
                    unsafe {
                        attention::attention(
                            isa,
                            &s,
                            (q, k, v),
                            out.as_mut_ptr(),
                            unit,
                            &mut scratch,
                        );
                    }
                }
            };
            // Scores of ±8e10: one key takes it all.
            let q = vec![1e5; s.tokens * 16];
            let mut k = vec![-1e5; n];
            let v: Vec<f32> = (0..n).map(|i| (i / 8) as f32).collect();
            k[5 * 8..6 * 8].fill(1e5);
            run(&q, &k, &v, &mut out);
            assert!(out.iter().all(|&o| o == 5.0), "{isa}: {out:?}");
            k[30] = f32::NAN;
            run(&q, &k, &v, &mut out);
            assert!(out.iter().all(|o| o.is_nan()), "{isa}: {out:?}");
        }
    }
}

#[test]
fn attention_refuses_what_makes_no_sense() {
    let good = Attention {
        tokens: 2,
        past: 3,
        heads: 6,
        kv_heads: 2,
        head_dim: 8,
        v_dim: 8,
        scale: 1.0,
        window: Some(4),
        soft_cap: Some(1.0),
    };
    assert_eq!(good.validate(5), Ok(()));
    let context = AttentionError::Context { past: 3, tokens: 2, context: 4 };
    assert_eq!(good.validate(4), Err(context));
    for (bad, want) in [
        (Attention { kv_heads: 4, ..good }, AttentionError::Heads { heads: 6, kv_heads: 4 }),
        (Attention { kv_heads: 0, ..good }, AttentionError::Heads { heads: 6, kv_heads: 0 }),
        (Attention { heads: 0, ..good }, AttentionError::Heads { heads: 0, kv_heads: 2 }),
        (Attention { window: Some(0), ..good }, AttentionError::Zero),
        (Attention { v_dim: 0, ..good }, AttentionError::Zero),
        (Attention { soft_cap: Some(0.0), ..good }, AttentionError::SoftCap(0.0)),
    ] {
        assert_eq!(bad.validate(5), Err(want));
    }
    let past = Attention { past: usize::MAX, ..good };
    assert!(matches!(past.validate(5), Err(AttentionError::Context { .. })));
}

#[test]
fn cache_rows_are_stored_where_they_belong() {
    let mut rng = fastrand::Rng::with_seed(11);
    let rows = random(&mut rng, 3 * 21, 4.0);
    for isa in Isa::available() {
        let mut cache = vec![f16::NEG_ONE; 8 * 21];
        attention::store_rows(isa, &rows, 21, &mut cache, 5);
        assert!(cache[..5 * 21].iter().all(|&x| x == f16::NEG_ONE));
        assert!(cache[5 * 21..].iter().zip(&rows).all(|(c, r)| *c == f16::from_f32(*r)));
    }
    let overrun = std::panic::catch_unwind(|| {
        attention::store_rows(Isa::Scalar, &[0.0; 42], 21, &mut [f16::ZERO; 42], 1);
    });
    assert!(overrun.is_err());
}
