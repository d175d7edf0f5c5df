//! The chain of samplers, in llama.cpp's order.

use super::candidates::{Candidate, Candidates};
use super::dry::Dry;
use super::mirostat::Mirostat;
use super::penalties::Penalties;
use super::temperature::Temperature;
use super::{
    Constraint, Need, Rng, SampleError, SamplerOptions, Scores, min_p, top_n_sigma, top_p, typical,
    xtc,
};

/// Chooses tokens, one after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    opts: SamplerOptions,
    rng: Rng,
    penalties: Penalties,
    dry: Dry,
    mirostat: Option<Mirostat>,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    /// When a setting is out of range.
    pub fn new(opts: SamplerOptions) -> Result<Sampler, SampleError> {
        opts.check()?;
        let (repeat, last_n) = (opts.repeat_penalty, opts.repeat_last_n);
        Ok(Sampler {
            rng: Rng::new(opts.seed),
            penalties: Penalties::new(
                repeat,
                opts.frequency_penalty,
                opts.presence_penalty,
                last_n,
            ),
            dry: Dry::new(opts.dry.clone()),
            mirostat: opts.mirostat.map(Mirostat::new),
            candidates: Candidates::default(),
            opts,
        })
    }

    /// The settings.
    pub fn options(&self) -> &SamplerOptions {
        &self.opts
    }

    /// Counts a token as part of the text: those of the prompt, then each that was taken.
    pub fn accept(&mut self, token: u32) {
        self.penalties.accept(token);
        self.dry.accept(token);
    }

    /// Whether nothing but logit bias stands before top-k, and mirostat not in place of it.
    fn is_plain(&self) -> bool {
        !self.penalties.applies() && !self.dry.is_on() && self.mirostat.is_none()
    }

    /// Whether the token with the greatest logit is taken, whatever the others are.
    fn is_greedy(&self) -> bool {
        let opts = &self.opts;
        let greedy = opts.temperature == 0.0 && opts.dynatemp_range == 0.0 || opts.top_k == 1;
        let may_drop_best = opts.typical_p < 1.0 || opts.xtc_probability > 0.0;
        greedy && self.is_plain() && opts.logit_bias.is_empty() && !may_drop_best
    }

    /// So many of the greatest logits are what top-k leaves something of; `None` when all logits
    /// count.
    fn most(&self) -> Option<usize> {
        let opts = &self.opts;
        // Biases that only take off leave the greatest among so many more.
        let lowered = opts.logit_bias.iter().all(|(_, bias)| *bias <= 0.0);
        let first = lowered && opts.top_n_sigma <= 0.0 && opts.top_k > 0;
        (first && self.is_plain()).then(|| opts.top_k.saturating_add(opts.logit_bias.len()))
    }

    /// What it must see of the logits to choose without a constraint; with one it must see all.
    pub fn need(&self) -> Need {
        match self.most() {
            _ if self.is_greedy() => Need::Best(1),
            Some(most) => Need::Best(most),
            None => Need::All,
        }
    }

    /// Chooses a token. Without penalties it allocates only at the first call.
    ///
    /// # Errors
    /// When a logit is not a number, or the greatest is infinite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        self.sample_within(logits, None)
    }

    /// As [`Sampler::sample`], among the tokens that a constraint allows.
    ///
    /// # Errors
    /// As [`Sampler::sample`], and when the constraint allows none.
    pub fn sample_within(
        &mut self,
        logits: &[f32],
        constraint: Option<&mut dyn Constraint>,
    ) -> Result<u32, SampleError> {
        self.choose(Scores::All(logits), constraint)
    }

    /// As [`Sampler::sample_within`], from what [`Sampler::need`] asks for, or more.
    ///
    /// # Errors
    /// As [`Sampler::sample_within`], and when less is there.
    pub fn choose(
        &mut self,
        scores: Scores<'_>,
        constraint: Option<&mut dyn Constraint>,
    ) -> Result<u32, SampleError> {
        let best = scores.best()?;
        if self.is_greedy() && constraint.is_none() {
            self.candidates.only(best);
            return Ok(best);
        }
        let most = self.most().filter(|_| constraint.is_none());
        self.cut(scores, most, constraint)?;
        let token = self.draw();
        if let Some(mirostat) = &mut self.mirostat {
            let p = self.candidates.items.iter().find(|c| c.token == token).map_or(1.0, |c| c.p);
            mirostat.observe(p);
        }
        Ok(token)
    }

    /// What the last token was chosen from, with probabilities.
    pub fn choices(&self) -> &[Candidate] {
        &self.candidates.items
    }

    /// The tokens that may be chosen now, with their probabilities.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn distribution(&mut self, logits: &[f32]) -> Result<&[Candidate], SampleError> {
        let scores = Scores::All(logits);
        scores.best()?;
        self.cut(scores, None, None)?;
        self.candidates.softmax();
        Ok(&self.candidates.items)
    }

    /// Leaves what may be chosen among the candidates, at its temperature. With `most`, so many of
    /// the greatest logits are enough.
    fn cut(
        &mut self,
        scores: Scores<'_>,
        most: Option<usize>,
        constraint: Option<&mut dyn Constraint>,
    ) -> Result<(), SampleError> {
        let opts = &self.opts;
        let all = &mut self.candidates;
        match (scores, most) {
            (Scores::All(logits), Some(most)) if most <= logits.len() / 8 => {
                all.fill_top(logits, most);
            }
            (Scores::All(logits), _) => all.fill(logits),
            (Scores::Best { logits, tokens }, Some(most)) if scores.has(most) => {
                all.fill_best(logits, tokens, most);
            }
            (Scores::Best { tokens, .. }, _) => {
                return Err(SampleError::Unseen { found: tokens.len() });
            }
        }
        // With mirostat these are all that there are.
        let vocab = all.items.len();
        all.add_bias(&opts.logit_bias);
        if self.penalties.applies() && self.mirostat.is_none() {
            self.penalties.apply(all);
        }
        if self.dry.is_on() && self.mirostat.is_none() {
            self.dry.apply(all);
        }
        if let Some(constraint) = constraint {
            let allowed = constraint.allowed().map_err(SampleError::Constraint)?;
            all.items.retain(|c| allowed.contains(c.token));
        }
        if all.max() == f32::NEG_INFINITY {
            return Err(SampleError::NoneAllowed);
        }
        let temperature = Temperature {
            value: opts.temperature,
            range: opts.dynatemp_range,
            exponent: opts.dynatemp_exponent,
        };
        if let Some(mirostat) = &self.mirostat {
            temperature.apply(all);
            mirostat.apply(all, vocab);
            return Ok(());
        }
        top_n_sigma::apply(all, opts.top_n_sigma);
        all.keep_top(opts.top_k);
        typical::apply(all, opts.typical_p);
        top_p::apply(all, opts.top_p);
        min_p::apply(all, opts.min_p);
        xtc::apply(all, opts.xtc_probability, opts.xtc_threshold, &mut self.rng);
        temperature.apply(all);
        Ok(())
    }

    /// Draws one of the candidates.
    fn draw(&mut self) -> u32 {
        self.candidates.softmax();
        let items = &self.candidates.items;
        if let [only] = items.as_slice() {
            return only.token;
        }
        let total: f64 = items.iter().map(|c| f64::from(c.p)).sum();
        let mut left = self.rng.next_f64() * total;
        for c in items {
            left -= f64::from(c.p);
            if left < 0.0 {
                return c.token;
            }
        }
        // Rounding left a rest: the last that can be drawn.
        items.iter().rev().find(|c| c.p > 0.0).map_or(0, |c| c.token)
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
