//! Any body sent to any endpoint gets an answer with a status that is no server's error, and the
//! server answers afterwards.
//!
//! The first byte picks the endpoint.

#![no_main]

#[path = "../../llm/tests/common/tiny.rs"]
mod tiny;

use std::sync::{Arc, LazyLock};

use aether_llm::engine::{LoadOptions, Model, Service, ServiceOptions};
use aether_llm::server::{App, ServerOptions, router};
use axum::body::Body;
use axum::http::Request;
use libfuzzer_sys::fuzz_target;
use tiny::{FLOATS, Tiny};
use tokio::runtime::Runtime;
use tower::ServiceExt;

const PATHS: [&str; 16] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/input_tokens",
    "/completion",
    "/infill",
    "/api/chat",
    "/api/generate",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/props",
    "/nothing",
];

static APP: LazyLock<Arc<App>> = LazyLock::new(|| {
    let load = LoadOptions { batch: 32, rows: 16, slots: 2, threads: 1, ..LoadOptions::default() };
    let model = Model::from_memory(Tiny::llama(FLOATS).gguf(), &load).expect("a good model");
    let service = Service::start(model, ServiceOptions::default()).expect("it starts");
    let options = ServerOptions { max_tokens: 4, ..ServerOptions::default() };
    App::new(service, options).expect("a good template")
});

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(runtime);

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, body)) = bytes.split_first() else { return };
    let path = PATHS[usize::from(first) % PATHS.len()];
    let request = Request::post(path).body(Body::from(body.to_vec())).expect("a good request");
    RUNTIME.block_on(async {
        let response = router(APP.clone()).oneshot(request).await.expect("it always answers");
        let status = response.status().as_u16();
        assert!(status < 500, "{path}: {status}");
        let body = axum::body::to_bytes(response.into_body(), 64 << 20).await;
        assert!(body.is_ok(), "{path}: the body breaks off");
    });
});
