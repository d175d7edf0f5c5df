//! [`Layout::Planes`](aether_ir::Layout::Planes): quantised rows arranged for a GPU.
//!
//! A row's blocks are taken apart into planes, one after another, each padded with zeros to
//! 16 bytes ([`DType::planes`]), so that the lanes of a subgroup that take one block each read
//! neighbouring vectors of 16 bytes. All codes come in blocks of 32 elements, k-quants too:
//!
//! | plane | bytes per block | element `e` |
//! |---|---|---|
//! | 4 bits | 16 | byte `e % 16`, low half for `e < 16`, else high half |
//! | 1 bit | 4 | bit `8 * (e % 4) + e / 4` of a word: a shift and a mask give it in the place it has in four packed codes |
//! | 2 bits | 8 | word `e / 16`, bits from `8 * (e % 4) + 2 * (e % 16 / 4)` |
//! | 8 bits | 16 and 16 | the elements below 16 of all blocks, then the others |
//!
//! Scales follow: `d`, or `d` and the minimum, as f16 per block. k-quants have per 256 elements
//! for q4_k and q5_k `d`, `dmin`, a word of the scales' low 4 bits, one of the minima's, one with
//! the high 2 bits of each pair (scale low); for q6_k and q3_k sixteen `i8`, then a plane of `d`;
//! for q2_k its sixteen bytes, then a plane of `d`, `dmin`. f16 numbers keep every bit.
//!
//! Codes stay unsigned as stored (q8_0's are signed); what is taken from them is in
//! [`unpack_rows`], which is the meaning of the layout.

use aether_ir::DType;
use half::f16;

/// Bytes and sizes do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanesError {
    #[error("{dtype} has no planes for rows of {k} elements")]
    NoPlanes { dtype: DType, k: usize },
    #[error("{rows} rows of {k} x {dtype} take {want} bytes, not {found}")]
    Size { dtype: DType, k: usize, rows: usize, want: usize, found: usize },
}

/// Bytes of a raw and of a packed row.
pub(crate) fn row_sizes(dtype: DType, k: usize) -> Result<(usize, usize), PlanesError> {
    match (dtype.row_bytes(k), dtype.planes_row_bytes(k)) {
        (Some(raw), Some(packed)) if k > 0 => Ok((raw, packed)),
        _ => Err(PlanesError::NoPlanes { dtype, k }),
    }
}

/// The rows in `a`, and that `b` has as many.
fn check(
    (dtype, k): (DType, usize),
    (a, a_row): (usize, usize),
    (b, b_row): (usize, usize),
) -> Result<(), PlanesError> {
    let rows = a / a_row;
    for (found, row) in [(a, a_row), (b, b_row)] {
        let want = rows * row;
        if found != want {
            return Err(PlanesError::Size { dtype, k, rows, want, found });
        }
    }
    Ok(())
}

/// Where each plane of a row of `k` elements begins, in bytes.
pub fn plane_offsets(dtype: DType, k: usize) -> Vec<usize> {
    let mut at = 0;
    let mut offsets = Vec::new();
    for (elements, bytes) in dtype.planes() {
        offsets.push(at);
        at += (k / elements * bytes).next_multiple_of(16);
    }
    offsets
}

/// Packs rows of `k` elements as they lie in a GGUF file.
///
/// # Errors
/// When the type has no planes, `k` cuts a block, or the bytes are not the same whole rows.
pub fn pack_rows(dtype: DType, k: usize, raw: &[u8], out: &mut [u8]) -> Result<(), PlanesError> {
    let (from, to) = row_sizes(dtype, k)?;
    check((dtype, k), (raw.len(), from), (out.len(), to))?;
    let offsets = plane_offsets(dtype, k);
    for (raw, out) in raw.chunks_exact(from).zip(out.chunks_exact_mut(to)) {
        out.fill(0);
        for (i, block) in raw.chunks_exact(dtype.block_bytes()).enumerate() {
            pack_block(dtype, block, &mut Planes { offsets: &offsets, out, block: i });
        }
    }
    Ok(())
}

/// The planes of one row, seen from one of its blocks.
struct Planes<'a> {
    offsets: &'a [usize],
    out: &'a mut [u8],
    block: usize,
}

impl Planes<'_> {
    /// The bytes of part `i` of the block's `n` parts of `B` bytes in a plane.
    fn part<const B: usize>(&mut self, plane: usize, n: usize, i: usize) -> &mut [u8; B] {
        let at = self.offsets[plane] + (self.block * n + i) * B;
        // The offsets are those of the row that `out` is.
        self.out[at..].first_chunk_mut().expect("planes of a row")
    }

    /// Planes of the low 4 bits of all codes, 32 at a time.
    fn nibbles(&mut self, codes: &[u8]) {
        let blocks = codes.as_chunks::<32>().0;
        for (i, codes) in blocks.iter().enumerate() {
            let out = self.part::<16>(0, blocks.len(), i);
            for j in 0..16 {
                out[j] = (codes[j] & 0xf) | (codes[16 + j] << 4);
            }
        }
    }

    /// A plane of one bit of each code.
    fn bits(&mut self, plane: usize, codes: &[u8], shift: u32) {
        let blocks = codes.as_chunks::<32>().0;
        for (i, codes) in blocks.iter().enumerate() {
            let word = codes.iter().enumerate().fold(0, |word, (e, c)| {
                word | (u32::from((c >> shift) & 1) << (8 * (e % 4) + e / 4))
            });
            *self.part(plane, blocks.len(), i) = word.to_le_bytes();
        }
    }

    /// A plane of two bits of each code.
    fn pairs(&mut self, plane: usize, codes: &[u8], shift: u32) {
        let blocks = codes.as_chunks::<16>().0;
        for (i, codes) in blocks.iter().enumerate() {
            let word = codes.iter().enumerate().fold(0, |word, (e, c)| {
                word | (u32::from((c >> shift) & 3) << (8 * (e % 4) + 2 * (e / 4)))
            });
            *self.part(plane, blocks.len(), i) = word.to_le_bytes();
        }
    }

    fn scale<const B: usize>(&mut self, plane: usize, bytes: &[u8]) {
        self.part::<B>(plane, 1, 0).copy_from_slice(bytes);
    }
}

fn pack_block(dtype: DType, b: &[u8], out: &mut Planes) {
    let mut codes = [0u8; 256];
    match dtype {
        DType::Q4_0 => {
            out.scale::<16>(0, &b[2..]);
            out.scale::<2>(1, &b[..2]);
        }
        DType::Q4_1 => {
            out.scale::<16>(0, &b[4..]);
            out.scale::<4>(1, &b[..4]);
        }
        DType::Q5_0 => {
            out.scale::<16>(0, &b[6..]);
            out.bits(1, &fifth_bits(&b[2..6]), 0);
            out.scale::<2>(2, &b[..2]);
        }
        DType::Q5_1 => {
            out.scale::<16>(0, &b[8..]);
            out.bits(1, &fifth_bits(&b[4..8]), 0);
            out.scale::<4>(2, &b[..4]);
        }
        DType::Q8_0 => {
            out.scale::<16>(0, &b[2..18]);
            out.scale::<16>(1, &b[18..]);
            out.scale::<2>(2, &b[..2]);
        }
        DType::Q2K => {
            two_bits(&b[16..80], &mut codes);
            out.pairs(0, &codes, 0);
            out.scale::<16>(1, &b[..16]);
            out.scale::<4>(2, &b[80..]);
        }
        DType::Q3K => {
            two_bits(&b[32..96], &mut codes);
            one_bits(&b[..32], &mut codes, 2);
            out.pairs(0, &codes, 0);
            out.bits(1, &codes, 2);
            out.scale::<16>(2, &q3_scales(&b[96..108]).map(|s| s as u8));
            out.scale::<2>(3, &b[108..]);
        }
        DType::Q4K => {
            nibbles_k(&b[16..], &mut codes);
            out.nibbles(&codes);
            out.scale::<16>(1, &scales_and_minima(b));
        }
        DType::Q5K => {
            nibbles_k(&b[48..], &mut codes);
            one_bits(&b[16..48], &mut codes, 4);
            out.nibbles(&codes);
            out.bits(1, &codes, 4);
            out.scale::<16>(2, &scales_and_minima(b));
        }
        DType::Q6K => {
            for (e, c) in codes.iter_mut().enumerate() {
                *c = (b[64 * (e / 128) + e % 64] >> (4 * (e / 64 % 2))) & 0xf;
            }
            let mut high = [0; 256];
            two_bits(&b[128..192], &mut high);
            out.nibbles(&codes);
            out.pairs(1, &high, 0);
            out.scale::<16>(2, &b[192..208]);
            out.scale::<2>(3, &b[208..]);
        }
        // `row_sizes` has refused types without planes.
        _ => {}
    }
}

/// One bit for each of 32 elements, from four bytes.
fn fifth_bits(qh: &[u8]) -> [u8; 32] {
    std::array::from_fn(|e| (qh[e / 8] >> (e % 8)) & 1)
}

/// 256 numbers of 2 bits: each 32 bytes hold four runs of 32.
fn two_bits(qs: &[u8], codes: &mut [u8; 256]) {
    for (e, c) in codes.iter_mut().enumerate() {
        *c = (qs[32 * (e / 128) + e % 32] >> (2 * (e / 32 % 4))) & 3;
    }
}

/// Adds one bit for each of 256 elements at place `at`: each byte serves eight elements 32 apart.
fn one_bits(qh: &[u8], codes: &mut [u8; 256], at: u32) {
    for (e, c) in codes.iter_mut().enumerate() {
        *c |= ((qh[e % 32] >> (e / 32)) & 1) << at;
    }
}

/// 256 numbers of 4 bits: each 32 bytes hold two runs of 32.
fn nibbles_k(qs: &[u8], codes: &mut [u8; 256]) {
    for (e, c) in codes.iter_mut().enumerate() {
        *c = (qs[32 * (e / 64) + e % 32] >> (4 * (e / 32 % 2))) & 0xf;
    }
}

/// The sixteen scales of a q3_k block, offset taken off.
fn q3_scales(b: &[u8]) -> [i8; 16] {
    std::array::from_fn(|g| {
        let low = (b[g % 8] >> (4 * (g / 8))) & 0xf;
        let high = (b[8 + g % 4] >> (2 * (g / 4))) & 3;
        (low | (high << 4)) as i8 - 32
    })
}

/// `d`, `dmin` and the words of 6-bit scales and minima of a q4_k or q5_k block.
fn scales_and_minima(b: &[u8]) -> [u8; 16] {
    let s = &b[4..16];
    let (mut scales, mut minima, mut high) = (0u32, 0u32, 0u32);
    for j in 0..8 {
        let (scale, minimum) = if j < 4 {
            (s[j] & 0x3f, s[j + 4] & 0x3f)
        } else {
            let both = s[j + 4];
            ((both & 0xf) | ((s[j - 4] >> 2) & 0x30), (both >> 4) | ((s[j] >> 2) & 0x30))
        };
        scales |= u32::from(scale & 0xf) << (4 * j);
        minima |= u32::from(minimum & 0xf) << (4 * j);
        high |= u32::from((scale >> 4) | ((minimum >> 4) << 2)) << (4 * j);
    }
    let mut out = [0; 16];
    out[..4].copy_from_slice(&b[..4]);
    for (i, word) in [scales, minima, high].into_iter().enumerate() {
        out[4 + 4 * i..8 + 4 * i].copy_from_slice(&word.to_le_bytes());
    }
    out
}

/// The values of packed rows, element by element: the meaning of the layout, equal to
/// [`aether_ir::quant::dequantize`] of the raw rows bit for bit.
///
/// # Errors
/// As [`pack_rows`].
pub fn unpack_rows(
    dtype: DType,
    k: usize,
    packed: &[u8],
    out: &mut [f32],
) -> Result<(), PlanesError> {
    let (_, row) = row_sizes(dtype, k)?;
    check((dtype, k), (packed.len(), row), (out.len(), k))?;
    let offsets = plane_offsets(dtype, k);
    for (row, out) in packed.chunks_exact(row).zip(out.chunks_exact_mut(k)) {
        for (e, v) in out.iter_mut().enumerate() {
            *v = value(dtype, row, &offsets, e);
        }
    }
    Ok(())
}

/// Element `e` of a packed row.
fn value(dtype: DType, row: &[u8], at: &[usize], e: usize) -> f32 {
    let (block, super_block, i) = (e / 32, e / 256, e % 32);
    let word = |at: usize| u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
    let number = |at: usize| f16::from_le_bytes([row[at], row[at + 1]]).to_f32();
    let nibble = || row[at[0] + 16 * block + i % 16] >> (4 * (i / 16)) & 0xf;
    let bit = |plane: usize| (word(at[plane] + 4 * block) >> (8 * (i % 4) + i / 4)) as u8 & 1;
    let pair = |plane: usize| {
        let word = word(at[plane] + 8 * block + 4 * (i / 16));
        (word >> (8 * (i % 4) + 2 * (i % 16 / 4))) as u8 & 3
    };
    let scale_min = |plane: usize| {
        let (s, j) = (at[plane] + 16 * super_block, 4 * (block % 8));
        let (scale, minimum, high) =
            (word(s + 4) >> j & 0xf, word(s + 8) >> j & 0xf, word(s + 12) >> j);
        let d = number(s) * (scale | (high & 3) << 4) as f32;
        (d, number(s + 2) * (minimum | (high >> 2 & 3) << 4) as f32)
    };
    let group = e / 16;
    match dtype {
        DType::Q4_0 => number(at[1] + 2 * block) * f32::from(nibble() as i8 - 8),
        DType::Q4_1 => {
            let s = at[1] + 4 * block;
            number(s) * f32::from(nibble()) + number(s + 2)
        }
        DType::Q5_0 => number(at[2] + 2 * block) * f32::from((nibble() | bit(1) << 4) as i8 - 16),
        DType::Q5_1 => {
            let s = at[2] + 4 * block;
            number(s) * f32::from(nibble() | bit(1) << 4) + number(s + 2)
        }
        DType::Q8_0 => {
            let code = row[at[i / 16] + 16 * block + i % 16] as i8;
            number(at[2] + 2 * block) * f32::from(code)
        }
        DType::Q2K => {
            let (s, d) = (row[at[1] + group], at[2] + 4 * super_block);
            let (dl, ml) = (number(d) * f32::from(s & 0xf), number(d + 2) * f32::from(s >> 4));
            dl * f32::from(pair(0)) - ml
        }
        DType::Q3K => {
            let dl = number(at[3] + 2 * super_block) * f32::from(row[at[2] + group] as i8);
            dl * f32::from((pair(0) | bit(1) << 2) as i8 - 4)
        }
        DType::Q4K => {
            let (dl, ml) = scale_min(1);
            dl * f32::from(nibble()) - ml
        }
        DType::Q5K => {
            let (dl, ml) = scale_min(2);
            dl * f32::from(nibble() | bit(1) << 4) - ml
        }
        DType::Q6K => {
            let dl = number(at[3] + 2 * super_block) * f32::from(row[at[2] + group] as i8);
            dl * f32::from((nibble() | pair(1) << 4) as i8 - 32)
        }
        // `row_sizes` has refused types without planes.
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use aether_ir::quant::dequantize;

    use super::*;

    #[test]
    fn packed_rows_mean_what_raw_rows_mean() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut types = 0;
        for dtype in DType::all().filter(|d| !d.planes().is_empty()) {
            types += 1;
            for blocks in [1, 2, 3, 7, 8, 9] {
                let k = blocks * dtype.block_len();
                let rows = 3;
                // Random bytes: f16 numbers of every kind, infinities and NaN among them.
                let raw: Vec<u8> =
                    (0..rows * dtype.row_bytes(k).unwrap()).map(|_| rng.u8(..)).collect();
                let mut packed = vec![0xff; rows * dtype.planes_row_bytes(k).unwrap()];
                pack_rows(dtype, k, &raw, &mut packed).unwrap();
                let (mut want, mut found) = (vec![0.0; rows * k], vec![0.0; rows * k]);
                dequantize(dtype, &raw, &mut want).unwrap();
                unpack_rows(dtype, k, &packed, &mut found).unwrap();
                for (e, (w, f)) in want.iter().zip(&found).enumerate() {
                    let same = w.to_bits() == f.to_bits() || (w.is_nan() && f.is_nan());
                    assert!(same, "{dtype} k {k} element {e}: {w} {f}");
                }
            }
        }
        assert_eq!(types, 10);
    }

    #[test]
    fn sizes_are_checked() {
        let no_planes = |r: Result<(), PlanesError>| matches!(r, Err(PlanesError::NoPlanes { .. }));
        assert!(no_planes(pack_rows(DType::F32, 32, &[], &mut [])));
        assert!(no_planes(pack_rows(DType::Q4K, 32, &[], &mut [])));
        let r = pack_rows(DType::Q4_0, 32, &[0; 36], &mut [0; 32]);
        assert!(matches!(r, Err(PlanesError::Size { want: 64, found: 32, .. })), "{r:?}");
        assert_eq!(pack_rows(DType::Q4_0, 32, &[], &mut []), Ok(()));
    }
}
