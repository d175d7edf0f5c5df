//! One query token: dot products straight from the cache.

use std::ops::Range;

use super::super::isa::Isa;
use super::super::math;
use super::super::simd::{Load, Simd, dispatch};
use super::super::tile::dots;
use super::Attention;

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
unsafe fn scores<S: Simd, E: Load, const C: usize>(
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
            let d = dots::<S, E, 4, C>(dim, (k.add(j * k_row), k_row), (q, q_row));
            for (i, row) in d.iter().enumerate() {
                for (c, v) in row.iter().enumerate() {
                    *out.add(c * KEYS + j + i) = *v;
                }
            }
            j += 4;
        }
        while j < n {
            let [row] = dots::<S, E, 1, C>(dim, (k.add(j * k_row), k_row), (q, q_row));
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

/// One vector of columns of `R` value rows, weighted, added to every head's sums.
#[inline(always)]
unsafe fn add_values<S: Simd, E: Load, const R: usize>(
    (v, v_row): (*const E, usize),
    weights: *const f32,
    heads: usize,
    (acc, acc_row): (*mut f32, usize),
    n: Option<usize>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [S::splat(0.0); R];
        for (j, r) in rows.iter_mut().enumerate() {
            *r = match n {
                None => E::load::<S>(v.add(j * v_row)),
                Some(n) => E::load_part::<S>(v.add(j * v_row), n),
            };
        }
        for h in 0..heads {
            let a = acc.add(h * acc_row);
            let mut sum = match n {
                None => S::load(a),
                Some(n) => S::load_part(a, n),
            };
            for (j, r) in rows.iter().enumerate() {
                sum = S::fma(S::splat(*weights.add(h * KEYS + j)), *r, sum);
            }
            match n {
                None => S::store(a, sum),
                Some(n) => S::store_part(a, sum, n),
            }
        }
    }
}

/// `R` value rows, weighted, added to every head's sums.
#[inline(always)]
unsafe fn add_rows<S: Simd, E: Load, const R: usize>(
    (v, v_row): (*const E, usize),
    dim: usize,
    weights: *const f32,
    heads: usize,
    (acc, acc_row): (*mut f32, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut c = 0;
        while c + S::LANES <= dim {
            let (v, acc) = ((v.add(c), v_row), (acc.add(c), acc_row));
            add_values::<S, E, R>(v, weights, heads, acc, None);
            c += S::LANES;
        }
        if c < dim {
            let (v, acc) = ((v.add(c), v_row), (acc.add(c), acc_row));
            add_values::<S, E, R>(v, weights, heads, acc, Some(dim - c));
        }
    }
}

#[inline(always)]
unsafe fn part_body<S: Simd, E: Load>(
    shape: &Attention,
    (q, k, v): (*const f32, *const E, *const E),
    kv_head: usize,
    keys: Range<usize>,
    partial: *mut f32,
    scratch: *mut f32,
) {
    let group = shape.group();
    let (dim, v_dim) = (shape.head_dim, shape.v_dim);
    let (k_row, v_row) = (shape.kv_heads * dim, shape.kv_heads * v_dim);
    // One head: maximum, sum of weights, weighted sum of values.
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
            let kb = (k.add(first * k_row + kv_head * dim), k_row);
            let mut h = 0;
            while h < group {
                let (q, out) = ((q.add(h * dim), dim), scratch.add(h * KEYS));
                h += if group - h >= 4 && S::DOT_COLS == 4 {
                    scores::<S, E, 4>(dim, q, kb, n, out);
                    4
                } else if group - h >= 2 {
                    scores::<S, E, 2>(dim, q, kb, n, out);
                    2
                } else {
                    scores::<S, E, 1>(dim, q, kb, n, out);
                    1
                };
            }
            for h in 0..group {
                let p = partial.add(h * head_len);
                let x = scratch.add(h * KEYS);
                let (top, factor, sum) = weights::<S>(x, n, shape.scale, shape.soft_cap, *p);
                *p = top;
                *p.add(1) = *p.add(1) * factor + sum;
                if factor != 1.0 {
                    for c in 2..head_len {
                        *p.add(c) *= factor;
                    }
                }
            }
            let vb = v.add(first * v_row + kv_head * v_dim);
            let acc = (partial.add(2), head_len);
            let mut j = 0;
            while j + VALUES <= n {
                let rows = (vb.add(j * v_row), v_row);
                add_rows::<S, E, VALUES>(rows, v_dim, scratch.add(j), group, acc);
                j += VALUES;
            }
            while j < n {
                let rows = (vb.add(j * v_row), v_row);
                add_rows::<S, E, 1>(rows, v_dim, scratch.add(j), group, acc);
                j += 1;
            }
            first += n;
        }
    }
}

dispatch! {
    /// See [`super::decode_part`].
    ///
    /// # Safety
    /// The arrays cover what the shape says.
    pub unsafe fn part[E: Load](isa; shape: &Attention, qkv: (*const f32, *const E, *const E),
        kv_head: usize, keys: Range<usize>, partial: *mut f32, scratch: *mut f32) = part_body
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
