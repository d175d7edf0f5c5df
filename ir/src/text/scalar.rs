//! Elements of `dense<[…]>`: plain numbers to and from their little-endian bytes.

use half::{bf16, f16};

use crate::dtype::DType;

/// A float in the shortest form that reads back as the same bits, always with a point, an
/// exponent or letters, so that it stays a float.
pub fn float_text(v: f64) -> String {
    if v.is_nan() { "nan".to_owned() } else { format!("{v:?}") }
}

fn float32_text(v: f32) -> String {
    if v.is_nan() { "nan".to_owned() } else { format!("{v:?}") }
}

/// A float as [`float_text`] writes it; `None` when it is none, or too large.
pub fn parse_float(text: &str) -> Option<f64> {
    match text {
        "nan" => Some(f64::NAN),
        "inf" => Some(f64::INFINITY),
        "-inf" => Some(f64::NEG_INFINITY),
        _ => text.parse().ok().filter(|v: &f64| v.is_finite()),
    }
}

/// As [`parse_float`], rounded once to f32.
fn parse_float32(text: &str) -> Option<f32> {
    match text {
        "nan" | "inf" | "-inf" => parse_float(text).map(|v| v as f32),
        _ => text.parse().ok().filter(|v: &f32| v.is_finite()),
    }
}

/// The bytes of one element of a plain type.
pub fn parse(dtype: DType, text: &str) -> Result<Vec<u8>, String> {
    let refuse = || format!("`{text}` is no {dtype}");
    // Through f32 where the type is at most that: f16 and bf16 are printed as their f32, which
    // is exact, and a decimal meant for f32 must be rounded once only.
    let single = || parse_float32(text).ok_or_else(refuse);
    macro_rules! int {
        ($t:ty) => {
            text.parse::<$t>().map(|v| v.to_le_bytes().to_vec()).map_err(|_| refuse())
        };
    }
    match dtype {
        DType::F32 => Ok(single()?.to_le_bytes().to_vec()),
        DType::F16 => Ok(f16::from_f32(single()?).to_le_bytes().to_vec()),
        DType::Bf16 => Ok(bf16::from_f32(single()?).to_le_bytes().to_vec()),
        DType::F64 => Ok(parse_float(text).ok_or_else(refuse)?.to_le_bytes().to_vec()),
        DType::I8 => int!(i8),
        DType::I16 => int!(i16),
        DType::I32 => int!(i32),
        DType::I64 => int!(i64),
        DType::U8 => int!(u8),
        DType::U32 => int!(u32),
        DType::Bool => match text {
            "true" => Ok(vec![1]),
            "false" => Ok(vec![0]),
            _ => Err(refuse()),
        },
        quantised => Err(format!("elements of {quantised} cannot be listed: write `dense<0x…>`")),
    }
}

/// The text of one element, when reading it gives these bytes again.
pub fn text(dtype: DType, bytes: &[u8]) -> Option<String> {
    macro_rules! read {
        ($t:ty) => {
            <$t>::from_le_bytes(bytes.try_into().ok()?)
        };
    }
    let text = match dtype {
        DType::F32 => float32_text(read!(f32)),
        DType::F16 => float32_text(read!(f16).to_f32()),
        DType::Bf16 => float32_text(read!(bf16).to_f32()),
        DType::F64 => float_text(read!(f64)),
        DType::I8 => read!(i8).to_string(),
        DType::I16 => read!(i16).to_string(),
        DType::I32 => read!(i32).to_string(),
        DType::I64 => read!(i64).to_string(),
        DType::U8 => read!(u8).to_string(),
        DType::U32 => read!(u32).to_string(),
        DType::Bool => (bytes == [1]).to_string(),
        _ => return None,
    };
    (parse(dtype, &text).as_deref() == Ok(bytes)).then_some(text)
}

/// The bytes that hexadecimal digits stand for.
pub fn parse_hex(digits: &str) -> Result<Vec<u8>, String> {
    let digits = digits.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err("bytes need two hexadecimal digits each".to_owned());
    }
    let value = |d: u8| char::from(d).to_digit(16).map(|d| d as u8);
    let byte = |pair: &[u8]| Some(value(pair[0])? << 4 | value(pair[1])?);
    let bytes: Option<Vec<u8>> = digits.chunks_exact(2).map(byte).collect();
    bytes.ok_or_else(|| "expected hexadecimal digits".to_owned())
}

/// Adds two digits for each byte.
pub fn hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(bytes.len() * 2);
    for b in bytes {
        out.push(DIGITS[usize::from(b >> 4)].into());
        out.push(DIGITS[usize::from(b & 15)].into());
    }
}
