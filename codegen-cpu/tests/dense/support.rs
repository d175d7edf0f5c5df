//! What the tests of dense kernels share: inputs, distances, and how much is run through.

use half::{bf16, f16};

/// Lengths around the widths of vectors, and their remainders.
pub const LENGTHS: [usize; 14] = [0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 63, 100, 577];

/// How much the tests run through.
pub struct Sizes {
    /// Random inputs of an elementwise operation with a stated accuracy.
    pub samples: usize,
    /// (tokens, past) of attention over the whole table of head shapes.
    pub spans: &'static [(usize, usize)],
    /// Attention windows, each with every head shape and span.
    pub windows: &'static [Option<usize>],
    /// Tokens in the cache where a long one matters: in decode, and before a short prefill.
    pub long: (usize, usize),
}

const FULL: Sizes = Sizes {
    samples: 50_000,
    spans: &[
        (1, 0),
        (1, 1),
        (1, 62),
        (1, 300),
        (2, 0),
        (5, 0),
        (33, 0),
        (70, 0),
        (40, 130),
        (3, 64),
    ],
    windows: &[None, Some(1), Some(20), Some(1000)],
    long: (8191, 3000),
};

/// Some thirty times less work, for an emulated machine: fewer repetitions of the same code, while
/// every kernel, element type, head shape and vector remainder is still run.
const EMULATED: Sizes = Sizes {
    samples: 3_000,
    spans: &[(1, 0), (1, 62), (5, 0), (33, 40)],
    windows: &[None, Some(20)],
    long: (1200, 300),
};

/// The sizes that `AETHER_TEST_SIZES` asks for: `full`, which is the default, or `emulated`.
pub fn sizes() -> &'static Sizes {
    match std::env::var("AETHER_TEST_SIZES").as_deref() {
        Err(_) | Ok("full") => &FULL,
        Ok("emulated") => &EMULATED,
        Ok(other) => panic!("AETHER_TEST_SIZES is `full` or `emulated`, not `{other}`"),
    }
}

pub fn random(rng: &mut fastrand::Rng, n: usize, span: f32) -> Vec<f32> {
    (0..n).map(|_| (rng.f32() * 2.0 - 1.0) * span).collect()
}

/// Distance in units of the last place of `want` as an f32 (of the smallest normal at least).
pub fn ulps(got: f32, want: f64) -> f64 {
    if want.is_nan() {
        return if got.is_nan() { 0.0 } else { f64::INFINITY };
    }
    let near = want as f32;
    if near.is_infinite() || got.is_infinite() {
        // One step below the overflow is as good as the overflow.
        return if got == near || near.abs() == f32::MAX { 0.0 } else { f64::INFINITY };
    }
    let exponent = (want.abs() as f32).max(f32::MIN_POSITIVE).to_bits() >> 23;
    (f64::from(got) - want).abs() / 2f64.powi(exponent as i32 - 127 - 23)
}

#[track_caller]
pub fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let ok =
            (f64::from(g) - w).abs() <= tolerance * (1.0 + w.abs()) || (g.is_nan() && w.is_nan());
        assert!(ok, "{what}: element {i} is {g}, want {w}");
    }
}

/// An element type of weights.
pub trait Element: aether_codegen_cpu::kernels::Load {
    fn make(x: f32) -> Self;
    fn value(self) -> f64;
}
impl Element for f32 {
    fn make(x: f32) -> f32 {
        x
    }
    fn value(self) -> f64 {
        f64::from(self)
    }
}
impl Element for f16 {
    fn make(x: f32) -> f16 {
        f16::from_f32(x)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}
impl Element for bf16 {
    fn make(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}
