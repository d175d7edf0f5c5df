//! Reads the head of a GGUF file: header, metadata, tensor table. Every number in it is checked
//! against the bytes that are there before it is used, and nothing is allocated that the file
//! does not pay for with bytes of its own.

use std::collections::HashMap;
use std::fmt;

use indexmap::IndexMap;

use super::error::{Problem, quoted};
use super::tensor::{self, TensorInfo};
use super::value::{Value, ValueType};

/// The longest key that the GGUF specification allows.
const MAX_KEY: u64 = 65_535;
/// The longest tensor name that the GGUF specification allows.
const MAX_NAME: u64 = 64;
/// Where tensor data is aligned when the metadata does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A field that cannot be believed; becomes [`super::GgufError::Format`].
pub(super) struct Fault {
    pub at: usize,
    pub field: String,
    pub problem: Problem,
}

/// Where a value stands in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub ty: ValueType,
    pub start: usize,
    pub end: usize,
}

/// The checked head of a file.
#[derive(Debug)]
pub(super) struct Head {
    /// Where it ends.
    pub end: usize,
    pub version: u32,
    pub alignment: u64,
    pub keys: IndexMap<String, Entry>,
    pub tensors: Vec<TensorInfo>,
    pub by_name: HashMap<String, usize>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

fn fault(at: usize, field: impl fmt::Display, problem: Problem) -> Fault {
    Fault { at, field: field.to_string(), problem }
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, need: u64, field: impl fmt::Display) -> Result<&'a [u8], Fault> {
        let left = self.left();
        if need > left {
            return Err(fault(self.at, field, Problem::Truncated { need, left }));
        }
        let start = self.at;
        // In range: `need` is at most what is left of a slice.
        self.at += need as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self, field: impl fmt::Display) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, field)?);
        Ok(out)
    }

    fn u32(&mut self, field: impl fmt::Display) -> Result<u32, Fault> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: impl fmt::Display) -> Result<u64, Fault> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A count of items that take at least `least` bytes each of what follows `after` more bytes.
    fn count(
        &mut self,
        least: usize,
        after: usize,
        field: impl fmt::Display,
    ) -> Result<usize, Fault> {
        let at = self.at;
        let count = self.u64(&field)?;
        let (least, left) = (least as u64, self.left().saturating_sub(after as u64));
        match usize::try_from(count) {
            Ok(n) if count <= left / least => Ok(n),
            _ => Err(fault(at, field, Problem::Count { count, least, left })),
        }
    }

    fn string(&mut self, field: impl fmt::Display) -> Result<&'a [u8], Fault> {
        let len = self.u64(format_args!("length of {field}"))?;
        self.take(len, field)
    }

    /// A name: UTF-8, not empty, at most `max` bytes.
    fn name(&mut self, max: u64, field: impl fmt::Display) -> Result<&'a str, Fault> {
        let at = self.at;
        let len = self.u64(format_args!("length of {field}"))?;
        if len > max {
            return Err(fault(at, field, Problem::TooLong { len, max }));
        }
        let bytes = self.take(len, &field)?;
        if bytes.is_empty() {
            return Err(fault(at, field, Problem::Empty));
        }
        std::str::from_utf8(bytes).map_err(|_| fault(at + 8, field, Problem::Utf8))
    }

    fn value_type(&mut self, field: impl fmt::Display) -> Result<ValueType, Fault> {
        let at = self.at;
        let id = self.u32(&field)?;
        ValueType::from_id(id).ok_or_else(|| fault(at, field, Problem::ValueType(id)))
    }

    fn bools(&mut self, count: usize, field: impl fmt::Display) -> Result<(), Fault> {
        let at = self.at;
        let bytes = self.take(count as u64, &field)?;
        match bytes.iter().position(|b| *b > 1) {
            None => Ok(()),
            Some(i) => Err(fault(at + i, field, Problem::Bool(bytes[i]))),
        }
    }

    /// Walks over a value, checking it.
    fn value(&mut self, ty: ValueType, key: impl fmt::Display) -> Result<(), Fault> {
        match (ty, ty.size()) {
            (ValueType::Bool, _) => self.bools(1, format_args!("value of key {key}")),
            (_, Some(size)) => {
                self.take(size as u64, format_args!("value of key {key}")).map(|_| ())
            }
            (ValueType::Str, None) => self.string(format_args!("value of key {key}")).map(|_| ()),
            (_, None) => self.elements(key),
        }
    }

    fn elements(&mut self, key: impl fmt::Display) -> Result<(), Fault> {
        let at = self.at;
        let elem = self.value_type(format_args!("element type of key {key}"))?;
        if elem == ValueType::Array {
            let field = format_args!("element type of key {key}");
            return Err(fault(at, field, Problem::NestedArray));
        }
        // A string is at least its length field.
        let least = elem.size().unwrap_or(8);
        let count = self.count(least, 0, format_args!("length of array {key}"))?;
        match elem {
            ValueType::Str => {
                for i in 0..count {
                    self.string(format_args!("item {i} of array {key}"))?;
                }
                Ok(())
            }
            ValueType::Bool => self.bools(count, format_args!("an item of array {key}")),
            // `count` items were found to fit, so the product does too.
            _ => self.take((count * least) as u64, format_args!("array {key}")).map(|_| ()),
        }
    }
}

/// Reads and checks everything but the tensor data, whose place is checked.
pub(super) fn head(bytes: &[u8]) -> Result<Head, Fault> {
    let mut cur = Cursor { bytes, at: 0 };
    let magic = cur.array::<4>("magic")?;
    if magic != *b"GGUF" {
        return Err(fault(0, "magic", Problem::Magic { found: magic }));
    }
    let version = cur.u32("version")?;
    match version {
        2 | 3 => {}
        // A big-endian file of a small version number has it in the other half.
        v if v & 0xffff == 0 && v != 0 => return Err(fault(4, "version", Problem::BigEndian)),
        v => return Err(fault(4, "version", Problem::Version(v))),
    }
    // A tensor is at least a name length, a dimension count, a type and an offset, which also
    // lie behind the key count; a key at least a length, a character, a type and a byte.
    let tensor_count = cur.count(24, 8, "tensor count")?;
    let key_count = cur.count(14, 0, "key count")?;

    let keys = keys(&mut cur, key_count)?;
    let alignment = alignment(bytes, &keys)?;
    let (tensors, by_name) = tensors(&mut cur, tensor_count, alignment)?;
    Ok(Head { end: cur.at, version, alignment, keys, tensors, by_name })
}

fn keys(cur: &mut Cursor<'_>, count: usize) -> Result<IndexMap<String, Entry>, Fault> {
    let mut keys = IndexMap::new();
    for i in 0..count {
        let at = cur.at;
        let key = cur.name(MAX_KEY, format_args!("key {i}"))?;
        let shown = quoted(key);
        let ty = cur.value_type(format_args!("type of key {shown}"))?;
        let start = cur.at;
        cur.value(ty, &shown)?;
        let entry = Entry { ty, start, end: cur.at };
        if keys.insert(key.to_owned(), entry).is_some() {
            return Err(fault(at, format_args!("key {shown}"), Problem::Duplicate));
        }
    }
    Ok(keys)
}

fn alignment(bytes: &[u8], keys: &IndexMap<String, Entry>) -> Result<u64, Fault> {
    let key = "general.alignment";
    let Some(entry) = keys.get(key) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let value = Value::decode(entry.ty, &bytes[entry.start..entry.end]);
    match value.and_then(|v| v.as_int()) {
        None => Err(fault(entry.start, key, Problem::AlignmentType(entry.ty))),
        Some(v) => match u64::try_from(v) {
            Ok(v) if v.is_power_of_two() && (8..=65_536).contains(&v) => Ok(v),
            _ => Err(fault(entry.start, key, Problem::Alignment(v))),
        },
    }
}

type Tensors = (Vec<TensorInfo>, HashMap<String, usize>);

fn tensors(cur: &mut Cursor<'_>, count: usize, alignment: u64) -> Result<Tensors, Fault> {
    let mut tensors = Vec::new();
    let mut by_name = HashMap::new();
    // Where each tensor's offset field stands: the place to name when its data is misplaced.
    let mut fields = Vec::new();
    for i in 0..count {
        let at = cur.at;
        let name = cur.name(MAX_NAME, format_args!("name of tensor {i}"))?;
        if by_name.insert(name.to_owned(), i).is_some() {
            let field = format_args!("tensor {}", quoted(name));
            return Err(fault(at, field, Problem::Duplicate));
        }
        let (info, field) = tensor(cur, name)?;
        tensors.push(info);
        fields.push(field);
    }
    place(&mut tensors, &fields, alignment, cur.at as u64, cur.bytes.len() as u64)?;
    Ok((tensors, by_name))
}

/// One row of the table after its name, its offset still as in the file, and where that stands.
fn tensor(cur: &mut Cursor<'_>, name: &str) -> Result<(TensorInfo, usize), Fault> {
    let shown = quoted(name);
    let at = cur.at;
    let field = format_args!("dimension count of tensor {shown}").to_string();
    let dimensions = cur.u32(&field)?;
    if dimensions > 4 {
        return Err(fault(at, field, Problem::Dimensions(dimensions)));
    }
    let shape_at = cur.at;
    let mut shape = Vec::with_capacity(4);
    for d in 0..dimensions {
        let at = cur.at;
        let n = cur.u64(format_args!("dimension {d} of tensor {shown}"))?;
        if n == 0 {
            let field = format_args!("dimension {d} of tensor {shown}");
            return Err(fault(at, field, Problem::ZeroDimension));
        }
        shape.push(n);
    }
    let at = cur.at;
    let id = cur.u32(format_args!("element type of tensor {shown}"))?;
    let dtype = tensor::dtype_of(id).ok_or_else(|| {
        fault(at, format_args!("element type of tensor {shown}"), Problem::ElementType(id))
    })?;
    let (len, block) = (shape.first().copied().unwrap_or(1), dtype.block_len());
    if !len.is_multiple_of(block as u64) {
        let field = format_args!("shape of tensor {shown}");
        return Err(fault(shape_at, field, Problem::RowLength { dtype, len, block }));
    }
    let bytes = tensor::size(dtype, &shape).ok_or_else(|| {
        fault(shape_at, format_args!("shape of tensor {shown}"), Problem::Overflow)
    })?;
    let at = cur.at;
    let offset = cur.u64(format_args!("offset of tensor {shown}"))?;
    Ok((TensorInfo { name: name.to_owned(), dtype, shape, part: 0, offset, bytes }, at))
}

/// Makes offsets absolute and proves that all data lies inside the file, aligned and apart.
fn place(
    tensors: &mut [TensorInfo],
    fields: &[usize],
    alignment: u64,
    head: u64,
    file: u64,
) -> Result<(), Fault> {
    let misplaced = |t: &TensorInfo, at: usize, problem: Problem| {
        fault(at, format_args!("offset of tensor {}", quoted(&t.name)), problem)
    };
    for (t, at) in tensors.iter_mut().zip(fields) {
        if !t.offset.is_multiple_of(alignment) {
            let problem = Problem::Misaligned { offset: t.offset, alignment };
            return Err(misplaced(t, *at, problem));
        }
        let start = head.checked_next_multiple_of(alignment).and_then(|d| d.checked_add(t.offset));
        let end = start.and_then(|s| s.checked_add(t.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file => t.offset = start,
            (_, end) => {
                let end = end.unwrap_or(u64::MAX);
                return Err(misplaced(t, *at, Problem::PastEnd { end, file }));
            }
        }
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|i| tensors[*i].offset);
    for pair in order.windows(2) {
        let (a, b) = (&tensors[pair[0]], &tensors[pair[1]]);
        if a.offset + a.bytes > b.offset {
            let problem = Problem::Overlap { other: a.name.clone() };
            return Err(misplaced(b, fields[pair[1]], problem));
        }
    }
    Ok(())
}
