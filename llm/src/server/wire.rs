//! Small parts that several APIs write: ids, times, usage, log-probabilities.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::sampling::fresh_seed;
use crate::engine::{Finish, Logprobs, Usage};
use crate::sample::{Rng, TokenLogprob};
use crate::tokenizer::Tokenizer;

/// Seconds since 1970.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A name that did not occur before.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:016x}", Rng::new(fresh_seed()).next_u64())
}

/// OpenAI's `usage`.
pub(super) fn usage(all: &[Usage]) -> Value {
    // The choices of one call share their prompt.
    let prompt = all.first().map_or(0, |u| u.prompt_tokens);
    let cached = all.iter().map(|u| u.cached_tokens).max().unwrap_or(0);
    let completion: usize = all.iter().map(|u| u.completion_tokens).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}

/// Names the build that answers.
pub(super) const FINGERPRINT: &str = concat!("build-aether-", env!("CARGO_PKG_VERSION"));

/// OpenAI's `finish_reason`.
pub(super) fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Eos(_) | Finish::StopText(_) => "stop",
        Finish::Length | Finish::Context | Finish::Deadline => "length",
    }
}

/// llama.cpp's `timings`.
pub(super) fn timings(usage: &Usage) -> Value {
    timings_of(usage, usage.prompt_tokens - usage.cached_tokens)
}

/// `prompt` tokens went through the model.
fn timings_of(usage: &Usage, prompt: usize) -> Value {
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
    let per_second = |n: usize, d: std::time::Duration| match d.is_zero() {
        true => 0.0,
        false => n as f64 / d.as_secs_f64(),
    };
    // The first token comes with the prompt.
    let steps = usage.completion_tokens.saturating_sub(1);
    let mut timings = json!({
        "queue_ms": ms(usage.queued),
        "cache_n": usage.cached_tokens,
        "prompt_n": prompt,
        "prompt_ms": ms(usage.prefill),
        "prompt_per_token_ms": ms(usage.prefill) / prompt.max(1) as f64,
        "prompt_per_second": per_second(prompt, usage.prefill),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": ms(usage.decode),
        "predicted_per_token_ms": if steps > 0 { ms(usage.decode) / steps as f64 } else { 0.0 },
        "predicted_per_second": per_second(steps, usage.decode),
    });
    if usage.drafted.drafts > 0 {
        timings["draft_n"] = usage.drafted.tokens.into();
        timings["draft_n_accepted"] = usage.drafted.accepted.into();
    }
    timings
}

/// llama.cpp's `prompt_progress` and `timings` of a prompt that is being read.
pub(super) fn progress(processed: usize, usage: &Usage) -> (Value, Value) {
    let progress = json!({
        "total": usage.prompt_tokens,
        "cache": usage.cached_tokens,
        "processed": processed,
        "time_ms": usage.prefill.as_millis() as u64,
    });
    (progress, timings_of(usage, processed.saturating_sub(usage.cached_tokens)))
}

fn token(tokenizer: &Tokenizer, t: TokenLogprob) -> Value {
    let bytes = tokenizer.token_bytes(t.token, true);
    // JSON knows no infinity; OpenAI sends this for what cannot come.
    let logprob = if t.logprob.is_finite() { t.logprob } else { -9999.0 };
    json!({
        "id": t.token,
        "token": String::from_utf8_lossy(bytes),
        "logprob": logprob,
        "bytes": bytes,
    })
}

/// llama.cpp's form of the same after sampling: probabilities.
pub(super) fn sampled_prob(tokenizer: &Tokenizer, logprobs: &Logprobs) -> Value {
    let one = |t: &TokenLogprob| {
        let bytes = tokenizer.token_bytes(t.token, true);
        json!({
            "id": t.token,
            "token": String::from_utf8_lossy(bytes),
            "bytes": bytes,
            "prob": t.logprob.exp(),
        })
    };
    let mut entry = one(&logprobs.chosen);
    entry["top_probs"] = logprobs.top.iter().map(one).collect();
    entry
}

/// An entry of chat completions' `logprobs.content`.
pub(super) fn chat_logprob(tokenizer: &Tokenizer, logprobs: &Logprobs) -> Value {
    let mut entry = token(tokenizer, logprobs.chosen);
    entry["top_logprobs"] = logprobs.top.iter().map(|&t| token(tokenizer, t)).collect();
    entry
}
