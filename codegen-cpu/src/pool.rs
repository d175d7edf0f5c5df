//! The worker pool: every worker runs the same closure, in step with the others where it asks.
//!
//! A compiled function is a long list of short operations, so the cost of handing out work
//! decides: workers are not woken per operation but once per [`Pool::run`], and meet at
//! [`Worker::barrier`]. The threads belong to a private rayon pool, each held by one long-lived
//! job that waits for the next run: spinning for a while, then parked. Nothing is allocated per
//! run, barrier or claim.
//!
//! A worker that panics takes its run down with it: the others leave at their next barrier, and
//! the caller gets a [`PoolError::Panicked`]. So does a run in which the workers disagree on the
//! number of barriers. The pool stays usable afterwards.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The most workers a pool may have.
pub const MAX_THREADS: usize = 1024;

/// Independent claim counters between two barriers ([`Worker::chunks`]).
pub const COUNTERS: usize = 4;

/// Turns of the spin loop before a waiting worker gives its core away.
const SPINS: u32 = 1500;

/// How long an idle worker stays awake for the next run.
const AWAKE: Duration = Duration::from_micros(100);

/// Why a pool could not be made, or a run failed.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("a pool needs 1 to {MAX_THREADS} threads, not {0}")]
    Threads(usize),
    #[error("the worker threads could not be started: {0}")]
    Start(#[from] rayon::ThreadPoolBuildError),
    #[error("a worker panicked: {0}")]
    Panicked(String),
}

/// A value alone on its cache lines.
#[repr(align(128))]
struct Padded<T>(T);

type Job<'f> = dyn Fn(&Worker<'_>) + Sync + 'f;

/// What all workers share.
struct Shared {
    count: usize,
    /// Number of the current run; a change starts the workers.
    epoch: Padded<AtomicU64>,
    /// The closure of the current run, written before `epoch` and read after it.
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// Workers that have finished the current run, in whatever way.
    finished: Padded<AtomicUsize>,
    /// Workers at the barrier.
    arrived: Padded<AtomicUsize>,
    /// Barriers passed so far.
    phase: Padded<AtomicU64>,
    counters: [Padded<AtomicUsize>; COUNTERS],
    abort: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    shutdown: AtomicBool,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written by the running caller alone while no worker is between the start and
// the end of a run, and read by workers within a run; `epoch` and `finished` order the two. The
// closure it points to is `Sync`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// The payload that leaves a barrier of a failed run.
struct Aborted;

thread_local! {
    /// Whether this thread is inside a run, of any pool.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A fixed set of workers, the calling thread among them.
pub struct Pool {
    shared: Arc<Shared>,
    /// One run at a time; the others wait their turn.
    turn: Mutex<()>,
    /// Ends its threads when dropped, after the long-lived jobs have returned.
    _threads: Option<rayon::ThreadPool>,
}

/// One worker's view of a run.
pub struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks guard is valid at every step, so a panic elsewhere changes nothing.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(count: usize) -> Shared {
        Shared {
            count,
            epoch: Padded(AtomicU64::new(0)),
            job: UnsafeCell::new(None),
            finished: Padded(AtomicUsize::new(0)),
            arrived: Padded(AtomicUsize::new(0)),
            phase: Padded(AtomicU64::new(0)),
            counters: std::array::from_fn(|_| Padded(AtomicUsize::new(0))),
            abort: AtomicBool::new(false),
            panic: Mutex::new(None),
            shutdown: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    fn reset_counters(&self) {
        for c in &self.counters {
            // Mostly untouched: reading keeps the line shared.
            if c.0.load(Ordering::Relaxed) != 0 {
                c.0.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Keeps the first panic of a run and calls the others off.
    fn fail(&self, payload: Box<dyn Any + Send>) {
        if !payload.is::<Aborted>() {
            lock(&self.panic).get_or_insert(payload);
        }
        self.abort.store(true, Ordering::Release);
    }

    /// Runs the closure as one worker and records the end.
    fn work(&self, job: &Job<'_>, index: usize) {
        let outside = INSIDE.replace(true);
        let worker = Worker { shared: self, index };
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            self.fail(payload);
        }
        INSIDE.set(outside);
        self.finished.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Waits for a run after `seen`; None at shutdown.
    fn next_epoch(&self, seen: u64) -> Option<u64> {
        let check = || {
            if self.shutdown.load(Ordering::SeqCst) {
                return Some(None);
            }
            let e = self.epoch.0.load(Ordering::SeqCst);
            (e != seen).then_some(Some(e))
        };
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if let Some(found) = check() {
                    return found;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > AWAKE {
                break;
            }
        }
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            if let Some(found) = check() {
                break found;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }

    fn wake_all(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // A sleeper has either seen the news or waits: it checks under this lock.
            drop(lock(&self.lock));
            self.wake.notify_all();
        }
    }

    /// What a worker thread does all its life.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.next_epoch(seen) {
            seen = epoch;
            // SAFETY: `run` stored the job before this epoch and keeps the closure alive until
            // every worker has counted itself finished.
            let job = unsafe { (*self.job.get()).map(|j| &*j) };
            match job {
                Some(job) => self.work(job, index),
                None => {
                    self.finished.0.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
    }
}

impl Pool {
    /// A pool of `threads` workers: the thread that calls [`Pool::run`], and `threads − 1` of
    /// its own.
    pub fn new(threads: usize) -> Result<Pool, PoolError> {
        if threads == 0 || threads > MAX_THREADS {
            return Err(PoolError::Threads(threads));
        }
        let shared = Arc::new(Shared::new(threads));
        let pool = if threads > 1 {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads - 1)
                .thread_name(|i| format!("aether-{}", i + 1))
                .build()?;
            let for_jobs = Arc::clone(&shared);
            pool.spawn_broadcast(move |at| for_jobs.serve(at.index() + 1));
            Some(pool)
        } else {
            None
        };
        Ok(Pool { shared, turn: Mutex::new(()), _threads: pool })
    }

    /// Number of workers.
    pub fn threads(&self) -> usize {
        self.shared.count
    }

    /// Runs `f` once on every worker and returns when all are done. The caller is worker 0.
    ///
    /// Runs from several threads take turns. A run inside a run (of any pool) is carried out by
    /// the calling worker alone, as a pool of one.
    pub fn run(&self, f: &(dyn Fn(&Worker<'_>) + Sync)) -> Result<(), PoolError> {
        if INSIDE.get() {
            let alone = Shared::new(1);
            alone.work(f, 0);
            return alone.outcome();
        }
        let _turn = lock(&self.turn);
        let s = &*self.shared;
        s.finished.0.store(0, Ordering::Relaxed);
        if s.count > 1 {
            // SAFETY: all workers wait for the next epoch, so nobody reads the job now. The
            // lifetime is erased, but `f` is used only until all workers are finished below.
            unsafe {
                *s.job.get() = Some(std::mem::transmute::<*const Job<'_>, *const Job<'static>>(f));
            }
            s.epoch.0.fetch_add(1, Ordering::SeqCst);
            s.wake_all();
        }
        s.work(f, 0);
        let mut spins = 0;
        while s.finished.0.load(Ordering::Acquire) < s.count {
            pause(&mut spins);
        }
        s.outcome()
    }
}

impl Shared {
    /// Cleans up after a run in which all workers are finished, and tells how it went.
    fn outcome(&self) -> Result<(), PoolError> {
        self.reset_counters();
        if !self.abort.load(Ordering::Acquire) {
            return Ok(());
        }
        self.arrived.0.store(0, Ordering::Relaxed);
        self.abort.store(false, Ordering::Release);
        let payload = lock(&self.panic).take();
        let message = payload.as_deref().map_or("run called off", message);
        Err(PoolError::Panicked(message.to_owned()))
    }
}

/// The text of a panic's payload.
fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// One turn of waiting: spins first, then lets other threads have the core.
fn pause(spins: &mut u32) {
    if *spins < SPINS {
        *spins += 1;
        std::hint::spin_loop();
    } else {
        thread::yield_now();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        self.shared.wake_all();
    }
}

impl Worker<'_> {
    /// This worker's number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Number of workers in the run.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Waits until every worker is here: what they wrote before is visible after, and the claim
    /// counters are at zero. All workers must pass the same number of barriers.
    pub fn barrier(&self) {
        let s = self.shared;
        let phase = s.phase.0.load(Ordering::Acquire);
        if s.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == s.count {
            // Everyone else waits below, so nobody claims.
            s.arrived.0.store(0, Ordering::Relaxed);
            s.reset_counters();
            s.phase.0.store(phase + 1, Ordering::Release);
            return;
        }
        let mut spins = 0;
        while s.phase.0.load(Ordering::Acquire) == phase {
            if s.abort.load(Ordering::Acquire) {
                panic::resume_unwind(Box::new(Aborted));
            }
            // A finished worker comes to no barrier any more. It may have finished after this
            // one, hence the second look.
            if s.finished.0.load(Ordering::Acquire) > 0
                && s.phase.0.load(Ordering::Acquire) == phase
            {
                s.fail(Box::new("the workers of a run passed different numbers of barriers"));
                panic::resume_unwind(Box::new(Aborted));
            }
            pause(&mut spins);
        }
    }

    /// Claims pieces of `0..n`, `chunk` long (the last may be shorter), until all are claimed
    /// by some worker. Between two barriers each `counter` (below [`COUNTERS`]) serves one such
    /// loop, with the same `n` and `chunk` on every worker.
    ///
    /// # Panics
    /// When there is no such counter or `chunk` is 0.
    pub fn chunks(&self, counter: usize, n: usize, chunk: usize) -> Chunks<'_> {
        assert!(chunk > 0, "work cannot be claimed in pieces of nothing");
        Chunks { next: &self.shared.counters[counter].0, n, chunk }
    }

    /// This worker's share of `0..n` when it is dealt out evenly in multiples of `unit` (at
    /// least 1).
    pub fn share(&self, n: usize, unit: usize) -> Range<usize> {
        let unit = unit.max(1);
        let (units, count) = (n.div_ceil(unit), self.shared.count);
        let (each, more) = (units / count, units % count);
        let start = self.index * each + self.index.min(more);
        let end = start + each + usize::from(self.index < more);
        (start * unit).min(n)..(end * unit).min(n)
    }
}

/// Pieces of work claimed one after another; see [`Worker::chunks`].
pub struct Chunks<'a> {
    next: &'a AtomicUsize,
    n: usize,
    chunk: usize,
}

impl Iterator for Chunks<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.next.fetch_add(1, Ordering::Relaxed).checked_mul(self.chunk)?;
        (start < self.n).then(|| start..self.n.min(start.saturating_add(self.chunk)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_counts_are_checked() {
        assert!(matches!(Pool::new(0), Err(PoolError::Threads(0))));
        assert!(matches!(Pool::new(MAX_THREADS + 1), Err(PoolError::Threads(_))));
        assert_eq!(Pool::new(3).unwrap().threads(), 3);
    }

    #[test]
    fn shares_cover_the_range_once() {
        for (threads, n, unit) in [(1, 7, 1), (3, 7, 1), (4, 100, 8), (5, 3, 1), (3, 0, 4)] {
            let pool = Pool::new(threads).unwrap();
            let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            pool.run(&|w| {
                let r = w.share(n, unit);
                assert!(r.start.is_multiple_of(unit) || r.is_empty());
                r.for_each(|i| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
            })
            .unwrap();
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    /// Every phase, every worker adds its number to a cell that only it owns in that phase and
    /// another owned in the phase before: a barrier that lets anyone through early loses sums.
    #[test]
    fn a_hundred_thousand_phases() {
        const PHASES: usize = 100_000;
        struct Cells(Vec<UnsafeCell<u64>>);
        // SAFETY: within a phase, each cell is touched by one worker.
        unsafe impl Sync for Cells {}
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            let cells = Cells((0..threads).map(|_| UnsafeCell::new(0)).collect());
            // More workers than cores make each phase a few thread switches.
            let phases = if threads > 2 { PHASES / 20 } else { PHASES };
            let claimed = AtomicUsize::new(0);
            pool.run(&|w| {
                let cells = &cells;
                for p in 0..phases {
                    let mine = &cells.0[(w.index() + p) % w.count()];
                    // SAFETY: the rotation gives each worker its own cell in this phase.
                    unsafe { *mine.get() += 1 };
                    let n = w.chunks(p % COUNTERS, 5, 2).map(|r| r.len()).sum::<usize>();
                    if n > 0 {
                        claimed.fetch_add(n, Ordering::Relaxed);
                    }
                    w.barrier();
                }
            })
            .unwrap();
            assert_eq!(claimed.load(Ordering::Relaxed), 5 * phases);
            for c in cells.0 {
                assert_eq!(c.into_inner(), phases as u64);
            }
        }
    }

    #[test]
    fn many_runs_with_and_without_sleep() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        for i in 0..3000 {
            if i % 300 == 0 {
                thread::sleep(Duration::from_millis(2)); // workers go to sleep meanwhile
            }
            pool.run(&|w| {
                sum.fetch_add(w.index() + 1, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert_eq!(sum.load(Ordering::Relaxed), 3000 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).unwrap();
            for bad in 0..threads {
                let outcome = pool.run(&|w| {
                    w.barrier();
                    if w.index() == bad {
                        panic::resume_unwind(Box::new("no such row"));
                    }
                    w.barrier();
                    w.barrier();
                });
                assert!(matches!(outcome, Err(PoolError::Panicked(m)) if m == "no such row"));
                let sum = AtomicUsize::new(0);
                pool.run(&|w| {
                    w.barrier();
                    w.chunks(0, 10, 3).for_each(|r| {
                        sum.fetch_add(r.len(), Ordering::Relaxed);
                    });
                })
                .unwrap();
                assert_eq!(sum.load(Ordering::Relaxed), 10);
            }
        }
    }

    #[test]
    fn unequal_numbers_of_barriers_are_an_error() {
        let pool = Pool::new(2).unwrap();
        for odd in 0..2 {
            let outcome = pool.run(&|w| {
                if w.index() == odd {
                    w.barrier();
                }
            });
            assert!(matches!(outcome, Err(PoolError::Panicked(m)) if m.contains("barriers")));
        }
        pool.run(&|w| w.barrier()).unwrap();
    }

    #[test]
    fn a_run_inside_a_run_and_runs_from_many_threads() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..100 {
                        pool.run(&|w| {
                            w.barrier();
                            pool.run(&|inner| {
                                assert_eq!((inner.index(), inner.count()), (0, 1));
                                inner.barrier();
                                sum.fetch_add(1, Ordering::Relaxed);
                            })
                            .unwrap();
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4 * 100 * 2);
    }

    #[test]
    fn dropping_a_pool_ends_its_workers() {
        let pool = Pool::new(3).unwrap();
        pool.run(&|w| w.barrier()).unwrap();
        let shared = Arc::downgrade(&pool.shared);
        drop(pool);
        let start = Instant::now();
        while shared.strong_count() > 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "workers outlive their pool");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
