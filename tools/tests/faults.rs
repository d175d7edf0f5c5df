//! Faults around a running server: what becomes of its model's file, and of the disk for its log.

#[path = "../../llm/tests/common/tiny.rs"]
mod tiny;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tiny::{FLOATS, QUANTIZED, Tiny};

/// A running server; it is told to end when this is dropped.
struct Server {
    child: Child,
    address: String,
}

fn command(model: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aether-server"));
    command.arg("-m").arg(model).args(["--threads", "1", "--max-concurrency", "2"]);
    command.stdin(Stdio::null());
    command
}

impl Server {
    fn start(model: &Path, more: &[&str]) -> Server {
        let mut child =
            command(model).args(["--port", "0"]).args(more).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let found = lines.by_ref().map_while(Result::ok).find_map(|line| {
            line.split_once(" on http://").map(|(_, address)| address.trim().to_owned())
        });
        // Whoever writes to a closed pipe would fail for a reason of the test's.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address: found.expect("the server says where it listens") }
    }

    fn get(&self, path: &str) -> u16 {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).0
    }

    fn send(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
    }

    /// A greedy answer, with the log-probabilities of its tokens.
    fn answer(&self, prompt: &str) -> Value {
        let body = json!({ "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 1,
            "ignore_eos": true, "cache_prompt": false })
        .to_string();
        let (status, answer) = self.send(&format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).unwrap()["choices"][0].clone()
    }

    fn lives(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the server has ended");
        assert_eq!((self.get("/health"), self.get("/ready")), (200, 200));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_model_file_may_be_cut_overwritten_replaced_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    // Weights that are used as they are in the file, and such that are packed.
    for tiny in [Tiny::llama(FLOATS), Tiny::qwen2(FLOATS), Tiny::llama(QUANTIZED)] {
        let whole = tiny.gguf().map().to_vec();
        let path = folder.path().join("model.gguf");
        type Fault = fn(&Path, &[u8]);
        let faults: [(&str, Fault); 4] = [
            ("cut", |path, _| File::options().write(true).open(path).unwrap().set_len(0).unwrap()),
            ("overwritten", |path, whole| fs::write(path, vec![0xff; whole.len()]).unwrap()),
            ("replaced", |path, _| {
                let other = path.with_extension("other");
                fs::write(&other, b"no model").unwrap();
                fs::rename(other, path).unwrap();
            }),
            ("deleted", |path, _| fs::remove_file(path).unwrap()),
        ];
        for (what, fault) in faults {
            fs::write(&path, &whole).unwrap();
            let mut server = Server::start(&path, &[]);
            let before = server.answer("Hello");
            fault(&path, &whole);
            // The prompt is longer than before: rows of the embedding that were not read yet.
            assert_eq!(server.answer("Hello"), before, "{what}");
            server.answer("What nobody asked before: 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ");
            server.lives();
        }
    }
}

#[test]
fn a_cut_model_file_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let whole = Tiny::llama(FLOATS).gguf().map().to_vec();
    for len in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        let output = command(&path).args(["--port", "0"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{len}: {text}");
        assert!(text.contains("model.gguf"), "{len}: {text}");
    }
}

/// `/dev/full` takes nothing: what the server says of itself is lost, and no more.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_for_the_log_does_not_end_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, &*Tiny::llama(FLOATS).gguf().map().to_vec()).unwrap();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = command(&path)
        .args(["--port", &port.to_string()])
        .env("AETHER_LOG", "debug")
        .stdout(full())
        .stderr(full())
        .spawn()
        .unwrap();
    let mut server = Server { child, address: format!("127.0.0.1:{port}") };
    let start = Instant::now();
    while TcpStream::connect(&server.address).is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "it listens");
        assert!(server.child.try_wait().unwrap().is_none(), "the server has ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    let before = server.answer("Hello");
    assert_eq!(server.answer("Hello"), before);
    server.lives();
}
