//! Conversion between element types, rounding to nearest even.
//!
//! f32 to f16 and bf16: overflow gives ∞, NaN stays NaN, f16 subnormals are kept. Float to
//! integer truncates towards zero and saturates, NaN gives 0, as Rust's `as` does.

use half::{bf16, f16};

use super::isa::Isa;
use super::simd::{Load, Simd, dispatch};

#[inline(always)]
unsafe fn widen_body<S: Simd, E: Load>(x: *const E, out: *mut f32, n: usize) {
    // SAFETY: the caller's pointers cover `n` elements.
    unsafe {
        let mut i = 0;
        while i + S::LANES <= n {
            S::store(out.add(i), E::load::<S>(x.add(i)));
            i += S::LANES;
        }
        while i < n {
            *out.add(i) = (*x.add(i)).widen();
            i += 1;
        }
    }
}

#[inline(always)]
unsafe fn narrow_body<S: Simd>(x: *const f32, out: *mut f16, n: usize) {
    // SAFETY: the caller's pointers cover `n` elements; `f16` is transparent over `u16`.
    unsafe {
        let mut i = 0;
        while i + S::LANES <= n {
            S::store_f16(out.add(i).cast(), S::load(x.add(i)));
            i += S::LANES;
        }
        if i < n {
            let mut lanes = [0u16; 16];
            S::store_f16(lanes.as_mut_ptr(), S::load_part(x.add(i), n - i));
            for (j, h) in lanes.into_iter().enumerate().take(n - i) {
                *out.add(i + j) = f16::from_bits(h);
            }
        }
    }
}

dispatch! {
    /// `out[i] = x[i]` for `i < n`, widening.
    ///
    /// # Safety
    /// The pointers cover `n` elements and do not overlap.
    pub unsafe fn widen_raw[E: Load](isa; x: *const E, out: *mut f32, n: usize) = widen_body
}

dispatch! {
    /// `out[i] = x[i]` for `i < n`, rounding.
    ///
    /// # Safety
    /// The pointers cover `n` elements and do not overlap.
    pub unsafe fn f32_to_f16_raw(isa; x: *const f32, out: *mut f16, n: usize) = narrow_body
}

fn common(a: usize, b: usize) -> usize {
    debug_assert_eq!(a, b, "operands of a conversion differ in length");
    a.min(b)
}

/// f16 to f32, exactly.
pub fn f16_to_f32(isa: Isa, x: &[f16], out: &mut [f32]) {
    // SAFETY: both cover the common length.
    unsafe { widen_raw::<f16>(isa, x.as_ptr(), out.as_mut_ptr(), common(x.len(), out.len())) }
}

/// bf16 to f32, exactly.
pub fn bf16_to_f32(isa: Isa, x: &[bf16], out: &mut [f32]) {
    // SAFETY: both cover the common length.
    unsafe { widen_raw::<bf16>(isa, x.as_ptr(), out.as_mut_ptr(), common(x.len(), out.len())) }
}

/// f32 to f16.
pub fn f32_to_f16(isa: Isa, x: &[f32], out: &mut [f16]) {
    // SAFETY: both cover the common length.
    unsafe { f32_to_f16_raw(isa, x.as_ptr(), out.as_mut_ptr(), common(x.len(), out.len())) }
}

/// f32 to bf16. Integer arithmetic that the compiler turns into vectors by itself.
pub fn f32_to_bf16(x: &[f32], out: &mut [bf16]) {
    common(x.len(), out.len());
    for (o, x) in out.iter_mut().zip(x) {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
        *o = bf16::from_bits((if is_nan { quiet } else { rounded }) as u16);
    }
}

/// An element type that Rust's `as` converts to and from f32.
pub trait Cast: Copy {
    /// The value as f32, rounded to nearest even.
    fn to_f32(self) -> f32;
    /// The value nearest to `x` under the rules of this module.
    fn from_f32(x: f32) -> Self;
}

macro_rules! cast {
    ($($t:ty),*) => {$(
        impl Cast for $t {
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn from_f32(x: f32) -> $t {
                x as $t
            }
        }
    )*};
}
cast!(f64, i8, i16, i32, i64, u8, u32);

/// Any of f64, i8, i16, i32, i64, u8, u32 to f32.
pub fn cast_to_f32<T: Cast>(x: &[T], out: &mut [f32]) {
    common(x.len(), out.len());
    for (o, x) in out.iter_mut().zip(x) {
        *o = x.to_f32();
    }
}

/// f32 to any of f64, i8, i16, i32, i64, u8, u32.
pub fn cast_from_f32<T: Cast>(x: &[f32], out: &mut [T]) {
    common(x.len(), out.len());
    for (o, x) in out.iter_mut().zip(x) {
        *o = T::from_f32(*x);
    }
}
