//! How each block format is cut into fields: the table that packing and unpacking share.
//!
//! Offsets are those of ggml's block structures (`ggml-common.h`).

use aether_ir::DType;

use super::GROUP;

/// Bytes of the largest block, `q8_k`.
pub(super) const MAX_BLOCK: usize = 292;

/// A change made to a unit on its way into the packed form; each is undone on the way out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fix {
    None,
    /// Signed bytes become unsigned: plus 128.
    Flip,
    /// A word of 32 fifth bits in element order becomes 4 bytes in which bit `g` of byte `j` is
    /// that of element `4·g + j`.
    Spread,
}

/// A run of equal units in a block.
#[derive(Clone, Copy)]
pub(super) struct Field {
    /// Offset in the GGUF block.
    pub src: usize,
    /// Bytes per unit: 1, 2 or 4.
    pub unit: usize,
    /// Units.
    pub count: usize,
    pub fix: Fix,
}

const fn field(src: usize, unit: usize, count: usize) -> Field {
    Field { src, unit, count, fix: Fix::None }
}

const fn fixed(src: usize, unit: usize, count: usize, fix: Fix) -> Field {
    Field { src, unit, count, fix }
}

/// The fields of `q3_k`: the words of third bits, which all blocks share, beside the first words of
/// codes, so that bytes are met in the order of memory (see [`q6_k`]).
const fn q3_k() -> [Field; 19] {
    beside([field(108, 2, 1), field(96, 1, 12)], 0, 32, 16)
}

/// The fields of `q5_k`, its words of fifth bits as in [`q3_k`].
const fn q5_k() -> [Field; 19] {
    beside([field(0, 2, 2), field(4, 1, 12)], 16, 48, 32)
}

/// Two fields of scales, eight pairs of a word from `extra` and one from `codes`, and the rest of
/// the `words` words of codes.
const fn beside(scales: [Field; 2], extra: usize, codes: usize, words: usize) -> [Field; 19] {
    let mut fields = [field(codes + 32, 4, words - 8); 19];
    fields[0] = scales[0];
    fields[1] = scales[1];
    let mut g = 0;
    while g < 8 {
        fields[2 + 2 * g] = field(extra + 4 * g, 4, 1);
        fields[3 + 2 * g] = field(codes + 4 * g, 4, 1);
        g += 1;
    }
    fields
}

/// The fields of `q6_k`: scale, sub-scales, then code bytes in the order in which a product reads
/// them. Vector `g` of four blocks (half of the 256 elements) takes one word of high bits and two
/// of low ones; side by side they are one stream, which the machine's prefetcher follows. (Plane
/// after plane, decoding read half as many bytes per second.)
const fn q6_k() -> [Field; 50] {
    let mut fields = [field(208, 2, 1); 50];
    fields[1] = field(192, 1, 16);
    let mut i = 0;
    while i < 16 {
        let (half, g) = (i / 8, i % 8);
        fields[2 + 3 * i] = field(128 + 32 * half + 4 * g, 4, 1);
        fields[3 + 3 * i] = field(64 * half + 4 * g, 4, 1);
        fields[4 + 3 * i] = field(64 * half + 32 + 4 * g, 4, 1);
        i += 1;
    }
    fields
}

/// The fields of a type in packed order, or `None` for a type that is not quantised.
pub(super) fn of(dtype: DType) -> Option<&'static [Field]> {
    const Q4_0: [Field; 2] = [field(0, 2, 1), field(2, 4, 4)];
    const Q4_1: [Field; 2] = [field(0, 2, 2), field(4, 4, 4)];
    const Q5_0: [Field; 3] = [field(0, 2, 1), fixed(2, 4, 1, Fix::Spread), field(6, 4, 4)];
    const Q5_1: [Field; 3] = [field(0, 2, 2), fixed(4, 4, 1, Fix::Spread), field(8, 4, 4)];
    const Q8_0: [Field; 2] = [field(0, 2, 1), fixed(2, 4, 8, Fix::Flip)];
    const Q8_1: [Field; 2] = [field(0, 2, 1), fixed(4, 4, 8, Fix::Flip)];
    const Q2_K: [Field; 3] = [field(80, 2, 2), field(0, 1, 16), field(16, 4, 16)];
    const Q3_K: [Field; 19] = q3_k();
    const Q4_K: [Field; 3] = [field(0, 2, 2), field(4, 1, 12), field(16, 4, 32)];
    const Q5_K: [Field; 19] = q5_k();
    const Q6_K: [Field; 50] = q6_k();
    const Q8_K: [Field; 2] = [field(0, 4, 1), fixed(4, 4, 64, Fix::Flip)];
    Some(match dtype {
        DType::Q4_0 => &Q4_0,
        DType::Q4_1 => &Q4_1,
        DType::Q5_0 => &Q5_0,
        DType::Q5_1 => &Q5_1,
        DType::Q8_0 => &Q8_0,
        DType::Q8_1 => &Q8_1,
        DType::Q2K => &Q2_K,
        DType::Q3K => &Q3_K,
        DType::Q4K => &Q4_K,
        DType::Q5K => &Q5_K,
        DType::Q6K => &Q6_K,
        DType::Q8K => &Q8_K,
        _ => return None,
    })
}

impl Field {
    /// Puts the field's bytes of one row into its lane of the packed field.
    #[inline]
    pub fn scatter(&self, src: &[u8], lane: usize, dst: &mut [u8]) {
        match self.unit {
            4 => {
                let units = src.as_chunks::<4>().0.iter();
                for (unit, group) in units.zip(dst.as_chunks_mut::<{ 4 * GROUP }>().0) {
                    let word = u32::from_le_bytes(*unit);
                    let word = match self.fix {
                        Fix::None => word,
                        Fix::Flip => word ^ 0x8080_8080,
                        Fix::Spread => spread(word),
                    };
                    group[4 * lane..4 * lane + 4].copy_from_slice(&word.to_le_bytes());
                }
            }
            unit => {
                for (i, bytes) in src.chunks_exact(unit).enumerate() {
                    dst[(i * GROUP + lane) * unit..][..unit].copy_from_slice(bytes);
                }
            }
        }
    }

    /// The inverse of [`scatter`](Self::scatter).
    #[inline]
    pub fn gather(&self, src: &[u8], lane: usize, dst: &mut [u8]) {
        for (i, bytes) in dst.chunks_exact_mut(self.unit).enumerate() {
            bytes.copy_from_slice(&src[(i * GROUP + lane) * self.unit..][..self.unit]);
            match self.fix {
                Fix::None => {}
                Fix::Flip => bytes.iter_mut().for_each(|b| *b ^= 0x80),
                Fix::Spread => {
                    if let [a, b, c, d] = *bytes {
                        let word = gather_bits(u32::from_le_bytes([a, b, c, d]));
                        bytes.copy_from_slice(&word.to_le_bytes());
                    }
                }
            }
        }
    }
}

/// Moves bit `4·g + j` to bit `8·j + g`.
fn spread(word: u32) -> u32 {
    let mut out = 0;
    for j in 0..4 {
        // Every fourth bit from j on, gathered into one byte by doubling halves.
        let mut x = (word >> j) & 0x1111_1111;
        x = (x | (x >> 3)) & 0x0303_0303;
        x = (x | (x >> 6)) & 0x000f_000f;
        x = (x | (x >> 12)) & 0x0000_00ff;
        out |= x << (8 * j);
    }
    out
}

/// Moves bit `8·j + g` to bit `4·g + j`.
fn gather_bits(word: u32) -> u32 {
    let mut out = 0;
    for j in 0..4 {
        for g in 0..8 {
            out |= ((word >> (8 * j + g)) & 1) << (4 * g + j);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_cover_each_block_without_overlap() {
        for dtype in DType::quantized() {
            let mut used = vec![0u8; dtype.block_bytes()];
            for f in of(dtype).unwrap() {
                used[f.src..f.src + f.unit * f.count].iter_mut().for_each(|u| *u += 1);
            }
            let unused = used.iter().filter(|&&u| u == 0).count();
            let sums = match dtype {
                DType::Q8_1 => 2,
                DType::Q8K => 32,
                _ => 0,
            };
            assert_eq!(unused, sums, "{dtype}");
            assert!(used.iter().all(|&u| u < 2), "{dtype}");
            assert!(dtype.block_bytes() <= MAX_BLOCK);
        }
        assert!(of(DType::F32).is_none());
    }

    #[test]
    fn spread_moves_single_bits_and_is_undone() {
        for bit in 0..32 {
            let (g, j) = (bit / 4, bit % 4);
            assert_eq!(spread(1 << bit), 1 << (8 * j + g));
            assert_eq!(gather_bits(spread(1 << bit)), 1 << bit);
        }
        assert_eq!(gather_bits(spread(0xdead_beef)), 0xdead_beef);
    }
}
