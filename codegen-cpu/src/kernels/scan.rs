//! Running sums along an axis, several columns side by side.

use half::{bf16, f16};

/// Columns that run side by side.
pub const COLUMNS: usize = 64;

/// An element with the number its sums are kept in.
pub trait Accumulate: Copy + Send + Sync + 'static {
    /// f64 for floats; integers wrap in their own type.
    type Sum: Copy;
    const ZERO: Self::Sum;
    fn add(sum: Self::Sum, x: Self) -> Self::Sum;
    fn round(sum: Self::Sum) -> Self;
}

macro_rules! floats {
    ($($t:ident, $from:expr, $to:expr;)*) => {$(
        impl Accumulate for $t {
            type Sum = f64;
            const ZERO: f64 = 0.0;

            #[inline(always)]
            fn add(sum: f64, x: $t) -> f64 {
                sum + f64::from($from(x))
            }
            #[inline(always)]
            fn round(sum: f64) -> $t {
                $to(sum)
            }
        }
    )*};
}

floats! {
    f32, |x: f32| x, |s: f64| s as f32;
    f64, |x: f64| x, |s: f64| s;
    f16, f16::to_f32, |s: f64| f16::from_f32(s as f32);
    bf16, bf16::to_f32, |s: f64| bf16::from_f32(s as f32);
}

macro_rules! ints {
    ($($t:ident)*) => {$(
        impl Accumulate for $t {
            type Sum = $t;
            const ZERO: $t = 0;

            #[inline(always)]
            fn add(sum: $t, x: $t) -> $t {
                sum.wrapping_add(x)
            }
            #[inline(always)]
            fn round(sum: $t) -> $t {
                sum
            }
        }
    )*};
}

ints!(i8 i16 i32 i64 u8 u32);

/// Running sums of `columns` (at most [`COLUMNS`]) columns of `len` elements, whose rows lie
/// `stride` apart. The result may be the operand.
///
/// # Safety
/// Both pointers cover what the shape names, and are the same or apart.
pub unsafe fn cumsum<T: Accumulate>(
    x: *const T,
    y: *mut T,
    (len, stride, columns): (usize, usize, usize),
    exclusive: bool,
    reverse: bool,
) {
    let mut sums = [T::ZERO; COLUMNS];
    for i in 0..len {
        let row = if reverse { len - 1 - i } else { i } * stride;
        for (j, sum) in sums[..columns.min(COLUMNS)].iter_mut().enumerate() {
            let before = *sum;
            // SAFETY: the caller's promise.
            unsafe {
                *sum = T::add(before, *x.add(row + j));
                *y.add(row + j) = T::round(if exclusive { before } else { *sum });
            }
        }
    }
}
