//! One query token: dot products straight from the cache.

use std::ops::Range;

use super::super::isa::Isa;
use super::super::math;
use super::super::simd::{Simd, dispatch};
use super::Attention;
use super::cache::CacheElement;

/// Keys whose scores are held at once.
const KEYS: usize = 128;
/// Value rows that are added to a head's sums in one pass over them.
const VALUES: usize = 4;
/// Below every score, and finite: differences with −∞ stay −∞.
pub const LOWEST: f32 = -1e30;

/// f32 elements of scratch of [`part`]: the scores of a block.
pub fn scratch_len(shape: &Attention) -> usize {
    shape.group() * KEYS
}

/// Scores of `C` heads over `n` keys.
#[inline(always)]
unsafe fn head_scores<S: Simd, E: CacheElement, const C: usize>(
    dim: usize,
    (q, q_row): (*const f32, usize),
    (k, k_row): (*const E, usize),
    n: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut j = 0;
        while j + 4 <= n {
            let d = E::dots::<S, 4, C>(dim, (k.add(j * k_row), k_row), (q, q_row));
            for (i, row) in d.iter().enumerate() {
                for (c, v) in row.iter().enumerate() {
                    *out.add(c * KEYS + j + i) = *v;
                }
            }
            j += 4;
        }
        while j < n {
            let [row] = E::dots::<S, 1, C>(dim, (k.add(j * k_row), k_row), (q, q_row));
            for (c, v) in row.iter().enumerate() {
                *out.add(c * KEYS + j) = *v;
            }
            j += 1;
        }
    }
}

/// Turns the scores of one head into weights exp(score − maximum); returns the maximum, the
/// factor for what was gathered under the maximum before, and the sum of the weights.
#[inline(always)]
unsafe fn weights<S: Simd>(
    x: *mut f32,
    n: usize,
    scale: f32,
    cap: Option<f32>,
    before: f32,
) -> (f32, f32, f32) {
    let l = S::LANES;
    // SAFETY: `x` covers `KEYS` elements, a multiple of every vector length, and `n <= KEYS`;
    // the lanes beyond `n` are set to −∞ first.
    unsafe {
        let padded = n.next_multiple_of(l);
        let mut best = S::splat(LOWEST);
        let mut i = 0;
        while i < padded {
            let mut v = S::mul(S::load(x.add(i)), S::splat(scale));
            if let Some(c) = cap {
                let t = math::tanh::<S>(S::mul(v, S::splat(1.0 / c)));
                v = S::mul(t, S::splat(c));
            }
            S::store(x.add(i), v);
            if i + l > n {
                for j in n..padded {
                    *x.add(j) = f32::NEG_INFINITY;
                }
            }
            best = S::max(best, S::load(x.add(i)));
            i += l;
        }
        let top = S::max_lane(best).max(before);
        let t = S::splat(top);
        let mut sum = S::splat(0.0);
        i = 0;
        while i < padded {
            let e = math::exp::<S>(S::sub(S::load(x.add(i)), t));
            S::store(x.add(i), e);
            sum = S::add(sum, e);
            i += l;
        }
        (top, (before - top).exp(), S::sum(sum))
    }
}

#[inline(always)]
unsafe fn scores_body<S: Simd, E: CacheElement>(
    (group, dim): (usize, usize),
    q: *const f32,
    k: (*const E, usize),
    n: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut h = 0;
        while h < group {
            let (q, out) = ((q.add(h * dim), dim), out.add(h * KEYS));
            h += if group - h >= 4 && S::DOT_COLS == 4 {
                head_scores::<S, E, 4>(dim, q, k, n, out);
                4
            } else if group - h >= 2 {
                head_scores::<S, E, 2>(dim, q, k, n, out);
                2
            } else {
                head_scores::<S, E, 1>(dim, q, k, n, out);
                1
            };
        }
    }
}

dispatch! {
    /// Scores of a block of `n` keys for the heads of one key/value head.
    ///
    /// # Safety
    /// The pointers cover the rows, `out` covers `KEYS` scores for each head.
    unsafe fn scores[E: CacheElement](isa; heads: (usize, usize), q: *const f32,
        k: (*const E, usize), n: usize, out: *mut f32) = scores_body
}

#[inline(always)]
unsafe fn soften_body<S: Simd>(shape: &Attention, n: usize, scores: *mut f32, partial: *mut f32) {
    // One head: maximum, sum of weights, weighted sum of values.
    let head_len = 2 + shape.v_dim;
    // SAFETY: the caller's promise.
    unsafe {
        for h in 0..shape.group() {
            let p = partial.add(h * head_len);
            let x = scores.add(h * KEYS);
            let (top, factor, sum) = weights::<S>(x, n, shape.scale, shape.soft_cap, *p);
            *p = top;
            *p.add(1) = *p.add(1) * factor + sum;
            if factor != 1.0 {
                for c in 2..head_len {
                    *p.add(c) *= factor;
                }
            }
        }
    }
}

dispatch! {
    /// Turns the scores of a block into weights, and rescales what was gathered before.
    ///
    /// # Safety
    /// As [`scores`], and `partial` covers a partial result.
    unsafe fn soften(isa; shape: &Attention, n: usize, scores: *mut f32, partial: *mut f32)
        = soften_body
}

#[inline(always)]
unsafe fn values_body<S: Simd, E: CacheElement>(
    (group, dim): (usize, usize),
    (v, v_row): (*const E, usize),
    n: usize,
    weights: *const f32,
    acc: (*mut f32, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut j = 0;
        while j + VALUES <= n {
            let (rows, weights) = ((v.add(j * v_row), v_row), (weights.add(j), KEYS));
            E::add_rows::<S, VALUES>(rows, dim, weights, group, acc);
            j += VALUES;
        }
        while j < n {
            let (rows, weights) = ((v.add(j * v_row), v_row), (weights.add(j), KEYS));
            E::add_rows::<S, 1>(rows, dim, weights, group, acc);
            j += 1;
        }
    }
}

dispatch! {
    /// Adds a block of `n` weighted values to the sums of the heads of one key/value head.
    ///
    /// # Safety
    /// As [`scores`], and `acc` covers a row of values for each head.
    unsafe fn values[E: CacheElement](isa; heads: (usize, usize), v: (*const E, usize), n: usize,
        weights: *const f32, acc: (*mut f32, usize)) = values_body
}

/// See [`super::decode_part`].
///
/// # Safety
/// The arrays cover what the shape says.
pub unsafe fn part<K: CacheElement, V: CacheElement>(
    isa: Isa,
    shape: &Attention,
    (q, k, v): (*const f32, *const K, *const V),
    kv_head: usize,
    keys: Range<usize>,
    partial: *mut f32,
    scratch: *mut f32,
) {
    let group = shape.group();
    let (dim, v_dim) = (shape.head_dim, shape.v_dim);
    let (k_head, v_head) = (dim / K::LEN, v_dim / V::LEN);
    let (k_row, v_row) = (shape.kv_heads * k_head, shape.kv_heads * v_head);
    let head_len = 2 + v_dim;
    // SAFETY: the entries check the arrays against the shape.
    unsafe {
        for h in 0..group {
            let p = partial.add(h * head_len);
            std::ptr::write_bytes(p, 0, head_len);
            *p = LOWEST;
        }
        let q = q.add(kv_head * group * dim);
        let mut first = keys.start;
        while first < keys.end {
            let n = (keys.end - first).min(KEYS);
            let kb = (k.add(first * k_row + kv_head * k_head), k_row);
            scores::<K>(isa, (group, dim), q, kb, n, scratch);
            soften(isa, shape, n, scratch, partial);
            let vb = (v.add(first * v_row + kv_head * v_head), v_row);
            values::<V>(isa, (group, v_dim), vb, n, scratch, (partial.add(2), head_len));
            first += n;
        }
    }
}

/// See [`super::decode_merge`]; part i begins at `i · part_len`.
///
/// # Safety
/// The arrays cover what the shape says.
pub unsafe fn merge(
    isa: Isa,
    shape: &Attention,
    partials: *const f32,
    part_len: usize,
    parts: usize,
    out: *mut f32,
) {
    let _ = isa; // Short loops that the compiler vectorises well enough everywhere.
    let v_dim = shape.v_dim;
    // SAFETY: the caller's promise.
    unsafe {
        for h in 0..shape.group() {
            let at = |i: usize| partials.add(i * part_len + h * (2 + v_dim));
            let out = out.add(h * v_dim);
            let mut top = LOWEST;
            for i in 0..parts {
                // Not `f32::max`, for NaN must stay.
                if *at(i) > top || (*at(i)).is_nan() {
                    top = *at(i);
                }
            }
            let mut sum = 0.0;
            for i in 0..parts {
                sum += *at(i).add(1) * (*at(i) - top).exp();
            }
            for c in 0..v_dim {
                *out.add(c) = 0.0;
            }
            for i in 0..parts {
                let factor = (*at(i) - top).exp() / sum;
                for c in 0..v_dim {
                    *out.add(c) += *at(i).add(2 + c) * factor;
                }
            }
        }
    }
}
