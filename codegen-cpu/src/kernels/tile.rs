//! Register tiles that the dense product and attention share.

use super::simd::{Load, Simd};

/// What a tile's sums start from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Zero.
    Zero,
    /// What `c` holds.
    Sum,
}

/// `c[i][j] (+)= Σ_k a(i, k) · b[k][j]` for `MR` rows and `NV` vectors of columns, where
/// `a(i, k) = a[i·a_row + k·a_col]` and b and c are row-major with rows `ldb` and `ldc` apart.
///
/// # Safety
/// The pointers cover what the formula names; S's instruction set is available.
#[inline(always)]
pub unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(
    start: Start,
    depth: usize,
    (a, a_row, a_col): (*const f32, usize, usize),
    (b, ldb): (*const f32, usize),
    (c, ldc): (*mut f32, usize),
) {
    let l = S::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        if start == Start::Sum {
            for (i, row) in acc.iter_mut().enumerate() {
                for (j, v) in row.iter_mut().enumerate() {
                    *v = S::load(c.add(i * ldc + j * l));
                }
            }
        }
        let (mut a, mut b) = (a, b);
        for _ in 0..depth {
            let mut bv = [S::splat(0.0); NV];
            for (j, v) in bv.iter_mut().enumerate() {
                *v = S::load(b.wrapping_add(j * l));
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let av = S::splat(*a.wrapping_add(i * a_row));
                for (j, v) in row.iter_mut().enumerate() {
                    *v = S::fma(av, bv[j], *v);
                }
            }
            // Wrapping, here and above: debug builds check `add`, which shows in this loop.
            a = a.wrapping_add(a_col);
            b = b.wrapping_add(ldb);
        }
        for (i, row) in acc.iter().enumerate() {
            for (j, v) in row.iter().enumerate() {
                S::store(c.add(i * ldc + j * l), *v);
            }
        }
    }
}

/// [`tile`] over `rows` rows (a multiple of `S::MR`) and `vectors` vectors of columns.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
pub unsafe fn tiles<S: Simd>(
    start: Start,
    depth: usize,
    (rows, vectors): (usize, usize),
    (a, a_row, a_col): (*const f32, usize, usize),
    (b, ldb): (*const f32, usize),
    (c, ldc): (*mut f32, usize),
) {
    let mut v = 0;
    while v < vectors {
        let width = (vectors - v).min(S::NV);
        let mut i = 0;
        while i < rows {
            // SAFETY: the caller's promise, within its bounds.
            unsafe {
                let a = (a.add(i * a_row), a_row, a_col);
                let b = (b.add(v * S::LANES), ldb);
                let c = (c.add(i * ldc + v * S::LANES), ldc);
                match (S::MR, width) {
                    (8, 3) => tile::<S, 8, 3>(start, depth, a, b, c),
                    (8, 2) => tile::<S, 8, 2>(start, depth, a, b, c),
                    (8, _) => tile::<S, 8, 1>(start, depth, a, b, c),
                    (6, 2) => tile::<S, 6, 2>(start, depth, a, b, c),
                    (6, _) => tile::<S, 6, 1>(start, depth, a, b, c),
                    (_, 2) => tile::<S, 4, 2>(start, depth, a, b, c),
                    _ => tile::<S, 4, 1>(start, depth, a, b, c),
                }
            }
            i += S::MR;
        }
        v += width;
    }
}

/// `out[r][c] = Σ_k a[r][k] · x[c][k]` for `R` rows of any loadable element and `C` rows of f32,
/// all `depth` long; `a_row` and `x_row` are the distances of rows.
///
/// # Safety
/// The pointers cover what the formula names; S's instruction set is available.
#[inline(always)]
pub unsafe fn dots<S: Simd, E: Load, const R: usize, const C: usize>(
    depth: usize,
    (a, a_row): (*const E, usize),
    (x, x_row): (*const f32, usize),
) -> [[f32; C]; R] {
    let l = S::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::splat(0.0); C]; R];
        let mut k = 0;
        while k + l <= depth {
            let mut xv = [S::splat(0.0); C];
            for (c, v) in xv.iter_mut().enumerate() {
                *v = S::load(x.add(c * x_row + k));
            }
            for (r, row) in acc.iter_mut().enumerate() {
                let av = E::load::<S>(a.add(r * a_row + k));
                for (c, v) in row.iter_mut().enumerate() {
                    *v = S::fma(av, xv[c], *v);
                }
            }
            k += l;
        }
        if k < depth {
            let n = depth - k;
            let mut xv = [S::splat(0.0); C];
            for (c, v) in xv.iter_mut().enumerate() {
                *v = S::load_part(x.add(c * x_row + k), n);
            }
            for (r, row) in acc.iter_mut().enumerate() {
                let av = E::load_part::<S>(a.add(r * a_row + k), n);
                for (c, v) in row.iter_mut().enumerate() {
                    *v = S::fma(av, xv[c], *v);
                }
            }
        }
        let mut out = [[0.0; C]; R];
        for (o, row) in out.iter_mut().zip(acc) {
            for (o, v) in o.iter_mut().zip(row) {
                *o = S::sum(v);
            }
        }
        out
    }
}
