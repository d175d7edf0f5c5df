//! The server over HTTP on the GPU: what the one on the CPU answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use aether_llm::engine::{LoadOptions, Model, Service, ServiceOptions};
use aether_llm::server::{App, ListenOptions, ServerOptions, serve_here};
use aether_runtime::gpu::{Gpu, GpuOptions};
use serde_json::{Value, json};

use super::models::cosine;
use super::support::gpu;
use super::tiny::{FLOATS, Tiny};

/// A server in a thread; it ends when this is dropped.
struct Server {
    address: SocketAddr,
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(gpu: Option<Arc<Gpu>>) -> Server {
        let load = LoadOptions { batch: 32, rows: 16, slots: 2, gpu, ..LoadOptions::default() };
        let model = Model::from_memory(Tiny::llama(FLOATS).gguf(), &load).unwrap();
        let service = Service::start(model, ServiceOptions { queue: 32, chunk: 16 }).unwrap();
        let options = ServerOptions { max_tokens: 64, ..ServerOptions::default() };
        let app = App::new(service, options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            serve_here(app, listener, ListenOptions::default(), ended).unwrap();
        });
        Server { address, end: Some(end), thread: Some(thread) }
    }

    /// Status and body.
    fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.to_owned())
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.send("POST", path, &body.to_string());
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

fn chat(extra: &Value) -> Value {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "Hi" }],
        "max_tokens": 8,
        "ignore_eos": true,
    });
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn answers_are_those_of_the_cpu() {
    let servers = [Server::start(None), Server::start(Some(gpu()))];
    let both = |path: &str, body: &Value| servers.each_ref().map(|s| s.post(path, body));
    let schema = json!({ "type": "object", "properties": { "ok": { "type": "boolean" } },
        "required": ["ok"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    for extra in [
        json!({ "temperature": 0 }),
        json!({ "seed": 5 }),
        json!({ "seed": 6, "n": 3 }),
        json!({ "seed": 7, "top_k": 0, "top_p": 0.9 }),
        json!({ "seed": 8, "repeat_penalty": 1.3, "logit_bias": { "72": 3 } }),
        json!({ "temperature": 0, "logprobs": true, "top_logprobs": 3 }),
        json!({ "temperature": 0, "response_format": format, "ignore_eos": false, "max_tokens": 20 }),
    ] {
        let [cpu, gpu] = both("/v1/chat/completions", &chat(&extra));
        let texts = |answer: &Value| -> Vec<Value> {
            let choices = answer["choices"].as_array().unwrap();
            choices.iter().map(|c| c["message"]["content"].clone()).collect()
        };
        assert_eq!(texts(&gpu), texts(&cpu), "{extra}");
        assert_eq!(gpu["usage"]["completion_tokens"], cpu["usage"]["completion_tokens"]);
        let tokens = |answer: &Value| answer["choices"][0]["logprobs"]["content"].clone();
        let count = |tokens: &Value| tokens.as_array().map_or(0, Vec::len);
        assert_eq!(count(&tokens(&gpu)), count(&tokens(&cpu)), "{extra}");
    }
    // A stream says what the whole answer says.
    let [want, _] = both("/v1/chat/completions", &chat(&json!({ "temperature": 0 })));
    let body = chat(&json!({ "temperature": 0, "stream": true })).to_string();
    let (status, stream) = servers[1].send("POST", "/v1/chat/completions", &body);
    assert_eq!(status, 200, "{stream}");
    let events = stream.lines().filter_map(|line| line.strip_prefix("data: {"));
    let text: String = events
        .map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).unwrap())
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(want["choices"][0]["message"]["content"], text);
    let body = json!({ "prompt": "Hello", "max_tokens": 5, "temperature": 0, "echo": true,
        "logprobs": 2, "ignore_eos": true });
    let [cpu, gpu] = both("/v1/completions", &body);
    assert_eq!(gpu["choices"][0]["text"], cpu["choices"][0]["text"]);
    let of = |answer: &Value| -> Vec<Vec<f32>> {
        let all = answer["data"].as_array().unwrap().iter();
        all.map(|row| {
            let values = row["embedding"].as_array().unwrap().iter();
            values.map(|v| v.as_f64().unwrap() as f32).collect()
        })
        .collect()
    };
    let [cpu, gpu] = both("/v1/embeddings", &json!({ "input": ["Hi", "Another text"] }));
    for (a, b) in of(&cpu).iter().zip(&of(&gpu)) {
        assert!(cosine(a, b) > 0.9999);
    }
}

/// Many clients at once get what each gets alone.
#[test]
fn company_changes_no_answer() {
    let server = Server::start(Some(gpu()));
    let body = |i: usize| {
        json!({ "prompt": format!("Text {i} of some length").repeat(1 + i % 3), "seed": i,
            "max_tokens": 10, "ignore_eos": true })
    };
    let text = |i: usize| server.post("/v1/completions", &body(i))["choices"][0]["text"].clone();
    let alone: Vec<Value> = (0..6).map(text).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|i| scope.spawn(move || text(i))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn a_lost_gpu_is_told() {
    let gpu = Gpu::open(&GpuOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let server = Server::start(Some(gpu.clone()));
    assert_eq!(server.send("GET", "/health", "").0, 200);
    gpu.destroy();
    let body = json!({ "prompt": "Hi", "max_tokens": 4 }).to_string();
    let (status, answer) = server.send("POST", "/v1/completions", &body);
    assert!(status == 500 && answer.contains("lost"), "{status}: {answer}");
    let (status, answer) = server.send("POST", "/v1/completions", &body);
    assert!(status == 503 && answer.contains("device_lost"), "{status}: {answer}");
    let (status, answer) = server.send("GET", "/health", "");
    assert!(status == 503 && answer.contains("lost"), "{status}: {answer}");
    assert_eq!(server.send("GET", "/ready", "").0, 503);
}
