//! Products of quantised activations with packed quantised matrices.
//!
//! [`qmatmul`] computes `out[t, r] = Σ_k w[r, k] · x[t, k]` for the row groups it is given, adds
//! what its [`Epilogue`] says and stores; [`qmatmul_gated`] computes two products over the same
//! input and stores `gate(a) · b`, as a gated feed-forward layer needs it. Neither allocates nor
//! starts threads: callers split the row groups. Weights are read once per product as long as
//! there are few tokens, and once from memory in any case.
//!
//! Integer sums are exact; rounding comes from the activations' 8 bits and from one or two `f32`
//! multiply-adds per block of 32. Weights in blocks of 256 want activations with one scale per
//! 256 ([`scaling`]), which lets wide tiles apply it once per 256.

mod epilogue;
mod format;
mod lanes;
mod scalar;
mod tile;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use std::mem::MaybeUninit;
use std::ops::Range;

use aether_ir::DType;

use super::act_quant::{QActs, Scaling, TILE};
use super::isa::Isa;
use super::packed::{GROUP, PackedMatrix};
use tile::{Records, Tiles};

pub use epilogue::{Epilogue, Gate};

/// Bytes of packed weights that are worked through with one tile of tokens after the other before
/// going on: they stay in the second-level cache meanwhile.
const CHUNK: usize = 384 << 10;

/// Tokens that a group in blocks of 256 is multiplied with before the next group: whole tiles, for
/// which codes are unpacked once. Their activations may be larger than the second-level cache: they are read
/// as a stream, at a pace that the third level keeps (limits that kept them in the second were
/// slower).
const WIDE: usize = 4 * TILE;

/// Why a product cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QMatmulError {
    /// The machine lacks the instruction set.
    #[error("this machine has no {0} kernels")]
    Isa(Isa),
    /// The rows of the matrix and the activations differ in length.
    #[error("activations of {acts} elements do not fit rows of {cols}")]
    Length { acts: usize, cols: usize },
    /// The activations have scales per 32 elements, the weights blocks of 256.
    #[error("{0} weights need activations with one scale per 256 elements")]
    Scaling(DType),
    /// The two matrices of a gated product differ in shape.
    #[error("gate is {gate:?}, up is {up:?}; both must have the same rows and columns")]
    GateShape { gate: (usize, usize), up: (usize, usize) },
    /// The row groups lie outside the matrix.
    #[error("row groups {start}..{end} lie outside the {groups} groups of the matrix")]
    Range { start: usize, end: usize, groups: usize },
    /// A bias or residual has the wrong length.
    #[error("{what} has {found} elements, {expected} are needed")]
    Operand { what: &'static str, expected: usize, found: usize },
}

/// A row-major output `[token][row]` that several threads may write at once, each its own rows.
#[derive(Clone, Copy, Debug)]
pub struct OutPtr {
    /// Element `[0, 0]`.
    pub ptr: *mut f32,
    /// Elements from one token to the next.
    pub stride: usize,
}

/// Computes the rows of `range` (in groups of 16 rows) of `weights` times all tokens of `acts`
/// and stores them as `epilogue` says.
///
/// # Errors
/// When the shapes, the range or the instruction set do not fit; nothing is written then.
///
/// # Safety
/// For every token `t` and row `r < weights.rows()` in `range`, `out.ptr.add(t * out.stride + r)`
/// must be valid for writes, and no one else may access these elements meanwhile. Pointers in
/// `epilogue` must be valid for reads at the same places; the residual may be the output itself.
pub unsafe fn qmatmul(
    isa: Isa,
    weights: &PackedMatrix,
    acts: &QActs,
    range: Range<usize>,
    out: OutPtr,
    epilogue: &Epilogue,
) -> Result<(), QMatmulError> {
    let kernel = Kernel::new(isa, weights, acts, &range)?;
    epilogue.check(weights.rows())?;
    let (rows, wide) = (weights.rows(), wide(weights));
    for_tiles(range, weights.group_len(), (acts.tokens(), wide), |group, first, count| {
        let mut sums = Sums::uninit();
        let sums = kernel.run(weights, acts, group, first, count, &mut sums);
        let row = group * GROUP;
        // SAFETY: the caller vouches for these rows and tokens.
        unsafe { epilogue.store(sums, row, GROUP.min(rows - row), first, out) }
    });
    Ok(())
}

/// Computes, for the rows of `range` of both matrices, `kind(gate · x) · (up · x)` for all tokens
/// of `acts`, and stores it. The two products are never written.
///
/// # Errors
/// When the shapes, the range or the instruction set do not fit; nothing is written then.
///
/// # Safety
/// As [`qmatmul`].
pub unsafe fn qmatmul_gated(
    isa: Isa,
    kind: Gate,
    gate: &PackedMatrix,
    up: &PackedMatrix,
    acts: &QActs,
    range: Range<usize>,
    out: OutPtr,
) -> Result<(), QMatmulError> {
    let shapes = [(gate.rows(), gate.cols()), (up.rows(), up.cols())];
    if shapes[0] != shapes[1] {
        return Err(QMatmulError::GateShape { gate: shapes[0], up: shapes[1] });
    }
    let gate_kernel = Kernel::new(isa, gate, acts, &range)?;
    let up_kernel = Kernel::new(isa, up, acts, &range)?;
    let rows = gate.rows();
    let group_len = gate.group_len() + up.group_len();
    let wide = wide(gate).max(wide(up));
    for_tiles(range, group_len, (acts.tokens(), wide), |group, first, count| {
        let (mut a, mut b) = (Sums::uninit(), Sums::uninit());
        let a = gate_kernel.run(gate, acts, group, first, count, &mut a);
        let b = up_kernel.run(up, acts, group, first, count, &mut b);
        kind.apply(isa, a, b);
        let row = group * GROUP;
        // SAFETY: the caller vouches for these rows and tokens.
        unsafe {
            Epilogue::default().store(a, row, GROUP.min(rows - row), first, out);
        }
    });
    Ok(())
}

/// [`qmatmul`] of a whole matrix into a slice of `tokens × rows` elements.
///
/// # Errors
/// As [`qmatmul`], and when `out` has another length.
pub fn qmatmul_into(
    isa: Isa,
    weights: &PackedMatrix,
    acts: &QActs,
    out: &mut [f32],
) -> Result<(), QMatmulError> {
    let expected = acts.tokens().saturating_mul(weights.rows());
    if out.len() != expected {
        return Err(QMatmulError::Operand { what: "the output", expected, found: out.len() });
    }
    let ptr = OutPtr { ptr: out.as_mut_ptr(), stride: weights.rows() };
    // SAFETY: `out` is exclusively ours and holds every token and row.
    unsafe { qmatmul(isa, weights, acts, 0..weights.groups(), ptr, &Epilogue::default()) }
}

/// Whether a type has packed kernels; every block-quantised type does.
pub fn supports(dtype: DType) -> bool {
    tile::tiles(Isa::Scalar, dtype).is_some()
}

/// How activations must be scaled for weights of a type: per position of its packed form.
pub fn scaling(dtype: DType) -> Scaling {
    if dtype.block_len() == Scaling::PerSuper.run() { Scaling::PerSuper } else { Scaling::PerBlock }
}

/// Tokens that a group of a matrix is multiplied with before the next group.
fn wide(weights: &PackedMatrix) -> usize {
    match scaling(weights.dtype()) {
        Scaling::PerBlock => TILE,
        Scaling::PerSuper => WIDE,
    }
}

/// Visits every group of the range with all tokens, `wide` of them at once, in an order that
/// keeps a chunk of groups in cache while the tokens pass over it. Calls
/// `visit(group, first token, tokens)`.
#[inline]
fn for_tiles(
    range: Range<usize>,
    group_len: usize,
    (tokens, wide): (usize, usize),
    mut visit: impl FnMut(usize, usize, usize),
) {
    let chunk = (CHUNK / group_len.max(1)).max(1);
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start.saturating_add(chunk));
        for first in (0..tokens).step_by(wide) {
            let count = wide.min(tokens - first);
            for group in start..end {
                visit(group, first, count);
            }
        }
        start = end;
    }
}

/// The sums of one group and some tiles of tokens. Not zeroed: the tiles write what is used, and
/// zeroing took some 3 % of a prompt's time.
type Sums = MaybeUninit<[f32; GROUP * WIDE]>;

/// The chosen kernels of one product, with all sizes checked.
struct Kernel {
    tiles: Tiles,
    positions: usize,
}

impl Kernel {
    fn new(
        isa: Isa,
        weights: &PackedMatrix,
        acts: &QActs,
        range: &Range<usize>,
    ) -> Result<Kernel, QMatmulError> {
        if acts.k() != weights.cols() {
            return Err(QMatmulError::Length { acts: acts.k(), cols: weights.cols() });
        }
        if scaling(weights.dtype()) == Scaling::PerSuper && acts.scaling() != Scaling::PerSuper {
            return Err(QMatmulError::Scaling(weights.dtype()));
        }
        let groups = weights.groups();
        if range.start > range.end || range.end > groups {
            return Err(QMatmulError::Range { start: range.start, end: range.end, groups });
        }
        let tiles = tile::tiles(isa, weights.dtype()).ok_or(QMatmulError::Isa(isa))?;
        Ok(Kernel { tiles, positions: weights.cols() / weights.dtype().block_len() })
    }

    /// The products of one group with `count` tokens from the tile's start `first` on, 16 sums per
    /// token.
    #[inline]
    fn run<'s>(
        &self,
        weights: &PackedMatrix,
        acts: &QActs,
        group: usize,
        first: usize,
        count: usize,
        sums: &'s mut Sums,
    ) -> &'s mut [f32] {
        assert!(count <= WIDE && first.is_multiple_of(TILE), "{count} tokens from {first} on");
        let base = sums.as_mut_ptr().cast::<f32>();
        let packed = weights.group(group);
        let mut done = 0;
        for (width, tile) in self.tiles.widths.iter().zip(&self.tiles.tiles) {
            while count - done >= *width {
                let tiles = if *width == TILE { (count - done) / TILE } else { 1 };
                let (records, step) = acts.token(first + done);
                let stride = acts.tile_stride();
                let records = Records { first: records.as_ptr(), step, tiles, stride };
                // SAFETY: `new` checked instruction set and sizes: the group holds `positions`
                // positions, and the records are those of tokens below `first + count`: widths
                // divide the tile or come after all whole tiles, so a kernel narrower than the
                // tile stays within one. The sums hold `count` tokens.
                unsafe { tile(packed.as_ptr(), self.positions, records, base.add(done * GROUP)) };
                done += width * tiles;
            }
        }
        // SAFETY: the last width is 1, so the tiles wrote the sums of all `count` tokens.
        unsafe { std::slice::from_raw_parts_mut(base, done * GROUP) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_group_and_token_once() {
        for group_len in [0, 1, 100_000, 200_000, usize::MAX] {
            for (tokens, wide) in [(0, 16), (1, 64), (16, 16), (17, 16), (64, 64), (150, 64)] {
                let mut seen = vec![[0; 150]; 9];
                for_tiles(2..9, group_len, (tokens, wide), |group, first, count| {
                    assert!(count <= wide && first % TILE == 0);
                    seen[group][first..first + count].iter_mut().for_each(|n| *n += 1);
                });
                for (group, seen) in seen.iter().enumerate() {
                    for (t, n) in seen.iter().enumerate() {
                        assert_eq!(*n, usize::from(group >= 2 && t < tokens), "{group} {t}");
                    }
                }
            }
        }
    }
}
