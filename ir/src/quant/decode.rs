//! Blocks to `f32`. Each function takes one block; the layout stands in its comment, fields in
//! the order they are stored, `e` being the number of an element in the block.

use half::f16;

/// Applies `f` to each block of `B` bytes and its `N` values.
pub(super) fn blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    f: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (block, values) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        f(block, values);
    }
}

/// Applies `f` to each number of `B` bytes.
pub(super) fn plain<const B: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; B]) -> f32) {
    for (b, v) in bytes.as_chunks::<B>().0.iter().zip(out) {
        *v = f(*b);
    }
}

/// The `f16` stored at `at`.
fn scale(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// The 4-bit number of element `e` in 16 bytes: the low halves come first, then the high ones.
fn nibble(qs: &[u8], e: usize) -> u8 {
    (qs[e % 16] >> (4 * (e / 16))) & 0xf
}

/// The fifth bit of element `e`, at its place: four bytes, one bit per element.
fn fifth_bit(qh: &[u8], e: usize) -> u8 {
    ((qh[e / 8] >> (e % 8)) & 1) << 4
}

/// `d: f16, qs: [u8; 16]`: `d * (q - 8)`.
pub(super) fn q4_0(b: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale(b, 0);
    for (e, v) in out.iter_mut().enumerate() {
        *v = d * f32::from(nibble(&b[2..], e) as i8 - 8);
    }
}

/// `d: f16, m: f16, qs: [u8; 16]`: `d * q + m`.
pub(super) fn q4_1(b: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (scale(b, 0), scale(b, 2));
    for (e, v) in out.iter_mut().enumerate() {
        *v = d * f32::from(nibble(&b[4..], e)) + m;
    }
}

/// `d: f16, qh: [u8; 4], qs: [u8; 16]`: `d * (q - 16)`.
pub(super) fn q5_0(b: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(b, 0);
    for (e, v) in out.iter_mut().enumerate() {
        let q = nibble(&b[6..], e) | fifth_bit(&b[2..], e);
        *v = d * f32::from(q as i8 - 16);
    }
}

/// `d: f16, m: f16, qh: [u8; 4], qs: [u8; 16]`: `d * q + m`.
pub(super) fn q5_1(b: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (scale(b, 0), scale(b, 2));
    for (e, v) in out.iter_mut().enumerate() {
        let q = nibble(&b[8..], e) | fifth_bit(&b[4..], e);
        *v = d * f32::from(q) + m;
    }
}

/// `d: f16, qs: [i8; 32]`: `d * q`.
pub(super) fn q8_0(b: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(b, 0);
    for (v, q) in out.iter_mut().zip(&b[2..]) {
        *v = d * f32::from(*q as i8);
    }
}

/// `d: f16, s: f16, qs: [i8; 32]`: `d * q`; `s` is the sum of the values, kept for dot products.
pub(super) fn q8_1(b: &[u8; 36], out: &mut [f32; 32]) {
    let d = scale(b, 0);
    for (v, q) in out.iter_mut().zip(&b[4..]) {
        *v = d * f32::from(*q as i8);
    }
}

/// The 2-bit number of element `e` in 64 bytes: each 32 bytes hold four runs of 32 elements.
fn two_bits(qs: &[u8], e: usize) -> u8 {
    (qs[32 * (e / 128) + e % 32] >> (2 * (e / 32 % 4))) & 3
}

/// The bit of element `e` in 32 bytes: each byte serves the eight elements 32 apart.
fn one_bit(qh: &[u8], e: usize) -> u8 {
    (qh[e % 32] >> (e / 32)) & 1
}

/// `scales: [u8; 16], qs: [u8; 64], d: f16, dmin: f16`. Sixteen elements share a byte of
/// `scales`, scale low and minimum high: `d * scale * q - dmin * minimum`.
pub(super) fn q2_k(b: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(b, 80), scale(b, 82));
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let dl = d * f32::from(b[group] & 0xf);
        let ml = dmin * f32::from(b[group] >> 4);
        for (i, v) in values.iter_mut().enumerate() {
            *v = dl * f32::from(two_bits(&b[16..80], 16 * group + i)) - ml;
        }
    }
}

/// `hmask: [u8; 32], qs: [u8; 64], scales: [u8; 12], d: f16`. Sixteen elements share a 6-bit
/// scale with offset 32: four low bits in the first 8 bytes, two high bits in the last 4.
/// `d * scale * q`, where a clear bit in `hmask` takes 4 from `q`.
pub(super) fn q3_k(b: &[u8; 110], out: &mut [f32; 256]) {
    let d = scale(b, 108);
    let scales = &b[96..108];
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let low = (scales[group % 8] >> (4 * (group / 8))) & 0xf;
        let high = (scales[8 + group % 4] >> (2 * (group / 4))) & 3;
        let dl = d * f32::from((low | (high << 4)) as i8 - 32);
        for (i, v) in values.iter_mut().enumerate() {
            let e = 16 * group + i;
            let offset = if one_bit(&b[..32], e) == 0 { 4 } else { 0 };
            *v = dl * f32::from(two_bits(&b[32..96], e) as i8 - offset);
        }
    }
}

/// The 6-bit scale and minimum of group `j` of 8, out of the 12 bytes of a `q4_k` or `q5_k`
/// block: the first four of each lie in the low bits of bytes 0..8, the others are a half of
/// bytes 8..12 with the two bits left over in bytes 0..8.
fn scale_min(scales: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 0x3f, scales[j + 4] & 0x3f)
    } else {
        let both = scales[j + 4];
        ((both & 0xf) | ((scales[j - 4] >> 2) & 0x30), (both >> 4) | ((scales[j] >> 2) & 0x30))
    }
}

/// The 4-bit number of element `e` in 128 bytes: each 32 bytes hold two runs of 32 elements.
fn nibble_k(qs: &[u8], e: usize) -> u8 {
    (qs[32 * (e / 64) + e % 32] >> (4 * (e / 32 % 2))) & 0xf
}

/// `d: f16, dmin: f16, scales: [u8; 12], qs: [u8; 128]`: `d * scale * q - dmin * minimum`.
pub(super) fn q4_k(b: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(b, 0), scale(b, 2));
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_min(&b[4..16], group);
        let (dl, ml) = (d * f32::from(sc), dmin * f32::from(m));
        for (i, v) in values.iter_mut().enumerate() {
            *v = dl * f32::from(nibble_k(&b[16..], 32 * group + i)) - ml;
        }
    }
}

/// `d: f16, dmin: f16, scales: [u8; 12], qh: [u8; 32], qs: [u8; 128]`: as `q4_k`, with a fifth
/// bit in `qh`.
pub(super) fn q5_k(b: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(b, 0), scale(b, 2));
    for (group, values) in out.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_min(&b[4..16], group);
        let (dl, ml) = (d * f32::from(sc), dmin * f32::from(m));
        for (i, v) in values.iter_mut().enumerate() {
            let e = 32 * group + i;
            let q = nibble_k(&b[48..], e) | (one_bit(&b[16..48], e) << 4);
            *v = dl * f32::from(q) - ml;
        }
    }
}

/// `ql: [u8; 128], qh: [u8; 64], scales: [i8; 16], d: f16`: `d * scale * (q - 32)`. Each 64 bytes
/// of `ql` hold two runs of 64 elements.
pub(super) fn q6_k(b: &[u8; 210], out: &mut [f32; 256]) {
    let d = scale(b, 208);
    for (group, values) in out.chunks_exact_mut(16).enumerate() {
        let dl = d * f32::from(b[192 + group] as i8);
        for (i, v) in values.iter_mut().enumerate() {
            let e = 16 * group + i;
            let low = (b[64 * (e / 128) + e % 64] >> (4 * (e / 64 % 2))) & 0xf;
            let q = low | (two_bits(&b[128..192], e) << 4);
            *v = dl * f32::from(q as i8 - 32);
        }
    }
}

/// `d: f32, qs: [i8; 256], bsums: [i16; 16]`: `d * q`; `bsums` are the sums of sixteen `q`, kept
/// for dot products.
pub(super) fn q8_k(b: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    for (v, q) in out.iter_mut().zip(&b[4..260]) {
        *v = d * f32::from(*q as i8);
    }
}
