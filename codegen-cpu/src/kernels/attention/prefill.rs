//! Several query tokens: both products in register tiles, one query row per vector lane.

use super::super::isa::Isa;
use super::super::math;
use super::super::simd::{Geometry, Simd, dispatch};
use super::super::tile::{Start, tiles};
use super::cache::{self, CacheElement};
use super::decode::LOWEST;
use super::{Attention, UNIT_ROWS};

/// Keys of a block.
const KEYS: usize = 64;
/// Added to the distance of widened rows, to keep it off the powers of two.
const SKEW: usize = 16;

/// Where the pieces of a unit's scratch lie, in f32 elements.
struct Layout {
    /// Query rows, whole vectors of them.
    rows: usize,
    /// Distance of widened key rows, of widened value rows.
    k_row: usize,
    v_row: usize,
    /// Value columns, whole tiles of them.
    v_cols: usize,
    queries: usize,
    keys: usize,
    values: usize,
    scores: usize,
    sums: usize,
    tops: usize,
    totals: usize,
    factors: usize,
    end: usize,
}

impl Layout {
    fn new(shape: &Attention, rows: usize, lanes: usize, tile_rows: usize) -> Layout {
        let rows = rows.next_multiple_of(lanes);
        let most_keys = KEYS.next_multiple_of(tile_rows);
        let k_row = shape.head_dim + SKEW;
        let v_cols = shape.v_dim.next_multiple_of(tile_rows);
        let v_row = v_cols + SKEW;
        let queries = 0;
        let keys = queries + shape.head_dim * rows;
        let values = keys + most_keys * k_row;
        let scores = values + KEYS * v_row;
        let sums = scores + most_keys * rows;
        let tops = sums + v_cols * rows;
        let totals = tops + rows;
        let factors = totals + rows;
        let end = factors + rows;
        Layout {
            rows,
            k_row,
            v_row,
            v_cols,
            queries,
            keys,
            values,
            scores,
            sums,
            tops,
            totals,
            factors,
            end,
        }
    }
}

/// f32 elements of scratch of [`unit`], whatever the number of tokens.
pub fn scratch_len(shape: &Attention, g: Geometry) -> usize {
    let group = shape.group();
    let rows = group * (UNIT_ROWS / group).max(1);
    Layout::new(shape, rows, g.lanes, g.rows).end
}

/// Writes `n` rows from a place on as f32: instruction set, first row, row length in memory and
/// elements of a row, the same of the output, rows.
type Widen = unsafe fn(Isa, *const u8, usize, (usize, usize), (*mut f32, usize), usize);

unsafe fn widen<E: CacheElement>(
    isa: Isa,
    from: *const u8,
    row: usize,
    dim: (usize, usize),
    to: (*mut f32, usize),
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { cache::widen::<E>(isa, (from.cast(), row), to, n, dim) }
}

/// Rows of a cache, of whatever type.
#[derive(Clone, Copy)]
pub struct CacheRows {
    isa: Isa,
    data: *const u8,
    /// Values of the type in a row, and in a head's part of it.
    row: usize,
    head: usize,
    bytes: usize,
    widen: Widen,
}

impl CacheRows {
    /// Rows of `heads` heads of `dim` elements.
    pub fn new<E: CacheElement>(isa: Isa, data: *const E, heads: usize, dim: usize) -> CacheRows {
        let head = dim / E::LEN;
        CacheRows {
            isa,
            data: data.cast(),
            row: heads * head,
            head,
            bytes: size_of::<E>(),
            widen: widen::<E>,
        }
    }

    /// Writes `n` rows from `first` on of one head as f32.
    ///
    /// # Safety
    /// The cache has the rows, and `to` covers them.
    #[inline(always)]
    unsafe fn widen(
        &self,
        (first, n): (usize, usize),
        head: usize,
        to: (*mut f32, usize),
        dim: (usize, usize),
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let from = self.data.add((first * self.row + head * self.head) * self.bytes);
            (self.widen)(self.isa, from, self.row, dim, to, n);
        }
    }
}

/// Hides from each query row the keys it must not see: `first` is the position of the block's
/// first key, `position` that of the unit's first token.
#[inline(always)]
unsafe fn mask(
    shape: &Attention,
    scores: *mut f32,
    rows: usize,
    n: usize,
    first: usize,
    (position, tokens): (usize, usize),
) {
    let group = shape.group();
    for j in 0..n {
        let key = first + j;
        // Tokens before `key` come too early, those from `key + window` on too late.
        let early = if shape.causal { key.saturating_sub(position).min(tokens) } else { 0 };
        let late = match shape.window {
            None => tokens,
            Some(w) => key.saturating_add(w).saturating_sub(position).min(tokens),
        };
        // SAFETY: `tokens · group <= rows`, and the block has `n` rows of scores.
        unsafe {
            let row = scores.add(j * rows);
            for i in (0..early * group).chain(late * group..tokens * group) {
                *row.add(i) = f32::NEG_INFINITY;
            }
        }
    }
}

/// Turns a block's scores into weights, updates maxima and totals, and rescales the sums.
#[inline(always)]
unsafe fn soften<S: Simd>(shape: &Attention, base: *mut f32, at: &Layout, n: usize) {
    let l = S::LANES;
    // SAFETY: the layout's pieces lie within the scratch.
    unsafe {
        let mut i = 0;
        while i < at.rows {
            let scores = base.add(at.scores + i);
            let (top_at, total_at) = (base.add(at.tops + i), base.add(at.totals + i));
            let before = S::load(top_at);
            let mut top = before;
            let mut other = before;
            let mut j = 0;
            while j + 2 <= n {
                top = S::max(top, S::load(scores.add(j * at.rows)));
                other = S::max(other, S::load(scores.add((j + 1) * at.rows)));
                j += 2;
            }
            if j < n {
                top = S::max(top, S::load(scores.add(j * at.rows)));
            }
            top = S::max(top, other);
            S::store(top_at, top);
            let factor = math::exp::<S>(S::sub(before, top));
            S::store(base.add(at.factors + i), factor);
            let mut total = S::mul(S::load(total_at), factor);
            for j in 0..n {
                let p = scores.add(j * at.rows);
                let e = math::exp::<S>(S::sub(S::load(p), top));
                S::store(p, e);
                total = S::add(total, e);
            }
            S::store(total_at, total);
            i += l;
        }
        for c in 0..shape.v_dim {
            let sums = base.add(at.sums + c * at.rows);
            let mut i = 0;
            while i < at.rows {
                let f = S::load(base.add(at.factors + i));
                S::store(sums.add(i), S::mul(S::load(sums.add(i)), f));
                i += l;
            }
        }
    }
}

#[inline(always)]
unsafe fn unit_body<S: Simd>(
    shape: &Attention,
    (q, k, v): (*const f32, CacheRows, CacheRows),
    kv_head: usize,
    (start, end): (usize, usize),
    out: *mut f32,
    scratch: *mut f32,
) {
    let group = shape.group();
    let (dim, v_dim) = (shape.head_dim, shape.v_dim);
    let tokens = end - start;
    let live = tokens * group;
    let at = Layout::new(shape, live, S::LANES, S::MR);
    let vectors = at.rows / S::LANES;
    let position = shape.past + start;
    let base = scratch;
    // With a soft cap the queries carry scale / cap.
    let scale = shape.soft_cap.map_or(shape.scale, |c| shape.scale / c);
    // SAFETY: the entries check the arrays against the shape and the scratch against
    // `scratch_len`, which is no less than the layout's end.
    unsafe {
        // Queries, transposed: [dim][rows], row = token · group + head.
        std::ptr::write_bytes(base.add(at.queries), 0, dim * at.rows);
        for t in 0..tokens {
            let q = q.add(((start + t) * shape.heads + kv_head * group) * dim);
            for g in 0..group {
                let to = base.add(at.queries + t * group + g);
                for c in 0..dim {
                    *to.add(c * at.rows) = *q.add(g * dim + c) * scale;
                }
            }
        }
        std::ptr::write_bytes(base.add(at.sums), 0, at.v_cols * at.rows);
        std::ptr::write_bytes(base.add(at.totals), 0, at.rows);
        for i in 0..at.rows {
            *base.add(at.tops + i) = LOWEST;
        }

        let keys = shape.keys(start, end);
        let mut first = keys.start;
        while first < keys.end {
            let n = (keys.end - first).min(KEYS);
            let padded = n.next_multiple_of(S::MR);
            k.widen((first, n), kv_head, (base.add(at.keys), at.k_row), (dim, dim));
            for j in n..padded {
                std::ptr::write_bytes(base.add(at.keys + j * at.k_row), 0, dim);
            }
            tiles::<S>(
                Start::Zero,
                dim,
                (padded, vectors),
                (base.add(at.keys), at.k_row, 1),
                (base.add(at.queries), at.rows),
                (base.add(at.scores), at.rows),
            );
            if let Some(cap) = shape.soft_cap {
                let mut i = 0;
                while i < n * at.rows {
                    let p = base.add(at.scores + i);
                    S::store(p, S::mul(math::tanh::<S>(S::load(p)), S::splat(cap)));
                    i += S::LANES;
                }
            }
            let whole = (!shape.causal || first + n <= position + 1)
                && shape.window.is_none_or(|w| position + tokens - 1 < first.saturating_add(w));
            if !whole {
                let scores = base.add(at.scores);
                mask(shape, scores, at.rows, n, first, (position, tokens));
            }
            soften::<S>(shape, base, &at, n);
            let to = (base.add(at.values), at.v_row);
            v.widen((first, n), kv_head, to, (v_dim, at.v_cols));
            tiles::<S>(
                Start::Sum,
                n,
                (at.v_cols, vectors),
                (base.add(at.values), 1, at.v_row),
                (base.add(at.scores), at.rows),
                (base.add(at.sums), at.rows),
            );
            first += n;
        }

        for r in 0..live {
            let (t, g) = (r / group, r % group);
            let to = out.add(((start + t) * shape.heads + kv_head * group + g) * v_dim);
            let inverse = 1.0 / *base.add(at.totals + r);
            for c in 0..v_dim {
                *to.add(c) = *base.add(at.sums + c * at.rows + r) * inverse;
            }
        }
    }
}

dispatch! {
    /// See [`super::attention`]: the tokens from `span.0` to `span.1` and the heads of one
    /// key/value head.
    ///
    /// # Safety
    /// The arrays cover what the shape says.
    pub unsafe fn unit(isa; shape: &Attention, qkv: (*const f32, CacheRows, CacheRows),
        kv_head: usize, span: (usize, usize), out: *mut f32, scratch: *mut f32) = unit_body
}
