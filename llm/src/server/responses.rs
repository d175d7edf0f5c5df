//! OpenAI's `POST /v1/responses`: translated into a chat call, and the answer back. Nothing is
//! stored: `previous_response_id` and tools are refused by name.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::answers::Answers;
use super::chat::{Call, understand};
use super::error::ApiError;
use super::fields::Fields;
use super::sse::{self, Gone, Sink};
use super::{App, Shared, apart, body_fields, json_response, wire};
use crate::engine::{Done, Event, Finish};

/// `POST /v1/responses`.
pub(super) async fn responses(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let fields = translate(body_fields(&app, body).await?)?;
    let shared = app.clone();
    let Call { common, requests, .. } = apart(move || understand(fields, &shared)).await?;
    let answers = Answers::start(&app, requests)?;
    let head = Head {
        id: wire::new_id("resp_"),
        message: wire::new_id("msg_"),
        created: wire::unix_time(),
        app,
    };
    if common.stream {
        let timed = common.timings;
        return Ok(sse::respond(sse::EVENT_STREAM, |sink| stream(head, answers, timed, sink)));
    }
    let all = answers.collect(1).await?;
    let done = all[0].done.as_ref().ok_or_else(|| ApiError::internal("the answer has no end"))?;
    Ok(json_response(StatusCode::OK, &head.ended(&all[0].text, done)))
}

/// A call of this form as one of chat completions'.
fn translate(mut given: Fields) -> Result<Fields, ApiError> {
    let mut out = Map::new();
    let mut messages: Vec<Value> = Vec::new();
    if let Some(text) = given.take::<String>("instructions")? {
        messages.push(json!({ "role": "system", "content": text }));
    }
    match given.need::<Value>("input")? {
        Value::String(text) => messages.push(json!({ "role": "user", "content": text })),
        Value::Array(items) => {
            for (i, item) in items.into_iter().enumerate() {
                messages.push(message(item, &format!("input[{i}]"))?);
            }
        }
        _ => {
            return Err(ApiError::field("input", "`input` should be a text or a list of messages"));
        }
    }
    out.insert("messages".to_owned(), messages.into());
    const SAME: [&str; 7] = [
        "model",
        "stream",
        "temperature",
        "top_p",
        "user",
        // llama.cpp's.
        "timings_per_token",
        "return_progress",
    ];
    let same = SAME.map(|name| (name, name));
    for (from, to) in same.into_iter().chain([("max_output_tokens", "max_tokens")]) {
        if let Some(value) = given.take::<Value>(from)? {
            out.insert(to.to_owned(), value);
        }
    }
    // Says who asks, and changes nothing.
    let _: Option<Value> = given.take("metadata")?;
    // Nothing is stored, which is what false asks for.
    if given.take("store")? == Some(true) {
        return Err(ApiError::unsupported("store", "`store` cannot be true: nothing is stored"));
    }
    if let Some(mut text) = given.object("text")? {
        if let Some(format) = text.take::<Value>("format")? {
            out.insert("response_format".to_owned(), chat_format(format));
        }
        text.finish()?;
    }
    given.finish()?;
    Fields::of(out.into(), "")
}

/// A schema stands one level deeper in chat completions.
fn chat_format(format: Value) -> Value {
    match format {
        Value::Object(mut fields) if fields.get("type") == Some(&json!("json_schema")) => {
            fields.remove("type");
            json!({ "type": "json_schema", "json_schema": fields })
        }
        format => format,
    }
}

fn message(item: Value, at: &str) -> Result<Value, ApiError> {
    let mut fields = Fields::of(item, at)?;
    let kind: Option<String> = fields.take("type")?;
    if kind.is_some_and(|kind| kind != "message") {
        let name = fields.name("type");
        return Err(ApiError::unsupported(&name, format!("`{name}` should be message")));
    }
    // What answers have and questions need not.
    let _: Option<String> = fields.take("id")?;
    let _: Option<String> = fields.take("status")?;
    let role: String = fields.need("role")?;
    let content = match fields.need::<Value>("content")? {
        Value::Array(parts) => parts
            .iter()
            .map(|part| match (part["type"].as_str(), part["text"].as_str()) {
                (Some("input_text" | "output_text"), Some(text)) => Ok(text),
                _ => {
                    let name = fields.name("content");
                    Err(ApiError::field(&name, format!("`{name}`: only texts are supported")))
                }
            })
            .collect::<Result<String, ApiError>>()?
            .into(),
        content => content,
    };
    fields.finish()?;
    Ok(json!({ "role": role, "content": content }))
}

struct Head {
    id: String,
    message: String,
    created: u64,
    app: Arc<App>,
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

impl Head {
    fn object(&self, status: &str, output: Value) -> Value {
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.app.options.model_name,
            "output": output,
            "error": null,
            "incomplete_details": null,
            "instructions": null,
            "metadata": {},
            "parallel_tool_calls": true,
            "tool_choice": "auto",
            "tools": [],
            "usage": null,
        })
    }

    fn item(&self, status: &str, content: Value) -> Value {
        json!({
            "type": "message",
            "id": self.message,
            "role": "assistant",
            "status": status,
            "content": content,
        })
    }

    fn ended(&self, text: &str, done: &Done) -> Value {
        let cut = matches!(done.finish, Finish::Length | Finish::Context | Finish::Deadline);
        let status = if cut { "incomplete" } else { "completed" };
        let mut object = self.object(status, json!([self.item(status, json!([part(text)]))]));
        if cut {
            object["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        let usage = &done.usage;
        object["usage"] = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": { "cached_tokens": usage.cached_tokens },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        });
        object
    }
}

/// Numbers events and writes them.
struct Numbered<'a> {
    sink: &'a Sink,
    count: u64,
}

impl Numbered<'_> {
    async fn send(&mut self, name: &str, mut event: Value) -> Result<(), Gone> {
        event["type"] = name.into();
        event["sequence_number"] = self.count.into();
        self.count += 1;
        self.sink.named(name, &event).await
    }
}

async fn stream(head: Head, mut answers: Answers, timed: bool, sink: Sink) -> Result<(), Gone> {
    let mut events = Numbered { sink: &sink, count: 0 };
    let begin = head.object("in_progress", json!([]));
    events.send("response.created", json!({ "response": begin.clone() })).await?;
    events.send("response.in_progress", json!({ "response": begin.clone() })).await?;
    let item = head.item("in_progress", json!([]));
    events.send("response.output_item.added", json!({ "output_index": 0, "item": item })).await?;
    let at = || json!({ "item_id": head.message, "output_index": 0, "content_index": 0 });
    let mut added = at();
    added["part"] = part("");
    events.send("response.content_part.added", added).await?;
    let mut whole = String::new();
    while let Some((_, event)) = answers.next_for(&sink, sse::COMMENT).await? {
        let (text, usage, done) = match event {
            Event::Progress { processed, usage } => {
                let (progress, timings) = wire::progress(processed, &usage);
                let mut event = json!({ "response": begin, "prompt_progress": progress });
                if timed {
                    event["timings"] = timings;
                }
                events.send("response.in_progress", event).await?;
                continue;
            }
            Event::Token { text, usage, .. } => (text, usage, None),
            Event::Done(done) => (done.text.clone(), done.usage, Some(done)),
            Event::Failed(failure) => {
                let error = ApiError::from(failure);
                let event =
                    json!({ "code": "server_error", "message": error.message, "param": null });
                return events.send("error", event).await;
            }
            _ => continue,
        };
        if !text.is_empty() {
            whole += &text;
            let mut delta = at();
            delta["delta"] = text.into();
            delta["logprobs"] = json!([]);
            if timed {
                delta["timings"] = wire::timings(&usage);
            }
            events.send("response.output_text.delta", delta).await?;
        }
        let Some(done) = done else { continue };
        let object = head.ended(&whole, &done);
        let mut end = at();
        end["text"] = whole.as_str().into();
        end["logprobs"] = json!([]);
        events.send("response.output_text.done", end).await?;
        let mut end = at();
        end["part"] = part(&whole);
        events.send("response.content_part.done", end).await?;
        let item = json!({ "output_index": 0, "item": object["output"][0] });
        events.send("response.output_item.done", item).await?;
        let name = match object["status"].as_str() {
            Some("incomplete") => "response.incomplete",
            _ => "response.completed",
        };
        let mut last = json!({ "response": object });
        if timed {
            last["timings"] = wire::timings(&usage);
        }
        return events.send(name, last).await;
    }
    Ok(())
}
