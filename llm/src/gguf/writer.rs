//! Writes GGUF files, for tests and synthetic models.
//!
//! The writer puts down what it is given, in the order given, also when no reader would take it
//! (a key twice, data of the wrong length): [`super::Gguf::from_bytes`] is the judge.

use std::path::Path;

use aether_ir::DType;
use aether_ir::quant::quantize;

use super::GgufError;
use super::tensor::type_id;
use super::value::ValueType;

/// A type that a metadata value or array element can have.
pub trait Scalar: Copy {
    /// Its type in the file.
    const TYPE: ValueType;

    /// Appends its bytes.
    fn put(self, out: &mut Vec<u8>);
}

macro_rules! scalar {
    ($($type:ty => $name:ident),*) => {$(
        impl Scalar for $type {
            const TYPE: ValueType = ValueType::$name;

            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

scalar!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32,
        u64 => U64, i64 => I64, f64 => F64);

impl Scalar for bool {
    const TYPE: ValueType = ValueType::Bool;

    fn put(self, out: &mut Vec<u8>) {
        out.push(u8::from(self));
    }
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    id: u32,
    shape: Vec<u64>,
    data: Vec<u8>,
}

/// Collects metadata and tensors of one file.
#[derive(Clone, Debug)]
pub struct GgufWriter {
    version: u32,
    alignment: usize,
    keys: u64,
    metadata: Vec<u8>,
    tensors: Vec<Tensor>,
}

impl Default for GgufWriter {
    fn default() -> GgufWriter {
        GgufWriter::new()
    }
}

fn put_str(out: &mut Vec<u8>, s: impl AsRef<[u8]>) {
    let s = s.as_ref();
    (s.len() as u64).put(out);
    out.extend_from_slice(s);
}

impl GgufWriter {
    /// An empty file of version 3 with alignment 32.
    pub fn new() -> GgufWriter {
        GgufWriter { version: 3, alignment: 32, keys: 0, metadata: Vec::new(), tensors: Vec::new() }
    }

    /// Sets the version number; the layout is that of 2 and 3.
    pub fn version(&mut self, version: u32) -> &mut GgufWriter {
        self.version = version;
        self
    }

    /// Aligns tensor data to `alignment` bytes (at least 1) and adds the key that says so.
    pub fn alignment(&mut self, alignment: u32) -> &mut GgufWriter {
        self.alignment = (alignment as usize).max(1);
        self.value("general.alignment", alignment)
    }

    fn key(&mut self, key: impl AsRef<[u8]>, ty: ValueType) {
        self.keys += 1;
        put_str(&mut self.metadata, key);
        (ty as u32).put(&mut self.metadata);
    }

    /// Adds a number or truth value.
    pub fn value<T: Scalar>(&mut self, key: impl AsRef<[u8]>, value: T) -> &mut GgufWriter {
        self.key(key, T::TYPE);
        value.put(&mut self.metadata);
        self
    }

    /// Adds a string, which may be any bytes.
    pub fn string(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut GgufWriter {
        self.key(key, ValueType::Str);
        put_str(&mut self.metadata, value);
        self
    }

    /// Adds an array of numbers or truth values.
    pub fn values<T: Scalar>(&mut self, key: impl AsRef<[u8]>, values: &[T]) -> &mut GgufWriter {
        self.key(key, ValueType::Array);
        (T::TYPE as u32).put(&mut self.metadata);
        (values.len() as u64).put(&mut self.metadata);
        for v in values {
            v.put(&mut self.metadata);
        }
        self
    }

    /// Adds an array of strings.
    pub fn strings<S: AsRef<[u8]>>(
        &mut self,
        key: impl AsRef<[u8]>,
        values: &[S],
    ) -> &mut GgufWriter {
        self.key(key, ValueType::Array);
        (ValueType::Str as u32).put(&mut self.metadata);
        (values.len() as u64).put(&mut self.metadata);
        for v in values {
            put_str(&mut self.metadata, v);
        }
        self
    }

    /// Adds a tensor with its data; `shape` is in ggml's order, row length first.
    ///
    /// # Errors
    /// When GGUF has no number for `dtype` (`u8`, `u32`, `bool`).
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        dtype: DType,
        shape: &[u64],
        data: Vec<u8>,
    ) -> Result<&mut GgufWriter, GgufError> {
        let name = name.into();
        let Some(id) = type_id(dtype) else {
            return Err(GgufError::NoTypeId { name, dtype });
        };
        self.tensors.push(Tensor { name, id, shape: shape.to_owned(), data });
        Ok(self)
    }

    /// Adds a tensor with values encoded as `dtype`.
    ///
    /// # Errors
    /// When GGUF has no number for `dtype`, or the values are not whole blocks of it.
    pub fn tensor_from_f32(
        &mut self,
        name: impl Into<String>,
        dtype: DType,
        shape: &[u64],
        values: &[f32],
    ) -> Result<&mut GgufWriter, GgufError> {
        let name = name.into();
        let mut data = vec![0; values.len() / dtype.block_len() * dtype.block_bytes()];
        match quantize(dtype, values, &mut data) {
            Ok(()) => self.tensor(name, dtype, shape, data),
            Err(source) => Err(GgufError::Encode { name, source }),
        }
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        self.version.put(&mut out);
        (self.tensors.len() as u64).put(&mut out);
        self.keys.put(&mut out);
        out.extend_from_slice(&self.metadata);
        let mut offset = 0usize;
        for t in &self.tensors {
            put_str(&mut out, &t.name);
            (t.shape.len() as u32).put(&mut out);
            for n in &t.shape {
                n.put(&mut out);
            }
            t.id.put(&mut out);
            (offset as u64).put(&mut out);
            offset += t.data.len().next_multiple_of(self.alignment);
        }
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend_from_slice(&t.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), GgufError> {
        let path = path.as_ref();
        std::fs::write(path, self.to_bytes()).map_err(|source| GgufError::Io {
            path: path.to_owned(),
            doing: "write",
            source,
        })
    }
}
