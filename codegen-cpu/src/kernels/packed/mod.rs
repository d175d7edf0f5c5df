//! The packed layout `r16` of quantised matrices: 16 rows interleaved.
//!
//! A matrix of `rows × cols` is cut into groups of 16 rows (the last one filled with zero rows).
//! In a group, the blocks at one position of the 16 rows are stored together, field by field:
//! every field of the GGUF block (scale, sub-scales, codes) is cut into units of 1, 2 or 4 bytes,
//! and unit `i` of the 16 rows lies side by side. A vector of 64 bytes so holds four consecutive
//! code bytes of each of the 16 rows, which is what one integer dot-product instruction takes
//! with lane = row. The packed matrix has the size of the blocks in the file (rows rounded up to
//! 16; `q8_1` and `q8_k` drop their stored sums), and the codes keep GGUF's bit positions with
//! two exceptions: signed 8-bit codes are stored plus 128, and the fifth bits of `q5_0`/`q5_1`
//! are regrouped so that bit `g` of byte `j` is that of element `4·g + j`.
//!
//! [`PackedMatrix`] is a checked view of such bytes.

mod fields;

use std::ops::Range;

use aether_ir::{DType, quant};

use fields::Field;

/// Rows that share a group.
pub const GROUP: usize = 16;

/// What can be wrong with a packed matrix or its source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The type has no packed layout.
    #[error("type {0} has no packed layout; only block-quantised types do")]
    NotQuantized(DType),
    /// The row is not a whole number of blocks.
    #[error("a row of {cols} elements is not a whole number of {dtype} blocks of {block}", block = .dtype.block_len())]
    PartialBlock { dtype: DType, cols: usize },
    /// The sizes overflow.
    #[error("the size of a {dtype} matrix of {rows} x {cols} overflows")]
    Overflow { dtype: DType, rows: usize, cols: usize },
    /// A buffer has the wrong size.
    #[error(
        "{what} of a {dtype} matrix of {rows} x {cols} holds {found} bytes, {expected} are needed"
    )]
    Size {
        what: &'static str,
        dtype: DType,
        rows: usize,
        cols: usize,
        expected: usize,
        found: usize,
    },
    /// A range of groups lies outside the matrix.
    #[error("row groups {start}..{end} lie outside the {groups} groups of the matrix")]
    Range { start: usize, end: usize, groups: usize },
}

/// Number of row groups of a matrix of `rows` rows.
pub fn groups(rows: usize) -> usize {
    rows.div_ceil(GROUP)
}

/// Bytes of one row group of `cols` columns.
///
/// # Errors
/// When the type is not quantised, `cols` not a whole number of blocks, or the size overflows.
pub fn group_bytes(dtype: DType, cols: usize) -> Result<usize, PackError> {
    let fields = fields::of(dtype).ok_or(PackError::NotQuantized(dtype))?;
    if !cols.is_multiple_of(dtype.block_len()) {
        return Err(PackError::PartialBlock { dtype, cols });
    }
    (cols / dtype.block_len()).checked_mul(super_bytes(fields)).ok_or(PackError::Overflow {
        dtype,
        rows: GROUP,
        cols,
    })
}

/// Bytes of the packed form of a `rows × cols` matrix.
///
/// # Errors
/// When the type is not quantised, `cols` not a whole number of blocks, or the size overflows.
pub fn packed_bytes(dtype: DType, rows: usize, cols: usize) -> Result<usize, PackError> {
    group_bytes(dtype, cols)?.checked_mul(groups(rows)).ok_or(PackError::Overflow {
        dtype,
        rows,
        cols,
    })
}

/// Bytes that the blocks at one position of the 16 rows of a group take.
fn super_bytes(fields: &[Field]) -> usize {
    fields.iter().map(|f| f.unit * f.count * GROUP).sum()
}

/// Packs the row groups `range` of a matrix: `src` holds the GGUF blocks of the whole matrix, row
/// after row; `dst` takes the groups of the range alone. Ranges can be packed by several threads.
///
/// # Errors
/// When sizes do not fit each other or the range lies outside the matrix.
pub fn pack_rows(
    dtype: DType,
    rows: usize,
    cols: usize,
    src: &[u8],
    range: Range<usize>,
    dst: &mut [u8],
) -> Result<(), PackError> {
    let group_len = group_bytes(dtype, cols)?;
    let fields = fields::of(dtype).ok_or(PackError::NotQuantized(dtype))?;
    let overflow = PackError::Overflow { dtype, rows, cols };
    let row_len = dtype.row_bytes(cols).ok_or(overflow.clone())?;
    let src_len = row_len.checked_mul(rows).ok_or(overflow.clone())?;
    let size = |what, expected, found| PackError::Size { what, dtype, rows, cols, expected, found };
    if src.len() != src_len {
        return Err(size("the source", src_len, src.len()));
    }
    let total = groups(rows);
    if range.start > range.end || range.end > total {
        return Err(PackError::Range { start: range.start, end: range.end, groups: total });
    }
    let dst_len = range.len().checked_mul(group_len).ok_or(overflow)?;
    if dst.len() != dst_len {
        return Err(size("the target", dst_len, dst.len()));
    }
    if group_len == 0 {
        return Ok(());
    }
    for (group, out) in range.zip(dst.chunks_exact_mut(group_len)) {
        pack_group(dtype, fields, rows, row_len, src, group, out);
    }
    Ok(())
}

fn pack_group(
    dtype: DType,
    fields: &[Field],
    rows: usize,
    row_len: usize,
    src: &[u8],
    group: usize,
    out: &mut [u8],
) {
    let first = group * GROUP;
    let present = GROUP.min(rows - first);
    // A zero row is all-zero blocks: its scales are zero whatever the codes say.
    let zero_block = [0u8; fields::MAX_BLOCK];
    let block_len = dtype.block_bytes();
    for (b, chunk) in out.chunks_exact_mut(super_bytes(fields)).enumerate() {
        for lane in 0..GROUP {
            let block = if lane < present {
                &src[(first + lane) * row_len + b * block_len..][..block_len]
            } else {
                &zero_block[..block_len]
            };
            let mut at = 0;
            for f in fields {
                let bytes = f.unit * f.count;
                let dst = &mut chunk[at..at + bytes * GROUP];
                f.scatter(&block[f.src..f.src + bytes], lane, dst);
                at += bytes * GROUP;
            }
        }
    }
}

/// A checked view of a packed matrix.
#[derive(Clone, Copy, Debug)]
pub struct PackedMatrix<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    group_len: usize,
    data: &'a [u8],
}

impl<'a> PackedMatrix<'a> {
    /// A view of `data`, the packed form of a `rows × cols` matrix of `dtype`.
    ///
    /// # Errors
    /// When the type has no packed layout or `data` has not the length [`packed_bytes`] says.
    pub fn new(
        dtype: DType,
        rows: usize,
        cols: usize,
        data: &'a [u8],
    ) -> Result<PackedMatrix<'a>, PackError> {
        let expected = packed_bytes(dtype, rows, cols)?;
        if data.len() != expected {
            let found = data.len();
            return Err(PackError::Size {
                what: "the packed form",
                dtype,
                rows,
                cols,
                expected,
                found,
            });
        }
        Ok(PackedMatrix { dtype, rows, cols, group_len: group_bytes(dtype, cols)?, data })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows (output features).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (input features).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of row groups, the unit in which work is split among threads.
    pub fn groups(&self) -> usize {
        groups(self.rows)
    }

    /// Bytes of one row group.
    pub fn group_len(&self) -> usize {
        self.group_len
    }

    /// The bytes of one group.
    pub(crate) fn group(&self, group: usize) -> &'a [u8] {
        &self.data[group * self.group_len..][..self.group_len]
    }

    /// Writes row `row` as `f32` into `out`: the values that [`aether_ir::quant`] gives for the
    /// blocks in the file, bit for bit. For embedding lookups from the packed copy.
    ///
    /// # Panics
    /// When `row` is not below [`rows`](Self::rows) or `out` is not [`cols`](Self::cols) long.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        assert_eq!(out.len(), self.cols, "length of the output row");
        let Some(fields) = fields::of(self.dtype) else { return };
        let (lane, block_len) = (row % GROUP, self.dtype.block_len());
        let mut block = [0u8; fields::MAX_BLOCK];
        let block = &mut block[..self.dtype.block_bytes()];
        let chunks = self.group(row / GROUP).chunks_exact(super_bytes(fields));
        for (chunk, values) in chunks.zip(out.chunks_exact_mut(block_len)) {
            let mut at = 0;
            for f in fields {
                let bytes = f.unit * f.count;
                let src = &chunk[at..at + bytes * GROUP];
                f.gather(src, lane, &mut block[f.src..f.src + bytes]);
                at += bytes * GROUP;
            }
            let done = quant::dequantize(self.dtype, block, values);
            debug_assert!(done.is_ok(), "one whole block");
        }
    }
}
