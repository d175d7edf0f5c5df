//! SentencePiece BPE ("SPM"): neighbouring pieces are joined while their text is a token,
//! the highest score first, the leftmost first among equals.
//!
//! Spaces are written U+2581. A character that is no token becomes its bytes' tokens
//! `<0xNN>`, or the unknown token where those are missing. A text is cut where no token
//! could reach across (before most words), so that the queue of joins stays short.

use std::collections::BinaryHeap;

use super::hash::IdTable;
use super::unicode::char_len;
use super::vocab::{Arena, SpecialIds, VocabData, texts};

/// How a space is written in a vocabulary.
pub(super) const SPACE: &[u8] = "\u{2581}".as_bytes();

const NONE: u32 = u32::MAX;

/// The pieces of a vocabulary and their scores.
#[derive(Debug)]
pub(super) struct Spm {
    texts: Arena,
    table: IdTable,
    /// Scores, as integers of the same order.
    scores: Vec<u32>,
    longest: usize,
    joints: Joints,
    /// The token of each byte, or the unknown token's.
    bytes: Box<[u32; 256]>,
}

/// A stretch of the text, and the token it would be when joined with the next one.
#[derive(Clone, Copy, Debug)]
struct Node {
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
    /// Token of the stretch itself.
    token: u32,
    /// Token of the stretch joined with the next, and the length of both.
    joined: u32,
    joined_len: u32,
}

/// Order of merges: the highest score first, then the leftmost.
fn order(score: u32, at: u32) -> u64 {
    u64::from(score) << 32 | u64::from(!at)
}

impl Spm {
    /// Takes the vocabulary; `table` finds tokens by their text.
    pub(super) fn new(data: &VocabData, ids: &SpecialIds, table: IdTable) -> Self {
        let texts = texts(data);
        let find = |text: &[u8]| table.get(text, |id| texts.get(id));
        let mut bytes = Box::new([NONE; 256]);
        for byte in 0..=255u8 {
            let name = format!("<0x{byte:02X}>");
            let id = find(name.as_bytes()).or_else(|| find(&[byte])).or(ids.unk);
            bytes[usize::from(byte)] = id.unwrap_or(NONE);
        }
        let scores = match &data.scores {
            Some(scores) => scores[..data.tokens.len()].iter().map(|s| ordered(*s)).collect(),
            None => vec![ordered(0.0); data.tokens.len()],
        };
        let longest = data.tokens.iter().map(|t| t.len()).max().unwrap_or(0);
        Self { joints: Joints::of(&data.tokens), texts, table, scores, longest, bytes }
    }

    /// Appends the tokens of `text`, with a space before it if `prefix`. The caller has made
    /// sure that three times the length fits in 32 bits.
    pub(super) fn encode(&self, text: &[u8], prefix: bool, out: &mut Vec<u32>) {
        let mut escaped = Vec::with_capacity(text.len() + text.len() / 2 + SPACE.len());
        if prefix {
            escaped.extend_from_slice(SPACE);
        }
        for byte in text {
            match byte {
                b' ' => escaped.extend_from_slice(SPACE),
                _ => escaped.push(*byte),
            }
        }
        let mut scratch = Scratch::default();
        let mut text = escaped.as_slice();
        while !text.is_empty() {
            let (part, rest) = text.split_at(self.joints.part(text));
            self.part(part, &mut scratch, out);
            text = rest;
        }
    }

    /// Joins what can be joined in one part of a text.
    fn part(&self, text: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { nodes, queue } = scratch;
        self.characters(text, nodes);
        let mut pairs = std::mem::take(queue).into_vec();
        for at in 0..nodes.len() as u32 {
            pairs.extend(self.pair(text, nodes, at));
        }
        *queue = BinaryHeap::from(pairs);
        while let Some(entry) = queue.pop() {
            let at = !(entry as u32);
            let left = nodes[at as usize];
            // Overtaken, unless what the pair would be now stands at the same place in the
            // order; then this entry serves for it.
            if left.joined == NONE || order(self.scores[left.joined as usize], at) != entry {
                continue;
            }
            let right = nodes[left.next as usize];
            nodes[left.next as usize].joined = NONE;
            let node = &mut nodes[at as usize];
            (node.len, node.token, node.next) = (left.joined_len, left.joined, right.next);
            if right.next != NONE {
                nodes[right.next as usize].prev = at;
            }
            if left.prev != NONE {
                queue.extend(self.pair(text, nodes, left.prev));
            }
            queue.extend(self.pair(text, nodes, at));
        }
        let mut at = 0;
        while let Some(node) = nodes.get(at as usize) {
            if node.token != NONE {
                out.push(node.token);
            } else {
                let bytes = &text[node.start as usize..(node.start + node.len) as usize];
                let ids = bytes.iter().map(|b| self.bytes[usize::from(*b)]);
                out.extend(ids.filter(|id| *id != NONE));
            }
            at = node.next;
        }
    }

    /// One stretch per character. A byte that is not valid UTF-8 is one of its own, so that it
    /// takes no part of an escaped space with it.
    fn characters(&self, text: &[u8], nodes: &mut Vec<Node>) {
        nodes.clear();
        let mut start = 0;
        while start < text.len() {
            let len = char_len(&text[start..]);
            let index = nodes.len() as u32;
            nodes.push(Node {
                start: start as u32,
                len: len as u32,
                prev: index.wrapping_sub(1),
                next: index + 1,
                token: self.find(&text[start..start + len]),
                joined: NONE,
                joined_len: 0,
            });
            start += len;
        }
        if let Some(last) = nodes.last_mut() {
            last.next = NONE;
        }
    }

    fn find(&self, text: &[u8]) -> u32 {
        if text.len() > self.longest {
            return NONE;
        }
        self.table.get(text, |id| self.texts.get(id)).unwrap_or(NONE)
    }

    /// Looks up the join of a stretch with the next, notes it, and returns it for the queue.
    fn pair(&self, text: &[u8], nodes: &mut [Node], at: u32) -> Option<u64> {
        let node = nodes[at as usize];
        let joined_len = node.len + nodes.get(node.next as usize).map_or(0, |next| next.len);
        let joined = if node.next == NONE {
            NONE
        } else {
            self.find(&text[node.start as usize..(node.start + joined_len) as usize])
        };
        let node = &mut nodes[at as usize];
        (node.joined, node.joined_len) = (joined, joined_len);
        (joined != NONE).then(|| order(self.scores[joined as usize], at))
    }
}

/// Memory for the parts of a text, kept from one to the next.
#[derive(Debug, Default)]
struct Scratch {
    nodes: Vec<Node>,
    queue: BinaryHeap<u64>,
}

/// Which characters may stand side by side in a token: a set with false positives of the
/// last byte of one and the first three of the next.
#[derive(Debug)]
struct Joints(Box<[u64]>);

impl Joints {
    const BITS: u32 = 19;

    fn of(tokens: &[&[u8]]) -> Self {
        let mut set = Self(vec![0; (1 << Self::BITS) / 64].into_boxed_slice());
        for token in tokens {
            let mut at = 0;
            while at < token.len() {
                if at > 0 {
                    let (word, bit) = Self::place(token, at);
                    set.0[word] |= 1 << bit;
                }
                at += char_len(&token[at..]);
            }
        }
        set
    }

    /// Where the joint before the character at `at`, which is not the first, is noted.
    fn place(text: &[u8], at: usize) -> (usize, u32) {
        let mut key = [text[at - 1], 0, 0, 0];
        let len = char_len(&text[at..]).min(3);
        key[1..=len].copy_from_slice(&text[at..at + len]);
        let hash = u32::from_le_bytes(key).wrapping_mul(0x9e37_79b1) >> (32 - Self::BITS);
        (hash as usize / 64, hash % 64)
    }

    /// Length of the part at the start of `text`, which is not empty, that no token could
    /// reach out of.
    fn part(&self, text: &[u8]) -> usize {
        let mut at = char_len(text);
        while at < text.len() {
            let (word, bit) = Self::place(text, at);
            if self.0[word] >> bit & 1 == 0 {
                break;
            }
            at += char_len(&text[at..]);
        }
        at
    }
}

/// A number that orders as the score does; both zeros are equal.
fn ordered(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

#[cfg(test)]
mod tests {
    use super::{Joints, ordered};

    #[test]
    fn texts_are_cut_where_no_token_reaches_across() {
        let joints = Joints::of(&["▁ab".as_bytes(), b"bc", "é▁".as_bytes(), b"\xffa"]);
        let table: &[(&[u8], usize)] = &[
            ("▁abc▁".as_bytes(), 6),
            (b"ba", 1),
            ("é▁a".as_bytes(), 6),
            (b"\xffa\xff", 2),
            (b"a", 1),
        ];
        for (text, len) in table {
            assert_eq!(joints.part(text), *len, "{text:?}");
        }
    }

    #[test]
    fn scores_keep_their_order() {
        let inf = f32::INFINITY;
        let sorted = [-inf, f32::MIN, -2.0, -1.5, -1e-40, 0.0, 1e-40, 1.0, f32::MAX, inf];
        for (a, b) in sorted.iter().zip(&sorted[1..]) {
            assert!(ordered(*a) < ordered(*b), "{a} {b}");
        }
        assert_eq!(ordered(-0.0), ordered(0.0));
    }
}
