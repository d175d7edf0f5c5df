//! Prompts as calls give them: texts, token ids, both mixed, or several of these.

use serde_json::Value;

use super::App;
use super::error::ApiError;
use super::fields::Fields;
use crate::tokenizer::EncodeOptions;

/// Most prompts of a call.
pub(super) const MOST_PROMPTS: usize = 64;

/// The prompts in a field: a text, a list of token ids with texts between them, an object of
/// llama.cpp's (`prompt_string`, or `content` in parts); or a list of several of these.
///
/// # Errors
/// When it is none of these.
pub(super) fn parse(field: &str, value: Value, app: &App) -> Result<Vec<Vec<u32>>, ApiError> {
    match value {
        Value::Array(list) if list.is_empty() => {
            Err(ApiError::field(field, format!("`{field}` should hold at least one prompt")))
        }
        Value::Array(list) if list.iter().any(Value::is_number) => {
            Ok(vec![mixed(field, list, app)?])
        }
        Value::Array(list) if list.len() > MOST_PROMPTS => {
            let message = format!("`{field}` should hold at most {MOST_PROMPTS} prompts");
            Err(ApiError::field(field, message))
        }
        Value::Array(list) => list
            .into_iter()
            .enumerate()
            .map(|(i, one)| match one {
                Value::Array(list) => mixed(&format!("{field}[{i}]"), list, app),
                one => single(&format!("{field}[{i}]"), one, app),
            })
            .collect(),
        one => Ok(vec![single(field, one, app)?]),
    }
}

fn wrong(field: &str) -> ApiError {
    ApiError::field(field, format!("`{field}` should be texts or token ids"))
}

fn encode(text: &str, options: EncodeOptions, app: &App) -> Result<Vec<u32>, ApiError> {
    Ok(app.model().tokenizer().encode(text.as_bytes(), options)?)
}

/// Token ids with texts between them.
fn mixed(field: &str, list: Vec<Value>, app: &App) -> Result<Vec<u32>, ApiError> {
    let mut out = Vec::with_capacity(list.len());
    for (i, item) in list.into_iter().enumerate() {
        match item {
            Value::String(text) => {
                let options = EncodeOptions { add_special: i == 0, ..EncodeOptions::PROMPT };
                out.extend(encode(&text, options, app)?);
            }
            Value::Number(id) => {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                out.push(id.ok_or_else(|| wrong(field))?);
            }
            _ => return Err(wrong(field)),
        }
    }
    Ok(out)
}

fn single(field: &str, value: Value, app: &App) -> Result<Vec<u32>, ApiError> {
    match value {
        Value::String(text) => encode(&text, EncodeOptions::PROMPT, app),
        Value::Object(_) => {
            let mut fields = Fields::of(value, field)?;
            let text = match fields.take::<String>("prompt_string")? {
                Some(text) => text,
                None => parts(fields.need("content")?, &fields.name("content"))?,
            };
            fields.finish()?;
            encode(&text, EncodeOptions::PROMPT, app)
        }
        _ => Err(wrong(field)),
    }
}

/// The texts of parts, one after the other.
fn parts(parts: Vec<Value>, name: &str) -> Result<String, ApiError> {
    let text = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        _ => Err(ApiError::field(name, format!("`{name}`: only texts are supported"))),
    };
    parts.iter().map(text).collect()
}
