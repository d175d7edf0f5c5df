//! Anthropic's `POST /v1/messages`: translated into a chat call, and the answer back.

use std::sync::Arc;

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
use super::sse::{self, Gone, Sink};
use super::{App, Shared, apart, body_fields, json_response, wire};
use crate::chat::{ToolCall, ToolForm};
use crate::engine::{Event, Finish, Usage};

/// `POST /v1/messages`.
pub(super) async fn messages(State(app): Shared, body: Body) -> Response {
    match answer(app, body).await {
        Ok(response) => response,
        Err(error) => refused(&error),
    }
}

/// `POST /v1/messages/count_tokens`: how many tokens the prompt of such a call has.
pub(super) async fn count_tokens(State(app): Shared, body: Body) -> Response {
    let count = async {
        let mut given = body_fields(&app, body).await?;
        given.set("max_tokens", 1.into());
        let fields = translate(given)?;
        let call = apart(move || understand(fields, &app)).await?;
        Ok(json_response(StatusCode::OK, &json!({ "input_tokens": call.prompt_tokens })))
    };
    count.await.unwrap_or_else(|error: ApiError| refused(&error))
}

/// An error in Anthropic's form.
fn error_body(error: &ApiError) -> Value {
    let kind = match error.status.as_u16() {
        401 => "authentication_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 => "overloaded_error",
        _ => "api_error",
    };
    json!({ "type": "error", "error": { "type": kind, "message": error.message } })
}

fn refused(error: &ApiError) -> Response {
    let mut response = json_response(error.status, &error_body(error));
    let headers = error.clone().into_response();
    if let Some(after) = headers.headers().get(axum::http::header::RETRY_AFTER) {
        response.headers_mut().insert(axum::http::header::RETRY_AFTER, after.clone());
    }
    response
}

async fn answer(app: Arc<App>, body: Body) -> Result<Response, ApiError> {
    let fields = translate(body_fields(&app, body).await?)?;
    let shared = app.clone();
    let call = apart(move || understand(fields, &shared)).await?;
    let Call { common, form, requests, prompt_tokens, .. } = call;
    let answers = Answers::start(&app, requests)?;
    let head = Head { id: wire::new_id("msg_"), form, prompt_tokens, app };
    if common.stream {
        return Ok(sse::respond(sse::EVENT_STREAM, |sink| stream(head, answers, sink)));
    }
    let all = answers.collect(1).await?;
    let (text, calls) = match head.form {
        Some(form) => form.parse(&all[0].text),
        None => (all[0].text.clone(), Vec::new()),
    };
    let done = all[0].done.as_ref().ok_or_else(|| ApiError::internal("the answer has no end"))?;
    let mut content: Vec<Value> = Vec::new();
    if !text.is_empty() || calls.is_empty() {
        content.push(json!({ "type": "text", "text": text }));
    }
    content.extend(calls.iter().map(tool_use));
    let mut message = head.message(content, &done.usage);
    let (reason, stop) = stop_reason(&done.finish, !calls.is_empty());
    message["stop_reason"] = reason.into();
    message["stop_sequence"] = stop;
    Ok(json_response(StatusCode::OK, &message))
}

/// A call of Anthropic's form as one of OpenAI's.
fn translate(mut given: Fields) -> Result<Fields, ApiError> {
    let mut out = Map::new();
    let mut messages: Vec<Value> = Vec::new();
    if let Some(system) = given.take::<Value>("system")? {
        messages.push(json!({ "role": "system", "content": texts(system, "system")? }));
    }
    let list: Vec<Value> = given.need("messages")?;
    for (i, message) in list.into_iter().enumerate() {
        let name = format!("messages[{i}]");
        let mut fields = Fields::of(message, &name)?;
        let role: String = fields.need("role")?;
        let content: Value = fields.need("content")?;
        fields.finish()?;
        turn(&role, content, &name, &mut messages)?;
    }
    out.insert("messages".to_owned(), messages.into());
    out.insert("max_tokens".to_owned(), given.need::<u64>("max_tokens")?.into());
    let same = ["model", "stream", "temperature", "top_p", "top_k"];
    for (from, to) in same.map(|name| (name, name)).into_iter().chain([("stop_sequences", "stop")])
    {
        if let Some(value) = given.take::<Value>(from)? {
            out.insert(to.to_owned(), value);
        }
    }
    // Says who asks, and changes nothing.
    let _: Option<Value> = given.take("metadata")?;
    if let Some(tools) = given.take::<Vec<Value>>("tools")? {
        let tools: Result<Vec<Value>, ApiError> =
            tools.into_iter().enumerate().map(|(i, tool)| function(i, tool)).collect();
        out.insert("tools".to_owned(), tools?.into());
    }
    if let Some(mut choice) = given.object("tool_choice")? {
        let kind: String = choice.need("type")?;
        let value = match kind.as_str() {
            "auto" | "none" => json!(kind),
            "any" => json!("required"),
            "tool" => {
                let name: String = choice.need("name")?;
                json!({ "type": "function", "function": { "name": name } })
            }
            _ => {
                return Err(ApiError::field(
                    "tool_choice.type",
                    "should be auto, any, tool or none",
                ));
            }
        };
        if choice.take("disable_parallel_tool_use")? == Some(true) {
            out.insert("parallel_tool_calls".to_owned(), false.into());
        }
        choice.finish()?;
        out.insert("tool_choice".to_owned(), value);
    }
    if let Some(mut thinking) = given.object("thinking")? {
        let kind: String = thinking.need("type")?;
        if kind != "disabled" {
            let message = format!(
                "`thinking` of type `{kind}` is not supported, only `disabled`: thoughts are not \
                 told apart from the answer"
            );
            return Err(ApiError::unsupported("thinking.type", message));
        }
        thinking.finish()?;
        out.insert("chat_template_kwargs".to_owned(), json!({ "enable_thinking": false }));
    }
    given.finish()?;
    Fields::of(out.into(), "")
}

fn function(i: usize, tool: Value) -> Result<Value, ApiError> {
    let mut fields = Fields::of(tool, &format!("tools[{i}]"))?;
    let kind: Option<String> = fields.take("type")?;
    if kind.is_some_and(|kind| kind != "custom") {
        let name = fields.name("type");
        return Err(ApiError::unsupported(&name, format!("`{name}` should be custom")));
    }
    let name: String = fields.need("name")?;
    let description: Option<String> = fields.take("description")?;
    let schema: Value = fields.need("input_schema")?;
    fields.finish()?;
    let function = json!({ "name": name, "description": description, "parameters": schema });
    Ok(json!({ "type": "function", "function": function }))
}

/// A text, or blocks of text.
fn texts(value: Value, at: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(blocks) => blocks
            .iter()
            .map(|block| match (block.get("type").and_then(Value::as_str), block.get("text")) {
                (Some("text"), Some(Value::String(text))) => Ok(text.as_str()),
                _ => Err(ApiError::field(at, format!("`{at}`: only blocks of text are supported"))),
            })
            .collect(),
        _ => Err(ApiError::field(at, format!("`{at}` should be a text or a list of blocks"))),
    }
}

/// One message as one or several of OpenAI's: results of tools are messages there.
fn turn(role: &str, content: Value, at: &str, out: &mut Vec<Value>) -> Result<(), ApiError> {
    let Value::Array(blocks) = content else {
        out.push(json!({ "role": role, "content": texts(content, at)? }));
        return Ok(());
    };
    let (mut text, mut calls, mut thoughts) = (String::new(), Vec::new(), String::new());
    for block in blocks {
        match block.get("type").and_then(Value::as_str) {
            Some("tool_use") => calls.push(json!({
                "id": block["id"],
                "type": "function",
                "function": { "name": block["name"], "arguments": block["input"] },
            })),
            Some("thinking") if role == "assistant" => {
                let thought = block["thinking"].as_str();
                thoughts += thought.ok_or_else(|| {
                    let name = format!("{at}.content");
                    ApiError::field(&name, format!("`{name}`: a thought should have `thinking`"))
                })?;
            }
            Some("tool_result") => {
                let content = texts(block["content"].clone(), &format!("{at}.content"))?;
                let id = &block["tool_use_id"];
                out.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
            }
            _ => text += &texts(Value::Array(vec![block]), &format!("{at}.content"))?,
        }
    }
    if text.is_empty() && calls.is_empty() && thoughts.is_empty() {
        return Ok(());
    }
    let mut message = json!({ "role": role, "content": text });
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.into();
    }
    out.push(message);
    Ok(())
}

fn tool_use(call: &ToolCall) -> Value {
    let input: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    json!({ "type": "tool_use", "id": wire::new_id("toolu_"), "name": call.name, "input": input })
}

fn stop_reason(finish: &Finish, calls: bool) -> (&'static str, Value) {
    match finish {
        _ if calls => ("tool_use", Value::Null),
        Finish::Eos(_) => ("end_turn", Value::Null),
        Finish::StopText(text) => ("stop_sequence", text.as_str().into()),
        Finish::Length | Finish::Context | Finish::Deadline => ("max_tokens", Value::Null),
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    })
}

struct Head {
    id: String,
    form: Option<ToolForm>,
    prompt_tokens: usize,
    app: Arc<App>,
}

impl Head {
    fn message(&self, content: Vec<Value>, of: &Usage) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.app.options.model_name,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage(of),
        })
    }
}

/// Writes the blocks of an answer: text as it comes, then calls.
struct Blocks<'a> {
    sink: &'a Sink,
    index: usize,
    in_text: bool,
}

impl Blocks<'_> {
    async fn send(&self, mut event: Value) -> Result<(), Gone> {
        event["index"] = self.index.into();
        let name = event["type"].as_str().unwrap_or_default().to_owned();
        self.sink.named(&name, &event).await
    }

    async fn text(&mut self, text: String) -> Result<(), Gone> {
        if text.is_empty() {
            return Ok(());
        }
        if !self.in_text {
            self.in_text = true;
            let block = json!({ "type": "text", "text": "" });
            self.send(json!({ "type": "content_block_start", "content_block": block })).await?;
        }
        let delta = json!({ "type": "text_delta", "text": text });
        self.send(json!({ "type": "content_block_delta", "delta": delta })).await
    }

    async fn end_text(&mut self) -> Result<(), Gone> {
        if std::mem::take(&mut self.in_text) {
            self.send(json!({ "type": "content_block_stop" })).await?;
            self.index += 1;
        }
        Ok(())
    }

    async fn call(&mut self, call: &ToolCall) -> Result<(), Gone> {
        let mut block = tool_use(call);
        block["input"] = json!({});
        self.send(json!({ "type": "content_block_start", "content_block": block })).await?;
        let delta = json!({ "type": "input_json_delta", "partial_json": call.arguments });
        self.send(json!({ "type": "content_block_delta", "delta": delta })).await?;
        self.send(json!({ "type": "content_block_stop" })).await?;
        self.index += 1;
        Ok(())
    }
}

/// What keeps a connection awake.
const PING: &str = "event: ping\ndata: {\"type\":\"ping\"}\n\n";

async fn stream(head: Head, mut answers: Answers, sink: Sink) -> Result<(), Gone> {
    let mut outgoing = Outgoing::new(head.form);
    let mut blocks = Blocks { sink: &sink, index: 0, in_text: false };
    let known = Usage { prompt_tokens: head.prompt_tokens, ..Usage::default() };
    let begin = head.message(Vec::new(), &known);
    sink.named("message_start", &json!({ "type": "message_start", "message": begin })).await?;
    while let Some((_, event)) = answers.next_for(&sink, PING).await? {
        match event {
            Event::Started { .. }
            | Event::Progress { .. }
            | Event::Prompt(_)
            | Event::Embedding(_) => {}
            Event::Token { text, .. } => blocks.text(outgoing.push(text)).await?,
            Event::Done(done) => {
                let text = outgoing.push(done.text);
                let (rest, calls) = outgoing.finish();
                blocks.text(text + &rest).await?;
                blocks.end_text().await?;
                for call in &calls {
                    blocks.call(call).await?;
                }
                let (reason, stop) = stop_reason(&done.finish, !calls.is_empty());
                let delta = json!({ "stop_reason": reason, "stop_sequence": stop });
                let event =
                    json!({ "type": "message_delta", "delta": delta, "usage": usage(&done.usage) });
                sink.named("message_delta", &event).await?;
                return sink.named("message_stop", &json!({ "type": "message_stop" })).await;
            }
            Event::Failed(failure) => {
                return sink.named("error", &error_body(&failure.into())).await;
            }
        }
    }
    Ok(())
}
