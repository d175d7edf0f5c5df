//! Tiles from and to memory, and between element types.
//!
//! The rules are the interpreter's: writing rounds once to nearest even, floats become integers by
//! truncation with saturation (NaN becomes 0), integers wrap, and `bool` is 1 for all but zero.

use aether_ir::DType;
use half::{bf16, f16};

use super::Class;
use crate::kernels::convert;
use crate::kernels::isa::Isa;

/// `to[i] = f(from[i])` for `i < n`.
#[inline(always)]
unsafe fn each<A: Copy, B>(from: *const u8, to: *mut u8, n: usize, f: impl Fn(A) -> B) {
    let (from, to) = (from.cast::<A>(), to.cast::<B>());
    for i in 0..n {
        // SAFETY: the caller's pointers cover `n` elements, and are the same or apart.
        unsafe { *to.add(i) = f(*from.add(i)) };
    }
}

/// Loads `n` elements of memory into a tile.
///
/// # Safety
/// `from` covers `n` elements of `dtype`, `to` as many lanes of its class, apart from each other.
pub unsafe fn load(isa: Isa, dtype: DType, from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F32 => std::ptr::copy_nonoverlapping(from, to, 4 * n),
            DType::F64 | DType::I64 => std::ptr::copy_nonoverlapping(from, to, 8 * n),
            DType::F16 => convert::widen_raw::<f16>(isa, from.cast(), to.cast(), n),
            DType::Bf16 => convert::widen_raw::<bf16>(isa, from.cast(), to.cast(), n),
            DType::Bool => each(from, to, n, |v: u8| f32::from(u8::from(v != 0))),
            DType::I8 => each::<i8, i64>(from, to, n, i64::from),
            DType::I16 => each::<i16, i64>(from, to, n, i64::from),
            DType::I32 => each::<i32, i64>(from, to, n, i64::from),
            DType::U8 => each::<u8, i64>(from, to, n, i64::from),
            DType::U32 => each::<u32, i64>(from, to, n, i64::from),
            _ => {}
        }
    }
}

/// Stores a tile as `n` elements of `dtype`; its lanes are values of that type.
///
/// # Safety
/// As [`load`], the other way round.
pub unsafe fn store(isa: Isa, dtype: DType, from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F32 => std::ptr::copy(from, to, 4 * n),
            DType::F64 | DType::I64 => std::ptr::copy(from, to, 8 * n),
            DType::F16 => convert::f32_to_f16_raw(isa, from.cast(), to.cast(), n),
            DType::Bf16 => {
                let from = std::slice::from_raw_parts(from.cast::<f32>(), n);
                convert::f32_to_bf16(from, std::slice::from_raw_parts_mut(to.cast(), n));
            }
            DType::Bool => each(from, to, n, |v: f32| u8::from(v != 0.0)),
            DType::I8 => each(from, to, n, |v: i64| v as i8),
            DType::I16 => each(from, to, n, |v: i64| v as i16),
            DType::I32 => each(from, to, n, |v: i64| v as i32),
            DType::U8 => each(from, to, n, |v: i64| v as u8),
            DType::U32 => each(from, to, n, |v: i64| v as u32),
            _ => {}
        }
    }
}

/// The first lane of `from` in `n` lanes.
///
/// # Safety
/// `from` covers one lane and `to` `n`; they may begin at the same place.
pub unsafe fn spread(class: Class, from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match class {
            Class::F32 => {
                let v = *from.cast::<u32>();
                (0..n).for_each(|i| *to.cast::<u32>().add(i) = v);
            }
            Class::F64 | Class::I64 => {
                let v = *from.cast::<u64>();
                (0..n).for_each(|i| *to.cast::<u64>().add(i) = v);
            }
        }
    }
}

/// Rounds or wraps lanes to what `dtype` can hold, in place.
///
/// # Safety
/// `tile` covers `n` lanes of the type's class.
pub unsafe fn round(isa: Isa, dtype: DType, tile: *mut u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F16 | DType::Bf16 => {
                let mut narrow = [0u16; 128];
                for start in (0..n).step_by(narrow.len()) {
                    let m = narrow.len().min(n - start);
                    let part = tile.add(4 * start);
                    store(isa, dtype, part, narrow.as_mut_ptr().cast(), m);
                    load(isa, dtype, narrow.as_ptr().cast(), part, m);
                }
            }
            DType::I8 => each(tile, tile, n, |v: i64| i64::from(v as i8)),
            DType::I16 => each(tile, tile, n, |v: i64| i64::from(v as i16)),
            DType::I32 => each(tile, tile, n, |v: i64| i64::from(v as i32)),
            DType::U8 => each(tile, tile, n, |v: i64| i64::from(v as u8)),
            DType::U32 => each(tile, tile, n, |v: i64| i64::from(v as u32)),
            _ => {}
        }
    }
}

/// An f64 as the f32 that rounds to a narrower type as the f64 itself would: inexact ones go to
/// the neighbour with an odd last bit (Boldo and Melquiond 2008).
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    if x.is_nan() || f64::from(near) == x {
        return near;
    }
    let toward_zero = f64::from(near).abs() < x.abs();
    let below = if toward_zero { near.to_bits() } else { near.to_bits() - 1 };
    f32::from_bits(below | 1)
}

/// As [`to_odd`], from integers.
fn int_to_odd(v: i64) -> f32 {
    let near = v as f32;
    let (exact, rounded) = (i128::from(v).abs(), (near as i128).abs());
    match rounded.cmp(&exact) {
        std::cmp::Ordering::Equal => near,
        std::cmp::Ordering::Less => f32::from_bits(near.to_bits() | 1),
        std::cmp::Ordering::Greater => f32::from_bits((near.to_bits() - 1) | 1),
    }
}

/// A number of one class as a lane of another type.
trait Lane: Copy {
    fn to_f32(self, to: DType) -> f32;
    fn to_f64(self) -> f64;
    fn to_i64(self, to: DType) -> i64;
}

macro_rules! float_lane {
    ($t:ty, $odd:expr) => {
        impl Lane for $t {
            #[inline(always)]
            fn to_f32(self, to: DType) -> f32 {
                match to {
                    DType::F16 => f16::from_f32($odd(self)).to_f32(),
                    DType::Bf16 => bf16::from_f32($odd(self)).to_f32(),
                    DType::Bool => f32::from(u8::from(self != 0.0)),
                    _ => self as f32,
                }
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn to_i64(self, to: DType) -> i64 {
                match to {
                    DType::I8 => i64::from(self as i8),
                    DType::I16 => i64::from(self as i16),
                    DType::I32 => i64::from(self as i32),
                    DType::U8 => i64::from(self as u8),
                    DType::U32 => i64::from(self as u32),
                    _ => self as i64,
                }
            }
        }
    };
}
float_lane!(f32, std::convert::identity);
float_lane!(f64, to_odd);

impl Lane for i64 {
    #[inline(always)]
    fn to_f32(self, to: DType) -> f32 {
        match to {
            DType::F16 => f16::from_f32(int_to_odd(self)).to_f32(),
            DType::Bf16 => bf16::from_f32(int_to_odd(self)).to_f32(),
            DType::Bool => f32::from(u8::from(self != 0)),
            _ => self as f32,
        }
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn to_i64(self, to: DType) -> i64 {
        match to {
            DType::I8 => i64::from(self as i8),
            DType::I16 => i64::from(self as i16),
            DType::I32 => i64::from(self as i32),
            DType::U8 => i64::from(self as u8),
            DType::U32 => i64::from(self as u32),
            _ => self,
        }
    }
}

#[inline(always)]
unsafe fn cast_from<A: Lane>(to: DType, a: *const u8, dst: *mut u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match (Class::of(to), to) {
            (Some(Class::F32), DType::F32) => each(a, dst, n, |v: A| v.to_f32(DType::F32)),
            (Some(Class::F32), _) => each(a, dst, n, |v: A| v.to_f32(to)),
            (Some(Class::F64), _) => each(a, dst, n, |v: A| v.to_f64()),
            (Some(Class::I64), DType::I32) => each(a, dst, n, |v: A| v.to_i64(DType::I32)),
            (Some(Class::I64), _) => each(a, dst, n, |v: A| v.to_i64(to)),
            (None, _) => {}
        }
    }
}

/// Casts a tile of `from` to a tile of `to`.
///
/// # Safety
/// `a` and `dst` cover `n` lanes of the classes; they coincide or are apart, and coincide only
/// when the lanes are of one size.
pub unsafe fn cast(from: DType, to: DType, a: *const u8, dst: *mut u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match Class::of(from) {
            Some(Class::F32) => cast_from::<f32>(to, a, dst, n),
            Some(Class::F64) => cast_from::<f64>(to, a, dst, n),
            Some(Class::I64) => cast_from::<i64>(to, a, dst, n),
            None => {}
        }
    }
}
