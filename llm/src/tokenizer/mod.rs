//! Tokenizers, made from a model's GGUF metadata.
//!
//! Two algorithms: SentencePiece BPE (`tokenizer.ggml.model = "llama"`, `spm`) and
//! byte-level BPE (`"gpt2"`, `bpe`) behind a pre-tokenizer (`pretokenize`). Ids equal
//! llama.cpp's on valid UTF-8; texts are bytes, and byte-level BPE gives back any bytes that
//! its vocabulary has a token for (others are dropped, as llama.cpp does). Encoding takes
//! time near to linear in the text, whatever the text. A vocabulary is checked when it is
//! taken, and no vocabulary or text makes this panic.

mod alphabet;
mod bpe;
mod error;
mod hash;
mod names;
mod pretokenize;
mod special;
mod spm;
mod stages;
mod stream;
mod unicode;
mod vocab;

use crate::gguf::Gguf;
use special::{Part, Special, Specials};
use vocab::{Model, Vocab, attr};

pub use error::TokenizerError;
pub use pretokenize::{PreTokenizer, supported_names as supported_pre_tokenizers};
pub use stream::Utf8Stream;
pub use vocab::{SpecialIds, VocabData};

/// The longest text that [`Tokenizer::encode`] takes, in bytes: positions are 32-bit, and a
/// space may become three bytes.
pub const MAX_TEXT: usize = (u32::MAX / 4) as usize;

/// How to encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Add BOS and EOS where the model asks for them.
    pub add_special: bool,
    /// Read the texts of control tokens, such as `<|im_start|>`, as those tokens.
    /// User-defined tokens are read always.
    pub parse_special: bool,
}

impl EncodeOptions {
    /// Plain text: nothing added, nothing parsed.
    pub const PLAIN: Self = Self { add_special: false, parse_special: false };
    /// A prompt: BOS added if the model has it, control tokens parsed.
    pub const PROMPT: Self = Self { add_special: true, parse_special: true };
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    specials: Specials,
    algorithm: Algorithm,
}

#[derive(Debug)]
enum Algorithm {
    Spm(Box<spm::Spm>),
    Bpe(Box<bpe::Bpe>),
}

impl Tokenizer {
    /// The tokenizer of a model file; a file that holds only a vocabulary is enough.
    ///
    /// # Errors
    /// What is missing, inconsistent or not supported, with the key.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        Self::new(&VocabData::from_gguf(gguf)?)
    }

    /// Checks a vocabulary and prepares it.
    ///
    /// # Errors
    /// What is missing, inconsistent or not supported, with the key.
    pub fn new(data: &VocabData) -> Result<Self, TokenizerError> {
        let (vocab, table) = Vocab::new(data)?;
        let special = |id: u32| {
            let attrs = vocab.attrs[id as usize];
            (attrs & attr::LITERAL != 0).then(|| Special {
                id,
                on_request: attrs & attr::HIDDEN != 0,
                strip_after: vocab.strip_after.contains(&id),
            })
        };
        let list = (0..vocab.len() as u32).filter_map(special).collect();
        let specials = Specials::new(list, |id| vocab.pieces.get(id));
        let algorithm = match vocab.model {
            Model::Spm => Algorithm::Spm(Box::new(spm::Spm::new(data, &vocab.ids, table))),
            Model::Bpe(known) => {
                let merges = data
                    .merges
                    .as_deref()
                    .ok_or(TokenizerError::Missing { key: vocab::KEY_MERGES })?;
                let find = |text: &[u8]| table.get(text, |id| data.tokens[id as usize]);
                Algorithm::Bpe(Box::new(bpe::Bpe::new(data, merges, &vocab, known, find)))
            }
        };
        Ok(Self { vocab, specials, algorithm })
    }

    /// The token ids of a text, which may be any bytes.
    ///
    /// # Errors
    /// [`TokenizerError::TextTooLong`] above [`MAX_TEXT`] bytes.
    pub fn encode(&self, text: &[u8], options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > MAX_TEXT {
            return Err(TokenizerError::TextTooLong { bytes: text.len(), limit: MAX_TEXT });
        }
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        out.extend(self.vocab.ids.bos.filter(|_| options.add_special && self.vocab.add_bos));
        let parts = self.specials.cut(text, options.parse_special, |id| self.vocab.pieces.get(id));
        match &self.algorithm {
            Algorithm::Spm(spm) => {
                // Only text at the start or after a special token gets the space.
                let mut prefix = self.vocab.add_space_prefix;
                for part in parts {
                    match part {
                        Part::Text(text) => spm.encode(text, prefix, &mut out),
                        Part::Token(id) => out.push(id),
                    }
                    prefix = self.vocab.add_space_prefix && matches!(part, Part::Token(_));
                }
            }
            Algorithm::Bpe(bpe) => {
                let mut scratch = bpe::Scratch::default();
                for part in parts {
                    match part {
                        Part::Text(text) => bpe.pre.split(text, |piece| {
                            bpe.encode(piece, &self.vocab, &mut scratch, &mut out);
                        }),
                        Part::Token(id) => out.push(id),
                    }
                }
            }
        }
        out.extend(self.vocab.ids.eos.filter(|_| options.add_special && self.vocab.add_eos));
        Ok(out)
    }

    /// The bytes of one token, which may be part of a character. Control and unknown tokens
    /// have bytes only if `special`; ids outside the vocabulary have none.
    pub fn token_bytes(&self, id: u32, special: bool) -> &[u8] {
        match self.vocab.attrs.get(id as usize) {
            Some(attrs) if special || attrs & attr::HIDDEN == 0 => self.vocab.pieces.get(id),
            _ => &[],
        }
    }

    /// The bytes of a sequence of tokens. The spaces that encoding put before a text and
    /// after the special tokens in it are taken off again.
    pub fn decode(&self, ids: &[u32], special: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        let mut prefixed = self.vocab.add_space_prefix;
        for &id in ids {
            let bytes = self.token_bytes(id, special);
            let literal = self.vocab.attrs.get(id as usize).is_none_or(|a| a & attr::LITERAL != 0);
            if literal {
                // Encoding begins anew after a special token that is in the text.
                prefixed |= self.vocab.add_space_prefix && !bytes.is_empty();
                out.extend_from_slice(bytes);
            } else {
                let bytes =
                    if prefixed { bytes.strip_prefix(b" ").unwrap_or(bytes) } else { bytes };
                prefixed = false;
                out.extend_from_slice(bytes);
            }
        }
        out
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// Tokens with a role: from the file, by their names, or the convention's defaults.
    pub fn special_ids(&self) -> SpecialIds {
        self.vocab.ids
    }

    /// Whether [`EncodeOptions::add_special`] puts BOS before a text.
    pub fn adds_bos(&self) -> bool {
        self.vocab.add_bos
    }

    /// Whether [`EncodeOptions::add_special`] puts EOS after a text.
    pub fn adds_eos(&self) -> bool {
        self.vocab.add_eos
    }

    /// Whether a token ends a generation.
    pub fn is_eog(&self, id: u32) -> bool {
        self.vocab.eog.binary_search(&id).is_ok()
    }

    /// The tokens that end a generation, in order.
    pub fn eog_ids(&self) -> &[u32] {
        &self.vocab.eog
    }

    /// Whether a token is a control token: never part of a text, shown only on request.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocab.attrs.get(id as usize).is_some_and(|a| a & attr::CONTROL != 0)
    }

    /// The special token with this text, for example `<|im_end|>`.
    pub fn special_token(&self, text: &str) -> Option<u32> {
        self.specials.ids().find(|&id| self.vocab.pieces.get(id) == text.as_bytes())
    }
}
