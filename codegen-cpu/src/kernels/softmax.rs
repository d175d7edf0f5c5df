//! Softmax and its relatives over rows and columns, and the best entries of a row.

use super::isa::Isa;
use super::math;
use super::simd::{Simd, dispatch};

/// `scale·v`, soft-capped if asked.
#[inline(always)]
unsafe fn scaled<S: Simd>(v: S::V, scale: f32, cap: Option<f32>) -> S::V {
    // SAFETY: no condition but the instruction set.
    unsafe {
        match cap {
            None => S::mul(v, S::splat(scale)),
            Some(c) => {
                let t = math::tanh::<S>(S::mul(v, S::splat(scale / c)));
                S::mul(t, S::splat(c))
            }
        }
    }
}

/// Replaces `x` by `scale·x`, soft-capped if asked, and returns the largest value.
#[inline(always)]
unsafe fn prepare<S: Simd>(x: *mut f32, n: usize, scale: f32, cap: Option<f32>) -> f32 {
    // SAFETY: the caller's pointer covers `n` elements.
    unsafe {
        let mut best = S::splat(f32::NEG_INFINITY);
        let mut i = 0;
        while i + S::LANES <= n {
            let v = scaled::<S>(S::load(x.add(i)), scale, cap);
            S::store(x.add(i), v);
            best = S::max(v, best);
            i += S::LANES;
        }
        let mut top = S::max_lane(best);
        if i < n {
            let v = scaled::<S>(S::load_part(x.add(i), n - i), scale, cap);
            S::store_part(x.add(i), v, n - i);
            while i < n {
                top = top.max(*x.add(i));
                i += 1;
            }
        }
        top
    }
}

/// Replaces `x` by `exp(x − top)` if `write`, and returns the sum of those.
#[inline(always)]
unsafe fn exp_sum<S: Simd>(x: *mut f32, n: usize, top: f32, write: bool) -> f32 {
    // SAFETY: the caller's pointer covers `n` elements.
    unsafe {
        let t = S::splat(top);
        let mut acc = S::splat(0.0);
        let mut i = 0;
        while i + S::LANES <= n {
            let e = math::exp::<S>(S::sub(S::load(x.add(i)), t));
            acc = S::add(acc, e);
            if write {
                S::store(x.add(i), e);
            }
            i += S::LANES;
        }
        let mut total = S::sum(acc);
        if i < n {
            let mut lanes = [0f32; 16];
            let e = math::exp::<S>(S::sub(S::load_part(x.add(i), n - i), t));
            S::store(lanes.as_mut_ptr(), e);
            for (j, e) in lanes.into_iter().enumerate().take(n - i) {
                total += e;
                if write {
                    *x.add(i + j) = e;
                }
            }
        }
        total
    }
}

#[inline(always)]
unsafe fn softmax_body<S: Simd>(x: *mut f32, n: usize, scale: f32, cap: Option<f32>) {
    // SAFETY: the caller's promise.
    unsafe {
        let top = prepare::<S>(x, n, scale, cap);
        if top == f32::NEG_INFINITY {
            // Everything is masked, or NaN was passed over in the search for the top.
            let nan = (0..n).any(|i| (*x.add(i)).is_nan());
            for i in 0..n {
                *x.add(i) = if nan { f32::NAN } else { 0.0 };
            }
            return;
        }
        let inverse = 1.0 / exp_sum::<S>(x, n, top, true);
        let s = S::splat(inverse);
        let mut i = 0;
        while i + S::LANES <= n {
            S::store(x.add(i), S::mul(S::load(x.add(i)), s));
            i += S::LANES;
        }
        while i < n {
            *x.add(i) *= inverse;
            i += 1;
        }
    }
}

#[inline(always)]
unsafe fn log_softmax_body<S: Simd>(x: *mut f32, n: usize, scale: f32, cap: Option<f32>) {
    // SAFETY: the caller's promise.
    unsafe {
        let top = prepare::<S>(x, n, scale, cap);
        let shift =
            if top == f32::NEG_INFINITY { 0.0 } else { top + exp_sum::<S>(x, n, top, false).ln() };
        let s = S::splat(shift);
        let mut i = 0;
        while i + S::LANES <= n {
            S::store(x.add(i), S::sub(S::load(x.add(i)), s));
            i += S::LANES;
        }
        while i < n {
            *x.add(i) -= shift;
            i += 1;
        }
    }
}

/// Columns that [`columns`] takes at once.
pub const COLUMNS: usize = 64;

#[inline(always)]
unsafe fn columns_body<S: Simd>(
    x: *const f32,
    y: *mut f32,
    (len, stride, columns): (usize, usize, usize),
    log: bool,
) {
    let columns = columns.min(COLUMNS);
    let mut top = [f32::NEG_INFINITY; COLUMNS];
    let mut sum = [0f32; COLUMNS];
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..len {
            for (j, top) in top[..columns].iter_mut().enumerate() {
                let v = *x.add(i * stride + j);
                // NaN stays.
                *top = if v > *top || v.is_nan() { v } else { *top };
            }
        }
        for i in 0..len {
            let mut e = [0f32; COLUMNS];
            for j in 0..columns {
                e[j] = *x.add(i * stride + j) - top[j];
            }
            let mut j = 0;
            while j < columns {
                let v = S::load(e.as_ptr().add(j));
                S::store(e.as_mut_ptr().add(j), math::exp::<S>(v));
                j += S::LANES;
            }
            for j in 0..columns {
                sum[j] += e[j];
                if !log {
                    *y.add(i * stride + j) = e[j];
                }
            }
        }
        if log {
            sum[..columns].iter_mut().for_each(|sum| *sum = sum.ln());
        }
        for i in 0..len {
            for j in 0..columns {
                let at = i * stride + j;
                *y.add(at) = if log { *x.add(at) - top[j] - sum[j] } else { *y.add(at) / sum[j] };
            }
        }
    }
}

dispatch! {
    /// Softmax, or its logarithm, of `columns` (at most [`COLUMNS`]) columns of `len` elements
    /// whose rows lie `stride` apart. `y` may be `x`.
    ///
    /// # Safety
    /// The pointers cover what the shape names and either coincide or do not overlap.
    pub unsafe fn columns(isa; x: *const f32, y: *mut f32, shape: (usize, usize, usize), log: bool)
        = columns_body
}

dispatch! { unsafe fn softmax_raw(isa; x: *mut f32, n: usize, scale: f32, cap: Option<f32>)
= softmax_body }
dispatch! { unsafe fn log_softmax_raw(isa; x: *mut f32, n: usize, scale: f32, cap: Option<f32>)
= log_softmax_body }

/// `x = softmax(y)` in place, where y is `scale·x`, or `cap·tanh(scale·x / cap)` with a soft cap.
///
/// Masked entries are −∞ and become 0; a row of nothing else becomes zeros. NaN or +∞ in a row
/// makes the row NaN.
pub fn softmax(isa: Isa, x: &mut [f32], scale: f32, soft_cap: Option<f32>) {
    // SAFETY: the slice covers its own length.
    unsafe { softmax_raw(isa, x.as_mut_ptr(), x.len(), scale, soft_cap) }
}

/// `x = log(softmax(y))` in place, y as for [`softmax`]. A row of nothing but −∞ stays.
pub fn log_softmax(isa: Isa, x: &mut [f32], scale: f32, soft_cap: Option<f32>) {
    // SAFETY: the slice covers its own length.
    unsafe { log_softmax_raw(isa, x.as_mut_ptr(), x.len(), scale, soft_cap) }
}

#[inline(always)]
unsafe fn row_max_body<S: Simd>(x: *const f32, n: usize) -> f32 {
    // SAFETY: the caller's pointer covers `n` elements.
    unsafe {
        let mut best = S::splat(f32::NEG_INFINITY);
        let mut i = 0;
        while i + S::LANES <= n {
            let v = S::load(x.add(i));
            // NaN is below everything.
            best = S::select(S::lt(best, v), v, best);
            i += S::LANES;
        }
        let mut top = S::max_lane(best);
        while i < n {
            top = top.max(*x.add(i));
            i += 1;
        }
        top
    }
}

dispatch! { unsafe fn row_max_raw(isa; x: *const f32, n: usize) -> f32 = row_max_body }

/// The largest value, passing over NaN; −∞ for an empty row.
pub fn row_max(isa: Isa, x: &[f32]) -> f32 {
    // SAFETY: the slice covers its own length.
    unsafe { row_max_raw(isa, x.as_ptr(), x.len()) }
}

/// Index of the largest value, the first of equals, passing over NaN. None when there is no
/// number in the row.
pub fn argmax(isa: Isa, x: &[f32]) -> Option<usize> {
    let top = row_max(isa, x);
    x.iter().position(|&v| v == top)
}

/// Fills `out` with the indices of the `out.len()` largest values, best first (equals: lower
/// index first), passing over NaN, and returns how many there are: fewer when the row has fewer
/// numbers. Scans the row once and keeps the candidates in a heap inside `out`.
pub fn top_k(isa: Isa, x: &[f32], out: &mut [u32]) -> usize {
    let k = out.len().min(x.len());
    if k == 0 {
        return 0;
    }
    // Whether entry `a` ranks before entry `b`.
    let before = |a: u32, b: u32| {
        let (va, vb) = (x[a as usize], x[b as usize]);
        va > vb || (va == vb && a < b)
    };
    // A heap whose root is the candidate that ranks last.
    let sift = |heap: &mut [u32], mut i: usize| {
        loop {
            let mut worst = i;
            for child in [2 * i + 1, 2 * i + 2] {
                if child < heap.len() && before(heap[worst], heap[child]) {
                    worst = child;
                }
            }
            if worst == i {
                return;
            }
            heap.swap(i, worst);
            i = worst;
        }
    };
    let mut len = 0;
    // Blocks whose maximum does not beat the root are passed over at the speed of a scan.
    const BLOCK: usize = 256;
    for (b, block) in x.chunks(BLOCK).enumerate() {
        if len == k && row_max(isa, block) <= x[out[0] as usize] {
            continue;
        }
        for (j, v) in block.iter().enumerate() {
            let i = (b * BLOCK + j) as u32;
            if v.is_nan() {
                continue;
            }
            if len < k {
                out[len] = i;
                len += 1;
                if len == k {
                    for r in (0..k / 2).rev() {
                        sift(&mut out[..k], r);
                    }
                }
            } else if before(i, out[0]) {
                out[0] = i;
                sift(&mut out[..k], 0);
            }
        }
    }
    if len < k {
        for r in (0..len / 2).rev() {
            sift(&mut out[..len], r);
        }
    }
    for end in (1..len).rev() {
        out.swap(0, end);
        sift(&mut out[..end], 0);
    }
    len
}
