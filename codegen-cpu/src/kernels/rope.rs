//! Rotary position embedding: pairs of a head's elements turned by angles that grow with the
//! token's position (Su et al., RoFormer), with linear scaling, per-pair frequency factors
//! (Llama 3) and YaRN (Peng et al.).
//!
//! The angles of a position are the same in every layer and head, so a caller fills a table of
//! cosines and sines once per token and applies it to each head.

use super::isa::Isa;
use super::simd::{Simd, dispatch};

/// Which elements make a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeMode {
    /// Neighbours: (0, 1), (2, 3), …
    Norm,
    /// Halves of the rotated part: (0, n/2), (1, n/2 + 1), …
    Neox,
}

/// How the angles grow. [`RopeParams::new`] gives the plain form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeParams {
    /// Elements of a head that are rotated; even, at most the head's size.
    pub n_dims: usize,
    /// Base of the geometric series of frequencies.
    pub base: f32,
    /// Factor on positions (1/s for a context stretched s times).
    pub freq_scale: f32,
    /// YaRN: weight of the unscaled angles among the fast pairs; 0 switches YaRN off.
    pub ext_factor: f32,
    /// Factor on cosines and sines.
    pub attn_factor: f32,
    /// YaRN: turns over the original context above which a pair keeps its unscaled angle.
    pub beta_fast: f32,
    /// YaRN: turns over the original context below which a pair is wholly scaled.
    pub beta_slow: f32,
    /// YaRN: context length the model was trained with before it was stretched.
    pub original_context: usize,
}

impl RopeParams {
    /// No scaling.
    pub fn new(n_dims: usize, base: f32) -> RopeParams {
        RopeParams {
            n_dims,
            base,
            freq_scale: 1.0,
            ext_factor: 0.0,
            attn_factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 0,
        }
    }

    /// The pair that turns `beta` times over the original context.
    fn pair_of_turns(&self, beta: f64) -> f64 {
        let wave = self.original_context as f64 / (beta * std::f64::consts::TAU);
        self.n_dims as f64 * wave.ln() / (2.0 * f64::from(self.base).ln())
    }

    /// Fills the first `n_dims / 2` entries of `cos` and `sin` for a position. `factors`, one
    /// per pair, divide the frequencies. Angles are computed in f64.
    ///
    /// # Panics
    /// When a table or `factors` is shorter than `n_dims / 2`.
    pub fn fill_table(
        &self,
        position: f64,
        factors: Option<&[f32]>,
        cos: &mut [f32],
        sin: &mut [f32],
    ) {
        let pairs = self.n_dims / 2;
        let mut magnitude = f64::from(self.attn_factor);
        let (mut low, mut high) = (0.0, 0.0);
        let yarn = self.ext_factor != 0.0;
        if yarn {
            low = self.pair_of_turns(f64::from(self.beta_fast)).floor().max(0.0);
            high = self.pair_of_turns(f64::from(self.beta_slow)).ceil();
            high = high.min(self.n_dims as f64 - 1.0);
            magnitude *= 1.0 - 0.1 * f64::from(self.freq_scale).ln();
        }
        let step = f64::from(self.base).ln() * 2.0 / self.n_dims as f64;
        for i in 0..pairs {
            let factor = factors.map_or(1.0, |f| f64::from(f[i]));
            let plain = position * (-step * i as f64).exp() / factor;
            let mut angle = plain * f64::from(self.freq_scale);
            if yarn {
                let ramp = ((i as f64 - low) / (high - low).max(1e-3)).clamp(0.0, 1.0);
                let keep = (1.0 - ramp) * f64::from(self.ext_factor);
                angle = angle * (1.0 - keep) + plain * keep;
            }
            let (s, c) = angle.sin_cos();
            cos[i] = (c * magnitude) as f32;
            sin[i] = (s * magnitude) as f32;
        }
    }
}

#[inline(always)]
unsafe fn rope_body<S: Simd>(
    mode: RopeMode,
    x: *const f32,
    out: *mut f32,
    (heads, head_dim): (usize, usize),
    (cos, sin, pairs): (*const f32, *const f32, usize),
) {
    // SAFETY: the caller's pointers cover what the entry's contract says; each pair is read
    // whole before it is written, so `out` may be `x`.
    unsafe {
        for h in 0..heads {
            let (x, out) = (x.add(h * head_dim), out.add(h * head_dim));
            match mode {
                RopeMode::Norm => {
                    for i in 0..pairs {
                        let (c, s) = (*cos.add(i), *sin.add(i));
                        let (a, b) = (*x.add(2 * i), *x.add(2 * i + 1));
                        *out.add(2 * i) = a * c - b * s;
                        *out.add(2 * i + 1) = a * s + b * c;
                    }
                }
                RopeMode::Neox => {
                    let mut i = 0;
                    while i + S::LANES <= pairs {
                        let (c, s) = (S::load(cos.add(i)), S::load(sin.add(i)));
                        let (a, b) = (S::load(x.add(i)), S::load(x.add(pairs + i)));
                        S::store(out.add(i), S::fnma(b, s, S::mul(a, c)));
                        S::store(out.add(pairs + i), S::fma(a, s, S::mul(b, c)));
                        i += S::LANES;
                    }
                    while i < pairs {
                        let (c, s) = (*cos.add(i), *sin.add(i));
                        let (a, b) = (*x.add(i), *x.add(pairs + i));
                        *out.add(i) = a * c - b * s;
                        *out.add(pairs + i) = a * s + b * c;
                        i += 1;
                    }
                }
            }
            if !std::ptr::eq(x, out) {
                for i in 2 * pairs..head_dim {
                    *out.add(i) = *x.add(i);
                }
            }
        }
    }
}

dispatch! {
    /// Rotates the first `2·pairs` elements of each head and copies the rest; `out` may be `x`.
    /// `shape` is heads and head_dim, `tables` cosines, sines and their number of pairs.
    ///
    /// # Safety
    /// `x` and `out` cover `heads · head_dim` elements and coincide or do not overlap; `cos` and
    /// `sin` cover `pairs`; `2·pairs <= head_dim`.
    pub unsafe fn rope_raw(isa; mode: RopeMode, x: *const f32, out: *mut f32,
        shape: (usize, usize), tables: (*const f32, *const f32, usize)) = rope_body
}

/// Rotates one token's heads in place: `x` is `[heads, head_dim]`, the tables hold one entry per
/// pair, and elements beyond the pairs stay.
///
/// # Panics
/// When the tables differ in length or hold more pairs than a head, or `x` is not whole heads.
pub fn rope(isa: Isa, mode: RopeMode, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    assert_eq!(cos.len(), sin.len(), "rope tables differ in length");
    assert!(2 * cos.len() <= head_dim, "rope tables hold more pairs than a head of {head_dim}");
    assert!(head_dim > 0 && x.len().is_multiple_of(head_dim), "rope input is not whole heads");
    let p = x.as_mut_ptr();
    let heads = x.len() / head_dim;
    // SAFETY: checked above; in place.
    unsafe { rope_raw(isa, mode, p, p, (heads, head_dim), (cos.as_ptr(), sin.as_ptr(), cos.len())) }
}
