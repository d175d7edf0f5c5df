//! Cutting out special tokens before anything else looks at a text.
//!
//! The order is llama.cpp's: the longest token first, each claiming its occurrences from
//! left to right in what text is left, whatever a shorter token before it would have
//! claimed. So that thousands of special tokens cost little on a long text, a set of the
//! text's four-byte sequences is made first, and only tokens whose sequences are all in it
//! are searched for.

use memchr::memmem;

/// A token that is matched as text.
#[derive(Debug)]
pub(super) struct Special {
    /// The token.
    pub(super) id: u32,
    /// Control and unknown tokens are matched only on request, user-defined ones always.
    pub(super) on_request: bool,
    /// White space after it is dropped.
    pub(super) strip_after: bool,
}

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'t> {
    /// To be tokenized.
    Text(&'t [u8]),
    /// A special token.
    Token(u32),
}

/// The special tokens of a vocabulary, longest first.
#[derive(Debug, Default)]
pub(super) struct Specials {
    list: Vec<Special>,
}

impl Specials {
    /// Takes the special tokens; tokens of equal length keep the order of their ids.
    pub(super) fn new<'v>(mut list: Vec<Special>, text_of: impl Fn(u32) -> &'v [u8]) -> Self {
        list.retain(|s| !text_of(s.id).is_empty());
        list.sort_by_key(|s| (std::cmp::Reverse(text_of(s.id).len()), s.id));
        Self { list }
    }

    /// The tokens, longest first.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.list.iter().map(|s| s.id)
    }

    /// Cuts `text` into special tokens and text between them; no part is empty.
    pub(super) fn cut<'t, 'v>(
        &self,
        text: &'t [u8],
        on_request: bool,
        text_of: impl Fn(u32) -> &'v [u8],
    ) -> Vec<Part<'t>> {
        let mut parts = if text.is_empty() { vec![] } else { vec![Part::Text(text)] };
        let mut grams = None;
        for special in self.list.iter().filter(|s| on_request || !s.on_request) {
            let wanted = text_of(special.id);
            if wanted.len() > text.len() {
                continue;
            }
            if !grams.get_or_insert_with(|| Grams::of(text)).may_hold(wanted) {
                continue;
            }
            let finder = memmem::Finder::new(wanted);
            let is_hit = |p: &Part| matches!(p, Part::Text(t) if finder.find(t).is_some());
            if let Some(first) = parts.iter().position(is_hit) {
                let tail = parts.split_off(first);
                for part in tail {
                    match part {
                        Part::Text(text) => claim(text, &finder, special, &mut parts),
                        token => parts.push(token),
                    }
                }
            }
        }
        parts
    }
}

/// Cuts one stretch of text at every occurrence of one token.
fn claim<'t>(
    mut text: &'t [u8],
    finder: &memmem::Finder,
    special: &Special,
    parts: &mut Vec<Part<'t>>,
) {
    while let Some(at) = finder.find(text) {
        if at > 0 {
            parts.push(Part::Text(&text[..at]));
        }
        parts.push(Part::Token(special.id));
        text = &text[at + finder.needle().len()..];
        if special.strip_after {
            // C's isspace, which counts the vertical tab too.
            let blank = |b: &&u8| b.is_ascii_whitespace() || **b == 0x0b;
            text = &text[text.iter().take_while(blank).count()..];
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
}

/// A set of the four-byte sequences of a text, with false positives.
struct Grams {
    bits: Vec<u64>,
    shift: u32,
}

impl Grams {
    const LEN: usize = 4;

    fn of(text: &[u8]) -> Self {
        // Eight bits a byte keep the set sparse; at most 16 MB whatever the text.
        let bits = (text.len().saturating_mul(8)).next_power_of_two().clamp(1 << 10, 1 << 27);
        let mut set = Self { bits: vec![0; bits / 64], shift: 32 - bits.trailing_zeros() };
        for gram in text.windows(Self::LEN) {
            let (word, bit) = set.place(gram);
            set.bits[word] |= 1 << bit;
        }
        set
    }

    fn place(&self, gram: &[u8]) -> (usize, u32) {
        let gram = u32::from_le_bytes([gram[0], gram[1], gram[2], gram[3]]);
        let hash = gram.wrapping_mul(0x9e37_79b1) >> self.shift;
        (hash as usize / 64, hash % 64)
    }

    /// `false` only if the text does not contain `wanted`.
    fn may_hold(&self, wanted: &[u8]) -> bool {
        wanted.windows(Self::LEN).all(|gram| {
            let (word, bit) = self.place(gram);
            self.bits[word] >> bit & 1 == 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(tokens: &[(&'static str, bool, bool)], text: &str, on_request: bool) -> String {
        let text_of = |id: u32| tokens[id as usize].0.as_bytes();
        let list = (0u32..)
            .zip(tokens)
            .map(|(id, t)| Special { id, on_request: t.1, strip_after: t.2 })
            .collect();
        let parts = Specials::new(list, text_of).cut(text.as_bytes(), on_request, text_of);
        let show = |part: &Part| match part {
            Part::Text(t) => format!("{:?}", String::from_utf8_lossy(t)),
            Part::Token(id) => id.to_string(),
        };
        parts.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn tokens_are_cut_out_longest_first() {
        let tokens = [("<a>", true, false), ("<a><b>", true, false), ("  ", false, false)];
        let table = [
            ("", true, ""),
            ("x", true, "\"x\""),
            ("<a>", true, "0"),
            ("<a>", false, "\"<a>\""),
            ("x<a><b>y<a>", true, "\"x\" 1 \"y\" 0"),
            ("<a><a><b>", true, "0 1"),
            ("q   z", false, "\"q\" 2 \" z\""),
            ("<a>    <a", true, "0 2 2 \"<a\""),
        ];
        for (text, on_request, expected) in table {
            assert_eq!(cut(&tokens, text, on_request), expected, "{text:?}");
        }
    }

    #[test]
    fn a_longer_token_wins_over_a_shorter_one_before_it() {
        let tokens = [("ab", false, false), ("bcd", false, false)];
        assert_eq!(cut(&tokens, "abcdab", false), "\"a\" 1 0");
    }

    #[test]
    fn white_space_after_a_stripping_token_is_dropped() {
        let tokens = [("<e>", true, true), ("\n", false, false)];
        assert_eq!(cut(&tokens, "a <e> \n\u{b}\tb <e>", true), "\"a \" 0 \"b \" 0");
        assert_eq!(cut(&tokens, "<e>\n", true), "0");
        assert_eq!(cut(&tokens, "\n<e>", true), "1 0");
    }

    #[test]
    fn random_texts_are_cut_as_by_plain_search() {
        let tokens = [
            ("aab", false, false),
            ("ab", false, false),
            ("baab", false, false),
            ("cccc", false, false),
        ];
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..2000 {
            let text: String =
                (0..rng.usize(..30)).map(|_| char::from(b"abc"[rng.usize(..3)])).collect();
            // The longest first, each over the text that is left, marked by its number.
            let mut left = text.clone();
            for id in [2, 3, 0, 1] {
                left = left.replace(tokens[id].0, &format!("{id}"));
            }
            let parts = cut(&tokens, &text, false).replace(['"', ' '], "");
            assert_eq!(parts, left, "{text}");
        }
    }
}
