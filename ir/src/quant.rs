//! What the bytes of a tensor mean: decoding every element type to `f32`, and encoding back.
//!
//! This is the reference the kernels are measured against, written for clarity. Decoding follows
//! the `gguf` Python package (`gguf.quants.dequantize`) in the order of its operations, so that
//! results are equal bit for bit; any NaN stands for any other, because the payload of a NaN that
//! arithmetic produces differs between processors. `q8_1` and `q8_k`, which that package leaves
//! out, follow ggml: scale times value. Encoding equals `gguf.quants.quantize` where that exists;
//! the k-quants are encoded without ggml's search for better scales, which is enough for tests
//! and synthetic models.
//!
//! All numbers are little-endian, as in a GGUF file.

use half::{bf16, f16};

use crate::DType;

mod decode;
mod encode;

/// Bytes and values do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantError {
    /// The bytes end inside a block.
    #[error("{bytes} bytes are not a whole number of {dtype} blocks of {block} bytes")]
    PartialBytes { dtype: DType, bytes: usize, block: usize },
    /// The values end inside a block.
    #[error("{values} values are not a whole number of {dtype} blocks of {block} values")]
    PartialValues { dtype: DType, values: usize, block: usize },
    /// Both are whole blocks, but not the same number of them.
    #[error("{bytes} bytes hold {holds} values of {dtype}, not {values}")]
    Mismatch { dtype: DType, bytes: usize, holds: usize, values: usize },
}

fn check(dtype: DType, bytes: usize, values: usize) -> Result<(), QuantError> {
    let (len, size) = (dtype.block_len(), dtype.block_bytes());
    if !bytes.is_multiple_of(size) {
        return Err(QuantError::PartialBytes { dtype, bytes, block: size });
    }
    if !values.is_multiple_of(len) {
        return Err(QuantError::PartialValues { dtype, values, block: len });
    }
    if bytes / size != values / len {
        let holds = (bytes / size).saturating_mul(len);
        return Err(QuantError::Mismatch { dtype, bytes, holds, values });
    }
    Ok(())
}

/// Decodes `bytes` (whole blocks of `dtype`) into `out`, one `f32` per element.
///
/// Plain types are converted as Rust's `as` converts (`f64` and wide integers round to nearest);
/// `f32` and `bf16` keep every bit, also of a NaN; a `bool` is 1 where its byte is not zero.
///
/// # Errors
/// When `bytes` is not a whole number of blocks, or `out` is not exactly as long as they are.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    check(dtype, bytes.len(), out.len())?;
    match dtype {
        DType::F32 => decode::plain(bytes, out, f32::from_le_bytes),
        DType::F16 => decode::plain(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        // Not `bf16::to_f32`: it sets the quiet bit of a NaN.
        DType::Bf16 => {
            decode::plain(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
        }
        DType::F64 => decode::plain(bytes, out, |b| f64::from_le_bytes(b) as f32),
        DType::I8 => decode::plain(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        DType::I16 => decode::plain(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        DType::I32 => decode::plain(bytes, out, |b| i32::from_le_bytes(b) as f32),
        DType::I64 => decode::plain(bytes, out, |b| i64::from_le_bytes(b) as f32),
        DType::U8 => decode::plain(bytes, out, |b: [u8; 1]| f32::from(b[0])),
        DType::U32 => decode::plain(bytes, out, |b| u32::from_le_bytes(b) as f32),
        DType::Bool => {
            decode::plain(bytes, out, |b: [u8; 1]| f32::from(u8::from(b[0] != 0)));
        }
        DType::Q4_0 => decode::blocks(bytes, out, decode::q4_0),
        DType::Q4_1 => decode::blocks(bytes, out, decode::q4_1),
        DType::Q5_0 => decode::blocks(bytes, out, decode::q5_0),
        DType::Q5_1 => decode::blocks(bytes, out, decode::q5_1),
        DType::Q8_0 => decode::blocks(bytes, out, decode::q8_0),
        DType::Q8_1 => decode::blocks(bytes, out, decode::q8_1),
        DType::Q2K => decode::blocks(bytes, out, decode::q2_k),
        DType::Q3K => decode::blocks(bytes, out, decode::q3_k),
        DType::Q4K => decode::blocks(bytes, out, decode::q4_k),
        DType::Q5K => decode::blocks(bytes, out, decode::q5_k),
        DType::Q6K => decode::blocks(bytes, out, decode::q6_k),
        DType::Q8K => decode::blocks(bytes, out, decode::q8_k),
    }
    Ok(())
}

/// Encodes `values` into `out`, as many whole blocks of `dtype` as there are values.
///
/// Plain types are converted as Rust's `as` converts (integers truncate and saturate); a `bool` is
/// 1 for any value but zero. Infinities and NaN have no meaning inside a block format: a block
/// that holds one decodes to unspecified values.
///
/// # Errors
/// When `values` is not a whole number of blocks, or `out` is not exactly as long as they are.
pub fn quantize(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), QuantError> {
    check(dtype, out.len(), values.len())?;
    match dtype {
        DType::F32 => encode::plain(values, out, |v| v.to_le_bytes()),
        DType::F16 => encode::plain(values, out, |v| f16::from_f32(v).to_le_bytes()),
        DType::Bf16 => encode::plain(values, out, |v| bf16::from_f32(v).to_le_bytes()),
        DType::F64 => encode::plain(values, out, |v| f64::from(v).to_le_bytes()),
        DType::I8 => encode::plain(values, out, |v| (v as i8).to_le_bytes()),
        DType::I16 => encode::plain(values, out, |v| (v as i16).to_le_bytes()),
        DType::I32 => encode::plain(values, out, |v| (v as i32).to_le_bytes()),
        DType::I64 => encode::plain(values, out, |v| (v as i64).to_le_bytes()),
        DType::U8 => encode::plain(values, out, |v| [v as u8]),
        DType::U32 => encode::plain(values, out, |v| (v as u32).to_le_bytes()),
        DType::Bool => encode::plain(values, out, |v| [u8::from(v != 0.0)]),
        DType::Q4_0 => encode::blocks(values, out, encode::q4_0),
        DType::Q4_1 => encode::blocks(values, out, encode::q4_1),
        DType::Q5_0 => encode::blocks(values, out, encode::q5_0),
        DType::Q5_1 => encode::blocks(values, out, encode::q5_1),
        DType::Q8_0 => encode::blocks(values, out, encode::q8_0),
        DType::Q8_1 => encode::blocks(values, out, encode::q8_1),
        DType::Q2K => encode::blocks(values, out, encode::q2_k),
        DType::Q3K => encode::blocks(values, out, encode::q3_k),
        DType::Q4K => encode::blocks(values, out, encode::q4_k),
        DType::Q5K => encode::blocks(values, out, encode::q5_k),
        DType::Q6K => encode::blocks(values, out, encode::q6_k),
        DType::Q8K => encode::blocks(values, out, encode::q8_k),
    }
    Ok(())
}
