//! The tensor table: element type numbers, shapes, sizes.

use aether_ir::DType;

/// The numbers ggml gives the element types that are read.
const TYPE_IDS: [(u32, DType); 20] = [
    (0, DType::F32),
    (1, DType::F16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (6, DType::Q5_0),
    (7, DType::Q5_1),
    (8, DType::Q8_0),
    (9, DType::Q8_1),
    (10, DType::Q2K),
    (11, DType::Q3K),
    (12, DType::Q4K),
    (13, DType::Q5K),
    (14, DType::Q6K),
    (15, DType::Q8K),
    (24, DType::I8),
    (25, DType::I16),
    (26, DType::I32),
    (27, DType::I64),
    (28, DType::F64),
    (30, DType::Bf16),
];

/// The element type with this number in a GGUF file.
pub fn dtype_of(id: u32) -> Option<DType> {
    TYPE_IDS.iter().find(|row| row.0 == id).map(|row| row.1)
}

/// The number of an element type in a GGUF file; `None` for the types that GGUF has not.
pub fn type_id(dtype: DType) -> Option<u32> {
    TYPE_IDS.iter().find(|row| row.1 == dtype).map(|row| row.0)
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, unique in the file.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The dimensions in ggml's order: the first is the length of a row, whose elements lie next
    /// to each other. At most four, none zero.
    pub shape: Vec<u64>,
    /// The file that the data is in, where a model is split into several ([`Gguf::parts`]).
    ///
    /// [`Gguf::parts`]: super::Gguf::parts
    pub part: usize,
    /// Where the data begins, from the start of its file.
    pub offset: u64,
    /// The length of the data.
    pub bytes: u64,
}

impl TensorInfo {
    /// The length of a row: the first dimension, 1 for a scalar.
    pub fn cols(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The number of rows: the product of the other dimensions.
    pub fn rows(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }

    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Elements and bytes of a tensor of whole blocks, unless a product overflows.
pub(super) fn size(dtype: DType, shape: &[u64]) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
    let blocks = elements / dtype.block_len() as u64;
    let bytes = blocks.checked_mul(dtype.block_bytes() as u64)?;
    // Everything is addressed with `usize` later.
    usize::try_from(bytes).ok().and(usize::try_from(elements).ok()).map(|_| bytes)
}
