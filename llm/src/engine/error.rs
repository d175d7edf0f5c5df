//! What can go wrong between a file and its text.

use std::path::PathBuf;

use aether_runtime::gpu::GpuError;
use aether_runtime::{RunError, RuntimeError};

use crate::arch::ArchError;
use crate::gguf::GgufError;
use crate::sample::SampleError;
use crate::tokenizer::TokenizerError;

/// A model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Arch(#[from] ArchError),
    #[error("{}: {source}", path.display())]
    Tokenizer { path: PathBuf, source: TokenizerError },
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// An edited module lacks the form that the engine calls.
    #[error("@main cannot be run as a language model: {0}")]
    Interface(String),
    #[error(
        "the prompt of {tokens} tokens is too large: it exceeds the available context size of \
         {context} tokens; shorten it or ask for a longer context"
    )]
    PromptTooLong { tokens: usize, context: usize },
    #[error("{past} tokens and {new} more do not fit the context, which holds {context}")]
    ContextFull { past: usize, new: usize, context: usize },
    #[error("the model must be loaded {expected} for this")]
    Form { expected: &'static str },
    #[error("the engine's thread could not be started: {0}")]
    Thread(String),
    #[error("slot {slot} is not among the {slots} of the model, or comes twice")]
    Slot { slot: usize, slots: usize },
    #[error(
        "a call of {tokens} tokens and {rows} rows of logits is beyond {batch} and {most_rows}"
    )]
    Batch { tokens: usize, rows: usize, batch: usize, most_rows: usize },
    #[error("the prompt has no tokens; there is nothing to continue")]
    EmptyPrompt,
    #[error("token {token} is not in the vocabulary, which has {vocab} tokens")]
    Token { token: u32, vocab: usize },
    #[error("row {row} is not wanted in rising order within {tokens} tokens")]
    Row { row: u32, tokens: usize },
    #[error("{tokens} drafted tokens are wanted; there should be between 1 and {most}")]
    DraftTokens { tokens: usize, most: usize },
    #[error("the least probability of drafted tokens is {0}, but should be between 0 and 1")]
    DraftProbability(f32),
    #[error(
        "{draft} cannot draft for {target}: their vocabularies differ ({difference}); take a \
         smaller model of the same family, or draft from the text itself (ngram)"
    )]
    DraftVocab { target: String, draft: String, difference: String },
    /// Rows have the same bits in any company on the CPU only.
    #[error("speculative decoding runs on the CPU only; load the model without a GPU")]
    DraftDevice,
    #[error("a context of {0} tokens is more than the 2^31 - 1 that positions can count")]
    ContextSize(usize),
}

impl EngineError {
    /// Whether the GPU is gone, and with it what was in its memory.
    pub fn is_device_lost(&self) -> bool {
        let mut run = match self {
            EngineError::Run(e) | EngineError::Runtime(RuntimeError::Run(e)) => e,
            EngineError::Runtime(RuntimeError::Gpu(e)) => return matches!(e, GpuError::Lost(_)),
            _ => return false,
        };
        while let RunError::Part { source, .. } = run {
            run = source;
        }
        matches!(run, RunError::Gpu(GpuError::Lost(_)))
    }
}
