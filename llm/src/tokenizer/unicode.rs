//! Character classes that the pre-tokenizers split by: `\p{L}`, `\p{N}`, `\p{P}`, `\p{M}`, `\p{S}`,
//! `\s`.
//!
//! Exactly the regular-expression classes (the tables of `regex-syntax`), as of Unicode
//! 15.1: that is the version of the peers that convert and run these models, and a letter
//! assigned later must not split a text in another way than they do. Built once, into a
//! two-level table of some 40 KB.

use std::collections::HashMap;
use std::sync::OnceLock;

use regex_syntax::hir::{Class, HirKind};

/// `\p{L}`.
pub(super) const LETTER: u8 = 1;
/// `\p{N}`.
pub(super) const NUMBER: u8 = 2;
/// `\s`.
pub(super) const SPACE: u8 = 4;
/// `\p{P}`.
pub(super) const PUNCT: u8 = 8;
/// `\p{M}`.
pub(super) const MARK: u8 = 16;
/// `\p{S}`.
pub(super) const SYMBOL: u8 = 32;

/// The class a byte that is not part of valid UTF-8 gets: none, as U+FFFD's.
const INVALID: u8 = 0;

const BLOCK: usize = 256;
const BLOCKS: usize = 0x11_0000 / BLOCK;

/// The class of every character.
pub(super) struct Classes {
    ascii: [u8; 128],
    /// Which of `blocks` holds the 256 characters of each block number.
    index: Vec<u16>,
    blocks: Vec<[u8; BLOCK]>,
}

impl Classes {
    /// The table, built at first use.
    pub(super) fn get() -> &'static Self {
        static TABLE: OnceLock<Classes> = OnceLock::new();
        TABLE.get_or_init(Self::build)
    }

    fn build() -> Self {
        let mut ranges: Vec<(u32, u32, u8)> = Vec::new();
        let classes = [
            (r"[\p{L}&&\p{age=15.1}]", LETTER),
            (r"[\p{N}&&\p{age=15.1}]", NUMBER),
            (r"[\p{P}&&\p{age=15.1}]", PUNCT),
            (r"[\p{M}&&\p{age=15.1}]", MARK),
            (r"[\p{S}&&\p{age=15.1}]", SYMBOL),
            (r"\s", SPACE),
        ];
        for (pattern, class) in classes {
            let hir = regex_syntax::parse(pattern);
            if let Ok(HirKind::Class(Class::Unicode(set))) = hir.as_ref().map(|h| h.kind()) {
                ranges.extend(set.iter().map(|r| (r.start() as u32, r.end() as u32, class)));
            }
        }
        ranges.sort_unstable();

        let (mut index, mut blocks) = (Vec::with_capacity(BLOCKS), Vec::new());
        let mut known: HashMap<[u8; BLOCK], u16> = HashMap::new();
        let mut first = 0;
        for number in 0..BLOCKS {
            let (low, high) = ((number * BLOCK) as u32, (number * BLOCK + BLOCK - 1) as u32);
            let mut block = [0; BLOCK];
            while first < ranges.len() && ranges[first].1 < low {
                first += 1;
            }
            // Ranges of different classes are disjoint, so their ends are sorted as well.
            for &(start, end, class) in ranges[first..].iter().take_while(|r| r.0 <= high) {
                for c in start.max(low)..=end.min(high) {
                    block[(c - low) as usize] |= class;
                }
            }
            let next = blocks.len() as u16;
            index.push(*known.entry(block).or_insert_with(|| {
                blocks.push(block);
                next
            }));
        }
        let mut ascii = [0; 128];
        ascii.copy_from_slice(&blocks[usize::from(index[0])][..128]);
        Self { ascii, index, blocks }
    }

    /// The class of a character.
    pub(super) fn of(&self, c: u32) -> u8 {
        let block = self.index[c as usize / BLOCK];
        self.blocks[usize::from(block)][c as usize % BLOCK]
    }

    /// Class and length in bytes of the character at the start of `text`, which is not empty.
    /// A byte that begins no valid character stands for itself, with no class.
    #[inline]
    pub(super) fn first(&self, text: &[u8]) -> (u8, usize) {
        match text[0] {
            b @ 0..=0x7f => (self.ascii[usize::from(b)], 1),
            _ => match decode(text) {
                Some((c, len)) => (self.of(c), len),
                None => (INVALID, 1),
            },
        }
    }
}

/// Length in bytes of the character at the start of `text`, which is not empty; 1 for a byte
/// that begins no valid character.
pub(super) fn char_len(text: &[u8]) -> usize {
    if text[0] < 0x80 { 1 } else { decode(text).map_or(1, |(_, len)| len) }
}

/// The character at the start of `text`, which is not empty; `u32::MAX` for a byte that begins no
/// valid one.
pub(super) fn code(text: &[u8]) -> u32 {
    match text[0] {
        b @ 0..=0x7f => u32::from(b),
        _ => decode(text).map_or(u32::MAX, |(c, _)| c),
    }
}

/// Decodes the non-ASCII character at the start of `text`, or `None` if it is not valid
/// UTF-8 (RFC 3629: no overlong form, no surrogate, nothing above U+10FFFF).
fn decode(text: &[u8]) -> Option<(u32, usize)> {
    let tail = |i: usize| match text.get(i) {
        Some(&b @ 0x80..=0xbf) => Some(u32::from(b & 0x3f)),
        _ => None,
    };
    let lead = u32::from(text[0]);
    let (c, len, lowest) = match text[0] {
        0xc2..=0xdf => ((lead & 0x1f) << 6 | tail(1)?, 2, 0x80),
        0xe0..=0xef => ((lead & 0x0f) << 12 | tail(1)? << 6 | tail(2)?, 3, 0x800),
        0xf0..=0xf4 => {
            ((lead & 0x07) << 18 | tail(1)? << 12 | tail(2)? << 6 | tail(3)?, 4, 0x1_0000)
        }
        _ => return None,
    };
    (c >= lowest && char::from_u32(c).is_some()).then_some((c, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_the_class_of_the_regular_expression() {
        let classes = Classes::get();
        for (pattern, class) in [
            (r"^[\p{L}&&\p{age=15.1}]$", LETTER),
            (r"^[\p{N}&&\p{age=15.1}]$", NUMBER),
            (r"^[\p{P}&&\p{age=15.1}]$", PUNCT),
            (r"^[\p{M}&&\p{age=15.1}]$", MARK),
            (r"^[\p{S}&&\p{age=15.1}]$", SYMBOL),
            (r"^\s$", SPACE),
        ] {
            let regex = fancy_regex::Regex::new(pattern).unwrap();
            let mut buffer = [0; 4];
            for c in (0..0x11_0000).filter_map(char::from_u32) {
                let text = c.encode_utf8(&mut buffer);
                let expected = regex.is_match(text).unwrap();
                assert_eq!(classes.of(c as u32) & class != 0, expected, "{pattern} {c:?}");
                assert_eq!(classes.first(text.as_bytes()), (classes.of(c as u32), c.len_utf8()));
            }
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_stand_alone() {
        let table: &[&[u8]] = &[
            b"\x80",
            b"\xbf",
            b"\xc0\x80",
            b"\xc1\xbf",
            b"\xc3",
            b"\xc3(",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\xe2\x82",
            b"\xf0\x80\x80\x80",
            b"\xf4\x90\x80\x80",
            b"\xf5\x80",
            b"\xff",
        ];
        for text in table {
            assert!(std::str::from_utf8(text).is_err());
            assert_eq!(Classes::get().first(text), (0, 1), "{text:x?}");
        }
    }
}
