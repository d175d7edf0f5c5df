//! Elementary functions of vectors: exponential, hyperbolic tangent, error function and the
//! activations built on them.
//!
//! The polynomials are our own near-minimax fits on the reduced ranges. Errors against f64, in
//! units of the last place of the true f32 result (tests hold them) where that is a normal
//! number: `exp` 2, `tanh` 3, `sigmoid` 3, `silu` 4, `gelu_erf` 8; `gelu_tanh` 8 above −1 and
//! 64 above −5, where its exponential magnifies the rounding of its argument (its absolute error
//! falls all the same). Without fused multiply-add half as much again. NaN gives NaN. `exp`
//! gives ∞ above 88.73 and 0 below −104, with subnormal results between; `sigmoid` gives 0 below
//! −88.7. `silu`, `gelu_tanh` and `gelu_erf` of −∞ give −0.
//!
//! Safety of every function here: `S`'s instruction set must be available. There are no other
//! conditions, so the blocks below carry no further reason.

use super::simd::Simd;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; the product of the first with any exponent is exact.
const LN2_HI: f32 = 355.0 / 512.0;
const LN2_LO: f32 = -2.121_944_4e-4;

/// (eʳ − 1 − r) / r² on |r| ≤ ln 2 / 2.
const EXP: [f32; 5] = [0.499_999_94, 0.166_665_2, 0.041_668_4, 0.008_368_892, 0.001_381_445];
/// (tanh x − x) / x³ in x², on |x| ≤ 0.632.
const TANH: [f32; 5] = [-0.333_332_78, 0.133_313_28, -0.053_729_23, 0.020_601_999, -0.005_660_78];
/// erfc(a)·exp(a²)/t in t = 1 / (1 + 0.35 a), on 0 ≤ a ≤ 10.5.
const ERFC: [f32; 10] = [
    0.197_480_32,
    0.197_201_86,
    0.187_402_14,
    0.153_408_86,
    0.139_895_25,
    0.098_010_65,
    -0.040_437_683,
    0.190_689_9,
    -0.162_733_6,
    0.039_082_31,
];

/// c[0] + c[1] x + … by Horner's rule.
#[inline(always)]
unsafe fn poly<S: Simd, const N: usize>(c: [f32; N], x: S::V) -> S::V {
    unsafe {
        let mut p = S::splat(c[N - 1]);
        let mut i = N - 1;
        while i > 0 {
            i -= 1;
            p = S::fma(p, x, S::splat(c[i]));
        }
        p
    }
}

/// eˣ.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    unsafe {
        // The data is the second operand, so NaN stays.
        let x = S::max(S::splat(-105.0), S::min(S::splat(89.0), x));
        let n = S::round_small(S::mul(x, S::splat(LOG2_E)));
        let r = S::fnma(n, S::splat(LN2_HI), x);
        let r = S::fnma(n, S::splat(LN2_LO), r);
        let p = poly::<S, 5>(EXP, r);
        let p = S::add(S::fma(S::mul(r, r), p, r), S::splat(1.0));
        S::scale2(p, n)
    }
}

/// tanh x.
#[inline(always)]
pub unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let a = S::abs(x);
        let z = S::mul(a, a);
        let small = S::fma(S::mul(a, z), poly::<S, 5>(TANH, z), a);
        let e = exp::<S>(S::add(a, a));
        let large = S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(e, S::splat(1.0))));
        S::copysign(S::select(S::lt(a, S::splat(0.625)), small, large), x)
    }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        S::div(S::splat(1.0), S::add(S::splat(1.0), e))
    }
}

/// x / (1 + e⁻ᵛ), with x held finite from below so that −∞ gives −0.
#[inline(always)]
unsafe fn gate<S: Simd>(x: S::V, v: S::V) -> S::V {
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), v));
        let x = S::max(S::splat(f32::MIN), x);
        S::div(x, S::add(S::splat(1.0), e))
    }
}

/// x · sigmoid(x).
#[inline(always)]
pub unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    unsafe { gate::<S>(x, x) }
}

/// x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
#[inline(always)]
pub unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    unsafe {
        // x/2 (1 + tanh u) = x sigmoid(2u), which keeps its relative precision below zero.
        let two_root = S::splat(1.595_769); // 2 √(2/π)
        let inner = S::fma(S::mul(x, x), S::splat(0.044_715), S::splat(1.0));
        gate::<S>(x, S::mul(S::mul(x, two_root), inner))
    }
}

/// erfc a for a ≥ 0, given a² as `sq + low` (0 above 10.3).
#[inline(always)]
unsafe fn erfc_positive<S: Simd>(a: S::V, sq: S::V, low: S::V) -> S::V {
    unsafe {
        let t = S::div(S::splat(1.0), S::fma(a, S::splat(0.35), S::splat(1.0)));
        // The rounding error of a² would be magnified by a² in the exponential: made good here.
        let e = exp::<S>(S::sub(S::splat(0.0), sq));
        let e = S::fnma(e, low, e);
        S::mul(S::mul(e, t), poly::<S, 10>(ERFC, t))
    }
}

/// erf x; absolute error below 2e-7.
#[inline(always)]
pub unsafe fn erf<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let a = S::abs(x);
        let z = S::mul(a, a);
        // Taylor's series where 1 − erfc would cancel.
        let small = S::mul(
            a,
            poly::<S, 6>(
                [
                    std::f32::consts::FRAC_2_SQRT_PI,
                    -0.376_126_4,
                    0.112_837_92,
                    -0.026_866_17,
                    0.005_223_978,
                    -0.000_854_832_7,
                ],
                z,
            ),
        );
        let large = S::sub(S::splat(1.0), erfc_positive::<S>(a, z, S::splat(0.0)));
        S::copysign(S::select(S::lt(a, S::splat(0.5)), small, large), x)
    }
}

/// x/2 · (1 + erf(x/√2)).
#[inline(always)]
pub unsafe fn gelu_erf<S: Simd>(x: S::V) -> S::V {
    unsafe {
        // Beyond 15 the tail is 0 in f32; without the bound x² would overflow.
        let far = S::min(S::splat(15.0), S::abs(x));
        let half = S::splat(0.5);
        let square = S::mul(far, far);
        let low = S::mul(half, S::mul_error(far, far, square));
        let a = S::mul(far, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let half_tail = S::mul(half, erfc_positive::<S>(a, S::mul(half, square), low));
        let phi = S::select(S::lt(x, S::splat(0.0)), half_tail, S::sub(S::splat(1.0), half_tail));
        S::mul(S::max(S::splat(f32::MIN), x), phi)
    }
}
