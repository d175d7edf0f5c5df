//! GGUF files (version 2 and 3, little-endian): memory-mapped and checked before they are
//! believed.
//!
//! [`Gguf::open`] reads the head of the file and checks every count, length, type, offset and
//! alignment in it against the bytes that are there; what it returns can be used without further
//! checks. Strings, arrays and tensor data are borrowed from the map. The format is described at
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

mod digest;
mod error;
mod get;
pub mod inspect;
mod read;
mod split;
mod tensor;
mod value;
mod writer;

pub use digest::sha256;
pub use error::{GgufError, Problem};
pub use get::Optional;
pub use split::part_paths;
pub use tensor::{TensorInfo, dtype_of, type_id};
pub use value::{Array, Elements, Strings, Value, ValueType};
pub use writer::{GgufWriter, Scalar};

/// An open GGUF file, or the files of a split model.
///
/// llama.cpp splits large models into `NAME-00001-of-00003.gguf` and so on; the first has the
/// metadata, each a part of the tensors. Any of them names the model.
#[derive(Debug)]
pub struct Gguf {
    /// One, or the files of a split model in their order.
    parts: Vec<Part>,
    /// Of the first file, with the tensors of all.
    head: read::Head,
}

/// One file of a model.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    /// The whole file, or a copy of its head where the file is detached.
    map: Arc<Mmap>,
    /// The open file, where it is detached.
    file: Option<File>,
}

impl Part {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file; of a detached one its head.
    pub fn map(&self) -> &Arc<Mmap> {
        &self.map
    }

    /// The open file, when it is detached ([`Gguf::open_detached`]).
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Maps a file and checks its head. With `detached` the head is copied and the map given up.
    fn open(path: &Path, detached: bool) -> Result<(Part, read::Head), GgufError> {
        let path = path.to_owned();
        let (file, map) = mapped(&path)?;
        let head = match read::head(&map) {
            Err(fault) => return Err(format_error(path, fault)),
            Ok(head) => head,
        };
        if !detached {
            return Ok((Part { path, map: Arc::new(map), file: None }, head));
        }
        match in_memory(&map[..head.end]) {
            Err(source) => Err(GgufError::Io { path, doing: "allocate memory for", source }),
            Ok(copy) => Ok((Part { path, map: Arc::new(copy), file: Some(file) }, head)),
        }
    }
}

impl Gguf {
    /// Maps and checks the file at `path`, and the other files of a model that is split.
    ///
    /// A file must not be shortened or rewritten in place while it is open: reading a mapped page
    /// that has gone ends the process with a bus error, which no check at opening can prevent.
    /// Downloads are for that reason written beside and moved into place; moving or deleting an
    /// open file is harmless. Who lives long opens with [`Gguf::open_detached`].
    ///
    /// # Errors
    /// When it cannot be opened or mapped, a field of it cannot be believed, or a part is missing.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, GgufError> {
        split::open(path.as_ref(), false)
    }

    /// As [`Gguf::open`], for one who reads tensors once and then lives on without the file: the
    /// head is copied and the map given up. From then on the file may be cut, rewritten or
    /// deleted. [`Part::file`] is what tensors are read from; [`Gguf::data`] has none.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn open_detached(path: impl AsRef<Path>) -> Result<Gguf, GgufError> {
        split::open(path.as_ref(), true)
    }

    /// Checks a file that is in memory already; `name` stands for its path in messages.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: &[u8]) -> Result<Gguf, GgufError> {
        let path = name.into();
        match read::head(bytes) {
            Err(fault) => Err(format_error(path, fault)),
            Ok(head) => match in_memory(bytes) {
                Err(source) => Err(GgufError::Io { path, doing: "allocate memory for", source }),
                Ok(map) => {
                    let part = Part { path, map: Arc::new(map), file: None };
                    Ok(Gguf { parts: vec![part], head })
                }
            },
        }
    }

    /// Where the file is; of a split model the first.
    pub fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// The files that the model is in: one, or several in their order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Bytes of all files together; of detached ones those of their heads.
    pub fn mapped_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.map.len() as u64).sum()
    }

    /// The format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.head.version
    }

    /// What tensor data is aligned to, in bytes.
    pub fn alignment(&self) -> u64 {
        self.head.alignment
    }

    /// The whole file; of a detached one its head, of a split model the first file.
    pub fn map(&self) -> &Arc<Mmap> {
        &self.parts[0].map
    }

    /// The keys of the metadata and their values, in the order of the file.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, Value<'_>)> {
        self.head.keys.iter().map(|(key, entry)| (key.as_str(), self.value(*entry)))
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.head.keys.get(key).map(|entry| self.value(*entry))
    }

    fn value(&self, entry: read::Entry) -> Value<'_> {
        // The bytes were walked at opening. They can fail to decode only if another process has
        // rewritten the file since: then an empty string will be refused by any typed getter.
        Value::decode(entry.ty, &self.map()[entry.start..entry.end]).unwrap_or(Value::Str(&[]))
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.head.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.head.by_name.get(name).map(|i| &self.head.tensors[*i])
    }

    /// The data of a tensor of this file; empty for a tensor that lies outside the file, which is
    /// then none of its own, and where the file is detached.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let start = usize::try_from(tensor.offset).ok();
        let end = tensor.offset.checked_add(tensor.bytes).and_then(|e| usize::try_from(e).ok());
        let map = self.parts.get(tensor.part).map(|part| &part.map);
        let range = start.zip(end).map(|(start, end)| start..end);
        map.zip(range).and_then(|(map, range)| map.get(range)).unwrap_or(&[])
    }
}

/// The file at `path`, open and mapped.
fn mapped(path: &Path) -> Result<(File, Mmap), GgufError> {
    let io = |doing| move |source| GgufError::Io { path: path.to_owned(), doing, source };
    // Asked before opening, because opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(io("open"))?.is_file() {
        return Err(GgufError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io("open"))?;
    // SAFETY: the map is read-only, so nothing here writes through it. Its bytes may still
    // change or vanish when another process writes to the file or shortens it. The length of
    // the map is that of the file now, and every access is checked against it, so only such a
    // change after this line can hurt. Changed bytes are no worse than a wrong file: the head
    // is parsed into values of our own once, what is decoded from the map later is decoded
    // with bounds checks, and strings become `str` only after a check on each use. A lost
    // page raises SIGBUS, which ends the process without corrupting it; the comment of
    // `Gguf::open` says how to avoid it.
    let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
    Ok((file, map))
}

/// Bytes in a map of their own.
fn in_memory(bytes: &[u8]) -> std::io::Result<Mmap> {
    // A map is never empty.
    let mut map = MmapMut::map_anon(bytes.len().max(1))?;
    map[..bytes.len()].copy_from_slice(bytes);
    map.make_read_only()
}

fn format_error(path: PathBuf, fault: read::Fault) -> GgufError {
    let read::Fault { at, field, problem } = fault;
    GgufError::Format { path, at: at as u64, field, problem }
}
