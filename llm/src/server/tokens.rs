//! `/tokenize`, `/detokenize`, `/apply-template`: what the model sees.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::error::ApiError;
use super::prompt::Rendering;
use super::{Shared, apart, body_fields, json_response};
use crate::chat::{Message, Tool};
use crate::tokenizer::EncodeOptions;

/// `POST /tokenize`: `content`, with `add_special`, `parse_special`, `with_pieces`.
pub(super) async fn tokenize(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let mut fields = body_fields(&app, body).await?;
    let content: String = fields.take("content")?.unwrap_or_default();
    let options = EncodeOptions {
        add_special: fields.take("add_special")?.unwrap_or(false),
        parse_special: fields.take("parse_special")?.unwrap_or(true),
    };
    let with_pieces: bool = fields.take("with_pieces")?.unwrap_or(false);
    fields.finish()?;
    let tokens = apart(move || {
        let tokenizer = app.model().tokenizer();
        let ids = tokenizer.encode(content.as_bytes(), options)?;
        if !with_pieces {
            return Ok(json!(ids));
        }
        let piece = |id| {
            let bytes = tokenizer.token_bytes(id, true);
            match std::str::from_utf8(bytes) {
                Ok(text) => json!({ "id": id, "piece": text }),
                Err(_) => json!({ "id": id, "piece": bytes }),
            }
        };
        Ok(ids.into_iter().map(piece).collect::<Value>())
    });
    Ok(json_response(StatusCode::OK, &json!({ "tokens": tokens.await? })))
}

/// `POST /detokenize`: `tokens`.
pub(super) async fn detokenize(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let mut fields = body_fields(&app, body).await?;
    let tokens: Vec<u32> = fields.take("tokens")?.unwrap_or_default();
    fields.finish()?;
    let vocab = app.model().tokenizer().vocab_size();
    if let Some(token) = tokens.iter().find(|&&t| t as usize >= vocab) {
        return Err(ApiError::field("tokens", format!("there is no token {token}")));
    }
    let bytes = app.model().tokenizer().decode(&tokens, true);
    let content = String::from_utf8_lossy(&bytes);
    Ok(json_response(StatusCode::OK, &json!({ "content": content })))
}

/// `POST /apply-template`: `messages`, with `tools`.
pub(super) async fn apply_template(State(app): Shared, body: Body) -> Result<Response, ApiError> {
    let mut fields = body_fields(&app, body).await?;
    let messages = Message::parse_list(fields.need("messages")?)?;
    let tools = match fields.take("tools")? {
        Some(list) => {
            Tool::parse_list(list).map_err(|e| ApiError::field("tools", e.to_string()))?
        }
        None => Vec::new(),
    };
    let rendering = Rendering::take(&mut fields, &app)?;
    fields.finish()?;
    let prompt = apart(move || rendering.text(&app, &messages, &tools)).await?;
    Ok(json_response(StatusCode::OK, &json!({ "prompt": prompt })))
}
