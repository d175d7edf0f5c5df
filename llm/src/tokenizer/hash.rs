//! Hash tables of token ids.
//!
//! Two open-addressing tables that store ids and no strings: [`IdTable`] finds a token by
//! its bytes, [`PairTable`] finds a merge by the two ids it joins. The hash is seeded at
//! random per table, so that no model file can be made to collide; results never depend on
//! the seed, because keys are compared in full.

use std::hash::{BuildHasher, Hasher, RandomState};

const EMPTY: u32 = u32::MAX;

/// Multiply to 128 bits and fold, the mixing step of the wyhash family.
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

#[derive(Clone, Copy, Debug)]
struct Seed(u64, u64);

impl Seed {
    fn random() -> Self {
        let state = RandomState::new();
        let draw = |n: u8| {
            let mut hasher = state.build_hasher();
            hasher.write_u8(n);
            // An odd factor is never zero and loses no bit of the other one.
            hasher.finish() | 1
        };
        Self(draw(0), draw(1))
    }

    fn pair(self, left: u32, right: u32) -> u64 {
        fold((u64::from(left) << 32 | u64::from(right)) ^ self.0, self.1)
    }

    fn bytes(self, bytes: &[u8]) -> u64 {
        let mut hash = self.0 ^ (bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            hash = fold(hash ^ u64::from_le_bytes(*word), self.1);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        fold(hash ^ u64::from_le_bytes(last), self.1)
    }
}

/// Number of slots for `n` entries: a power of two, at most two thirds full.
fn slots_for(n: usize) -> usize {
    (n + n / 2 + 1).next_power_of_two()
}

/// Finds a token id by its bytes, which the caller keeps.
#[derive(Debug)]
pub(super) struct IdTable {
    seed: Seed,
    /// High half of the hash, and the id.
    slots: Box<[(u32, u32)]>,
}

impl IdTable {
    /// An empty table with room for `n` tokens.
    pub(super) fn with_room(n: usize) -> Self {
        Self { seed: Seed::random(), slots: vec![(0, EMPTY); slots_for(n)].into_boxed_slice() }
    }

    /// Adds `id` with text `bytes` unless the text is there; returns the id that has it then.
    pub(super) fn insert<'a>(
        &mut self,
        id: u32,
        bytes: &[u8],
        text_of: impl Fn(u32) -> &'a [u8],
    ) -> Option<u32> {
        let (slot, tag) = self.find(bytes, text_of);
        let present = self.slots[slot].1;
        if present == EMPTY {
            self.slots[slot] = (tag, id);
            return None;
        }
        Some(present)
    }

    /// The id whose text is `bytes`.
    pub(super) fn get<'a>(&self, bytes: &[u8], text_of: impl Fn(u32) -> &'a [u8]) -> Option<u32> {
        let id = self.slots[self.find(bytes, text_of).0].1;
        (id != EMPTY).then_some(id)
    }

    /// The slot that holds `bytes`, or the free one where they would go, and the hash's tag.
    fn find<'a>(&self, bytes: &[u8], text_of: impl Fn(u32) -> &'a [u8]) -> (usize, u32) {
        let hash = self.seed.bytes(bytes);
        let (mask, tag) = (self.slots.len() - 1, (hash >> 32) as u32);
        let mut slot = hash as usize & mask;
        loop {
            let (seen, id) = self.slots[slot];
            if id == EMPTY || (seen == tag && text_of(id) == bytes) {
                return (slot, tag);
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// A merge rule: where it stands in the list, and what it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    /// Position in `tokenizer.ggml.merges`; lower goes first.
    pub(super) rank: u32,
    /// Symbol that replaces the pair.
    pub(super) into: u32,
}

impl Merge {
    /// The answer for a pair that no rule joins; its rank is higher than any rule's.
    pub(super) const NONE: Self = Self { rank: u32::MAX, into: EMPTY };
}

/// Finds a merge rule by the two symbols it joins. 16 bytes a slot.
#[derive(Debug)]
pub(super) struct PairTable {
    seed: Seed,
    slots: Box<[(u32, u32, Merge)]>,
}

impl PairTable {
    /// An empty table with room for `n` rules.
    pub(super) fn with_room(n: usize) -> Self {
        let slots = vec![(EMPTY, EMPTY, Merge::NONE); slots_for(n)].into_boxed_slice();
        Self { seed: Seed::random(), slots }
    }

    /// Adds a rule unless the pair has one: the first rule of a pair counts.
    pub(super) fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let slot = self.find(left, right);
        if self.slots[slot].0 == EMPTY {
            self.slots[slot] = (left, right, merge);
        }
    }

    /// The rule that joins `left` and `right`, or [`Merge::NONE`].
    pub(super) fn get(&self, left: u32, right: u32) -> Merge {
        self.slots[self.find(left, right)].2
    }

    fn find(&self, left: u32, right: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.seed.pair(left, right) as usize & mask;
        loop {
            let (l, r, _) = self.slots[slot];
            if (l == left && r == right) || l == EMPTY {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_table_finds_what_was_put_in() {
        let texts: Vec<Vec<u8>> =
            (0..1000u32).map(|i| format!("t{}", i * 7).into_bytes()).collect();
        let text_of = |id: u32| texts[id as usize].as_slice();
        let mut table = IdTable::with_room(texts.len());
        for (id, text) in texts.iter().enumerate() {
            assert_eq!(table.insert(id as u32, text, text_of), None);
        }
        assert_eq!(table.insert(5, &texts[3], text_of), Some(3));
        for (id, text) in texts.iter().enumerate() {
            assert_eq!(table.get(text, text_of), Some(id as u32));
        }
        assert_eq!(table.get(b"t1", text_of), None);
        assert_eq!(table.get(b"", text_of), None);
    }

    #[test]
    fn the_first_rule_of_a_pair_counts() {
        let mut table = PairTable::with_room(2);
        table.insert(1, 2, Merge { rank: 0, into: 9 });
        table.insert(1, 2, Merge { rank: 1, into: 8 });
        assert_eq!(table.get(1, 2), Merge { rank: 0, into: 9 });
        assert_eq!(table.get(2, 1), Merge::NONE);
    }
}
