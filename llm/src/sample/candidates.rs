//! The tokens that may still be chosen.

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub token: u32,
    pub logit: f32,
    /// Its probability, after [`Candidates::softmax`].
    pub p: f32,
}

/// The tokens that may still be chosen; samplers change their logits and drop some. There is
/// always one at least.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    pub items: Vec<Candidate>,
    /// The logits fall, the lower id first among equals.
    pub sorted: bool,
}

/// Falling logits, the lower id first among equals; 0 equals -0.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    (b.logit + 0.0).total_cmp(&(a.logit + 0.0)).then(a.token.cmp(&b.token))
}

impl Candidates {
    /// All tokens.
    pub fn fill(&mut self, logits: &[f32]) {
        self.items.clear();
        let all = logits.iter().enumerate();
        self.items.extend(all.map(|(i, &logit)| Candidate { token: i as u32, logit, p: 0.0 }));
        self.sorted = false;
    }

    /// The `k` greatest of all tokens: what [`Candidates::fill`] and [`Candidates::keep_top`] give,
    /// in one pass. `k` is 1 at least.
    pub fn fill_top(&mut self, logits: &[f32], k: usize) {
        self.items.clear();
        // The items stay sorted; most logits are below the last and cost one comparison.
        for (token, &logit) in logits.iter().enumerate() {
            if self.items.len() == k && self.items[k - 1].logit >= logit {
                continue;
            }
            let at = self.items.partition_point(|c| c.logit >= logit);
            self.items.truncate(k - 1);
            self.items.insert(at, Candidate { token: token as u32, logit, p: 0.0 });
        }
        self.sorted = true;
    }

    /// The first `k` of tokens in falling order of their logits: what [`Candidates::fill_top`] gives
    /// of all.
    pub fn fill_best(&mut self, logits: &[f32], tokens: &[u32], k: usize) {
        self.items.clear();
        let pairs = logits.iter().zip(tokens).take(k);
        self.items.extend(pairs.map(|(&logit, &token)| Candidate { token, logit, p: 0.0 }));
        self.sorted = true;
    }

    /// One token alone.
    pub fn only(&mut self, token: u32) {
        self.items.clear();
        self.items.push(Candidate { token, logit: 0.0, p: 1.0 });
        self.sorted = true;
    }

    /// Adds to the logits of these tokens, as far as they are there.
    pub fn add_bias(&mut self, bias: &[(u32, f32)]) {
        if bias.is_empty() {
            return;
        }
        if self.sorted {
            let of = |token| bias.iter().filter(|b| b.0 == token).map(|b| b.1).sum::<f32>();
            self.items.iter_mut().for_each(|c| c.logit += of(c.token));
        } else {
            for &(token, bias) in bias {
                // All are there, each at the place of its number.
                if let Some(c) = self.items.get_mut(token as usize) {
                    c.logit += bias;
                }
            }
        }
        self.sorted = false;
    }

    /// The greatest logit.
    pub fn max(&self) -> f32 {
        match self.sorted {
            true => self.items.first().map_or(f32::NEG_INFINITY, |c| c.logit),
            false => self.items.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max),
        }
    }

    pub fn sort(&mut self) {
        if !self.sorted {
            self.items.sort_unstable_by(order);
            self.sorted = true;
        }
    }

    /// Keeps the `k` with the greatest logits, sorted; 0 for all.
    pub fn keep_top(&mut self, k: usize) {
        if k == 0 || k >= self.items.len() {
            return;
        }
        if !self.sorted {
            self.items.select_nth_unstable_by(k - 1, order);
        }
        self.items.truncate(k);
        self.sort();
    }

    /// Fills in the probabilities.
    pub fn softmax(&mut self) {
        let max = self.max();
        let mut sum = 0.0;
        for c in &mut self.items {
            // Not (−∞) − (−∞), which is no number.
            c.p = if c.logit == max { 1.0 } else { (c.logit - max).exp() };
            sum += f64::from(c.p);
        }
        self.items.iter_mut().for_each(|c| c.p = (f64::from(c.p) / sum) as f32);
    }

    /// Keeps what `keep` says, but at least the first.
    pub fn retain(&mut self, mut keep: impl FnMut(&Candidate) -> bool) {
        let first = self.items.first().copied();
        self.items.retain(|c| keep(c));
        if self.items.is_empty() {
            self.items.extend(first);
        }
    }
}
