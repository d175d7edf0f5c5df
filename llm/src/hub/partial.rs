//! A download in progress: the partial file, its running digest, and the note from which a
//! later attempt goes on.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cache::{hash_into, hex, remove_file};
use super::catalogue::Entry;
use super::error::HubError;

/// What is known of the bytes in the partial file, kept beside it as JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Digest of the file that is being made.
    pub sha256: String,
    /// Which source the bytes are from; bytes of another source are not added to.
    pub source: String,
    /// The validator that the server gave with them.
    pub etag: Option<String>,
    /// Where the bytes come in parts: the bytes after each part that is complete.
    pub part_ends: Vec<u64>,
}

/// The partial file, open for appending.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    note_path: PathBuf,
    note: Note,
    hasher: Sha256,
    len: u64,
    size: u64,
}

impl Partial {
    /// Opens the partial file at `path`, keeping its bytes if its note says that they belong
    /// to the same file from the same source. With `parts`, only complete parts are kept.
    pub fn open(path: PathBuf, entry: &Entry, source: &str, parts: bool) -> Result<Self, HubError> {
        let note_path = path.with_extension("partial.json");
        let file = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| HubError::io("create", &path, e))?;
        let fresh =
            Note { sha256: entry.sha256.clone(), source: source.to_owned(), ..Note::default() };
        let mut partial = Self {
            file,
            path,
            note_path,
            note: fresh,
            hasher: Sha256::new(),
            len: 0,
            size: entry.size,
        };
        let keep = partial.kept_note().map_or(0, |note| {
            let there = partial.file.metadata().map_or(0, |m| m.len());
            let wanted = if parts { note.part_ends.last().copied().unwrap_or(0) } else { there };
            let sound = wanted <= there && wanted <= entry.size && note.part_ends.is_sorted();
            partial.note = if sound { note } else { partial.note.clone() };
            if sound { wanted } else { 0 }
        });
        partial.cut(keep)?;
        let read = hash_into(&mut partial.file, keep, &mut partial.hasher)
            .map_err(|e| HubError::io("read", &partial.path, e))?;
        if read == keep {
            partial.len = keep;
        } else {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that are missing.
    pub fn missing(&self) -> u64 {
        self.size - self.len
    }

    /// What is known of the bytes so far.
    pub fn note(&self) -> &Note {
        &self.note
    }

    /// Forgets all bytes.
    pub fn restart(&mut self) -> Result<(), HubError> {
        self.note.etag = None;
        self.note.part_ends.clear();
        self.back_to(0)
    }

    /// Forgets what came after the last complete part.
    pub fn back_to_part(&mut self) -> Result<(), HubError> {
        let end = self.note.part_ends.last().copied().unwrap_or(0);
        if end == self.len { Ok(()) } else { self.back_to(end) }
    }

    /// Adds bytes. The caller keeps to [`Partial::missing`].
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(|e| self.write_error(e))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Notes the server's validator for the bytes to come.
    pub fn set_etag(&mut self, etag: Option<String>) -> Result<(), HubError> {
        self.note.etag = etag;
        self.write_note()
    }

    /// Notes that the bytes so far end with a complete part.
    pub fn end_part(&mut self) -> Result<(), HubError> {
        self.note.part_ends.push(self.len);
        self.write_note()
    }

    /// The digest of the bytes so far.
    pub fn digest(&self) -> String {
        hex(&self.hasher.clone().finalize())
    }

    /// Brings everything to the disk and closes; the partial file's path.
    pub fn finish(self) -> Result<PathBuf, HubError> {
        self.file.sync_all().map_err(|e| self.write_error(e))?;
        remove_file(&self.note_path)?;
        Ok(self.path)
    }

    /// Deletes the partial file and its note.
    pub fn discard(self) -> Result<(), HubError> {
        let (path, note_path) = (self.path.clone(), self.note_path.clone());
        // Windows does not delete open files.
        drop(self);
        remove_file(&note_path)?;
        remove_file(&path).map(drop)
    }

    /// The error of an attempt that ended early; it says what is kept.
    pub fn interrupted(&self, origin: &str, reason: impl ToString) -> HubError {
        HubError::Interrupted {
            origin: origin.to_owned(),
            reason: reason.to_string(),
            done: self.len,
            total: self.size,
        }
    }

    fn kept_note(&self) -> Option<Note> {
        let data = fs::metadata(&self.note_path).ok()?;
        if data.len() > 1 << 16 {
            return None;
        }
        let note: Note = serde_json::from_slice(&fs::read(&self.note_path).ok()?).ok()?;
        (note.sha256 == self.note.sha256 && note.source == self.note.source).then_some(note)
    }

    fn write_note(&self) -> Result<(), HubError> {
        let text = serde_json::to_vec(&self.note)
            .map_err(|e| HubError::io("write", &self.note_path, io::Error::other(e)))?;
        fs::write(&self.note_path, text).map_err(|e| self.write_error(e))
    }

    fn back_to(&mut self, len: u64) -> Result<(), HubError> {
        self.cut(len)?;
        self.hasher = Sha256::new();
        hash_into(&mut self.file, len, &mut self.hasher)
            .map_err(|e| HubError::io("read", &self.path, e))?;
        self.len = len;
        self.write_note()
    }

    /// Cuts the file to `len` and goes to its beginning.
    fn cut(&mut self, len: u64) -> Result<(), HubError> {
        self.file.set_len(len).map_err(|e| self.write_error(e))?;
        self.file.seek(SeekFrom::Start(0)).map_err(|e| HubError::io("read", &self.path, e))?;
        Ok(())
    }

    fn write_error(&self, error: io::Error) -> HubError {
        write_error(&self.path, self.missing(), error)
    }
}

/// The error of a write below the cache folder; a full disk is called so.
pub(super) fn write_error(path: &Path, needed: u64, error: io::Error) -> HubError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        let folder = path.parent().unwrap_or(path).to_path_buf();
        return HubError::NoSpace { folder, needed, free: None };
    }
    HubError::io("write", path, error)
}
