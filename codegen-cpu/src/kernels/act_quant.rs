//! Activations quantised to 8 bits, the second operand of the quantised products.
//!
//! Each run of elements of a token, 32 or 256 long ([`Scaling`]), gets a scale `d = amax / 127`
//! and codes `q = round_to_even(x / d)` in −127..=127. They are stored in blocks of 32, each with
//! its scale and with the sums of the codes that products need to account for offsets and minima
//! of the weights. Tokens are stored in tiles of 16 (the last tile holds what remains), and in a
//! tile block after block, token after token, so that a product reads them as one stream.
//!
//! A run that holds a NaN or an infinity gets scale NaN, so the fault shows in every output it
//! reaches. A run whose `amax` is below about 4e-37 counts as zero.

/// Tokens per tile.
pub const TILE: usize = 16;

/// Elements per block.
pub const BLOCK: usize = 32;

/// Which elements of a token share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scaling {
    /// The 32 elements of a block.
    PerBlock,
    /// The 256 elements that a block of the K formats spans; what remains at the end of a row is
    /// a run of its own.
    PerSuper,
}

impl Scaling {
    /// Elements that share a scale.
    pub const fn run(self) -> usize {
        match self {
            Scaling::PerBlock => BLOCK,
            Scaling::PerSuper => 8 * BLOCK,
        }
    }
}

/// One block of one token: a cache line. The sums are kept in every scaling that a format wants,
/// so that a kernel has but to load them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ActBlock {
    /// Codes in −127..=127.
    pub q: [i8; BLOCK],
    /// Scale.
    pub d: f32,
    /// Minus the sum of the codes.
    pub nsum: f32,
    /// Minus the sum of the codes times 8, 16 and 128.
    pub nsum_times: [i32; 3],
    /// Minus the sum of the first 16 codes, and of the last 16, times 32.
    pub nhalf_times_32: [i32; 2],
    /// Fills the cache line.
    pub unused: u32,
}

/// Bytes of an [`ActBlock`].
pub(crate) const BLOCK_BYTES: usize = size_of::<ActBlock>();

/// Byte offsets of the fields of an [`ActBlock`].
pub(crate) const D: usize = std::mem::offset_of!(ActBlock, d);
pub(crate) const NSUM: usize = std::mem::offset_of!(ActBlock, nsum);
pub(crate) const NSUM_TIMES: usize = std::mem::offset_of!(ActBlock, nsum_times);
pub(crate) const NHALF_TIMES_32: usize = std::mem::offset_of!(ActBlock, nhalf_times_32);

/// Scratch bytes that `tokens` quantised rows of `k` elements take, or `None` when `k` is not a
/// multiple of 32 or the size overflows.
pub fn act_bytes(tokens: usize, k: usize) -> Option<usize> {
    if !k.is_multiple_of(BLOCK) {
        return None;
    }
    (k / BLOCK).checked_mul(BLOCK_BYTES)?.checked_mul(tokens)
}

/// Quantised activations of some tokens, as the products read them.
#[derive(Clone, Copy, Debug)]
pub struct QActs<'a> {
    data: &'a [u8],
    tokens: usize,
    k: usize,
    scaling: Scaling,
}

impl<'a> QActs<'a> {
    /// A view of scratch bytes that [`QActsMut`] or [`quantize_row_raw`] filled for the same
    /// `tokens`, `k` and `scaling`. `None` when the length is not what [`act_bytes`] says.
    pub fn new(data: &'a [u8], tokens: usize, k: usize, scaling: Scaling) -> Option<QActs<'a>> {
        (act_bytes(tokens, k)? == data.len()).then_some(QActs { data, tokens, k, scaling })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Elements per token.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Which elements share a scale.
    pub fn scaling(&self) -> Scaling {
        self.scaling
    }

    /// Bytes from a whole tile to the next.
    pub(crate) fn tile_stride(&self) -> usize {
        TILE * (self.k / BLOCK) * BLOCK_BYTES
    }

    /// Start of the records of token `t` in block 0, and the bytes from block to block.
    pub(crate) fn token(&self, t: usize) -> (&'a [u8], usize) {
        let (at, step) = place(self.tokens, self.k, t);
        (&self.data[at..], step)
    }
}

/// Offset of token `t`'s first record and the bytes from one of its records to the next.
fn place(tokens: usize, k: usize, t: usize) -> (usize, usize) {
    let first = t - t % TILE;
    let width = TILE.min(tokens - first);
    (first * (k / BLOCK) * BLOCK_BYTES + (t - first) * BLOCK_BYTES, width * BLOCK_BYTES)
}

/// Scratch bytes to be filled with quantised activations.
#[derive(Debug)]
pub struct QActsMut<'a> {
    data: &'a mut [u8],
    tokens: usize,
    k: usize,
    scaling: Scaling,
}

impl<'a> QActsMut<'a> {
    /// Takes scratch for `tokens` rows of `k` elements; `None` when its length is not what
    /// [`act_bytes`] says.
    pub fn new(
        data: &'a mut [u8],
        tokens: usize,
        k: usize,
        scaling: Scaling,
    ) -> Option<QActsMut<'a>> {
        (act_bytes(tokens, k)? == data.len()).then_some(QActsMut { data, tokens, k, scaling })
    }

    /// Quantises `x`, the row of token `t`.
    ///
    /// # Panics
    /// When `t` is not below the number of tokens or `x` is not `k` long.
    pub fn quantize_row(&mut self, t: usize, x: &[f32]) {
        assert!(t < self.tokens && x.len() == self.k, "token {t}, row of {}", x.len());
        // SAFETY: the constructor checked the length of the scratch, which we borrow mutably.
        unsafe { quantize_row_raw(self.data.as_mut_ptr(), self.tokens, t, x, self.scaling) }
    }

    /// The filled scratch as the products take it.
    pub fn finish(self) -> QActs<'a> {
        QActs { data: self.data, tokens: self.tokens, k: self.k, scaling: self.scaling }
    }
}

/// Quantises `x`, the row of token `t` of `tokens`, into the scratch at `base`. Rows of different
/// tokens touch disjoint bytes, so several threads may work on one scratch.
///
/// # Safety
/// `base` must be valid for writes of `act_bytes(tokens, x.len())` bytes, `t < tokens`, the length
/// of `x` a multiple of 32, and no one else may access this token's records meanwhile.
pub unsafe fn quantize_row_raw(
    base: *mut u8,
    tokens: usize,
    t: usize,
    x: &[f32],
    scaling: Scaling,
) {
    #[cfg(target_arch = "x86_64")]
    if super::isa::Isa::detect() >= super::isa::Isa::Avx2 {
        // SAFETY: every level from AVX2 up implies these features; the rest is the caller's.
        return unsafe { quantize_row_avx2(base, tokens, t, x, scaling) };
    }
    // SAFETY: the caller's promise.
    unsafe { quantize_row_body(base, tokens, t, x, scaling) }
}

/// [`quantize_row_raw`] compiled for AVX2: same code, wider vectors, equal results (no step may
/// be fused into another).
///
/// # Safety
/// As [`quantize_row_raw`], on a machine with AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn quantize_row_avx2(base: *mut u8, tokens: usize, t: usize, x: &[f32], scaling: Scaling) {
    // SAFETY: the caller's promise.
    unsafe { quantize_row_body(base, tokens, t, x, scaling) }
}

/// # Safety
/// As [`quantize_row_raw`].
#[inline(always)]
unsafe fn quantize_row_body(base: *mut u8, tokens: usize, t: usize, x: &[f32], scaling: Scaling) {
    let (at, step) = place(tokens, x.len(), t);
    let mut at = at;
    for run in x.chunks(scaling.run()) {
        let amax = amax(run);
        for values in run.as_chunks::<BLOCK>().0 {
            let block = quantize_block(values, amax);
            // SAFETY: `place` stays within `act_bytes`; the record may be unaligned.
            unsafe { base.add(at).cast::<ActBlock>().write_unaligned(block) };
            at += step;
        }
    }
}

/// Adding and subtracting this rounds a float of magnitude below 2^22 to an integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// The largest magnitude of a run of whole blocks, or what is not finite in it.
#[inline(always)]
fn amax(run: &[f32]) -> f32 {
    // The bits of magnitudes order as integers do, with infinities and NaNs on top.
    let mut top = [0u32; BLOCK];
    for x in run.as_chunks::<BLOCK>().0 {
        for (top, v) in top.iter_mut().zip(x) {
            *top = (*top).max(v.to_bits() & 0x7fff_ffff);
        }
    }
    f32::from_bits(top.iter().fold(0, |a, &b| a.max(b)))
}

/// One block of a run whose largest magnitude is `amax`.
#[inline(always)]
fn quantize_block(x: &[f32; BLOCK], amax: f32) -> ActBlock {
    let inverse = 127.0 / amax;
    let mut block = ActBlock {
        q: [0; BLOCK],
        d: 0.0,
        nsum: 0.0,
        nsum_times: [0; 3],
        nhalf_times_32: [0; 2],
        unused: 0,
    };
    if !amax.is_finite() {
        block.d = f32::NAN;
    } else if inverse.is_finite() {
        block.d = amax / 127.0;
        let mut codes = [0i32; BLOCK];
        for (code, v) in codes.iter_mut().zip(x) {
            *code = (v * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
        }
        for (q, code) in block.q.iter_mut().zip(&codes) {
            *q = *code as i8;
        }
        let half = |i: usize| -codes[16 * i..16 * i + 16].iter().sum::<i32>();
        let halves = [half(0), half(1)];
        let sum = halves[0] + halves[1];
        block.nsum = sum as f32;
        block.nsum_times = [sum * 8, sum * 16, sum * 128];
        block.nhalf_times_32 = halves.map(|h| h * 32);
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_of(data: &[u8], tokens: usize, k: usize, t: usize, b: usize) -> ActBlock {
        let (at, step) = place(tokens, k, t);
        let bytes = &data[at + b * step..][..BLOCK_BYTES];
        // SAFETY: `bytes` holds one record, in which every bit pattern is valid.
        unsafe { bytes.as_ptr().cast::<ActBlock>().read_unaligned() }
    }

    fn check_codes(block: &ActBlock, x: &[f32]) {
        assert!(block.q.iter().all(|&q| q != -128));
        for (q, v) in block.q.iter().zip(x) {
            assert!((f32::from(*q) * block.d - v).abs() <= block.d * 0.5001);
        }
        let sum = |q: &[i8]| q.iter().map(|&q| i32::from(q)).sum::<i32>();
        let total = -sum(&block.q);
        assert_eq!(block.nsum, total as f32);
        assert_eq!(block.nsum_times, [8, 16, 128].map(|n| total * n));
        let halves = [-sum(&block.q[..16]), -sum(&block.q[16..])];
        assert_eq!(block.nhalf_times_32, halves.map(|h| h * 32));
    }

    #[test]
    fn codes_are_nearest_and_sums_match() {
        let (tokens, k) = (19, 96 + 256);
        let mut rng = fastrand::Rng::with_seed(7);
        let rows: Vec<Vec<f32>> = (0..tokens)
            .map(|t| (0..k).map(|_| (rng.f32() - 0.5) * 10f32.powi(t as i32 - 9)).collect())
            .collect();
        for scaling in [Scaling::PerBlock, Scaling::PerSuper] {
            let mut data = vec![0xaa; act_bytes(tokens, k).unwrap()];
            let mut acts = QActsMut::new(&mut data, tokens, k, scaling).unwrap();
            for (t, row) in rows.iter().enumerate() {
                acts.quantize_row(t, row);
            }
            let acts = acts.finish();
            assert_eq!((acts.tokens(), acts.scaling()), (tokens, scaling));
            for (t, row) in rows.iter().enumerate() {
                let mut b = 0;
                for run in row.chunks(scaling.run()) {
                    let largest = run.iter().fold(0.0f32, |a, v| a.max(v.abs()));
                    let first = b;
                    for x in run.chunks(BLOCK) {
                        let block = block_of(&data, tokens, k, t, b);
                        assert_eq!(block.d, largest / 127.0);
                        check_codes(&block, x);
                        b += 1;
                    }
                    let codes = (first..b).flat_map(|b| block_of(&data, tokens, k, t, b).q);
                    assert_eq!(codes.map(|q| q.unsigned_abs()).max(), Some(127));
                }
            }
        }
    }

    #[test]
    fn ties_go_to_even_and_odd_values_are_tamed() {
        let quantize_block = |x: &[f32; BLOCK]| quantize_block(x, amax(x));
        let mut x = [0.0; BLOCK];
        (x[0], x[1], x[2], x[3]) = (127.0, 0.5, 1.5, -2.5);
        assert_eq!(quantize_block(&x).q[..4], [127, 0, 2, -2]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[5] = bad;
            let block = quantize_block(&x);
            assert!(block.d.is_nan() && block.q == [0; BLOCK] && block.nsum == 0.0);
        }
        for tiny in [0.0, -0.0, 1e-45, 1e-38] {
            let block = quantize_block(&[tiny; BLOCK]);
            assert!(block.d == 0.0 && block.q == [0; BLOCK]);
        }
        let block = quantize_block(&[f32::MAX; BLOCK]);
        assert!(block.d.is_finite() && block.q == [127; BLOCK]);
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(act_bytes(3, 64), Some(3 * 2 * 64));
        assert_eq!(act_bytes(3, 33), None);
        assert_eq!(act_bytes(usize::MAX, 64), None);
        assert!(QActs::new(&[0; 127], 1, 64, Scaling::PerBlock).is_none());
        assert!(QActsMut::new(&mut [0; 129], 1, 64, Scaling::PerSuper).is_none());
    }
}
