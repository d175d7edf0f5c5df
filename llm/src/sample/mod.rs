//! Choosing the next token from logits.
//!
//! A [`Sampler`] is a chain in llama.cpp's order: logit bias, penalties, DRY, a constraint, top-nσ,
//! top-k, typical, top-p, min-p, XTC, temperature with its dynamic range, and a draw from a seeded
//! generator; or mirostat in place of most of them. Each has its file. Temperature 0 takes the
//! greatest logit that is left, the first among equals. The same seed, settings and logits give the
//! same tokens on any machine. [`logprobs`] tells what the model itself thought, whatever the chain
//! did.
//!
//! A sampler whose chain begins by keeping the k greatest logits need not see the others: it says
//! so ([`Need`]), and chooses the same from these alone ([`Scores`]).

mod argmax;
mod candidates;
mod constraint;
mod dry;
mod logprobs;
mod min_p;
mod mirostat;
mod options;
mod penalties;
mod rng;
mod sampler;
mod scores;
mod temperature;
mod top_n_sigma;
mod top_p;
mod typical;
mod xtc;

pub use argmax::argmax;
pub use candidates::Candidate;
pub use constraint::{Constraint, TokenSet};
pub use dry::{Breakers, DryOptions};
pub use logprobs::{TokenLogprob, log_sum_exp, logprobs, logprobs_into};
pub use mirostat::{MirostatOptions, MirostatVersion};
pub use options::SamplerOptions;
pub use rng::Rng;
pub use sampler::Sampler;
pub use scores::{Need, Scores};

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
    /// The sampler was given fewer logits than it needs.
    #[error("only {found} of the logits are there, and the sampler needs more")]
    Unseen { found: usize },
    #[error("no token may come next: bias and constraint leave none")]
    NoneAllowed,
    #[error("the constraint cannot go on: {0}")]
    Constraint(String),
    #[error("{name} is {value}, but should be {expected}")]
    Option { name: &'static str, value: f32, expected: &'static str },
}
