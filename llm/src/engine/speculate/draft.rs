//! Proposals of a smaller model with the same vocabulary.
//!
//! The draft model has a slot for every slot of the model that it helps, and keeps in it what it
//! has seen of that sequence. Before it proposes, the slot is cut back to what is still true and
//! the rest is read: a long prompt in pieces, one for each call, so that nobody waits for all of
//! it. Then it goes on greedily, all sequences together.

use std::sync::Arc;

use super::Want;
use crate::engine::{EngineError, Model, Piece, Slots};
use crate::sample::{argmax, log_sum_exp};
use crate::tokenizer::Tokenizer;

/// Tokens by which two vocabularies may differ in length: files pad them differently. llama.cpp's
/// number.
const LEN_SLACK: usize = 128;
/// Most tokens of prompts that are read before a proposal.
const READ: usize = 256;

/// A draft model with what it has seen.
pub(super) struct Drafter {
    slots: Slots,
    /// What is in each slot's cache.
    seen: Vec<Vec<u32>>,
    p_min: f32,
}

/// A sequence in a call.
struct Running {
    /// Index among the wants.
    index: usize,
    /// Row of its logits in the last call.
    row: usize,
}

fn piece<'a>(slot: usize, tokens: &'a [u32], rows: usize, alone: bool) -> Piece<'a> {
    Piece { slot, tokens, rows, alone }
}

/// Why a token of one vocabulary is not that of the other.
fn difference(target: &Tokenizer, draft: &Tokenizer) -> Option<String> {
    let (a, b) = (target.vocab_size(), draft.vocab_size());
    if a.abs_diff(b) > LEN_SLACK {
        return Some(format!("they have {a} and {b} tokens"));
    }
    let (bos, other) = (target.special_ids().bos, draft.special_ids().bos);
    if target.adds_bos() != draft.adds_bos() || (target.adds_bos() && bos != other) {
        return Some("texts begin with other tokens".to_owned());
    }
    let text = |tokenizer: &Tokenizer, id: u32| {
        String::from_utf8_lossy(tokenizer.token_bytes(id, true)).into_owned()
    };
    let differs = |&id: &u32| target.token_bytes(id, true) != draft.token_bytes(id, true);
    let id = (0..a.min(b) as u32).find(differs)?;
    Some(format!("token {id} is {:?} and {:?}", text(target, id), text(draft, id)))
}

impl Drafter {
    pub fn new(target: &Model, draft: &Arc<Model>, p_min: f32) -> Result<Drafter, EngineError> {
        let name = |model: &Model| model.gguf().path().display().to_string();
        if !(0.0..=1.0).contains(&p_min) {
            return Err(EngineError::DraftProbability(p_min));
        }
        if let Some(difference) = difference(target.tokenizer(), draft.tokenizer()) {
            let (target, draft) = (name(target), name(draft));
            return Err(EngineError::DraftVocab { target, draft, difference });
        }
        let slots = Slots::new(draft)?;
        if slots.count() < target.slots().unwrap_or(1) {
            return Err(EngineError::Form { expected: "with as many slots as the other" });
        }
        let seen = vec![Vec::new(); slots.count()];
        Ok(Drafter { slots, seen, p_min })
    }

    /// As [`Speculator::propose`](super::Speculator::propose).
    pub fn propose(&mut self, wants: &[Want<'_>]) -> Result<Vec<Vec<u32>>, EngineError> {
        let outcome = self.try_propose(wants);
        if outcome.is_err() {
            // How far the caches are is not known.
            for slot in 0..self.seen.len() {
                self.cut(slot, 0);
            }
        }
        outcome
    }

    fn cut(&mut self, slot: usize, n: usize) {
        self.seen[slot].truncate(n);
        self.slots.truncate(slot, n);
    }

    /// Runs pieces whose tokens are then in the caches.
    fn run(&mut self, pieces: &[Piece<'_>]) -> Result<(), EngineError> {
        self.slots.run(pieces)?;
        for piece in pieces {
            self.seen[piece.slot].extend_from_slice(piece.tokens);
        }
        Ok(())
    }

    fn try_propose(&mut self, wants: &[Want<'_>]) -> Result<Vec<Vec<u32>>, EngineError> {
        let mut drafts = vec![Vec::new(); wants.len()];
        let mut running = self.read(wants)?;
        while !running.is_empty() {
            let mut next = Vec::with_capacity(running.len());
            for Running { index, row } in running {
                let logits = self.slots.logits(row);
                let token = argmax(logits)?;
                let logit = f64::from(logits[token as usize]);
                if (logit - log_sum_exp(logits)?).exp() < f64::from(self.p_min) {
                    continue;
                }
                let (want, draft) = (&wants[index], &mut drafts[index]);
                draft.push(token);
                let room = self.slots.model().context_len() - self.slots.len(want.slot);
                if draft.len() < want.most && room > 0 {
                    next.push(index);
                }
            }
            let pieces: Vec<Piece<'_>> = next
                .iter()
                .filter_map(|&i| Some((wants[i].slot, drafts[i].last()?)))
                .map(|(slot, token)| piece(slot, std::slice::from_ref(token), 1, true))
                .collect();
            if pieces.is_empty() {
                break;
            }
            self.run(&pieces)?;
            running = next.iter().enumerate().map(|(row, &index)| Running { index, row }).collect();
        }
        Ok(drafts)
    }

    /// Brings the slots to the ends of their sequences; those that are there, with logits.
    fn read(&mut self, wants: &[Want<'_>]) -> Result<Vec<Running>, EngineError> {
        let model = self.slots.model().clone();
        let (vocab, context) = (model.vocab_len(), model.context_len());
        let batch = model.batch_len();
        let most_rows = model.max_rows();
        for want in wants {
            let pairs = self.seen[want.slot].iter().zip(want.tokens);
            let same = pairs.take_while(|(a, b)| a == b).count();
            // The last token goes through again, for its logits.
            self.cut(want.slot, same.min(want.tokens.len() - 1));
        }
        let fits = |want: &Want<'_>| {
            want.most > 0
                && want.tokens.len() < context
                && want.tokens.iter().all(|&token| (token as usize) < vocab)
        };
        // Prompts, whose tokens go together as they did in the other model.
        let mut left = READ.min(batch);
        for want in wants.iter().filter(|want| fits(want)) {
            let rest = want.prompt_len.saturating_sub(self.seen[want.slot].len());
            let mut n = rest.min(left);
            // A token that is left alone would take another road.
            if rest - n == 1 {
                n -= 1;
            }
            if n > 0 {
                let start = self.seen[want.slot].len();
                self.run(&[piece(want.slot, &want.tokens[start..start + n], 0, false)])?;
                left -= n;
            }
        }
        // What was generated since, each token alone.
        let mut running = Vec::new();
        let (mut pieces, mut tokens) = (Vec::new(), 0);
        for (index, want) in wants.iter().enumerate().filter(|(_, want)| fits(want)) {
            let start = self.seen[want.slot].len();
            let missing = &want.tokens[start..];
            if start < want.prompt_len || pieces.len() == most_rows || tokens == batch {
                continue;
            }
            // What came while no proposals were made may be long.
            let missing = &missing[..missing.len().min(batch - tokens)];
            tokens += missing.len();
            let whole = start + missing.len() == want.tokens.len();
            if whole {
                running.push(Running { index, row: running.len() });
            }
            pieces.push(piece(want.slot, missing, usize::from(whole), true));
        }
        if !pieces.is_empty() {
            self.run(&pieces)?;
        }
        Ok(running)
    }
}
