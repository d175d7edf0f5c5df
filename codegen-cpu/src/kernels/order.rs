//! Sorting lanes, and finding their greatest elements, by keys.
//!
//! A [`Keyed`] element maps to an unsigned number in the order of the op table: rising, every NaN
//! alike and greatest, 0 like -0. Turned over it is falling order. With the index as a second key
//! an unstable sort, which needs no memory, is a stable one.

use half::{bf16, f16};

/// An element with its place in the order.
pub trait Keyed: Copy + Send + Sync + 'static {
    /// Greater for elements that come later when rising.
    fn key(self) -> u64;
}

macro_rules! ints {
    ($($t:ident as $u:ident $min:expr),*) => {$(
        impl Keyed for $t {
            #[inline(always)]
            fn key(self) -> u64 {
                u64::from(self as $u ^ $min)
            }
        }
    )*};
}

ints!(i8 as u8 1 << 7, i16 as u16 1 << 15, i32 as u32 1 << 31, i64 as u64 1 << 63, u8 as u8 0, u32 as u32 0);

macro_rules! floats {
    ($($t:ident $u:ident $bits:expr),*) => {$(
        impl Keyed for $t {
            #[inline(always)]
            fn key(self) -> u64 {
                const TOP: $u = 1 << ($bits - 1);
                let bits = self.to_bits();
                if bits & !TOP > $t::INFINITY.to_bits() {
                    return u64::from($u::MAX);
                }
                // Negative numbers grow with falling bits; -0 takes the place of 0.
                u64::from(if bits & TOP == 0 { bits | TOP } else { (!bits).wrapping_add(1) })
            }
        }
    )*};
}

floats!(f16 u16 16, bf16 u16 16, f32 u32 32, f64 u64 64);

/// A lane: `len` elements, `step` apart.
#[derive(Clone, Copy)]
pub struct Lane<T> {
    pub first: *const T,
    pub len: usize,
    pub step: usize,
}

impl<T: Keyed> Lane<T> {
    /// The key of element `i`, for rising or falling order.
    #[inline(always)]
    unsafe fn key(&self, i: usize, descending: bool) -> u64 {
        // SAFETY: the caller's promise.
        let key = unsafe { *self.first.add(i * self.step) }.key();
        if descending { !key } else { key }
    }

    /// Fills `order` with the keys and indices of the lane's elements in order; the first
    /// `sorted` of them are in their places.
    ///
    /// # Safety
    /// The lane can be read.
    ///
    /// # Panics
    /// When `order` is shorter than the lane.
    pub unsafe fn sort(&self, descending: bool, sorted: usize, order: &mut [(u64, u32)]) {
        let order = &mut order[..self.len];
        for (i, slot) in order.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *slot = (unsafe { self.key(i, descending) }, i as u32);
        }
        let mut part = &mut order[..];
        if sorted > 0 && sorted < self.len {
            part.select_nth_unstable(sorted - 1);
            part = &mut part[..sorted];
        }
        part.sort_unstable();
    }

    /// The index of the first among the greatest elements; `None` when there are none.
    ///
    /// # Safety
    /// The lane can be read.
    pub unsafe fn argmax(&self) -> Option<usize> {
        let mut best = None;
        for i in 0..self.len {
            // SAFETY: the caller's promise.
            let key = unsafe { self.key(i, false) };
            if best.is_none_or(|(greatest, _)| key > greatest) {
                best = Some((key, i));
            }
        }
        best.map(|(_, i)| i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rises<T: Keyed>(values: &[T]) {
        assert!(values.windows(2).all(|w| w[0].key() < w[1].key()));
    }

    #[test]
    fn keys_rise_with_the_elements() {
        let floats = [f64::NEG_INFINITY, -1e30, -2.0, -1.0, -1e-40, 0.0, 1e-40, 1.0, 2.0, 1e30];
        let floats = [&floats[..], &[f64::INFINITY, f64::NAN]].concat();
        rises(&floats);
        rises(&floats.iter().map(|&v| v as f32).collect::<Vec<_>>());
        let small: Vec<f64> =
            floats.iter().copied().filter(|v| v.is_nan() || v.abs() != 1e-40).collect();
        let small: Vec<f32> = small.iter().map(|v| v.clamp(-1e4, 1e4) as f32).collect();
        let small: Vec<f32> =
            [&[f32::NEG_INFINITY], &small[1..small.len() - 2], &[f32::INFINITY, f32::NAN]].concat();
        rises(&small.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>());
        rises(&small.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>());
        rises(&[i8::MIN, -1, 0, 1, i8::MAX]);
        rises(&[i64::MIN, -1, 0, 1, i64::MAX]);
        rises(&[0u32, 1, u32::MAX]);
        assert_eq!((-0.0f32).key(), 0f32.key());
        assert_eq!((-f64::NAN).key(), f64::NAN.key());
        assert_eq!(f16::NEG_ZERO.key(), f16::ZERO.key());
    }
}
