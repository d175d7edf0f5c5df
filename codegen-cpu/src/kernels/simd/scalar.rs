//! Plain Rust over four lanes, which the compiler turns into whatever the target has.

use super::Simd;

/// Plain Rust.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

const L: usize = 4;

/// 1.5·2^23: adding and subtracting it leaves the nearest integer of a small f32.
const ROUNDER: f32 = 12_582_912.0;

#[inline(always)]
fn map(a: [f32; L], f: impl Fn(f32) -> f32) -> [f32; L] {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

#[inline(always)]
fn zip(a: [f32; L], b: [f32; L], f: impl Fn(f32, f32) -> f32) -> [f32; L] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// 2^n for an integral n within the exponents of normal numbers.
#[inline(always)]
fn pow2(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// f16 bits to f32, without branches.
#[inline(always)]
fn widen(h: u16) -> f32 {
    let h = u32::from(h);
    // Exponent and mantissa in f32's places, short of the difference of the biases, which a
    // product makes good, subnormals included.
    let scaled = f32::from_bits((h & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (h & 0x8000) << 16)
}

/// f32 to f16 bits to nearest even, without branches.
#[inline(always)]
fn narrow(x: f32) -> u16 {
    let sign = x.to_bits() >> 16 & 0x8000;
    let a = x.to_bits() & 0x7fff_ffff;
    let rounded = a.wrapping_add(0xfff + (a >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    // Below 2^-14 the last place of 0.5 is that of an f16 subnormal, so a sum rounds there.
    let small = (f32::from_bits(a) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if a < 113 << 23 { small } else { rounded };
    // From halfway between the largest f16 and 2^16 on.
    let large = if a > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    (sign | if a >= 0x477f_f000 { large } else { finite }) as u16
}

// SAFETY of the pointer reads and writes: they touch the elements that the trait says, which
// the caller vouches for.
impl Simd for Scalar {
    type V = [f32; L];
    type M = [bool; L];
    const LANES: usize = L;
    const MR: usize = 4;
    const NV: usize = 2;
    const DOT_COLS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; L]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { p.cast::<[f32; L]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; L];
        for (i, x) in v.iter_mut().enumerate().take(n) {
            *x = unsafe { *p.add(i) };
        }
        v
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { p.cast::<[f32; L]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            unsafe { *p.add(i) = x };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::V {
        let bits = unsafe { p.cast::<[u16; L]>().read_unaligned() };
        [widen(bits[0]), widen(bits[1]), widen(bits[2]), widen(bits[3])]
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::V) {
        let bits = [narrow(v[0]), narrow(v[1]), narrow(v[2]), narrow(v[3])];
        unsafe { p.cast::<[u16; L]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::V {
        let bits = unsafe { p.cast::<[u16; L]>().read_unaligned() };
        bits.map(|b| f32::from_bits(u32::from(b) << 16))
    }

    #[inline(always)]
    unsafe fn splat_f16(p: *const u16) -> Self::V {
        unsafe { [widen(p.read_unaligned()); L] }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::V {
        unsafe { p.cast::<[i8; L]>().read().map(f32::from) }
    }
    #[inline(always)]
    unsafe fn load_low4(p: *const u8) -> Self::V {
        unsafe { p.cast::<[u8; L]>().read().map(|b| f32::from(b & 15) - 8.0) }
    }
    #[inline(always)]
    unsafe fn load_high4(p: *const u8) -> Self::V {
        unsafe { p.cast::<[u8; L]>().read().map(|b| f32::from(b >> 4) - 8.0) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        zip(zip(a, b, |a, b| a * b), c, |p, c| p + c)
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        zip(zip(a, b, |a, b| a * b), c, |p, c| c - p)
    }
    #[inline(always)]
    unsafe fn mul_error(a: Self::V, b: Self::V, product: Self::V) -> Self::V {
        // The product of two f32 is exact in f64.
        let mut e = [0.0; L];
        for i in 0..L {
            e[i] = (f64::from(a[i]) * f64::from(b[i]) - f64::from(product[i])) as f32;
        }
        e
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        map(a, f32::sqrt)
    }
    #[inline(always)]
    unsafe fn abs(a: Self::V) -> Self::V {
        map(a, f32::abs)
    }
    #[inline(always)]
    unsafe fn copysign(a: Self::V, s: Self::V) -> Self::V {
        zip(a, s, f32::copysign)
    }
    #[inline(always)]
    unsafe fn round_small(a: Self::V) -> Self::V {
        map(a, |a| (a + ROUNDER) - ROUNDER)
    }
    #[inline(always)]
    unsafe fn scale2(a: Self::V, n: Self::V) -> Self::V {
        zip(a, n, |a, n| {
            // A NaN exponent only comes with a NaN operand; `as` then gives 0.
            let n = n as i32;
            let half = n >> 1;
            a * pow2(half) * pow2(n - half)
        })
    }
    #[inline(always)]
    unsafe fn lt(a: Self::V, b: Self::V) -> Self::M {
        [a[0] < b[0], a[1] < b[1], a[2] < b[2], a[3] < b[3]]
    }
    #[inline(always)]
    unsafe fn le(a: Self::V, b: Self::V) -> Self::M {
        [a[0] <= b[0], a[1] <= b[1], a[2] <= b[2], a[3] <= b[3]]
    }
    #[inline(always)]
    unsafe fn eq(a: Self::V, b: Self::V) -> Self::M {
        [a[0] == b[0], a[1] == b[1], a[2] == b[2], a[3] == b[3]]
    }
    #[inline(always)]
    unsafe fn select(m: Self::M, a: Self::V, b: Self::V) -> Self::V {
        let pick = |i: usize| if m[i] { a[i] } else { b[i] };
        [pick(0), pick(1), pick(2), pick(3)]
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    unsafe fn max_lane(a: Self::V) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }
}
