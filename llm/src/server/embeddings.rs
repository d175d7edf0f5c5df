//! `POST /v1/embeddings`: what the model made of each text's last token, scaled to length 1.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::answers::Answers;
use super::error::ApiError;
use super::{Shared, apart, body_fields, json_response};
use crate::engine::Request;

/// `POST /v1/embeddings`.
pub(super) async fn embeddings(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let mut fields = body_fields(&app, body).await?;
    let input: Value = fields.need("input")?;
    let _: Option<String> = fields.take("model")?;
    let _: Option<String> = fields.take("user")?;
    let format: Option<String> = fields.take("encoding_format")?;
    let base64 = match format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            let message = "`encoding_format` should be float or base64";
            return Err(ApiError::field("encoding_format", message));
        }
    };
    fields.finish()?;
    let shared = app.clone();
    let prompts = apart(move || super::prompts::parse("input", input, &shared)).await?;
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let n = prompts.len();
    let requests = prompts.into_iter().map(|prompt| Request {
        embedding: true,
        deadline: app.deadline(),
        ..Request::new(prompt, 0)
    });
    let all = Answers::start(&app, requests.collect())?.collect(n).await?;
    let data: Vec<Value> = all
        .iter()
        .enumerate()
        .map(|(index, answer)| {
            let values = match base64 {
                false => json!(answer.embedding),
                true => encode_base64(&answer.embedding).into(),
            };
            json!({ "object": "embedding", "index": index, "embedding": values })
        })
        .collect();
    let body = json!({
        "object": "list",
        "data": data,
        "model": app.options.model_name,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    });
    Ok(json_response(StatusCode::OK, &body))
}

/// The little-endian bytes of the values in base64 (RFC 4648).
fn encode_base64(values: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |w, &b| w << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            match i <= chunk.len() {
                true => out.push(char::from(ALPHABET[(word >> (18 - 6 * i) & 63) as usize])),
                false => out.push('='),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::encode_base64;

    #[test]
    fn base64_is_padded() {
        assert_eq!(encode_base64(&[]), "");
        assert_eq!(encode_base64(&[1.0]), "AACAPw==");
        assert_eq!(encode_base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(encode_base64(&[1.0, -2.5, 0.1]), "AACAPwAAIMDNzMw9");
    }
}
