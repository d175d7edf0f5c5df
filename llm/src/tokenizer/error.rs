//! Why a vocabulary or a text was refused. Every message names the metadata key at fault.

use super::pretokenize;
use crate::gguf::GgufError;

/// What is wrong with a vocabulary, or with a text given to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A key is absent that every vocabulary has, or is of another type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A key that the tokenizer cannot do without is absent.
    #[error("{key}: missing from the model's metadata; the file holds no usable tokenizer")]
    Missing {
        /// The metadata key.
        key: &'static str,
    },
    /// The vocabulary has no token.
    #[error("tokenizer.ggml.tokens: the vocabulary is empty")]
    Empty,
    /// More tokens, merges or token bytes than ids and offsets can count.
    #[error("{key}: {what} ({count}) exceed the limit of {limit}")]
    TooMany {
        /// The metadata key.
        key: &'static str,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        count: u64,
        /// How many there may be.
        limit: u64,
    },
    /// `tokenizer.ggml.model` names an algorithm that is not implemented.
    #[error("tokenizer.ggml.model: '{0}' is not supported (supported: llama, gpt2)")]
    UnsupportedModel(String),
    /// `tokenizer.ggml.pre` names a pre-tokenizer that is not implemented.
    #[error(
        "tokenizer.ggml.pre: '{name}' is not supported (supported: {supported})",
        supported = pretokenize::supported_names().join(", ")
    )]
    UnsupportedPre {
        /// The name in the file.
        name: String,
    },
    /// An array that runs parallel to the tokens is shorter than the tokens.
    #[error("{key}: has {found} entries for the {expected} of tokenizer.ggml.tokens")]
    Length {
        /// The metadata key.
        key: &'static str,
        /// Number of tokens.
        expected: usize,
        /// Number of entries.
        found: usize,
    },
    /// Two ids have the same text.
    #[error("tokenizer.ggml.tokens: ids {first} and {second} are the same token {text}")]
    Duplicate {
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
        /// The text, escaped and shortened.
        text: String,
    },
    /// A token of type byte whose text is not `<0xNN>`.
    #[error("tokenizer.ggml.tokens[{id}]: {text} is of type byte but not of the form <0xNN>")]
    BadByteToken {
        /// The token.
        id: u32,
        /// The text, escaped and shortened.
        text: String,
    },
    /// A score that cannot be ordered.
    #[error("tokenizer.ggml.scores[{id}]: is not a number")]
    BadScore {
        /// The token.
        id: u32,
    },
    /// A key names a token that does not exist.
    #[error("{key}: token id {id} is outside the vocabulary of {tokens} tokens")]
    IdOutOfRange {
        /// The metadata key.
        key: &'static str,
        /// The id in the file.
        id: u64,
        /// Number of tokens.
        tokens: usize,
    },
    /// A token is to be added to every text, but the vocabulary does not say which.
    #[error("{flag}: is true, but {key} names no token")]
    NoSuchSpecial {
        /// The key that asks for the token.
        flag: &'static str,
        /// The key that should name it.
        key: &'static str,
    },
    /// The text is longer than positions can count.
    #[error("a text of {bytes} bytes is too long for the tokenizer (limit {limit})")]
    TextTooLong {
        /// Length of the text.
        bytes: usize,
        /// The longest text.
        limit: usize,
    },
}

/// A token's text for a message: escaped, and cut at 40 bytes.
pub(super) fn shown(text: &[u8]) -> String {
    let cut = &text[..text.len().min(40)];
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("\"{}{dots}\"", cut.escape_ascii())
}
