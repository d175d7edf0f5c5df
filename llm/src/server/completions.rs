//! `POST /v1/completions`: texts as they are, without a chat template.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::answers::{Answer, Answers};
use super::error::ApiError;
use super::fields::Fields;
use super::fim::Fim;
use super::output::Must;
use super::prompts::{self, MOST_PROMPTS};
use super::request::Common;
use super::sse::{self, Gone, Sink};
use super::{App, Shared, apart, body_fields, json_response, wire};
use crate::engine::{Event, Logprobs, Request, Usage};

/// Most of the most probable tokens.
const MOST_LOGPROBS: usize = 20;
/// New tokens when the call does not say, as OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

/// A call that was understood.
struct Call {
    common: Common,
    logprobs: Option<usize>,
    /// The prompts come back before the answers.
    echo: bool,
    prompts: Vec<Vec<u32>>,
    requests: Vec<Request>,
}

/// `POST /v1/completions`.
pub(super) async fn completions(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let fields = body_fields(&app, body).await?;
    let shared = app.clone();
    let mut call = apart(move || understand(fields, &shared)).await?;
    let requests = std::mem::take(&mut call.requests);
    let n = requests.len();
    let answers = Answers::start(&app, requests)?;
    let head = Head { id: wire::new_id("cmpl-"), created: wire::unix_time(), app, call };
    if head.call.common.stream {
        return Ok(sse::respond(sse::EVENT_STREAM, |sink| stream(head, answers, sink)));
    }
    let all = answers.collect(n).await?;
    Ok(json_response(StatusCode::OK, &head.whole(&all)))
}

fn understand(mut fields: Fields, app: &App) -> Result<Call, ApiError> {
    let mut prompts = prompts::parse("prompt", fields.need("prompt")?, app)?;
    let suffix = fields.take::<String>("suffix")?.filter(|s| !s.is_empty());
    let has_suffix = suffix.is_some();
    if let Some(suffix) = suffix {
        let fim = Fim::of(app, "suffix")?;
        for prompt in &mut prompts {
            *prompt = fim.prompt(app, prompt, &suffix, &[])?;
        }
    }
    let must = Must::take(&mut fields)?;
    let mut common = Common::take(&mut fields, app)?;
    common.default_max_tokens(DEFAULT_TOKENS.min(app.options.max_tokens));
    let logprobs = fields.number("logprobs", 0, MOST_LOGPROBS)?;
    let echo: bool = fields.take("echo")?.unwrap_or(false);
    let best_of = fields.number("best_of", 1, common.choices)?;
    if best_of.is_some_and(|n| n != common.choices) {
        return Err(ApiError::unsupported("best_of", "`best_of` should be `n`, or left out"));
    }
    fields.finish()?;
    if prompts.len() * common.choices > MOST_PROMPTS {
        let message = format!("a call has at most {MOST_PROMPTS} prompts and choices together");
        return Err(ApiError::field("prompt", message));
    }
    if echo && has_suffix {
        return Err(ApiError::unsupported("echo", "`echo` does not go with `suffix`"));
    }
    if echo && common.stream {
        return Err(ApiError::unsupported("echo", "`echo` does not go with `stream`"));
    }
    let requests: Result<Vec<Request>, ApiError> = prompts
        .iter()
        .flat_map(|prompt| (0..common.choices).map(move |choice| (prompt, choice)))
        .map(|(prompt, choice)| {
            let request = common.request(app, prompt.clone(), choice);
            let constraint = must.constraint(app)?;
            let prompt_logprobs = logprobs.filter(|_| echo);
            Ok(Request { logprobs, prompt_logprobs, constraint, ..request })
        })
        .collect();
    Ok(Call { common, logprobs, echo, prompts, requests: requests? })
}

/// What all objects of an answer have.
struct Head {
    id: String,
    created: u64,
    app: Arc<App>,
    call: Call,
}

impl Head {
    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.app.options.model_name,
            "system_fingerprint": wire::FINGERPRINT,
            "choices": choices,
        })
    }

    fn text_of(&self, token: u32) -> String {
        String::from_utf8_lossy(self.app.model().tokenizer().token_bytes(token, true)).into_owned()
    }

    /// The old form of log-probabilities: one list for each thing. `first` is a token of which
    /// nothing is known, `offset` where the text begins.
    fn logprobs(&self, first: Option<u32>, all: &[Logprobs], mut offset: usize) -> Value {
        let (mut tokens, mut values, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        let mut tops: Vec<Value> = Vec::new();
        let mut push = |token: String, value: Value, top: Value| {
            offsets.push(offset);
            offset += token.chars().count();
            tokens.push(token);
            values.push(value);
            tops.push(top);
        };
        if let Some(token) = first {
            push(self.text_of(token), Value::Null, Value::Null);
        }
        let finite = |l: f32| if l.is_finite() { l } else { -9999.0 };
        for l in all {
            let top: Map<String, Value> =
                l.top.iter().map(|t| (self.text_of(t.token), finite(t.logprob).into())).collect();
            push(self.text_of(l.chosen.token), finite(l.chosen.logprob).into(), top.into());
        }
        json!({
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        })
    }

    fn whole(&self, all: &[Answer]) -> Value {
        let choice = |(index, answer): (usize, &Answer)| {
            let prompt = &self.call.prompts[index / self.call.common.choices];
            let mut text = String::new();
            let mut logprobs = Vec::new();
            if self.call.echo {
                let bytes = self.app.model().tokenizer().decode(prompt, false);
                text += &String::from_utf8_lossy(&bytes);
                logprobs.extend(answer.prompt.iter().cloned());
            }
            text += &answer.text;
            logprobs.extend(answer.logprobs.iter().cloned());
            let first = prompt.first().copied().filter(|_| self.call.echo);
            let logprobs = self.call.logprobs.map(|_| self.logprobs(first, &logprobs, 0));
            json!({
                "index": index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": answer.done.as_ref().map(|d| wire::finish_reason(&d.finish)),
            })
        };
        let choices: Vec<Value> = all.iter().enumerate().map(choice).collect();
        let usages: Vec<Usage> = all.iter().filter_map(|a| Some(a.done.as_ref()?.usage)).collect();
        let mut object = self.object(choices.into());
        object["usage"] = self.usage(&usages);
        object["timings"] = usages.first().map(wire::timings).into();
        object
    }

    /// Several prompts count all.
    fn usage(&self, usages: &[Usage]) -> Value {
        let mut usage = wire::usage(usages);
        let prompt: usize = self.call.prompts.iter().map(Vec::len).sum();
        let completion: usize = usages.iter().map(|u| u.completion_tokens).sum();
        usage["prompt_tokens"] = prompt.into();
        usage["total_tokens"] = (prompt + completion).into();
        usage
    }

    fn chunk(&self, index: usize, text: String, logprobs: Option<Value>, finish: Value) -> Value {
        let choice = json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish,
        });
        self.object(json!([choice]))
    }
}

async fn stream(head: Head, mut answers: Answers, sink: Sink) -> Result<(), Gone> {
    let mut usages: Vec<Usage> = Vec::new();
    let mut offsets = vec![0; head.call.prompts.len() * head.call.common.choices];
    while let Some((index, event)) = answers.next_for(&sink, sse::COMMENT).await? {
        match event {
            Event::Started { .. }
            | Event::Progress { .. }
            | Event::Prompt(_)
            | Event::Embedding(_) => {}
            Event::Token { text, logprobs, usage, .. } => {
                if text.is_empty() && logprobs.is_none() {
                    continue;
                }
                let logprobs = logprobs.map(|l| head.logprobs(None, &[l], offsets[index]));
                offsets[index] += text.chars().count();
                let mut chunk = head.chunk(index, text, logprobs, Value::Null);
                if head.call.common.timings {
                    chunk["timings"] = wire::timings(&usage);
                }
                sink.data(&chunk).await?;
            }
            Event::Done(done) => {
                let reason = wire::finish_reason(&done.finish).into();
                sink.data(&head.chunk(index, done.text, None, reason)).await?;
                usages.push(done.usage);
            }
            Event::Failed(failure) => {
                return sink.data(&ApiError::from(failure).body()).await;
            }
        }
    }
    if head.call.common.stream_usage {
        let mut last = head.object(json!([]));
        last["usage"] = head.usage(&usages);
        sink.data(&last).await?;
    }
    sink.raw("data: [DONE]\n\n".to_owned()).await
}
