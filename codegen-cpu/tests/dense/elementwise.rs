//! Elementwise kernels: unary and binary operations, and gates.

use aether_codegen_cpu::kernels::elementwise::{self, Binary, Gate, Unary};
use aether_codegen_cpu::kernels::isa::Isa;

use crate::support::{LENGTHS, assert_close, random, sizes, ulps};

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
        Unary::Sign if x == 0.0 || x.is_nan() => x,
        Unary::Sign => x.signum(),
        Unary::Not => 1.0 - x,
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
const UNARY: [(Unary, f32, f64); 22] = [
    (Unary::Neg, 1e6, 0.0),
    (Unary::Abs, 1e6, 0.0),
    (Unary::Sign, 1e6, 0.0),
    (Unary::Not, 1e6, 0.5),
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
    let samples = sizes().samples;
    for isa in Isa::available() {
        for (op, span, limit) in UNARY {
            let mut x = random(&mut rng, samples, span);
            x.extend(random(&mut rng, samples / 4, 1.0));
            x.extend(random(&mut rng, samples / 20 + 1, 1e-3));
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
        let x = random(&mut rng, samples + 1, 5.0);
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
        for n in LENGTHS {
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
        for n in LENGTHS {
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
