//! Pooling over the last two axes (or one, as two with a first of length 1).
//!
//! A worker makes whole rows of the result. The rows and columns of the operand that a window
//! holds are found once per window; padding is never read.

use aether_ir::op::window::Window;

use super::order::Keyed;
use super::scan::Accumulate;

/// A plane and the windows over it.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// Rows and columns of the operand.
    pub plane: (usize, usize),
    /// Rows and columns of the result.
    pub out: (usize, usize),
    pub rows: Window,
    pub columns: Window,
}

/// The elements that a window without dilation of the operand holds: index in the axis of the
/// first, distance to the next, and how many.
#[inline(always)]
fn held(w: &Window, n: usize, at: usize) -> (usize, usize, usize) {
    let first = at as i64 * w.stride - w.lo;
    let skipped = if first < 0 { (-first + w.dilation - 1) / w.dilation } else { 0 };
    let start = first + skipped * w.dilation;
    let room = n as i64 - start;
    if room <= 0 {
        return (0, 0, 0);
    }
    let fits = (room + w.dilation - 1) / w.dilation;
    (start as usize, w.dilation as usize, fits.min(w.size - skipped).max(0) as usize)
}

/// Sums of row `row` of the windows over one plane.
///
/// # Safety
/// `x` covers the plane, `out` the row.
pub unsafe fn sum_row<T: Accumulate>(p: &Pool, x: *const T, row: usize, out: *mut T) {
    let spread = p.rows.lhs_dilation != 1 || p.columns.lhs_dilation != 1;
    for c in 0..p.out.1 {
        let mut sum = T::ZERO;
        // SAFETY, for all reads: what a window holds lies within the plane.
        if spread {
            for (i, _) in p.rows.taps(p.plane.0, row) {
                for (j, _) in p.columns.taps(p.plane.1, c) {
                    sum = T::add(sum, unsafe { *x.add(i * p.plane.1 + j) });
                }
            }
        } else {
            let (top, down, height) = held(&p.rows, p.plane.0, row);
            let (left, right, width) = held(&p.columns, p.plane.1, c);
            for i in 0..height {
                let line = (top + i * down) * p.plane.1 + left;
                for j in 0..width {
                    sum = T::add(sum, unsafe { *x.add(line + j * right) });
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { *out.add(c) = T::round(sum) };
    }
}

/// Greatest elements of row `row` of the windows over one plane, and their places in it. Every
/// window holds an element, and the operand is not spread.
///
/// # Safety
/// As [`sum_row`]; `places` covers the row too.
pub unsafe fn max_row<T: Keyed>(p: &Pool, x: *const T, row: usize, out: *mut T, places: *mut i32) {
    let (top, down, height) = held(&p.rows, p.plane.0, row);
    for c in 0..p.out.1 {
        let (left, right, width) = held(&p.columns, p.plane.1, c);
        let mut best = top * p.plane.1 + left;
        // SAFETY: what a window holds lies within the plane; the rest is the caller's promise.
        unsafe {
            let mut greatest = (*x.add(best)).key();
            for i in 0..height {
                let line = (top + i * down) * p.plane.1 + left;
                for j in 0..width {
                    let at = line + j * right;
                    let key = (*x.add(at)).key();
                    if key > greatest {
                        (best, greatest) = (at, key);
                    }
                }
            }
            *out.add(c) = *x.add(best);
            *places.add(c) = best as i32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_elements_are_the_taps() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..500 {
            let w = Window {
                size: rng.i64(1..5),
                stride: rng.i64(1..4),
                lo: rng.i64(-2..5),
                hi: 0,
                dilation: rng.i64(1..4),
                lhs_dilation: 1,
            };
            let (n, at) = (rng.usize(0..7), rng.usize(0..6));
            let (first, step, count) = held(&w, n, at);
            let want: Vec<usize> = w.taps(n, at).map(|t| t.0).collect();
            let got: Vec<usize> = (0..count).map(|i| first + i * step).collect();
            assert_eq!(got, want, "{w:?} {n} {at}");
        }
    }
}
