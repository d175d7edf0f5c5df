//! [`Lanes`] for NEON with the dot product instructions: four registers of four lanes.
//!
//! The instruction multiplies signed bytes, so 8-bit codes are made signed. It is written as
//! assembly because its intrinsic is not stable in the oldest compiler supported.

use std::arch::aarch64::*;
use std::arch::asm;

use super::lanes::Lanes;

/// NEON and dotprod.
pub(crate) struct Neon;

/// Applies an expression in the register's number to all four registers.
macro_rules! four {
    ($i:ident => $e:expr) => {{
        macro_rules! at {
            ($n:literal) => {{
                let $i: usize = $n;
                $e
            }};
        }
        [at!(0), at!(1), at!(2), at!(3)]
    }};
}

/// Adds to each lane of `acc` the product of the signed bytes of `c` and `a` in that lane.
///
/// # Safety
/// The machine has the dot product instructions.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, c: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction touches its registers alone.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {acc:v}.4s, {c:v}.16b, {a:v}.16b",
            acc = inout(vreg) acc,
            c = in(vreg) c,
            a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

// SAFETY of the bodies: the trait's contract is exactly what the intrinsics ask for, the
// instruction set and valid pointers.
impl Lanes for Neon {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type C = [uint8x16_t; 4];

    const WIDE_UNSIGNED: bool = false;
    const CHAINS: usize = 2;

    #[inline(always)]
    unsafe fn zero_f() -> Self::F {
        unsafe { [vdupq_n_f32(0.0); 4] }
    }
    #[inline(always)]
    unsafe fn zero_i() -> Self::I {
        unsafe { [vdupq_n_s32(0); 4] }
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> Self::F {
        unsafe { four!(i => vld1q_f32(p.add(4 * i))) }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, v: Self::F) {
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
            vst1q_f32(p.add(8), v[2]);
            vst1q_f32(p.add(12), v[3]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        unsafe {
            four!(i => {
                let half = vmovl_u16(vld1_u16(p.add(8 * i).cast()));
                // Exponent and fraction moved into place, then the exponent's bias corrected by
                // a multiplication, which is exact and covers subnormals; infinities and NaNs
                // get the largest exponent by hand.
                let magnitude = vshlq_n_u32::<13>(vandq_u32(half, vdupq_n_u32(0x7fff)));
                let scale = vreinterpretq_f32_u32(vdupq_n_u32((127 + 112) << 23));
                let value = vmulq_f32(vreinterpretq_f32_u32(magnitude), scale);
                let special = vcgeq_u32(magnitude, vdupq_n_u32(0x7c00 << 13));
                let top = vandq_u32(special, vdupq_n_u32(0xff << 23));
                let sign = vshlq_n_u32::<16>(vandq_u32(half, vdupq_n_u32(0x8000)));
                let bits = vorrq_u32(vreinterpretq_u32_f32(value), vorrq_u32(top, sign));
                vreinterpretq_f32_u32(bits)
            })
        }
    }
    #[inline(always)]
    unsafe fn from_u8(v: [u8; 16]) -> Self::F {
        unsafe {
            let v = vld1q_u8(v.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(v)), vmovl_u8(vget_high_u8(v)));
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_u16(vget_high_u16(high))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn from_i8(v: [u8; 16]) -> Self::F {
        unsafe {
            let v = vreinterpretq_s8_u8(vld1q_u8(v.as_ptr()));
            let (low, high) = (vmovl_s8(vget_low_s8(v)), vmovl_s8(vget_high_s8(v)));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { four!(i => vmulq_f32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { four!(i => vfmaq_f32(c[i], a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self::F {
        unsafe { [vdupq_n_f32(p.read_unaligned()); 4] }
    }
    #[inline(always)]
    unsafe fn splat_shr(p: *const i32, n: u32) -> Self::I {
        unsafe { [vdupq_n_s32(p.read_unaligned() >> n); 4] }
    }
    #[inline(always)]
    unsafe fn splat_i32(p: *const i32) -> Self::F {
        unsafe { [vdupq_n_f32(p.read_unaligned() as f32); 4] }
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        unsafe { four!(i => vcvtq_f32_s32(v[i])) }
    }

    #[inline(always)]
    unsafe fn load_c(p: *const u8) -> Self::C {
        unsafe { four!(i => vld1q_u8(p.add(16 * i))) }
    }
    #[inline(always)]
    unsafe fn shr_and(c: Self::C, n: u32, mask: u8) -> Self::C {
        unsafe {
            let (n, mask) = (vdupq_n_s8(-(n as i8)), vdupq_n_u8(mask));
            four!(i => vandq_u8(vshlq_u8(c[i], n), mask))
        }
    }
    #[inline(always)]
    unsafe fn shr_and_shl<const S: u32>(c: Self::C, n: u32, mask: u8) -> Self::C {
        unsafe {
            let (c, s) = (Self::shr_and(c, n, mask), vdupq_n_s8(S as i8));
            four!(i => vshlq_u8(c[i], s))
        }
    }
    #[inline(always)]
    unsafe fn or(a: Self::C, b: Self::C) -> Self::C {
        unsafe { four!(i => vorrq_u8(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn widen(c: Self::C) -> Self::C {
        unsafe {
            let flip = vdupq_n_u8(0x80);
            four!(i => veorq_u8(c[i], flip))
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, c: Self::C, a: *const i8) -> Self::I {
        unsafe {
            let a = vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned()));
            four!(i => sdot(acc[i], vreinterpretq_s8_u8(c[i]), a))
        }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: Self::I, c: Self::C, a: *const i8) -> Self::I {
        // Codes below 128 and codes made signed are read alike.
        unsafe { Self::dot(acc, c, a) }
    }
}
