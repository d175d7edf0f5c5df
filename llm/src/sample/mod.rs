//! Choosing the next token from logits.
//!
//! A [`Sampler`] is a chain: repetition penalty, top-k, top-p, min-p, temperature, and a draw from
//! a seeded generator. Temperature 0 takes the greatest logit, the first among equals. The same
//! seed, settings and logits give the same tokens on any machine. [`logprobs`] tells what the model
//! itself thought, whatever the chain did.

mod logprobs;
mod rng;
mod sampler;

pub use logprobs::{TokenLogprob, log_sum_exp, logprobs, logprobs_into};
pub use rng::Rng;
pub use sampler::{Sampler, SamplerOptions, argmax};

/// No token can be chosen, or the settings make no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// The model computed something that is no number: a broken file, or a bug.
    #[error("the logit of token {token} is not a number: the model's weights are broken")]
    NotANumber { token: usize },
    /// Infinite logits leave nothing to choose from.
    #[error("the greatest logit is {0}: the model's weights are broken")]
    NotFinite(f32),
    #[error("there are no logits to choose from")]
    Empty,
    #[error("{name} is {value}, but should be {expected}")]
    Option { name: &'static str, value: f32, expected: &'static str },
}
