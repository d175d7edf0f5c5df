//! Constants that lie in files: memory-mapped, so that they are read when a kernel needs them and
//! can be dropped from memory when it does not.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aether_codegen_cpu::{ConstBytes, ConstSource, DenseOnly};
use aether_ir::tensor::Bytes;
use aether_ir::{Const, ConstData, Module};
use indexmap::IndexMap;
use memmap2::{Advice, Mmap, MmapMut};

/// What is behind a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A file: pages that are given back are read again from it when they are needed.
    File,
    /// Memory alone: pages must stay.
    Memory,
}

#[derive(Clone)]
struct Mapped {
    map: Arc<Mmap>,
    backing: Backing,
}

/// A file whose bytes are copied when they are asked for.
struct Copied {
    file: Mutex<File>,
    len: u64,
}

impl Copied {
    /// A copy of a range, in memory of its own.
    fn read(&self, offset: u64, bytes: u64) -> Result<Mmap, String> {
        let failed = |error: std::io::Error| format!("cannot be read: {error}");
        let len = usize::try_from(bytes).map_err(|e| e.to_string())?;
        // A map is never empty.
        let mut copy = MmapMut::map_anon(len.max(1)).map_err(failed)?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        file.read_exact(&mut copy[..len]).map_err(failed)?;
        copy.make_read_only().map_err(failed)
    }
}

/// Serves the constants of modules from memory-mapped files.
///
/// Files are found by the path that the module's text gives: one that is registered under that
/// very text, else one on disk, from the base folder if it is relative.
#[derive(Default)]
pub struct Files {
    base: PathBuf,
    open: Mutex<HashMap<String, Mapped>>,
    copied: Mutex<HashMap<String, Arc<Copied>>>,
}

impl Files {
    /// No files yet; relative paths start at the current folder.
    pub fn new() -> Self {
        Files::default()
    }

    /// As [`Files::new`] with relative paths from `base`.
    pub fn with_base(base: impl Into<PathBuf>) -> Self {
        Files { base: base.into(), ..Files::default() }
    }

    /// Serves `path`, as a module writes it, from this map.
    pub fn register(&self, path: impl Into<String>, map: Arc<Mmap>, backing: Backing) {
        self.lock().insert(path.into(), Mapped { map, backing });
    }

    /// Serves `path`, as a module writes it, from copies of what this open file has now. Once a
    /// module is loaded the file is not read again: it may be cut, overwritten or deleted. A weight
    /// that is packed when it is loaded is in memory once, as with a map.
    ///
    /// # Errors
    /// When the file has no length.
    pub fn register_copied(&self, path: impl Into<String>, file: File) -> std::io::Result<()> {
        let len = file.metadata()?.len();
        let copied = Arc::new(Copied { file: Mutex::new(file), len });
        self.lock_copied().insert(path.into(), copied);
        Ok(())
    }

    fn lock_copied(&self) -> MutexGuard<'_, HashMap<String, Arc<Copied>>> {
        self.copied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Mapped>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The map of a file, opened when this is the first use of it.
    fn map(&self, path: &str) -> Result<Arc<Mmap>, String> {
        let mut open = self.lock();
        if let Some(found) = open.get(path) {
            return Ok(found.map.clone());
        }
        let full = self.base.join(path);
        let map = Arc::new(map_file(&full)?);
        open.insert(path.to_owned(), Mapped { map: map.clone(), backing: Backing::File });
        Ok(map)
    }

    /// Tells the system that files will be read from front to back, as loading does.
    pub fn will_load(&self) {
        self.advise(Advice::Sequential);
    }

    /// Takes [`Files::will_load`] back: from now on reads are at random. Pages that loading left
    /// in memory are given back; what is read again comes again.
    pub fn loaded(&self) {
        self.advise(Advice::Normal);
        for mapped in self.lock().values().filter(|m| m.backing == Backing::File) {
            give_back(&mapped.map, 0..mapped.map.len());
        }
    }

    fn advise(&self, advice: Advice) {
        for mapped in self.lock().values().filter(|m| m.backing == Backing::File) {
            #[cfg(unix)]
            if let Err(error) = mapped.map.advise(advice) {
                tracing::debug!(%error, "madvise");
            }
            #[cfg(not(unix))]
            let _ = (mapped, advice);
        }
    }

    /// The row-major bytes of a constant, shared with the map.
    ///
    /// # Errors
    /// When the file cannot be mapped or ends before the constant does.
    pub fn load(&self, constant: &Const) -> Result<Bytes, String> {
        match &constant.data {
            ConstData::Dense(bytes) => Ok(bytes.clone().into()),
            ConstData::File { .. } => Ok(Bytes::from_owner(self.range(constant)?)),
        }
    }

    /// Length of every file that holds constants of a module, by the path that the module gives.
    ///
    /// # Errors
    /// When a file cannot be mapped.
    pub fn lengths(&self, module: &Module) -> Result<IndexMap<String, u64>, String> {
        let mut lengths = IndexMap::new();
        for constant in module.consts.values() {
            if let ConstData::File { path, .. } = &constant.data
                && !lengths.contains_key(path)
            {
                let copied = self.lock_copied().get(path).map(|copied| copied.len);
                let len = match copied {
                    Some(len) => len,
                    None => self.map(path)?.len() as u64,
                };
                lengths.insert(path.clone(), len);
            }
        }
        Ok(lengths)
    }

    fn range(&self, constant: &Const) -> Result<Part, String> {
        let ConstData::File { path, offset, bytes, .. } = &constant.data else {
            return Err("is not in a file".to_owned());
        };
        let copied = self.lock_copied().get(path).cloned();
        if let Some(copied) = copied {
            let map = copied.read(*offset, *bytes).map_err(|e| format!("{path:?} {e}"))?;
            return Ok(Part { map: Arc::new(map), range: 0..*bytes as usize });
        }
        let map = self.map(path)?;
        let start = usize::try_from(*offset).ok();
        let end = offset.checked_add(*bytes).and_then(|end| usize::try_from(end).ok());
        match start.zip(end).filter(|(_, end)| *end <= map.len()) {
            Some((start, end)) => Ok(Part { map, range: start..end }),
            None => Err(format!(
                "wants {bytes} bytes from offset {offset} on, but {path:?} has {} bytes",
                map.len()
            )),
        }
    }
}

/// A range of a map.
struct Part {
    map: Arc<Mmap>,
    range: std::ops::Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        self.map.get(self.range.clone()).unwrap_or_default()
    }
}

fn map_file(path: &Path) -> Result<Mmap, String> {
    let failed = |e: std::io::Error| format!("cannot map {}: {e}", path.display());
    // Asked before opening, because opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("{} is not a regular file", path.display()));
    }
    let file = File::open(path).map_err(failed)?;
    // SAFETY: the map is read-only and every access is checked against its length. Another process
    // can change the bytes, which gives other numbers and no worse, or cut the file, which ends
    // this process with a bus error without corrupting it; files in use must not be written to.
    unsafe { Mmap::map(&file) }.map_err(failed)
}

impl ConstSource for Files {
    fn bytes(&self, name: &str, constant: &Const) -> Result<ConstBytes, String> {
        match &constant.data {
            ConstData::Dense(_) => DenseOnly.bytes(name, constant),
            ConstData::File { .. } => {
                let Part { map, range } = self.range(constant)?;
                Ok(ConstBytes { memory: map, range })
            }
        }
    }

    fn release(&self, bytes: &ConstBytes) {
        let memory = (*bytes.memory).as_ref();
        let open = self.lock();
        let found = open.values().find(|m| {
            m.backing == Backing::File
                && m.map.as_ptr() == memory.as_ptr()
                && m.map.len() == memory.len()
        });
        if let Some(mapped) = found {
            give_back(&mapped.map, bytes.range.clone());
        }
    }
}

/// Drops the pages of a range from memory, for maps of [`Backing::File`].
fn give_back(map: &Mmap, range: std::ops::Range<usize>) {
    #[cfg(unix)]
    {
        // SAFETY: the map is of a file, shared and read-only (`Backing::File`): pages that are
        // dropped are read again from the file at the next access, with the same bytes.
        let dropped = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            map.unchecked_advise_range(advice, range.start, range.len())
        };
        if let Err(error) = dropped {
            tracing::debug!(%error, "madvise");
        }
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}

impl aether_ir::interp::ConstSource for Files {
    fn load(&self, _name: &str, constant: &Const) -> Result<Bytes, String> {
        Files::load(self, constant)
    }
}
