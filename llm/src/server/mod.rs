//! The HTTP server: the APIs that people already call, on the engine.
//!
//! OpenAI's `chat/completions`, `completions`, `responses`, `embeddings` and `models`, with what llama.cpp's
//! server adds to them, Anthropic's `messages`, and Ollama's `api`. One file per family of endpoints; the engine knows nothing of HTTP. Every field of a
//! request is understood or refused by name, every error is an object in OpenAI's form, and
//! everything a client sends has a limit: bytes of the body and time for it, depth of JSON, tokens
//! of prompt and answer, choices, stop texts.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request as HttpRequest, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;

use crate::chat::Template;
use crate::engine::{Model, Service};
use crate::grammar::{GrammarError, Grammars};
use crate::sample::SamplerOptions;
use metrics::Metrics;

mod answers;
mod auth;
mod chat;
mod completions;
mod cors;
mod embeddings;
mod error;
mod fields;
mod fim;
mod health;
mod listen;
mod messages;
mod metrics;
mod models;
mod native;
mod ollama;
mod openapi;
mod output;
mod page;
mod prompt;
mod prompts;
mod props;
mod request;
mod responses;
mod sampling;
mod sse;
mod tokens;
mod wire;

pub use auth::{Keys, Rates};
pub use cors::Origins;
pub use error::ApiError;
pub use listen::{ListenOptions, serve, serve_here};

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The name under which the model is listed.
    pub model_name: String,
    /// Further names of it, and words about it.
    pub aliases: Vec<String>,
    pub tags: Vec<String>,
    pub api_keys: Vec<String>,
    /// What each key may have in a minute.
    pub rates: Rates,
    /// Most new tokens of an answer.
    pub max_tokens: usize,
    /// How many there are when the request does not say; as many as there may be when `None`.
    pub default_tokens: Option<usize>,
    /// Most bytes of a body.
    pub max_body: usize,
    /// Most time for a body to come.
    pub body_time: Duration,
    /// Most time for an answer; `None` for no limit.
    pub request_time: Option<Duration>,
    /// How tokens are chosen when the request does not say.
    pub sampler: SamplerOptions,
    /// The seed of requests that name none; another every time when `None`.
    pub seed: Option<u64>,
    /// A chat template in place of the model's, or the name of one ([`Template::named`]).
    pub chat_template: Option<String>,
    /// What the template is told of whether the model should think first; nothing when `None`.
    pub thinking: Option<bool>,
    /// A grammar (GBNF) of answers when the request says nothing about their form.
    pub grammar: Option<String>,
    /// Answers go on when the context is full, without its older half.
    pub context_shift: bool,
    /// Every answer tells its prompt and settings (`__verbose`).
    pub verbose: bool,
    /// Offer `/slots`, `/metrics`, and the page at `/`.
    pub slots_endpoint: bool,
    pub metrics_endpoint: bool,
    pub page: bool,
    /// Whose pages may call.
    pub origins: Origins,
    /// The model's file, for display.
    pub model_path: PathBuf,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            model_name: "aether".to_owned(),
            api_keys: Vec::new(),
            rates: Rates::default(),
            aliases: Vec::new(),
            tags: Vec::new(),
            max_tokens: 4096,
            default_tokens: None,
            max_body: 4 << 20,
            body_time: Duration::from_secs(30),
            request_time: None,
            sampler: SamplerOptions::default(),
            seed: None,
            chat_template: None,
            thinking: None,
            grammar: None,
            context_shift: false,
            verbose: false,
            slots_endpoint: true,
            metrics_endpoint: true,
            page: true,
            origins: Origins::None,
            model_path: PathBuf::new(),
        }
    }
}

/// What all handlers share.
pub struct App {
    pub service: Service,
    pub options: ServerOptions,
    template: Template,
    /// Made at the first constrained answer.
    grammars: OnceLock<Result<Grammars, GrammarError>>,
    keys: Keys,
    metrics: Arc<Metrics>,
    started: u64,
}

impl App {
    /// # Errors
    /// When the chat template cannot be read.
    pub fn new(
        service: Service,
        options: ServerOptions,
    ) -> Result<Arc<App>, crate::chat::ChatError> {
        let template = Template::for_model(service.model(), options.chat_template.as_deref())?;
        let keys = Keys::new(&options.api_keys, options.rates);
        let started = wire::unix_time();
        let grammars = OnceLock::new();
        let metrics = Arc::default();
        Ok(Arc::new(App { service, options, template, grammars, keys, metrics, started }))
    }

    fn model(&self) -> &Arc<Model> {
        self.service.model()
    }

    fn grammars(&self) -> Result<&Grammars, ApiError> {
        let made = self.grammars.get_or_init(|| Grammars::new(self.model().tokenizer()));
        made.as_ref().map_err(|error| ApiError::invalid(error.to_string()))
    }

    /// When an answer that begins now must have ended.
    fn deadline(&self) -> Option<Instant> {
        self.options.request_time.and_then(|time| Instant::now().checked_add(time))
    }
}

type Shared = State<Arc<App>>;

/// A body of JSON.
fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    // Only maps with odd keys cannot be written, and there are none.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = (status, Body::from(body)).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// All endpoints.
pub fn router(app: Arc<App>) -> Router {
    // These answer anybody, always: probes have no keys.
    let open = Router::new()
        .route("/", get(page::page))
        .route("/openapi.json", get(openapi::openapi))
        .route("/docs", get(openapi::docs))
        .route("/health", get(health::health))
        .route("/v1/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(metrics::metrics));
    let closed = Router::new()
        .route("/v1/models", get(models::list))
        .route("/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/chat/completions", post(chat::completions))
        .route("/chat/completions", post(chat::completions))
        .route("/v1/chat/completions/input_tokens", post(chat::input_tokens))
        .route("/chat/completions/input_tokens", post(chat::input_tokens))
        .route("/completion", post(native::completion))
        .route("/completions", post(native::completion))
        .route("/infill", post(native::infill))
        .route("/props", get(props::props))
        .route("/slots", get(props::slots))
        .route("/lora-adapters", get(props::adapters).post(props::scale_adapters))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/responses", post(responses::responses))
        .route("/responses", post(responses::responses))
        .route("/v1/messages", post(messages::messages))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/tags", get(ollama::tags))
        .route("/api/version", get(ollama::version))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply-template", post(tokens::apply_template))
        .route_layer(middleware::from_fn_with_state(app.clone(), guard));
    open.merge(closed)
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(caught))
        .layer(middleware::from_fn_with_state(app.clone(), outer))
        .with_state(app)
}

async fn not_found(request: HttpRequest) -> ApiError {
    not_found_at(request.method().as_str(), request.uri().path())
}

fn not_found_at(method: &str, path: &str) -> ApiError {
    let message = format!("there is no {method} {path}");
    ApiError::new(StatusCode::NOT_FOUND, "not_found_error", message)
}

async fn wrong_method(request: HttpRequest) -> ApiError {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
}

/// Checks the key.
async fn guard(State(app): Shared, request: HttpRequest, next: Next) -> Response {
    match app.keys.admit(request.headers()) {
        Ok(caller) => auth::CALLER.scope(caller, next.run(request)).await,
        Err(error) => error.into_response(),
    }
}

/// A handler that panics answers with an error, as all that fails; its connection goes on.
async fn caught(request: HttpRequest, next: Next) -> Response {
    let mut answer = std::pin::pin!(next.run(request));
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx)));
        polled.unwrap_or_else(|_| {
            tracing::error!("a request panicked");
            let error = ApiError::internal("the request panicked; this is a fault of the server");
            Poll::Ready(error.into_response())
        })
    })
    .await
}

/// What every response gets: an id, and headers for browsers.
async fn outer(State(app): Shared, request: HttpRequest, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let given = request.headers().get("x-request-id").filter(|id| id.len() <= 128).cloned();
    let id = given.unwrap_or_else(|| {
        HeaderValue::from_str(&wire::new_id("req-")).unwrap_or(HeaderValue::from_static("req"))
    });
    let origin = request.headers().get(header::ORIGIN).cloned();
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let start = Instant::now();
    let mut response = match (&app.options.origins, &method) {
        (Origins::None, _) => next.run(request).await,
        (_, &Method::OPTIONS) => StatusCode::OK.into_response(),
        _ => next.run(request).await,
    };
    app.metrics.response(response.status());
    app.options.origins.apply(origin.as_ref(), asked.as_ref(), response.headers_mut());
    tracing::info!(
        id = id.to_str().unwrap_or_default(),
        %method,
        path,
        status = response.status().as_u16(),
        ms = start.elapsed().as_secs_f64() * 1e3,
        "request"
    );
    response.headers_mut().insert("x-request-id", id);
    response
}

/// The fields of a request's body.
async fn body_fields(app: &App, body: Body) -> Result<fields::Fields, ApiError> {
    let bytes: Bytes = fields::read_body(body, app.options.max_body, app.options.body_time).await?;
    fields::Fields::parse(&bytes)
}

/// Runs what takes a while (templates, tokenizing) apart from the requests of others.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(ApiError::internal(format!("the request could not be read: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_panics_answers_with_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let broken = get(|| async {
                if true {
                    panic!("as a test wants it")
                }
            });
            let router: Router = Router::new()
                .route("/broken", broken)
                .route("/good", get(|| async { "good" }))
                .layer(middleware::from_fn(caught));
            let service = router.into_service::<Body>();
            for (path, status) in [("/broken", 500), ("/good", 200), ("/broken", 500)] {
                let request = HttpRequest::get(path).body(Body::empty()).unwrap();
                let answer = hyper::service::Service::call(
                    &hyper_util::service::TowerToHyperService::new(service.clone()),
                    request,
                );
                let answer = answer.await.unwrap();
                assert_eq!(answer.status(), status, "{path}");
                if status == 500 {
                    let body = axum::body::to_bytes(answer.into_body(), 1 << 16).await.unwrap();
                    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                    assert_eq!(body["error"]["type"], "server_error");
                }
            }
        });
    }
}
