//! The chain of filters and the draw.

use std::collections::{HashMap, VecDeque};

use super::{Rng, SampleError};

/// Settings of a [`Sampler`].
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by it; 0 takes the greatest logit.
    pub temperature: f32,
    /// Only the `top_k` greatest logits stay; 0 for all.
    pub top_k: usize,
    /// Only the most probable tokens that together have this probability stay; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable one stay; 0 for all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of recent tokens; 1 for nothing
    /// (Keskar et al. 2019).
    pub repeat_penalty: f32,
    /// How many tokens are recent.
    pub repeat_last_n: usize,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        SamplerOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Always the greatest logit.
    pub fn greedy() -> Self {
        SamplerOptions { temperature: 0.0, ..SamplerOptions::default() }
    }

    fn check(&self) -> Result<(), SampleError> {
        let at_least_zero = |v: f32| v.is_finite() && v >= 0.0;
        let share = |v: f32| (0.0..=1.0).contains(&v);
        let table = [
            ("temperature", self.temperature, at_least_zero(self.temperature), "0 or more"),
            ("top_p", self.top_p, share(self.top_p), "from 0 to 1"),
            ("min_p", self.min_p, share(self.min_p), "from 0 to 1"),
            (
                "repeat_penalty",
                self.repeat_penalty,
                self.repeat_penalty.is_finite() && self.repeat_penalty > 0.0,
                "more than 0",
            ),
        ];
        match table.into_iter().find(|row| !row.2) {
            Some((name, value, _, expected)) => Err(SampleError::Option { name, value, expected }),
            None => Ok(()),
        }
    }
}

/// Chooses tokens, one after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    opts: SamplerOptions,
    rng: Rng,
    /// The last tokens, oldest first, and how often each is among them.
    recent: VecDeque<u32>,
    counts: HashMap<u32, u32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    /// Not normalised: relative to the greatest.
    weight: f32,
}

/// Falling logits, the lower id first among equals.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The index of the greatest logit, the first among equals.
///
/// # Errors
/// When there is none, one is not a number, or the greatest is infinite.
pub fn argmax(logits: &[f32]) -> Result<u32, SampleError> {
    let mut best = 0;
    let mut max = f32::NEG_INFINITY;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > max {
            (best, max) = (i, logit);
        } else if logit.is_nan() {
            return Err(SampleError::NotANumber { token: i });
        }
    }
    match (logits.is_empty(), max.is_finite()) {
        (true, _) => Err(SampleError::Empty),
        (_, false) => Err(SampleError::NotFinite(max)),
        _ => Ok(best as u32),
    }
}

impl Sampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    /// When a setting is out of range.
    pub fn new(opts: SamplerOptions) -> Result<Sampler, SampleError> {
        opts.check()?;
        let rng = Rng::new(opts.seed);
        let (recent, counts) = (VecDeque::new(), HashMap::new());
        Ok(Sampler { opts, rng, recent, counts, candidates: Vec::new() })
    }

    /// The settings.
    pub fn options(&self) -> &SamplerOptions {
        &self.opts
    }

    fn penalizes(&self) -> bool {
        self.opts.repeat_penalty != 1.0 && self.opts.repeat_last_n > 0
    }

    /// Counts a token as recent: those of the prompt, then each that was taken.
    pub fn accept(&mut self, token: u32) {
        if !self.penalizes() {
            return;
        }
        self.recent.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
        if self.recent.len() > self.opts.repeat_last_n
            && let Some(old) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
    }

    /// Chooses a token. Allocates only at the first call.
    ///
    /// # Errors
    /// When a logit is not a number, or the greatest is infinite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        let best = argmax(logits)?;
        let greedy = self.opts.temperature == 0.0 || self.opts.top_k == 1;
        if greedy && (!self.penalizes() || self.counts.is_empty()) {
            return Ok(best);
        }
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(|(i, &logit)| Candidate {
            token: i as u32,
            logit,
            weight: 0.0,
        }));
        for &token in self.counts.keys() {
            if let Some(c) = self.candidates.get_mut(token as usize) {
                let penalty = self.opts.repeat_penalty;
                c.logit = if c.logit > 0.0 { c.logit / penalty } else { c.logit * penalty };
            }
        }
        if greedy {
            return Ok(self.candidates.iter().min_by(|a, b| order(a, b)).map_or(best, |c| c.token));
        }
        self.filter();
        Ok(self.draw(best))
    }

    fn filter(&mut self) {
        let SamplerOptions { top_k, top_p, min_p, .. } = self.opts;
        let all = &mut self.candidates;
        let mut sorted = false;
        if top_k > 0 && top_k < all.len() {
            all.select_nth_unstable_by(top_k - 1, order);
            all.truncate(top_k);
            all.sort_unstable_by(order);
            sorted = true;
        }
        let max = all.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
        all.iter_mut().for_each(|c| c.weight = (c.logit - max).exp());
        if top_p < 1.0 {
            if !sorted {
                all.sort_unstable_by(order);
            }
            let total: f64 = all.iter().map(|c| f64::from(c.weight)).sum();
            let mut sum = 0.0;
            let enough = all.iter().position(|c| {
                sum += f64::from(c.weight);
                sum >= total * f64::from(top_p)
            });
            all.truncate(enough.map_or(all.len(), |i| i + 1));
        }
        if min_p > 0.0 {
            all.retain(|c| c.weight >= min_p);
        }
    }

    /// Draws one of the candidates, at the temperature.
    fn draw(&mut self, best: u32) -> u32 {
        let all = &mut self.candidates;
        let max = all.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
        let scale = 1.0 / self.opts.temperature;
        // At tiny temperatures the scale overflows: then 0 · ∞ would be no number.
        all.iter_mut().for_each(|c| {
            c.weight = if c.logit == max { 1.0 } else { ((c.logit - max) * scale).exp() };
        });
        let total: f64 = all.iter().map(|c| f64::from(c.weight)).sum();
        let mut left = self.rng.next_f64() * total;
        for c in all.iter() {
            left -= f64::from(c.weight);
            if left < 0.0 {
                return c.token;
            }
        }
        // Rounding left a rest: the last that can be drawn.
        all.iter().rev().find(|c| c.weight > 0.0).map_or(best, |c| c.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> SamplerOptions {
        SamplerOptions {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            ..SamplerOptions::default()
        }
    }

    /// Which tokens come up in many draws.
    fn support(opts: SamplerOptions, logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(opts).unwrap();
        let mut seen: Vec<u32> = (0..2000).map(|_| sampler.sample(logits).unwrap()).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn filters_keep_what_they_should() {
        // Probabilities 0.1, 0.4, 0.3, 0.2.
        let logits = [0.1f32, 0.4, 0.3, 0.2].map(f32::ln);
        let table: [(&str, SamplerOptions, &[u32]); 10] = [
            ("all", options(), &[0, 1, 2, 3]),
            ("top_k 2", SamplerOptions { top_k: 2, ..options() }, &[1, 2]),
            ("top_k 9", SamplerOptions { top_k: 9, ..options() }, &[0, 1, 2, 3]),
            ("top_p 0.65", SamplerOptions { top_p: 0.65, ..options() }, &[1, 2]),
            ("top_p 0.75", SamplerOptions { top_p: 0.75, ..options() }, &[1, 2, 3]),
            ("top_p 0", SamplerOptions { top_p: 0.0, ..options() }, &[1]),
            ("min_p 0.6", SamplerOptions { min_p: 0.6, ..options() }, &[1, 2]),
            ("min_p 1", SamplerOptions { min_p: 1.0, ..options() }, &[1]),
            ("cold", SamplerOptions { temperature: 1e-30, ..options() }, &[1]),
            // Of the two that top-k leaves, the first has 4/7 of the probability.
            ("both", SamplerOptions { top_k: 2, top_p: 0.5, ..options() }, &[1]),
        ];
        for (name, opts, want) in table {
            assert_eq!(support(opts, &logits), want, "{name}");
        }
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.1f32, 0.4, 0.3, 0.2].map(f32::ln);
        // At temperature 0.5 probabilities are squared and normalised.
        let table = [(1.0, [0.1, 0.4, 0.3, 0.2]), (0.5, [1., 16., 9., 4.].map(|p| p / 30.0))];
        for (temperature, want) in table {
            let mut sampler = Sampler::new(SamplerOptions { temperature, ..options() }).unwrap();
            let mut counts = [0.0; 4];
            const DRAWS: usize = 40_000;
            for _ in 0..DRAWS {
                counts[sampler.sample(&logits).unwrap() as usize] += 1.0 / DRAWS as f64;
            }
            for (got, want) in counts.iter().zip(want) {
                assert!((got - want).abs() < 0.01, "{temperature}: {counts:?}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut sampler = Sampler::new(SamplerOptions::greedy()).unwrap();
        let table: [(&[f32], u32); 4] = [
            (&[0.0, 2.0, 2.0], 1),
            (&[-1.0], 0),
            (&[f32::NEG_INFINITY, -5.0], 1),
            (&[-0.0, 0.0], 0),
        ];
        for (logits, want) in table {
            assert_eq!(sampler.sample(logits), Ok(want), "{logits:?}");
        }
    }

    #[test]
    fn recent_tokens_are_penalized_and_forgotten() {
        let opts =
            SamplerOptions { repeat_penalty: 2.0, repeat_last_n: 2, ..SamplerOptions::greedy() };
        let mut sampler = Sampler::new(opts).unwrap();
        let logits = [3.0, 2.0, -1.0, -1.5];
        assert_eq!(sampler.sample(&logits), Ok(0));
        sampler.accept(0);
        assert_eq!(sampler.sample(&logits), Ok(1), "3 / 2 is below 2");
        sampler.accept(1);
        assert_eq!(sampler.sample(&logits), Ok(0), "1.5 against 1");
        sampler.accept(2);
        assert_eq!(sampler.sample(&logits), Ok(0), "token 0 is forgotten");
        sampler.accept(9_999);
        assert_eq!(sampler.sample(&[-1.0, -1.5, -1.2, -4.0]), Ok(0), "unknown tokens do no harm");
        sampler.accept(0);
        assert_eq!(sampler.sample(&[-1.0, -1.5, -4.0, -4.0]), Ok(1), "-1 becomes -2");
    }

    #[test]
    fn same_seed_same_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
        let run = |seed| {
            let mut s = Sampler::new(SamplerOptions { seed, ..options() }).unwrap();
            (0..50).map(|_| s.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn bad_settings_and_logits_are_errors() {
        let table = [
            ("temperature", SamplerOptions { temperature: -1.0, ..options() }),
            ("temperature", SamplerOptions { temperature: f32::NAN, ..options() }),
            ("top_p", SamplerOptions { top_p: 1.5, ..options() }),
            ("min_p", SamplerOptions { min_p: -0.1, ..options() }),
            ("repeat_penalty", SamplerOptions { repeat_penalty: 0.0, ..options() }),
        ];
        for (want, opts) in table {
            let Err(error) = Sampler::new(opts) else { panic!("{want}") };
            assert!(matches!(error, SampleError::Option { name, .. } if name == want), "{error}");
        }
        let mut sampler = Sampler::new(options()).unwrap();
        let nan = [0.0, f32::NAN];
        assert_eq!(sampler.sample(&nan), Err(SampleError::NotANumber { token: 1 }));
        assert_eq!(sampler.sample(&[]), Err(SampleError::Empty));
        let none = [f32::NEG_INFINITY; 3];
        assert_eq!(sampler.sample(&none), Err(SampleError::NotFinite(f32::NEG_INFINITY)));
    }
}
