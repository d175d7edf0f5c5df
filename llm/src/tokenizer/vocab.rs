//! The vocabulary: what a GGUF file says about its tokens, checked and laid out in arenas.
//!
//! Token bytes lie in one arena with 32-bit offsets, so that 150,000 tokens cost little
//! more than their bytes. Defaults for keys that a file leaves out are llama.cpp's.

use super::TokenizerError;
use super::alphabet;
use super::error::shown;
use super::hash::IdTable;
use super::names;
use super::pretokenize::{self, Known};
use crate::gguf::{Gguf, GgufError, Optional};

const KEY_TOKENS: &str = "tokenizer.ggml.tokens";
const KEY_SCORES: &str = "tokenizer.ggml.scores";
const KEY_TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const KEY_MERGES: &str = "tokenizer.ggml.merges";

/// The `tokenizer.ggml.*` metadata of a model, unchecked. `None` is an absent key.
#[derive(Clone, Debug, Default)]
pub struct VocabData<'a> {
    /// `tokenizer.ggml.model`: `llama` (SPM) or `gpt2` (byte-level BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`, for `gpt2`.
    pub pre: Option<String>,
    /// `general.name`; some token attributes hang on it.
    pub name: Option<String>,
    /// `tokenizer.ggml.tokens`, any bytes; the position is the id.
    pub tokens: Vec<&'a [u8]>,
    /// `tokenizer.ggml.scores`.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined,
    /// 5 unused, 6 byte.
    pub types: Option<Vec<i32>>,
    /// `tokenizer.ggml.merges`: two token texts with a space between.
    pub merges: Option<Vec<&'a [u8]>>,
    /// The keys that name one token; `u32::MAX` in a file is read as absent.
    pub ids: SpecialIds,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
}

impl<'a> VocabData<'a> {
    /// Reads the metadata of a file; token texts are borrowed from it.
    ///
    /// # Errors
    /// When the model's name or the tokens are missing, or a key has another type.
    pub fn from_gguf(gguf: &'a Gguf) -> Result<Self, GgufError> {
        let mut ids = SpecialIds::default();
        for (key, id) in ids.entries() {
            // Converters write "none" as -1.
            let none = gguf.get(key).is_some_and(|v| v.as_int() == Some(-1));
            *id = if none { None } else { gguf.get_u32(key).optional()? };
        }
        let name = gguf.get("general.name").and_then(|v| v.as_bytes());
        Ok(Self {
            model: gguf.get_str("tokenizer.ggml.model")?.to_owned(),
            pre: gguf.get_str("tokenizer.ggml.pre").optional()?.map(str::to_owned),
            name: name.map(|n| String::from_utf8_lossy(n).into_owned()),
            tokens: gguf.get_strings(KEY_TOKENS)?.collect(),
            scores: gguf.get_f32s(KEY_SCORES).optional()?,
            types: gguf.get_i32s(KEY_TYPES).optional()?,
            merges: gguf.get_strings(KEY_MERGES).optional()?.map(Iterator::collect),
            ids,
            add_bos: gguf.get_bool("tokenizer.ggml.add_bos_token").optional()?,
            add_eos: gguf.get_bool("tokenizer.ggml.add_eos_token").optional()?,
            add_space_prefix: gguf.get_bool("tokenizer.ggml.add_space_prefix").optional()?,
        })
    }
}

/// Tokens with a role, each from the key named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// `tokenizer.ggml.bos_token_id`: begins a text.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`: ends a text.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: ends a turn of a conversation.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`: ends a message of a turn.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`: stands for what has no token.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.fim_pre_token_id`: before the prefix, in fill-in-the-middle.
    pub fim_pre: Option<u32>,
    /// `tokenizer.ggml.fim_suf_token_id`: before the suffix.
    pub fim_suf: Option<u32>,
    /// `tokenizer.ggml.fim_mid_token_id`: before the middle.
    pub fim_mid: Option<u32>,
    /// `tokenizer.ggml.fim_pad_token_id`.
    pub fim_pad: Option<u32>,
    /// `tokenizer.ggml.fim_rep_token_id`: before a repository's name.
    pub fim_rep: Option<u32>,
    /// `tokenizer.ggml.fim_sep_token_id`: between files.
    pub fim_sep: Option<u32>,
}

impl SpecialIds {
    /// Every role with its key.
    fn entries(&mut self) -> [(&'static str, &mut Option<u32>); 12] {
        [
            ("tokenizer.ggml.bos_token_id", &mut self.bos),
            ("tokenizer.ggml.eos_token_id", &mut self.eos),
            ("tokenizer.ggml.eot_token_id", &mut self.eot),
            ("tokenizer.ggml.eom_token_id", &mut self.eom),
            ("tokenizer.ggml.unknown_token_id", &mut self.unk),
            ("tokenizer.ggml.padding_token_id", &mut self.pad),
            ("tokenizer.ggml.fim_pre_token_id", &mut self.fim_pre),
            ("tokenizer.ggml.fim_suf_token_id", &mut self.fim_suf),
            ("tokenizer.ggml.fim_mid_token_id", &mut self.fim_mid),
            ("tokenizer.ggml.fim_pad_token_id", &mut self.fim_pad),
            ("tokenizer.ggml.fim_rep_token_id", &mut self.fim_rep),
            ("tokenizer.ggml.fim_sep_token_id", &mut self.fim_sep),
        ]
    }
}

/// What a token is; a set of bits, because a name can add to what the file says.
pub(super) mod attr {
    pub const NORMAL: u8 = 1;
    pub const UNKNOWN: u8 = 2;
    pub const CONTROL: u8 = 4;
    pub const USER: u8 = 8;
    pub const UNUSED: u8 = 16;
    pub const BYTE: u8 = 32;
    /// Not shown unless asked for.
    pub const HIDDEN: u8 = UNKNOWN | CONTROL;
    /// Matched as text, and its bytes are its text.
    pub const LITERAL: u8 = HIDDEN | USER;
}

/// Byte strings, one after the other.
#[derive(Debug, Default)]
pub(super) struct Arena {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Arena {
    fn with_room(count: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(count) }
    }

    /// Appends a string; the caller keeps the total below 4 GiB.
    fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    /// The string of `id`, empty if there is none.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends.get(id - 1).copied().unwrap_or(0) };
        let end = self.ends.get(id).copied().unwrap_or(start);
        &self.bytes[start as usize..end as usize]
    }
}

/// Which algorithm a vocabulary is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Model {
    Spm,
    Bpe(Known),
}

/// A checked vocabulary.
#[derive(Debug)]
pub(super) struct Vocab {
    pub(super) model: Model,
    pub(super) attrs: Vec<u8>,
    /// What each token decodes to.
    pub(super) pieces: Arena,
    pub(super) ids: SpecialIds,
    /// Tokens that end a generation, in order.
    pub(super) eog: Vec<u32>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    pub(super) add_space_prefix: bool,
    /// Tokens after which white space is dropped.
    pub(super) strip_after: Vec<u32>,
}

impl Vocab {
    /// Checks `data`; also returns the table that finds tokens by their text in the file.
    pub(super) fn new(data: &VocabData) -> Result<(Self, IdTable), TokenizerError> {
        let model = match data.model.as_str() {
            "llama" => Model::Spm,
            "gpt2" => {
                let pre = data.pre.as_deref().filter(|p| !p.is_empty()).unwrap_or("default");
                let known = pretokenize::lookup(pre)
                    .ok_or_else(|| TokenizerError::UnsupportedPre { name: shown_name(pre) })?;
                Model::Bpe(known)
            }
            other => return Err(TokenizerError::UnsupportedModel(shown_name(other))),
        };
        check_sizes(data)?;
        let table = index(&data.tokens)?;
        let find = |text: &[u8]| table.get(text, |id| data.tokens[id as usize]);

        let mut ids = special_ids(data, model)?;
        let mut attrs: Vec<u8> = match &data.types {
            None => vec![attr::NORMAL; data.tokens.len()],
            Some(types) => types[..data.tokens.len()].iter().map(|t| attr_of(*t)).collect(),
        };
        names::resolve(&mut ids, &mut attrs, find);
        let eog = names::end_of_generation(&ids, &mut attrs, find);

        let (bos_default, prefix_default) = match model {
            Model::Spm => (true, true),
            Model::Bpe(known) => (known.add_bos, false),
        };
        let vocab = Self {
            model,
            pieces: pieces(data, model, &attrs)?,
            strip_after: strip_after(data, &attrs, find),
            attrs,
            ids,
            eog,
            add_bos: data.add_bos.unwrap_or(bos_default),
            add_eos: data.add_eos.unwrap_or(false),
            add_space_prefix: data.add_space_prefix.unwrap_or(prefix_default),
        };
        let flags = [
            (vocab.add_bos, ids.bos, "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id"),
            (vocab.add_eos, ids.eos, "tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id"),
        ];
        for (wanted, id, flag, key) in flags {
            if wanted && id.is_none() {
                return Err(TokenizerError::NoSuchSpecial { flag, key });
            }
        }
        Ok((vocab, table))
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.attrs.len()
    }
}

/// A name from a file, for a message.
fn shown_name(name: &str) -> String {
    name.chars().take(60).flat_map(char::escape_debug).collect()
}

fn check_sizes(data: &VocabData) -> Result<(), TokenizerError> {
    let limit_to = |key, what, count: usize, limit: u64| {
        let count = count as u64;
        if count > limit {
            return Err(TokenizerError::TooMany { key, what, count, limit });
        }
        Ok(())
    };
    let n = data.tokens.len();
    if n == 0 {
        return Err(TokenizerError::Empty);
    }
    limit_to(KEY_TOKENS, "tokens", n, i32::MAX as u64)?;
    let bytes = data.tokens.iter().map(|t| t.len()).sum();
    limit_to(KEY_TOKENS, "bytes of tokens", bytes, u64::from(u32::MAX))?;
    let merges = data.merges.as_ref().map_or(0, Vec::len);
    // Each merge may name three texts that are no tokens, which get numbers of their own.
    limit_to(KEY_MERGES, "merges", merges, i32::MAX as u64 / 4)?;

    let lengths = [
        (KEY_SCORES, data.scores.as_ref().map(Vec::len)),
        (KEY_TYPES, data.types.as_ref().map(Vec::len)),
    ];
    for (key, len) in lengths {
        if let Some(found) = len.filter(|&len| len < n) {
            return Err(TokenizerError::Length { key, expected: n, found });
        }
    }
    if let Some(scores) = &data.scores
        && let Some(id) = scores[..n].iter().position(|s| s.is_nan())
    {
        return Err(TokenizerError::BadScore { id: id as u32 });
    }
    Ok(())
}

/// Finds tokens by text. Empty texts match nothing and may repeat.
fn index(tokens: &[&[u8]]) -> Result<IdTable, TokenizerError> {
    let mut table = IdTable::with_room(tokens.len());
    for (id, text) in (0u32..).zip(tokens) {
        if text.is_empty() {
            continue;
        }
        if let Some(first) = table.insert(id, text, |id| tokens[id as usize]) {
            return Err(TokenizerError::Duplicate { first, second: id, text: shown(text) });
        }
    }
    Ok(table)
}

fn special_ids(data: &VocabData, model: Model) -> Result<SpecialIds, TokenizerError> {
    let tokens = data.tokens.len();
    let mut ids = data.ids;
    for (key, id) in ids.entries() {
        // Converters wrote "none" as -1, which reads as u32::MAX.
        *id = id.filter(|&id| id != u32::MAX);
        if let Some(bad) = id.filter(|&id| id as usize >= tokens) {
            return Err(TokenizerError::IdOutOfRange { key, id: u64::from(bad), tokens });
        }
    }
    let (bos, eos, unk) = match model {
        Model::Spm => (Some(1), Some(2), Some(0)),
        Model::Bpe(known) => (known.default_bos.then_some(11), Some(11), None),
    };
    let default = |id: Option<u32>| id.filter(|&id| (id as usize) < tokens);
    ids.bos = ids.bos.or(default(bos));
    ids.eos = ids.eos.or(default(eos));
    ids.unk = ids.unk.or(default(unk));
    Ok(ids)
}

fn attr_of(kind: i32) -> u8 {
    match kind {
        1 => attr::NORMAL,
        2 => attr::UNKNOWN,
        3 => attr::CONTROL,
        4 => attr::USER,
        5 => attr::UNUSED,
        6 => attr::BYTE,
        _ => 0,
    }
}

/// What each token decodes to.
fn pieces(data: &VocabData, model: Model, attrs: &[u8]) -> Result<Arena, TokenizerError> {
    let bytes = data.tokens.iter().map(|t| t.len()).sum();
    let mut arena = Arena::with_room(data.tokens.len(), bytes);
    for ((id, text), attrs) in (0u32..).zip(&data.tokens).zip(attrs) {
        if attrs & attr::LITERAL != 0 {
            arena.push(|out| out.extend_from_slice(text));
        } else if attrs & attr::NORMAL != 0 {
            match model {
                Model::Spm => arena.push(|out| unescape_spaces(text, out)),
                Model::Bpe(_) => arena.push(|out| {
                    // A text outside the alphabet can come only from a file that means it
                    // as it stands.
                    if !alphabet::decode(text, out) {
                        out.extend_from_slice(text);
                    }
                }),
            }
        } else if attrs & attr::BYTE != 0 {
            let byte = byte_of(text)
                .ok_or_else(|| TokenizerError::BadByteToken { id, text: shown(text) })?;
            arena.push(|out| out.push(byte));
        } else {
            arena.push(|_| ());
        }
    }
    // The allocation was for the longer forms.
    arena.bytes.shrink_to_fit();
    Ok(arena)
}

/// An arena of the texts as they are in the file.
pub(super) fn texts(data: &VocabData) -> Arena {
    let mut arena = Arena::with_room(data.tokens.len(), data.tokens.iter().map(|t| t.len()).sum());
    for text in &data.tokens {
        arena.push(|out| out.extend_from_slice(text));
    }
    arena
}

/// The byte that `<0xNN>` names.
fn byte_of(text: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    match text {
        [b'<', b'0', b'x', high, low, b'>'] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
        _ => None,
    }
}

/// Appends `text` with U+2581, which SPM writes for a space, made a space again.
fn unescape_spaces(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = memchr::memmem::find(rest, super::spm::SPACE) {
        out.extend_from_slice(&rest[..at]);
        out.push(b' ');
        rest = &rest[at + super::spm::SPACE.len()..];
    }
    out.extend_from_slice(rest);
}

/// Phi-3's special tokens swallow the white space after them, but for three.
fn strip_after(data: &VocabData, attrs: &[u8], find: impl Fn(&[u8]) -> Option<u32>) -> Vec<u32> {
    let name = data.name.as_deref().unwrap_or("").to_lowercase();
    if !(name.contains("phi-3") || name.contains("phi3")) {
        return Vec::new();
    }
    let keep: Vec<u32> =
        [&b"<unk>"[..], b"<s>", b"<|endoftext|>"].into_iter().filter_map(&find).collect();
    let literal = |id: &u32| attrs[*id as usize] & attr::LITERAL != 0;
    (0..attrs.len() as u32).filter(literal).filter(|id| !keep.contains(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_tokens_are_read_strictly() {
        let table: &[(&[u8], Option<u8>)] = &[
            (b"<0x00>", Some(0)),
            (b"<0xFF>", Some(255)),
            (b"<0xfa>", Some(250)),
            (b"<0x-1>", None),
            (b"<0x+1>", None),
            (b"<0x1>", None),
            (b"<0x100>", None),
            (b"<0xG0>", None),
            (b"0x00", None),
            (b"", None),
        ];
        for (text, expected) in table {
            assert_eq!(byte_of(text), *expected, "{text:?}");
        }
    }

    #[test]
    fn arena_gives_back_what_was_put_in() {
        let mut arena = Arena::default();
        for text in ["a", "", "bcd"] {
            arena.push(|out| out.extend_from_slice(text.as_bytes()));
        }
        let got: Vec<&[u8]> = (0..4).map(|id| arena.get(id)).collect();
        assert_eq!(got, [&b"a"[..], b"", b"bcd", b""]);
        assert_eq!(arena.get(u32::MAX), b"");
    }

    #[test]
    fn spaces_are_unescaped() {
        let mut out = Vec::new();
        unescape_spaces("▁a▁▁b".as_bytes(), &mut out);
        assert_eq!(out, b" a  b");
    }
}
