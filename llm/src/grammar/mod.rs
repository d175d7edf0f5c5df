//! Constrained output: what a grammar allows, token by token.
//!
//! llguidance (Microsoft) does the work: an Earley parser over derivatives of regular expressions,
//! which computes the set of tokens that may come next. Its limits (items, lexer states, steps)
//! bound what any grammar can cost; one that reaches them is an error, not a hang.

mod gbnf;

use std::sync::{Arc, Mutex};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::sample::{Constraint, TokenSet};
use crate::tokenizer::Tokenizer;

pub use gbnf::{GbnfError, to_lark};

/// Most bytes of a grammar or schema.
pub const MOST_BYTES: usize = 256 << 10;

/// A grammar cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GrammarError {
    #[error("the grammar has {0} bytes; at most {MOST_BYTES} are taken")]
    TooLong(usize),
    #[error("the grammar cannot be used: {0}")]
    Invalid(String),
    #[error("the grammar cannot be read: {0}")]
    Gbnf(#[from] GbnfError),
    #[error("the vocabulary has no token that ends a text, so no grammar can end")]
    NoEnd,
}

/// Makes constraints for one vocabulary.
pub struct Grammars {
    // The factory is not `Sync`: its parts are made to be cloned behind locks.
    factory: Mutex<ParserFactory>,
    vocab: usize,
}

impl Grammars {
    /// Prepares a vocabulary.
    ///
    /// # Errors
    /// When it has no token that ends a text.
    pub fn new(tokenizer: &Tokenizer) -> Result<Grammars, GrammarError> {
        let vocab = tokenizer.vocab_size();
        let words: Vec<Vec<u8>> = (0..vocab as u32)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id, true);
                match tokenizer.is_control(id) {
                    // So marked they match no text.
                    true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                    false => bytes.to_vec(),
                }
            })
            .collect();
        let ends = tokenizer.eog_ids();
        let &end = ends.first().ok_or(GrammarError::NoEnd)?;
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, end), &words).with_eos_tokens(ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|e| GrammarError::Invalid(e.to_string()))?;
        factory.quiet();
        Ok(Grammars { factory: Mutex::new(factory), vocab })
    }

    /// Any JSON object.
    ///
    /// # Errors
    /// None is expected.
    pub fn json_object(&self) -> Result<Box<dyn Constraint>, GrammarError> {
        self.schema(json!({ "type": "object" }))
    }

    /// JSON that a JSON Schema admits, without white space that says nothing.
    ///
    /// # Errors
    /// When the schema is none, or uses what is not supported: it is named.
    pub fn schema(&self, mut schema: Value) -> Result<Box<dyn Constraint>, GrammarError> {
        check_length(schema.to_string().len())?;
        if let Value::Object(map) = &mut schema {
            // Free white space lets small models write nothing else.
            let options = json!({
                "whitespace_flexible": false,
                "item_separator": ", ",
                "key_separator": ": ",
            });
            map.insert("x-guidance".to_owned(), options);
        }
        self.parser(TopLevelGrammar::from_json_schema(schema))
    }

    /// Text that a grammar in llguidance's variant of Lark admits.
    ///
    /// # Errors
    /// When it is none.
    pub fn lark(&self, text: &str) -> Result<Box<dyn Constraint>, GrammarError> {
        check_length(text.len())?;
        self.parser(TopLevelGrammar::from_lark(text.to_owned()))
    }

    /// Text that a grammar in llama.cpp's form (GBNF) admits.
    ///
    /// # Errors
    /// When it is none, or uses what is not supported.
    pub fn gbnf(&self, text: &str) -> Result<Box<dyn Constraint>, GrammarError> {
        check_length(text.len())?;
        // Longer than the original, within a factor that the length limits.
        self.parser(TopLevelGrammar::from_lark(to_lark(text)?))
    }

    fn parser(&self, grammar: TopLevelGrammar) -> Result<Box<dyn Constraint>, GrammarError> {
        let factory = self.factory.lock().unwrap_or_else(|broken| broken.into_inner());
        let matcher = Matcher::new(factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            let first = error.lines().next().unwrap_or_default();
            return Err(GrammarError::Invalid(first.to_owned()));
        }
        Ok(Box::new(Match { matcher, set: TokenSet::empty(self.vocab) }))
    }
}

fn check_length(bytes: usize) -> Result<(), GrammarError> {
    if bytes > MOST_BYTES { Err(GrammarError::TooLong(bytes)) } else { Ok(()) }
}

struct Match {
    matcher: Matcher,
    set: TokenSet,
}

impl Constraint for Match {
    fn allowed(&mut self) -> Result<&TokenSet, String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| e.to_string())?;
        let pairs = mask.as_slice().chunks(2);
        for (word, pair) in self.set.words_mut().iter_mut().zip(pairs) {
            let high = pair.get(1).copied().unwrap_or(0);
            *word = u64::from(pair[0]) | u64::from(high) << 32;
        }
        Ok(&self.set)
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.matcher.consume_token(token).map_err(|e| e.to_string())
    }
}
