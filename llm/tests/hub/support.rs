//! What the tests of model downloads run against: a small HTTP server with faults to order, and
//! a folder in which a script stands in for Python.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use aether_llm::hub::{Cache, Entry, Licence, PullOptions, Source};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// What the server does with one request. When its list is used up it serves well.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// No fault.
    None,
    /// Ends the connection after so many bytes of the body.
    CutAfter(usize),
    /// Sends all bytes with status 200, whatever range is asked for.
    IgnoreRange,
    /// Answers a range request with bytes from another place.
    WrongRange,
    /// Answers with this status and no file.
    Status(u16),
    /// Sends to another path of the same server.
    Redirect,
    /// States no length, and ends the body by closing.
    NoLength,
    /// States no length and sends so many bytes more than the file has.
    Longer(usize),
}

/// What the server saw of one request.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub path: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
    pub authorization: Option<String>,
}

/// The server; it ends when dropped.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `content` at every path, with the faults in turn, one per request.
    pub fn start(content: Vec<u8>, faults: &[Fault]) -> Self {
        Self::start_slow(content, faults, Duration::ZERO)
    }

    /// As `start`, with a pause before every answer.
    pub fn start_slow(content: Vec<u8>, faults: &[Fault], pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut faults: VecDeque<Fault> = faults.iter().cloned().collect();
        let (stop_there, seen_there) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop_there.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let Some(request) = read_request(&stream) else { continue };
                seen_there.lock().unwrap().push(request.clone());
                std::thread::sleep(pause);
                let fault = faults.pop_front().unwrap_or(Fault::None);
                // A client that has gone away is no fault of the server.
                let _ = answer(stream, &request, &content, fault);
            }
        });
        Self { address, stop, seen, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the loop up.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn read_request(stream: &TcpStream) -> Option<Seen> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut seen = Seen { path: first.split(' ').nth(1)?.to_owned(), ..Seen::default() };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        let value = Some(value.trim().to_owned());
        match name.to_ascii_lowercase().as_str() {
            "range" => seen.range = value,
            "if-range" => seen.if_range = value,
            "authorization" => seen.authorization = value,
            _ => {}
        }
    }
    Some(seen)
}

fn answer(
    mut stream: TcpStream,
    request: &Seen,
    content: &[u8],
    fault: Fault,
) -> std::io::Result<()> {
    let etag = format!("\"{}\"", &sha256(content)[..16]);
    let common = format!("ETag: {etag}\r\nConnection: close\r\n");
    let start = request
        .range
        .as_deref()
        .filter(|_| request.if_range.as_ref().is_none_or(|e| *e == etag))
        .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let head = match (&fault, start) {
        (Fault::Status(code), _) => {
            write!(stream, "HTTP/1.1 {code} No\r\nContent-Length: 0\r\n{common}\r\n")?;
            return stream.flush();
        }
        (Fault::Redirect, _) => {
            let head = format!("HTTP/1.1 302 Found\r\nLocation: /moved{}\r\n", request.path);
            write!(stream, "{head}Content-Length: 0\r\n{common}\r\n")?;
            return stream.flush();
        }
        (Fault::NoLength | Fault::Longer(_), _) => format!("HTTP/1.1 200 OK\r\n{common}\r\n"),
        (Fault::IgnoreRange, _) | (_, None) => {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{common}\r\n", content.len())
        }
        (_, Some(start)) if start >= content.len() => {
            let head = format!("HTTP/1.1 416 No\r\nContent-Range: bytes */{}\r\n", content.len());
            write!(stream, "{head}Content-Length: 0\r\n{common}\r\n")?;
            return stream.flush();
        }
        (_, Some(start)) => {
            let shown = if fault == Fault::WrongRange { start - 1 } else { start };
            format!(
                "HTTP/1.1 206 Partial\r\nContent-Length: {}\r\n\
                 Content-Range: bytes {shown}-{}/{}\r\n{common}\r\n",
                content.len() - shown,
                content.len() - 1,
                content.len()
            )
        }
    };
    stream.write_all(head.as_bytes())?;
    let body = match (&fault, start) {
        (Fault::IgnoreRange | Fault::NoLength | Fault::Longer(_), _) | (_, None) => content,
        (Fault::WrongRange, Some(start)) => &content[start - 1..],
        (_, Some(start)) => &content[start..],
    };
    match fault {
        Fault::CutAfter(n) => stream.write_all(&body[..n.min(body.len())])?,
        _ => stream.write_all(body)?,
    }
    if let Fault::Longer(n) = fault {
        stream.write_all(&vec![7; n])?;
    }
    stream.flush()
}

/// A temporary cache, with a folder beside it for the stand-in of Python.
pub struct Place {
    pub folder: TempDir,
    pub cache: Cache,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("home"));
        Self { folder, cache }
    }

    /// Names of the files in the cache, without the lock, sorted.
    pub fn files(&self) -> Vec<String> {
        let Ok(list) = std::fs::read_dir(self.cache.root().join("models")) else {
            return Vec::new();
        };
        let mut names: Vec<String> = list
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.ends_with(".lock"))
            .collect();
        names.sort();
        names
    }

    /// The stand-in of Python, at work in this place.
    #[cfg(unix)]
    pub fn fake_python(&self) -> PathBuf {
        let link = self.folder.path().join("python3");
        if !link.exists() {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fake-pip.sh");
            std::os::unix::fs::symlink(script, &link).unwrap();
        }
        link
    }

    /// Puts a file beside the stand-in of Python.
    pub fn put(&self, name: &str, content: &[u8]) {
        std::fs::write(self.folder.path().join(name), content).unwrap();
    }

    /// The packages that the stand-in was asked for.
    pub fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Bytes that do not repeat, the same for the same seed.
pub fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// An entry for `content` with the given sources.
pub fn entry(content: &[u8], sources: Vec<Source>) -> Entry {
    Entry {
        name: "tiny".to_owned(),
        description: "random bytes".to_owned(),
        architecture: "llama".to_owned(),
        quantisation: "Q4_0".to_owned(),
        size: content.len() as u64,
        licence: Licence { name: "MIT".to_owned(), url: "https://example.org".to_owned() },
        sha256: sha256(content),
        sources,
    }
}

pub fn hub_source() -> Source {
    Source::HuggingFace {
        repo: "some/tiny-GGUF".to_owned(),
        revision: "main".to_owned(),
        file: "tiny.gguf".to_owned(),
    }
}

/// Parts `part1`, `part2`, ... each with its file `data/part.bin`.
pub fn pip_source(parts: usize) -> Source {
    Source::PyPi {
        packages: (1..=parts).map(|n| format!("part{n}==1.0")).collect(),
        files: vec!["data/part.bin".to_owned(); parts],
    }
}

/// A wheel, which is a zip file, with one member besides the usual ones.
pub fn wheel(member: &str, content: &[u8]) -> Vec<u8> {
    use zip::write::SimpleFileOptions;
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in [("__init__.py", &b"raise SystemExit"[..]), (member, content)] {
        writer.start_file(name, SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Options with no waiting for retries.
pub fn options(endpoint: &str) -> PullOptions {
    PullOptions { endpoint: endpoint.to_owned(), retries: 0, ..PullOptions::default() }
}

/// The content of a file.
pub fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}
