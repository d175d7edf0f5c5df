//! Which tokens of which requests go through the model next.
//!
//! Every request has a slot. A step takes the one pending token of each request that is being
//! continued, and then pieces of the prompts of the others, so that nobody stalls: prompts share
//! what a step has room for evenly, and while somebody is being continued they get no more than
//! [`Scheduler::chunk`] tokens together.
//!
//! The cache of a slot stays after its request: a later prompt that begins as it does, in the same
//! slot or another one, pays only for the rest.
//!
//! On the CPU a row of logits has the same bits whoever else is in the step (`llm/tests/slots.rs`
//! shows it), with one exception: a token that goes alone takes another road through attention than several
//! of one request. So prompts are never cut into pieces of one token, and an answer depends on
//! nothing but its request, apart from reuse ([`Request::reproducible`](super::Request)). A GPU has
//! other kernels for few tokens than for many: there company may round an answer differently.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Instant;

use super::request::{Event, Failure, Finish, Usage};
use super::sequence::{Sequence, Ticket};
use super::slots::{Piece, Slots};
use super::speculate::{Speculator, Want};
use super::{EngineError, Model, Speculation};
use crate::sample::Need;

/// Least tokens of a prompt in a step, when there are more.
const LEAST_PIECE: usize = 16;
/// A beginning in another slot must be so much longer to be copied.
const LEAST_COPY: usize = 16;

/// What is in a slot's cache.
#[derive(Default)]
struct Kept {
    tokens: Vec<u32>,
    /// So many of the first ones went through in pieces of two tokens or more.
    in_pieces: usize,
    /// When it was last used.
    used: u64,
}

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// Tokens in its cache.
    pub cached: usize,
    /// The request that is being answered in it.
    pub running: Option<SlotWork>,
}

/// How far a request in a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotWork {
    pub prompt_tokens: usize,
    /// Tokens that were chosen, and how many more may be.
    pub decoded: usize,
    pub remaining: usize,
}

/// A part of a step.
struct Part {
    /// Index among the running.
    index: usize,
    /// Pending tokens, and those of the draft.
    tokens: usize,
    rows: usize,
}

/// Gives another model with the same sizes when the GPU of one is lost; `None` to give up.
pub type Elsewhere = Box<dyn FnMut(&EngineError) -> Option<Result<Arc<Model>, EngineError>> + Send>;

/// What a request's end adds to the counts.
pub(super) type OnEnd<'a> = &'a mut dyn FnMut(Option<Usage>);

pub(super) struct Scheduler {
    slots: Slots,
    kept: Vec<Kept>,
    running: Vec<Sequence>,
    waiting: VecDeque<Ticket>,
    /// Most tokens of prompts in a step beside requests that are being continued.
    chunk: usize,
    /// Counts steps.
    turn: u64,
    speculator: Option<Speculator>,
    elsewhere: Elsewhere,
    /// Why nothing runs any more.
    lost: Option<String>,
}

impl Scheduler {
    pub fn new(
        model: &Arc<Model>,
        chunk: usize,
        speculation: Option<&Speculation>,
        elsewhere: Elsewhere,
    ) -> Result<Scheduler, EngineError> {
        let slots = Slots::new(model)?;
        Ok(Scheduler {
            kept: (0..slots.count()).map(|_| Kept::default()).collect(),
            slots,
            running: Vec::new(),
            waiting: VecDeque::new(),
            chunk: chunk.max(LEAST_PIECE),
            turn: 0,
            speculator: speculation.map(|s| Speculator::new(model, s)).transpose()?,
            elsewhere,
            lost: None,
        })
    }

    /// Why nothing runs any more, once the GPU is lost and nobody takes over.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Goes on with another model when the GPU is lost: what runs begins anew with empty caches and
    /// the tokens that it has. Without one everything is to fail ([`Scheduler::lost`]).
    fn move_on(&mut self, lost: &EngineError) {
        let model = match (self.elsewhere)(lost) {
            Some(Ok(model)) => Slots::new(&model),
            Some(Err(error)) => Err(error),
            None => return self.give_up(lost.to_string()),
        };
        match model {
            Ok(slots) => self.slots = slots,
            Err(error) => {
                return self.give_up(format!("{lost}; and the CPU: {error}"));
            }
        }
        self.kept.iter_mut().for_each(|kept| *kept = Kept::default());
        self.running.iter_mut().for_each(Sequence::restart);
    }

    fn give_up(&mut self, why: String) {
        tracing::error!(error = why, "nothing can be run any more");
        self.lost = Some(why);
    }

    pub fn push(&mut self, ticket: Ticket) {
        self.waiting.push_back(ticket);
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Tokens in the caches of running requests.
    pub fn cached_tokens(&self) -> usize {
        self.running.iter().map(|s| s.done).sum()
    }

    /// What every slot is doing.
    pub fn slot_states(&self) -> impl Iterator<Item = SlotState> {
        (0..self.kept.len()).map(|slot| {
            let idle = SlotState { cached: self.kept[slot].tokens.len(), running: None };
            let busy = self.running.iter().find(|s| s.slot == slot);
            busy.map_or(idle, |s| SlotState {
                cached: s.done,
                running: Some(SlotWork {
                    prompt_tokens: s.prompt_len,
                    decoded: s.generated(),
                    remaining: s.remaining(),
                }),
            })
        })
    }

    /// Fails everything that is there. The caches are forgotten.
    pub fn fail_all(&mut self, failure: &Failure, on_end: OnEnd<'_>) {
        for sequence in self.running.drain(..) {
            sequence.fail(failure.clone());
            on_end(None);
        }
        for ticket in self.waiting.drain(..) {
            let _ = ticket.events.send(Event::Failed(failure.clone()));
            on_end(None);
        }
        for slot in 0..self.kept.len() {
            self.forget(slot);
        }
    }

    /// Fails the running requests and begins with new memory, after a panic that left it in an
    /// unknown state. Waiting requests stay.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn recover(&mut self, failure: &Failure, on_end: OnEnd<'_>) -> Result<(), EngineError> {
        for sequence in self.running.drain(..) {
            sequence.fail(failure.clone());
            on_end(None);
        }
        self.kept.iter_mut().for_each(|kept| *kept = Kept::default());
        let model = self.slots.model().clone();
        self.slots = Slots::new(&model)?;
        Ok(())
    }

    fn forget(&mut self, slot: usize) {
        self.kept[slot] = Kept::default();
        self.slots.truncate(slot, 0);
    }

    /// Ends what nobody waits for, gives slots to who waits, and runs the model once; how many slots
    /// took part.
    pub fn step(&mut self, on_end: OnEnd<'_>) -> usize {
        self.turn += 1;
        self.sweep(on_end);
        self.admit(on_end);
        self.draft();
        let parts = self.plan();
        if parts.is_empty() {
            return 0;
        }
        let texts: Vec<_> =
            parts.iter().map(|part| self.running[part.index].next_tokens(part.tokens)).collect();
        let pieces: Vec<Piece<'_>> = parts
            .iter()
            .zip(&texts)
            .map(|(part, tokens)| {
                let s = &self.running[part.index];
                Piece { slot: s.slot, tokens, rows: part.rows, alone: !s.draft.is_empty() }
            })
            .collect();
        let whose = parts.iter().filter(|part| part.rows > 0);
        let need = whose.fold(Need::Best(1), |n, part| n.and(self.running[part.index].need()));
        if let Err(error) = self.slots.run_for(&pieces, need) {
            if error.is_device_lost() {
                self.move_on(&error);
                return 0;
            }
            tracing::error!(%error, "a step failed");
            let failure = Failure::Run(error.to_string());
            let failed: Vec<usize> = parts.iter().map(|part| part.index).collect();
            self.end(&failed, |s| s.fail(failure.clone()));
            failed.iter().for_each(|_| on_end(None));
            return 0;
        }
        self.harvest(&parts, on_end);
        parts.len()
    }

    /// Removes the requests at these indices, after a word to each; their slots forget what the
    /// cache may not hold.
    fn end(&mut self, indices: &[usize], mut each: impl FnMut(&mut Sequence)) {
        let mut sorted = indices.to_vec();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        for index in sorted {
            let mut sequence = self.running.swap_remove(index);
            each(&mut sequence);
            let kept = &mut self.kept[sequence.slot];
            kept.used = self.turn;
            self.slots.truncate(sequence.slot, kept.tokens.len());
        }
    }

    fn sweep(&mut self, on_end: OnEnd<'_>) {
        let now = Instant::now();
        let gone: Vec<usize> =
            (0..self.running.len()).filter(|&i| self.running[i].is_gone()).collect();
        self.end(&gone, |_| ());
        gone.iter().for_each(|_| on_end(None));
        let late: Vec<usize> =
            (0..self.running.len()).filter(|&i| self.running[i].is_late(now)).collect();
        self.end(&late, |s| on_end(Some(s.finish(Finish::Deadline))));
        self.waiting.retain(|ticket| {
            let late = ticket.request.deadline.is_some_and(|deadline| now >= deadline);
            if late {
                let _ = ticket.events.send(Event::Failed(Failure::Deadline));
            }
            let stays = !late && !ticket.events.is_closed();
            if !stays {
                on_end(None);
            }
            stays
        });
    }

    fn admit(&mut self, on_end: OnEnd<'_>) {
        while self.running.len() < self.slots.count() {
            let is_free = |slot: usize| self.running.iter().all(|s| s.slot != slot);
            let mut waiting = self.waiting.iter();
            // Who wants a slot of its own lets others pass until it is free.
            let next = waiting.position(|ticket| ticket.request.slot.is_none_or(is_free));
            let Some(ticket) = next.and_then(|at| self.waiting.remove(at)) else { return };
            let events = ticket.events.clone();
            let placed = self.place(&ticket).and_then(|(slot, cached)| {
                let sequence = Sequence::new(ticket, slot, cached)?;
                Ok(sequence)
            });
            match placed {
                Ok(sequence) => self.running.push(sequence),
                Err(failure) => {
                    let _ = events.send(Event::Failed(failure));
                    on_end(None);
                }
            }
        }
    }

    /// Tokens of a slot's cache that a prompt can use.
    fn shared(&self, slot: usize, ticket: &Ticket) -> usize {
        let request = &ticket.request;
        if request.prompt_logprobs.is_some() {
            return 0;
        }
        let kept = &self.kept[slot];
        let most = if request.reproducible { kept.in_pieces } else { kept.tokens.len() };
        // The logits after the last token are wanted, so it must go through again; and not alone,
        // for a call that is repeated should find what it found before.
        let most = most.min(request.prompt.len().saturating_sub(2));
        let pairs = kept.tokens[..most.min(kept.tokens.len())].iter().zip(&request.prompt);
        pairs.take_while(|(a, b)| a == b).count()
    }

    /// A free slot for a request, and how many of its tokens are in it.
    fn place(&mut self, ticket: &Ticket) -> Result<(usize, usize), Failure> {
        let wanted = ticket.request.slot;
        let is_free = |slot: &usize| {
            wanted.is_none_or(|wanted| wanted == *slot)
                && self.running.iter().all(|s| s.slot != *slot)
        };
        let all = 0..self.slots.count();
        // The longest shared beginning; among equals what was used least lately.
        let best = all.clone().filter(is_free).max_by_key(|&slot| {
            (self.shared(slot, ticket), std::cmp::Reverse(self.kept[slot].used))
        });
        let slot = best.ok_or(Failure::Run("no slot is free".to_owned()))?;
        let mut cached = self.shared(slot, ticket);
        let other = all
            .filter(|&other| other != slot)
            .map(|other| (self.shared(other, ticket), other))
            .max()
            .filter(|(shared, _)| *shared >= cached + LEAST_COPY);
        if let Some((shared, other)) = other {
            self.slots
                .copy(other, slot, shared)
                .map_err(|error| Failure::Run(error.to_string()))?;
            cached = shared;
            let from = &self.kept[other];
            let (tokens, in_pieces) = (from.tokens[..cached].to_vec(), from.in_pieces.min(cached));
            self.kept[slot] = Kept { tokens, in_pieces, used: self.turn };
        } else {
            let kept = &mut self.kept[slot];
            kept.tokens.truncate(cached);
            kept.in_pieces = kept.in_pieces.min(cached);
            self.slots.truncate(slot, cached);
        }
        Ok((slot, cached))
    }

    /// Gives the requests that are being continued tokens that may follow.
    fn draft(&mut self) {
        let Some(speculator) = &mut self.speculator else { return };
        let model = self.slots.model();
        let continued = self.running.iter().filter(|s| s.pending() == 1).count();
        // Every other request has its part of the step, and its row.
        let others = self.running.len() - continued;
        let batch = model.batch_len().saturating_sub(if others > 0 { self.chunk } else { 0 });
        let spare = batch.min(model.max_rows()).saturating_sub(self.running.len());
        let share = (spare / continued.max(1)).min(speculator.most());
        let (mut wants, mut indices) = (Vec::new(), Vec::new());
        for (index, s) in self.running.iter().enumerate() {
            let room = model.context_len() - s.done;
            let most = s.draft_most(share, room.saturating_sub(1));
            if s.pending() == 1 && most > 0 {
                let prompt_len = s.prompt_len.min(s.tokens.len() - 1);
                wants.push(Want { slot: s.slot, tokens: &s.tokens, prompt_len, most });
                indices.push(index);
            }
        }
        if wants.is_empty() {
            return;
        }
        // A panic in there is the draft's affair too: answers do not depend on it.
        let drafts = panic::catch_unwind(AssertUnwindSafe(|| speculator.propose(&wants)));
        match drafts {
            Ok(Ok(drafts)) => {
                for (index, draft) in indices.into_iter().zip(drafts) {
                    self.running[index].draft = draft;
                }
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "going on without drafts");
                self.speculator = None;
            }
            Err(payload) => {
                let failure = Failure::panicked(&*payload);
                tracing::error!(%failure, "going on without drafts");
                self.speculator = None;
            }
        }
    }

    fn plan(&self) -> Vec<Part> {
        let model = self.slots.model();
        let (mut left, mut rows_left) = (model.batch_len(), model.max_rows());
        let mut parts = Vec::with_capacity(self.running.len());
        for (index, s) in self.running.iter().enumerate() {
            let rows = 1 + s.draft.len();
            if s.pending() == 1 && left >= rows && rows_left >= rows {
                parts.push(Part { index, tokens: rows, rows });
                left -= rows;
                rows_left -= rows;
            }
        }
        let prompts: Vec<usize> =
            (0..self.running.len()).filter(|&i| self.running[i].pending() > 1).collect();
        if prompts.is_empty() {
            return parts;
        }
        let mut budget = if parts.is_empty() { left } else { left.min(self.chunk) };
        // Another one begins each time.
        let first = self.turn as usize % prompts.len();
        for (i, &index) in prompts[first..].iter().chain(&prompts[..first]).enumerate() {
            let s = &self.running[index];
            let share = (budget / (prompts.len() - i)).max(LEAST_PIECE).min(budget);
            let mut tokens = s.pending().min(share);
            let wants_all = s.prompt_logprobs.is_some();
            if wants_all {
                tokens = tokens.min(rows_left);
            }
            // A token that is left alone would take another road.
            if s.pending() - tokens == 1 {
                tokens -= 1;
            }
            let ends = tokens == s.pending();
            let rows = if wants_all { tokens } else { usize::from(ends) };
            if tokens < 2 || rows > rows_left {
                continue;
            }
            parts.push(Part { index, tokens, rows });
            budget -= tokens;
            rows_left -= rows;
        }
        parts
    }

    /// Takes in what a step computed.
    fn harvest(&mut self, parts: &[Part], on_end: OnEnd<'_>) {
        let model = self.slots.model().clone();
        let mut row = 0;
        let mut ended: Vec<(usize, Result<Finish, Failure>)> = Vec::new();
        for part in parts {
            let s = &mut self.running[part.index];
            let kept = &mut self.kept[s.slot];
            let start = s.done;
            let drafted = s.draft.len();
            if drafted == 0 {
                s.done += part.tokens;
                s.tell_progress();
                kept.tokens.extend_from_slice(&s.tokens[start..s.done]);
                if part.tokens > 1 && kept.in_pieces == start {
                    kept.in_pieces = s.done;
                }
            } else {
                s.begin_draft();
            }
            let (slots, tokenizer) = (&self.slots, model.tokenizer());
            let context = model.context_len();
            // A sampler or grammar that panics takes its own request down and no other.
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                if drafted > 0 {
                    return take_draft(s, &mut kept.tokens, slots, row, context);
                }
                let first = s.done - part.rows;
                (first..s.done).try_fold(None, |_, at| {
                    let scores = slots.scores(row + at - first);
                    if at + 1 < s.tokens.len() {
                        let logits = scores.all().unwrap_or_default();
                        return s.take_prompt_row(at, logits).map(|()| None);
                    }
                    let hidden = slots.hidden(row + at - first);
                    s.take_row((scores, hidden), tokenizer, context - s.done)
                })
            }));
            row += part.rows;
            if drafted > 0 {
                s.draft.clear();
                self.slots.truncate(s.slot, s.done);
            }
            let room = context - s.done;
            let outcome = outcome.unwrap_or_else(|payload| Err(Failure::panicked(&*payload)));
            match outcome {
                Ok(None) if room == 0 => {
                    if let Some(keep) = s.make_room(model.context_len()) {
                        kept.tokens.truncate(keep);
                        kept.in_pieces = kept.in_pieces.min(keep);
                        self.slots.truncate(s.slot, keep);
                    }
                }
                Ok(None) => {}
                Ok(Some(finish)) => ended.push((part.index, Ok(finish))),
                Err(failure) => ended.push((part.index, Err(failure))),
            }
        }
        // From the back, so that the other indices stay true.
        ended.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, outcome) in ended {
            self.end(&[index], |s| match &outcome {
                Ok(finish) => on_end(Some(s.finish(finish.clone()))),
                Err(failure) => {
                    s.fail(failure.clone());
                    on_end(None);
                }
            });
        }
    }
}

/// Takes in the rows of a request's pending token and its draft, in order, as long as what is chosen
/// is what was drafted; `row` is the first of them. `kept` are the tokens in the cache that are true.
fn take_draft(
    s: &mut Sequence,
    kept: &mut Vec<u32>,
    slots: &Slots,
    row: usize,
    context: usize,
) -> Result<Option<Finish>, Failure> {
    let tokenizer = slots.model().tokenizer();
    let mut accepted = 0;
    let outcome = loop {
        kept.push(s.tokens[s.done]);
        s.done += 1;
        let before = s.tokens.len();
        let at = row + accepted;
        let outcome = s.take_row((slots.scores(at), slots.hidden(at)), tokenizer, context - s.done);
        let right =
            s.draft.get(accepted).is_some_and(|&t| s.tokens.get(before).is_some_and(|&c| c == t));
        accepted += usize::from(right);
        if !right || !matches!(outcome, Ok(None)) {
            break outcome;
        }
    };
    s.end_draft(accepted);
    outcome
}
