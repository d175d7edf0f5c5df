//! One sequence of tokens and its caches.

use std::sync::Arc;

use aether_runtime::trace::Trace;
use aether_runtime::{AlignedBytes, Arg, ArgBuffer, ArgData, State, Traffic, check_memory};

use super::interface::FIXED;
use super::programs::Programs;
use super::speculate::{Speculator, Want};
use super::{EngineError, Model, Speculation};
use crate::sample::{Need, Scores};

/// A sequence of tokens that grows at its end.
///
/// The caches are allocated in full and take memory as they fill. After the first call, a
/// [`Context::decode`] allocates nothing on the heap.
pub struct Context {
    model: Arc<Model>,
    programs: Programs,
    trace: Option<Trace>,
    caches: Vec<State>,
    args: ArgBuffer,
    tokens: AlignedBytes,
    rows: AlignedBytes,
    /// How many tokens were there; in the form with a slot the position of each new one.
    past: AlignedBytes,
    /// In the form with a slot: zeros.
    slot_ids: AlignedBytes,
    /// The tokens so far.
    seen: Vec<u32>,
    speculator: Option<Speculator>,
}

pub(super) fn put(bytes: &mut AlignedBytes, values: impl Iterator<Item = u32>) {
    for (slot, value) in bytes.as_mut_slice().chunks_exact_mut(4).zip(values) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
}

impl Context {
    /// An empty sequence.
    ///
    /// # Errors
    /// When the model has several slots, or the memory cannot be had.
    pub fn new(model: &Arc<Model>) -> Result<Context, EngineError> {
        let bounds = &model.interface;
        if bounds.slots.is_some_and(|slots| slots > 1) {
            return Err(EngineError::Form { expected: "without slots, or with one" });
        }
        let per_token = bounds.slots.map_or(0, |_| bounds.batch * 4);
        let what = format!("the cache for a context of {} tokens", bounds.context);
        check_memory(&what, model.cache_bytes() as u64)?;
        let mut programs = Programs::new(model)?;
        let session = programs.whole();
        let caches = (0..bounds.caches.len()).map(|i| session.state(bounds.fixed() + i));
        let caches = caches.collect::<Result<Vec<_>, _>>()?;
        programs.ready(1, 1, Need::All)?;
        Ok(Context {
            programs,
            trace: None,
            caches,
            args: ArgBuffer::with_capacity(FIXED + bounds.caches.len()),
            tokens: AlignedBytes::zeroed(bounds.batch * 4),
            rows: AlignedBytes::zeroed(bounds.rows.min(bounds.batch) * 4),
            past: AlignedBytes::zeroed(per_token.max(4)),
            slot_ids: AlignedBytes::zeroed(per_token),
            seen: Vec::with_capacity(bounds.context),
            speculator: None,
            model: model.clone(),
        })
    }

    /// Times every op of the calls from now on ([`Context::trace`]).
    ///
    /// # Errors
    /// When the device has no times.
    pub fn profile(&mut self) -> Result<(), EngineError> {
        self.programs.profile()?;
        self.trace = Some(Trace::default());
        Ok(())
    }

    /// What was timed.
    pub fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref()
    }

    /// Lets tokens be proposed ahead by [`generate`](super::generate()) from now on: the text is the
    /// same, with fewer calls of the model.
    ///
    /// # Errors
    /// When the model was loaded without a slot, with fewer rows of logits than a proposal and one
    /// more, or for a GPU; and when the draft model does not fit it.
    pub fn speculate(&mut self, speculation: &Speculation) -> Result<(), EngineError> {
        let bounds = &self.model.interface;
        if bounds.slots.is_none() {
            return Err(EngineError::Form { expected: "with one slot" });
        }
        let (rows, most) = (bounds.rows.min(bounds.batch), speculation.tokens);
        if most >= rows {
            return Err(EngineError::DraftTokens { tokens: most, most: rows.saturating_sub(1) });
        }
        self.speculator = Some(Speculator::new(&self.model, speculation)?);
        Ok(())
    }

    /// Tokens that may follow those so far and `last`; none when nobody proposes.
    ///
    /// # Errors
    /// When the draft model cannot be run.
    pub(super) fn propose(
        &mut self,
        last: u32,
        prompt_len: usize,
        most: usize,
    ) -> Result<Vec<u32>, EngineError> {
        let Some(speculator) = &mut self.speculator else { return Ok(Vec::new()) };
        let room = self.model.interface.context - self.seen.len();
        let most = most.min(speculator.most()).min(room.saturating_sub(1));
        self.seen.push(last);
        let prompt_len = prompt_len.min(self.seen.len() - 1);
        let want = Want { slot: 0, tokens: &self.seen, prompt_len, most };
        let drafts = speculator.propose(&[want]);
        self.seen.pop();
        Ok(drafts?.into_iter().next().unwrap_or_default())
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens so far.
    pub fn n_past(&self) -> usize {
        self.seen.len()
    }

    /// Tokens that still fit.
    pub fn room(&self) -> usize {
        self.model.interface.context - self.seen.len()
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.seen.clear();
    }

    /// Forgets all tokens but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.seen.truncate(n);
    }

    fn check(&self, tokens: &[u32]) -> Result<(), EngineError> {
        let vocab = self.model.interface.vocab;
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(EngineError::Token { token, vocab });
        }
        let (past, new, context) = (self.seen.len(), tokens.len(), self.model.interface.context);
        match new <= self.room() {
            true => Ok(()),
            false if past == 0 => Err(EngineError::PromptTooLong { tokens: new, context }),
            false => Err(EngineError::ContextFull { past, new, context }),
        }
    }

    /// One call of the model. At least one token and one row, at most as many as the bounds. With
    /// `alone` every token takes the road of one that goes alone, which the form without a slot
    /// cannot do for several.
    fn run(
        &mut self,
        tokens: &[u32],
        rows: impl ExactSizeIterator<Item = u32>,
        alone: bool,
        need: Need,
    ) -> Result<(), EngineError> {
        let (n_tokens, n_rows) = ([tokens.len()], [rows.len()]);
        let program = self.programs.ready(n_tokens[0], n_rows[0], need)?;
        let (past, n) = (self.seen.len() as u32, tokens.len() as u32);
        let slotted = self.model.interface.slots.is_some();
        // Tokens at falling positions are no run: attention takes each of them alone.
        let at = |i: u32| if alone { n - 1 - i } else { i };
        put(&mut self.tokens, (0..n).map(|i| tokens[at(i) as usize]));
        put(&mut self.rows, rows.map(at));
        let mut args = self.args.take();
        args.push(Arg {
            shape: &n_tokens,
            data: ArgData::Read(&self.tokens.as_slice()[..n_tokens[0] * 4]),
        });
        if slotted {
            put(&mut self.past, (0..n).map(|i| past + at(i)));
            for values in [&self.past, &self.slot_ids] {
                let data = ArgData::Read(&values.as_slice()[..n_tokens[0] * 4]);
                args.push(Arg { shape: &n_tokens, data });
            }
        } else {
            put(&mut self.past, std::iter::once(past));
            args.push(Arg { shape: &[], data: ArgData::Read(self.past.as_slice()) });
        }
        args.push(Arg {
            shape: &n_rows,
            data: ArgData::Read(&self.rows.as_slice()[..n_rows[0] * 4]),
        });
        let shapes = self.model.interface.caches.iter().map(|(shape, _)| shape);
        args.extend(
            self.caches
                .iter_mut()
                .zip(shapes)
                .map(|(cache, shape)| Arg { shape, data: ArgData::State(cache) }),
        );
        let outcome = self.programs.run(program, &mut args);
        if let Some(trace) = &mut self.trace {
            trace.push(self.programs.last().take_spans());
        }
        self.args.restore(args);
        outcome?;
        self.seen.extend_from_slice(tokens);
        Ok(())
    }

    /// The logits after the last token of the last [`Context::prefill`] or [`Context::decode`];
    /// empty when that was [`Context::decode_for`] and gave the greatest alone.
    pub fn logits(&self) -> &[f32] {
        self.programs.logits(0)
    }

    /// The logits after the last token, or the greatest of them.
    pub fn scores(&self) -> Scores<'_> {
        self.scores_of(0)
    }

    /// Row `i` of what the last call gave.
    pub(super) fn scores_of(&self, i: usize) -> Scores<'_> {
        self.programs.scores(i)
    }

    /// Bytes that crossed to a GPU and back in the last call.
    pub fn traffic(&self) -> Traffic {
        self.programs.traffic()
    }

    /// Row `i` of the logits of the last call.
    fn row(&self, i: usize) -> &[f32] {
        self.programs.logits(i)
    }

    /// Appends tokens, in batches; the logits after the last one.
    ///
    /// # Errors
    /// When there are none, one is not in the vocabulary, they do not fit the context, or the run
    /// fails.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32], EngineError> {
        self.prefill_while(tokens, || true)?;
        Ok(self.row(0))
    }

    /// As [`Context::prefill`]; asks before each batch whether to go on. `None` when it was told
    /// not to: the batches so far are in the context.
    ///
    /// # Errors
    /// As [`Context::prefill`].
    pub fn prefill_while(
        &mut self,
        tokens: &[u32],
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<&[f32]>, EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        self.check(tokens)?;
        for batch in tokens.chunks(self.model.interface.batch) {
            if !go_on() {
                return Ok(None);
            }
            self.run(batch, std::iter::once(batch.len() as u32 - 1), false, Need::All)?;
        }
        Ok(Some(self.row(0)))
    }

    /// Appends one token; the logits after it.
    ///
    /// # Errors
    /// When it is not in the vocabulary, the context is full, or the run fails.
    pub fn decode(&mut self, token: u32) -> Result<&[f32], EngineError> {
        self.decode_for(token, Need::All)?;
        Ok(self.row(0))
    }

    /// As [`Context::decode`] for a sampler with this need: on a GPU the best tokens may then be
    /// chosen there.
    ///
    /// # Errors
    /// As [`Context::decode`].
    pub fn decode_for(&mut self, token: u32, need: Need) -> Result<Scores<'_>, EngineError> {
        let tokens = [token];
        self.check(&tokens)?;
        self.run(&tokens, std::iter::once(0), false, need)?;
        Ok(self.scores())
    }

    /// Makes ready what [`Context::decode_for`] runs, which else the first call does.
    ///
    /// # Errors
    /// When it cannot be compiled, or the memory cannot be had.
    pub fn prepare(&mut self, need: Need) -> Result<(), EngineError> {
        self.programs.ready(1, 1, need).map(drop)
    }

    /// Appends one token and the draft that may follow it, each with the bits of a token that goes
    /// alone; [`Context::scores_of`] then has the logits after each.
    ///
    /// # Errors
    /// As [`Context::decode`], and when there are more than the bounds of a call allow.
    pub(super) fn decode_drafted(&mut self, token: u32, draft: &[u32]) -> Result<(), EngineError> {
        let tokens = [&[token], draft].concat();
        self.check(&tokens)?;
        let bounds = &self.model.interface;
        let (n, batch, most_rows) = (tokens.len(), bounds.batch, bounds.rows);
        if n > batch.min(most_rows) {
            return Err(EngineError::Batch { tokens: n, rows: n, batch, most_rows });
        }
        self.run(&tokens, 0..n as u32, true, Need::All)
    }

    /// Appends tokens and hands out the logits after those at `rows`, which rise.
    ///
    /// # Errors
    /// As [`Context::prefill`], or when the rows do not rise or lie outside.
    pub fn logits_rows(
        &mut self,
        tokens: &[u32],
        rows: &[u32],
        mut each: impl FnMut(u32, &[f32]),
    ) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        self.check(tokens)?;
        let mut least = 0;
        for &row in rows {
            if row < least || row as usize >= tokens.len() {
                return Err(EngineError::Row { row, tokens: tokens.len() });
            }
            least = row + 1;
        }
        let most_rows = self.model.interface.rows.min(self.model.interface.batch);
        let (mut start, mut left) = (0, rows);
        while start < tokens.len() {
            let mut end = tokens.len().min(start + self.model.interface.batch);
            // A row too many ends the batch before it.
            if let Some(&row) = left.get(most_rows) {
                end = end.min(row as usize);
            }
            let (now, later) = left.split_at(left.partition_point(|&row| (row as usize) < end));
            if now.is_empty() {
                self.run(&tokens[start..end], std::iter::once(0), false, Need::All)?;
            } else {
                let rows = now.iter().map(|&row| row - start as u32);
                self.run(&tokens[start..end], rows, false, Need::All)?;
            }
            for (i, &row) in now.iter().enumerate() {
                each(row, self.row(i));
            }
            (start, left) = (end, later);
        }
        Ok(())
    }
}
