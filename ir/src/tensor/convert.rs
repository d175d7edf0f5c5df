//! Bytes to numbers and back.
//!
//! Reading is exact but for i64 read as f64. Writing rounds once, to nearest with ties to even;
//! floats become integers by truncation with saturation (NaN becomes 0), integers wrap to their
//! width, and `bool` is 1 for all but zero. Slices must be whole blocks and of equal length;
//! what has no counterpart is left as it is.

use half::{bf16, f16};

use crate::dtype::DType;
use crate::quant;

fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], f: impl Fn([u8; N]) -> T) {
    for (b, v) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *v = f(*b);
    }
}

fn fill<const N: usize, T: Copy>(values: &[T], out: &mut [u8], f: impl Fn(T) -> [u8; N]) {
    for (v, b) in values.iter().zip(out.as_chunks_mut::<N>().0) {
        *b = f(*v);
    }
}

/// Decodes quantised blocks piece by piece into what `put` makes of each value.
fn each_quantized<T>(dtype: DType, bytes: &[u8], out: &mut [T], put: impl Fn(f32) -> T) {
    let mut piece = [0f32; 256];
    let piece = &mut piece[..dtype.block_len().min(256)];
    let blocks = bytes.chunks_exact(dtype.block_bytes());
    for (block, values) in blocks.zip(out.chunks_exact_mut(dtype.block_len())) {
        // One whole block on either side is what `dequantize` asks for.
        let _ = quant::dequantize(dtype, block, piece);
        for (v, x) in values.iter_mut().zip(&*piece) {
            *v = put(*x);
        }
    }
}

/// Reads every element of `bytes` as f64.
pub fn get_f64(dtype: DType, bytes: &[u8], out: &mut [f64]) {
    match dtype {
        DType::F32 => each(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
        DType::F64 => each(bytes, out, f64::from_le_bytes),
        DType::F16 => each(bytes, out, |b| f64::from(f16::from_le_bytes(b).to_f32())),
        DType::Bf16 => each(bytes, out, |b| f64::from(bf16::from_le_bytes(b).to_f32())),
        DType::I8 => each(bytes, out, |b| f64::from(i8::from_le_bytes(b))),
        DType::I16 => each(bytes, out, |b| f64::from(i16::from_le_bytes(b))),
        DType::I32 => each(bytes, out, |b| f64::from(i32::from_le_bytes(b))),
        DType::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f64),
        DType::U8 => each(bytes, out, |b: [u8; 1]| f64::from(b[0])),
        DType::U32 => each(bytes, out, |b| f64::from(u32::from_le_bytes(b))),
        DType::Bool => each(bytes, out, |b: [u8; 1]| f64::from(u8::from(b[0] != 0))),
        _ => each_quantized(dtype, bytes, out, f64::from),
    }
}

/// Reads every element of `bytes` as i64.
pub fn get_i64(dtype: DType, bytes: &[u8], out: &mut [i64]) {
    match dtype {
        DType::F32 => each(bytes, out, |b| f32::from_le_bytes(b) as i64),
        DType::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as i64),
        DType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32() as i64),
        DType::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32() as i64),
        DType::I8 => each(bytes, out, |b| i64::from(i8::from_le_bytes(b))),
        DType::I16 => each(bytes, out, |b| i64::from(i16::from_le_bytes(b))),
        DType::I32 => each(bytes, out, |b| i64::from(i32::from_le_bytes(b))),
        DType::I64 => each(bytes, out, i64::from_le_bytes),
        DType::U8 => each(bytes, out, |b: [u8; 1]| i64::from(b[0])),
        DType::U32 => each(bytes, out, |b| i64::from(u32::from_le_bytes(b))),
        DType::Bool => each(bytes, out, |b: [u8; 1]| i64::from(b[0] != 0)),
        _ => each_quantized(dtype, bytes, out, |v| v as i64),
    }
}

/// Writes floats as elements of `dtype`.
pub fn put_f64(dtype: DType, values: &[f64], out: &mut [u8]) {
    match dtype {
        DType::F32 => fill(values, out, |v| (v as f32).to_le_bytes()),
        DType::F64 => fill(values, out, f64::to_le_bytes),
        DType::F16 => fill(values, out, |v| f16::from_f32(to_odd_f32(v)).to_le_bytes()),
        DType::Bf16 => fill(values, out, |v| bf16::from_f32(to_odd_f32(v)).to_le_bytes()),
        DType::I8 => fill(values, out, |v| (v as i8).to_le_bytes()),
        DType::I16 => fill(values, out, |v| (v as i16).to_le_bytes()),
        DType::I32 => fill(values, out, |v| (v as i32).to_le_bytes()),
        DType::I64 => fill(values, out, |v| (v as i64).to_le_bytes()),
        DType::U8 => fill(values, out, |v| [v as u8]),
        DType::U32 => fill(values, out, |v| (v as u32).to_le_bytes()),
        DType::Bool => fill(values, out, |v| [u8::from(v != 0.0)]),
        _ => {
            let blocks = values.chunks_exact(dtype.block_len());
            for (v, block) in blocks.zip(out.chunks_exact_mut(dtype.block_bytes())) {
                let narrow: Vec<f32> = v.iter().map(|x| *x as f32).collect();
                let _ = quant::quantize(dtype, &narrow, block);
            }
        }
    }
}

/// Writes integers as elements of `dtype`.
pub fn put_i64(dtype: DType, values: &[i64], out: &mut [u8]) {
    match dtype {
        DType::F32 => fill(values, out, |v| (v as f32).to_le_bytes()),
        DType::I8 => fill(values, out, |v| (v as i8).to_le_bytes()),
        DType::I16 => fill(values, out, |v| (v as i16).to_le_bytes()),
        DType::I32 => fill(values, out, |v| (v as i32).to_le_bytes()),
        DType::I64 => fill(values, out, i64::to_le_bytes),
        DType::U8 => fill(values, out, |v| [v as u8]),
        DType::U32 => fill(values, out, |v| (v as u32).to_le_bytes()),
        DType::Bool => fill(values, out, |v| [u8::from(v != 0)]),
        _ => {
            let size = dtype.block_bytes();
            for (v, b) in values.chunks(dtype.block_len()).zip(out.chunks_exact_mut(size)) {
                let wide: Vec<f64> = v.iter().map(|x| to_odd_f64(*x)).collect();
                put_f64(dtype, &wide, b);
            }
        }
    }
}

/// Rounds to odd: what is not exact goes to the neighbour with an odd last bit, so that rounding
/// the result again to a narrower type equals rounding once.
///
/// The `half` crate's own conversion from f64 rounds twice where the processor helps it.
fn to_odd_f32(x: f64) -> f32 {
    let near = x as f32;
    if x.is_nan() || f64::from(near) == x {
        return near;
    }
    let toward_zero = f64::from(near).abs() < x.abs();
    let bits = if toward_zero { near.to_bits() } else { near.to_bits() - 1 };
    f32::from_bits(bits | 1)
}

/// As [`to_odd_f32`], from integers. The f64 result is rounded to odd at f64's precision.
fn to_odd_f64(v: i64) -> f64 {
    let near = v as f64;
    let (exact, rounded) = (i128::from(v).abs(), (near as i128).abs());
    match rounded.cmp(&exact) {
        std::cmp::Ordering::Equal => near,
        std::cmp::Ordering::Less => f64::from_bits(near.to_bits() | 1),
        std::cmp::Ordering::Greater => f64::from_bits((near.to_bits() - 1) | 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(dtype: DType, v: f64) -> f64 {
        let mut bytes = vec![0; dtype.block_bytes()];
        put_f64(dtype, &[v], &mut bytes);
        let mut out = [0.0];
        get_f64(dtype, &bytes, &mut out);
        out[0]
    }

    #[test]
    fn halves_are_rounded_once() {
        // Just above and below the middle of 1 and the next f16, closer than f32 can tell.
        let tie = 1.0 + 2f64.powi(-11);
        let nudge = 2f64.powi(-40);
        let next = 1.0 + 2f64.powi(-10);
        let table = [
            (DType::F16, tie, 1.0),
            (DType::F16, tie + nudge, next),
            (DType::F16, -(tie + nudge), -next),
            (DType::F16, tie - nudge, 1.0),
            (DType::Bf16, 1.0 + 2f64.powi(-8), 1.0),
            (DType::Bf16, 1.0 + 2f64.powi(-8) + nudge, 1.0 + 2f64.powi(-7)),
            (DType::F16, 65519.999, 65504.0),
            (DType::F16, 65520.0, f64::INFINITY),
            (DType::F16, 1e300, f64::INFINITY),
            (DType::Bf16, -1e300, f64::NEG_INFINITY),
            (DType::F16, 1e-300, 0.0),
            (DType::F16, 2f64.powi(-25) * (1.0 + nudge), 2f64.powi(-24)),
        ];
        for (dtype, v, want) in table {
            assert_eq!(through(dtype, v), want, "{dtype} {v:e}");
        }
    }

    #[test]
    fn floats_truncate_and_saturate_to_integers() {
        let table = [
            (DType::I8, -1.9, -1.0),
            (DType::I8, 1e9, 127.0),
            (DType::U8, -3.0, 0.0),
            (DType::U32, f64::INFINITY, f64::from(u32::MAX)),
            (DType::I32, f64::NAN, 0.0),
            (DType::Bool, f64::NAN, 1.0),
            (DType::Bool, -0.0, 0.0),
        ];
        for (dtype, v, want) in table {
            assert_eq!(through(dtype, v), want, "{dtype} {v}");
        }
    }

    #[test]
    fn integers_round_once_to_floats_and_wrap_to_their_width() {
        let mut b = [0; 2];
        // Above a tie of bf16 by less than f64 can hold.
        let v = (1i64 << 62) + (1 << 54) + 1;
        put_i64(DType::Bf16, &[v], &mut b);
        assert_eq!(bf16::from_le_bytes(b).to_f64(), 2f64.powi(62) + 2f64.powi(55));
        put_i64(DType::I16, &[70_000], &mut b);
        assert_eq!(i16::from_le_bytes(b), 4464);
    }
}
