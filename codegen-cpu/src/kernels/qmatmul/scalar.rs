//! [`Lanes`] in plain Rust, for machines without a level of their own; the compiler may use
//! whatever vectors the target always has.

use half::f16;

use super::lanes::Lanes;

/// No instruction set in particular.
pub(crate) struct Scalar;

// SAFETY of the bodies: only the pointer reads and writes are unsafe, and the trait's contract
// makes them valid.
impl Lanes for Scalar {
    type F = [f32; 16];
    type I = [i32; 16];
    type C = [u8; 64];

    const WIDE_UNSIGNED: bool = false;
    const CHAINS: usize = 1;

    #[inline(always)]
    unsafe fn zero_f() -> [f32; 16] {
        [0.0; 16]
    }
    #[inline(always)]
    unsafe fn zero_i() -> [i32; 16] {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> [f32; 16] {
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, v: [f32; 16]) {
        unsafe { p.cast::<[f32; 16]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> [f32; 16] {
        let bytes = unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() };
        bytes.map(|b| f16::from_le_bytes(b).to_f32())
    }
    #[inline(always)]
    unsafe fn from_u8(v: [u8; 16]) -> [f32; 16] {
        v.map(f32::from)
    }
    #[inline(always)]
    unsafe fn from_i8(v: [u8; 16]) -> [f32; 16] {
        v.map(|b| f32::from(b as i8))
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> [f32; 16] {
        unsafe { [p.read_unaligned(); 16] }
    }
    #[inline(always)]
    unsafe fn splat_shr(p: *const i32, n: u32) -> [i32; 16] {
        unsafe { [p.read_unaligned() >> n; 16] }
    }
    #[inline(always)]
    unsafe fn splat_i32(p: *const i32) -> [f32; 16] {
        unsafe { [p.read_unaligned() as f32; 16] }
    }
    #[inline(always)]
    unsafe fn to_f(v: [i32; 16]) -> [f32; 16] {
        v.map(|x| x as f32)
    }

    #[inline(always)]
    unsafe fn load_c(p: *const u8) -> [u8; 64] {
        unsafe { p.cast::<[u8; 64]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn shr_and(c: [u8; 64], n: u32, mask: u8) -> [u8; 64] {
        c.map(|b| (b >> n) & mask)
    }
    #[inline(always)]
    unsafe fn shr_and_shl<const S: u32>(c: [u8; 64], n: u32, mask: u8) -> [u8; 64] {
        c.map(|b| ((b >> n) & mask) << S)
    }
    #[inline(always)]
    unsafe fn or(a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn widen(c: [u8; 64]) -> [u8; 64] {
        c.map(|b| b ^ 0x80)
    }
    #[inline(always)]
    unsafe fn dot(acc: [i32; 16], c: [u8; 64], a: *const i8) -> [i32; 16] {
        // Codes below 128 read the same signed and unsigned.
        unsafe { Self::dot_wide(acc, c, a) }
    }
    #[inline(always)]
    unsafe fn dot_wide(mut acc: [i32; 16], c: [u8; 64], a: *const i8) -> [i32; 16] {
        let a = unsafe { a.cast::<[i8; 4]>().read_unaligned() };
        for (lane, sum) in acc.iter_mut().enumerate() {
            for (j, &a) in a.iter().enumerate() {
                *sum += i32::from(c[4 * lane + j] as i8) * i32::from(a);
            }
        }
        acc
    }
}
