//! One request while it is being answered.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::request::{Done, Event, Failure, Finish, Logprobs, Request, Usage};
use super::speculate::{DraftLen, Drafted};
use super::text::StopText;
use crate::sample::TokenLogprob;
use crate::sample::{
    Candidate, Constraint, Need, SampleError, Sampler, Scores, log_sum_exp, logprobs,
};
use crate::tokenizer::Tokenizer;

/// A request on its way to a slot.
pub(super) struct Ticket {
    pub request: Request,
    pub events: UnboundedSender<Event>,
    pub since: Instant,
}

/// A request in a slot.
pub(super) struct Sequence {
    pub slot: usize,
    /// The prompt and what was chosen since.
    pub tokens: Vec<u32>,
    /// How many of them are in the cache.
    pub done: usize,
    pub prompt_len: usize,
    pub prompt_logprobs: Option<usize>,
    prompt_probs: Vec<Logprobs>,
    after_sampling: bool,
    progress: bool,
    shift: bool,
    /// Tokens that were chosen.
    generated: usize,
    /// What may follow `tokens`, for the next step.
    pub draft: Vec<u32>,
    pub draft_len: DraftLen,
    draft_most: Option<usize>,
    drafted: Drafted,
    shifted: bool,
    cached: usize,
    max_tokens: usize,
    ignore_eos: bool,
    show_special: bool,
    logprobs: Option<usize>,
    embedding: bool,
    deadline: Option<Instant>,
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    text: StopText,
    events: UnboundedSender<Event>,
    since: Instant,
    started: Instant,
    first: Option<Instant>,
}

/// The log-probability of a token, and of the most probable ones.
fn probabilities(logits: &[f32], token: u32, top: usize) -> Result<Logprobs, SampleError> {
    let norm = log_sum_exp(logits)?;
    let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let chosen = TokenLogprob { token, logprob: (f64::from(logit) - norm) as f32 };
    Ok(Logprobs { chosen, top: logprobs(logits, top)? })
}

/// The same of what a sampler left to choose from, whose last choice the token was.
fn left(sampler: &Sampler, token: u32, top: usize) -> Logprobs {
    let of = |c: &Candidate| TokenLogprob { token: c.token, logprob: c.p.ln() };
    let mut all: Vec<TokenLogprob> =
        sampler.choices().iter().filter(|c| c.p > 0.0).map(of).collect();
    all.sort_by(|a, b| b.logprob.total_cmp(&a.logprob).then(a.token.cmp(&b.token)));
    let chosen = all.iter().find(|c| c.token == token).copied();
    let chosen = chosen.unwrap_or(TokenLogprob { token, logprob: 0.0 });
    all.truncate(top);
    Logprobs { chosen, top: all }
}

impl Sequence {
    /// A request in a slot that holds its first `cached` tokens.
    pub fn new(ticket: Ticket, slot: usize, cached: usize) -> Result<Sequence, Failure> {
        let Ticket { request, events, since } = ticket;
        let sampler = Sampler::new(request.sampler);
        let mut sampler = sampler.map_err(|e| Failure::Sample(e.to_string()))?;
        request.prompt.iter().for_each(|&token| sampler.accept(token));
        let sequence = Sequence {
            slot,
            done: cached,
            prompt_len: request.prompt.len(),
            tokens: request.prompt,
            prompt_logprobs: request.prompt_logprobs,
            prompt_probs: Vec::new(),
            after_sampling: request.after_sampling,
            progress: request.progress,
            shift: request.shift,
            generated: 0,
            draft: Vec::new(),
            draft_len: DraftLen::default(),
            draft_most: request.draft_tokens,
            drafted: Drafted::default(),
            shifted: false,
            cached,
            max_tokens: request.max_tokens,
            ignore_eos: request.ignore_eos,
            show_special: request.show_special,
            logprobs: request.logprobs,
            embedding: request.embedding,
            deadline: request.deadline,
            sampler,
            constraint: request.constraint,
            text: StopText::new(request.stop),
            events,
            since,
            started: Instant::now(),
            first: None,
        };
        sequence.tell(Event::Started { cached });
        sequence.tell_progress();
        Ok(sequence)
    }

    /// What of the logits its next token, or what is told about tokens, depends on.
    pub fn need(&self) -> Need {
        let told = self.logprobs.is_some() && !self.after_sampling;
        // Behind a draft's first token the sampler may need more than before it.
        if !self.draft.is_empty() {
            return Need::All;
        }
        if told || self.prompt_logprobs.is_some() || self.embedding || self.constraint.is_some() {
            return Need::All;
        }
        self.sampler.need()
    }

    /// Begins anew with an empty cache; what was chosen stays.
    pub fn restart(&mut self) {
        self.done = 0;
        self.draft.clear();
        self.prompt_probs.clear();
    }

    /// Tokens that are not in the cache yet.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.done
    }

    /// Nobody listens any more.
    pub fn is_gone(&self) -> bool {
        self.events.is_closed()
    }

    /// The time is over.
    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    fn tell(&self, event: Event) {
        // A listener that left is noticed before the next step.
        let _ = self.events.send(event);
    }

    /// Says how far the prompt is, when that was asked for.
    pub fn tell_progress(&self) {
        if self.progress && self.first.is_none() {
            let mut usage = self.usage(Instant::now());
            if self.done == self.cached {
                usage.prefill = Duration::ZERO;
            }
            self.tell(Event::Progress { processed: self.done, usage });
        }
    }

    /// Tokens that were chosen.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// Tokens that may still be chosen.
    pub fn remaining(&self) -> usize {
        self.max_tokens.saturating_sub(self.generated)
    }

    /// Most tokens of a proposal that are of use, when `most` may be made and `room` fit the context
    /// behind the pending token. None where nothing is chosen.
    pub fn draft_most(&self, most: usize, room: usize) -> usize {
        let most = self.draft_most.map_or(most, |own| own.min(most)).min(self.draft_len.get());
        // The last token that may be chosen needs no row of its own.
        most.min(room).min(self.remaining().saturating_sub(1))
    }

    /// What goes through the model next: pending tokens, and the draft behind the last.
    pub fn next_tokens(&self, tokens: usize) -> Cow<'_, [u32]> {
        let pending = &self.tokens[self.done..self.done + tokens - self.draft.len()];
        match self.draft.is_empty() {
            true => Cow::Borrowed(pending),
            false => Cow::Owned([pending, &self.draft].concat()),
        }
    }

    /// Notes that a draft goes through the model.
    pub fn begin_draft(&mut self) {
        self.drafted.drafts += 1;
        self.drafted.tokens += self.draft.len();
    }

    /// Notes that so many tokens of the draft were chosen. It is gone then.
    pub fn end_draft(&mut self, accepted: usize) {
        self.draft_len.learn(self.draft.len(), accepted);
        self.drafted.accepted += accepted;
        self.draft.clear();
    }

    /// Forgets the older half of a full context, so that the rest goes through the model again; how
    /// many tokens of it stay in the cache. `None` when the answer is to end there.
    pub fn make_room(&mut self, context: usize) -> Option<usize> {
        // What is left must be more than the two tokens that a piece has at least.
        if !self.shift || context < 8 {
            return None;
        }
        // The first token is often BOS, without which models go astray.
        let keep = 1;
        let rest = self.tokens.len() - context / 2;
        self.tokens.drain(keep..rest);
        self.done = keep;
        self.shifted = true;
        Some(keep)
    }

    fn usage(&self, now: Instant) -> Usage {
        let first = self.first.unwrap_or(now);
        Usage {
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached,
            completion_tokens: self.generated,
            slot: self.slot,
            shifted: self.shifted,
            drafted: self.drafted,
            queued: self.started - self.since,
            prefill: first - self.started,
            decode: now - first,
        }
    }

    /// Says how it ended.
    pub fn finish(&mut self, finish: Finish) -> Usage {
        let text = match finish {
            Finish::StopText(_) => String::new(),
            _ => self.text.finish(),
        };
        let usage = self.usage(Instant::now());
        self.tell(Event::Done(Done { finish, text, usage }));
        usage
    }

    /// Says that it failed.
    pub fn fail(&self, failure: Failure) {
        self.tell(Event::Failed(failure));
    }

    /// Takes the logits after token `at` of the prompt, which is not its last.
    pub fn take_prompt_row(&mut self, at: usize, logits: &[f32]) -> Result<(), Failure> {
        let (Some(top), Some(&next)) = (self.prompt_logprobs, self.tokens.get(at + 1)) else {
            return Ok(());
        };
        if self.first.is_some() {
            // A context that was shortened goes through again.
            return Ok(());
        }
        let row = probabilities(logits, next, top).map_err(|e| Failure::Sample(e.to_string()))?;
        self.prompt_probs.push(row);
        Ok(())
    }

    /// Chooses the next token from the logits after the last one; how it ended, if it did.
    pub fn take_row(
        &mut self,
        (scores, hidden): (Scores<'_>, &[f32]),
        tokenizer: &Tokenizer,
        room: usize,
    ) -> Result<Option<Finish>, Failure> {
        if self.first.is_none() {
            self.first = Some(Instant::now());
            if self.prompt_logprobs.is_some() {
                let probs = std::mem::take(&mut self.prompt_probs);
                self.tell(Event::Prompt(probs));
            }
        }
        if self.embedding {
            let square: f64 = hidden.iter().map(|&x| f64::from(x).powi(2)).sum();
            let scale = if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
            let scaled = hidden.iter().map(|&x| (f64::from(x) * scale) as f32).collect();
            self.tell(Event::Embedding(scaled));
            return Ok(Some(Finish::Length));
        }
        if self.max_tokens == 0 {
            return Ok(Some(Finish::Length));
        }
        let failed = |e: SampleError| Failure::Sample(e.to_string());
        let constraint = self.constraint.as_mut().map(|c| &mut **c as &mut dyn Constraint);
        let token = self.sampler.choose(scores, constraint).map_err(failed)?;
        let ends = tokenizer.is_eog(token);
        if ends && !self.ignore_eos {
            return Ok(Some(Finish::Eos(token)));
        }
        self.sampler.accept(token);
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token).map_err(Failure::Sample)?;
        }
        let logprobs = match self.logprobs {
            Some(top) if self.after_sampling => Some(left(&self.sampler, token, top)),
            Some(top) => {
                let logits = scores.all().unwrap_or_default();
                Some(probabilities(logits, token, top).map_err(failed)?)
            }
            None => None,
        };
        self.tokens.push(token);
        self.generated += 1;
        let (text, stop) = self.text.push(tokenizer.token_bytes(token, self.show_special));
        let usage = self.usage(Instant::now());
        self.tell(Event::Token { id: token, text, logprobs, usage });
        Ok(match stop {
            Some(stop) => Some(Finish::StopText(stop)),
            None if self.generated >= self.max_tokens => Some(Finish::Length),
            // The token itself needs a place before the next can be chosen.
            None if room == 0 && !self.shift => Some(Finish::Context),
            None => None,
        })
    }
}

impl std::fmt::Debug for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (slot, done, tokens) = (self.slot, self.done, self.tokens.len());
        write!(f, "Sequence {{ slot: {slot}, tokens: {done} of {tokens} }}")
    }
}
