//! The vector operations a product needs, once per instruction set: 16 lanes, one per row.
//!
//! Kernels are written once over this trait and compiled per level inside a function that
//! enables the level's features; every operation is inlined into it. An implementation must not
//! be used outside of such a function, which is why all operations are unsafe.

/// Sixteen lanes of one instruction set.
///
/// # Safety of the operations
/// The machine must have the instruction set, and pointers must be valid for the bytes that an
/// operation reads or writes; none needs alignment.
pub(crate) trait Lanes {
    /// 16 lanes of `f32`.
    type F: Copy;
    /// 16 lanes of `i32`.
    type I: Copy;
    /// Four bytes for each of 16 lanes.
    type C: Copy;

    /// Whether 8-bit codes stay unsigned (value plus 128), so that their product must be
    /// corrected by −128 times the activation's sum.
    const WIDE_UNSIGNED: bool;

    /// Tokens to work on side by side: enough to hide the latency of the dot product, few enough
    /// for the registers. 1, 2 or 4.
    const CHAINS: usize;

    /// All lanes zero.
    unsafe fn zero_f() -> Self::F;
    /// All lanes zero.
    unsafe fn zero_i() -> Self::I;
    /// Reads 16 `f32`.
    unsafe fn load_f(p: *const f32) -> Self::F;
    /// Writes 16 `f32`.
    unsafe fn store_f(p: *mut f32, v: Self::F);
    /// Reads 16 half-precision floats.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// Unsigned bytes to floats.
    unsafe fn from_u8(v: [u8; 16]) -> Self::F;
    /// Signed bytes to floats.
    unsafe fn from_i8(v: [u8; 16]) -> Self::F;
    /// `a · b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`; rounded once where the machine can.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The float at `p` in all lanes.
    unsafe fn splat(p: *const f32) -> Self::F;
    /// The integer at `p`, shifted right by `n`, in all lanes.
    unsafe fn splat_shr(p: *const i32, n: u32) -> Self::I;
    /// The integer at `p` as a float in all lanes.
    unsafe fn splat_i32(p: *const i32) -> Self::F;
    /// Integers to floats.
    unsafe fn to_f(v: Self::I) -> Self::F;

    /// Reads 64 bytes.
    unsafe fn load_c(p: *const u8) -> Self::C;
    /// `(c >> n) & mask` in each byte, for a mask that keeps no bit moved in from a neighbour.
    unsafe fn shr_and(c: Self::C, n: u32, mask: u8) -> Self::C;
    /// `((c >> n) & mask) << s` in each byte, under the same condition on both shifts.
    unsafe fn shr_and_shl<const S: u32>(c: Self::C, n: u32, mask: u8) -> Self::C;
    /// Bitwise or.
    unsafe fn or(a: Self::C, b: Self::C) -> Self::C;
    /// Prepares 8-bit codes (value plus 128) for [`dot_wide`](Self::dot_wide).
    unsafe fn widen(c: Self::C) -> Self::C;
    /// Adds to each lane the product of its four codes, all below 128, with the four signed
    /// bytes at `a`, all in −127..=127.
    unsafe fn dot(acc: Self::I, c: Self::C, a: *const i8) -> Self::I;
    /// [`dot`](Self::dot) for codes that went through [`widen`](Self::widen).
    unsafe fn dot_wide(acc: Self::I, c: Self::C, a: *const i8) -> Self::I;
}
