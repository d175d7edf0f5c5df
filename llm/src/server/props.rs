//! llama.cpp's `GET /props` and `/slots`: how the server is set up, and what it is doing.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::error::ApiError;
use super::request::Common;
use super::{Shared, json_response, wire};

/// `GET /props`.
pub(super) async fn props(State(app): Shared) -> Result<Response, ApiError> {
    let tokenizer = app.model().tokenizer();
    let ids = tokenizer.special_ids();
    let text = |id: Option<u32>| {
        let bytes = id.map_or(&[][..], |id| tokenizer.token_bytes(id, true));
        String::from_utf8_lossy(bytes).into_owned()
    };
    let mut params = Common::default_settings(&app)?;
    // Without one it is another every time.
    params["seed"] = app.options.seed.map_or(json!(-1), |seed| json!(seed));
    let body = json!({
        "default_generation_settings": {
            "n_ctx": app.model().context_len(),
            "params": params,
        },
        "total_slots": app.model().slots(),
        "model_alias": app.options.model_name,
        "model_path": app.options.model_path,
        "modalities": { "vision": false, "audio": false },
        "chat_template": app.template.source(),
        "bos_token": text(ids.bos),
        "eos_token": text(ids.eos),
        "build_info": wire::FINGERPRINT,
    });
    Ok(json_response(StatusCode::OK, &body))
}

/// `GET /slots`: nothing of what users wrote.
pub(super) async fn slots(State(app): Shared) -> Result<Response, ApiError> {
    if !app.options.slots_endpoint {
        return Err(switched_off("/slots"));
    }
    let one = |(id, slot): (usize, crate::engine::SlotState)| {
        let (decoded, left) = match slot.running {
            Some(work) => (work.decoded, json!(work.remaining)),
            None => (0, json!(-1)),
        };
        json!({
            "id": id,
            "n_ctx": app.model().context_len(),
            "is_processing": slot.running.is_some(),
            "n_cached": slot.cached,
            "n_prompt": slot.running.map(|work| work.prompt_tokens),
            "next_token": [{ "n_decoded": decoded, "n_remain": left }],
        })
    };
    let all: Value = app.service.slot_states().into_iter().enumerate().map(one).collect();
    Ok(json_response(StatusCode::OK, &all))
}

/// 501: the server was started without this.
pub(super) fn switched_off(path: &str) -> ApiError {
    let message = format!("{path} is switched off on this server");
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_supported_error", message)
}
