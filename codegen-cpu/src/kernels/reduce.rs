//! Reductions over any axes of a row-major tensor, of every plain type.
//!
//! Neighbouring axes that are both reduced, or both kept, are one axis here ([`Plan::new`]). When
//! the last axis is reduced, each result is made of runs of neighbouring elements; when it is
//! kept, blocks of columns are reduced side by side. Sums run in parallel lanes that are joined
//! in wide numbers every few thousand elements, so their error does not grow with the length.
//! The order of a sum depends on shapes alone, never on the number of threads.

use std::ops::Range;

use half::{bf16, f16};

use super::isa::Isa;
use super::simd::{Scalar, Simd, dispatch};

const MAX_AXES: usize = aether_ir::types::MAX_RANK;
/// Lanes of a run.
const LANES: usize = 64;
/// Elements of a run that lanes sum before they are joined.
const RUN: usize = 4096;
/// Columns that are reduced side by side.
const COLUMNS: usize = 256;
/// Rows of columns that lanes sum before they are joined.
const ROWS: usize = 64;
/// Parts that a long reduction with few results falls into.
pub const PARTS: usize = 16;

/// What a reduction does with its elements.
pub trait Fold: 'static {
    /// An element.
    type E: Copy + Send + Sync;
    /// A lane: short sums.
    type L: Copy;
    /// A wide number: sums of lanes; at most 8 bytes.
    type W: Copy;

    fn lane() -> Self::L;
    fn step(lane: Self::L, x: Self::E) -> Self::L;
    fn wide() -> Self::W;
    fn join(wide: Self::W, lane: Self::L) -> Self::W;
    fn merge(a: Self::W, b: Self::W) -> Self::W;
    /// The result of `n` elements.
    fn finish(wide: Self::W, n: usize) -> Self::E;
}

/// Sum, or mean.
pub struct Sum<E, const MEAN: bool>(std::marker::PhantomData<E>);
/// Product.
pub struct Product<E>(std::marker::PhantomData<E>);
/// Greatest; the first NaN wins.
pub struct Greatest<E>(std::marker::PhantomData<E>);
/// Smallest; the first NaN wins.
pub struct Smallest<E>(std::marker::PhantomData<E>);

macro_rules! float_folds {
    ($($e:ident, $lane:ty, $from:expr, $to:expr;)*) => {$(
        impl<const MEAN: bool> Fold for Sum<$e, MEAN> {
            type E = $e;
            type L = $lane;
            type W = f64;

            #[inline(always)]
            fn lane() -> $lane {
                0.0
            }
            #[inline(always)]
            fn step(lane: $lane, x: $e) -> $lane {
                lane + $from(x)
            }
            #[inline(always)]
            fn wide() -> f64 {
                0.0
            }
            #[inline(always)]
            fn join(wide: f64, lane: $lane) -> f64 {
                wide + f64::from(lane)
            }
            #[inline(always)]
            fn merge(a: f64, b: f64) -> f64 {
                a + b
            }
            #[inline(always)]
            fn finish(wide: f64, n: usize) -> $e {
                $to(if MEAN { wide / n as f64 } else { wide })
            }
        }

        impl Fold for Product<$e> {
            type E = $e;
            // Short products of f32 may leave its range where the whole does not.
            type L = f64;
            type W = f64;

            #[inline(always)]
            fn lane() -> f64 {
                1.0
            }
            #[inline(always)]
            fn step(lane: f64, x: $e) -> f64 {
                lane * f64::from($from(x))
            }
            #[inline(always)]
            fn wide() -> f64 {
                1.0
            }
            #[inline(always)]
            fn join(wide: f64, lane: f64) -> f64 {
                wide * lane
            }
            #[inline(always)]
            fn merge(a: f64, b: f64) -> f64 {
                a * b
            }
            #[inline(always)]
            fn finish(wide: f64, _: usize) -> $e {
                $to(wide)
            }
        }

        extreme!(Greatest, $e, <$e>::NEG_INFINITY, |a: $e, b: $e| b > a || is_nan(b));
        extreme!(Smallest, $e, <$e>::INFINITY, |a: $e, b: $e| b < a || is_nan(b));
    )*};
}

macro_rules! extreme {
    ($fold:ident, $e:ident, $start:expr, $better:expr) => {
        impl Fold for $fold<$e> {
            type E = $e;
            type L = $e;
            type W = $e;

            #[inline(always)]
            fn lane() -> $e {
                $start
            }
            #[inline(always)]
            fn step(lane: $e, x: $e) -> $e {
                if $better(lane, x) { x } else { lane }
            }
            #[inline(always)]
            fn wide() -> $e {
                $start
            }
            #[inline(always)]
            fn join(wide: $e, lane: $e) -> $e {
                Self::step(wide, lane)
            }
            #[inline(always)]
            fn merge(a: $e, b: $e) -> $e {
                Self::step(a, b)
            }
            #[inline(always)]
            fn finish(wide: $e, _: usize) -> $e {
                wide
            }
        }
    };
}

macro_rules! int_folds {
    ($($e:ident)*) => {$(
        int_folds!(@wrapping Sum<$e, false>, $e, 0, wrapping_add);
        int_folds!(@wrapping Product<$e>, $e, 1, wrapping_mul);
        extreme!(Greatest, $e, $e::MIN, |a: $e, b: $e| b > a);
        extreme!(Smallest, $e, $e::MAX, |a: $e, b: $e| b < a);
    )*};
    (@wrapping $fold:ty, $e:ident, $start:literal, $op:ident) => {
        impl Fold for $fold {
            type E = $e;
            type L = $e;
            type W = $e;

            #[inline(always)]
            fn lane() -> $e {
                $start
            }
            #[inline(always)]
            fn step(lane: $e, x: $e) -> $e {
                lane.$op(x)
            }
            #[inline(always)]
            fn wide() -> $e {
                $start
            }
            #[inline(always)]
            fn join(wide: $e, lane: $e) -> $e {
                wide.$op(lane)
            }
            #[inline(always)]
            fn merge(a: $e, b: $e) -> $e {
                a.$op(b)
            }
            #[inline(always)]
            fn finish(wide: $e, _: usize) -> $e {
                wide
            }
        }
    };
}

#[inline(always)]
#[allow(clippy::eq_op)]
fn is_nan<T: PartialEq + Copy>(x: T) -> bool {
    x != x
}

float_folds! {
    f32, f32, |x: f32| x, |w: f64| w as f32;
    f64, f64, |x: f64| x, |w: f64| w;
    f16, f32, f16::to_f32, |w: f64| f16::from_f32(w as f32);
    bf16, f32, bf16::to_f32, |w: f64| bf16::from_f32(w as f32);
}
int_folds!(i8 i16 i32 i64 u8 u32);

#[derive(Clone, Copy, Debug, Default)]
struct Axis {
    len: usize,
    stride: usize,
}

/// A list of axes, outermost first.
#[derive(Clone, Copy, Debug, Default)]
struct Axes {
    axes: [Axis; MAX_AXES],
    rank: usize,
}

impl Axes {
    fn push(&mut self, axis: Axis) {
        self.axes[self.rank] = axis;
        self.rank += 1;
    }

    fn count(&self) -> usize {
        self.axes[..self.rank].iter().map(|a| a.len).product()
    }

    /// The offset of position number `index`.
    fn offset(&self, mut index: usize) -> usize {
        let mut offset = 0;
        for axis in self.axes[..self.rank].iter().rev() {
            offset += index % axis.len * axis.stride;
            index /= axis.len;
        }
        offset
    }
}

/// A reduction of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Kept axes but for the columns.
    kept: Axes,
    /// Reduced axes, the run as the last.
    reduced: Axes,
    /// Neighbouring kept elements; 1 when the last axis is reduced.
    columns: usize,
    /// Elements of each result.
    each: usize,
}

impl Plan {
    /// The plan for a shape whose axes are reduced where `reduced` says so.
    pub fn new(axes: impl DoubleEndedIterator<Item = (usize, bool)>) -> Plan {
        let mut merged: [(usize, bool); MAX_AXES] = [(1, false); MAX_AXES];
        let mut rank = 0;
        for (len, reduced) in axes.filter(|a| a.0 != 1) {
            if rank > 0 && merged[rank - 1].1 == reduced {
                merged[rank - 1].0 *= len;
            } else if rank < MAX_AXES {
                merged[rank] = (len, reduced);
                rank += 1;
            }
        }
        let (mut kept, mut over) = (Axes::default(), Axes::default());
        let mut stride: usize = merged[..rank].iter().map(|a| a.0).product();
        let mut columns = 1;
        for (i, &(len, reduced)) in merged[..rank].iter().enumerate() {
            stride /= len.max(1);
            let axis = Axis { len, stride };
            match reduced {
                true => over.push(axis),
                false if i + 1 == rank => columns = len,
                false => kept.push(axis),
            }
        }
        if over.rank == 0 {
            over.push(Axis { len: 1, stride: 1 });
        }
        Plan { kept, reduced: over, columns, each: over.count() }
    }

    /// Number of results.
    pub fn results(&self) -> usize {
        self.kept.count() * self.columns
    }

    fn blocks(&self) -> usize {
        self.columns.div_ceil(COLUMNS)
    }

    /// Units of work that make all results: of one result, or one block of columns.
    pub fn units(&self) -> usize {
        self.kept.count() * self.blocks()
    }

    /// Units that one claim should cover.
    pub fn units_per_claim(&self) -> usize {
        let each = self.each.saturating_mul(self.columns.min(COLUMNS));
        (16 * RUN / each.max(1)).max(1)
    }

    /// Whether the work should be split within results: too few of them, of many elements.
    pub fn wants_parts(&self) -> bool {
        let elements = self.each.saturating_mul(self.results());
        self.units() < PARTS && elements > (1 << 16) && self.reduced.axes[0].len >= PARTS
    }

    /// The share of the outermost reduced axis that part `part` of `parts` has.
    fn part(&self, part: usize, parts: usize) -> Range<usize> {
        let len = self.reduced.axes[0].len;
        len * part / parts..len * (part + 1) / parts
    }
}

/// Where results go.
#[derive(Clone, Copy)]
enum Out<E, W> {
    Finished(*mut E),
    Wide(*mut W),
}

#[derive(Clone, Copy)]
struct Job<'a> {
    plan: &'a Plan,
    units: (usize, usize),
    rows: (usize, usize),
}

#[inline(always)]
unsafe fn body<S: Simd, F: Fold>(job: Job, x: *const F::E, out: Out<F::E, F::W>) {
    let p = job.plan;
    let put = |i: usize, w: F::W| {
        // SAFETY: `i` is a result of a claimed unit.
        unsafe {
            match out {
                Out::Finished(out) => *out.add(i) = F::finish(w, p.each),
                Out::Wide(out) => *out.add(i) = w,
            }
        }
    };
    // SAFETY, for both: offsets within the plan's shape lie within the operand.
    if p.columns == 1 {
        for row in job.units.0..job.units.1 {
            put(row, unsafe { runs::<F>(p, job.rows, x.add(p.kept.offset(row))) });
        }
        return;
    }
    let blocks = p.blocks();
    for unit in job.units.0..job.units.1 {
        let (row, first) = (unit / blocks, unit % blocks * COLUMNS);
        let mut wide = [F::wide(); COLUMNS];
        let wide = &mut wide[..(p.columns - first).min(COLUMNS)];
        unsafe { columns::<F>(p, job.rows, x.add(p.kept.offset(row) + first), wide) };
        for (i, w) in wide.iter().enumerate() {
            put(row * p.columns + first + i, *w);
        }
    }
}

/// Calls `each` with the offset of every position of the reduced axes before the last `skip`,
/// the outermost from `rows.0` to `rows.1`.
#[inline(always)]
fn positions(p: &Plan, skip: usize, rows: (usize, usize), mut each: impl FnMut(usize)) {
    let axes = &p.reduced.axes[..p.reduced.rank - skip];
    let Some((outer, inner)) = axes.split_first() else { return each(0) };
    let inner = Axes { axes: p.reduced.axes, rank: axes.len() }.tail(inner.len());
    let count = inner.count();
    for i in rows.0..rows.1 {
        for j in 0..count {
            each(i * outer.stride + inner.offset(j));
        }
    }
}

impl Axes {
    /// The last `n` axes.
    fn tail(&self, n: usize) -> Axes {
        let mut tail = Axes::default();
        for axis in &self.axes[self.rank - n..self.rank] {
            tail.push(*axis);
        }
        tail
    }
}

/// One result, of runs of neighbours.
#[inline(always)]
unsafe fn runs<F: Fold>(p: &Plan, rows: (usize, usize), x: *const F::E) -> F::W {
    let last = p.reduced.axes[p.reduced.rank - 1];
    // The run itself is what is split where there is no other axis.
    let alone = p.reduced.rank == 1;
    let (start, end) = if alone { rows } else { (0, last.len) };
    let mut wide = F::wide();
    positions(p, 1, rows, |offset| {
        let mut i = start;
        while i < end {
            let n = (end - i).min(RUN);
            // SAFETY: the caller's promise.
            let run = unsafe { std::slice::from_raw_parts(x.add(offset + i), n) };
            if n < LANES {
                wide = F::join(wide, run.iter().fold(F::lane(), |l, &v| F::step(l, v)));
            } else {
                let mut lanes = [F::lane(); LANES];
                let (whole, rest) = run.as_chunks::<LANES>();
                for chunk in whole {
                    for (lane, v) in lanes.iter_mut().zip(chunk) {
                        *lane = F::step(*lane, *v);
                    }
                }
                for (lane, v) in lanes.iter_mut().zip(rest) {
                    *lane = F::step(*lane, *v);
                }
                for lane in lanes {
                    wide = F::join(wide, lane);
                }
            }
            i += n;
        }
    });
    wide
}

/// A block of columns.
#[inline(always)]
unsafe fn columns<F: Fold>(p: &Plan, rows: (usize, usize), x: *const F::E, wide: &mut [F::W]) {
    let mut lanes = [F::lane(); COLUMNS];
    let mut held = 0;
    let width = wide.len();
    positions(p, 0, rows, |offset| {
        // SAFETY: the caller's promise.
        let row = unsafe { std::slice::from_raw_parts(x.add(offset), width) };
        for (lane, v) in lanes.iter_mut().zip(row) {
            *lane = F::step(*lane, *v);
        }
        held += 1;
        if held == ROWS {
            held = 0;
            for (w, lane) in wide.iter_mut().zip(&mut lanes) {
                *w = F::join(*w, std::mem::replace(lane, F::lane()));
            }
        }
    });
    for (w, lane) in wide.iter_mut().zip(lanes) {
        *w = F::join(*w, lane);
    }
}

dispatch! {
    unsafe fn vectors[F: Fold](isa; job: Job<'_>, x: *const F::E, out: Out<F::E, F::W>) = body
}

unsafe fn run<F: Fold>(isa: Isa, job: Job, x: *const F::E, out: Out<F::E, F::W>) {
    // SAFETY: the caller's promise. Other types are for correctness: one copy of their code is
    // enough.
    unsafe {
        if size_of::<F::E>() == 4 {
            vectors::<F>(isa, job, x, out)
        } else {
            body::<Scalar, F>(job, x, out)
        }
    }
}

/// Makes the results of `units`.
///
/// # Safety
/// `x` covers the plan's shape and `out` its results; nobody else writes those of `units`.
pub unsafe fn reduce<F: Fold>(
    isa: Isa,
    plan: &Plan,
    units: Range<usize>,
    x: *const F::E,
    out: *mut F::E,
) {
    let job = Job { plan, units: (units.start, units.end), rows: (0, plan.reduced.axes[0].len) };
    // SAFETY: the caller's promise.
    unsafe { run::<F>(isa, job, x, Out::Finished(out)) }
}

/// Makes part `part` of [`PARTS`] of all results, in wide numbers: `wide` has room for
/// `PARTS · results` of 8 bytes.
///
/// # Safety
/// As [`reduce`]; nobody else makes this part.
pub unsafe fn reduce_part<F: Fold>(
    isa: Isa,
    plan: &Plan,
    part: usize,
    x: *const F::E,
    wide: *mut u8,
) {
    const { assert!(size_of::<F::W>() <= 8) };
    let rows = plan.part(part, PARTS);
    let job = Job { plan, units: (0, plan.units()), rows: (rows.start, rows.end) };
    // SAFETY: the caller's promise.
    unsafe {
        let out = wide.cast::<F::W>().add(part * plan.results());
        run::<F>(isa, job, x, Out::Wide(out));
    }
}

/// Joins the parts of the results in `range`.
///
/// # Safety
/// As [`reduce`]; all parts have been made.
pub unsafe fn join_parts<F: Fold>(
    plan: &Plan,
    range: Range<usize>,
    wide: *const u8,
    out: *mut F::E,
) {
    let wide = wide.cast::<F::W>();
    for i in range {
        let mut sum = F::wide();
        for part in 0..PARTS {
            // SAFETY: the caller's promise.
            sum = F::merge(sum, unsafe { *wide.add(part * plan.results() + i) });
        }
        // SAFETY: as above.
        unsafe { *out.add(i) = F::finish(sum, plan.each) };
    }
}
