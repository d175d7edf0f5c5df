//! Byte-level byte-pair encoding: merges by rank inside one piece of text.
//!
//! Of all neighbouring pairs the one with the lowest rank is joined, the leftmost first
//! among equals, until no rule applies. Short pieces are scanned for the lowest rank; long
//! ones keep the pairs in a heap over a linked list, so that a megabyte without a space
//! takes time in proportion to n log n.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::alphabet;
use super::hash::{IdTable, Merge, PairTable};
use super::pretokenize::PreTokenizer;
use super::vocab::{Vocab, VocabData};

/// Pieces of up to this many bytes are scanned instead of put in a heap.
const SHORT: usize = 32;

const NONE: u32 = u32::MAX;

/// The merge rules of a vocabulary, over symbols: token ids, and numbers from the number of
/// tokens on for texts that rules make or use but that are no tokens.
#[derive(Debug)]
pub(super) struct Bpe {
    pub(super) pre: PreTokenizer,
    tokens: u32,
    /// The symbol of each byte.
    bytes: Box<[u32; 256]>,
    merges: PairTable,
    /// What the symbols that are no tokens stand for.
    extra: Vec<Box<[u8]>>,
    /// Finds whole pieces that are tokens, where the vocabulary takes them before merging.
    words: Option<IdTable>,
}

/// Numbers for texts, while rules are read.
struct Symbols<F> {
    find: F,
    tokens: u32,
    extra: Vec<Box<[u8]>>,
    known: HashMap<Vec<u8>, u32>,
}

impl<F: Fn(&[u8]) -> Option<u32>> Symbols<F> {
    /// The symbol of a text, made if it is new; `None` if no bytes could ever form it.
    fn of(&mut self, text: &[u8]) -> Option<u32> {
        if let Some(id) = (self.find)(text).or_else(|| self.known.get(text).copied()) {
            return Some(id);
        }
        let mut bytes = Vec::new();
        if text.is_empty() || !alphabet::decode(text, &mut bytes) {
            return None;
        }
        let symbol = self.tokens + self.extra.len() as u32;
        self.extra.push(bytes.into_boxed_slice());
        self.known.insert(text.to_vec(), symbol);
        Some(symbol)
    }
}

impl Bpe {
    /// Reads the merges. Rules without a space, or of texts that no bytes form, never
    /// apply and are left out; of rules for the same pair the first counts.
    pub(super) fn new(
        data: &VocabData,
        merges: &[&[u8]],
        vocab: &Vocab,
        known: super::pretokenize::Known,
        find: impl Fn(&[u8]) -> Option<u32>,
    ) -> Self {
        let mut symbols =
            Symbols { find, tokens: vocab.len() as u32, extra: Vec::new(), known: HashMap::new() };
        let mut bytes = Box::new([NONE; 256]);
        for byte in 0..=255u8 {
            let mut buffer = [0; 4];
            let text = alphabet::char_of(byte).encode_utf8(&mut buffer);
            if let Some(symbol) = symbols.of(text.as_bytes()) {
                bytes[usize::from(byte)] = symbol;
            }
        }
        let mut table = PairTable::with_room(merges.len());
        let mut joined = Vec::new();
        for (rank, rule) in (0u32..).zip(merges) {
            // The first byte belongs to the left text even if it is a space.
            let Some(at) = rule.get(1..).and_then(|r| memchr::memchr(b' ', r)) else { continue };
            let (left, right) = (&rule[..at + 1], &rule[at + 2..]);
            joined.clear();
            joined.extend_from_slice(left);
            joined.extend_from_slice(right);
            if let (Some(left), Some(right), Some(into)) =
                (symbols.of(left), symbols.of(right), symbols.of(&joined))
            {
                table.insert(left, right, Merge { rank, into });
            }
        }
        let words = known.whole_words.then(|| {
            let mut words = IdTable::with_room(vocab.len());
            let mut bytes = Vec::new();
            for (id, text) in (0u32..).zip(&data.tokens) {
                bytes.clear();
                let is_word = alphabet::decode(text, &mut bytes) && !bytes.is_empty();
                if is_word && vocab.pieces.get(id) == bytes {
                    words.insert(id, &bytes, |id| vocab.pieces.get(id));
                }
            }
            words
        });
        Self {
            pre: known.kind,
            tokens: symbols.tokens,
            bytes,
            merges: table,
            extra: symbols.extra,
            words,
        }
    }

    /// Appends the tokens of one piece of text.
    pub(super) fn encode(
        &self,
        piece: &[u8],
        vocab: &Vocab,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        if let Some(id) = self.words.as_ref().and_then(|w| w.get(piece, |id| vocab.pieces.get(id)))
        {
            return out.push(id);
        }
        if piece.len() <= SHORT { self.short(piece, out) } else { self.long(piece, scratch, out) }
    }

    fn symbol(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }

    fn short(&self, piece: &[u8], out: &mut Vec<u32>) {
        let mut symbols = [0; SHORT];
        let mut merges = [Merge::NONE; SHORT];
        let mut n = piece.len();
        for (symbol, byte) in symbols.iter_mut().zip(piece) {
            *symbol = self.symbol(*byte);
        }
        for i in 1..n {
            merges[i - 1] = self.merges.get(symbols[i - 1], symbols[i]);
        }
        while n > 1 {
            let (mut best, mut rank) = (0, NONE);
            for (i, merge) in merges[..n - 1].iter().enumerate() {
                if merge.rank < rank {
                    (best, rank) = (i, merge.rank);
                }
            }
            if rank == NONE {
                break;
            }
            symbols[best] = merges[best].into;
            symbols.copy_within(best + 2..n, best + 1);
            merges.copy_within(best + 1..n - 1, best);
            n -= 1;
            if best > 0 {
                merges[best - 1] = self.merges.get(symbols[best - 1], symbols[best]);
            }
            if best + 1 < n {
                merges[best] = self.merges.get(symbols[best], symbols[best + 1]);
            }
        }
        for symbol in &symbols[..n] {
            self.emit(*symbol, out);
        }
    }

    /// The caller has made sure that positions fit in 32 bits.
    fn long(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { nodes, queue } = scratch;
        let n = piece.len() as u32;
        nodes.clear();
        nodes.extend((0..n).zip(piece).map(|(i, byte)| Node {
            symbol: self.symbol(*byte),
            prev: i.wrapping_sub(1),
            next: if i + 1 < n { i + 1 } else { NONE },
            merge: Merge::NONE,
        }));
        let mut pairs = std::mem::take(queue).into_vec();
        pairs.clear();
        for i in 1..nodes.len() {
            let merge = self.merges.get(nodes[i - 1].symbol, nodes[i].symbol);
            nodes[i - 1].merge = merge;
            if merge.rank != NONE {
                pairs.push(order(merge.rank, i as u32 - 1));
            }
        }
        *queue = BinaryHeap::from(pairs);

        while let Some(Reverse(entry)) = queue.pop() {
            let (rank, at) = ((entry >> 32) as u32, entry as u32);
            let left = nodes[at as usize];
            // Overtaken by another merge: a rank belongs to one pair, so it tells.
            if left.merge.rank != rank {
                continue;
            }
            let right = nodes[left.next as usize];
            nodes[left.next as usize].merge = Merge::NONE;
            let joined = &mut nodes[at as usize];
            joined.symbol = left.merge.into;
            joined.next = right.next;
            if right.next != NONE {
                nodes[right.next as usize].prev = at;
            }
            for (left, right) in [(left.prev, at), (at, right.next)] {
                if left == NONE {
                    continue;
                }
                let merge = match nodes.get(right as usize) {
                    Some(right) => self.merges.get(nodes[left as usize].symbol, right.symbol),
                    None => Merge::NONE,
                };
                nodes[left as usize].merge = merge;
                if merge.rank != NONE {
                    queue.push(order(merge.rank, left));
                }
            }
        }
        let mut at = 0;
        while let Some(node) = nodes.get(at as usize) {
            self.emit(node.symbol, out);
            at = node.next;
        }
    }

    /// Appends a symbol that is a token; of any other, the tokens of its bytes that exist.
    fn emit(&self, symbol: u32, out: &mut Vec<u32>) {
        if symbol < self.tokens {
            return out.push(symbol);
        }
        let bytes = self.extra.get((symbol - self.tokens) as usize);
        let symbols = bytes.into_iter().flatten().map(|b| self.symbol(*b));
        out.extend(symbols.filter(|s| *s < self.tokens));
    }
}

/// A symbol in the chain of a long piece, and the rule that would join it with the next.
#[derive(Clone, Copy, Debug)]
struct Node {
    symbol: u32,
    prev: u32,
    next: u32,
    merge: Merge,
}

/// Memory for long pieces, kept from one to the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    nodes: Vec<Node>,
    /// Rank and position of pairs, packed by [`order`].
    queue: BinaryHeap<Reverse<u64>>,
}

/// The lowest rank first, then the leftmost.
fn order(rank: u32, at: u32) -> Reverse<u64> {
    Reverse(u64::from(rank) << 32 | u64::from(at))
}
