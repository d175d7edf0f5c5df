//! The inner product: 16 rows times up to 16 tokens over the whole length of the rows.
//!
//! Codes of a block are unpacked once into eight vectors and used for every token of the tile;
//! the sums of all tokens stay in registers from the first block to the last. The choice of
//! format, tile width and instruction set is made once per product, by a table of functions.

use aether_ir::DType;

use super::format::{Format, Scales, with_format};
use super::lanes::Lanes;
use crate::kernels::act_quant::{BLOCK_BYTES, D, NHALF, NSUM};
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
    pub tiles: [Tile; 5],
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
                    let token = act.add(t * BLOCK_BYTES);
                    let sum = dots::<S, Q>(&codes, token, &scales, b);
                    acc[t] = S::fma(sum, S::splat(token.add(D).cast()), acc[t]);
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

/// The product of one block with one token, scaled by all but the token's scale.
///
/// # Safety
/// As [`tile`]; `token` points to a record.
#[inline(always)]
unsafe fn dots<S: Lanes, Q: Format>(
    codes: &[S::C; 8],
    token: *const u8,
    scales: &Scales<S>,
    b: usize,
) -> S::F {
    // SAFETY: the caller's promise; all reads are within the record.
    unsafe {
        let a = token.cast::<i8>();
        let nsum = token.add(NSUM).cast::<i32>();
        let nhalf = token.add(NHALF).cast::<i32>();
        if Q::HALVES {
            let mut lo = offset::<S, Q>(nhalf);
            let mut hi = offset::<S, Q>(nhalf.add(1));
            for g in 0..4 {
                lo = dot::<S, Q>(lo, codes[g], a.add(4 * g));
                hi = dot::<S, Q>(hi, codes[4 + g], a.add(16 + 4 * g));
            }
            let mut sum = S::mul(S::to_f(lo), scales.scale[2 * b]);
            sum = S::fma(S::to_f(hi), scales.scale[2 * b + 1], sum);
            if Q::MIN {
                sum = S::fma(scales.min[2 * b], S::splat_i32(nhalf), sum);
                sum = S::fma(scales.min[2 * b + 1], S::splat_i32(nhalf.add(1)), sum);
            }
            sum
        } else {
            let mut acc = offset::<S, Q>(nsum);
            for g in 0..8 {
                acc = dot::<S, Q>(acc, codes[g], a.add(4 * g));
            }
            let mut sum = S::mul(S::to_f(acc), scales.scale[b]);
            if Q::MIN {
                sum = S::fma(scales.min[b], S::splat_i32(nsum), sum);
            }
            sum
        }
    }
}

/// Minus the codes' offset times the activation's sum.
///
/// # Safety
/// As [`dots`]; `nsum` points to minus the sum.
#[inline(always)]
unsafe fn offset<S: Lanes, Q: Format>(nsum: *const i32) -> S::I {
    // SAFETY: the caller's promise.
    unsafe {
        match Q::OFFSET_LOG2 {
            2 => S::splat_shl::<2>(nsum),
            3 => S::splat_shl::<3>(nsum),
            4 => S::splat_shl::<4>(nsum),
            5 => S::splat_shl::<5>(nsum),
            7 if S::WIDE_UNSIGNED => S::splat_shl::<7>(nsum),
            _ => S::zero_i(),
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
const fn pad<const N: usize>(tiles: [Tile; N]) -> [Tile; 5] {
    let mut all = [tiles[N - 1]; 5];
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
    [16, 8, 4, 2, 1]
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
