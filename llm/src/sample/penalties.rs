//! Penalties for tokens that came before: repetition (Keskar et al. 2019, CTRL), frequency and
//! presence (as OpenAI's API has them).

use std::collections::{HashMap, VecDeque};

use super::candidates::Candidates;

/// The last tokens, and how often each is among them.
#[derive(Clone, Debug, Default)]
pub(super) struct Penalties {
    /// Divides positive logits of recent tokens and multiplies others; 1 for nothing.
    pub repeat: f32,
    /// Taken off the logit for every time that the token is recent.
    pub frequency: f32,
    /// Taken off the logit of every recent token.
    pub presence: f32,
    /// How many tokens are recent.
    pub last_n: usize,
    recent: VecDeque<u32>,
    counts: HashMap<u32, u32>,
}

impl Penalties {
    pub fn new(repeat: f32, frequency: f32, presence: f32, last_n: usize) -> Penalties {
        Penalties { repeat, frequency, presence, last_n, ..Penalties::default() }
    }

    fn is_on(&self) -> bool {
        self.last_n > 0 && (self.repeat != 1.0 || self.frequency != 0.0 || self.presence != 0.0)
    }

    /// Whether they would change a logit.
    pub fn applies(&self) -> bool {
        self.is_on() && !self.counts.is_empty()
    }

    /// Counts a token as recent.
    pub fn accept(&mut self, token: u32) {
        if !self.is_on() {
            return;
        }
        self.recent.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
        if self.recent.len() > self.last_n
            && let Some(old) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
    }

    /// The candidates are all tokens, in their order.
    pub fn apply(&self, all: &mut Candidates) {
        for (&token, &count) in &self.counts {
            let Some(c) = all.items.get_mut(token as usize) else { continue };
            c.logit = if c.logit <= 0.0 { c.logit * self.repeat } else { c.logit / self.repeat };
            c.logit -= count as f32 * self.frequency + self.presence;
        }
        all.sorted = false;
    }
}
