//! Faults while requests run: one request fails, with an error in OpenAI's form, and the others do
//! not notice.

use aether_llm::engine::{Event, Failure, LoadOptions, Model, Request};
use aether_llm::sample::{Constraint, TokenSet};
use aether_llm::server::ServerOptions;
use serde_json::json;

use super::Server;
use super::tiny::{FLOATS, Tiny};

/// Allows everything, until it panics on the engine's thread.
struct Broken(TokenSet, usize);

impl Constraint for Broken {
    fn allowed(&mut self) -> Result<&TokenSet, String> {
        self.1 -= 1;
        assert!(self.1 > 0, "as a test wants it");
        Ok(&self.0)
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn a_panic_of_the_engine_fails_one_request() {
    let server = Server::plain();
    let long = json!({ "prompt": "Hi", "max_tokens": 40, "temperature": 0, "ignore_eos": true });
    let (status, before) = server.post("/v1/completions", &long);
    assert_eq!(status, 200, "{before}");
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            for _ in 0..12 {
                let (status, answer) = server.post("/v1/completions", &long);
                assert_eq!(status, 200, "{answer}");
                assert_eq!(answer["choices"][0]["text"], before["choices"][0]["text"]);
            }
        });
        let mut all = TokenSet::empty(258);
        (0..256).for_each(|t| all.insert(t));
        for after in 2..8 {
            let broken: Box<dyn Constraint> = Box::new(Broken(all.clone(), after));
            let request =
                Request { constraint: Some(broken), ignore_eos: true, ..Request::new(vec![7], 30) };
            let mut events = server.app.service.submit(request).unwrap();
            let failure = loop {
                match events.blocking_recv() {
                    Some(Event::Failed(failure)) => break failure,
                    Some(Event::Done(done)) => panic!("{done:?}"),
                    Some(_) => {}
                    None => panic!("no end was told"),
                }
            };
            assert!(matches!(&failure, Failure::Run(why) if why.contains("panicked")), "{failure}");
            assert_eq!(server.send("GET", "/health", "", b"").0, 200);
            assert_eq!(server.send("GET", "/ready", "", b"").0, 200);
        }
        others.join().unwrap();
    });
    server.lives();
}

#[test]
fn a_fault_of_a_kernel_is_an_error_of_the_server() {
    let tiny = Tiny::llama(FLOATS);
    let text = Model::from_memory(tiny.gguf(), &Server::load()).unwrap().module_text();
    // A model that looks up twice the token: a fault of a kernel for every token from 129 on.
    let ty = text.split("%tokens: ").nth(1).unwrap().split([',', ')']).next().unwrap();
    let line = text.lines().find(|l| l.contains("gather") && l.contains("%tokens")).unwrap();
    let twice =
        format!("    %twice = add %tokens, %tokens : {ty}\n{}", line.replace("%tokens", "%twice"));
    let ir = aether_ir::parse_and_verify(&text.replace(line, &twice)).unwrap();
    let load = LoadOptions { ir: Some(ir), ..Server::load() };
    let model = Model::from_memory(tiny.gguf(), &load).unwrap();
    let server = Server::with_model(model, ServerOptions::default(), 8);

    let ask = |token: u32, stream: bool| {
        let body = json!({ "prompt": vec![token; 20], "max_tokens": 1, "stream": stream });
        server.send("POST", "/v1/completions", "", body.to_string().as_bytes())
    };
    for _ in 0..3 {
        let (status, answer) = ask(200, false);
        assert_eq!(status, 500, "{answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["type"], "server_error", "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains("could not be run"), "{body}");
        let (_, answer) = ask(200, true);
        assert!(answer.contains("server_error"), "{answer}");
        assert_eq!(ask(100, false).0, 200);
        assert_eq!(server.send("GET", "/health", "", b"").0, 200);
        assert_eq!(server.send("GET", "/ready", "", b"").0, 200);
    }
    let (_, metrics) = server.send("GET", "/metrics", "", b"");
    assert!(metrics.contains("aether_"), "{metrics}");
}
