//! Work claims: how the workers of a run share the pieces of a step.
//!
//! Each worker owns one contiguous share of a step's pieces and claims them in order; when its
//! own share is used up it helps the others with theirs. Contiguous shares matter: a core that
//! streams weights from memory reads ahead of itself, and where neighbouring pieces went to
//! different cores, half of what was read ahead was another's (measured on two Zen 4 cores:
//! 60 GB/s in two contiguous halves, 39 GB/s in alternating pieces of 40 KiB, 29 GB/s in pieces
//! of 16 KiB). Helping keeps a worker that lost its core from holding up the step.
//!
//! Counters carry the number of the step they count for, so nothing is reset between steps or
//! runs, and a few cache lines per worker serve a program of any length.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A claim counter on a cache line of its own: the step's number above, pieces claimed below.
#[repr(align(64))]
#[derive(Default)]
struct Counter(AtomicU64);

/// The counters of all workers, for the steps between two barriers.
#[derive(Default)]
pub(crate) struct Claims {
    counters: Vec<Counter>,
    workers: usize,
    /// Number of the next run's first step.
    next_step: u32,
}

impl Claims {
    /// Counters for `workers` workers and at most `slots` steps between two barriers.
    pub fn new(workers: usize, slots: usize) -> Self {
        let counters = (0..workers * slots).map(|_| Counter::default()).collect();
        Claims { counters, workers, next_step: 1 }
    }

    /// Numbers the steps of a run: the number of its first step.
    ///
    /// Numbers come round after 2^32 steps. A slot is used again at every barrier long before
    /// that, so an old number is never met.
    pub fn begin(&mut self, steps: usize) -> u32 {
        let first = self.next_step;
        self.next_step = first.wrapping_add(steps as u32);
        first
    }

    /// A worker's view of one step. Steps that may run at the same time have different slots.
    pub fn work(&self, slot: usize, step: u32, index: usize, count: usize) -> Work<'_> {
        let counters = &self.counters[slot * self.workers..][..count.min(self.workers)];
        Work { index, count, step, counters }
    }
}

/// A worker's share of one step.
pub(crate) struct Work<'a> {
    /// This worker, and how many there are.
    pub index: usize,
    pub count: usize,
    step: u32,
    counters: &'a [Counter],
}

impl Work<'_> {
    /// Calls `each` with ranges that together cover `0..n` over all workers, `chunk` long each
    /// (the last may be shorter). To be called once per step, with the same numbers by every
    /// worker.
    pub fn chunks(&self, n: usize, chunk: usize, mut each: impl FnMut(Range<usize>)) {
        if self.count == 1 {
            if n > 0 {
                each(0..n);
            }
            return;
        }
        // Pieces are counted in 32 bits.
        let chunk = chunk.max(1).max(n >> 31);
        let pieces = n.div_ceil(chunk);
        for turn in 0..self.count {
            let owner = (self.index + turn) % self.count;
            let share = pieces * owner / self.count..pieces * (owner + 1) / self.count;
            while let Some(i) = self.claim(owner, share.len()) {
                let start = (share.start + i) * chunk;
                each(start..n.min(start + chunk));
            }
        }
    }

    /// Claims the next piece of a worker's share.
    fn claim(&self, owner: usize, pieces: usize) -> Option<usize> {
        // The step's number starts the count anew. What the pieces' work writes is ordered by
        // the barriers between steps, not by this counter.
        let counter = &self.counters[owner].0;
        let tag = u64::from(self.step) << 32;
        let mut seen = counter.load(Ordering::Relaxed);
        loop {
            let next = if seen >> 32 == u64::from(self.step) { seen & 0xffff_ffff } else { 0 };
            if next >= pieces as u64 {
                return None;
            }
            let claimed = counter.compare_exchange_weak(
                seen,
                tag | (next + 1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match claimed {
                Ok(_) => return Some(next as usize),
                Err(now) => seen = now,
            }
        }
    }

    /// Calls `each` with ranges covering `0..n`, some `per_worker` for each worker.
    pub fn split(&self, n: usize, per_worker: usize, each: impl FnMut(Range<usize>)) {
        self.chunks(n, n.div_ceil(self.count * per_worker), each);
    }

    /// Whether this worker does what one worker must do alone.
    pub fn is_first(&self) -> bool {
        self.index == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element once, whoever is fast: workers take turns in an order that leaves some idle.
    #[test]
    fn claims_cover_the_range_once_in_every_step() {
        for (workers, n, chunk) in [(1, 10, 3), (2, 10, 3), (3, 1, 4), (4, 97, 5), (5, 0, 1)] {
            let mut claims = Claims::new(workers, 2);
            for run in 0..3 {
                let first = claims.begin(4);
                for step in 0..4u32 {
                    let mut hits = vec![0; n];
                    for w in 0..workers {
                        let index = (w + run) % workers;
                        let slot = step as usize % 2;
                        let work = claims.work(slot, first + step, index, workers);
                        work.chunks(n, chunk, |r| r.for_each(|i| hits[i] += 1));
                    }
                    assert!(hits.iter().all(|&h| h == 1), "{workers} {n} {chunk}: {hits:?}");
                }
            }
        }
    }

    #[test]
    fn own_shares_are_contiguous_and_come_first() {
        let mut claims = Claims::new(2, 1);
        let step = claims.begin(1);
        let mut seen = Vec::new();
        claims.work(0, step, 1, 2).chunks(8, 1, |r| seen.push(r.start));
        assert_eq!(seen, [4, 5, 6, 7, 0, 1, 2, 3]);
        claims.work(0, step, 0, 2).chunks(8, 1, |r| panic!("{r:?} was claimed before"));
    }

    #[test]
    fn threads_share_without_loss() {
        let mut claims = Claims::new(4, 1);
        let step = claims.begin(1);
        let hits: Vec<AtomicU64> = (0..10_000).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for index in 0..4 {
                let (claims, hits) = (&claims, &hits);
                scope.spawn(move || {
                    claims.work(0, step, index, 4).chunks(hits.len(), 7, |r| {
                        r.for_each(|i| {
                            hits[i].fetch_add(1, Ordering::Relaxed);
                        });
                    });
                });
            }
        });
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
    }
}
