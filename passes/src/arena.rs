//! Placing intervals in an arena: dynamic storage allocation, offline.
//!
//! Intervals that are alive at one position must not overlap in bytes. The problem is NP-hard;
//! first fit over a decreasing order (Gergov 1999 surveys the bounds) is close to the optimum in
//! practice. A few orders are tried, then the best one is repaired by local search. All limits are counts, so the outcome is the same on
//! any machine.

use std::collections::BTreeMap;

/// Something that needs `bytes` at every position from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub first: usize,
    pub last: usize,
    /// A multiple of the alignment.
    pub bytes: u64,
}

/// Offsets of intervals, and where the last one ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub offsets: Vec<u64>,
    pub bytes: u64,
}

/// Beyond this many intervals only the order of time is tried, in `n log n`.
const MANY: usize = 5_000;

/// Comparisons of intervals spent on repairing orders.
const REPAIR_WORK: usize = 8_000_000;

/// Most orders that a repair tries.
const REPAIR_ROUNDS: usize = 1_000;

/// The greatest sum of bytes at one of `positions` positions.
pub fn lower_bound(intervals: &[Interval], positions: usize) -> u64 {
    let mut starts = vec![0u64; positions + 1];
    let mut ends = vec![0u64; positions + 1];
    for i in intervals {
        starts[i.first] += i.bytes;
        ends[i.last + 1] += i.bytes;
    }
    let mut alive = 0;
    let mut greatest = 0;
    for (start, end) in starts.iter().zip(&ends) {
        alive = alive + start - end;
        greatest = greatest.max(alive);
    }
    greatest
}

/// Places all intervals; stops looking once `bound` is reached.
pub fn place(intervals: &[Interval], bound: u64) -> Placement {
    let mut best = in_time(intervals);
    if best.bytes <= bound || intervals.len() > MANY {
        return best;
    }
    let length = |i: usize| (intervals[i].last - intervals[i].first + 1) as u64;
    let orders: [&dyn Fn(usize) -> (u64, u64); 4] = [
        &|i| (intervals[i].bytes, length(i)),
        &|i| (intervals[i].bytes.saturating_mul(length(i)), intervals[i].bytes),
        &|i| (length(i), intervals[i].bytes),
        &|i| (u64::MAX - intervals[i].first as u64, intervals[i].bytes),
    ];
    let mut best_order: Vec<usize> = (0..intervals.len()).collect();
    for key in orders {
        let mut order: Vec<usize> = (0..intervals.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(key(i)), i));
        let placed = in_order(intervals, &order);
        if placed.bytes < best.bytes {
            (best, best_order) = (placed, order);
        }
        if best.bytes <= bound {
            return best;
        }
    }
    repair(intervals, bound, best_order, best)
}

/// Betters an order: an interval that ends above the bound is moved to an earlier place, and the
/// change kept if the arena does not grow by it.
fn repair(
    intervals: &[Interval],
    bound: u64,
    mut order: Vec<usize>,
    mut best: Placement,
) -> Placement {
    let rounds = REPAIR_ROUNDS.min(REPAIR_WORK / (intervals.len() * intervals.len()).max(1));
    let mut current = in_order(intervals, &order);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..rounds {
        if best.bytes <= bound {
            break;
        }
        let outside: Vec<usize> = (0..order.len())
            .filter(|&at| current.offsets[order[at]] + intervals[order[at]].bytes > bound)
            .collect();
        let Some(&from) = outside.get(below(&mut state, outside.len())) else { break };
        let mut tried = order.clone();
        let moved = tried.remove(from);
        tried.insert(below(&mut state, from + 1), moved);
        let placed = in_order(intervals, &tried);
        if placed.bytes <= current.bytes {
            (order, current) = (tried, placed);
        }
        if current.bytes < best.bytes {
            best = current.clone();
        }
    }
    best
}

/// A number below `n` from a fixed sequence (xorshift, Marsaglia 2003).
fn below(state: &mut u64, n: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % n.max(1) as u64) as usize
}

/// Each interval of `order` at the lowest offset that is free for all its life.
fn in_order(intervals: &[Interval], order: &[usize]) -> Placement {
    let mut offsets = vec![0; intervals.len()];
    let mut bytes = 0;
    // Placed intervals by rising offset.
    let mut placed: Vec<usize> = Vec::with_capacity(order.len());
    for &i in order {
        let new = &intervals[i];
        let mut offset = 0;
        if new.bytes > 0 {
            for &p in &placed {
                let old = &intervals[p];
                if old.first > new.last || new.first > old.last {
                    continue;
                }
                if offsets[p] >= offset + new.bytes {
                    break;
                }
                offset = offset.max(offsets[p] + old.bytes);
            }
            let at = placed.partition_point(|&p| offsets[p] < offset);
            placed.insert(at, i);
        }
        offsets[i] = offset;
        bytes = bytes.max(offset + new.bytes);
    }
    Placement { offsets, bytes }
}

/// Intervals in the order of time, each in the smallest free gap that holds it.
fn in_time(intervals: &[Interval]) -> Placement {
    let mut by_start: Vec<usize> = (0..intervals.len()).collect();
    by_start.sort_by_key(|&i| (intervals[i].first, std::cmp::Reverse(intervals[i].bytes), i));
    let mut by_end: Vec<usize> = (0..intervals.len()).collect();
    by_end.sort_by_key(|&i| (intervals[i].last, i));
    let mut ending = by_end.into_iter().peekable();

    let mut offsets = vec![0; intervals.len()];
    let mut gaps = Gaps::default();
    for i in by_start {
        while let Some(done) = ending.next_if(|&d| intervals[d].last < intervals[i].first) {
            gaps.free(offsets[done], intervals[done].bytes);
        }
        offsets[i] = gaps.take(intervals[i].bytes);
    }
    Placement { offsets, bytes: gaps.end }
}

/// Free ranges below `end`; everything above is free too.
#[derive(Default)]
struct Gaps {
    by_offset: BTreeMap<u64, u64>,
    by_size: std::collections::BTreeSet<(u64, u64)>,
    end: u64,
}

impl Gaps {
    fn add(&mut self, offset: u64, bytes: u64) {
        self.by_offset.insert(offset, bytes);
        self.by_size.insert((bytes, offset));
    }

    fn remove(&mut self, offset: u64, bytes: u64) {
        self.by_offset.remove(&offset);
        self.by_size.remove(&(bytes, offset));
    }

    fn take(&mut self, bytes: u64) -> u64 {
        if bytes == 0 {
            return 0;
        }
        if let Some(&(size, offset)) = self.by_size.range((bytes, 0)..).next() {
            self.remove(offset, size);
            if size > bytes {
                self.add(offset + bytes, size - bytes);
            }
            return offset;
        }
        // Grow, out of a gap at the end if there is one.
        let last = self.by_offset.last_key_value().map(|(&o, &b)| (o, b));
        let offset = match last {
            Some((offset, size)) if offset + size == self.end => {
                self.remove(offset, size);
                offset
            }
            _ => self.end,
        };
        self.end = offset + bytes;
        offset
    }

    fn free(&mut self, mut offset: u64, mut bytes: u64) {
        if bytes == 0 {
            return;
        }
        let before = self.by_offset.range(..offset).next_back().map(|(&o, &b)| (o, b));
        if let Some((o, b)) = before.filter(|(o, b)| o + b == offset) {
            self.remove(o, b);
            (offset, bytes) = (o, bytes + b);
        }
        if let Some(&b) = self.by_offset.get(&(offset + bytes)) {
            self.remove(offset + bytes, b);
            bytes += b;
        }
        self.add(offset, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rng: &mut fastrand::Rng, n: usize) -> Vec<Interval> {
        (0..n)
            .map(|_| {
                let first = rng.usize(..n);
                let last = (first + rng.usize(..=12)).min(n - 1);
                let greatest = 1 << rng.u32(0..8);
                Interval { first, last, bytes: 256 * rng.u64(0..=greatest) }
            })
            .collect()
    }

    fn assert_disjoint(intervals: &[Interval], placed: &Placement) {
        for (i, a) in intervals.iter().enumerate() {
            assert!(placed.offsets[i] + a.bytes <= placed.bytes);
            for (j, b) in intervals.iter().enumerate().skip(i + 1) {
                let together = a.first <= b.last && b.first <= a.last;
                let overlap = placed.offsets[i] < placed.offsets[j] + b.bytes
                    && placed.offsets[j] < placed.offsets[i] + a.bytes;
                assert!(!(together && overlap) || a.bytes == 0 || b.bytes == 0, "{i} {j}");
            }
        }
    }

    #[test]
    fn orders_and_time_place_without_overlap_near_the_bound() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut worst: f64 = 1.0;
        for _ in 0..500 {
            let n = rng.usize(1..80);
            let intervals = random(&mut rng, n);
            let bound = lower_bound(&intervals, n);
            assert_disjoint(&intervals, &in_time(&intervals));
            let placed = place(&intervals, bound);
            assert_disjoint(&intervals, &placed);
            assert!(placed.bytes >= bound);
            if bound > 0 {
                worst = worst.max(placed.bytes as f64 / bound as f64);
            }
        }
        assert!(worst <= 1.10, "{worst}");
    }

    #[test]
    fn many_intervals_are_placed_in_time() {
        let mut rng = fastrand::Rng::with_seed(8);
        let intervals = random(&mut rng, 100_000);
        let bound = lower_bound(&intervals, 100_000);
        let placed = place(&intervals, bound);
        assert!(placed.bytes as f64 <= 1.5 * bound as f64, "{} {bound}", placed.bytes);
    }
}
