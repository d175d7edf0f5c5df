//! Moving elements from one strided view to another: transposes, slices, broadcasts, turned axes,
//! joined and padded tensors are all this, with other strides.
//!
//! A [`Walk`] is the common shape of both views with the distance, in elements, between
//! neighbours in either. Neighbouring axes that are one run in both views are merged, so that a
//! plain copy is one axis. Where the source's rows lie across the destination's (a transpose),
//! elements move in square tiles, which read and write whole cache lines.

use std::ops::Range;

/// Most axes of a walk.
pub const MAX_AXES: usize = aether_ir::types::MAX_RANK;

/// Elements of a row that one unit of work covers.
const RUN: usize = 8192;
/// Edge of a tile.
const TILE: usize = 32;

/// One axis: its length, and the distance of neighbours in the source and the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Axis {
    pub len: usize,
    pub from: isize,
    pub to: isize,
}

/// The axes of a move, outermost first.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    axes: [Axis; MAX_AXES],
    rank: usize,
    /// Whether the last two axes are walked in tiles.
    tiled: bool,
}

impl Walk {
    /// A walk over these axes (the first [`MAX_AXES`] of them), innermost last.
    pub fn new(all: impl IntoIterator<Item = Axis>) -> Walk {
        let (mut axes, mut rank) = ([Axis::default(); MAX_AXES], 0usize);
        let mut empty = false;
        for axis in all.into_iter().take(MAX_AXES) {
            empty |= axis.len == 0;
            if axis.len == 1 {
                continue;
            }
            if let Some(outer) = rank.checked_sub(1).map(|r| &mut axes[r]) {
                let len = axis.len as isize;
                if outer.from == axis.from * len && outer.to == axis.to * len {
                    *outer = Axis { len: outer.len * axis.len, ..axis };
                    continue;
                }
            }
            axes[rank] = axis;
            rank += 1;
        }
        if empty {
            (axes[0], rank) = (Axis { len: 0, from: 1, to: 1 }, 1);
        } else if rank == 0 {
            (axes[0], rank) = (Axis { len: 1, from: 1, to: 1 }, 1);
        }
        // Tiles pay where the source runs along another axis than the destination.
        let inner = axes[rank - 1];
        let along = axes[..rank - 1].iter().rposition(|a| a.from.abs() == 1);
        let tiled = match along {
            Some(i) if inner.from.abs() > 1 && inner.to == 1 => {
                axes[i..rank - 1].rotate_left(1);
                true
            }
            _ => false,
        };
        Walk { axes, rank, tiled }
    }

    /// Axes beyond those that one unit walks, and the pieces that the unit's axis falls into.
    fn split(&self) -> (usize, usize) {
        if self.tiled {
            (self.rank - 2, self.axes[self.rank - 2].len.div_ceil(TILE))
        } else {
            (self.rank - 1, self.axes[self.rank - 1].len.div_ceil(RUN))
        }
    }

    /// Number of units of work.
    pub fn units(&self) -> usize {
        let (outer, pieces) = self.split();
        self.axes[..outer].iter().map(|a| a.len).product::<usize>() * pieces
    }

    /// Units that one claim should cover, so that it moves some thousand elements.
    pub fn units_per_claim(&self) -> usize {
        let inner = self.axes[self.rank - 1].len;
        let each = if self.tiled { inner.min(RUN) * TILE } else { inner.min(RUN) };
        (2 * RUN / each.max(1)).max(1)
    }

    /// Moves the elements of `units`, `size` bytes each (1, 2, 4 or 8).
    ///
    /// # Safety
    /// Both views lie within memory that may be read or written, from their first elements `from`
    /// and `to` on, aligned to `size`; no other thread writes these elements; the views are apart,
    /// or the same.
    ///
    /// # Panics
    /// When `size` is none of those.
    pub unsafe fn run(&self, units: Range<usize>, size: usize, from: *const u8, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            match size {
                1 => self.typed::<u8>(units, from, to),
                2 => self.typed::<u16>(units, from.cast(), to.cast()),
                4 => self.typed::<u32>(units, from.cast(), to.cast()),
                8 => self.typed::<u64>(units, from.cast(), to.cast()),
                _ => panic!("elements of {size} bytes are not moved"),
            }
        }
    }

    unsafe fn typed<T: Copy>(&self, units: Range<usize>, from: *const T, to: *mut T) {
        let (outer, pieces) = self.split();
        let mut at = [0usize; MAX_AXES];
        let mut row = units.start / pieces.max(1);
        let (mut source, mut target) = (0isize, 0isize);
        for i in (0..outer).rev() {
            let axis = self.axes[i];
            at[i] = row % axis.len;
            row /= axis.len;
            source += at[i] as isize * axis.from;
            target += at[i] as isize * axis.to;
        }
        let mut piece = units.start % pieces.max(1);
        for _ in units {
            // SAFETY: the caller's promise; the position lies within the axes.
            unsafe {
                let (from, to) = (from.wrapping_offset(source), to.wrapping_offset(target));
                if self.tiled {
                    self.tiles(piece * TILE, from, to);
                } else {
                    let axis = self.axes[self.rank - 1];
                    let start = piece * RUN;
                    let len = (axis.len - start).min(RUN);
                    let skip = |step: isize| start as isize * step;
                    run(
                        Axis { len, ..axis },
                        from.wrapping_offset(skip(axis.from)),
                        to.wrapping_offset(skip(axis.to)),
                    );
                }
            }
            piece += 1;
            if piece < pieces {
                continue;
            }
            piece = 0;
            for i in (0..outer).rev() {
                let axis = self.axes[i];
                at[i] += 1;
                source += axis.from;
                target += axis.to;
                if at[i] < axis.len {
                    break;
                }
                at[i] = 0;
                source -= axis.len as isize * axis.from;
                target -= axis.len as isize * axis.to;
            }
        }
    }

    /// The tiles of rows `first..first + TILE` of the last but one axis.
    unsafe fn tiles<T: Copy>(&self, first: usize, from: *const T, to: *mut T) {
        let (rows, columns) = (self.axes[self.rank - 2], self.axes[self.rank - 1]);
        let last = rows.len.min(first + TILE);
        let mut start = 0;
        while start < columns.len {
            let end = columns.len.min(start + TILE);
            for r in first..last {
                let from = from.wrapping_offset(r as isize * rows.from);
                let to = to.wrapping_offset(r as isize * rows.to);
                for c in start as isize..end as isize {
                    // SAFETY: the caller's promise.
                    unsafe {
                        *to.wrapping_offset(c) = *from.wrapping_offset(c * columns.from);
                    }
                }
            }
            start = end;
        }
    }
}

/// One run of elements.
unsafe fn run<T: Copy>(axis: Axis, from: *const T, to: *mut T) {
    let n = axis.len;
    // SAFETY: the caller's promise.
    unsafe {
        match (axis.from, axis.to) {
            (1, 1) => std::ptr::copy(from, to, n),
            (0, 1) => std::slice::from_raw_parts_mut(to, n).fill(*from),
            (from_step, to_step) => {
                for i in 0..n as isize {
                    *to.wrapping_offset(i * to_step) = *from.wrapping_offset(i * from_step);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(walk: &Walk, from: &[u16], to: &mut [u16], first: (usize, usize)) {
        // Unit by unit and all at once.
        for all in [true, false] {
            let n = walk.units();
            let step = if all { n.max(1) } else { 1 };
            for r in (0..n).step_by(step).map(|i| i..n.min(i + step)) {
                // SAFETY: the tests' strides stay within the vectors.
                unsafe {
                    let to = to.as_mut_ptr().add(first.1).cast();
                    walk.run(r, 2, from.as_ptr().add(first.0).cast(), to);
                }
            }
        }
    }

    #[test]
    fn random_walks_move_every_element() {
        let mut rng = fastrand::Rng::with_seed(1);
        for round in 0..400 {
            let rank = rng.usize(0..5);
            let big = if round % 8 == 0 { 70 } else { 6 };
            let len: Vec<usize> = (0..rank).map(|_| rng.usize(1..big)).collect();
            if len.iter().product::<usize>() > 200_000 {
                continue;
            }
            // The source's axes lie in memory in any order, turned or repeated.
            let mut order: Vec<usize> = (0..rank).collect();
            rng.shuffle(&mut order);
            let (mut from, mut stride, mut first) = (vec![0isize; rank], 1isize, 0isize);
            for &i in &order {
                match rng.u8(0..6) {
                    0 => continue,
                    1 => {
                        from[i] = -stride;
                        first += stride * (len[i] as isize - 1);
                    }
                    _ => from[i] = stride,
                }
                stride *= len[i] as isize;
            }
            let source: Vec<u16> = (0..stride.max(1)).map(|i| i as u16).collect();
            let mut to = vec![1isize; rank];
            for i in (0..rank.saturating_sub(1)).rev() {
                to[i] = to[i + 1] * len[i + 1] as isize;
            }
            let n: usize = len.iter().product();
            let mut target = vec![u16::MAX; n];
            let axes = (0..rank).map(|i| Axis { len: len[i], from: from[i], to: to[i] });
            moved(&Walk::new(axes), &source, &mut target, (first as usize, 0));
            for (index, got) in target.iter().enumerate() {
                let (mut rest, mut at) = (index, first);
                for i in (0..rank).rev() {
                    at += (rest % len[i]) as isize * from[i];
                    rest /= len[i];
                }
                assert_eq!(*got, source[at as usize], "{len:?} {from:?}");
            }
        }
    }

    #[test]
    fn runs_are_merged_and_nothing_is_nothing() {
        let axis = |len, from, to| Axis { len, from, to };
        let copy = Walk::new([axis(4, 15, 15), axis(3, 5, 5), axis(1, 9, 2), axis(5, 1, 1)]);
        assert_eq!((copy.rank, copy.axes[0]), (1, axis(60, 1, 1)));
        assert_eq!(Walk::new([axis(4, 1, 3), axis(3, 4, 1)]).units(), 1);
        assert_eq!(Walk::new([axis(4, 0, 0), axis(0, 1, 1)]).units(), 0);
        assert_eq!(Walk::new([]).units(), 1);
    }
}
