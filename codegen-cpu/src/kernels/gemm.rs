//! Dense matrix products.
//!
//! [`linear`] is the layer product `out[t, r] = Σ_k x[t, k] · w[r, k]` with weights row-major in
//! f32, f16 or bf16, and [`matmul`] the general `C = A · B` in f32. Both keep one operand in
//! *panels* (as wide as a register tile, [`pack_rows`], [`pack_columns`]) which all
//! threads share, and walk the rows of the other: the caller splits over rows. A few tokens
//! take the dot-product road of [`gemv`] instead, which reads each weight once and needs no
//! panels; [`wants_panels`] says which.

use std::ops::Range;

use super::isa::Isa;
pub use super::simd::Load;
use super::simd::{self, Geometry, Simd, dispatch};
use super::tile::{Start, dots, tiles};

/// Depth of a block: rows of it, widened, stay in the first-level cache.
const DEPTH: usize = 384;
/// Distance of rows in the widened block, off the powers of two that share cache sets.
const BLOCK_ROW: usize = DEPTH + 16;
/// Register tiles of rows that [`matmul`] takes through a panel before the next one: so many rows
/// of a block stay in the second-level cache, and a panel comes from memory once for all of them.
const STRIPS: usize = 8;

/// Columns of a full panel.
fn width(g: Geometry) -> usize {
    g.vectors * g.lanes
}

/// Columns (tokens) of a full panel.
pub fn panel_width(isa: Isa) -> usize {
    width(simd::geometry(isa))
}

/// Number of panels that hold `n` columns.
pub fn panels(isa: Isa, n: usize) -> usize {
    n.div_ceil(panel_width(isa))
}

/// f32 elements of all panels for `n` columns of depth `k`.
pub fn packed_len(isa: Isa, n: usize, k: usize) -> usize {
    n.next_multiple_of(simd::geometry(isa).lanes) * k
}

/// f32 elements of scratch that one worker needs for [`linear`] or [`matmul`] with `n` columns.
pub fn scratch_len(isa: Isa, n: usize) -> usize {
    let g = simd::geometry(isa);
    let linear = g.rows * (BLOCK_ROW + n.next_multiple_of(g.lanes));
    linear.max(g.rows * (STRIPS * BLOCK_ROW + width(g)))
}

/// Whether [`linear`] over panels beats [`gemv`] for this many tokens.
pub fn wants_panels(isa: Isa, tokens: usize) -> bool {
    tokens >= panel_width(isa)
}

/// Where panel `p` of `n` columns and depth `k` begins, its first column and its width.
fn panel(g: Geometry, n: usize, k: usize, p: usize) -> (usize, usize, usize) {
    let first = p * width(g);
    (first * k, first, (n - first).next_multiple_of(g.lanes).min(width(g)))
}

/// Where panel `p` of `n` columns of depth `k` begins, its first column and how many columns it
/// has, those beyond `n` included: element (i, j) of it stands at `begin + i · width + j`.
pub(super) fn panel_place(isa: Isa, n: usize, k: usize, p: usize) -> (usize, usize, usize) {
    panel(simd::geometry(isa), n, k, p)
}

/// Packs panel `p` of the columns x[0], …, x[n−1], each a *row* of `x` (`[n, k]` row-major): the
/// activations of n tokens for [`linear`], or a transposed right operand for [`matmul`].
///
/// # Safety
/// `out` covers `packed_len(isa, n, k)` elements and no other thread touches panel `p` of it.
///
/// # Panics
/// When `x` is shorter than `n · k` or there is no panel `p`.
pub unsafe fn pack_rows(isa: Isa, x: &[f32], n: usize, k: usize, p: usize, out: *mut f32) {
    assert!(x.len() >= n * k && p < panels(isa, n), "panel {p} of {n} rows does not exist");
    let (at, first, width) = panel(simd::geometry(isa), n, k, p);
    // SAFETY: the panel lies within `out`, and the rows within `x`.
    unsafe {
        let out = out.add(at);
        const STEP: usize = 16;
        let mut k0 = 0;
        while k0 < k {
            let k1 = (k0 + STEP).min(k);
            for j in 0..width {
                if first + j < n {
                    let row = x.as_ptr().add((first + j) * k);
                    for i in k0..k1 {
                        *out.add(i * width + j) = *row.add(i);
                    }
                } else {
                    for i in k0..k1 {
                        *out.add(i * width + j) = 0.0;
                    }
                }
            }
            k0 = k1;
        }
    }
}

/// Packs panel `p` of the columns of `b` (`[k, n]` row-major): the right operand of [`matmul`].
///
/// # Safety
/// As [`pack_rows`].
///
/// # Panics
/// As [`pack_rows`].
pub unsafe fn pack_columns(isa: Isa, b: &[f32], n: usize, k: usize, p: usize, out: *mut f32) {
    assert!(b.len() >= n * k && p < panels(isa, n), "panel {p} of {n} columns does not exist");
    let (at, first, width) = panel(simd::geometry(isa), n, k, p);
    let filled = width.min(n - first);
    // SAFETY: the panel lies within `out`, and the columns within `b`.
    unsafe {
        for i in 0..k {
            let to = out.add(at + i * width);
            std::ptr::copy_nonoverlapping(b.as_ptr().add(i * n + first), to, filled);
            std::ptr::write_bytes(to.add(filled), 0, width - filled);
        }
    }
}

/// The numbers of a product over panels.
#[derive(Clone, Copy)]
struct Shape {
    /// Rows of the row operand to compute: from, to.
    rows: (usize, usize),
    /// Columns in the panels.
    n: usize,
    /// Depth.
    k: usize,
    /// Distance in `out` from one row to the next, and from one column to the next.
    out_step: (usize, usize),
}

/// out(r, c) = Σ_k a[r][k] · panel(k, c).
#[inline(always)]
unsafe fn product_body<S: Simd, E: Load>(
    s: Shape,
    a: *const E,
    packed: *const f32,
    out: *mut f32,
    scratch: *mut f32,
) {
    let l = S::LANES;
    let n_pad = s.n.next_multiple_of(l);
    // SAFETY: the entries check the operands against the shape and the scratch against
    // `scratch_len`; rows beyond the last are zero in the block and are not stored.
    unsafe {
        let block = scratch;
        // One strip of `MR` rows per panel, of the panel's width.
        let sums = scratch.add(S::MR * BLOCK_ROW);
        let mut r = s.rows.0;
        while r < s.rows.1 {
            let live = (s.rows.1 - r).min(S::MR);
            let mut k0 = 0;
            // An empty sum still has to be stored as zero.
            while k0 < s.k || k0 == 0 {
                let depth = (s.k - k0).min(DEPTH);
                for i in 0..S::MR {
                    let to = block.add(i * BLOCK_ROW);
                    if i < live {
                        let from = a.add((r + i) * s.k + k0);
                        let mut j = 0;
                        while j + l <= depth {
                            S::store(to.add(j), E::load::<S>(from.add(j)));
                            j += l;
                        }
                        while j < depth {
                            *to.add(j) = (*from.add(j)).widen();
                            j += 1;
                        }
                    } else {
                        std::ptr::write_bytes(to, 0, depth);
                    }
                }
                let mut first = 0;
                while first < n_pad {
                    let width = (n_pad - first).min(S::NV * l);
                    let b = packed.add(first * s.k + k0 * width);
                    let start = if k0 == 0 { Start::Zero } else { Start::Sum };
                    tiles::<S>(
                        start,
                        depth,
                        (S::MR, width / l),
                        (block, BLOCK_ROW, 1),
                        (b, width),
                        (sums.add(first * S::MR), width),
                    );
                    first += width;
                }
                k0 += DEPTH;
            }
            let mut first = 0;
            while first < n_pad {
                let width = (n_pad - first).min(S::NV * l);
                let strip = sums.add(first * S::MR);
                let filled = width.min(s.n - first);
                if s.out_step.1 == 1 {
                    for i in 0..live {
                        let to = out.add((r + i) * s.out_step.0 + first);
                        std::ptr::copy_nonoverlapping(strip.add(i * width), to, filled);
                    }
                } else {
                    for j in 0..filled {
                        let to = out.add((first + j) * s.out_step.1 + r * s.out_step.0);
                        for i in 0..live {
                            *to.add(i * s.out_step.0) = *strip.add(i * width + j);
                        }
                    }
                }
                first += width;
            }
            r += live;
        }
    }
}

dispatch! {
    unsafe fn product[E: Load](isa; s: Shape, a: *const E, packed: *const f32, out: *mut f32,
        scratch: *mut f32) = product_body
}

/// c(r, c) = Σ_k a[r][k] · panel(k, c), c row-major: blocks of rows and of the depth, the sums in c
/// itself (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).
#[inline(always)]
unsafe fn matmul_body<S: Simd>(
    s: Shape,
    a: *const f32,
    packed: *const f32,
    out: *mut f32,
    scratch: *mut f32,
) {
    let l = S::LANES;
    let n_pad = s.n.next_multiple_of(l);
    let ldc = s.out_step.0;
    // SAFETY: as in `product_body`; tiles that reach beyond the rows or columns go through the
    // strip.
    unsafe {
        let (block, strip) = (scratch, scratch.add(STRIPS * S::MR * BLOCK_ROW));
        let mut r = s.rows.0;
        while r < s.rows.1 {
            let live = (s.rows.1 - r).min(STRIPS * S::MR);
            let mut k0 = 0;
            // An empty sum still has to be stored as zero.
            while k0 < s.k || k0 == 0 {
                let depth = (s.k - k0).min(DEPTH);
                for i in 0..live.next_multiple_of(S::MR) {
                    let to = block.add(i * BLOCK_ROW);
                    if i < live {
                        std::ptr::copy_nonoverlapping(a.add((r + i) * s.k + k0), to, depth);
                    } else {
                        std::ptr::write_bytes(to, 0, depth);
                    }
                }
                let start = if k0 == 0 { Start::Zero } else { Start::Sum };
                let mut first = 0;
                while first < n_pad {
                    let width = (n_pad - first).min(S::NV * l);
                    let b = (packed.add(first * s.k + k0 * width), width);
                    let filled = width.min(s.n - first);
                    let mut i = 0;
                    while i < live {
                        let rows = (live - i).min(S::MR);
                        let a = (block.add(i * BLOCK_ROW).cast_const(), BLOCK_ROW, 1);
                        let to = out.add((r + i) * ldc + first);
                        let size = (S::MR, width / l);
                        if rows == S::MR && filled == width {
                            tiles::<S>(start, depth, size, a, b, (to, ldc));
                        } else {
                            tiles::<S>(Start::Zero, depth, size, a, b, (strip, width));
                            for row in 0..rows {
                                for j in 0..filled {
                                    let (to, sum) =
                                        (to.add(row * ldc + j), strip.add(row * width + j));
                                    *to = if k0 == 0 { *sum } else { *to + *sum };
                                }
                            }
                        }
                        i += S::MR;
                    }
                    first += width;
                }
                k0 += DEPTH;
            }
            r += live;
        }
    }
}

dispatch! {
    unsafe fn blocked(isa; s: Shape, a: *const f32, packed: *const f32, out: *mut f32,
        scratch: *mut f32) = matmul_body
}

/// A matrix of `rows × k` elements in f32, f16 or bf16, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a, E> {
    pub data: &'a [E],
    pub rows: usize,
    pub k: usize,
}

impl<E> Weights<'_, E> {
    fn check(&self, range: &Range<usize>) {
        assert!(self.data.len() >= self.rows * self.k, "a matrix is shorter than its shape");
        assert!(range.start <= range.end && range.end <= self.rows, "rows beyond the matrix");
    }
}

/// `out[t · out_row + r] = Σ_k x[t, k] · w[r, k]` for every token t and the rows r in `range`,
/// where `packed` holds x in panels ([`pack_rows`]).
///
/// # Safety
/// `out` covers the places named, and no other thread touches them.
///
/// # Panics
/// When an operand or the scratch ([`scratch_len`]) is shorter than the shapes say.
pub unsafe fn linear<E: Load>(
    isa: Isa,
    w: Weights<'_, E>,
    range: Range<usize>,
    (packed, tokens): (&[f32], usize),
    (out, out_row): (*mut f32, usize),
    scratch: &mut [f32],
) {
    w.check(&range);
    assert!(packed.len() >= packed_len(isa, tokens, w.k), "panels are shorter than their shape");
    assert!(scratch.len() >= scratch_len(isa, tokens), "scratch is too short");
    let s = Shape { rows: (range.start, range.end), n: tokens, k: w.k, out_step: (1, out_row) };
    // SAFETY: checked, and the caller's promise on `out`.
    unsafe {
        product::<E>(isa, s, w.data.as_ptr(), packed.as_ptr(), out, scratch.as_mut_ptr());
    }
}

/// `c[i · c_row + j] = Σ_k a[i, k] · b[k, j]` for the rows i in `range` and `n` columns, where
/// `packed` holds b in panels ([`pack_columns`]).
///
/// # Safety
/// `c` covers the places named, and no other thread touches them.
///
/// # Panics
/// As [`linear`].
pub unsafe fn matmul(
    isa: Isa,
    a: Weights<'_, f32>,
    range: Range<usize>,
    (packed, n): (&[f32], usize),
    (c, c_row): (*mut f32, usize),
    scratch: &mut [f32],
) {
    a.check(&range);
    assert!(packed.len() >= packed_len(isa, n, a.k), "panels are shorter than their shape");
    assert!(scratch.len() >= scratch_len(isa, n), "scratch is too short");
    let s = Shape { rows: (range.start, range.end), n, k: a.k, out_step: (c_row, 1) };
    // SAFETY: checked, and the caller's promise on `c`.
    unsafe {
        blocked(isa, s, a.data.as_ptr(), packed.as_ptr(), c, scratch.as_mut_ptr());
    }
}

/// `R` rows from row `r` on, times every token.
#[inline(always)]
unsafe fn gemv_rows<S: Simd, E: Load, const R: usize>(
    s: Shape,
    w: *const E,
    x: *const f32,
    out: *mut f32,
    r: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let w = (w.add(r * s.k), s.k);
        let mut t = 0;
        while t < s.n {
            let (x, out) = ((x.add(t * s.k), s.k), out.add(t * s.out_step.1 + r));
            let left = s.n - t;
            t += if left >= 4 && S::DOT_COLS == 4 {
                put(dots::<S, E, R, 4>(s.k, w, x), out, s.out_step.1);
                4
            } else if left >= 2 {
                put(dots::<S, E, R, 2>(s.k, w, x), out, s.out_step.1);
                2
            } else {
                put(dots::<S, E, R, 1>(s.k, w, x), out, s.out_step.1);
                1
            };
        }
    }
}

/// Stores a block of sums transposed: `out[c · step + r] = d[r][c]`.
#[inline(always)]
unsafe fn put<const R: usize, const C: usize>(d: [[f32; C]; R], out: *mut f32, step: usize) {
    for (r, row) in d.iter().enumerate() {
        for (c, v) in row.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *out.add(c * step + r) = *v };
        }
    }
}

#[inline(always)]
unsafe fn gemv_body<S: Simd, E: Load>(s: Shape, w: *const E, x: *const f32, out: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut r = s.rows.0;
        while r + 4 <= s.rows.1 {
            gemv_rows::<S, E, 4>(s, w, x, out, r);
            r += 4;
        }
        while r < s.rows.1 {
            gemv_rows::<S, E, 1>(s, w, x, out, r);
            r += 1;
        }
    }
}

dispatch! {
    unsafe fn gemv_raw[E: Load](isa; s: Shape, w: *const E, x: *const f32, out: *mut f32)
        = gemv_body
}

/// `out[t · out_row + r] = Σ_k x[t, k] · w[r, k]` for the rows r in `range`, for few tokens:
/// `x` is `[tokens, k]` row-major as it is.
///
/// # Safety
/// `out` covers the places named, and no other thread touches them.
///
/// # Panics
/// When an operand is shorter than the shapes say.
pub unsafe fn gemv<E: Load>(
    isa: Isa,
    w: Weights<'_, E>,
    range: Range<usize>,
    (x, tokens): (&[f32], usize),
    (out, out_row): (*mut f32, usize),
) {
    w.check(&range);
    assert!(x.len() >= tokens * w.k, "activations are shorter than their shape");
    let s = Shape { rows: (range.start, range.end), n: tokens, k: w.k, out_step: (1, out_row) };
    // SAFETY: checked, and the caller's promise on `out`.
    unsafe { gemv_raw::<E>(isa, s, w.data.as_ptr(), x.as_ptr(), out) }
}

/// `c = a · b` in f64, all row-major (`[m, k]`, `[k, n]`, `[m, n]`), for the rows in `range`;
/// `c` holds those rows alone. Plain loops: f64 is for checking, not for speed.
///
/// # Panics
/// When an operand is shorter than the shapes say.
pub fn matmul_f64(
    a: &[f64],
    b: &[f64],
    (k, n): (usize, usize),
    range: Range<usize>,
    c: &mut [f64],
) {
    for (i, r) in range.enumerate() {
        let row = &mut c[i * n..(i + 1) * n];
        row.fill(0.0);
        for (kk, &av) in a[r * k..(r + 1) * k].iter().enumerate() {
            for (o, &bv) in row.iter_mut().zip(&b[kk * n..(kk + 1) * n]) {
                *o += av * bv;
            }
        }
    }
}
