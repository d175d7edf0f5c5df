//! Steps of a shape that many ops share: one call for every row, and a copy.

use super::access::Range;
use super::{Count, Lower, Site, View};
use crate::program::{Loc, RunCtx};

/// Bytes that one claim of a copy covers.
const COPY_CHUNK: usize = 1 << 18;

/// Rows that a step works through, and how they are shared out.
pub(super) struct Rows {
    /// How many.
    pub count: Count,
    /// Elements of one.
    pub len: Count,
    /// Claims for each worker: more balance uneven rows, fewer cost less.
    pub claims: usize,
}

impl Rows {
    /// The rows along the last axis of `x`.
    pub fn of(x: &View) -> Self {
        let last = x.dims.len().saturating_sub(1);
        Rows { count: x.rows(), len: x.sizes(last..x.dims.len()), claims: 4 }
    }
}

/// One row of a run.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// Its number.
    pub index: usize,
    /// Its elements.
    pub len: usize,
}

impl Row {
    /// Where the row begins in a value of rows of the same length.
    pub fn at<T>(self, ctx: &RunCtx, loc: Loc) -> *mut T {
        ctx.ptr(loc).cast::<T>().wrapping_add(self.index * self.len)
    }
}

impl Lower<'_> {
    /// Appends the step of `site` that calls `each` once for every row.
    ///
    /// Rows are claimed: no two workers see the same one, so `each` may write what belongs to its
    /// row without further care.
    pub(super) fn rows(
        &mut self,
        site: &Site,
        rows: Rows,
        each: impl Fn(&RunCtx, Row) + Send + Sync + 'static,
    ) {
        self.rows_over(&site.label, site.reads(), site.writes(), rows, each);
    }

    /// [`Lower::rows`] of a step that reads or writes other ranges than its instruction.
    pub(super) fn rows_over(
        &mut self,
        label: &str,
        reads: Vec<Option<Range>>,
        writes: Vec<Option<Range>>,
        rows: Rows,
        each: impl Fn(&RunCtx, Row) + Send + Sync + 'static,
    ) {
        self.emit(
            label,
            reads,
            writes,
            Box::new(move |ctx, work| {
                let len = rows.len.get(ctx.symbols);
                work.split(rows.count.get(ctx.symbols), rows.claims, |claimed| {
                    for index in claimed {
                        each(ctx, Row { index, len });
                    }
                });
            }),
        );
    }

    /// Appends a step that copies the bytes of `from` to `to`, which has room for them and is
    /// the same place or apart from it.
    pub(super) fn copy_value(&mut self, label: &str, from: &View, to: Loc) {
        let (numel, dtype, from_loc) = (from.numel(), from.ty.dtype, from.loc);
        // A view's type has a size: it was checked when the view was made.
        let bytes = from.ty.max_bytes(&self.module.symbols).unwrap_or(0);
        self.emit(
            label,
            [from.range],
            [Range::of(to, bytes)],
            Box::new(move |ctx, work| {
                let n = numel.get(ctx.symbols) / dtype.block_len() * dtype.block_bytes();
                work.chunks(n, COPY_CHUNK, |r| {
                    // SAFETY: both have `n` bytes; claims are disjoint.
                    unsafe {
                        let (from, to) = (ctx.ptr(from_loc), ctx.ptr(to));
                        std::ptr::copy(from.add(r.start), to.add(r.start), r.len());
                    }
                });
            }),
        );
    }
}
