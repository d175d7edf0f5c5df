//! [`Lanes`] for AVX2: two registers of eight lanes.
//!
//! Without VNNI the product of four byte pairs takes two steps, and the first one saturates at 16
//! bits. Codes below 128 with activations in −127..=127 stay below the limit; 8-bit codes are made
//! signed and their sign is moved to the activation.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// AVX2, FMA and F16C.
pub(crate) struct Avx2;

// SAFETY of the bodies: the trait's contract is exactly what the intrinsics ask for, the
// instruction set and valid pointers.
impl Lanes for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type C = [__m256i; 2];

    const WIDE_UNSIGNED: bool = false;
    const CHAINS: usize = 2;

    #[inline(always)]
    unsafe fn zero_f() -> Self::F {
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    unsafe fn zero_i() -> Self::I {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, v: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn from_u8(v: [u8; 16]) -> Self::F {
        unsafe {
            let v = _mm_loadu_si128(v.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(v))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn from_i8(v: [u8; 16]) -> Self::F {
        unsafe {
            let v = _mm_loadu_si128(v.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(v))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self::F {
        unsafe { [_mm256_set1_ps(p.read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn splat_shr(p: *const i32, n: u32) -> Self::I {
        unsafe { [_mm256_set1_epi32(p.read_unaligned() >> n); 2] }
    }
    #[inline(always)]
    unsafe fn splat_i32(p: *const i32) -> Self::F {
        unsafe { [_mm256_set1_ps(p.read_unaligned() as f32); 2] }
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }

    #[inline(always)]
    unsafe fn load_c(p: *const u8) -> Self::C {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn shr_and(c: Self::C, n: u32, mask: u8) -> Self::C {
        unsafe {
            let (n, mask) = (_mm_cvtsi32_si128(n as i32), _mm256_set1_epi8(mask as i8));
            [
                _mm256_and_si256(_mm256_srl_epi16(c[0], n), mask),
                _mm256_and_si256(_mm256_srl_epi16(c[1], n), mask),
            ]
        }
    }
    #[inline(always)]
    unsafe fn shr_and_shl<const S: u32>(c: Self::C, n: u32, mask: u8) -> Self::C {
        unsafe {
            let c = Self::shr_and(c, n, mask);
            let s = _mm_cvtsi32_si128(S as i32);
            [_mm256_sll_epi16(c[0], s), _mm256_sll_epi16(c[1], s)]
        }
    }
    #[inline(always)]
    unsafe fn or(a: Self::C, b: Self::C) -> Self::C {
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn widen(c: Self::C) -> Self::C {
        unsafe {
            let flip = _mm256_set1_epi8(i8::MIN);
            [_mm256_xor_si256(c[0], flip), _mm256_xor_si256(c[1], flip)]
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, c: Self::C, a: *const i8) -> Self::I {
        unsafe {
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            let ones = _mm256_set1_epi16(1);
            let pairs = [_mm256_maddubs_epi16(c[0], a), _mm256_maddubs_epi16(c[1], a)];
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(pairs[0], ones)),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(pairs[1], ones)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: Self::I, c: Self::C, a: *const i8) -> Self::I {
        unsafe {
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            let ones = _mm256_set1_epi16(1);
            // |−128| reads as 128 when taken unsigned, and 2·128·127 still fits 16 bits.
            let pairs = [
                _mm256_maddubs_epi16(_mm256_abs_epi8(c[0]), _mm256_sign_epi8(a, c[0])),
                _mm256_maddubs_epi16(_mm256_abs_epi8(c[1]), _mm256_sign_epi8(a, c[1])),
            ];
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(pairs[0], ones)),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(pairs[1], ones)),
            ]
        }
    }
}
