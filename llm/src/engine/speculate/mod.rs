//! Speculative decoding: tokens are proposed cheaply, and the model looks at all of them in one
//! call (Leviathan et al. 2023; Chen et al. 2023).
//!
//! The call gives logits after every proposed token. The sequence's own sampler chooses from them
//! in order, with its own random state, as it would without proposals; as long as it chooses what
//! was proposed, the next row is of use too. So the text is the one that comes without, whatever is
//! proposed, and only the number of calls depends on how good the proposals are. For the rows to
//! have the same bits too, proposed tokens go through the model as tokens that go alone
//! ([`Piece::alone`](super::Piece::alone)).

mod draft;
mod ngram;

use std::sync::Arc;

use super::{EngineError, Model};
use draft::Drafter;

/// Most tokens of a proposal when nothing else is said; llama.cpp's number.
pub const DRAFT_TOKENS: usize = 16;
/// Least probability of a draft model's token when nothing else is said; llama.cpp's number.
pub const DRAFT_P_MIN: f32 = 0.75;
/// Most tokens of a proposal that may be asked for.
pub const MOST_DRAFT_TOKENS: usize = 64;
/// Tokens of a sequence's first proposal.
const FIRST: usize = 4;
/// Least tokens of a later one.
const LEAST: usize = 2;

/// How tokens are proposed.
#[derive(Clone)]
pub struct Speculation {
    /// Most tokens of a proposal, 1 to [`MOST_DRAFT_TOKENS`].
    pub tokens: usize,
    /// Who proposes.
    pub proposer: Proposer,
}

/// Who proposes tokens.
#[derive(Clone)]
pub enum Proposer {
    /// The text itself: what followed the last tokens where they stood earlier (prompt lookup
    /// decoding, Saxena 2023).
    Ngram,
    /// A smaller model with the same vocabulary.
    Draft {
        /// Loaded with as many slots as the model that is helped, and as long a context.
        model: Arc<Model>,
        /// A proposal ends before a token that the model gives less probability than this.
        p_min: f32,
    },
}

/// What was proposed, and what of it was chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafted {
    /// Proposals.
    pub drafts: usize,
    /// Tokens of all of them.
    pub tokens: usize,
    /// Those among them that the sampler chose too.
    pub accepted: usize,
}

/// How long proposals for a sequence are: as far as they were right lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DraftLen(usize);

impl Default for DraftLen {
    fn default() -> Self {
        DraftLen(FIRST)
    }
}

impl DraftLen {
    /// Tokens of the next proposal.
    pub fn get(self) -> usize {
        self.0
    }

    /// Learns from a proposal: twice as many after one that was right to its end, else a little
    /// more than what was right.
    pub fn learn(&mut self, drafted: usize, accepted: usize) {
        self.0 = match accepted == drafted {
            true => self.0.max(2 * drafted).min(MOST_DRAFT_TOKENS),
            false => (accepted + 1).max(LEAST),
        };
    }
}

/// A sequence for which tokens are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want<'a> {
    pub slot: usize,
    /// All its tokens; the last one has not gone through the model yet.
    pub tokens: &'a [u32],
    /// How many of them are of the prompt: those went through the model together.
    pub prompt_len: usize,
    /// Most tokens of the proposal.
    pub most: usize,
}

/// Proposes tokens for the sequences of a model.
pub(super) struct Speculator {
    most: usize,
    vocab: usize,
    drafter: Option<Drafter>,
}

impl Speculator {
    /// A proposer for `target`.
    ///
    /// # Errors
    /// When the number of tokens is out of range, the draft model does not fit the model, or its
    /// caches cannot be had.
    pub fn new(target: &Model, speculation: &Speculation) -> Result<Speculator, EngineError> {
        let tokens = speculation.tokens;
        if !(1..=MOST_DRAFT_TOKENS).contains(&tokens) {
            return Err(EngineError::DraftTokens { tokens, most: MOST_DRAFT_TOKENS });
        }
        if target.executable().cpu().is_none() {
            return Err(EngineError::DraftDevice);
        }
        let drafter = match &speculation.proposer {
            Proposer::Ngram => None,
            Proposer::Draft { model, p_min } => Some(Drafter::new(target, model, *p_min)?),
        };
        Ok(Speculator { most: tokens, vocab: target.vocab_len(), drafter })
    }

    /// Most tokens of a proposal.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Tokens that may follow, for each of `wants`; none where there is nothing to say.
    ///
    /// # Errors
    /// When the draft model cannot be run.
    pub fn propose(&mut self, wants: &[Want<'_>]) -> Result<Vec<Vec<u32>>, EngineError> {
        let mut all = match &mut self.drafter {
            Some(drafter) => drafter.propose(wants)?,
            None => wants.iter().map(|want| ngram::propose(want.tokens, want.most)).collect(),
        };
        for draft in &mut all {
            let known = draft.iter().take_while(|&&token| (token as usize) < self.vocab).count();
            draft.truncate(known);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposals_grow_while_they_are_right() {
        // Tokens of a proposal, and what of it was chosen; then the next length.
        let table: [(usize, usize, usize); 7] =
            [(4, 4, 8), (8, 8, 16), (16, 5, 6), (6, 0, 2), (2, 1, 2), (2, 2, 4), (1, 1, 4)];
        let mut len = DraftLen::default();
        for (drafted, accepted, next) in table {
            len.learn(drafted, accepted);
            assert_eq!(len.get(), next, "{drafted} {accepted}");
        }
        len.learn(60, 60);
        assert_eq!(len.get(), MOST_DRAFT_TOKENS);
    }
}
