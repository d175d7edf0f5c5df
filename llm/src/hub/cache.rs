//! The cache folder: where model files lie, how they are locked and how they get in.
//!
//! Below the root, `models/NAME.gguf` is a whole file whose digest was checked, and
//! `models/NAME.gguf.verified` says so (digest, size, time of change). Everything else in there
//! is work in progress: `NAME.gguf.partial` with its `.partial.json`, the folder
//! `NAME.gguf.PID.staging`, and `NAME.gguf.lock`, which one process at a time holds.
//!
//! A file comes to its final name by one rename, so a reader sees all of it or nothing.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::catalogue::Entry;
use super::error::HubError;

/// The folder that models are kept in.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// The right to work on one model; given back when dropped or when the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
    /// False where the file system has no locks: work must not be shared with others then.
    pub exclusive: bool,
}

impl Cache {
    /// The user's cache: `AETHER_HOME`, else the folder `aether` in the platform's place for
    /// caches (`XDG_CACHE_HOME` or `~/.cache`, `~/Library/Caches`, `%LOCALAPPDATA%`).
    /// Nothing is created.
    pub fn open() -> Result<Self, HubError> {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// As [`Cache::open`], with the environment as a function.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        // An empty variable counts as not set, as the XDG specification wants it.
        let folder = |name: &str| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(root) = folder("AETHER_HOME") {
            return Ok(Self { root });
        }
        let base = if cfg!(windows) {
            folder("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            folder("HOME").map(|home| home.join("Library/Caches"))
        } else {
            // Relative paths there are to be ignored, by the same specification.
            folder("XDG_CACHE_HOME")
                .filter(|p| p.is_absolute())
                .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        };
        base.map(|b| Self { root: b.join("aether") }).ok_or(HubError::NoCacheFolder)
    }

    /// A cache in the given folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The cache folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the model's file is, or will be.
    pub fn model_path(&self, entry: &Entry) -> PathBuf {
        self.models().join(format!("{}.gguf", entry.name))
    }

    /// True if the whole, verified file is there, unchanged in size and time since then.
    pub fn is_present(&self, entry: &Entry) -> bool {
        self.stamp(entry).is_some_and(|stamp| {
            fs::read_to_string(self.side_path(entry, "verified")).is_ok_and(|text| text == stamp)
        })
    }

    /// Deletes the model's file and what belongs to it. True if there was a file.
    pub fn remove(&self, entry: &Entry) -> Result<bool, HubError> {
        remove_file(&self.side_path(entry, "verified"))?;
        remove_file(&self.side_path(entry, "partial"))?;
        remove_file(&self.side_path(entry, "partial.json"))?;
        remove_file(&self.model_path(entry))
    }

    pub(super) fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// `NAME.gguf.SUFFIX` beside the model's file.
    pub(super) fn side_path(&self, entry: &Entry, suffix: &str) -> PathBuf {
        self.models().join(format!("{}.gguf.{suffix}", entry.name))
    }

    /// True if a file of the right size is in place, verified or not.
    pub(super) fn has_right_size(&self, entry: &Entry) -> bool {
        fs::metadata(self.model_path(entry)).is_ok_and(|m| m.is_file() && m.len() == entry.size)
    }

    /// Reads the file in place and tells if its digest is right; then it is marked as verified.
    pub(super) fn verify(&self, entry: &Entry) -> Result<bool, HubError> {
        let path = self.model_path(entry);
        let mut file = File::open(&path).map_err(|e| HubError::io("open", &path, e))?;
        let mut hasher = Sha256::new();
        hash_into(&mut file, entry.size, &mut hasher)
            .map_err(|e| HubError::io("read", &path, e))?;
        let good = hex(&hasher.finalize()) == entry.sha256;
        if good {
            // A cache that may not be written to is as good as any for reading.
            let _ = self.mark(entry);
        }
        Ok(good)
    }

    /// Moves a whole and verified file to its place and marks it. `partial` must be synced.
    pub(super) fn install(&self, entry: &Entry, partial: &Path) -> Result<PathBuf, HubError> {
        let path = self.model_path(entry);
        remove_file(&self.side_path(entry, "verified"))?;
        fs::rename(partial, &path).map_err(|e| HubError::io("move into place", &path, e))?;
        sync_folder(&self.models());
        self.mark(entry)?;
        Ok(path)
    }

    /// Takes the model's lock; calls `waiting` once if another process has it.
    pub(super) fn lock(&self, entry: &Entry, waiting: impl FnOnce()) -> Result<Lock, HubError> {
        let path = self.side_path(entry, "lock");
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| HubError::io("create", &path, e))?;
        let taken = match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock()
            }
            Err(TryLockError::Error(e)) => Err(e),
        };
        match taken {
            Ok(()) => Ok(Lock { _file: file, exclusive: true }),
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                Ok(Lock { _file: file, exclusive: false })
            }
            Err(e) => Err(HubError::io("lock", &path, e)),
        }
    }

    /// Bytes that may still be written below the cache folder, where the system tells.
    pub(super) fn free_space(&self) -> Option<u64> {
        #[cfg(unix)]
        {
            let stat = rustix::fs::statvfs(&self.root).ok()?;
            stat.f_bavail.checked_mul(stat.f_frsize)
        }
        #[cfg(not(unix))]
        None
    }

    fn mark(&self, entry: &Entry) -> Result<(), HubError> {
        let path = self.side_path(entry, "verified");
        let temporary = self.side_path(entry, &format!("verified.{}", std::process::id()));
        let stamp = self.stamp(entry).unwrap_or_default();
        fs::write(&temporary, stamp).map_err(|e| HubError::io("write", &temporary, e))?;
        fs::rename(&temporary, &path).map_err(|e| HubError::io("write", &path, e))
    }

    /// What the marker of the file in place must say, if a file of the right size is there.
    fn stamp(&self, entry: &Entry) -> Option<String> {
        let data = fs::metadata(self.model_path(entry)).ok()?;
        if !data.is_file() || data.len() != entry.size {
            return None;
        }
        let changed = data.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(format!("{} {} {}\n", entry.sha256, data.len(), changed.as_secs()))
    }
}

/// Feeds up to `limit` bytes to the hasher; returns how many there were.
pub(super) fn hash_into(from: &mut impl Read, limit: u64, hasher: &mut Sha256) -> io::Result<u64> {
    let mut from = from.take(limit);
    let mut buffer = vec![0u8; 1 << 18];
    let mut done = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(done),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                done += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Lower case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// Removes a file that may not be there. True if it was.
pub(super) fn remove_file(path: &Path) -> Result<bool, HubError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(HubError::io("remove", path, e)),
    }
}

/// Makes a rename in the folder last through a loss of power, where folders can be synced.
fn sync_folder(folder: &Path) {
    if cfg!(unix)
        && let Ok(handle) = File::open(folder)
    {
        // Not every file system can; the file itself is synced in any case.
        let _ = handle.sync_all();
    }
}
