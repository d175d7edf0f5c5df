//! Filling in the middle: what stands before and after a gap, as the model learnt to see it.
//!
//! The tokens are those that the file names, or those with the texts that models use. The order is
//! prefix, suffix, middle (Bavarian et al. 2022, PSM), other files before it as Qwen2.5-Coder has
//! them.

use super::App;
use super::error::ApiError;
use crate::tokenizer::{EncodeOptions, Tokenizer};

/// Control tokens around a gap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fim {
    prefix: u32,
    suffix: u32,
    middle: u32,
    /// Before the name of another file.
    file: Option<u32>,
}

/// Texts of the tokens: Qwen, StarCoder and CodeLlama.
const TEXTS: [[&str; 4]; 3] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>", ""],
];

impl Fim {
    /// Those of a vocabulary.
    ///
    /// # Errors
    /// `field` is to blame when there are none.
    pub fn of(app: &App, field: &str) -> Result<Fim, ApiError> {
        let tokenizer = app.model().tokenizer();
        let named = |name: &str| {
            let id = app.model().gguf().get_u32(&format!("tokenizer.ggml.fim_{name}_token_id"));
            id.ok().filter(|&id| (id as usize) < tokenizer.vocab_size())
        };
        let from_file = named("pre")
            .zip(named("suf"))
            .zip(named("mid"))
            .map(|((prefix, suffix), middle)| Fim { prefix, suffix, middle, file: named("sep") });
        let found =
            from_file.or_else(|| TEXTS.iter().find_map(|texts| Fim::find(tokenizer, texts)));
        found.ok_or_else(|| {
            let message = format!("`{field}`: this model has no tokens to fill in the middle");
            ApiError::unsupported(field, message)
        })
    }

    fn find(tokenizer: &Tokenizer, texts: &[&str; 4]) -> Option<Fim> {
        let id = |text: &str| tokenizer.special_token(text);
        Some(Fim {
            prefix: id(texts[0])?,
            suffix: id(texts[1])?,
            middle: id(texts[2])?,
            file: id(texts[3]),
        })
    }

    /// The prompt whose continuation is the middle. `others` are names and texts of other files.
    ///
    /// # Errors
    /// When a text is too long.
    pub fn prompt(
        self,
        app: &App,
        before: &[u32],
        after: &str,
        others: &[(String, String)],
    ) -> Result<Vec<u32>, ApiError> {
        let tokenizer = app.model().tokenizer();
        let plain = |text: &str| {
            tokenizer.encode(text.as_bytes(), EncodeOptions::PLAIN).map_err(ApiError::from)
        };
        let mut out = Vec::new();
        for (name, text) in others {
            out.extend(self.file);
            out.extend(plain(&format!("{name}\n{text}\n"))?);
        }
        out.push(self.prefix);
        out.extend(before);
        out.push(self.suffix);
        out.extend(plain(after)?);
        out.push(self.middle);
        Ok(out)
    }
}
