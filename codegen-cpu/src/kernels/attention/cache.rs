//! Element types of a cache, and what attention does with rows of them.
//!
//! Rows of floats are read as they are. Rows of blocks (`q8_0`, `q4_0`) stay blocks in memory: a
//! vector of codes becomes floats in registers, times the block's scale, where it is used.

use half::{bf16, f16};

use super::super::isa::Isa;
use super::super::simd::{Load, Simd, dispatch};
use super::super::tile;

/// Elements of a block.
pub const BLOCK: usize = 32;

/// A block of `q8_0`: a scale, and codes of 8 bits. GGUF's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockQ8 {
    /// f16 bits.
    pub scale: u16,
    pub codes: [i8; BLOCK],
}

/// A block of `q4_0`: a scale, and codes of 4 bits with 8 for zero; the low halves of the bytes are
/// the first 16 elements. GGUF's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlockQ4 {
    /// f16 bits.
    pub scale: u16,
    pub codes: [u8; BLOCK / 2],
}

const _: () = assert!(size_of::<BlockQ8>() == 34 && size_of::<BlockQ4>() == 18);

/// What a cache is made of.
///
/// # Safety
/// Pointer methods read the elements that they name, at least a whole row, and may only run where
/// the instruction set of `S` is available. Distances of rows are in values of the type.
pub trait CacheElement: Copy + Send + Sync + 'static {
    /// Elements of one value of the type; divides the length of a row.
    const LEN: usize;

    /// `out[r][c] = Σ_k a[r][k] · x[c][k]` for `R` rows and `C` queries, all `depth` long.
    ///
    /// # Safety
    /// As for the trait.
    unsafe fn dots<S: Simd, const R: usize, const C: usize>(
        depth: usize,
        a: (*const Self, usize),
        x: (*const f32, usize),
    ) -> [[f32; C]; R];

    /// Adds `R` rows of `dim` elements, weighted, to the sums of `heads` heads: the weight of row r
    /// for head h is `weights[h · step + r]`.
    ///
    /// # Safety
    /// As for the trait.
    unsafe fn add_rows<S: Simd, const R: usize>(
        v: (*const Self, usize),
        dim: usize,
        weights: (*const f32, usize),
        heads: usize,
        acc: (*mut f32, usize),
    );

    /// Writes a row of `dim` elements as f32.
    ///
    /// # Safety
    /// As for the trait.
    unsafe fn widen_row<S: Simd>(from: *const Self, to: *mut f32, dim: usize);
}

/// One vector of columns of `R` rows, weighted, added to every head's sums.
#[inline(always)]
unsafe fn add_vectors<S: Simd, const R: usize>(
    rows: [S::V; R],
    (weights, step): (*const f32, usize),
    heads: usize,
    (acc, acc_row): (*mut f32, usize),
    n: Option<usize>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for h in 0..heads {
            let a = acc.add(h * acc_row);
            let mut sum = match n {
                None => S::load(a),
                Some(n) => S::load_part(a, n),
            };
            for (j, r) in rows.iter().enumerate() {
                sum = S::fma(S::splat(*weights.add(h * step + j)), *r, sum);
            }
            match n {
                None => S::store(a, sum),
                Some(n) => S::store_part(a, sum, n),
            }
        }
    }
}

macro_rules! plain {
    ($($ty:ty)*) => {$(
        // SAFETY of every block below: the trait's callers promise what is read.
        impl CacheElement for $ty {
            const LEN: usize = 1;

            #[inline(always)]
            unsafe fn dots<S: Simd, const R: usize, const C: usize>(
                depth: usize,
                a: (*const Self, usize),
                x: (*const f32, usize),
            ) -> [[f32; C]; R] {
                unsafe { tile::dots::<S, Self, R, C>(depth, a, x) }
            }

            #[inline(always)]
            unsafe fn add_rows<S: Simd, const R: usize>(
                (v, v_row): (*const Self, usize),
                dim: usize,
                weights: (*const f32, usize),
                heads: usize,
                (acc, acc_row): (*mut f32, usize),
            ) {
                unsafe {
                    let mut c = 0;
                    while c < dim {
                        let n = (c + S::LANES > dim).then(|| dim - c);
                        let mut rows = [S::splat(0.0); R];
                        for (j, r) in rows.iter_mut().enumerate() {
                            let v = v.add(j * v_row + c);
                            *r = match n {
                                None => <$ty as Load>::load::<S>(v),
                                Some(n) => <$ty as Load>::load_part::<S>(v, n),
                            };
                        }
                        add_vectors::<S, R>(rows, weights, heads, (acc.add(c), acc_row), n);
                        c += S::LANES;
                    }
                }
            }

            #[inline(always)]
            unsafe fn widen_row<S: Simd>(from: *const Self, to: *mut f32, dim: usize) {
                unsafe {
                    let mut c = 0;
                    while c + S::LANES <= dim {
                        S::store(to.add(c), <$ty as Load>::load::<S>(from.add(c)));
                        c += S::LANES;
                    }
                    while c < dim {
                        *to.add(c) = (*from.add(c)).widen();
                        c += 1;
                    }
                }
            }
        }
    )*};
}
plain!(f32 f16 bf16);

/// A block whose codes are read by vectors.
trait Codes: Copy {
    /// The block's scale in every lane.
    unsafe fn scale<S: Simd>(p: *const Self) -> S::V;
    /// The codes from `at` on, a multiple of the lanes.
    unsafe fn codes<S: Simd>(p: *const Self, at: usize) -> S::V;
}

// SAFETY of the blocks below: a whole block is there, and `at` and the lanes stay within it.
impl Codes for BlockQ8 {
    #[inline(always)]
    unsafe fn scale<S: Simd>(p: *const Self) -> S::V {
        unsafe { S::splat_f16(&raw const (*p).scale) }
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const Self, at: usize) -> S::V {
        unsafe { S::load_i8((&raw const (*p).codes).cast::<i8>().add(at)) }
    }
}

impl Codes for BlockQ4 {
    #[inline(always)]
    unsafe fn scale<S: Simd>(p: *const Self) -> S::V {
        unsafe { S::splat_f16(&raw const (*p).scale) }
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const Self, at: usize) -> S::V {
        unsafe {
            let bytes = (&raw const (*p).codes).cast::<u8>().add(at % (BLOCK / 2));
            if at < BLOCK / 2 { S::load_low4(bytes) } else { S::load_high4(bytes) }
        }
    }
}

macro_rules! blocks {
    ($($ty:ty)*) => {$(
        // SAFETY of every block below: the trait's callers promise what is read; rows are whole
        // blocks, and every vector length divides a block.
        impl CacheElement for $ty {
            const LEN: usize = BLOCK;

            #[inline(always)]
            unsafe fn dots<S: Simd, const R: usize, const C: usize>(
                depth: usize,
                (a, a_row): (*const Self, usize),
                (x, x_row): (*const f32, usize),
            ) -> [[f32; C]; R] {
                unsafe {
                    let mut acc = [[S::splat(0.0); C]; R];
                    for b in 0..depth / BLOCK {
                        let mut scales = [S::splat(0.0); R];
                        for (r, d) in scales.iter_mut().enumerate() {
                            *d = Self::scale::<S>(a.add(r * a_row + b));
                        }
                        let mut at = 0;
                        while at < BLOCK {
                            let mut xv = [S::splat(0.0); C];
                            for (c, v) in xv.iter_mut().enumerate() {
                                *v = S::load(x.add(c * x_row + b * BLOCK + at));
                            }
                            for (r, row) in acc.iter_mut().enumerate() {
                                let codes = Self::codes::<S>(a.add(r * a_row + b), at);
                                let av = S::mul(codes, scales[r]);
                                for (c, v) in row.iter_mut().enumerate() {
                                    *v = S::fma(av, xv[c], *v);
                                }
                            }
                            at += S::LANES;
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

            #[inline(always)]
            unsafe fn add_rows<S: Simd, const R: usize>(
                (v, v_row): (*const Self, usize),
                dim: usize,
                weights: (*const f32, usize),
                heads: usize,
                (acc, acc_row): (*mut f32, usize),
            ) {
                unsafe {
                    for b in 0..dim / BLOCK {
                        let mut scales = [S::splat(0.0); R];
                        for (r, d) in scales.iter_mut().enumerate() {
                            *d = Self::scale::<S>(v.add(r * v_row + b));
                        }
                        let mut at = 0;
                        while at < BLOCK {
                            let mut rows = [S::splat(0.0); R];
                            for (r, row) in rows.iter_mut().enumerate() {
                                let codes = Self::codes::<S>(v.add(r * v_row + b), at);
                                *row = S::mul(codes, scales[r]);
                            }
                            let acc = (acc.add(b * BLOCK + at), acc_row);
                            add_vectors::<S, R>(rows, weights, heads, acc, None);
                            at += S::LANES;
                        }
                    }
                }
            }

            #[inline(always)]
            unsafe fn widen_row<S: Simd>(from: *const Self, to: *mut f32, dim: usize) {
                unsafe {
                    for b in 0..dim / BLOCK {
                        let scale = Self::scale::<S>(from.add(b));
                        let mut at = 0;
                        while at < BLOCK {
                            let codes = Self::codes::<S>(from.add(b), at);
                            S::store(to.add(b * BLOCK + at), S::mul(codes, scale));
                            at += S::LANES;
                        }
                    }
                }
            }
        }
    )*};
}
blocks!(BlockQ8 BlockQ4);

#[inline(always)]
unsafe fn widen_body<S: Simd, E: CacheElement>(
    (from, from_row): (*const E, usize),
    (to, to_row): (*mut f32, usize),
    n: usize,
    (dim, padded): (usize, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        for r in 0..n {
            let to = to.add(r * to_row);
            E::widen_row::<S>(from.add(r * from_row), to, dim);
            for c in dim..padded {
                *to.add(c) = 0.0;
            }
        }
    }
}

dispatch! {
    /// Widens `n` rows of `dim.0` elements and fills them with zeros up to `dim.1`.
    ///
    /// # Safety
    /// The pointers cover the rows.
    pub unsafe fn widen[E: CacheElement](isa; from: (*const E, usize), to: (*mut f32, usize),
        n: usize, dim: (usize, usize)) = widen_body
}

/// The nearest integer, halves away from zero, within the codes: as `f32::round`, without a call.
#[inline(always)]
fn round(x: f32) -> i8 {
    // The greatest number below one half: adding it rounds to the next integer from a half on.
    const BELOW_HALF: f32 = 0.499_999_97;
    (x + BELOW_HALF.copysign(x)) as i8
}

#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The greatest magnitude; what is not a number is passed over.
#[inline(always)]
fn greatest(x: &[f32; BLOCK]) -> f32 {
    x.iter().fold(0.0, |m: f32, v| if v.abs() > m { v.abs() } else { m })
}

#[inline(always)]
unsafe fn q8_body<S: Simd>(from: &[f32], to: &mut [BlockQ8]) {
    for (x, block) in from.as_chunks::<BLOCK>().0.iter().zip(to) {
        let d = greatest(x) / 127.0;
        let id = inverse(d);
        block.scale = f16::from_f32(d).to_bits();
        block.codes = x.map(|x| round(x * id));
    }
}

#[inline(always)]
unsafe fn q4_body<S: Simd>(from: &[f32], to: &mut [BlockQ4]) {
    for (x, block) in from.as_chunks::<BLOCK>().0.iter().zip(to) {
        let most = greatest(x);
        // The first of equals decides the sign; zeros have none.
        let extreme = x.iter().find(|v| most > 0.0 && v.abs() == most).copied().unwrap_or(0.0);
        let d = extreme / -8.0;
        let id = inverse(d);
        block.scale = f16::from_f32(d).to_bits();
        let codes = x.map(|x| ((x * id + 8.5) as u8).min(15));
        for (i, byte) in block.codes.iter_mut().enumerate() {
            *byte = codes[i] | codes[i + BLOCK / 2] << 4;
        }
    }
}

dispatch! {
    /// Quantises whole blocks, as `aether_ir`'s encoder does.
    ///
    /// # Safety
    /// None beyond that of the references.
    unsafe fn q8_raw(isa; from: &[f32], to: &mut [BlockQ8]) = q8_body
}

dispatch! {
    /// As [`q8_raw`].
    ///
    /// # Safety
    /// None beyond that of the references.
    unsafe fn q4_raw(isa; from: &[f32], to: &mut [BlockQ4]) = q4_body
}

/// Writes `from` as blocks, with the bits of `aether_ir`'s encoder.
///
/// # Panics
/// When `from` is not as many whole blocks as `to`.
pub fn quantize_q8(isa: Isa, from: &[f32], to: &mut [BlockQ8]) {
    assert_eq!(from.len(), to.len() * BLOCK, "rows of a cache are whole blocks");
    // SAFETY: nothing is asked for.
    unsafe { q8_raw(isa, from, to) }
}

/// As [`quantize_q8`].
///
/// # Panics
/// As [`quantize_q8`].
pub fn quantize_q4(isa: Isa, from: &[f32], to: &mut [BlockQ4]) {
    assert_eq!(from.len(), to.len() * BLOCK, "rows of a cache are whole blocks");
    // SAFETY: nothing is asked for.
    unsafe { q4_raw(isa, from, to) }
}
