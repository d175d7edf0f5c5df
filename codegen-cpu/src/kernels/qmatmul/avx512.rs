//! [`Lanes`] for AVX-512 with VNNI: one register holds all lanes.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// AVX-512 F, BW, DQ, VL and VNNI.
pub(crate) struct Avx512;

// SAFETY of the bodies: the trait's contract is exactly what the intrinsics ask for, the
// instruction set and valid pointers.
impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    type C = __m512i;

    const WIDE_UNSIGNED: bool = true;
    const CHAINS: usize = 4;

    #[inline(always)]
    unsafe fn zero_f() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn zero_i() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn from_u8(v: [u8; 16]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(v.as_ptr().cast()))) }
    }
    #[inline(always)]
    unsafe fn from_i8(v: [u8; 16]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(v.as_ptr().cast()))) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> __m512 {
        unsafe { _mm512_set1_ps(p.read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn splat_shr(p: *const i32, n: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(p.read_unaligned() >> n) }
    }
    #[inline(always)]
    unsafe fn splat_i32(p: *const i32) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_set1_epi32(p.read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn to_f(v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    #[inline(always)]
    unsafe fn load_c(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn shr_and(c: __m512i, n: u32, mask: u8) -> __m512i {
        unsafe {
            let shifted = _mm512_srl_epi16(c, _mm_cvtsi32_si128(n as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    unsafe fn shr_and_shl<const S: u32>(c: __m512i, n: u32, mask: u8) -> __m512i {
        unsafe { _mm512_slli_epi16::<S>(Self::shr_and(c, n, mask)) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn widen(c: __m512i) -> __m512i {
        c
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512i, c: __m512i, a: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, c, _mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: __m512i, c: __m512i, a: *const i8) -> __m512i {
        unsafe { Self::dot(acc, c, a) }
    }
}
