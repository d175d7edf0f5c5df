//! Settings of a sampler.

use super::SampleError;
use super::dry::DryOptions;
use super::mirostat::MirostatOptions;

/// Settings of a [`Sampler`](super::Sampler).
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by it; 0 takes the greatest logit.
    pub temperature: f32,
    /// The temperature lies within so much of it, the higher the more uncertain the model is; 0
    /// for a fixed one.
    pub dynatemp_range: f32,
    /// How the entropy's share of the greatest possible moves the temperature.
    pub dynatemp_exponent: f32,
    /// Only the `top_k` greatest logits stay; 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that together have this probability stay; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable one stay; 0 for all.
    pub min_p: f32,
    /// Only tokens whose surprise is nearest to the entropy and that together have this
    /// probability stay; 1 for all.
    pub typical_p: f32,
    /// Only logits within so many standard deviations of the greatest stay; 0 or less for all.
    pub top_n_sigma: f32,
    /// The probability with which the top choices are excluded.
    pub xtc_probability: f32,
    /// The probability from which a token is a top choice.
    pub xtc_threshold: f32,
    /// Divides positive logits, and multiplies others, of recent tokens; 1 for nothing.
    pub repeat_penalty: f32,
    /// Taken off a recent token's logit for every time that it is recent.
    pub frequency_penalty: f32,
    /// Taken off every recent token's logit.
    pub presence_penalty: f32,
    /// How many tokens are recent.
    pub repeat_last_n: usize,
    /// Against repeated stretches.
    pub dry: DryOptions,
    /// In place of everything but bias, temperature and constraint.
    pub mirostat: Option<MirostatOptions>,
    /// Added to the logits of these tokens; −∞ forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        SamplerOptions {
            temperature: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: -1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repeat_last_n: 64,
            dry: DryOptions::default(),
            mirostat: None,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Always the greatest logit.
    pub fn greedy() -> Self {
        SamplerOptions { temperature: 0.0, ..SamplerOptions::default() }
    }

    /// # Errors
    /// The first setting that is out of range.
    pub fn check(&self) -> Result<(), SampleError> {
        let at_least_zero = |v: f32| v.is_finite() && v >= 0.0;
        let share = |v: f32| (0.0..=1.0).contains(&v);
        let above_zero = |v: f32| v.is_finite() && v > 0.0;
        const NOT_NEGATIVE: &str = "0 or more";
        const SHARE: &str = "from 0 to 1";
        const FINITE: &str = "a finite number";
        let table = [
            ("temperature", self.temperature, at_least_zero as fn(f32) -> bool, NOT_NEGATIVE),
            ("dynatemp_range", self.dynatemp_range, at_least_zero, NOT_NEGATIVE),
            ("dynatemp_exponent", self.dynatemp_exponent, at_least_zero, NOT_NEGATIVE),
            ("top_p", self.top_p, share, SHARE),
            ("min_p", self.min_p, share, SHARE),
            ("typical_p", self.typical_p, share, SHARE),
            ("top_n_sigma", self.top_n_sigma, f32::is_finite, FINITE),
            ("xtc_probability", self.xtc_probability, share, SHARE),
            ("xtc_threshold", self.xtc_threshold, share, SHARE),
            ("repeat_penalty", self.repeat_penalty, above_zero, "more than 0"),
            ("frequency_penalty", self.frequency_penalty, f32::is_finite, FINITE),
            ("presence_penalty", self.presence_penalty, f32::is_finite, FINITE),
            ("dry_multiplier", self.dry.multiplier, at_least_zero, NOT_NEGATIVE),
            ("dry_base", self.dry.base, at_least_zero, NOT_NEGATIVE),
        ];
        let option = |name, value, expected| Err(SampleError::Option { name, value, expected });
        if let Some((name, value, _, expected)) = table.into_iter().find(|row| !row.2(row.1)) {
            return option(name, value, expected);
        }
        if let Some(m) = self.mirostat {
            let rows = [("mirostat_tau", m.tau), ("mirostat_eta", m.eta)];
            if let Some((name, value)) = rows.into_iter().find(|row| !at_least_zero(row.1)) {
                return option(name, value, NOT_NEGATIVE);
            }
        }
        match self.logit_bias.iter().find(|(_, b)| b.is_nan() || *b == f32::INFINITY) {
            Some(&(_, value)) => option("logit_bias", value, "a number, or -infinity"),
            None => Ok(()),
        }
    }
}
