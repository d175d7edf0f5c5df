//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::answers::{Answer, Answers};
use super::error::ApiError;
use super::fields::Fields;
use super::output::{self, Outgoing, Output};
use super::prompt::Rendering;
use super::request::Common;
use super::sse::{self, Gone, Sink};
use super::{App, Shared, apart, body_fields, json_response, wire};
use crate::chat::{Message, ToolForm};
use crate::engine::{Event, Logprobs, Request, Usage};

/// Most of the most probable tokens.
const MOST_LOGPROBS: usize = 20;

/// A call that was understood.
pub(super) struct Call {
    pub common: Common,
    pub logprobs: bool,
    /// How calls of functions are written, when some may come.
    pub form: Option<ToolForm>,
    pub requests: Vec<Request>,
    /// The prompt as text, and what its tokens are.
    pub text: String,
    pub prompt_tokens: usize,
}

/// `POST /v1/chat/completions`.
pub(super) async fn completions(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let fields = body_fields(&app, body).await?;
    let shared = app.clone();
    let call = apart(move || understand(fields, &shared)).await?;
    let Call { common, logprobs, form, requests, text, .. } = call;
    let answers = Answers::start(&app, requests)?;
    let verbose = common
        .verbose
        .then(|| json!({ "prompt": text, "generation_settings": common.settings(&app) }));
    let (id, created) = (wire::new_id("chatcmpl-"), wire::unix_time());
    let head = Head { id, created, form, verbose, app };
    if common.stream {
        return Ok(sse::respond(sse::EVENT_STREAM, |sink| stream(head, common, answers, sink)));
    }
    let all = answers.collect(common.choices).await?;
    Ok(json_response(StatusCode::OK, &head.whole(&all, logprobs)))
}

/// What a call asks for.
///
/// # Errors
/// The first field that is wrong or not supported.
pub(super) fn understand(mut fields: Fields, app: &App) -> Result<Call, ApiError> {
    let messages = Message::parse_list(fields.need("messages")?)?;
    let common = Common::take(&mut fields, app)?;
    let logprobs: bool = fields.take("logprobs")?.unwrap_or(false);
    let top = fields.number("top_logprobs", 0, MOST_LOGPROBS)?;
    if top.is_some() && !logprobs {
        let message = "`top_logprobs` has a meaning only with `logprobs`";
        return Err(ApiError::field("top_logprobs", message));
    }
    let rendering = Rendering::take(&mut fields, app)?;
    let output = Output::take(&mut fields, app)?;
    fields.finish()?;
    let text = rendering.text(app, &messages, &output.tools)?;
    let prompt = app.template.encode(app.model().tokenizer(), &text)?;
    let requests: Result<Vec<Request>, ApiError> = (0..common.choices)
        .map(|choice| {
            Ok(Request {
                logprobs: logprobs.then_some(top.unwrap_or(0)),
                constraint: output.constraint(app)?,
                // Some families mark calls by control tokens.
                show_special: output.form.is_some(),
                ..common.request(app, prompt.clone(), choice)
            })
        })
        .collect();
    let (form, prompt_tokens) = (output.form, prompt.len());
    Ok(Call { common, logprobs, form, requests: requests?, text, prompt_tokens })
}

/// `POST /v1/chat/completions/input_tokens`: how many tokens the prompt of such a call has.
pub(super) async fn input_tokens(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let fields = body_fields(&app, body).await?;
    let call = apart(move || understand(fields, &app)).await?;
    let body = json!({ "object": "response.input_tokens", "input_tokens": call.prompt_tokens });
    Ok(json_response(StatusCode::OK, &body))
}

/// What all objects of an answer have.
struct Head {
    id: String,
    created: u64,
    form: Option<ToolForm>,
    /// llama.cpp's `__verbose`.
    verbose: Option<Value>,
    app: Arc<App>,
}

impl Head {
    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.app.options.model_name,
            "system_fingerprint": wire::FINGERPRINT,
            "choices": choices,
        })
    }

    fn logprobs(&self, of: &[Logprobs]) -> Value {
        let tokenizer = self.app.model().tokenizer();
        let content: Vec<Value> = of.iter().map(|l| wire::chat_logprob(tokenizer, l)).collect();
        json!({ "content": content, "refusal": null })
    }

    fn whole(&self, all: &[Answer], logprobs: bool) -> Value {
        let mut usages = Vec::new();
        let choices: Vec<Value> = all
            .iter()
            .enumerate()
            .map(|(index, answer)| {
                let done = answer.done.as_ref();
                usages.extend(done.map(|d| d.usage));
                let (text, calls) = match self.form {
                    Some(form) => form.parse(&answer.text),
                    None => (answer.text.clone(), Vec::new()),
                };
                let mut message = json!({ "role": "assistant", "content": text });
                let mut reason = done.map(|d| wire::finish_reason(&d.finish));
                if !calls.is_empty() {
                    if text.is_empty() {
                        message["content"] = Value::Null;
                    }
                    message["tool_calls"] = output::calls_json(&calls);
                    reason = Some("tool_calls");
                }
                json!({
                    "index": index,
                    "message": message,
                    "logprobs": if logprobs { self.logprobs(&answer.logprobs) } else { Value::Null },
                    "finish_reason": reason,
                })
            })
            .collect();
        let mut object = self.object("chat.completion", choices.into());
        object["usage"] = wire::usage(&usages);
        if let Some(usage) = usages.first() {
            object["timings"] = wire::timings(usage);
        }
        if let Some(verbose) = &self.verbose {
            object["__verbose"] = verbose.clone();
        }
        object
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Option<Value>, finish: Value) -> Value {
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish,
        });
        self.object("chat.completion.chunk", json!([choice]))
    }
}

async fn stream(head: Head, common: Common, mut answers: Answers, sink: Sink) -> Result<(), Gone> {
    for index in 0..common.choices {
        // Without text, so that nobody takes it for the first token.
        let delta = json!({ "role": "assistant", "content": null });
        sink.data(&head.chunk(index, delta, None, Value::Null)).await?;
    }
    let mut usages: Vec<Usage> = Vec::new();
    let mut outgoing: Vec<Outgoing> =
        (0..common.choices).map(|_| Outgoing::new(head.form)).collect();
    while let Some((index, event)) = answers.next_for(&sink, sse::COMMENT).await? {
        match event {
            Event::Started { .. } | Event::Prompt(_) | Event::Embedding(_) => {}
            Event::Progress { processed, usage } => {
                let mut chunk = head.chunk(index, json!({}), None, Value::Null);
                let (progress, timings) = wire::progress(processed, &usage);
                chunk["prompt_progress"] = progress;
                if common.timings {
                    chunk["timings"] = timings;
                }
                sink.data(&chunk).await?;
            }
            Event::Token { text, logprobs, usage, .. } => {
                let text = outgoing[index].push(text);
                if text.is_empty() && logprobs.is_none() {
                    continue;
                }
                let logprobs = logprobs.map(|l| head.logprobs(&[l]));
                let delta = if text.is_empty() { json!({}) } else { json!({ "content": text }) };
                let mut chunk = head.chunk(index, delta, logprobs, Value::Null);
                if common.timings {
                    chunk["timings"] = wire::timings(&usage);
                }
                sink.data(&chunk).await?;
            }
            Event::Done(done) => {
                let mut text = outgoing[index].push(done.text);
                let (rest, calls) = outgoing[index].finish();
                text += &rest;
                if !text.is_empty() {
                    let delta = json!({ "content": text });
                    sink.data(&head.chunk(index, delta, None, Value::Null)).await?;
                }
                let mut reason = wire::finish_reason(&done.finish);
                if !calls.is_empty() {
                    let delta = json!({ "tool_calls": output::calls_json(&calls) });
                    sink.data(&head.chunk(index, delta, None, Value::Null)).await?;
                    reason = "tool_calls";
                }
                let mut last = head.chunk(index, json!({}), None, reason.into());
                if common.timings {
                    last["timings"] = wire::timings(&done.usage);
                }
                if let Some(verbose) = &head.verbose {
                    last["__verbose"] = verbose.clone();
                }
                sink.data(&last).await?;
                usages.push(done.usage);
            }
            Event::Failed(failure) => {
                return sink.data(&ApiError::from(failure).body()).await;
            }
        }
    }
    if common.stream_usage {
        let mut last = head.object("chat.completion.chunk", json!([]));
        last["usage"] = wire::usage(&usages);
        last["timings"] = usages.first().map(wire::timings).into();
        sink.data(&last).await?;
    }
    sink.raw("data: [DONE]\n\n".to_owned()).await
}
