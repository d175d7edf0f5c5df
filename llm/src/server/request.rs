//! The fields that chat completions and completions share.

use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::fields::Fields;
use super::sampling::{self, Sampling};
use crate::engine::{MOST_DRAFT_TOKENS, Request};
use crate::sample::MirostatVersion;
use crate::tokenizer::Tokenizer;

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
    /// llama.cpp's `__verbose`: the prompt, and the settings that hold.
    pub verbose: bool,
    /// Of every choice, but for the prompt, log-probabilities and constraint.
    max_tokens: Option<usize>,
    sampling: Sampling,
    stop: Vec<String>,
    ignore_eos: bool,
    cache_prompt: bool,
    /// llama.cpp's `id_slot`.
    slot: Option<usize>,
    /// llama.cpp's `return_progress`.
    progress: bool,
    /// llama.cpp's `speculative.n_max`.
    draft_tokens: Option<usize>,
}

/// The texts of control tokens would end an answer again and again.
fn forbid_ends(sampling: &mut Sampling, tokenizer: &Tokenizer) {
    let ends = tokenizer.eog_ids().iter().map(|&id| (id, f32::NEG_INFINITY));
    sampling.options.logit_bias.extend(ends);
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
        let tokenizer = app.model().tokenizer();
        let mut sampling = sampling::take(fields, &app.options, tokenizer)?;
        let ignore_eos = fields.take("ignore_eos")?.unwrap_or(false);
        if ignore_eos {
            forbid_ends(&mut sampling, tokenizer);
        }
        // llama.cpp's -1: any.
        let slot: Option<i64> = fields.number("id_slot", -1, i64::from(u16::MAX))?;
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
        // llama.cpp's name for it.
        let choices = fields.number("n_cmpl", 1, MOST_CHOICES)?.unwrap_or(choices);
        let first: Option<usize> = fields.number("max_completion_tokens", 0, limit)?;
        // llama.cpp's -1: as many as there may be.
        let second = fields.number("max_tokens", -1, limit as i64)?;
        let all = |n: i64| usize::try_from(n).unwrap_or(limit);
        let third = fields.number("n_predict", -1, limit as i64)?;
        Ok(Common {
            choices,
            stream,
            stream_usage,
            timings: fields.take("timings_per_token")?.unwrap_or(false),
            verbose: fields.take("verbose")?.unwrap_or(app.options.verbose),
            max_tokens: first.or(second.or(third).map(all)).or(app.options.default_tokens),
            sampling,
            stop: stop(fields)?,
            ignore_eos,
            cache_prompt: fields.take("cache_prompt")?.unwrap_or(true),
            slot: slot.and_then(|slot| usize::try_from(slot).ok()),
            progress: fields.take("return_progress")?.unwrap_or(false),
            draft_tokens: fields.number("speculative.n_max", 0, MOST_DRAFT_TOKENS)?,
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
            slot: self.slot,
            progress: self.progress,
            draft_tokens: self.draft_tokens,
            shift: app.options.context_shift,
            reproducible: self.sampling.seeded || !self.cache_prompt,
            deadline: app.deadline(),
            ..Request::new(prompt, self.max_tokens.unwrap_or(limit))
        }
    }

    /// llama.cpp's `generation_settings`: what holds for a choice.
    pub fn settings(&self, app: &App) -> Value {
        let o = &self.sampling.options;
        let bias = |&(token, bias): &(u32, f32)| {
            // Infinity is null in JSON.
            json!({ "token": token, "bias": bias.is_finite().then_some(bias) })
        };
        let count = |n: usize| i64::try_from(n).unwrap_or(-1);
        let mirostat = o.mirostat.map_or((0, 5.0, 0.1), |m| {
            (if m.version == MirostatVersion::V1 { 1 } else { 2 }, m.tau, m.eta)
        });
        json!({
            "n_predict": self.max_tokens.unwrap_or(app.options.max_tokens),
            "seed": o.seed,
            "temperature": o.temperature,
            "dynatemp_range": o.dynatemp_range,
            "dynatemp_exponent": o.dynatemp_exponent,
            "top_k": o.top_k,
            "top_p": o.top_p,
            "min_p": o.min_p,
            "top_n_sigma": o.top_n_sigma,
            "typical_p": o.typical_p,
            "xtc_probability": o.xtc_probability,
            "xtc_threshold": o.xtc_threshold,
            "repeat_last_n": count(o.repeat_last_n),
            "repeat_penalty": o.repeat_penalty,
            "presence_penalty": o.presence_penalty,
            "frequency_penalty": o.frequency_penalty,
            "dry_multiplier": o.dry.multiplier,
            "dry_base": o.dry.base,
            "dry_allowed_length": count(o.dry.allowed_length),
            "dry_penalty_last_n": count(o.dry.last_n),
            "mirostat": mirostat.0,
            "mirostat_tau": mirostat.1,
            "mirostat_eta": mirostat.2,
            // A sampler of llama.cpp that there is not here: this is how it says that it is off.
            "adaptive_target": -1.0,
            "adaptive_decay": 0.0,
            "logit_bias": o.logit_bias.iter().map(bias).collect::<Value>(),
            "stop": self.stop,
            "ignore_eos": self.ignore_eos,
            "stream": self.stream,
            "speculative.n_max": self.draft_tokens.unwrap_or(app.service.draft_tokens()),
        })
    }

    /// What holds when a call says nothing.
    ///
    /// # Errors
    /// None is expected.
    pub fn default_settings(app: &App) -> Result<Value, ApiError> {
        Ok(Common::take(&mut Fields::default(), app)?.settings(app))
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
