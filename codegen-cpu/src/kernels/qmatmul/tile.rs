//! The inner product: 16 rows times up to 16 tokens over the whole length of the rows.
//!
//! Codes of a block are unpacked once into eight vectors and used for every token of the tile;
//! the sums of all tokens stay in registers from the first block to the last. Formats of 256
//! elements meet activations with one scale per 256: wide tiles then unpack a whole position for
//! several tiles of tokens, and apply the tokens' scales once per position. The choice of format,
//! tile width and instruction set is made once per product, by a table of functions.

use std::mem::MaybeUninit;
use std::sync::atomic::{Ordering, compiler_fence};

use aether_ir::DType;

use super::format::{Format, MAX_SPAN, Scales, with_format};
use super::lanes::Lanes;
use crate::kernels::act_quant::{BLOCK_BYTES, D, NHALF_TIMES_32, NSUM, NSUM_TIMES};
use crate::kernels::isa::Isa;

/// Computes 16 rows times some tokens and writes 16 sums per token, token after token.
///
/// Arguments: the packed group, the number of packed positions in it, the tokens' records, and
/// the output.
///
/// # Safety
/// The machine has the kernel's instruction set, the group holds that many positions of its
/// format, the records of all tokens of all tiles are valid for every block, and the output is
/// valid for reads and writes of 16 floats per token.
pub(super) type Tile = unsafe fn(*const u8, usize, Records, *mut f32);

/// Where the records of a kernel's tokens lie.
#[derive(Clone, Copy)]
pub(super) struct Records {
    /// The first token's record in block 0; those of the other tokens of its tile follow.
    pub first: *const u8,
    /// Bytes from block to block.
    pub step: usize,
    /// Tiles, each as wide as the kernel.
    pub tiles: usize,
    /// Bytes from tile to tile.
    pub stride: usize,
}

/// The kernels of one format and instruction set.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Widths in tokens, descending to 1.
    pub widths: &'static [usize],
    /// The kernel of each width.
    pub tiles: [Tile; 6],
}

/// Widest tile that works span by span: the integer sums of all blocks of a span and all tokens
/// must stay in registers.
const SPAN_TOKENS: usize = 4;

/// Most blocks of a position.
const MAX_BLOCKS: usize = 8;

/// Keeps loads on their side: without it, the compiler works on all tokens of a tile at once and
/// runs out of registers, or scrambles the order in which codes are read.
#[inline(always)]
fn fence() {
    compiler_fence(Ordering::SeqCst);
}

/// Repeats the body for every token below `$width`, the number being known to the compiler.
macro_rules! for_tokens {
    ($width:ident, $t:ident => $body:block) => {
        for_tokens!(@ $width, $t, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $width:ident, $t:ident, $body:block, $($n:literal)*) => {
        $(if $n < $width {
            let $t: usize = $n;
            $body
        })*
    };
}

/// Repeats the body for groups of `$n` tokens from `$t` on, as many as there are chains that run
/// side by side; fewer where the tile is narrower.
macro_rules! in_chains {
    ($lanes:ident, $width:ident, $t:ident, $n:ident => $body:block) => {
        for_tokens!($width, $t => {
            match if $width < $lanes::CHAINS { $width } else { $lanes::CHAINS } {
                n if !$t.is_multiple_of(n) => {}
                1 => { const $n: usize = 1; $body }
                2 => { const $n: usize = 2; $body }
                3 => { const $n: usize = 3; $body }
                _ => { const $n: usize = 4; $body }
            }
        })
    };
}

/// The body of every [`Tile`].
///
/// # Safety
/// As [`Tile`], and inlined into a function that enables the features of `S`.
#[inline(always)]
unsafe fn tile<S: Lanes, Q: Format, const W: usize>(
    w: *const u8,
    positions: usize,
    acts: Records,
    out: *mut f32,
) {
    // SAFETY: the caller's promise, tile by tile.
    unsafe {
        if Q::BLOCKS > 1 && W > SPAN_TOKENS {
            return positions_once::<S, Q, W>(w, positions, acts, out);
        }
        for i in 0..acts.tiles {
            let (act, out) = (acts.first.add(i * acts.stride), out.add(i * 16 * W));
            one_tile::<S, Q, W>(w, positions, act, acts.step, out);
        }
    }
}

/// Tiles of tokens times positions of several blocks. A position is unpacked once for all tiles;
/// its products with a token are summed before they meet the token's scale, which is the same in
/// all its blocks. The sums over positions are kept in the output. `W` is a multiple of 4.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn positions_once<S: Lanes, Q: Format, const W: usize>(
    mut w: *const u8,
    positions: usize,
    acts: Records,
    out: *mut f32,
) {
    // SAFETY: pointers advance through the positions, blocks and tiles the caller vouched for.
    unsafe {
        let zero = S::zero_f();
        for t in 0..acts.tiles * W {
            S::store_f(out.add(16 * t), zero);
        }
        let mut scales = Scales::<S> { scale: [zero; 16], min: [zero; 16] };
        let mut codes = [const { MaybeUninit::<[S::C; 8]>::uninit() }; MAX_BLOCKS];
        let mut first = acts.first;
        for _ in 0..positions {
            Q::scales::<S>(w, &mut scales);
            for (b, codes) in codes.iter_mut().enumerate().take(Q::BLOCKS) {
                codes.write(Q::codes::<S>(w, b));
            }
            for i in 0..acts.tiles {
                let mut act = first.add(i * acts.stride);
                let out = out.add(i * 16 * W);
                let mut sums = [zero; W];
                for (b, codes) in codes.iter().enumerate().take(Q::BLOCKS) {
                    // All `BLOCKS` entries were written above.
                    let codes = codes.assume_init();
                    for_tokens!(W, t => {
                        if t.is_multiple_of(4) {
                            fence();
                            let token = act.add(t * BLOCK_BYTES);
                            let old = std::array::from_fn(|n| sums[t + n]);
                            let new = dots::<S, Q, 4>(&codes, token, &scales, b, old.map(Some));
                            sums[t..t + 4].copy_from_slice(&new);
                        }
                    });
                    act = act.add(acts.step);
                }
                // The scales stand in the records of every block; the last ones were just read.
                let last = act.sub(acts.step);
                for_tokens!(W, t => {
                    let (d, out) = (S::splat(last.add(t * BLOCK_BYTES + D).cast()), out.add(16 * t));
                    S::store_f(out, S::fma(sums[t], d, S::load_f(out)));
                });
            }
            first = first.add(Q::BLOCKS * acts.step);
            w = w.add(Q::BYTES);
        }
    }
}

/// One tile of tokens.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn one_tile<S: Lanes, Q: Format, const W: usize>(
    mut w: *const u8,
    positions: usize,
    mut act: *const u8,
    step: usize,
    out: *mut f32,
) {
    // SAFETY: pointers advance through the positions and blocks the caller vouched for.
    unsafe {
        let zero = S::zero_f();
        let mut acc = [zero; W];
        let mut scales = Scales::<S> { scale: [zero; 16], min: [zero; 16] };
        for _ in 0..positions {
            Q::scales::<S>(w, &mut scales);
            if Q::BLOCKS > 1 {
                // As in `positions_once`: a token's sums are the same bits in a tile of any width.
                let mut sums = [zero; W];
                if W <= SPAN_TOKENS && Q::SPAN > 1 {
                    for s in 0..Q::BLOCKS / Q::SPAN {
                        span::<S, Q, W>(w, s, act, step, &scales, &mut sums);
                        act = act.add(Q::SPAN * step);
                    }
                } else {
                    for b in 0..Q::BLOCKS {
                        let codes = Q::codes::<S>(w, b);
                        in_chains!(S, W, t, N => {
                            fence();
                            let old = std::array::from_fn(|n| Some(sums[t + n]));
                            let token = act.add(t * BLOCK_BYTES);
                            let new = dots::<S, Q, N>(&codes, token, &scales, b, old);
                            sums[t..t + N].copy_from_slice(&new);
                        });
                        act = act.add(step);
                    }
                }
                // The scales stand in the records of every block; the last ones were just read.
                let last = act.sub(step);
                for_tokens!(W, t => {
                    let d = S::splat(last.add(t * BLOCK_BYTES + D).cast());
                    acc[t] = S::fma(sums[t], d, acc[t]);
                });
            } else {
                let codes = Q::codes::<S>(w, 0);
                in_chains!(S, W, t, N => {
                    fence();
                    let token = act.add(t * BLOCK_BYTES);
                    let sums = dots::<S, Q, N>(&codes, token, &scales, 0, [None; N]);
                    for n in 0..N {
                        let d = S::splat(token.add(n * BLOCK_BYTES + D).cast());
                        acc[t + n] = S::fma(sums[n], d, acc[t + n]);
                    }
                });
                act = act.add(step);
            }
            w = w.add(Q::BYTES);
        }
        for_tokens!(W, t => {
            S::store_f(out.add(16 * t), acc[t]);
        });
    }
}

/// Adds the products of span `s`, blocks whose codes share bytes, with all tokens of a narrow tile,
/// scaled by all but the tokens' scales. Each vector is read once and the chains of all blocks and
/// tokens run side by side; the sums are added in the order of the blocks.
///
/// # Safety
/// As [`tile`]; `act` points to the records of the span's first block.
#[inline(always)]
unsafe fn span<S: Lanes, Q: Format, const W: usize>(
    w: *const u8,
    s: usize,
    act: *const u8,
    step: usize,
    scales: &Scales<S>,
    sums: &mut [S::F; W],
) {
    // SAFETY: the caller's promise; all reads are within the position and the records.
    unsafe {
        let token = |i: usize, t: usize| act.add(i * step + t * BLOCK_BYTES);
        let runs = if Q::HALVES { 2 } else { 1 };
        let mut ints = [[[S::zero_i(); W]; MAX_SPAN]; 2];
        for g in 0..8usize {
            let h = if Q::HALVES { g / 4 } else { 0 };
            if g.is_multiple_of(8 / runs) {
                for (i, ints) in ints[h].iter_mut().enumerate().take(Q::SPAN) {
                    for (t, int) in ints.iter_mut().enumerate() {
                        *int = start::<S, Q>(token(i, t), h);
                    }
                }
            }
            // Loads stay in the order of memory: scrambled, they are no stream that the machine
            // recognises and reads ahead (q6_k then decodes at a quarter of the speed).
            fence();
            let codes = Q::span::<S>(w, s, g);
            for (i, (ints, code)) in ints[h].iter_mut().zip(codes).enumerate().take(Q::SPAN) {
                for (t, int) in ints.iter_mut().enumerate() {
                    *int = dot::<S, Q>(*int, code, token(i, t).add(4 * g).cast());
                }
            }
        }
        for i in 0..Q::SPAN {
            for (h, ints) in ints.iter().enumerate().take(runs) {
                for (t, sum) in sums.iter_mut().enumerate() {
                    let b = Q::SPAN * s + i;
                    *sum = scaled::<S, Q>(ints[i][t], token(i, t), scales, b, h, Some(*sum));
                }
            }
        }
    }
}

/// The products of one block with `N` tokens, scaled by all but the tokens' scales and added to
/// `sums`, if there are any. The chains of several tokens run side by side.
///
/// # Safety
/// As [`tile`]; `tokens` points to the first token's record.
#[inline(always)]
unsafe fn dots<S: Lanes, Q: Format, const N: usize>(
    codes: &[S::C; 8],
    tokens: *const u8,
    scales: &Scales<S>,
    b: usize,
    mut sums: [Option<S::F>; N],
) -> [S::F; N] {
    // SAFETY: the caller's promise; all reads are within the records.
    unsafe {
        let (runs, len) = if Q::HALVES { (2, 4) } else { (1, 8) };
        for h in 0..runs {
            let mut acc = [S::zero_i(); N];
            for (n, acc) in acc.iter_mut().enumerate() {
                *acc = start::<S, Q>(tokens.add(n * BLOCK_BYTES), h);
            }
            for (g, code) in codes.iter().enumerate().skip(h * len).take(len) {
                for (n, acc) in acc.iter_mut().enumerate() {
                    let a = tokens.add(n * BLOCK_BYTES + 4 * g).cast();
                    *acc = dot::<S, Q>(*acc, *code, a);
                }
            }
            for n in 0..N {
                let token = tokens.add(n * BLOCK_BYTES);
                sums[n] = Some(scaled::<S, Q>(acc[n], token, scales, b, h, sums[n]));
            }
        }
        sums.map(|sum| sum.unwrap_or(S::zero_f()))
    }
}

/// What a block's integer sum begins with: minus the codes' offset times the sum of the token's
/// activations, of half `h` for formats with a scale per half.
///
/// # Safety
/// As [`tile`]; `token` points to a record.
#[inline(always)]
unsafe fn start<S: Lanes, Q: Format>(token: *const u8, h: usize) -> S::I {
    if Q::OFFSET_LOG2 == 0 || (Q::WIDE && !S::WIDE_UNSIGNED) {
        // SAFETY: the caller's promise.
        return unsafe { S::zero_i() };
    }
    // Sums are kept times a power of two that is at least the offset.
    let (at, log2) = match (Q::HALVES, Q::OFFSET_LOG2) {
        (true, _) => (NHALF_TIMES_32 + 4 * h, 5),
        (false, 3) => (NSUM_TIMES, 3),
        (false, 4) => (NSUM_TIMES + 4, 4),
        (false, _) => (NSUM_TIMES + 8, 7),
    };
    // SAFETY: within the record.
    unsafe { S::splat_shr(token.add(at).cast(), log2 - Q::OFFSET_LOG2) }
}

/// Adds a finished integer sum, scaled by all but the token's scale, and the share of the minimum
/// to `sums`, if there are any.
///
/// # Safety
/// As [`tile`]; `token` points to a record.
#[inline(always)]
unsafe fn scaled<S: Lanes, Q: Format>(
    acc: S::I,
    token: *const u8,
    scales: &Scales<S>,
    b: usize,
    h: usize,
    sums: Option<S::F>,
) -> S::F {
    // SAFETY: within the record.
    unsafe {
        let at = if Q::HALVES { 2 * b + h } else { b };
        let acc = S::to_f(acc);
        let sums = match sums {
            None => S::mul(acc, scales.scale[at]),
            Some(sums) => S::fma(acc, scales.scale[at], sums),
        };
        match (Q::MIN, Q::HALVES) {
            (false, _) => sums,
            (true, true) => {
                let nhalf = S::splat_i32(token.add(NHALF_TIMES_32 + 4 * h).cast());
                S::fma(scales.min[at], nhalf, sums)
            }
            (true, false) => S::fma(scales.min[at], S::splat(token.add(NSUM).cast()), sums),
        }
    }
}

/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn dot<S: Lanes, Q: Format>(acc: S::I, c: S::C, a: *const i8) -> S::I {
    // SAFETY: the caller's promise.
    unsafe { if Q::WIDE { S::dot_wide(acc, c, a) } else { S::dot(acc, c, a) } }
}

/// Defines the table of one instruction set: its tile function with the features it needs, and
/// the lookup by type. Widths beyond what the registers hold are left out.
macro_rules! level {
    ($name:ident, $lanes:ty, [$($feature:literal),*], [$($w:literal),*]) => {
        fn $name(dtype: DType) -> Option<Tiles> {
            /// # Safety
            /// As [`Tile`].
            $(#[target_feature(enable = $feature)])*
            unsafe fn run<Q: Format, const W: usize>(
                w: *const u8,
                positions: usize,
                acts: Records,
                out: *mut f32,
            ) {
                // SAFETY: the caller's promise; the features are enabled here.
                unsafe { tile::<$lanes, Q, W>(w, positions, acts, out) }
            }
            const WIDTHS: &[usize] = &[$($w),*];
            macro_rules! tiles {
                ($q:ty) => {
                    Tiles { widths: WIDTHS, tiles: pad([$(run::<$q, $w> as Tile),*]) }
                };
            }
            Some(with_format!(dtype, tiles, return None))
        }
    };
}

/// Fills the table up with its last kernel, which no width then names.
const fn pad<const N: usize>(tiles: [Tile; N]) -> [Tile; 6] {
    let mut all = [tiles[N - 1]; 6];
    let mut i = 0;
    while i < N {
        all[i] = tiles[i];
        i += 1;
    }
    all
}

level!(scalar, super::scalar::Scalar, [], [4, 1]);
#[cfg(target_arch = "x86_64")]
level!(avx2, super::avx2::Avx2, ["avx2", "fma", "f16c"], [4, 2, 1]);
#[cfg(target_arch = "x86_64")]
level!(
    avx512,
    super::avx512::Avx512,
    ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"],
    [16, 8, 4, 3, 2, 1]
);
#[cfg(target_arch = "aarch64")]
level!(neon, super::neon::Neon, ["neon", "dotprod"], [4, 2, 1]);

/// The kernels for a type on an instruction set, or `None` when the type is not quantised or the
/// instruction set is not this machine's.
pub(super) fn tiles(isa: Isa, dtype: DType) -> Option<Tiles> {
    if !isa.is_available() {
        return None;
    }
    match isa {
        Isa::Scalar => scalar(dtype),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2(dtype),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => avx512(dtype),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => neon(dtype),
        #[allow(unreachable_patterns)] // the levels of other architectures
        _ => None,
    }
}
