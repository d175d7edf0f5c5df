//! Which bytes steps touch, and where barriers must stand.

use crate::program::Loc;

/// Bytes of one buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    base: usize,
    start: u64,
    end: u64,
}

impl Range {
    /// The bytes at a location; `None` for constants, which nobody writes.
    pub fn of(loc: Loc, bytes: u64) -> Option<Range> {
        match loc {
            Loc::Const(_) => None,
            Loc::Based { base, offset } => {
                Some(Range { base, start: offset as u64, end: offset as u64 + bytes })
            }
        }
    }

    /// Bytes of the arena.
    pub fn frame(offset: u64, bytes: u64) -> Option<Range> {
        Some(Range { base: 0, start: offset, end: offset + bytes })
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.base == other.base && self.start < other.end && other.start < self.end
    }
}

/// What was touched since the last barrier.
#[derive(Default)]
pub(super) struct Hazards {
    reads: Vec<Range>,
    writes: Vec<Range>,
}

impl Hazards {
    /// Notes a step; says whether a barrier must stand before it.
    pub fn step(&mut self, reads: &[Range], writes: &[Range]) -> bool {
        let hits = |a: &[Range], b: &[Range]| a.iter().any(|x| b.iter().any(|y| x.overlaps(y)));
        let barrier =
            hits(reads, &self.writes) || hits(writes, &self.writes) || hits(writes, &self.reads);
        if barrier {
            self.reads.clear();
            self.writes.clear();
        }
        self.reads.extend_from_slice(reads);
        self.writes.extend_from_slice(writes);
        barrier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barriers_stand_where_steps_depend() {
        let r = |offset, bytes| Range::frame(offset, bytes).unwrap();
        let mut h = Hazards::default();
        assert!(!h.step(&[r(0, 10)], &[r(10, 10)]));
        assert!(!h.step(&[r(0, 10)], &[r(20, 10)]), "independent");
        assert!(h.step(&[r(15, 1)], &[r(30, 10)]), "reads what was written");
        assert!(!h.step(&[r(20, 10)], &[r(40, 10)]), "a barrier lies between");
        assert!(h.step(&[], &[r(20, 1)]), "writes what is being read");
        assert!(h.step(&[], &[r(20, 1)]), "writes what is being written");
    }
}
