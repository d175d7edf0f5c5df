//! Ollama's `/api/chat`, `/api/generate`, `/api/tags`, `/api/version`: translated into chat calls,
//! with one JSON object a line where answers stream.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::answers::Answers;
use super::chat::{Call, understand};
use super::error::ApiError;
use super::fields::Fields;
use super::output::Outgoing;
use super::request::Common;
use super::sse::{self, Gone, Sink};
use super::{App, Shared, apart, body_fields, json_response, wire};
use crate::chat::{ToolCall, ToolForm};
use crate::engine::{Done, Event, Request};
use crate::tokenizer::EncodeOptions;

/// An error in Ollama's form.
fn refused(error: ApiError) -> Response {
    let body = json!({ "error": error.message });
    let mut response = json_response(error.status, &body);
    let own = error.into_response();
    if let Some(after) = own.headers().get(axum::http::header::RETRY_AFTER) {
        response.headers_mut().insert(axum::http::header::RETRY_AFTER, after.clone());
    }
    response
}

/// `GET /api/version`.
pub(super) async fn version() -> Response {
    json_response(StatusCode::OK, &json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// `GET /api/tags`: the models.
pub(super) async fn tags(State(app): Shared) -> Response {
    let name = &app.options.model_name;
    let size = std::fs::metadata(&app.options.model_path).map_or(0, |m| m.len());
    let family = app.model().gguf().get_str("general.architecture").unwrap_or_default();
    let model = json!({
        "name": name,
        "model": name,
        "modified_at": date(app.started),
        "size": size,
        "digest": "",
        "details": { "format": "gguf", "family": family, "families": [family] },
    });
    json_response(StatusCode::OK, &json!({ "models": [model] }))
}

/// `POST /api/chat`.
pub(super) async fn chat(State(app): Shared, body: Body) -> Response {
    let answer = async {
        let (fields, stream) = translate(body_fields(&app, body).await?, Kind::Chat)?;
        let shared = app.clone();
        let call = apart(move || understand(fields, &shared)).await?;
        respond(app.clone(), Kind::Chat, call.form, call.requests, stream).await
    };
    answer.await.unwrap_or_else(refused)
}

/// `POST /api/generate`: a prompt through the chat template, or as it is when `raw`.
pub(super) async fn generate(State(app): Shared, body: Body) -> Response {
    let answer = async {
        let mut fields = body_fields(&app, body).await?;
        let raw = fields.take("raw")?.unwrap_or(false);
        let (fields, stream) = translate(fields, Kind::Generate)?;
        let shared = app.clone();
        let requests = apart(move || match raw {
            true => raw_requests(fields, &shared),
            false => understand(fields, &shared).map(|Call { requests, .. }| requests),
        });
        respond(app.clone(), Kind::Generate, None, requests.await?, stream).await
    };
    answer.await.unwrap_or_else(refused)
}

fn raw_requests(mut fields: Fields, app: &App) -> Result<Vec<Request>, ApiError> {
    let common = Common::take(&mut fields, app)?;
    let messages: Vec<Value> = fields.need("messages")?;
    fields.finish()?;
    let text = messages.last().and_then(|m| m["content"].as_str()).unwrap_or_default();
    let prompt = app.model().tokenizer().encode(text.as_bytes(), EncodeOptions::PROMPT)?;
    Ok(vec![common.request(app, prompt, 0)])
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Chat,
    Generate,
}

/// A call of Ollama's form as one of OpenAI's, and whether its answer streams.
fn translate(mut given: Fields, kind: Kind) -> Result<(Fields, bool), ApiError> {
    let mut out = Map::new();
    let stream = given.take("stream")?.unwrap_or(true);
    if let Some(model) = given.take::<String>("model")? {
        out.insert("model".to_owned(), model.into());
    }
    // The model stays loaded whatever the call says.
    let _: Option<Value> = given.take("keep_alive")?;
    let messages = match kind {
        Kind::Chat => chat_messages(given.need("messages")?),
        Kind::Generate => {
            let system: Option<String> = given.take("system")?;
            let prompt: String = given.take("prompt")?.unwrap_or_default();
            let system = system.map(|text| json!({ "role": "system", "content": text }));
            let user = json!({ "role": "user", "content": prompt });
            system.into_iter().chain([user]).collect()
        }
    };
    out.insert("messages".to_owned(), messages.into());
    if let Some(tools) = given.take::<Value>("tools")? {
        out.insert("tools".to_owned(), tools);
    }
    match given.take::<Value>("format")? {
        None => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(Value::String(text)) if text == "json" => {
            out.insert("response_format".to_owned(), json!({ "type": "json_object" }));
        }
        Some(schema @ Value::Object(_)) => {
            let inner = json!({ "name": "format", "schema": schema });
            let format = json!({ "type": "json_schema", "json_schema": inner });
            out.insert("response_format".to_owned(), format);
        }
        Some(_) => return Err(ApiError::field("format", "`format` should be json or a schema")),
    }
    if let Some(mut options) = given.object("options")? {
        const SAME: [&str; 14] = [
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "typical_p",
            "seed",
            "stop",
            "repeat_penalty",
            "repeat_last_n",
            "presence_penalty",
            "frequency_penalty",
            "mirostat",
            "mirostat_tau",
            "mirostat_eta",
        ];
        let renamed = [("num_predict", "max_tokens")];
        for (from, to) in SAME.map(|name| (name, name)).into_iter().chain(renamed) {
            if let Some(value) = options.take::<Value>(from)? {
                out.insert(to.to_owned(), value);
            }
        }
        options.finish()?;
    }
    given.finish()?;
    Ok((Fields::of(out.into(), "")?, stream))
}

/// Ollama's calls of functions have no type and id.
fn chat_messages(mut messages: Vec<Value>) -> Vec<Value> {
    for message in &mut messages {
        let Some(fields) = message.as_object_mut() else { continue };
        if let Some(name) = fields.remove("tool_name") {
            fields.insert("name".to_owned(), name);
        }
        let calls = fields.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten().filter_map(Value::as_object_mut) {
            call.insert("type".to_owned(), "function".into());
        }
    }
    messages
}

struct Head {
    app: Arc<App>,
    kind: Kind,
    form: Option<ToolForm>,
}

async fn respond(
    app: Arc<App>,
    kind: Kind,
    form: Option<ToolForm>,
    requests: Vec<Request>,
    stream: bool,
) -> Result<Response, ApiError> {
    let answers = Answers::start(&app, requests)?;
    let head = Head { app, kind, form };
    if stream {
        return Ok(sse::respond("application/x-ndjson", |sink| lines(head, answers, sink)));
    }
    let mut all = answers.collect(1).await?;
    let answer = all.pop().ok_or_else(|| ApiError::internal("there is no answer"))?;
    let (text, calls) = match head.form {
        Some(form) => form.parse(&answer.text),
        None => (answer.text, Vec::new()),
    };
    let mut object = head.object(&text, &calls);
    if let Some(done) = &answer.done {
        finish(&mut object, done);
    }
    Ok(json_response(StatusCode::OK, &object))
}

impl Head {
    fn object(&self, text: &str, calls: &[ToolCall]) -> Value {
        let mut object = json!({
            "model": self.app.options.model_name,
            "created_at": date(wire::unix_time()),
            "done": false,
        });
        if self.kind == Kind::Generate {
            object["response"] = text.into();
            return object;
        }
        object["message"] = json!({ "role": "assistant", "content": text });
        if !calls.is_empty() {
            let call = |call: &ToolCall| {
                let arguments: Value =
                    serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
                json!({ "function": { "name": call.name, "arguments": arguments } })
            };
            object["message"]["tool_calls"] = calls.iter().map(call).collect();
        }
        object
    }
}

fn finish(object: &mut Value, done: &Done) {
    let ns = |d: Duration| d.as_nanos() as u64;
    let usage = &done.usage;
    let total = usage.queued + usage.prefill + usage.decode;
    let fields = [
        ("done", json!(true)),
        ("done_reason", json!(wire::finish_reason(&done.finish))),
        ("total_duration", json!(ns(total))),
        ("load_duration", json!(0)),
        ("prompt_eval_count", json!(usage.prompt_tokens)),
        ("prompt_eval_duration", json!(ns(usage.prefill))),
        ("eval_count", json!(usage.completion_tokens)),
        ("eval_duration", json!(ns(usage.decode))),
    ];
    for (name, value) in fields {
        object[name] = value;
    }
}

async fn lines(head: Head, mut answers: Answers, sink: Sink) -> Result<(), Gone> {
    let mut outgoing = Outgoing::new(head.form);
    loop {
        match answers.next_for(&sink, "").await?.map(|(_, event)| event) {
            None => return Ok(()),
            Some(
                Event::Started { .. }
                | Event::Progress { .. }
                | Event::Prompt(_)
                | Event::Embedding(_),
            ) => {}
            Some(Event::Token { text, .. }) => {
                let text = outgoing.push(text);
                if !text.is_empty() {
                    sink.raw(format!("{}\n", head.object(&text, &[]))).await?;
                }
            }
            Some(Event::Done(done)) => {
                let text = outgoing.push(done.text.clone());
                let (rest, calls) = outgoing.finish();
                let text = text + &rest;
                if !text.is_empty() || !calls.is_empty() {
                    sink.raw(format!("{}\n", head.object(&text, &calls))).await?;
                }
                let mut last = head.object("", &[]);
                finish(&mut last, &done);
                return sink.raw(format!("{last}\n")).await;
            }
            Some(Event::Failed(failure)) => {
                return sink.raw(format!("{}\n", json!({ "error": failure.to_string() }))).await;
            }
        }
    }
}

/// Seconds since 1970 as RFC 3339.
fn date(seconds: u64) -> String {
    crate::chat::utc_date("%Y-%m-%dT%H:%M:%SZ", seconds)
}
