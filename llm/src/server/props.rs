//! llama.cpp's `GET /props` and `/slots`: how the server is set up, and what it is doing.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::error::ApiError;
use super::request::Common;
use super::{App, Shared, fields, json_response, wire};
use crate::arch::Adapter;

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

/// `GET /lora-adapters`: the adapters that the model was loaded with.
pub(super) async fn adapters(State(app): Shared) -> Response {
    json_response(StatusCode::OK, &listed(&app))
}

fn listed(app: &App) -> Value {
    let one = |(id, adapter): (usize, &Arc<Adapter>)| json!({ "id": id, "path": adapter.gguf().path(), "scale": adapter.scale() });
    app.model().adapters().iter().enumerate().map(one).collect()
}

/// `POST /lora-adapters`: what is asked for must be how it is, since scales are part of the module.
pub(super) async fn scale_adapters(
    State(app): Shared,
    request: Request,
) -> Result<Response, ApiError> {
    let limit = (app.options.max_body, app.options.body_time);
    let bytes = fields::read_body(request.into_body(), limit.0, limit.1).await?;
    let wanted: Vec<Scale> = serde_json::from_slice(&bytes)
        .map_err(|e| ApiError::invalid(format!("a list of adapters with id and scale: {e}")))?;
    let adapters = app.model().adapters();
    for Scale { id, .. } in &wanted {
        if *id >= adapters.len() {
            let message = format!("there is no adapter {id}; there are {}", adapters.len());
            return Err(ApiError::field("id", message));
        }
    }
    // llama.cpp turns off those that are not named.
    for (id, adapter) in adapters.iter().enumerate() {
        let scale = wanted.iter().rfind(|w| w.id == id).map_or(0.0, |w| w.scale);
        if scale != adapter.scale() {
            let message = format!(
                "adapter {id} has the scale {}; scales are set when the server starts \
                 (--lora-scaled)",
                adapter.scale()
            );
            return Err(ApiError::unsupported("scale", message));
        }
    }
    Ok(json_response(StatusCode::OK, &json!({ "success": true })))
}

/// A scale that is asked for.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Scale {
    id: usize,
    scale: f32,
}

/// 501: the server was started without this.
pub(super) fn switched_off(path: &str) -> ApiError {
    let message = format!("{path} is switched off on this server");
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "not_supported_error", message)
}
