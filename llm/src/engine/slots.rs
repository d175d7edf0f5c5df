//! Many sequences of tokens, each in a slot of the caches, that go through the model together.

use std::sync::Arc;

use aether_runtime::{
    AlignedBytes, Arg, ArgBuffer, ArgData, RunError, State, Traffic, check_memory,
};

use super::context::put;
use super::interface::FIXED;
use super::programs::Programs;
use super::{EngineError, Model};
use crate::sample::{Need, Scores};

/// The least number of best tokens that are asked for: fewer would need programs of their own.
const LEAST_BEST: usize = 64;

/// What one call does to one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Which sequence. No slot comes twice in a call.
    pub slot: usize,
    /// What is appended to it.
    pub tokens: &'a [u32],
    /// For how many of the tokens, the last ones, logits are wanted.
    pub rows: usize,
    /// Every token takes the road of one that goes alone: its logits have the bits that a call of
    /// its own would give.
    pub alone: bool,
}

/// The caches of all slots, and the memory of calls.
///
/// Caches take memory as they fill. After the first call of its size, a call allocates nothing.
pub struct Slots {
    model: Arc<Model>,
    programs: Programs,
    caches: Vec<State>,
    args: ArgBuffer,
    tokens: AlignedBytes,
    positions: AlignedBytes,
    slot_ids: AlignedBytes,
    rows: AlignedBytes,
    lens: Vec<usize>,
}

impl Slots {
    /// Empty sequences.
    ///
    /// # Errors
    /// When the model was loaded without slots, or the memory cannot be had.
    pub fn new(model: &Arc<Model>) -> Result<Slots, EngineError> {
        let bounds = &model.interface;
        let slots = bounds.slots.ok_or(EngineError::Form { expected: "with slots" })?;
        let what = format!("the caches of {slots} contexts of {} tokens", bounds.context);
        check_memory(&what, model.cache_bytes() as u64)?;
        let mut programs = Programs::new(model)?;
        let session = programs.whole();
        let caches = (0..bounds.caches.len()).map(|i| session.state(bounds.fixed() + i));
        let caches = caches.collect::<Result<Vec<_>, _>>()?;
        // What most requests need is made now, not while they wait.
        let (few, best) = (model.forms.few(), Need::Best(LEAST_BEST));
        let sizes = model.forms.sizes().chain([bounds.batch]).map(|n| (n, best));
        for (tokens, need) in sizes.chain([(few, Need::All)]) {
            programs.ready(tokens, tokens.min(bounds.rows), need)?;
        }
        let per_token = || AlignedBytes::zeroed(bounds.batch * 4);
        Ok(Slots {
            programs,
            caches,
            args: ArgBuffer::with_capacity(FIXED + bounds.caches.len()),
            tokens: per_token(),
            positions: per_token(),
            slot_ids: per_token(),
            rows: AlignedBytes::zeroed(bounds.rows * 4),
            lens: vec![0; slots],
            model: model.clone(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lens.len()
    }

    /// Tokens of a sequence; 0 for a slot that does not exist.
    pub fn len(&self, slot: usize) -> usize {
        self.lens.get(slot).copied().unwrap_or(0)
    }

    /// Whether a sequence has no tokens.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.len(slot) == 0
    }

    /// Forgets all tokens of a sequence but the first `n`.
    pub fn truncate(&mut self, slot: usize, n: usize) {
        if let Some(len) = self.lens.get_mut(slot) {
            *len = n.min(*len);
        }
    }

    /// Makes the sequence `to` the first `n` tokens of `from`.
    ///
    /// # Errors
    /// When a slot does not exist, or a device fails.
    pub fn copy(&mut self, from: usize, to: usize, n: usize) -> Result<(), EngineError> {
        let slots = self.count();
        if let Some(&slot) = [from, to].iter().find(|&&s| s >= slots) {
            return Err(EngineError::Slot { slot, slots });
        }
        let n = n.min(self.lens[from]);
        let sizes = self.model.interface.caches.iter().map(|(_, bytes)| *bytes);
        for (cache, cache_bytes) in self.caches.iter_mut().zip(sizes) {
            let slot_bytes = cache_bytes / slots;
            let bytes = slot_bytes / self.model.interface.context * n;
            let start = from * slot_bytes;
            let copied = cache.copy_within(start..start + bytes, to * slot_bytes);
            copied.map_err(RunError::from)?;
        }
        self.lens[to] = n;
        Ok(())
    }

    fn check(&self, pieces: &[Piece<'_>]) -> Result<(usize, usize), EngineError> {
        let bounds = &self.model.interface;
        let (mut tokens, mut rows) = (0, 0);
        for (i, piece) in pieces.iter().enumerate() {
            let (slot, slots) = (piece.slot, self.count());
            let twice = pieces[..i].iter().any(|p| p.slot == slot);
            if slot >= slots || twice {
                return Err(EngineError::Slot { slot, slots });
            }
            if piece.tokens.is_empty() {
                return Err(EngineError::EmptyPrompt);
            }
            if let Some(&token) = piece.tokens.iter().find(|&&t| t as usize >= bounds.vocab) {
                return Err(EngineError::Token { token, vocab: bounds.vocab });
            }
            let (past, new, context) = (self.lens[slot], piece.tokens.len(), bounds.context);
            if new > context - past {
                return Err(EngineError::ContextFull { past, new, context });
            }
            if piece.rows > new {
                return Err(EngineError::Row { row: piece.rows as u32, tokens: new });
            }
            tokens += new;
            rows += piece.rows;
        }
        if tokens > bounds.batch || rows > bounds.rows {
            let (batch, most_rows) = (bounds.batch, bounds.rows);
            return Err(EngineError::Batch { tokens, rows, batch, most_rows });
        }
        match tokens {
            0 => Err(EngineError::EmptyPrompt),
            _ => Ok((tokens, rows)),
        }
    }

    /// Appends tokens to sequences. The logits wanted are then had by [`Slots::logits`], in the
    /// order of the pieces.
    ///
    /// # Errors
    /// When a slot does not exist or comes twice, a token is not in the vocabulary, a context is
    /// full, there are more tokens or rows than the model takes at once, or the run fails. Then no
    /// sequence has grown.
    pub fn run(&mut self, pieces: &[Piece<'_>]) -> Result<(), EngineError> {
        self.run_for(pieces, Need::All)
    }

    /// As [`Slots::run`] for samplers that need no more than this: on a GPU the best tokens may
    /// then be chosen there ([`Slots::scores`]).
    ///
    /// # Errors
    /// As [`Slots::run`].
    pub fn run_for(&mut self, pieces: &[Piece<'_>], need: Need) -> Result<(), EngineError> {
        let (n_tokens, n_rows) = self.check(pieces)?;
        let need = need.and(Need::Best(LEAST_BEST));
        let program = self.programs.ready(n_tokens, n_rows.max(1), need)?;
        // Tokens at falling positions are no run: attention takes each of them alone.
        let order = |p: &Piece<'_>| {
            let (n, alone) = (p.tokens.len(), p.alone);
            (0..n).map(move |i| if alone { n - 1 - i } else { i })
        };
        put(&mut self.tokens, pieces.iter().flat_map(|p| order(p).map(|i| p.tokens[i])));
        let lens = &self.lens;
        let positions = pieces.iter().flat_map(|p| {
            let past = lens[p.slot];
            order(p).map(move |i| (past + i) as u32)
        });
        put(&mut self.positions, positions);
        let ids = pieces.iter().flat_map(|p| std::iter::repeat_n(p.slot as u32, p.tokens.len()));
        put(&mut self.slot_ids, ids);
        let mut end = 0;
        let rows = pieces.iter().flat_map(|p| {
            let (n, alone) = (p.tokens.len(), p.alone);
            let start = end;
            end += n;
            (n - p.rows..n).map(move |i| (start + if alone { n - 1 - i } else { i }) as u32)
        });
        // The model gives one row at least.
        put(&mut self.rows, rows.chain((n_rows == 0).then_some(0)));
        let (n_tokens, n_rows) = ([n_tokens], [n_rows.max(1)]);
        let bytes = n_tokens[0] * 4;
        let mut args = self.args.take();
        for values in [&self.tokens, &self.positions, &self.slot_ids] {
            let data = ArgData::Read(&values.as_slice()[..bytes]);
            args.push(Arg { shape: &n_tokens, data });
        }
        let data = ArgData::Read(&self.rows.as_slice()[..n_rows[0] * 4]);
        args.push(Arg { shape: &n_rows, data });
        let shapes = self.model.interface.caches.iter().map(|(shape, _)| shape);
        args.extend(
            self.caches
                .iter_mut()
                .zip(shapes)
                .map(|(cache, shape)| Arg { shape, data: ArgData::State(cache) }),
        );
        let outcome = self.programs.run(program, &mut args);
        self.args.restore(args);
        outcome?;
        for piece in pieces {
            self.lens[piece.slot] += piece.tokens.len();
        }
        Ok(())
    }

    /// Row `i` of what the logits of the last call were computed from; empty when there is none.
    pub fn hidden(&self, i: usize) -> &[f32] {
        self.programs.hidden(i)
    }

    /// Row `i` of the logits of the last call; empty when there is none, or only the best are there.
    pub fn logits(&self, i: usize) -> &[f32] {
        self.programs.logits(i)
    }

    /// Row `i` of the logits of the last call, or the best of it.
    pub fn scores(&self, i: usize) -> Scores<'_> {
        self.programs.scores(i)
    }

    /// Bytes that crossed to a GPU and back in the last call.
    pub fn traffic(&self) -> Traffic {
        self.programs.traffic()
    }
}
