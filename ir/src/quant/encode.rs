//! `f32` to blocks, the inverse of [`super::decode`], whose comments give the layouts.
//!
//! The scale is stored rounded to `f16`, but values are divided by the unrounded one in the
//! 32-element formats: that is how ggml and the `gguf` package do it. The k-quants divide by what
//! a reader will see.

use half::f16;

/// Applies `f` to each `N` values and their block of `B` bytes.
pub(super) fn blocks<const N: usize, const B: usize>(
    values: &[f32],
    out: &mut [u8],
    f: impl Fn(&[f32; N], &mut [u8; B]),
) {
    for (v, block) in values.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<B>().0) {
        f(v, block);
    }
}

/// Applies `f` to each value, giving a number of `B` bytes.
pub(super) fn plain<const B: usize>(values: &[f32], out: &mut [u8], f: impl Fn(f32) -> [u8; B]) {
    for (v, b) in values.iter().zip(out.as_chunks_mut::<B>().0) {
        *b = f(*v);
    }
}

/// Stores `x` as `f16` at `at`; the value a reader will see.
fn put_scale(b: &mut [u8], at: usize, x: f32) -> f32 {
    let h = f16::from_f32(x);
    b[at..at + 2].copy_from_slice(&h.to_le_bytes());
    h.to_f32()
}

/// `1 / d`, or zero for an all-zero block.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The value of the largest magnitude (the first of equals), with its sign.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m: f32, v| if v.abs() > m.abs() { *v } else { m })
}

fn min_max(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), v| (lo.min(*v), hi.max(*v)))
}

/// Writes the low four bits of 32 numbers, halves as in `q4_0`.
fn put_nibbles(qs: &mut [u8], q: &[u8; 32]) {
    for (i, byte) in qs.iter_mut().enumerate() {
        *byte = (q[i] & 0xf) | (q[i + 16] << 4);
    }
}

fn put_fifth_bits(qh: &mut [u8], q: &[u8; 32]) {
    qh.fill(0);
    for (e, q) in q.iter().enumerate() {
        qh[e / 8] |= (q >> 4) << (e % 8);
    }
}

/// Numbers `0..=max` with zero in the middle; the scale.
fn symmetric(v: &[f32; 32], max: u8) -> (f32, [u8; 32]) {
    let half = f32::from(max / 2 + 1);
    let d = extreme(v) / -half;
    let id = inverse(d);
    (d, v.map(|x| ((x * id + (half + 0.5)) as u8).min(max)))
}

/// Numbers `0..=max` above a minimum; the scale and the minimum.
fn affine(v: &[f32; 32], max: u8) -> (f32, f32, [u8; 32]) {
    let (lo, hi) = min_max(v);
    let d = (hi - lo) / f32::from(max);
    let id = inverse(d);
    (d, lo, v.map(|x| (((x - lo) * id + 0.5) as u8).min(max)))
}

pub(super) fn q4_0(v: &[f32; 32], b: &mut [u8; 18]) {
    let (d, q) = symmetric(v, 15);
    put_scale(b, 0, d);
    put_nibbles(&mut b[2..], &q);
}

pub(super) fn q4_1(v: &[f32; 32], b: &mut [u8; 20]) {
    let (d, m, q) = affine(v, 15);
    put_scale(b, 0, d);
    put_scale(b, 2, m);
    put_nibbles(&mut b[4..], &q);
}

pub(super) fn q5_0(v: &[f32; 32], b: &mut [u8; 22]) {
    let (d, q) = symmetric(v, 31);
    put_scale(b, 0, d);
    put_fifth_bits(&mut b[2..6], &q);
    put_nibbles(&mut b[6..], &q);
}

pub(super) fn q5_1(v: &[f32; 32], b: &mut [u8; 24]) {
    let (d, m, q) = affine(v, 31);
    put_scale(b, 0, d);
    put_scale(b, 2, m);
    put_fifth_bits(&mut b[4..8], &q);
    put_nibbles(&mut b[8..], &q);
}

/// Signed 8-bit numbers by magnitude; the scale.
fn eight_bits(v: &[f32; 32]) -> (f32, [i8; 32]) {
    let d = extreme(v).abs() / 127.0;
    let id = inverse(d);
    (d, v.map(|x| (x * id).round() as i8))
}

pub(super) fn q8_0(v: &[f32; 32], b: &mut [u8; 34]) {
    let (d, q) = eight_bits(v);
    put_scale(b, 0, d);
    b[2..].copy_from_slice(&q.map(|q| q as u8));
}

pub(super) fn q8_1(v: &[f32; 32], b: &mut [u8; 36]) {
    let (d, q) = eight_bits(v);
    let sum: i32 = q.iter().map(|q| i32::from(*q)).sum();
    put_scale(b, 0, d);
    put_scale(b, 2, sum as f32 * d);
    b[4..].copy_from_slice(&q.map(|q| q as u8));
}

/// `round(x / d)` kept within `lo..=hi`; zero where `d` is.
fn number(x: f32, d: f32, lo: i32, hi: i32) -> i32 {
    ((x * inverse(d)).round() as i32).clamp(lo, hi)
}

/// The scale (not negative) and the distance of the minimum below zero of a group of values that
/// is to be written as numbers `0..=max`.
fn scale_below(group: &[f32], max: u8) -> (f32, f32) {
    let (lo, hi) = min_max(group);
    let lo = lo.min(0.0);
    ((hi.max(lo) - lo) / f32::from(max), -lo)
}

fn put_two_bits(qs: &mut [u8], e: usize, q: u8) {
    qs[32 * (e / 128) + e % 32] |= (q & 3) << (2 * (e / 32 % 4));
}

fn put_one_bit(qh: &mut [u8], e: usize, bit: u8) {
    qh[e % 32] |= (bit & 1) << (e / 32);
}

fn put_nibble_k(qs: &mut [u8], e: usize, q: u8) {
    qs[32 * (e / 64) + e % 32] |= (q & 0xf) << (4 * (e / 32 % 2));
}

pub(super) fn q2_k(v: &[f32; 256], b: &mut [u8; 84]) {
    b.fill(0);
    let groups: Vec<_> = v.chunks_exact(16).map(|g| scale_below(g, 3)).collect();
    let top = groups.iter().fold((0.0f32, 0.0f32), |m, g| (m.0.max(g.0), m.1.max(g.1)));
    let d = put_scale(b, 80, top.0 / 15.0);
    let dmin = put_scale(b, 82, top.1 / 15.0);
    for (g, (scale, below)) in groups.into_iter().enumerate() {
        let sc = number(scale, d, 0, 15);
        let m = number(below, dmin, 0, 15);
        b[g] = (sc | (m << 4)) as u8;
        for (e, x) in v.iter().enumerate().skip(16 * g).take(16) {
            let q = number(x + dmin * m as f32, d * sc as f32, 0, 3);
            put_two_bits(&mut b[16..80], e, q as u8);
        }
    }
}

pub(super) fn q3_k(v: &[f32; 256], b: &mut [u8; 110]) {
    b.fill(0);
    let groups: Vec<f32> = v.chunks_exact(16).map(|g| extreme(g) / -4.0).collect();
    let d = put_scale(b, 108, extreme(&groups) / -32.0);
    for (g, scale) in groups.into_iter().enumerate() {
        let sc = number(scale, d, -32, 31);
        let stored = (sc + 32) as u8;
        b[96 + g % 8] |= (stored & 0xf) << (4 * (g / 8));
        b[104 + g % 4] |= (stored >> 4) << (2 * (g / 4));
        for (e, x) in v.iter().enumerate().skip(16 * g).take(16) {
            let q = (number(*x, d * sc as f32, -4, 3) + 4) as u8;
            put_two_bits(&mut b[32..96], e, q);
            put_one_bit(&mut b[..32], e, q >> 2);
        }
    }
}

/// Writes the common head of `q4_k` and `q5_k` and returns the numbers `0..=max`.
fn scale_min_groups(v: &[f32; 256], b: &mut [u8], max: u8) -> [u8; 256] {
    let groups: Vec<_> = v.chunks_exact(32).map(|g| scale_below(g, max)).collect();
    let top = groups.iter().fold((0.0f32, 0.0f32), |m, g| (m.0.max(g.0), m.1.max(g.1)));
    let d = put_scale(b, 0, top.0 / 63.0);
    let dmin = put_scale(b, 2, top.1 / 63.0);
    let scales = &mut b[4..16];
    let mut numbers = [0; 256];
    for (g, (scale, below)) in groups.into_iter().enumerate() {
        let sc = number(scale, d, 0, 63) as u8;
        let m = number(below, dmin, 0, 63) as u8;
        if g < 4 {
            scales[g] |= sc;
            scales[g + 4] |= m;
        } else {
            scales[g + 4] |= (sc & 0xf) | (m << 4);
            scales[g - 4] |= (sc >> 4) << 6;
            scales[g] |= (m >> 4) << 6;
        }
        for e in 32 * g..32 * g + 32 {
            let shifted = v[e] + dmin * f32::from(m);
            numbers[e] = number(shifted, d * f32::from(sc), 0, i32::from(max)) as u8;
        }
    }
    numbers
}

pub(super) fn q4_k(v: &[f32; 256], b: &mut [u8; 144]) {
    b.fill(0);
    for (e, q) in scale_min_groups(v, b, 15).into_iter().enumerate() {
        put_nibble_k(&mut b[16..], e, q);
    }
}

pub(super) fn q5_k(v: &[f32; 256], b: &mut [u8; 176]) {
    b.fill(0);
    for (e, q) in scale_min_groups(v, b, 31).into_iter().enumerate() {
        put_one_bit(&mut b[16..48], e, q >> 4);
        put_nibble_k(&mut b[48..], e, q);
    }
}

pub(super) fn q6_k(v: &[f32; 256], b: &mut [u8; 210]) {
    b.fill(0);
    let groups: Vec<f32> = v.chunks_exact(16).map(|g| extreme(g) / -32.0).collect();
    let d = put_scale(b, 208, extreme(&groups) / -128.0);
    for (g, scale) in groups.into_iter().enumerate() {
        let sc = number(scale, d, -128, 127);
        b[192 + g] = sc as i8 as u8;
        for (e, x) in v.iter().enumerate().skip(16 * g).take(16) {
            let q = (number(*x, d * sc as f32, -32, 31) + 32) as u8;
            b[64 * (e / 128) + e % 64] |= (q & 0xf) << (4 * (e / 64 % 2));
            put_two_bits(&mut b[128..192], e, q >> 4);
        }
    }
}

pub(super) fn q8_k(v: &[f32; 256], b: &mut [u8; 292]) {
    b.fill(0);
    let d = extreme(v) / -127.0;
    b[..4].copy_from_slice(&d.to_le_bytes());
    for (g, group) in v.chunks_exact(16).enumerate() {
        let mut sum = 0i16;
        for (i, x) in group.iter().enumerate() {
            let q = number(*x, d, -127, 127) as i8;
            b[4 + 16 * g + i] = q as u8;
            sum += i16::from(q);
        }
        b[260 + 2 * g..262 + 2 * g].copy_from_slice(&sum.to_le_bytes());
    }
}
