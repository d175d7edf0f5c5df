//! llama.cpp's own `POST /completion` and `/infill`.

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
use crate::engine::{Done, Event, Finish, Logprobs, Request};
use crate::tokenizer::EncodeOptions;

/// Most of the most probable tokens.
const MOST_PROBS: usize = 100;
/// Most files that come with a gap to fill.
const MOST_FILES: usize = 256;

/// A call that was understood.
struct Call {
    common: Common,
    prompts: Vec<Vec<u32>>,
    probs: Option<usize>,
    after_sampling: bool,
    return_tokens: bool,
    /// Which fields of the answer are wanted, as paths; all when empty.
    wanted: Vec<String>,
    requests: Vec<Request>,
}

/// `POST /completion`.
pub(super) async fn completion(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let mut fields = body_fields(&app, body).await?;
    let shared = app.clone();
    let call = apart(move || {
        let prompts = prompts::parse("prompt", fields.need("prompt")?, &shared)?;
        understand(fields, prompts, &shared)
    });
    answer(app, call.await?).await
}

/// `POST /infill`: `input_prefix`, `prompt` behind it, `input_suffix`, and other files in
/// `input_extra`.
pub(super) async fn infill(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let mut fields = body_fields(&app, body).await?;
    let shared = app.clone();
    let call = apart(move || {
        let before: String = fields.take("input_prefix")?.unwrap_or_default();
        let prompt: String = fields.take("prompt")?.unwrap_or_default();
        let after: String = fields.take("input_suffix")?.unwrap_or_default();
        let others = files(&mut fields)?;
        let fim = Fim::of(&shared, "input_suffix")?;
        let tokenizer = shared.model().tokenizer();
        let before = tokenizer.encode((before + &prompt).as_bytes(), EncodeOptions::PLAIN)?;
        let prompt = fim.prompt(&shared, &before, &after, &others)?;
        understand(fields, vec![prompt], &shared)
    });
    answer(app, call.await?).await
}

fn files(fields: &mut Fields) -> Result<Vec<(String, String)>, ApiError> {
    let list: Vec<Value> = fields.take("input_extra")?.unwrap_or_default();
    if list.len() > MOST_FILES {
        let message = format!("`input_extra` should hold at most {MOST_FILES} files");
        return Err(ApiError::field("input_extra", message));
    }
    list.into_iter()
        .enumerate()
        .map(|(i, item)| {
            let mut file = Fields::of(item, &format!("input_extra[{i}]"))?;
            let both = (file.need("filename")?, file.need("text")?);
            file.finish()?;
            Ok(both)
        })
        .collect()
}

fn understand(mut fields: Fields, prompts: Vec<Vec<u32>>, app: &App) -> Result<Call, ApiError> {
    let common = Common::take(&mut fields, app)?;
    let probs = fields.number("n_probs", 0, MOST_PROBS)?.filter(|n| *n > 0);
    let after_sampling = fields.take("post_sampling_probs")?.unwrap_or(false);
    let return_tokens = fields.take("return_tokens")?.unwrap_or(false);
    let wanted: Vec<String> = fields.take("response_fields")?.unwrap_or_default();
    let must = Must::take(&mut fields)?;
    fields.finish()?;
    if prompts.len() * common.choices > MOST_PROMPTS {
        let message = format!("a call has at most {MOST_PROMPTS} prompts and choices together");
        return Err(ApiError::field("prompt", message));
    }
    let requests: Result<Vec<Request>, ApiError> = prompts
        .iter()
        .flat_map(|prompt| (0..common.choices).map(move |choice| (prompt, choice)))
        .map(|(prompt, choice)| {
            let request = common.request(app, prompt.clone(), choice);
            Ok(Request {
                logprobs: probs,
                after_sampling,
                constraint: must.constraint(app)?,
                ..request
            })
        })
        .collect();
    let requests = requests?;
    Ok(Call { common, prompts, probs, after_sampling, return_tokens, wanted, requests })
}

async fn answer(app: Arc<App>, mut call: Call) -> Result<Response, ApiError> {
    let requests = std::mem::take(&mut call.requests);
    let n = requests.len();
    let answers = Answers::start(&app, requests)?;
    let head = Head { settings: call.common.settings(&app), app, call };
    if head.call.common.stream {
        return Ok(sse::respond(sse::EVENT_STREAM, |sink| stream(head, answers, sink)));
    }
    let all = answers.collect(n).await?;
    let mut objects: Vec<Value> =
        all.iter().enumerate().map(|(index, answer)| head.whole(index, answer)).collect();
    let body = match objects.len() {
        1 => objects.remove(0),
        _ => objects.into(),
    };
    Ok(json_response(StatusCode::OK, &body))
}

struct Head {
    app: Arc<App>,
    call: Call,
    settings: Value,
}

impl Head {
    fn probabilities(&self, all: &[Logprobs]) -> Value {
        let tokenizer = self.app.model().tokenizer();
        let one = |logprobs: &Logprobs| match self.call.after_sampling {
            true => wire::sampled_prob(tokenizer, logprobs),
            false => wire::chat_logprob(tokenizer, logprobs),
        };
        all.iter().map(one).collect()
    }

    /// What answers have in the end, `text` being what was not sent before.
    fn end(&self, index: usize, text: &str, whole: &str, done: &Done) -> Value {
        let prompt = &self.call.prompts[index / self.call.common.choices];
        let prompt = self.app.model().tokenizer().decode(prompt, true);
        let (kind, word) = match &done.finish {
            Finish::Eos(_) => ("eos", ""),
            Finish::StopText(word) => ("word", word.as_str()),
            Finish::Length | Finish::Context | Finish::Deadline => ("limit", ""),
        };
        let usage = &done.usage;
        json!({
            "index": index,
            "content": text,
            "tokens": [],
            "id_slot": usage.slot,
            "stop": true,
            "model": self.app.options.model_name,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.prompt_tokens + usage.completion_tokens,
            "generation_settings": self.settings,
            "prompt": String::from_utf8_lossy(&prompt),
            "has_new_line": whole.contains('\n'),
            "truncated": usage.shifted || done.finish == Finish::Context,
            "stop_type": kind,
            "stopping_word": word,
            "timings": wire::timings(usage),
        })
    }

    fn whole(&self, index: usize, answer: &Answer) -> Value {
        let Some(done) = &answer.done else { return Value::Null };
        let mut object = self.end(index, &answer.text, &answer.text, done);
        if self.call.return_tokens {
            object["tokens"] = json!(answer.tokens);
        }
        if self.call.probs.is_some() {
            object["completion_probabilities"] = self.probabilities(&answer.logprobs);
        }
        if self.call.wanted.is_empty() {
            return object;
        }
        let pick =
            |path: &String| Some((path.clone(), object.pointer(&format!("/{path}"))?.clone()));
        Value::Object(self.call.wanted.iter().filter_map(pick).collect::<Map<_, _>>())
    }
}

async fn stream(head: Head, mut answers: Answers, sink: Sink) -> Result<(), Gone> {
    let mut wholes = vec![String::new(); head.call.prompts.len() * head.call.common.choices];
    while let Some((index, event)) = answers.next_for(&sink, sse::COMMENT).await? {
        let part = |text: &str, tokens: &[u32]| json!({ "index": index, "content": text, "tokens": tokens, "stop": false });
        match event {
            Event::Started { .. } | Event::Prompt(_) | Event::Embedding(_) => {}
            Event::Progress { processed, usage } => {
                let mut object = part("", &[]);
                let (progress, timings) = wire::progress(processed, &usage);
                object["prompt_progress"] = progress;
                if head.call.common.timings {
                    object["timings"] = timings;
                }
                sink.data(&object).await?;
            }
            Event::Token { id, text, logprobs, usage } => {
                let mut object = part(&text, &[id]);
                object["id_slot"] = usage.slot.into();
                object["tokens_predicted"] = usage.completion_tokens.into();
                object["tokens_evaluated"] = usage.prompt_tokens.into();
                if let Some(logprobs) = logprobs {
                    object["completion_probabilities"] = head.probabilities(&[logprobs]);
                }
                if head.call.common.timings {
                    object["timings"] = wire::timings(&usage);
                }
                wholes[index] += &text;
                sink.data(&object).await?;
            }
            Event::Done(done) => {
                wholes[index] += &done.text;
                sink.data(&head.end(index, &done.text, &wholes[index], &done)).await?;
            }
            Event::Failed(failure) => {
                return sink.data(&ApiError::from(failure).body()).await;
            }
        }
    }
    Ok(())
}
