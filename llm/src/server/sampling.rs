//! The fields that say how tokens are chosen: OpenAI's, and llama.cpp's for what OpenAI lacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::ServerOptions;
use super::error::ApiError;
use super::fields::Fields;
use crate::sample::{Breakers, MirostatOptions, MirostatVersion, SamplerOptions};
use crate::tokenizer::{EncodeOptions, Tokenizer};

/// Most texts that break repetitions, and most entries of a logit bias.
const MOST_BREAKERS: usize = 16;
const MOST_BIASES: usize = 4096;

/// Settings of the sampler, and whether the seed was asked for.
pub(super) struct Sampling {
    pub options: SamplerOptions,
    pub seeded: bool,
}

/// A seed that nobody asked for: different every time.
pub(super) fn fresh_seed() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let count = COUNT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    now.map_or(0, |d| d.as_nanos() as u64) ^ count
}

/// Takes the fields of sampling.
pub(super) fn take(
    fields: &mut Fields,
    options: &ServerOptions,
    tokenizer: &Tokenizer,
) -> Result<Sampling, ApiError> {
    let mut o = options.sampler.clone();
    let mut set = |name: &str, to: &mut f32, low: f32, high: f32| -> Result<(), ApiError> {
        *to = fields.number(name, low, high)?.unwrap_or(*to);
        Ok(())
    };
    set("temperature", &mut o.temperature, 0.0, 100.0)?;
    set("dynatemp_range", &mut o.dynatemp_range, 0.0, 100.0)?;
    set("dynatemp_exponent", &mut o.dynatemp_exponent, 0.0, 100.0)?;
    set("top_p", &mut o.top_p, 0.0, 1.0)?;
    set("min_p", &mut o.min_p, 0.0, 1.0)?;
    set("typical_p", &mut o.typical_p, 0.0, 1.0)?;
    set("top_n_sigma", &mut o.top_n_sigma, -1.0, 100.0)?;
    set("xtc_probability", &mut o.xtc_probability, 0.0, 1.0)?;
    set("xtc_threshold", &mut o.xtc_threshold, 0.0, 1.0)?;
    set("repeat_penalty", &mut o.repeat_penalty, 1e-3, 1e3)?;
    set("frequency_penalty", &mut o.frequency_penalty, -100.0, 100.0)?;
    set("presence_penalty", &mut o.presence_penalty, -100.0, 100.0)?;
    set("dry_multiplier", &mut o.dry.multiplier, 0.0, 100.0)?;
    set("dry_base", &mut o.dry.base, 0.0, 100.0)?;
    let count = |n: i64| usize::try_from(n).unwrap_or(usize::MAX);
    const MOST: i64 = i32::MAX as i64;
    // Below 0 as llama.cpp has it: all.
    if let Some(k) = fields.number("top_k", -1, MOST)? {
        o.top_k = if k < 0 { 0 } else { count(k) };
    }
    if let Some(n) = fields.number("repeat_last_n", -1, MOST)? {
        o.repeat_last_n = count(n);
    }
    if let Some(n) = fields.number("dry_penalty_last_n", -1, MOST)? {
        o.dry.last_n = count(n);
    }
    if let Some(n) = fields.number("dry_allowed_length", 0, MOST)? {
        o.dry.allowed_length = count(n);
    }
    let breakers: Option<Vec<String>> = fields.take("dry_sequence_breakers")?;
    if o.dry.multiplier > 0.0 {
        let texts = breakers.unwrap_or_else(|| Breakers::DEFAULT.map(str::to_owned).into());
        if texts.len() > MOST_BREAKERS {
            let message = format!("more than {MOST_BREAKERS} texts in `dry_sequence_breakers`");
            return Err(ApiError::field("dry_sequence_breakers", message));
        }
        o.dry.breakers = Arc::new(Breakers::new(&texts, tokenizer));
    }
    mirostat(fields, &mut o)?;
    if let Some(bias) = fields.take("logit_bias")? {
        o.logit_bias = logit_bias(bias, tokenizer)?;
    }
    let seed = seed(fields)?;
    o.seed = seed.or(options.seed).unwrap_or_else(fresh_seed);
    o.check().map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(Sampling { options: o, seeded: seed.is_some() })
}

fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    match fields.take::<Value>("seed")? {
        None => Ok(None),
        // As llama.cpp has it: -1 for a random one.
        Some(value) if value.as_i64() == Some(-1) => Ok(None),
        Some(value) => match value.as_u64().or_else(|| value.as_i64().map(|n| n as u64)) {
            Some(seed) => Ok(Some(seed)),
            None => Err(ApiError::field("seed", "`seed` should be a 64-bit integer")),
        },
    }
}

fn mirostat(fields: &mut Fields, o: &mut SamplerOptions) -> Result<(), ApiError> {
    let version: Option<u8> = fields.number("mirostat", 0, 2)?;
    let tau = fields.number("mirostat_tau", 0.0, 100.0)?;
    let eta = fields.number("mirostat_eta", 0.0, 100.0)?;
    let version = match version {
        Some(1) => MirostatVersion::V1,
        Some(2) => MirostatVersion::V2,
        _ => return Ok(()),
    };
    let (tau, eta) = (tau.unwrap_or(5.0), eta.unwrap_or(0.1));
    o.mirostat = Some(MirostatOptions { version, tau, eta });
    Ok(())
}

/// OpenAI's form, an object of token ids, or llama.cpp's, a list of pairs of an id and a bias; both
/// take texts for ids. False forbids.
fn logit_bias(value: Value, tokenizer: &Tokenizer) -> Result<Vec<(u32, f32)>, ApiError> {
    let wrong = |message: &str| ApiError::field("logit_bias", format!("`logit_bias`: {message}"));
    let pairs: Vec<(Value, Value)> = match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, bias)| {
                // llama.cpp takes texts here too.
                let token = key.parse::<u64>().map_or_else(|_| Value::from(key), Value::from);
                Ok((token, bias))
            })
            .collect::<Result<_, ApiError>>()?,
        Value::Array(list) => list
            .into_iter()
            .map(|pair| match pair {
                Value::Array(mut pair) if pair.len() == 2 => {
                    let bias = pair.pop().unwrap_or_default();
                    Ok((pair.pop().unwrap_or_default(), bias))
                }
                _ => Err(wrong("expected pairs of a token and a bias")),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(wrong("expected an object of token ids and biases")),
    };
    if pairs.len() > MOST_BIASES {
        return Err(wrong(&format!("more than {MOST_BIASES} entries")));
    }
    let vocab = tokenizer.vocab_size() as u64;
    let mut out = Vec::with_capacity(pairs.len());
    for (token, bias) in pairs {
        let bias = match bias {
            Value::Bool(false) => f32::NEG_INFINITY,
            Value::Number(n) => n.as_f64().map_or(f32::NAN, |b| b as f32),
            _ => return Err(wrong("a bias should be a number, or false")),
        };
        if !(bias == f32::NEG_INFINITY || bias.is_finite()) {
            return Err(wrong("a bias should be finite"));
        }
        match (token.as_u64(), token.as_str()) {
            (Some(id), _) if id < vocab => out.push((id as u32, bias)),
            (Some(id), _) => return Err(wrong(&format!("there is no token {id}"))),
            (None, Some(text)) => {
                let ids = tokenizer.encode(text.as_bytes(), EncodeOptions::PLAIN)?;
                out.extend(ids.into_iter().map(|id| (id, bias)));
            }
            (None, None) => return Err(wrong("a token should be an id")),
        }
    }
    Ok(out)
}
