//! `/v1/models`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{App, Shared, json_response};

fn object(app: &App) -> Value {
    let model = app.model();
    json!({
        "id": app.options.model_name,
        "object": "model",
        "aliases": std::iter::once(&app.options.model_name).chain(&app.options.aliases).collect::<Vec<_>>(),
        "tags": app.options.tags,
        "created": app.started,
        "owned_by": "aether",
        "meta": {
            "n_vocab": model.vocab_len(),
            "n_ctx": model.context_len(),
            "n_ctx_train": model.hparams().n_ctx_train,
            "n_embd": model.hparams().n_embd,
            "n_slots": model.slots(),
        },
    })
}

/// `GET /v1/models`.
pub(super) async fn list(State(app): Shared) -> Response {
    json_response(StatusCode::OK, &json!({ "object": "list", "data": [object(&app)] }))
}

/// `GET /v1/models/NAME`.
pub(super) async fn one(
    State(app): Shared,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    if name == app.options.model_name || app.options.aliases.contains(&name) {
        return Ok(json_response(StatusCode::OK, &object(&app)));
    }
    let message =
        format!("there is no model `{name}`; this server has `{}`", app.options.model_name);
    let error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
    Err(error.code("model_not_found"))
}
