//! Errors in the form of OpenAI's API.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::chat::ChatError;
use crate::engine::{EngineError, Failure, SubmitError};
use crate::tokenizer::TokenizerError;

/// What a client is told when a request cannot be answered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    /// OpenAI's `type`.
    pub kind: &'static str,
    pub message: String,
    /// The field that is to blame.
    pub param: Option<String>,
    /// OpenAI's `code`.
    pub code: Option<&'static str>,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u64>,
    /// Tokens of a prompt that is too long, and of the context.
    pub too_long: Option<Box<(usize, usize)>>,
}

impl ApiError {
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        let message = message.into();
        let (param, code, retry_after, too_long) = (None, None, None, None);
        ApiError { status, kind, message, param, code, retry_after, too_long }
    }

    /// 400: the request makes no sense.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400: this field makes no sense.
    pub fn field(name: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(name.into()), ..ApiError::invalid(message) }
    }

    /// 400: this field is known and not supported, or not known.
    pub fn unsupported(name: &str, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("unsupported_parameter"), ..ApiError::field(name, message) }
    }

    /// 500: not the client's fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    #[must_use]
    pub fn code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code), ..self }
    }

    /// The object that OpenAI's API sends.
    pub fn body(&self) -> Value {
        let mut error = json!({
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        });
        if let Some((prompt, context)) = self.too_long.as_deref() {
            error["n_prompt_tokens"] = (*prompt).into();
            error["n_ctx"] = (*context).into();
        }
        json!({ "error": error })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = super::json_response(self.status, &self.body());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> ApiError {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { .. } => ApiError {
                code: Some("queue_full"),
                retry_after: Some(1),
                ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            },
            SubmitError::Draining => ApiError {
                code: Some("shutting_down"),
                ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
            },
            SubmitError::Lost(_) => ApiError {
                code: Some("device_lost"),
                ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
            },
            SubmitError::Prompt(error) => match *error {
                // OpenAI's code, and llama.cpp's type: people's programs look at either.
                EngineError::PromptTooLong { tokens, context } => ApiError {
                    kind: "exceed_context_size_error",
                    code: Some("context_length_exceeded"),
                    too_long: Some(Box::new((tokens, context))),
                    ..ApiError::invalid(message)
                },
                _ => ApiError::invalid(message),
            },
            SubmitError::Sampler(_) => ApiError::invalid(message),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> ApiError {
        let message = failure.to_string();
        match failure {
            Failure::Run(_) | Failure::Sample(_) => ApiError::internal(message),
            Failure::Shutdown => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
            }
            Failure::Deadline => {
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", message)
            }
        }
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> ApiError {
        ApiError::field("messages", error.to_string())
    }
}

impl From<TokenizerError> for ApiError {
    fn from(error: TokenizerError) -> ApiError {
        ApiError::invalid(error.to_string())
    }
}
