//! The fields that chat completions and completions share.

use serde_json::Value;

use super::App;
use super::error::ApiError;
use super::fields::Fields;
use super::sampling::{self, Sampling};
use crate::engine::Request;

/// Most choices of a call.
const MOST_CHOICES: usize = 64;
/// Most stop texts of a call, and bytes of one.
const MOST_STOPS: usize = 16;
const MOST_STOP_BYTES: usize = 1024;

/// What a call asks for beside its prompt.
pub(super) struct Common {
    pub choices: usize,
    pub stream: bool,
    /// A last event with the usage.
    pub stream_usage: bool,
    /// llama.cpp's `timings` in every event.
    pub timings: bool,
    /// Of every choice, but for the prompt, log-probabilities and constraint.
    max_tokens: Option<usize>,
    sampling: Sampling,
    stop: Vec<String>,
    ignore_eos: bool,
    cache_prompt: bool,
}

impl Common {
    /// Takes the fields.
    ///
    /// # Errors
    /// When one has a value that it cannot have.
    pub fn take(fields: &mut Fields, app: &App) -> Result<Common, ApiError> {
        // The model that is served answers whatever the name is, as people's programs name one.
        let _: Option<String> = fields.take("model")?;
        // Says who asks, and changes nothing.
        let _: Option<String> = fields.take("user")?;
        let stream = fields.take("stream")?.unwrap_or(false);
        let mut stream_usage = false;
        if let Some(mut options) = fields.object("stream_options")? {
            if !stream {
                let message = "`stream_options` has a meaning only with `stream`";
                return Err(ApiError::field("stream_options", message));
            }
            stream_usage = options.take("include_usage")?.unwrap_or(false);
            options.finish()?;
        }
        let choices = fields.number("n", 1, MOST_CHOICES)?.unwrap_or(1);
        let limit = app.options.max_tokens;
        let first: Option<usize> = fields.number("max_completion_tokens", 0, limit)?;
        // llama.cpp's -1: as many as there may be.
        let second = fields.number("max_tokens", -1, limit as i64)?;
        let second = second.and_then(|n| usize::try_from(n).ok());
        let third = fields.number("n_predict", -1, limit as i64)?;
        let third = third.and_then(|n| usize::try_from(n).ok());
        let tokenizer = app.model().tokenizer();
        Ok(Common {
            choices,
            stream,
            stream_usage,
            timings: fields.take("timings_per_token")?.unwrap_or(false),
            max_tokens: first.or(second).or(third),
            sampling: sampling::take(fields, &app.options.sampler, tokenizer)?,
            stop: stop(fields)?,
            ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
            cache_prompt: fields.take("cache_prompt")?.unwrap_or(true),
        })
    }

    /// Request number `choice` with this prompt. `default_tokens` holds when the call does not say
    /// how many tokens it wants.
    pub fn request(&self, app: &App, prompt: Vec<u32>, choice: usize) -> Request {
        let limit = app.options.max_tokens;
        let mut sampler = self.sampling.options.clone();
        sampler.seed = sampler.seed.wrapping_add(choice as u64);
        Request {
            sampler,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            reproducible: self.sampling.seeded || !self.cache_prompt,
            deadline: app.deadline(),
            ..Request::new(prompt, self.max_tokens.unwrap_or(limit))
        }
    }

    /// Whether the call says how many tokens it wants.
    pub fn default_max_tokens(&mut self, n: usize) {
        self.max_tokens.get_or_insert(n);
    }
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let texts = match fields.take::<Value>("stop")? {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => list
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                _ => Err(ApiError::field("stop", "`stop` should be a text or a list of texts")),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => {
            return Err(ApiError::field("stop", "`stop` should be a text or a list of texts"));
        }
    };
    if texts.len() > MOST_STOPS || texts.iter().any(|t| t.len() > MOST_STOP_BYTES) {
        let message = format!(
            "`stop` should be at most {MOST_STOPS} texts of at most {MOST_STOP_BYTES} bytes"
        );
        return Err(ApiError::field("stop", message));
    }
    Ok(texts)
}
