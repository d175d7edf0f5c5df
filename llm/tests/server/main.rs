//! The server on a small random model: what it answers, and what it says to bad input.

#[path = "../../../tests/support/browser.rs"]
mod browser;
mod described;
mod faults;
mod llama_cpp;
mod page;
#[path = "../common/tiny.rs"]
mod tiny;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aether_llm::engine::{LoadOptions, Model, Service, ServiceOptions, Speculation};
use aether_llm::server::{App, ListenOptions, Rates, ServerOptions, serve};
use serde_json::{Value, json};
use tiny::{FLOATS, Tiny};
use tokio::sync::oneshot;

/// A server in a thread; it ends when this is dropped.
struct Server {
    app: Arc<App>,
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(options: ServerOptions, queue: usize) -> Server {
        Server::drafting(options, queue, None)
    }

    fn drafting(options: ServerOptions, queue: usize, how: Option<&Speculation>) -> Server {
        let model = Model::from_memory(Tiny::llama(FLOATS).gguf(), &Server::load()).unwrap();
        Server::serving(model, options, queue, how)
    }

    /// How models are loaded.
    fn load() -> LoadOptions {
        LoadOptions { batch: 32, rows: 16, slots: 2, threads: 1, ..LoadOptions::default() }
    }

    fn with_model(model: Arc<Model>, options: ServerOptions, queue: usize) -> Server {
        Server::serving(model, options, queue, None)
    }

    fn serving(
        model: Arc<Model>,
        options: ServerOptions,
        queue: usize,
        how: Option<&Speculation>,
    ) -> Server {
        let chunks = ServiceOptions { queue, chunk: 16 };
        let service = Service::speculating(model, chunks, how).unwrap();
        let app = App::new(service, options).unwrap();
        let of_server = app.clone();
        let (end, ended) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let listen = ListenOptions {
                    head_time: Duration::from_millis(700),
                    grace: Duration::from_secs(5),
                    ..ListenOptions::default()
                };
                serve(app, listener, listen, async { ended.await.unwrap_or(()) }).await;
            });
        });
        let address = told.recv().unwrap();
        Server { app: of_server, address, end: Some(end), thread: Some(thread) }
    }

    fn plain() -> Server {
        Server::start(ServerOptions { max_tokens: 64, ..ServerOptions::default() }, 8)
    }

    /// Sends bytes as they are; all that comes back until the server closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // A server that refuses early may close while it is still being written to.
        let _ = stream.write_all(bytes);
        let mut out = Vec::new();
        let _ = stream.read_to_end(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        let answer = self.raw(&[head.as_bytes(), body].concat());
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, answer)
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, answer) = self.send("POST", path, "", body.to_string().as_bytes());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Still answers.
    fn lives(&self) {
        let (status, body) =
            self.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 2 }));
        assert_eq!(status, 200, "{body}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end.take().map(|end| end.send(()));
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

fn chat(extra: Value) -> Value {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "Hi" }],
        "max_tokens": 6,
        "temperature": 0,
        "ignore_eos": true,
    });
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn every_endpoint_answers() {
    let server = Server::plain();
    let get = |path: &str| {
        let (status, answer) = server.send("GET", path, "", b"");
        assert_eq!(status, 200, "{answer}");
        assert!(answer.contains("X-Request-Id: req-"), "{answer}");
        answer
    };
    assert!(get("/health").contains("ok"));
    assert!(get("/ready").contains("\"slots\":2"));
    assert!(get("/v1/models").contains("\"id\":\"aether\""));
    assert!(get("/api/tags").contains("\"name\":\"aether\""));
    let post = |path: &str, body: Value| {
        let (status, answer) = server.post(path, &body);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    };
    let answer = post("/v1/chat/completions", chat(json!({ "logprobs": true, "top_logprobs": 2 })));
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    assert_eq!(answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 6);
    let text = post("/v1/completions", json!({ "prompt": "Hi", "max_tokens": 4, "echo": true }));
    assert!(text["choices"][0]["text"].as_str().unwrap().starts_with("Hi"));
    let tokens = post("/tokenize", json!({ "content": "Hi" }));
    assert_eq!(tokens, json!({ "tokens": [72, 105] }));
    assert_eq!(post("/detokenize", tokens)["content"], "Hi");
    let prompt =
        post("/apply-template", json!({ "messages": [{ "role": "user", "content": "Hi" }] }));
    assert!(prompt["prompt"].as_str().unwrap().contains("<|im_start|>user\nHi<|im_end|>"));
    let embedding = post("/v1/embeddings", json!({ "input": ["Hi", "Ho"] }));
    assert_eq!(embedding["data"][1]["embedding"].as_array().unwrap().len(), 64);
    let message = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 5 });
    assert_eq!(post("/v1/messages", message)["role"], "assistant");
    let answer = post("/v1/responses", json!({ "input": "Hi", "max_output_tokens": 5 }));
    assert_eq!(answer["output"][0]["content"][0]["type"], "output_text");
    let message = json!({ "messages": [{ "role": "user", "content": "Hi" }], "stream": false, "options": { "num_predict": 3 } });
    assert_eq!(post("/api/chat", message)["done"], true);
    assert_eq!(
        post(
            "/api/generate",
            json!({ "prompt": "Hi", "stream": false, "raw": true, "options": { "num_predict": 3 } })
        )["done"],
        true
    );
    let metrics = get("/metrics");
    for name in [
        "aether_first_token_seconds_count",
        "aether_completion_tokens_total",
        "aether_http_responses_total{status=\"200\"}",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
}

#[test]
fn streams_say_what_whole_answers_say() {
    let server = Server::plain();
    let (_, whole) = server.post("/v1/chat/completions", &chat(json!({})));
    let stream = chat(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let (status, answer) =
        server.send("POST", "/v1/chat/completions", "", stream.to_string().as_bytes());
    assert_eq!(status, 200);
    assert!(answer.contains("Content-Type: text/event-stream"));
    let events: Vec<Value> = answer
        .lines()
        .filter_map(|line| line.strip_prefix("data: {"))
        .map(|rest| serde_json::from_str(&format!("{{{rest}")).unwrap())
        .collect();
    let text: String =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 6);
    assert!(answer.contains("data: [DONE]"));
}

#[test]
fn output_is_constrained() {
    let server = Server::plain();
    let schema = json!({
        "type": "object",
        "properties": { "ok": { "type": "boolean" }, "kind": { "enum": ["a", "b"] } },
        "required": ["ok", "kind"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    let body = chat(json!({ "response_format": format, "max_tokens": 60, "ignore_eos": false }));
    let (status, answer) = server.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(value["ok"].is_boolean() && ["a", "b"].contains(&value["kind"].as_str().unwrap()));
    let tool = json!({ "type": "function", "function": { "name": "look", "parameters": schema } });
    let body = chat(
        json!({ "tools": [tool], "tool_choice": "required", "max_tokens": 64, "ignore_eos": false }),
    );
    // The tiny model's characters are tokens, so the whole call needs more of them.
    let server = Server::start(ServerOptions { max_tokens: 90, ..ServerOptions::default() }, 8);
    let mut body = body;
    body["max_tokens"] = 90.into();
    body["chat_template_kwargs"] = json!({});
    let (status, answer) = server.post("/v1/chat/completions", &body);
    // 96 places do not hold prompt and call of a vocabulary of bytes.
    assert_eq!(status, 400, "{answer}");
    assert_eq!(answer["error"]["code"], "context_length_exceeded");
}

#[test]
fn bad_requests_get_objects_and_harm_nobody() {
    let server = Server::plain();
    // More than the socket's buffers hold: it is read to its end before the answer.
    let long = "x".repeat(40 << 20);
    let deep = format!("{}{}", "[".repeat(60_000), "]".repeat(60_000));
    let nested = format!("{{\"messages\": {deep}}}");
    let rows: Vec<(&str, String, u16, &str)> = vec![
        ("/v1/chat/completions", String::new(), 400, "not valid JSON"),
        ("/v1/chat/completions", "{".to_owned(), 400, "not valid JSON"),
        ("/v1/chat/completions", deep, 400, "recursion"),
        ("/v1/chat/completions", nested, 400, "recursion"),
        ("/v1/chat/completions", "[]".to_owned(), 400, "object"),
        ("/v1/chat/completions", "{}".to_owned(), 400, "messages"),
        ("/v1/chat/completions", long, 413, "longer than"),
        ("/v1/completions", json!({ "prompt": 3 }).to_string(), 400, "prompt"),
        ("/v1/completions", json!({ "prompt": [] }).to_string(), 400, "prompt"),
        ("/v1/completions", json!({ "prompt": [9999999] }).to_string(), 400, "9999999"),
        ("/v1/completions", json!({ "prompt": [-1] }).to_string(), 400, "prompt"),
        ("/v1/completions", json!({ "prompt": "a".repeat(97) }).to_string(), 400, "97"),
        (
            "/v1/completions",
            json!({ "prompt": "a", "logprobs": 1000 }).to_string(),
            400,
            "logprobs",
        ),
        ("/detokenize", json!({ "tokens": [4294967296u64] }).to_string(), 400, "tokens"),
        ("/nowhere", "{}".to_owned(), 404, "/nowhere"),
        ("/health", "{}".to_owned(), 405, "POST"),
    ];
    for (path, body, status, words) in rows {
        let (got, answer) = server.send("POST", path, "", body.as_bytes());
        assert_eq!(got, status, "{path} {body:.60}: {answer}");
        assert!(
            answer.contains("{\"error\":{") && answer.contains(words),
            "{path} {body:.60}: {answer}"
        );
    }
    let fields = [
        ("max_tokens", json!(-5)),
        ("max_tokens", json!(1u64 << 60)),
        ("max_tokens", json!("3")),
        ("max_tokens", json!(1e300)),
        ("n", json!(0)),
        ("n", json!(1_000_000)),
        ("temperature", json!("hot")),
        ("temperature", json!(1e39)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("seed", json!(1.5)),
        ("stop", json!([1])),
        ("stop", json!(vec!["x"; 100])),
        ("logit_bias", json!({ "x": "1" })),
        ("logit_bias", json!({ "999": 1 })),
        ("stream", json!("yes")),
        ("magic", json!(1)),
        ("response_format", json!({ "type": "xml" })),
        ("tools", json!([{}])),
        (
            "response_format",
            json!({ "type": "json_schema", "json_schema": { "schema": { "type": "nonsense" } } }),
        ),
        ("tool_choice", json!("required")),
        ("stream_options", json!({})),
        ("top_logprobs", json!(3)),
        ("mirostat", json!(7)),
        ("dry_multiplier", json!(-1)),
    ];
    for (name, value) in fields {
        let mut body = chat(json!({}));
        body[name] = value.clone();
        let (status, answer) = server.post("/v1/chat/completions", &body);
        assert_eq!(status, 400, "{name}: {value}: {answer}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        let param = answer["error"]["param"].as_str().unwrap_or_default();
        assert!(param.starts_with(name), "{name}: {value}: {answer}");
    }
    let utf8 = b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\xfe\"}]}";
    let (status, answer) = server.send("POST", "/v1/chat/completions", "", utf8);
    assert_eq!(status, 400, "{answer}");
    server.lives();
}

#[test]
fn random_bodies_harm_nobody() {
    let server = Server::plain();
    let seeds = [
        chat(json!({ "stop": ["a"], "logit_bias": { "3": 1 }, "seed": 3, "n": 2 })).to_string(),
        json!({ "prompt": ["a", "b"], "max_tokens": 2, "echo": true, "logprobs": 1 }).to_string(),
    ];
    let paths =
        ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/api/chat", "/tokenize"];
    let mut rng = fastrand::Rng::with_seed(11);
    for round in 0..300 {
        let mut body = seeds[round % 2].clone().into_bytes();
        for _ in 0..rng.usize(1..6) {
            if body.is_empty() {
                break;
            }
            let at = rng.usize(0..body.len());
            match rng.u8(0..4) {
                0 => body[at] = rng.u8(..),
                1 => drop(body.remove(at)),
                2 => body.insert(at, *rng.choice(b"{}[]\",:0e-").unwrap()),
                _ => body.truncate(at.max(1)),
            }
        }
        let (status, answer) = server.send("POST", paths[round % 5], "", &body);
        assert!([200, 400].contains(&status), "{}: {answer}", String::from_utf8_lossy(&body));
    }
    server.lives();
}

#[test]
fn one_call_at_most_and_no_thoughts_can_be_asked_for() {
    // Descriptions of functions are long.
    let load = LoadOptions { context: 1024, ..Server::load() };
    let model = Model::from_memory(Tiny::llama(FLOATS).gguf(), &load).unwrap();
    let server = Server::with_model(model, ServerOptions::default(), 8);
    let tool = json!({ "type": "function", "function": { "name": "f" } });
    for choice in ["auto", "none", "required"] {
        let (status, answer) = server.post(
            "/v1/chat/completions",
            &chat(json!({ "tools": [tool], "tool_choice": choice, "parallel_tool_calls": false })),
        );
        assert_eq!(status, 200, "{answer}");
    }
    let ask = |more: Value| {
        let mut body =
            json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 3 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/messages", &body)
    };
    let tools = json!([{ "name": "f", "input_schema": { "type": "object" } }]);
    let choice = json!({ "type": "auto", "disable_parallel_tool_use": true });
    let (status, answer) = ask(json!({ "tools": tools, "tool_choice": choice }));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(ask(json!({ "thinking": { "type": "disabled" } })).0, 200);
    for (thinking, says) in [
        (json!({ "type": "enabled", "budget_tokens": 1024 }), "of type `enabled` is not supported"),
        (json!({ "type": "adaptive" }), "of type `adaptive` is not supported"),
        (json!({ "type": "disabled", "budget_tokens": 1 }), "budget_tokens"),
        (json!({}), "type"),
    ] {
        let (status, answer) = ask(json!({ "thinking": thinking }));
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(says), "{answer}");
    }
}

#[test]
fn keys_and_rates_are_kept() {
    let options = ServerOptions {
        api_keys: vec!["sk-one".to_owned(), "sk-two".to_owned()],
        rates: Rates { requests: Some(3), tokens: None },
        ..ServerOptions::default()
    };
    let server = Server::start(options, 8);
    let ask = |key: &str| server.send("GET", "/v1/models", key, b"");
    assert_eq!(ask("").0, 401);
    let (status, answer) = ask("Authorization: Bearer sk-three\r\n");
    assert_eq!(status, 401);
    assert!(answer.contains("invalid_api_key") && answer.contains("Www-Authenticate"), "{answer}");
    for _ in 0..3 {
        assert_eq!(ask("Authorization: Bearer sk-one\r\n").0, 200);
    }
    let (status, answer) = ask("Authorization: Bearer sk-one\r\n");
    assert_eq!(status, 429);
    assert!(answer.contains("Retry-After: 20"), "{answer}");
    assert_eq!(ask("x-api-key: sk-two\r\n").0, 200);
    // Probes have no keys.
    assert_eq!(server.send("GET", "/health", "", b"").0, 200);
}

#[test]
fn tokens_have_a_rate_of_each_key() {
    let options = ServerOptions {
        api_keys: vec!["sk-one".to_owned(), "sk-two".to_owned()],
        rates: Rates { requests: None, tokens: Some(10) },
        ..ServerOptions::default()
    };
    let server = Server::start(options, 8);
    let ask = |key: &str| {
        let head = format!("Authorization: Bearer {key}\r\n");
        let body = json!({ "prompt": "Hi", "max_tokens": 14, "ignore_eos": true }).to_string();
        server.send("POST", "/v1/completions", &head, body.as_bytes())
    };
    assert_eq!(ask("sk-one").0, 200);
    let (status, answer) = ask("sk-one");
    assert!(status == 429 && answer.contains("10 tokens per minute"), "{answer}");
    assert_eq!(ask("sk-two").0, 200);
}

#[test]
fn a_full_queue_says_so() {
    let server = Server::start(ServerOptions::default(), 1);
    let long = chat(json!({ "max_tokens": 2000, "stream": true, "seed": 3 })).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        long.len()
    );
    let mut seen = false;
    let mut open = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(format!("{head}{long}").as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        match &first[9..12] {
            b"200" => open.push(stream),
            b"429" => {
                let mut rest = String::new();
                let mut byte = [0; 2048];
                let n = stream.read(&mut byte).unwrap();
                rest.push_str(&String::from_utf8_lossy(&byte[..n]));
                assert!(rest.contains("Retry-After: 1"), "{rest}");
                seen = true;
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(seen, "a queue of one fills");
    drop(open);
    // Who left does not hold the slots.
    let until = Instant::now() + Duration::from_secs(10);
    while server.send("GET", "/ready", "", b"").0 != 200 {
        assert!(Instant::now() < until, "slots come free");
        std::thread::sleep(Duration::from_millis(20));
    }
    server.lives();
}

#[test]
fn idle_and_slow_connections_end() {
    let server = Server::plain();
    let idle: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    server.lives();
    // A head that never ends is not waited for.
    let start = Instant::now();
    server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ");
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(idle);
    for bytes in [&b"\x00\x01\x02\x03\r\n\r\n"[..], b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n"] {
        server.raw(bytes);
    }
    let huge = format!("GET /health HTTP/1.1\r\nX-Big: {}\r\n\r\n", "x".repeat(1 << 20));
    server.raw(huge.as_bytes());
    server.lives();
}
