//! DRY, "don't repeat yourself" (p-e-w, text-generation-webui #5677): tokens that would make the
//! text repeat an earlier stretch of it pay the more, the longer the stretch is.

use std::collections::HashMap;
use std::sync::Arc;

use super::candidates::Candidates;
use crate::tokenizer::{EncodeOptions, Tokenizer};

/// Most tokens of a breaker after its first.
const MAX_TAIL: usize = 20;
/// Most bytes of a breaker.
const MAX_BREAKER: usize = 40;

/// Settings of DRY.
#[derive(Clone, Debug, PartialEq)]
pub struct DryOptions {
    /// Factor of the penalty; 0 for none.
    pub multiplier: f32,
    /// The penalty is multiplier · base^(length − allowed).
    pub base: f32,
    /// Repetitions below this length are free.
    pub allowed_length: usize,
    /// How many tokens back repetitions are looked for.
    pub last_n: usize,
    /// Where repetitions end: nothing is compared beyond the last of these texts.
    pub breakers: Arc<Breakers>,
}

impl Default for DryOptions {
    fn default() -> Self {
        DryOptions {
            multiplier: 0.0,
            base: 1.75,
            allowed_length: 2,
            last_n: usize::MAX,
            breakers: Arc::default(),
        }
    }
}

/// Texts as sequences of tokens: for a token that such a text can begin in, the tokens that must
/// follow it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Breakers(HashMap<u32, Vec<Vec<u32>>>);

impl Breakers {
    /// The texts that are used when none are asked for.
    pub const DEFAULT: [&str; 4] = ["\n", ":", "\"", "*"];

    /// All ways in which the texts can lie in tokens.
    pub fn new(texts: &[impl AsRef<str>], tokenizer: &Tokenizer) -> Breakers {
        let mut found: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
        for text in texts {
            let bytes = text.as_ref().as_bytes();
            let bytes = &bytes[..bytes.len().min(MAX_BREAKER)];
            if bytes.is_empty() {
                continue;
            }
            for token in 0..tokenizer.vocab_size() as u32 {
                let piece = tokenizer.token_bytes(token, true);
                if memchr::memmem::find(piece, bytes).is_some() {
                    found.entry(token).or_default().push(Vec::new());
                    continue;
                }
                for n in 1..bytes.len().min(piece.len() + 1) {
                    if !piece.ends_with(&bytes[..n]) {
                        continue;
                    }
                    let rest = tokenizer.encode(&bytes[n..], EncodeOptions::PLAIN);
                    let mut tail = rest.unwrap_or_default();
                    tail.truncate(MAX_TAIL);
                    let tails = found.entry(token).or_default();
                    if !tail.is_empty() && !tails.contains(&tail) {
                        tails.push(tail);
                    }
                }
            }
        }
        Breakers(found)
    }

    /// Tokens from the end of the text back to the end of the last breaker. `at(i)` is the token
    /// `i` before the last.
    fn limit(&self, n: usize, at: impl Fn(usize) -> u32) -> usize {
        for i in 0..n {
            let Some(tails) = self.0.get(&at(i)) else { continue };
            let fits = |tail: &&Vec<u32>| {
                tail.len() <= i && tail.iter().enumerate().all(|(k, &t)| t == at(i - k - 1))
            };
            if let Some(longest) = tails.iter().filter(fits).map(Vec::len).max() {
                return i - longest;
            }
        }
        n
    }

    fn is_single(&self, token: u32) -> bool {
        self.0.get(&token).is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }
}

/// The text so far, and what is penalised in it.
#[derive(Clone, Debug)]
pub(super) struct Dry {
    opts: DryOptions,
    tokens: Vec<u32>,
    lengths: Vec<usize>,
}

impl Dry {
    pub fn new(opts: DryOptions) -> Dry {
        Dry { opts, tokens: Vec::new(), lengths: Vec::new() }
    }

    pub fn is_on(&self) -> bool {
        self.opts.multiplier != 0.0 && self.opts.base >= 1.0 && self.opts.last_n > 0
    }

    pub fn accept(&mut self, token: u32) {
        if self.is_on() {
            self.tokens.push(token);
        }
    }

    /// For every token that would go on with a repetition, how long this is: the Z-algorithm on
    /// the reversed text.
    fn repetitions(&mut self) -> HashMap<u32, usize> {
        let n = self.tokens.len().min(self.opts.last_n);
        let mut found = HashMap::new();
        if n <= self.opts.allowed_length {
            return found;
        }
        let end = self.tokens.len();
        let tokens = &self.tokens;
        let at = |i: usize| tokens[end - 1 - i];
        let limit = self.opts.breakers.limit(n, at);
        if limit < self.opts.allowed_length {
            return found;
        }
        // lengths[k]: how long the text's end also ends k tokens earlier.
        let z = &mut self.lengths;
        z.clear();
        z.resize(n, 0);
        let (mut left, mut right) = (0, 0);
        for k in 1..n {
            let mut length = if k < right { z[k - left].min(right - k) } else { 0 };
            while k + length < n && at(length) == at(k + length) {
                length += 1;
            }
            z[k] = length;
            if k + length > right {
                (left, right) = (k, k + length);
            }
        }
        for (k, &length) in z.iter().enumerate().skip(1) {
            let length = length.min(limit);
            if length >= self.opts.allowed_length {
                // The token that followed the earlier occurrence.
                let longest = found.entry(at(k - 1)).or_insert(0);
                *longest = length.max(*longest);
            }
        }
        found
    }

    /// The candidates are all tokens, in their order.
    pub fn apply(&mut self, all: &mut Candidates) {
        let found = self.repetitions();
        let DryOptions { multiplier, base, allowed_length, .. } = self.opts;
        // Greater exponents overflow.
        let most = if base > 1.000_001 { (f32::MAX.ln() / base.ln()) as usize } else { usize::MAX };
        for (token, length) in found {
            if self.opts.breakers.is_single(token) {
                continue;
            }
            if let Some(c) = all.items.get_mut(token as usize) {
                let exponent = (length - allowed_length).min(most);
                c.logit -= multiplier * base.powf(exponent as f32);
            }
        }
        all.sorted = false;
    }
}
