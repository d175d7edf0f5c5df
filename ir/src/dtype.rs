//! Element types: plain numbers and the block-quantised formats of GGUF.
//!
//! A block format stores a fixed number of consecutive elements of a row in a fixed number of
//! bytes ([`DType::block_len`], [`DType::block_bytes`]); plain types are blocks of one element.
//! Block layouts follow ggml's `ggml-common.h`; the meaning of their bytes is [`crate::quant`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    F32,
    F16,
    Bf16,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U32,
    Bool,
    #[serde(rename = "q4_0")]
    Q4_0,
    #[serde(rename = "q4_1")]
    Q4_1,
    #[serde(rename = "q5_0")]
    Q5_0,
    #[serde(rename = "q5_1")]
    Q5_1,
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q8_1")]
    Q8_1,
    #[serde(rename = "q2_k")]
    Q2K,
    #[serde(rename = "q3_k")]
    Q3K,
    #[serde(rename = "q4_k")]
    Q4K,
    #[serde(rename = "q5_k")]
    Q5K,
    #[serde(rename = "q6_k")]
    Q6K,
    #[serde(rename = "q8_k")]
    Q8K,
}

/// One row of the table behind every question about a type: name, elements and bytes per block.
const TABLE: [(DType, &str, usize, usize); 23] = [
    (DType::F32, "f32", 1, 4),
    (DType::F16, "f16", 1, 2),
    (DType::Bf16, "bf16", 1, 2),
    (DType::F64, "f64", 1, 8),
    (DType::I8, "i8", 1, 1),
    (DType::I16, "i16", 1, 2),
    (DType::I32, "i32", 1, 4),
    (DType::I64, "i64", 1, 8),
    (DType::U8, "u8", 1, 1),
    (DType::U32, "u32", 1, 4),
    (DType::Bool, "bool", 1, 1),
    (DType::Q4_0, "q4_0", 32, 18),
    (DType::Q4_1, "q4_1", 32, 20),
    (DType::Q5_0, "q5_0", 32, 22),
    (DType::Q5_1, "q5_1", 32, 24),
    (DType::Q8_0, "q8_0", 32, 34),
    (DType::Q8_1, "q8_1", 32, 36),
    (DType::Q2K, "q2_k", 256, 84),
    (DType::Q3K, "q3_k", 256, 110),
    (DType::Q4K, "q4_k", 256, 144),
    (DType::Q5K, "q5_k", 256, 176),
    (DType::Q6K, "q6_k", 256, 210),
    (DType::Q8K, "q8_k", 256, 292),
];

impl DType {
    /// Every type, in declaration order.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    /// The block-quantised types.
    pub fn quantized() -> impl Iterator<Item = DType> {
        DType::all().filter(|d| d.is_quantized())
    }

    fn row(self) -> &'static (DType, &'static str, usize, usize) {
        &TABLE[self as usize]
    }

    /// The name used in the text form, for instance `q4_k`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements per block: 1 for plain types, 32 or 256 for quantised ones.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Whether elements come in blocks with shared scales.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Whether the type is a plain floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::Bf16 | DType::F64)
    }

    /// Whether the type is a plain integer type (`bool` is not).
    pub fn is_int(self) -> bool {
        matches!(self, DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::U8 | DType::U32)
    }

    /// Bytes of a row of `len` elements, or `None` when `len` is not a whole number of blocks or
    /// the size overflows.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The planes of a row in [`crate::Layout::Planes`], as elements and bytes per unit: codes of
    /// 4, 2, 1 or 8 bits per element in blocks of 32, then scales. Empty for types without that
    /// layout.
    pub fn planes(self) -> &'static [(usize, usize)] {
        match self {
            DType::Q4_0 => &[(32, 16), (32, 2)],
            DType::Q4_1 => &[(32, 16), (32, 4)],
            DType::Q5_0 => &[(32, 16), (32, 4), (32, 2)],
            DType::Q5_1 => &[(32, 16), (32, 4), (32, 4)],
            DType::Q8_0 => &[(32, 16), (32, 16), (32, 2)],
            DType::Q2K => &[(32, 8), (256, 16), (256, 4)],
            DType::Q3K => &[(32, 8), (32, 4), (256, 16), (256, 2)],
            DType::Q4K => &[(32, 16), (256, 16)],
            DType::Q5K => &[(32, 16), (32, 4), (256, 16)],
            DType::Q6K => &[(32, 16), (32, 8), (256, 16), (256, 2)],
            _ => &[],
        }
    }

    /// Bytes of a row of `len` elements in planes, each plane rounded up to 16 bytes. `None` for
    /// types without planes, partial blocks, or on overflow.
    pub fn planes_row_bytes(self, len: usize) -> Option<usize> {
        if self.planes().is_empty() || !len.is_multiple_of(self.block_len()) {
            return None;
        }
        self.planes().iter().try_fold(0usize, |sum, (elements, bytes)| {
            let plane = (len / elements).checked_mul(*bytes)?.checked_next_multiple_of(16)?;
            sum.checked_add(plane)
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no type's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown element type `{0}`")]
pub struct UnknownDType(pub String);

impl FromStr for DType {
    type Err = UnknownDType;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        TABLE
            .iter()
            .find(|row| row.1 == s)
            .map(|row| row.0)
            .ok_or_else(|| UnknownDType(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_declaration_order_and_names_round_trip() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
            assert_eq!(row.1.parse(), Ok(row.0));
        }
        assert_eq!("f8".parse::<DType>(), Err(UnknownDType("f8".into())));
    }

    #[test]
    fn row_bytes_needs_whole_blocks() {
        assert_eq!(DType::Q4K.row_bytes(512), Some(288));
        assert_eq!(DType::Q4K.row_bytes(100), None);
        assert_eq!(DType::F64.row_bytes(usize::MAX), None);
    }
}
