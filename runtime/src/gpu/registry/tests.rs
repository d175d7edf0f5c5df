//! The registry on memory that is no device's: what moves when, and many threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;

/// A device of numbered buffers that counts its bytes and fails when it is told to.
#[derive(Default)]
struct Fake {
    bytes: Arc<AtomicU64>,
    peak: AtomicU64,
    /// The call from now on that fails, counted from 1; none when 0.
    fail: AtomicU64,
    pause: Duration,
}

#[derive(Clone)]
struct FakeBuffer(Arc<Inner>);

struct Inner {
    bytes: Mutex<Vec<u8>>,
    all: Arc<AtomicU64>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes.lock().unwrap().len() as u64, Ordering::SeqCst);
    }
}

impl Fake {
    fn may_fail(&self) -> Result<(), GpuError> {
        let taken = |n: u64| n.checked_sub(1);
        match self.fail.fetch_update(Ordering::SeqCst, Ordering::SeqCst, taken) {
            Ok(1) => Err(GpuError::Device("told to fail".to_owned())),
            _ => Ok(()),
        }
    }
}

impl Memory for Fake {
    type Buffer = FakeBuffer;

    fn allocate(&self, _: &str, bytes: u64) -> Result<FakeBuffer, GpuError> {
        self.may_fail()?;
        let now = self.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.peak.fetch_max(now, Ordering::SeqCst);
        let (all, bytes) = (self.bytes.clone(), Mutex::new(vec![0; bytes as usize]));
        Ok(FakeBuffer(Arc::new(Inner { bytes, all })))
    }

    fn free(&self, buffer: FakeBuffer) {
        let bytes = std::mem::take(&mut *buffer.0.bytes.lock().unwrap());
        self.bytes.fetch_sub(bytes.len() as u64, Ordering::SeqCst);
    }

    fn fill(&self, buffer: &FakeBuffer, source: &dyn Source) -> Result<(), GpuError> {
        std::thread::sleep(self.pause);
        source.pieces(&mut |offset, bytes| {
            let at = offset as usize;
            buffer.0.bytes.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
    }

    fn upload(&self, buffer: &FakeBuffer, bytes: &[u8]) -> Result<(), GpuError> {
        self.may_fail()?;
        buffer.0.bytes.lock().unwrap()[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn download(&self, buffer: &FakeBuffer, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.may_fail()?;
        std::thread::sleep(self.pause);
        bytes.copy_from_slice(&buffer.0.bytes.lock().unwrap()[..bytes.len()]);
        Ok(())
    }
}

struct Same(u8, usize);

impl Source for Same {
    fn pieces(&self, each: &mut Sink<'_>) -> Result<(), GpuError> {
        each(0, &vec![self.0; self.1])
    }
}

fn weight(registry: &Arc<Registry<Fake>>, byte: u8, bytes: usize) -> Arc<Tensor<Fake>> {
    let source = Arc::new(Same(byte, bytes));
    registry.tensor(format!("weight {byte}"), bytes as u64, Content::Clean(source))
}

fn first(buffer: &FakeBuffer) -> u8 {
    buffer.0.bytes.lock().unwrap()[0]
}

#[test]
fn the_longest_unused_goes_first_and_comes_back() {
    let (fake, registry) = (Fake::default(), Registry::new(Some(100)));
    let weights: Vec<_> = (1..=3).map(|i| weight(&registry, i, 40)).collect();
    let generations: Vec<u64> = weights[..2]
        .iter()
        .map(|w| {
            let pins = registry.pin(&fake, std::slice::from_ref(w)).unwrap();
            pins.generation()
        })
        .collect();
    drop(registry.pin(&fake, &weights[..1]).unwrap());
    // The second is the one that goes.
    drop(registry.pin(&fake, &weights[2..]).unwrap());
    let there: Vec<bool> = weights.iter().map(|w| w.is_resident()).collect();
    assert_eq!(there, [true, false, true]);
    let pins = registry.pin(&fake, &weights[1..2]).unwrap();
    assert_eq!(first(&pins.buffers()[0]), 2);
    assert!(pins.generation() > generations[1]);
    let stats = registry.stats();
    assert_eq!((stats.resident, stats.peak, stats.on_both, stats.on_host), (80, 80, 2, 1));
    assert_eq!((stats.uploads, stats.uploaded), (4, 160));
    assert_eq!((stats.dropped, stats.downloads, stats.pinned), (2, 0, 1));
    drop((pins, weights));
    let stats = registry.stats();
    assert_eq!((stats.resident, stats.on_both + stats.on_host + stats.on_device), (0, 0));
}

#[test]
fn a_state_keeps_its_bytes_and_an_arena_need_not() {
    let (fake, registry) = (Fake::default(), Registry::new(Some(100)));
    let state = registry.tensor("state", 60, Content::State);
    let arena = registry.tensor("arena", 60, Content::Scratch);
    for round in 1..4u8 {
        let pins = registry.pin(&fake, std::slice::from_ref(&state)).unwrap();
        assert_eq!(first(&pins.buffers()[0]), round - 1);
        pins.buffers()[0].0.bytes.lock().unwrap()[0] = round;
        drop(pins);
        let pins = registry.pin(&fake, std::slice::from_ref(&arena)).unwrap();
        assert_eq!(first(&pins.buffers()[0]), 0);
    }
    let stats = registry.stats();
    assert_eq!((stats.downloads, stats.downloaded), (3, 180));
    // The arena is dropped for the state, and never brought.
    assert_eq!((stats.dropped, stats.uploads), (2, 3));
    assert_eq!((stats.on_host, stats.on_device), (1, 1));
}

#[test]
fn more_than_the_limit_is_refused_at_once() {
    let (fake, registry) = (Fake::default(), Registry::new(Some(90)));
    let weights: Vec<_> = (1..=3).map(|i| weight(&registry, i, 30 + usize::from(i))).collect();
    let error = registry.pin(&fake, &weights).map(|_| ()).unwrap_err();
    let want = GpuError::Limit { what: "weight 3".to_owned(), bytes: 33, needed: 96, limit: 90 };
    assert_eq!(error, want);
    assert_eq!(registry.stats().pinned, 0);
    assert!(registry.pin(&fake, &weights[..2]).is_ok());
}

#[test]
fn a_failure_leaves_everything_as_it_was() {
    let (fake, registry) = (Fake::default(), Registry::new(Some(100)));
    let state = registry.tensor("state", 60, Content::State);
    let pins = registry.pin(&fake, std::slice::from_ref(&state)).unwrap();
    pins.buffers()[0].0.bytes.lock().unwrap()[0] = 7;
    drop(pins);
    let other = [weight(&registry, 1, 20), weight(&registry, 2, 40), weight(&registry, 3, 30)];
    // The download of the state, allocations of weights; then that of the state, and its upload.
    let own = std::slice::from_ref(&state);
    for (calls, wanted) in [(1, &other[..]), (2, &other), (3, &other), (1, own), (2, own)] {
        let before: &[_] = if wanted.len() == 1 { &other } else { own };
        drop(registry.pin(&fake, before).unwrap());
        fake.fail.store(calls, Ordering::SeqCst);
        let error = registry.pin(&fake, wanted).map(|_| ()).unwrap_err();
        assert_eq!(error, GpuError::Device("told to fail".to_owned()), "{calls}");
        let stats = registry.stats();
        assert_eq!(stats.pinned, 0, "{calls}");
        assert_eq!(stats.resident, fake.bytes.load(Ordering::SeqCst), "{calls}");
        drop(registry.pin(&fake, wanted).unwrap());
    }
    let pins = registry.pin(&fake, std::slice::from_ref(&state)).unwrap();
    assert_eq!(first(&pins.buffers()[0]), 7);
}

/// Threads with states of their own and weights in common, of which a few fit at a time: each
/// finds its bytes, the limit holds at every moment, and all come to their end.
#[test]
fn eight_threads_take_turns() {
    let fake = Fake { pause: Duration::from_micros(50), ..Fake::default() };
    let registry = Registry::new(Some(1000));
    let shared: Vec<_> = (0..6).map(|i| weight(&registry, i, 120)).collect();
    let begun = Instant::now();
    let rounds: Vec<u64> = std::thread::scope(|scope| {
        let (fake, registry, shared) = (&fake, &registry, &shared);
        let threads: Vec<_> = (0..8u64)
            .map(|seed| {
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(seed);
                    let state = registry.tensor("state", 200, Content::State);
                    let arena = registry.tensor("arena", 100, Content::Scratch);
                    let mut rounds = 0u64;
                    while begun.elapsed() < Duration::from_secs(1) {
                        let mut own = vec![state.clone(), arena.clone()];
                        let mut which: Vec<usize> = (0..6).collect();
                        rng.shuffle(&mut which);
                        which.truncate(rng.usize(..=5));
                        own.extend(which.iter().map(|&w| shared[w].clone()));
                        let pins = registry.pin(fake, &own).unwrap();
                        let buffers = pins.buffers();
                        for (buffer, &w) in buffers[2..].iter().zip(&which) {
                            assert_eq!(first(buffer), w as u8);
                        }
                        let mut state = buffers[0].0.bytes.lock().unwrap();
                        let count = u64::from_le_bytes(state[..8].try_into().unwrap());
                        assert_eq!(count, rounds);
                        rounds += 1;
                        state[..8].copy_from_slice(&rounds.to_le_bytes());
                    }
                    rounds
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    // In turn: nobody is left behind.
    let (least, most) = (rounds.iter().min().unwrap(), rounds.iter().max().unwrap());
    assert!(*least > 20 && *most <= least * 3, "{rounds:?}");
    assert!(fake.peak.load(Ordering::SeqCst) <= 1000);
    let stats = registry.stats();
    assert!(stats.peak <= 1000 && stats.pinned == 0 && stats.waits > 0, "{stats:?}");
    assert!(stats.downloads > 100 && stats.dropped > 100, "{stats:?}");
}
