//! What can be wrong with a GGUF file: every error names the file; one about its form also names
//! the field and the byte where it stands.

use std::fmt;
use std::io;
use std::path::PathBuf;

use aether_ir::DType;
use aether_ir::quant::QuantError;

use super::value::ValueType;

/// A GGUF file cannot be read, or does not hold what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be opened, read, mapped or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    /// The path leads to a folder, a pipe or a device.
    #[error("{} is not a regular file; give the path of a .gguf file", path.display())]
    NotAFile { path: PathBuf },
    /// A field of the file cannot be believed.
    #[error("{}: {field} (byte {at}): {problem}", path.display())]
    Format { path: PathBuf, at: u64, field: String, problem: Problem },
    /// The files of a split model do not make one.
    #[error("{}: {problem}", path.display())]
    Split { path: PathBuf, problem: String },
    /// The metadata lacks a key.
    #[error("{}: metadata has no key {}, which should be {expected}", path.display(), quoted(key))]
    MissingKey { path: PathBuf, key: String, expected: &'static str },
    /// A key holds another type than the one asked for.
    #[error("{}: metadata key {} is {found}, but should be {expected}", path.display(), quoted(key))]
    WrongType { path: PathBuf, key: String, expected: &'static str, found: String },
    /// A key holds a number that does not fit the type asked for, or a string that is not UTF-8.
    #[error("{}: metadata key {}: {value} is not {expected}", path.display(), quoted(key))]
    OutOfRange { path: PathBuf, key: String, expected: &'static str, value: String },
    /// The writer was given a type that GGUF has no number for.
    #[error("tensor {}: GGUF has no type {dtype}", quoted(name))]
    NoTypeId { name: String, dtype: DType },
    /// The writer could not encode a tensor.
    #[error("tensor {}: {source}", quoted(name))]
    Encode { name: String, source: QuantError },
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("not a GGUF file: it starts with {:?} instead of \"GGUF\"", found.escape_ascii().to_string())]
    Magic { found: [u8; 4] },
    #[error("a big-endian file; only little-endian ones are read")]
    BigEndian,
    #[error("version {0} is not supported; 2 and 3 are")]
    Version(u32),
    #[error("needs {need} bytes, but {left} are left in the file")]
    Truncated { need: u64, left: u64 },
    #[error("{count} items of at least {least} bytes do not fit into the {left} bytes left")]
    Count { count: u64, least: u64, left: u64 },
    #[error("is empty")]
    Empty,
    #[error("{len} bytes are too long; at most {max} are allowed")]
    TooLong { len: u64, max: u64 },
    #[error("is not valid UTF-8")]
    Utf8,
    #[error("unknown value type {0}")]
    ValueType(u32),
    #[error("an array of arrays, which is not supported")]
    NestedArray,
    #[error("{0} is neither 0 nor 1")]
    Bool(u8),
    #[error("occurs a second time")]
    Duplicate,
    #[error("is {0}, but should be an integer")]
    AlignmentType(ValueType),
    #[error("{0} is not a power of two from 8 to 65536")]
    Alignment(i128),
    #[error("{0} dimensions; at most 4 are allowed")]
    Dimensions(u32),
    #[error("a dimension of zero")]
    ZeroDimension,
    #[error("the number of elements or bytes overflows")]
    Overflow,
    #[error("element type {} is not supported", type_name(*.0))]
    ElementType(u32),
    #[error("rows of {len} elements are not whole {dtype} blocks of {block}")]
    RowLength { dtype: DType, len: u64, block: usize },
    #[error("offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned { offset: u64, alignment: u64 },
    #[error(
        "its data would end at byte {end}, but the file has {file}: it is truncated or corrupt"
    )]
    PastEnd { end: u64, file: u64 },
    #[error("its data overlaps that of tensor {}", quoted(other))]
    Overlap { other: String },
}

/// Names of the ggml type numbers that are not read, for the error message.
const FOREIGN: [(u32, &str); 22] = [
    (4, "q4_2, removed from ggml"),
    (5, "q4_3, removed from ggml"),
    (16, "iq2_xxs"),
    (17, "iq2_xs"),
    (18, "iq3_xxs"),
    (19, "iq1_s"),
    (20, "iq4_nl"),
    (21, "iq3_s"),
    (22, "iq2_s"),
    (23, "iq4_xs"),
    (29, "iq1_m"),
    (31, "q4_0_4_4, removed from ggml"),
    (32, "q4_0_4_8, removed from ggml"),
    (33, "q4_0_8_8, removed from ggml"),
    (34, "tq1_0"),
    (35, "tq2_0"),
    (36, "iq4_nl_4_4, removed from ggml"),
    (37, "iq4_nl_4_8, removed from ggml"),
    (38, "iq4_nl_8_8, removed from ggml"),
    (39, "mxfp4"),
    (40, "nvfp4"),
    (41, "q1_0"),
];

fn type_name(id: u32) -> String {
    match FOREIGN.iter().find(|row| row.0 == id) {
        Some((_, name)) => format!("{id} ({name})"),
        None => format!("{id} (unknown)"),
    }
}

/// A name from the file, fit for a message: quoted, control characters escaped, cut when long.
pub(super) fn quoted(name: &str) -> impl fmt::Display {
    const MOST: usize = 80;
    match name.char_indices().nth(MOST) {
        None => format!("{name:?}"),
        Some((cut, _)) => format!("{:?}…", &name[..cut]),
    }
}
