//! Which weights stay on the device and which pass through, when there is no room for all.
//!
//! A run reads its weights in one order, the same in every run, which is known when the program is
//! made. Of such a cycle a cache that keeps what was used last keeps nothing: what comes next is
//! what went longest ago. The best that can be done (Belady 1966) is to keep a fixed part and to
//! bring the rest anew in each run, so the choice is made once, here: what is kept, and the
//! segments of steps between which the rest is brought. A weight of a segment has a fixed place in
//! a pool that all segments use in turn.
//!
//! Programs that run one after another are such a cycle together: the choice is made for the steps
//! of all, and each is then cut for itself.

use std::ops::Range;

/// Weights up to this size are kept before greater ones: they save as many copies for less.
const SMALL: u64 = 64 << 10;
/// What a pool should hold at least, where that is an eighth of the room or less: with less, steps
/// wait for one another more often.
const POOL: u64 = 32 << 20;
/// Of where a weight begins in the pool.
const ALIGNMENT: u64 = aether_ir::plan::ALIGNMENT;

/// A weight as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    pub bytes: u64,
    /// Whether it is on the device already, for another program.
    pub kept: bool,
}

/// What stays and what passes through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// By weight, whether it stays.
    pub resident: Vec<bool>,
    /// Bytes of the pool; 0 when all stay.
    pub pool: u64,
    pub segments: Vec<Segment>,
}

/// Steps that follow each other and the weights that are brought for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub steps: Range<usize>,
    pub uploads: Vec<Upload>,
}

/// A weight's place in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Upload {
    pub weight: usize,
    pub offset: u64,
    pub bytes: u64,
}

impl Segment {
    /// Bytes of the pool that it fills.
    pub fn bytes(&self) -> u64 {
        self.uploads.last().map_or(0, |u| u.offset + u.bytes)
    }
}

/// There is no room for what one step reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooSmall {
    /// The step that reads most.
    pub step: usize,
    /// Bytes that it reads.
    pub bytes: u64,
    /// Least room that would do.
    pub needed: u64,
}

fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Chooses for steps, each with the weights that it reads, and room for so many bytes of weights
/// in buffers of at most `largest`. Of all sizes of the pool that make sense the one is taken with
/// which a run brings the fewest bytes.
///
/// # Errors
/// When not even one step after another fits.
pub(crate) fn plan(
    steps: &[Vec<usize>],
    weights: &[Demand],
    room: u64,
    largest: u64,
) -> Result<Plan, TooSmall> {
    let total = weights.iter().fold(0u64, |sum, w| sum.saturating_add(w.bytes));
    if total <= room {
        let whole = Segment { steps: 0..steps.len(), uploads: Vec::new() };
        return Ok(Plan { resident: vec![true; weights.len()], pool: 0, segments: vec![whole] });
    }
    let mut uses = vec![0u64; weights.len()];
    steps.iter().flatten().for_each(|&w| uses[w] += 1);
    let demand = |step: &[usize]| step.iter().map(|&w| aligned(weights[w].bytes)).sum::<u64>();
    // Only at these sizes does another weight fit through.
    let wanted = POOL.min(room / 8);
    let mut exact = vec![0];
    for step in steps {
        let mut sizes: Vec<u64> = step.iter().map(|&w| aligned(weights[w].bytes)).collect();
        sizes.sort_unstable();
        exact.extend(sizes.iter().scan(0, |sum, size| {
            *sum += size;
            Some(*sum)
        }));
    }
    let mut sizes = exact.clone();
    sizes.push(wanted);
    sizes.retain(|&size| size <= largest);
    sizes.sort_unstable_by_key(|&size| std::cmp::Reverse(size));
    sizes.dedup();

    let mut best: Option<(u64, Plan)> = None;
    let mut needed = u64::MAX;
    for size in sizes {
        if size < wanted && best.is_some() {
            break;
        }
        let mut resident = vec![false; weights.len()];
        // What does not fit through the pool stays, the greatest first.
        for step in steps {
            let mut through: Vec<usize> = step.iter().copied().filter(|&w| !resident[w]).collect();
            through.sort_by_key(|&w| (std::cmp::Reverse(weights[w].bytes), w));
            let mut left = demand(&through);
            for w in through {
                if left <= size {
                    break;
                }
                resident[w] = true;
                left -= aligned(weights[w].bytes);
            }
        }
        let kept = |resident: &[bool]| -> u64 {
            weights.iter().zip(resident).filter(|(_, r)| **r).map(|(w, _)| w.bytes).sum()
        };
        let forced = kept(&resident);
        if exact.contains(&size) {
            needed = needed.min(forced.saturating_add(size));
        }
        let Some(mut left) = room.checked_sub(size).and_then(|left| left.checked_sub(forced))
        else {
            continue;
        };
        let mut order: Vec<usize> = (0..weights.len()).filter(|&w| !resident[w]).collect();
        order.sort_by_key(|&w| {
            let Demand { bytes, kept } = weights[w];
            let small = bytes <= SMALL;
            (!small, !kept, std::cmp::Reverse((uses[w], bytes)), w)
        });
        for w in order {
            if weights[w].bytes <= left {
                resident[w] = true;
                left -= weights[w].bytes;
            }
        }
        let pool = (size + left).min(largest);
        let segments = segments(steps, weights, &resident, pool);
        let brought = segments.iter().flat_map(|s| &s.uploads).map(|u| u.bytes).sum::<u64>();
        // Of equals the greater pool: fewer segments.
        if best.as_ref().is_none_or(|(b, _)| brought < *b) {
            best = Some((brought, Plan { resident, pool, segments }));
        }
    }
    match best {
        Some((_, plan)) => Ok(plan),
        None => {
            let step = (0..steps.len()).max_by_key(|&s| demand(&steps[s])).unwrap_or(0);
            let bytes = steps.get(step).map_or(0, |step| demand(step));
            Err(TooSmall { step, bytes, needed })
        }
    }
}

/// Cuts the steps where the pool is full.
pub(crate) fn segments(
    steps: &[Vec<usize>],
    weights: &[Demand],
    resident: &[bool],
    pool: u64,
) -> Vec<Segment> {
    let mut segments = vec![Segment { steps: 0..0, uploads: Vec::new() }];
    let mut end = 0;
    for (i, step) in steps.iter().enumerate() {
        let last = segments.len() - 1;
        let missing = |uploads: &[Upload], w: usize| {
            !resident[w] && uploads.iter().all(|u: &Upload| u.weight != w)
        };
        let uploads = &segments[last].uploads;
        let new: u64 =
            step.iter().filter(|&&w| missing(uploads, w)).map(|&w| aligned(weights[w].bytes)).sum();
        if end + new > pool && !segments[last].steps.is_empty() {
            segments.push(Segment { steps: i..i, uploads: Vec::new() });
            end = 0;
        }
        let last = segments.len() - 1;
        for &w in step {
            if missing(&segments[last].uploads, w) {
                let bytes = weights[w].bytes;
                segments[last].uploads.push(Upload { weight: w, offset: end, bytes });
                end += aligned(bytes);
            }
        }
        segments[last].steps.end = i + 1;
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    const KB: u64 = 1 << 10;

    fn demands(bytes: &[u64]) -> Vec<Demand> {
        bytes.iter().map(|&bytes| Demand { bytes, kept: false }).collect()
    }

    /// Carries a plan out: every step finds its weights, in places that do not overlap.
    fn bytes_of_a_run(plan: &Plan, steps: &[Vec<usize>], weights: &[Demand], room: u64) -> u64 {
        let kept: u64 =
            weights.iter().zip(&plan.resident).filter(|(_, r)| **r).map(|(w, _)| w.bytes).sum();
        assert!(kept + plan.pool <= room, "{kept} and {} in {room}", plan.pool);
        let mut next = 0;
        let mut brought = 0;
        for segment in &plan.segments {
            assert_eq!(segment.steps.start, next);
            next = segment.steps.end;
            let mut end = 0;
            for u in &segment.uploads {
                assert!(u.offset >= end && u.offset % ALIGNMENT == 0 && !plan.resident[u.weight]);
                end = u.offset + u.bytes;
                brought += u.bytes;
            }
            assert!(end <= plan.pool && end == segment.bytes());
            for w in steps[segment.steps.clone()].iter().flatten() {
                let there = segment.uploads.iter().filter(|u| u.weight == *w).count();
                assert_eq!(there, usize::from(!plan.resident[*w]));
            }
        }
        assert_eq!(next, steps.len());
        brought
    }

    /// Bytes that a cache of the same room brings per run when what was used longest ago goes.
    fn least_recently_used(steps: &[Vec<usize>], weights: &[Demand], room: u64) -> u64 {
        let (mut cache, mut brought): (Vec<usize>, u64) = (Vec::new(), 0);
        for run in 0..3 {
            for &w in steps.iter().flatten() {
                match cache.iter().position(|&c| c == w) {
                    Some(at) => drop(cache.remove(at)),
                    None if run == 2 => brought += weights[w].bytes,
                    None => {}
                }
                cache.push(w);
                while cache.iter().map(|&c| weights[c].bytes).sum::<u64>() > room {
                    cache.remove(0);
                }
            }
        }
        brought
    }

    #[test]
    fn what_fits_stays() {
        let steps = [vec![0], vec![], vec![1, 2]];
        let weights = demands(&[300 * KB, 10, 20]);
        let made = plan(&steps, &weights, 301 * KB, u64::MAX).unwrap();
        assert_eq!((made.pool, made.segments.len()), (0, 1));
        assert_eq!(bytes_of_a_run(&made, &steps, &weights, 301 * KB), 0);
    }

    #[test]
    fn a_cycle_keeps_a_part_where_a_cache_would_keep_nothing() {
        // 32 layers of two weights, in a quarter of the room.
        let steps: Vec<Vec<usize>> = (0..64).map(|w| vec![w]).collect();
        let weights = demands(&vec![256 * KB; 64]);
        let room = 16 * 256 * KB;
        let made = plan(&steps, &weights, room, u64::MAX).unwrap();
        let brought = bytes_of_a_run(&made, &steps, &weights, room);
        assert!(brought <= 50 * 256 * KB, "{}", brought / KB);
        assert_eq!(least_recently_used(&steps, &weights, room), 64 * 256 * KB);
    }

    #[test]
    fn random_programs() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut planned, mut refused) = (0, 0);
        for round in 0..2_000 {
            let n = rng.usize(1..40);
            let weights: Vec<Demand> = (0..n)
                .map(|_| Demand { bytes: rng.u64(1..400 * KB), kept: rng.u8(..) < 40 })
                .collect();
            let steps: Vec<Vec<usize>> = (0..rng.usize(1..60))
                .map(|_| {
                    let mut step: Vec<usize> =
                        (0..rng.usize(..4)).map(|_| rng.usize(..n)).collect();
                    step.sort_unstable();
                    step.dedup();
                    step
                })
                .collect();
            let total: u64 = weights.iter().map(|w| w.bytes).sum();
            let room = rng.u64(..total + 100);
            match plan(&steps, &weights, room, u64::MAX) {
                Ok(made) => {
                    bytes_of_a_run(&made, &steps, &weights, room);
                    planned += 1;
                }
                Err(e) => {
                    assert!(e.needed > room && e.bytes > 0, "round {round}: {e:?}");
                    let made = plan(&steps, &weights, e.needed, u64::MAX).unwrap();
                    bytes_of_a_run(&made, &steps, &weights, e.needed);
                    refused += 1;
                }
            }
        }
        assert!(planned > 1_000 && refused > 100, "{planned} {refused}");
    }

    #[test]
    fn the_step_that_needs_most_is_named() {
        let steps = [vec![0], vec![1, 2], vec![0]];
        let weights = demands(&[100 * KB, 300 * KB, 300 * KB]);
        let e = plan(&steps, &weights, 50 * KB, u64::MAX).unwrap_err();
        assert_eq!((e.step, e.bytes), (1, 600 * KB));
        assert!(plan(&steps, &weights, e.needed, u64::MAX).is_ok());
        assert!(plan(&steps, &weights, e.needed - 1, u64::MAX).is_err());
    }
}
