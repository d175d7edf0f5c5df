//! What a sampler sees of a row of logits: all of them, or the greatest.

use super::{SampleError, argmax};

/// A row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scores<'a> {
    /// Of every token, by its number.
    All(&'a [f32]),
    /// The greatest in falling order, equal ones by token, and their tokens. One that is not a
    /// number comes before all others.
    Best { logits: &'a [f32], tokens: &'a [u32] },
}

/// What of a row of logits decides a sampler's choice ([`Sampler::need`](super::Sampler::need)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The so many greatest: with these it chooses what it would choose with all.
    Best(usize),
    /// All of them.
    All,
}

impl Need {
    /// What both need.
    #[must_use]
    pub fn and(self, other: Need) -> Need {
        match (self, other) {
            (Need::Best(a), Need::Best(b)) => Need::Best(a.max(b)),
            _ => Need::All,
        }
    }
}

impl<'a> Scores<'a> {
    /// All logits; `None` when only the greatest are there.
    pub fn all(self) -> Option<&'a [f32]> {
        match self {
            Scores::All(logits) => Some(logits),
            Scores::Best { .. } => None,
        }
    }

    /// The token with the greatest logit, the first among equals.
    ///
    /// # Errors
    /// When there is none, one is not a number, or the greatest is infinite.
    pub fn best(self) -> Result<u32, SampleError> {
        let (logits, tokens) = match self {
            Scores::All(logits) => return argmax(logits),
            Scores::Best { logits, tokens } => (logits, tokens),
        };
        match (logits.first(), tokens.first()) {
            (Some(logit), Some(&token)) if logit.is_nan() => {
                Err(SampleError::NotANumber { token: token as usize })
            }
            (Some(logit), Some(&token)) if logit.is_finite() => Ok(token),
            (Some(&logit), Some(_)) => Err(SampleError::NotFinite(logit)),
            _ => Err(SampleError::Empty),
        }
    }

    /// Whether the greatest `k` are there.
    pub(super) fn has(self, k: usize) -> bool {
        match self {
            Scores::All(_) => true,
            Scores::Best { logits, tokens } => k <= logits.len().min(tokens.len()),
        }
    }
}
