//! One sequence of tokens and its caches.

use std::sync::Arc;

use aether_runtime::{AlignedBytes, Arg, ArgBuffer, ArgData, Session, State, check_memory};

use super::interface::FIXED;
use super::{EngineError, Model};
use aether_runtime::trace::Trace;

/// A sequence of tokens that grows at its end.
///
/// The caches are allocated in full and take memory as they fill. After the first call, a
/// [`Context::decode`] allocates nothing on the heap.
pub struct Context {
    model: Arc<Model>,
    session: Session,
    /// For one token, where the model has other code for that.
    single: Option<Session>,
    /// Whether the last run was one of `single`.
    was_single: bool,
    trace: Option<Trace>,
    caches: Vec<State>,
    args: ArgBuffer,
    tokens: AlignedBytes,
    rows: AlignedBytes,
    past: AlignedBytes,
    n_past: usize,
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
    /// When the model has slots, or the memory cannot be had.
    pub fn new(model: &Arc<Model>) -> Result<Context, EngineError> {
        let bounds = &model.interface;
        if bounds.slots.is_some() {
            return Err(EngineError::Form { expected: "without slots" });
        }
        let what = format!("the cache for a context of {} tokens", bounds.context);
        check_memory(&what, model.cache_bytes() as u64)?;
        let session = Session::with_pool(model.executable().clone(), model.pool().clone())?;
        let caches = (0..bounds.caches.len()).map(|i| session.state(bounds.fixed() + i));
        let caches = caches.collect::<Result<Vec<_>, _>>()?;
        let single = model.single().map(|s| session.sibling(s.clone())).transpose()?;
        Ok(Context {
            session,
            single,
            was_single: false,
            trace: None,
            caches,
            args: ArgBuffer::with_capacity(FIXED + bounds.caches.len()),
            tokens: AlignedBytes::zeroed(bounds.batch * 4),
            rows: AlignedBytes::zeroed(bounds.rows.min(bounds.batch) * 4),
            past: AlignedBytes::zeroed(4),
            n_past: 0,
            model: model.clone(),
        })
    }

    /// Times every op of the calls from now on ([`Context::trace`]).
    ///
    /// # Errors
    /// When the device has no times.
    pub fn profile(&mut self) -> Result<(), EngineError> {
        self.session.profile()?;
        if let Some(single) = &mut self.single {
            single.profile()?;
        }
        self.trace = Some(Trace::default());
        Ok(())
    }

    /// What was timed.
    pub fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens so far.
    pub fn n_past(&self) -> usize {
        self.n_past
    }

    /// Tokens that still fit.
    pub fn room(&self) -> usize {
        self.model.interface.context - self.n_past
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.n_past = 0;
    }

    /// Forgets all tokens but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.n_past = self.n_past.min(n);
    }

    fn check(&self, tokens: &[u32]) -> Result<(), EngineError> {
        let vocab = self.model.interface.vocab;
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(EngineError::Token { token, vocab });
        }
        let (past, new, context) = (self.n_past, tokens.len(), self.model.interface.context);
        match new <= self.room() {
            true => Ok(()),
            false if past == 0 => Err(EngineError::PromptTooLong { tokens: new, context }),
            false => Err(EngineError::ContextFull { past, new, context }),
        }
    }

    /// One call of the model. At least one token and one row, at most as many as the bounds.
    fn run(
        &mut self,
        tokens: &[u32],
        rows: impl ExactSizeIterator<Item = u32>,
    ) -> Result<(), EngineError> {
        let (n_tokens, n_rows) = ([tokens.len()], [rows.len()]);
        put(&mut self.tokens, tokens.iter().copied());
        put(&mut self.rows, rows);
        put(&mut self.past, std::iter::once(self.n_past as u32));
        let mut args = self.args.take();
        args.push(Arg {
            shape: &n_tokens,
            data: ArgData::Read(&self.tokens.as_slice()[..n_tokens[0] * 4]),
        });
        args.push(Arg { shape: &[], data: ArgData::Read(self.past.as_slice()) });
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
        let one = n_tokens[0] == 1 && n_rows[0] == 1;
        let session = match self.single.as_mut().filter(|_| one) {
            Some(single) => single,
            None => &mut self.session,
        };
        let outcome = session.run(&mut args);
        if let Some(trace) = &mut self.trace {
            trace.push(session.take_spans());
        }
        self.was_single = one && self.single.is_some();
        self.args.restore(args);
        outcome?;
        self.n_past += tokens.len();
        Ok(())
    }

    /// The logits after the last token of the last [`Context::prefill`] or [`Context::decode`].
    pub fn logits(&self) -> &[f32] {
        self.row(0)
    }

    /// Row `i` of the logits of the last call.
    fn row(&self, i: usize) -> &[f32] {
        let vocab = self.model.interface.vocab;
        let session = self.single.as_ref().filter(|_| self.was_single).unwrap_or(&self.session);
        let (logits, _) = session.result_f32(0);
        logits.get(i * vocab..(i + 1) * vocab).unwrap_or_default()
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
            self.run(batch, std::iter::once(batch.len() as u32 - 1))?;
        }
        Ok(Some(self.row(0)))
    }

    /// Appends one token; the logits after it.
    ///
    /// # Errors
    /// When it is not in the vocabulary, the context is full, or the run fails.
    pub fn decode(&mut self, token: u32) -> Result<&[f32], EngineError> {
        let tokens = [token];
        self.check(&tokens)?;
        self.run(&tokens, std::iter::once(0))?;
        Ok(self.row(0))
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
                self.run(&tokens[start..end], std::iter::once(0))?;
            } else {
                self.run(&tokens[start..end], now.iter().map(|&row| row - start as u32))?;
            }
            for (i, &row) in now.iter().enumerate() {
                each(row, self.row(i));
            }
            (start, left) = (end, later);
        }
        Ok(())
    }
}
