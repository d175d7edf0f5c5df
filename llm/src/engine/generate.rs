//! Continuing a prompt, token by token.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::speculate::{DraftLen, Drafted};
use super::{Context, EngineError};
use crate::sample::{Need, Sampler, SamplerOptions, TokenLogprob, logprobs};

/// How to continue.
#[derive(Clone, Debug)]
pub struct GenOptions {
    /// Most new tokens.
    pub n: usize,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Go on after a token that ends a text.
    pub ignore_eos: bool,
    /// For every step the so many most probable tokens; 0 for none.
    pub logprobs: usize,
    /// Set from elsewhere to end before the next token, or the next batch of the prompt.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for GenOptions {
    fn default() -> Self {
        GenOptions {
            n: 128,
            sampler: SamplerOptions::default(),
            ignore_eos: false,
            logprobs: 0,
            stop: None,
        }
    }
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// As many tokens as were asked for.
    Length,
    /// This token, which ends a text and is not part of the continuation.
    Eos(u32),
    /// The context is full.
    Context,
    /// The stop flag was set.
    Stopped,
    /// The callback said so.
    Callback,
}

/// How long things took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    pub load: Duration,
    /// Tokens of the prompt, and the time until the logits after the last of them.
    pub prefill_tokens: usize,
    pub prefill: Duration,
    /// New tokens behind the first, and their time with sampling and callback.
    pub decode_tokens: usize,
    pub decode: Duration,
    /// What was proposed by speculative decoding ([`Context::speculate`]).
    pub drafted: Drafted,
}

fn rate(n: usize, time: Duration) -> f64 {
    if n == 0 { 0.0 } else { n as f64 / time.as_secs_f64().max(1e-9) }
}

impl Timings {
    /// Tokens of the prompt per second.
    pub fn prefill_per_second(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill)
    }

    /// New tokens per second, the first not counted: it comes with the prompt.
    pub fn decode_per_second(&self) -> f64 {
        rate(self.decode_tokens, self.decode)
    }
}

/// A continuation.
#[derive(Clone, Debug)]
pub struct GenOutput {
    pub tokens: Vec<u32>,
    /// For each token the most probable ones at its place, when they were asked for.
    pub logprobs: Vec<Vec<TokenLogprob>>,
    pub stop: StopReason,
    pub timings: Timings,
}

/// Gives another context of the same model when the GPU of one is lost; `None` to give up.
pub type Elsewhere<'a> = dyn FnMut(&EngineError) -> Option<Result<Context, EngineError>> + 'a;

/// Replaces a context whose GPU is lost.
///
/// # Errors
/// What failed, when that is not what happened or there is nowhere to go.
fn move_on(
    context: &mut Context,
    failed: EngineError,
    elsewhere: &mut Elsewhere<'_>,
) -> Result<(), EngineError> {
    let other = if failed.is_device_lost() { elsewhere(&failed) } else { None };
    match other {
        Some(other) => *context = other?,
        None => return Err(failed),
    }
    Ok(())
}

/// Rows of the last call, of a token and the draft behind it.
#[derive(Default)]
struct Ahead {
    draft: Vec<u32>,
    /// The row that is looked at: so many tokens of the draft were chosen.
    row: usize,
    len: DraftLen,
}

impl Ahead {
    /// Goes to the next row, when `token`, which was chosen, is what was drafted.
    fn take(&mut self, token: u32) -> bool {
        let right = self.draft.get(self.row) == Some(&token);
        self.row += usize::from(right);
        right
    }

    /// Forgets the rest of the draft, here and in the context.
    fn settle(&mut self, context: &mut Context, drafted: &mut Drafted) {
        let (tokens, accepted) = (self.draft.len(), self.row);
        context.truncate(context.n_past() - (tokens - accepted));
        if tokens > 0 {
            drafted.drafts += 1;
            drafted.tokens += tokens;
            drafted.accepted += accepted;
            self.len.learn(tokens, accepted);
        }
        self.draft.clear();
        self.row = 0;
    }

    /// Looks at the first row of a call with this draft.
    fn begin(&mut self, draft: Vec<u32>) {
        self.draft = draft;
    }
}

/// Appends `prompt` to the context and continues it. `on_token` is called with each token as it is
/// chosen, and may end the continuation; the token is kept.
///
/// The last token is not put into the context, so that it can begin the next prompt.
///
/// # Errors
/// When the prompt is empty or does not fit, a setting is out of range, or a run fails.
pub fn generate(
    context: &mut Context,
    prompt: &[u32],
    opts: &GenOptions,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<GenOutput, EngineError> {
    generate_or(context, prompt, opts, on_token, &mut |_| None)
}

/// As [`generate`]. When the GPU of a context that was empty is lost, `elsewhere` is told and may
/// give another context of the same model: the prompt and the tokens so far go through it, and the
/// continuation goes on where it was.
///
/// # Errors
/// As [`generate`], and those of `elsewhere`.
pub fn generate_or(
    context: &mut Context,
    prompt: &[u32],
    opts: &GenOptions,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    elsewhere: &mut Elsewhere<'_>,
) -> Result<GenOutput, EngineError> {
    // What was in the context before is not known here.
    let before = context.n_past();
    let fresh = before == 0;
    let elsewhere: &mut Elsewhere<'_> = if fresh { elsewhere } else { &mut |_| None };
    let mut sampler = Sampler::new(opts.sampler.clone())?;
    prompt.iter().for_each(|&token| sampler.accept(token));
    let model = context.model().clone();
    let stopped = || opts.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed));
    let mut out = GenOutput {
        tokens: Vec::with_capacity(opts.n.min(context.room())),
        logprobs: Vec::new(),
        stop: StopReason::Length,
        timings: Timings { load: model.load_time(), ..Timings::default() },
    };
    // Log-probabilities need the sum over all.
    let need = |sampler: &Sampler| if opts.logprobs > 0 { Need::All } else { sampler.need() };
    if let Err(lost) = context.prepare(need(&sampler)) {
        move_on(context, lost, elsewhere)?;
    }
    let start = Instant::now();
    let whole = match context.prefill_while(prompt, || !stopped()) {
        Ok(logits) => logits.is_some(),
        Err(lost) => {
            move_on(context, lost, elsewhere)?;
            context.prefill_while(prompt, || !stopped())?.is_some()
        }
    };
    out.timings.prefill = start.elapsed();
    if !whole {
        out.stop = StopReason::Stopped;
        return Ok(out);
    }
    out.timings.prefill_tokens = prompt.len();
    let start = Instant::now();
    let mut ahead = Ahead::default();
    out.stop = loop {
        if out.tokens.len() == opts.n {
            break StopReason::Length;
        }
        if let Some(&last) = out.tokens.last() {
            if stopped() {
                break StopReason::Stopped;
            }
            if !ahead.take(last) {
                ahead.settle(context, &mut out.timings.drafted);
                if context.room() == 0 {
                    break StopReason::Context;
                }
                let most = (opts.n - out.tokens.len() - 1).min(ahead.len.get());
                let draft = context.propose(last, before + prompt.len(), most)?;
                let step = match draft.is_empty() {
                    true => context.decode_for(last, need(&sampler)).map(|_| ()),
                    false => context.decode_drafted(last, &draft),
                };
                ahead.begin(draft);
                if let Err(lost) = step {
                    move_on(context, lost, elsewhere)?;
                    let all = [prompt, &out.tokens].concat();
                    if context.prefill_while(&all, || !stopped())?.is_none() {
                        break StopReason::Stopped;
                    }
                }
            }
            out.timings.decode_tokens += 1;
        }
        let scores = context.scores_of(ahead.row);
        let token = sampler.choose(scores, None)?;
        if let Some(logits) = scores.all().filter(|_| opts.logprobs > 0) {
            out.logprobs.push(logprobs(logits, opts.logprobs)?);
        }
        if !opts.ignore_eos && model.tokenizer().is_eog(token) {
            out.logprobs.truncate(out.tokens.len());
            break StopReason::Eos(token);
        }
        sampler.accept(token);
        out.tokens.push(token);
        if on_token(token).is_break() {
            break StopReason::Callback;
        }
    };
    ahead.settle(context, &mut out.timings.drafted);
    out.timings.decode = start.elapsed();
    Ok(out)
}
