//! Normalisation of rows.

use super::isa::Isa;
use super::simd::{Simd, dispatch};

/// Σ x, or Σ (x − mean)² with `SQUARE`, over `n` elements in four partial vectors.
#[inline(always)]
unsafe fn sum<S: Simd, const SQUARE: bool>(x: *const f32, n: usize, mean: f32) -> f32 {
    let l = S::LANES;
    // SAFETY: the caller's pointer covers `n` elements.
    unsafe {
        let m = S::splat(mean);
        let mut acc = [S::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * l <= n {
            for (j, a) in acc.iter_mut().enumerate() {
                *a = gather::<S, SQUARE>(*a, S::load(x.add(i + j * l)), m);
            }
            i += 4 * l;
        }
        while i + l <= n {
            acc[0] = gather::<S, SQUARE>(acc[0], S::load(x.add(i)), m);
            i += l;
        }
        let mut total = S::sum(S::add(S::add(acc[0], acc[1]), S::add(acc[2], acc[3])));
        while i < n {
            let d = *x.add(i) - mean;
            total += if SQUARE { d * d } else { d };
            i += 1;
        }
        total
    }
}

#[inline(always)]
unsafe fn gather<S: Simd, const SQUARE: bool>(acc: S::V, v: S::V, mean: S::V) -> S::V {
    // SAFETY: no condition but the instruction set.
    unsafe {
        let d = S::sub(v, mean);
        if SQUARE { S::fma(d, d, acc) } else { S::add(acc, d) }
    }
}

/// `out = (x − mean) · scale · weight + bias`, with absent weight 1 and bias 0.
#[inline(always)]
unsafe fn apply<S: Simd>(
    x: *const f32,
    (mean, scale): (f32, f32),
    weight: Option<*const f32>,
    bias: Option<*const f32>,
    out: *mut f32,
    n: usize,
) {
    let l = S::LANES;
    // SAFETY: the caller's pointers cover `n` elements.
    unsafe {
        let (m, s) = (S::splat(mean), S::splat(scale));
        let mut i = 0;
        while i + l <= n {
            let mut v = S::mul(S::sub(S::load(x.add(i)), m), s);
            if let Some(w) = weight {
                v = S::mul(v, S::load(w.add(i)));
            }
            if let Some(b) = bias {
                v = S::add(v, S::load(b.add(i)));
            }
            S::store(out.add(i), v);
            i += l;
        }
        if i < n {
            let r = n - i;
            let mut v = S::mul(S::sub(S::load_part(x.add(i), r), m), s);
            if let Some(w) = weight {
                v = S::mul(v, S::load_part(w.add(i), r));
            }
            if let Some(b) = bias {
                v = S::add(v, S::load_part(b.add(i), r));
            }
            S::store_part(out.add(i), v, r);
        }
    }
}

#[inline(always)]
unsafe fn rms_body<S: Simd>(
    x: *const f32,
    weight: Option<*const f32>,
    eps: f32,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let squares = sum::<S, true>(x, n, 0.0);
        let scale = 1.0 / (squares / n as f32 + eps).sqrt();
        apply::<S>(x, (0.0, scale), weight, None, out, n);
    }
}

#[inline(always)]
unsafe fn layer_body<S: Simd>(
    x: *const f32,
    weight: Option<*const f32>,
    bias: Option<*const f32>,
    eps: f32,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mean = sum::<S, false>(x, n, 0.0) / n as f32;
        let squares = sum::<S, true>(x, n, mean);
        let scale = 1.0 / (squares / n as f32 + eps).sqrt();
        apply::<S>(x, (mean, scale), weight, bias, out, n);
    }
}

dispatch! {
    /// `out = x / √(mean(x²) + eps) · weight` over `n` elements; `out` may be `x`.
    ///
    /// # Safety
    /// The pointers cover `n` elements; `out` coincides with `x` or overlaps nothing.
    pub unsafe fn rms_norm_raw(isa; x: *const f32, weight: Option<*const f32>, eps: f32,
        out: *mut f32, n: usize) = rms_body
}

dispatch! {
    /// `out = (x − mean) / √(var + eps) · weight + bias` over `n` elements; `out` may be `x`.
    ///
    /// # Safety
    /// As [`rms_norm_raw`].
    pub unsafe fn layer_norm_raw(isa; x: *const f32, weight: Option<*const f32>,
        bias: Option<*const f32>, eps: f32, out: *mut f32, n: usize) = layer_body
}

fn check(x: usize, out: usize, others: [Option<&[f32]>; 2]) {
    assert_eq!(x, out, "a norm's input and output differ in length");
    for o in others.into_iter().flatten() {
        assert_eq!(o.len(), x, "a norm's weight or bias differs in length from its input");
    }
}

/// `out = x / √(mean(x²) + eps) · weight` for one row. A square that overflows f32 gives 0, NaN
/// gives a row of NaN.
///
/// # Panics
/// When lengths differ.
pub fn rms_norm(isa: Isa, x: &[f32], weight: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    check(x.len(), out.len(), [weight, None]);
    // SAFETY: lengths are checked, and the borrow keeps `out` apart.
    unsafe {
        let w = weight.map(<[f32]>::as_ptr);
        rms_norm_raw(isa, x.as_ptr(), w, eps, out.as_mut_ptr(), x.len());
    }
}

/// `x += residual`, then [`rms_norm`] of it, for one row: the seam between two blocks of a
/// transformer in one pass over the row while it is in the cache.
///
/// # Panics
/// When lengths differ.
pub fn add_rms_norm(
    isa: Isa,
    x: &mut [f32],
    residual: &[f32],
    weight: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    assert_eq!(x.len(), residual.len(), "a residual differs in length from its row");
    super::elementwise::binary_assign(isa, super::elementwise::Binary::Add, x, residual);
    rms_norm(isa, x, weight, eps, out);
}

/// `out = (x − mean) / √(var + eps) · weight + bias` for one row.
///
/// # Panics
/// When lengths differ.
pub fn layer_norm(
    isa: Isa,
    x: &[f32],
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    check(x.len(), out.len(), [weight, bias]);
    // SAFETY: lengths are checked, and the borrow keeps `out` apart.
    unsafe {
        let (w, b) = (weight.map(<[f32]>::as_ptr), bias.map(<[f32]>::as_ptr));
        layer_norm_raw(isa, x.as_ptr(), w, b, eps, out.as_mut_ptr(), x.len());
    }
}
