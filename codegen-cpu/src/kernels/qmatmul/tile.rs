//! The inner product: 16 rows times up to 16 tokens over the whole length of the rows.
//!
//! Codes of a block are unpacked once into eight vectors and used for every token of the tile;
//! the sums of all tokens stay in registers from the first block to the last. The choice of
//! format, tile width and instruction set is made once per product, by a table of functions.

use std::sync::atomic::{Ordering, compiler_fence};

use aether_ir::DType;

use super::format::{Format, Scales, with_format};
use super::lanes::Lanes;
use crate::kernels::act_quant::{BLOCK_BYTES, D, NHALF_TIMES_32, NSUM, NSUM_TIMES};
use crate::kernels::isa::Isa;

/// How far ahead of the codes in use memory is asked for.
const PREFETCH: usize = 4096;

/// Computes 16 rows times some tokens and writes 16 sums per token, token after token.
///
/// Arguments: the packed group, the number of packed positions in it, the first token's record in
/// block 0, the bytes from block to block there, and the output.
///
/// # Safety
/// The machine has the kernel's instruction set, the group holds that many positions of its
/// format, the records of all tokens of the tile are valid for every block, and the output is
/// valid for writes of 16 floats per token.
pub(super) type Tile = unsafe fn(*const u8, usize, *const u8, usize, *mut f32);

/// The kernels of one format and instruction set.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Widths in tokens, descending to 1.
    pub widths: &'static [usize],
    /// The kernel of each width.
    pub tiles: [Tile; 6],
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

/// The body of every [`Tile`].
///
/// # Safety
/// As [`Tile`], and inlined into a function that enables the features of `S`.
#[inline(always)]
unsafe fn tile<S: Lanes, Q: Format, const W: usize>(
    mut w: *const u8,
    positions: usize,
    mut act: *const u8,
    step: usize,
    out: *mut f32,
) {
    // SAFETY: pointers advance through the positions and blocks the caller vouched for; prefetch
    // takes any address.
    unsafe {
        let zero = S::zero_f();
        let mut acc = [zero; W];
        let mut scales = Scales::<S> { scale: [zero; 16], min: [zero; 16] };
        for _ in 0..positions {
            Q::scales::<S>(w, &mut scales);
            for b in 0..Q::BLOCKS {
                if W < 16 {
                    // The lines that this share of the position takes.
                    let share = Q::BYTES / Q::BLOCKS;
                    let ahead = w.wrapping_add(PREFETCH + b * share);
                    for line in 0..share.div_ceil(64) {
                        S::prefetch(ahead.wrapping_add(64 * line));
                    }
                }
                let codes = Q::codes::<S>(w, b);
                for_tokens!(W, t => {
                    let tokens = act.add(t * BLOCK_BYTES);
                    match if W < S::CHAINS { W } else { S::CHAINS } {
                        n if !t.is_multiple_of(n) => {}
                        1 => add::<S, Q, 1, W>(&codes, tokens, &scales, b, &mut acc, t),
                        2 => add::<S, Q, 2, W>(&codes, tokens, &scales, b, &mut acc, t),
                        3 => add::<S, Q, 3, W>(&codes, tokens, &scales, b, &mut acc, t),
                        _ => add::<S, Q, 4, W>(&codes, tokens, &scales, b, &mut acc, t),
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

/// Adds the products of one block with `N` tokens from token `t` on to their sums.
///
/// # Safety
/// As [`dots`]; `t + N <= W`.
#[inline(always)]
unsafe fn add<S: Lanes, Q: Format, const N: usize, const W: usize>(
    codes: &[S::C; 8],
    tokens: *const u8,
    scales: &Scales<S>,
    b: usize,
    acc: &mut [S::F; W],
    t: usize,
) {
    // Loads do not move across: without this, the compiler works on all tokens of a tile at once
    // and runs out of registers.
    compiler_fence(Ordering::SeqCst);
    // SAFETY: the caller's promise.
    unsafe {
        let sums = dots::<S, Q, N>(codes, tokens, scales, b);
        for n in 0..N {
            let d = S::splat(tokens.add(n * BLOCK_BYTES + D).cast());
            acc[t + n] = S::fma(sums[n], d, acc[t + n]);
        }
    }
}

/// The products of one block with `N` tokens, scaled by all but the tokens' scales. The chains of
/// several tokens run side by side.
///
/// # Safety
/// As [`tile`]; `tokens` points to the first token's record.
#[inline(always)]
unsafe fn dots<S: Lanes, Q: Format, const N: usize>(
    codes: &[S::C; 8],
    tokens: *const u8,
    scales: &Scales<S>,
    b: usize,
) -> [S::F; N] {
    // SAFETY: the caller's promise; all reads are within the records.
    unsafe {
        let mut sums = [S::zero_f(); N];
        if Q::HALVES {
            for h in 0..2 {
                let nhalf = tokens.add(NHALF_TIMES_32 + 4 * h);
                let acc = chains::<S, Q, N>(codes, tokens, 4 * h, 4, nhalf, 5);
                for n in 0..N {
                    let acc = S::to_f(acc[n]);
                    sums[n] = if h == 0 {
                        S::mul(acc, scales.scale[2 * b])
                    } else {
                        S::fma(acc, scales.scale[2 * b + 1], sums[n])
                    };
                    if Q::MIN {
                        let nhalf = S::splat_i32(nhalf.add(n * BLOCK_BYTES).cast());
                        sums[n] = S::fma(scales.min[2 * b + h], nhalf, sums[n]);
                    }
                }
            }
        } else {
            let (field, log2) = match Q::OFFSET_LOG2 {
                3 => (0, 3),
                4 => (1, 4),
                _ => (2, 7),
            };
            let nsum = tokens.add(NSUM_TIMES + 4 * field);
            let acc = chains::<S, Q, N>(codes, tokens, 0, 8, nsum, log2);
            for n in 0..N {
                sums[n] = S::mul(S::to_f(acc[n]), scales.scale[b]);
                if Q::MIN {
                    let nsum = S::splat(tokens.add(n * BLOCK_BYTES + NSUM).cast());
                    sums[n] = S::fma(scales.min[b], nsum, sums[n]);
                }
            }
        }
        sums
    }
}

/// Minus the codes' offset times the activations' sum, plus the products of `count` code vectors
/// from `first` on with `N` tokens. `nsum` points to the first token's sum times `2^log2`, negated.
///
/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn chains<S: Lanes, Q: Format, const N: usize>(
    codes: &[S::C; 8],
    tokens: *const u8,
    first: usize,
    count: usize,
    nsum: *const u8,
    log2: u32,
) -> [S::I; N] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [S::zero_i(); N];
        if Q::OFFSET_LOG2 > 0 && (!Q::WIDE || S::WIDE_UNSIGNED) {
            for (n, acc) in acc.iter_mut().enumerate() {
                *acc = S::splat_shr(nsum.add(n * BLOCK_BYTES).cast(), log2 - Q::OFFSET_LOG2);
            }
        }
        for (g, code) in codes.iter().enumerate().skip(first).take(count) {
            for (n, acc) in acc.iter_mut().enumerate() {
                let a = tokens.add(n * BLOCK_BYTES + 4 * g).cast();
                *acc = dot::<S, Q>(*acc, *code, a);
            }
        }
        acc
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
                act: *const u8,
                step: usize,
                out: *mut f32,
            ) {
                // SAFETY: the caller's promise; the features are enabled here.
                unsafe { tile::<$lanes, Q, W>(w, positions, act, step, out) }
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
