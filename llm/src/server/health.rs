//! `/health`, `/ready`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::{Shared, json_response};

/// `GET /health`: the process lives, and the model can be run; 503 with the reason when it cannot
/// any more.
pub(super) async fn health(State(app): Shared) -> Response {
    match app.service.lost() {
        None => json_response(StatusCode::OK, &json!({ "status": "ok" })),
        Some(why) => {
            let body = json!({ "status": "error", "error": { "message": why } });
            json_response(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

/// `GET /ready`: a request would be taken now. 503 when the queue is full or the server drains.
pub(super) async fn ready(State(app): Shared) -> Response {
    let stats = app.service.stats();
    let (status, text) = match app.service.is_ready() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
    };
    let body = json!({
        "status": text,
        "slots": stats.slots,
        "running": stats.running,
        "waiting": stats.waiting,
    });
    json_response(status, &body)
}
