//! One set of vector operations over every instruction set, so that a kernel is written once.
//!
//! A kernel body is a function generic over [`Simd`], always inlined; [`dispatch!`] wraps it in
//! one entry per instruction set with the matching target features and picks the entry by
//! [`Isa`]. Lanes are f32 everywhere. Maximum and minimum return the *second* operand when
//! either is NaN (as x86 does), except on NEON, which returns NaN; a kernel that wants NaN to
//! pass through puts the data second.

use std::sync::atomic::{AtomicU8, Ordering};

use half::{bf16, f16};

use super::isa::Isa;

#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// Vector operations of one instruction set.
///
/// # Safety
/// Every method may only run where the instruction set is available; pointer methods read or
/// write `LANES` elements (the `_part` forms the first `n`, `n <= LANES`) at any alignment.
pub trait Simd: Copy + 'static {
    /// A vector of `LANES` f32.
    type V: Copy;
    /// The outcome of a comparison, lane by lane.
    type M: Copy;
    /// f32 lanes of a vector.
    const LANES: usize;
    /// Rows and vectors of columns of the register tile of the matrix kernels: as many as the
    /// registers hold beside the operands.
    const MR: usize;
    const NV: usize;
    /// Query heads (or tokens) that the dot-product tile of four rows takes at once.
    const DOT_COLS: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    /// Lanes from `n` on are zero.
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize);
    unsafe fn load_f16(p: *const u16) -> Self::V;
    /// Rounds to nearest even.
    unsafe fn store_f16(p: *mut u16, v: Self::V);
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    /// One f16 in every lane.
    unsafe fn splat_f16(p: *const u16) -> Self::V;
    unsafe fn load_i8(p: *const i8) -> Self::V;
    /// The low halves of bytes, less 8.
    unsafe fn load_low4(p: *const u8) -> Self::V;
    /// The high halves of bytes, less 8.
    unsafe fn load_high4(p: *const u8) -> Self::V;

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c`; fused except on [`Scalar`].
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c − a·b`; fused except on [`Scalar`].
    unsafe fn fnma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a·b` rounded subtracted from `a·b` exact: the rounding error of the product.
    unsafe fn mul_error(a: Self::V, b: Self::V, product: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    unsafe fn abs(a: Self::V) -> Self::V;
    /// The magnitude of `a` (not negative) with the sign of `s`.
    unsafe fn copysign(a: Self::V, s: Self::V) -> Self::V;
    /// Nearest integer, ties to even; only for |a| < 2^22.
    unsafe fn round_small(a: Self::V) -> Self::V;
    /// `a · 2^n` for integral `n` in −152..=129, correctly rounded for a in [0.5, 2).
    unsafe fn scale2(a: Self::V, n: Self::V) -> Self::V;
    /// False where either is NaN.
    unsafe fn lt(a: Self::V, b: Self::V) -> Self::M;
    /// As [`Simd::lt`].
    unsafe fn le(a: Self::V, b: Self::V) -> Self::M;
    /// As [`Simd::lt`].
    unsafe fn eq(a: Self::V, b: Self::V) -> Self::M;
    /// `a` where the mask is set, else `b`.
    unsafe fn select(m: Self::M, a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sum(a: Self::V) -> f32;
    /// Largest lane; NaN lanes may be passed over.
    unsafe fn max_lane(a: Self::V) -> f32;
}

/// An element that vector loads widen to f32.
///
/// # Safety
/// As for [`Simd`].
pub trait Load: Copy + Send + Sync + 'static {
    /// # Safety
    /// As for [`Simd`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;

    /// The element as f32.
    fn widen(self) -> f32;

    /// The first `n` elements; lanes from `n` on are zero.
    ///
    /// # Safety
    /// As for [`Simd`].
    #[inline(always)]
    unsafe fn load_part<S: Simd>(p: *const Self, n: usize) -> S::V {
        let mut lanes = [0f32; 16];
        // SAFETY: the caller vouches for `n` elements at `p`, and `n <= LANES <= 16`.
        unsafe {
            for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                *lane = (*p.add(i)).widen();
            }
            S::load(lanes.as_ptr())
        }
    }
}

// SAFETY of the calls below: `f16` and `bf16` are transparent over `u16`, and the callers give
// what `Simd` asks for.
impl Load for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Simd>(p: *const f32, n: usize) -> S::V {
        unsafe { S::load_part(p, n) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Load for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f16) -> S::V {
        unsafe { S::load_f16(p.cast()) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Load for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const bf16) -> S::V {
        unsafe { S::load_bf16(p.cast()) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// The vector code to run for an [`Isa`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Scalar,
    Avx2,
    Avx512,
    Neon,
}

/// The level of `isa` if this machine has it, else [`Level::Scalar`]: a wrong `isa` costs speed,
/// never soundness.
#[inline]
pub fn level(isa: Isa) -> Level {
    // Bit 7: filled in. Bits 0 to 2: the levels found.
    static FOUND: AtomicU8 = AtomicU8::new(0);
    let mut found = FOUND.load(Ordering::Relaxed);
    if found == 0 {
        let bit = |isa: Isa, bit: u8| if isa.is_available() { bit } else { 0 };
        found = 0x80 | bit(Isa::Avx2, 1) | bit(Isa::Avx512Vnni, 2) | bit(Isa::NeonDot, 4);
        FOUND.store(found, Ordering::Relaxed);
    }
    match isa {
        Isa::Avx2 if found & 1 != 0 => Level::Avx2,
        Isa::Avx512Vnni if found & 2 != 0 => Level::Avx512,
        Isa::NeonDot if found & 4 != 0 => Level::Neon,
        _ => Level::Scalar,
    }
}

/// The sizes that decide how scratch and panels are laid out.
#[derive(Clone, Copy)]
pub struct Geometry {
    /// f32 lanes of a vector.
    pub lanes: usize,
    /// Rows of a register tile.
    pub rows: usize,
    /// Vectors of columns of a register tile.
    pub vectors: usize,
}

impl Geometry {
    const fn of<S: Simd>() -> Geometry {
        Geometry { lanes: S::LANES, rows: S::MR, vectors: S::NV }
    }
}

/// The sizes of the code that runs for `isa`.
pub fn geometry(isa: Isa) -> Geometry {
    match level(isa) {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Geometry::of::<Avx2>(),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Geometry::of::<Avx512>(),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => Geometry::of::<Neon>(),
        _ => Geometry::of::<Scalar>(),
    }
}

/// `dispatch! { vis unsafe fn name[E: Bound](isa; args…) -> R = body }` defines `name`, which
/// runs `body::<S, E>(args…)` compiled for the instruction set of `isa`. `body` must be
/// `#[inline(always)]`, as must everything it calls, closures included.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident $([$($g:ident : $b:path),+])?
     ($isa:ident; $($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis unsafe fn $name $(<$($g: $b),+>)? ($isa: $crate::kernels::isa::Isa, $($arg: $ty),*)
            $(-> $ret)?
        {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn avx512 $(<$($g: $b),+>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's promise, and the features are on.
                unsafe { $body::<$crate::kernels::simd::Avx512 $($(, $g)+)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2 $(<$($g: $b),+>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's promise, and the features are on.
                unsafe { $body::<$crate::kernels::simd::Avx2 $($(, $g)+)?>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            unsafe fn neon $(<$($g: $b),+>)? ($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's promise, and the features are on.
                unsafe { $body::<$crate::kernels::simd::Neon $($(, $g)+)?>($($arg),*) }
            }
            // SAFETY: `level` names only what this machine has; the rest is the caller's promise.
            unsafe {
                match $crate::kernels::simd::level($isa) {
                    #[cfg(target_arch = "x86_64")]
                    $crate::kernels::simd::Level::Avx512 => avx512 $(::<$($g),+>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::kernels::simd::Level::Avx2 => avx2 $(::<$($g),+>)? ($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::kernels::simd::Level::Neon => neon $(::<$($g),+>)? ($($arg),*),
                    _ => $body::<$crate::kernels::simd::Scalar $($(, $g)+)?>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use dispatch;
