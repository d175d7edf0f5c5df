//! What the engine is asked for, and what it tells while it answers.

use std::time::{Duration, Instant};

use super::speculate::Drafted;
use crate::sample::{Constraint, SamplerOptions, TokenLogprob};

/// A prompt to be continued.
pub struct Request {
    pub prompt: Vec<u32>,
    /// Most new tokens.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// What the continuation must match.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Texts that end the continuation and are not part of it.
    pub stop: Vec<String>,
    /// Go on after a token that ends a text.
    pub ignore_eos: bool,
    /// Show the texts of control tokens.
    pub show_special: bool,
    /// With every token its log-probability and those of so many of the most probable tokens.
    pub logprobs: Option<usize>,
    /// The same for every token of the prompt but the first.
    pub prompt_logprobs: Option<usize>,
    /// [`Request::logprobs`] of what the sampler left to choose from, in place of the model's.
    pub after_sampling: bool,
    /// Tell how far the prompt is ([`Event::Progress`]).
    pub progress: bool,
    /// The slot that must be used; it is waited for.
    pub slot: Option<usize>,
    /// When the context is full, forget its older half and go on.
    pub shift: bool,
    /// The prompt's embedding is wanted, and nothing else.
    pub embedding: bool,
    /// Most tokens that are proposed at once by speculative decoding, when the service does that; 0
    /// for none.
    pub draft_tokens: Option<usize>,
    /// Use only what gives the same bits as no reuse: the answer then depends on nothing but the
    /// request. Without it the whole shared beginning is used.
    pub reproducible: bool,
    /// When to give up.
    pub deadline: Option<Instant>,
}

impl Request {
    /// A request with everything else at rest.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Request {
        Request {
            prompt,
            max_tokens,
            sampler: SamplerOptions::default(),
            constraint: None,
            stop: Vec::new(),
            ignore_eos: false,
            show_special: false,
            logprobs: None,
            prompt_logprobs: None,
            after_sampling: false,
            progress: false,
            slot: None,
            shift: false,
            embedding: false,
            draft_tokens: None,
            reproducible: false,
            deadline: None,
        }
    }
}

/// A token that was chosen or given, and what the model thought.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    pub chosen: TokenLogprob,
    /// The most probable tokens, in falling order.
    pub top: Vec<TokenLogprob>,
}

/// What happens to a request, in this order: `Started`; `Progress`, and `Prompt` or `Embedding`, when
/// they were asked for; tokens, and `Done`; or `Failed` at any time.
#[derive(Clone, Debug)]
pub enum Event {
    /// A slot was found; so many tokens of the prompt were in it already.
    Started { cached: usize },
    /// So many tokens of the prompt are in the cache; the first is told before any is computed.
    Progress { processed: usize, usage: Usage },
    /// Of every token of the prompt but the first.
    Prompt(Vec<Logprobs>),
    /// What the model made of the prompt's last token, as long as 1.
    Embedding(Vec<f32>),
    /// The next token.
    Token {
        id: u32,
        /// The text that is certain with it. It may be empty: characters come when they are whole,
        /// and what may be the beginning of a stop text waits.
        text: String,
        logprobs: Option<Logprobs>,
        /// What was spent up to this token.
        usage: Usage,
    },
    /// The end. No event follows.
    Done(Done),
    /// The end. No event follows.
    Failed(Failure),
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the text, with this token.
    Eos(u32),
    /// This stop text came.
    StopText(String),
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// The time was over.
    Deadline,
}

/// How an answer ended.
#[derive(Clone, Debug)]
pub struct Done {
    pub finish: Finish,
    /// Text that waited for the end.
    pub text: String,
    pub usage: Usage,
}

/// What an answer cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in a cache already.
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    /// The slot that was used.
    pub slot: usize,
    /// The context was full and its older part forgotten ([`Request::shift`]).
    pub shifted: bool,
    /// What was proposed by speculative decoding.
    pub drafted: Drafted,
    /// From the request to its slot.
    pub queued: Duration,
    /// From the slot to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// A request that was taken could not be answered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The run failed or the engine's thread panicked. The engine goes on.
    #[error("the model could not be run: {0}")]
    Run(String),
    /// No token can be chosen.
    #[error("no token could be chosen: {0}")]
    Sample(String),
    #[error("the engine is shutting down")]
    Shutdown,
    #[error("the time for the request was over before it had a slot")]
    Deadline,
}

impl Failure {
    /// What a panic says.
    pub(super) fn panicked(payload: &(dyn std::any::Any + Send)) -> Failure {
        let text = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned());
        Failure::Run(format!("it panicked: {}", text.unwrap_or_else(|| "no reason".to_owned())))
    }
}
