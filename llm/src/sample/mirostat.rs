//! Mirostat 1 and 2 (Basu et al. 2020): what may be chosen is cut so that the surprise of the text
//! stays near to τ.

use super::candidates::Candidates;

/// Which of the two algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirostatVersion {
    V1,
    V2,
}

/// Settings of mirostat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MirostatOptions {
    pub version: MirostatVersion,
    /// The surprise aimed for, in bits.
    pub tau: f32,
    /// How fast the cut follows.
    pub eta: f32,
}

/// Tokens that version 1 estimates the distribution from.
const M: usize = 100;

#[derive(Clone, Debug)]
pub(super) struct Mirostat {
    opts: MirostatOptions,
    /// Twice the surprise that is allowed now, in bits.
    mu: f32,
}

impl Mirostat {
    pub fn new(opts: MirostatOptions) -> Mirostat {
        Mirostat { opts, mu: 2.0 * opts.tau }
    }

    /// Cuts what is too surprising. `vocab` is the number of tokens of the model.
    pub fn apply(&self, all: &mut Candidates, vocab: usize) {
        all.sort();
        all.softmax();
        match self.opts.version {
            MirostatVersion::V1 => {
                let k = self.estimate(all, vocab);
                all.keep_top(k);
            }
            MirostatVersion::V2 => {
                let end = all.items.iter().position(|c| -c.p.log2() > self.mu);
                all.items.truncate(end.unwrap_or(all.items.len()).max(1));
            }
        }
        all.softmax();
    }

    /// How many tokens version 1 keeps: the exponent of Zipf's law is estimated from the first.
    fn estimate(&self, all: &Candidates, vocab: usize) -> usize {
        let (mut tb, mut tt) = (0.0, 0.0);
        for (i, pair) in all.items.windows(2).take(M - 1).enumerate() {
            let t = ((i + 2) as f64 / (i + 1) as f64).ln();
            let b = (f64::from(pair[0].p) / f64::from(pair[1].p)).ln();
            tb += t * b;
            tt += t * t;
        }
        let s = tb / tt;
        let epsilon = s - 1.0;
        let base = epsilon * 2f64.powf(f64::from(self.mu)) / (1.0 - (vocab as f64).powf(-epsilon));
        let k = base.powf(1.0 / s);
        // A number that is none, with one token only, keeps one.
        if k >= 1.0 { k as usize } else { 1 }
    }

    /// Learns from the token that was chosen.
    pub fn observe(&mut self, p: f32) {
        let surprise = -p.max(f32::MIN_POSITIVE).log2();
        self.mu -= self.opts.eta * (surprise - self.opts.tau);
    }
}
