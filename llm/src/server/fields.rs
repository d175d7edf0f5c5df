//! The fields of a JSON object, taken one by one: what is left over in the end was not understood,
//! and is refused by name.

use std::future::poll_fn;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures_core::Stream;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields of an object.
#[derive(Debug, Default)]
pub struct Fields {
    map: Map<String, Value>,
    /// Where the object is, with a dot behind it; empty for the body itself.
    path: String,
}

/// Most bytes that are read of a body that is too long, so that its sender hears the answer: who is
/// cut off while writing does not read.
const MOST_DRAINED: usize = 1 << 30;

/// Reads a body of at most `limit` bytes within `time`.
///
/// # Errors
/// 413 for a longer one, 408 for a slower one, 400 for one that breaks off.
pub async fn read_body(
    body: Body,
    limit: usize,
    time: std::time::Duration,
) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(time, collect(body, limit)).await;
    read.unwrap_or_else(|_| {
        let message = format!("the body did not come within {} s", time.as_secs());
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message))
    })
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut chunks = std::pin::pin!(body.into_data_stream());
    let (mut out, mut total) = (Vec::new(), 0usize);
    while let Some(chunk) = poll_fn(|cx| chunks.as_mut().poll_next(cx)).await {
        let chunk =
            chunk.map_err(|error| ApiError::invalid(format!("the body broke off: {error}")))?;
        total = total.saturating_add(chunk.len());
        if total <= limit {
            out.extend_from_slice(&chunk);
        } else if total - limit > MOST_DRAINED {
            break;
        }
    }
    if total <= limit {
        return Ok(out.into());
    }
    let message = format!("the body is longer than {limit} bytes");
    let status = StatusCode::PAYLOAD_TOO_LARGE;
    Err(ApiError::new(status, "invalid_request_error", message))
}

impl Fields {
    /// The object that a body is. Nesting is limited by the parser (128 levels).
    ///
    /// # Errors
    /// When it is no JSON, or no object.
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::invalid(format!("the body is not valid JSON: {error}")))?;
        Fields::of(value, "")
    }

    /// The fields of a value that should be an object.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(value: Value, name: &str) -> Result<Fields, ApiError> {
        match value {
            Value::Object(map) if name.is_empty() => Ok(Fields { map, path: String::new() }),
            Value::Object(map) => Ok(Fields { map, path: format!("{name}.") }),
            _ if name.is_empty() => Err(ApiError::invalid("the body should be a JSON object")),
            _ => Err(ApiError::field(name, format!("`{name}` should be an object"))),
        }
    }

    /// The whole name of a field.
    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// Takes a field; `None` when it is not there, or null.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn take<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>, ApiError> {
        match self.map.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(|error| {
                let name = self.name(field);
                ApiError::field(&name, format!("`{name}`: {error}"))
            }),
        }
    }

    /// Puts a field in place of what was there.
    pub fn set(&mut self, field: &str, value: Value) {
        self.map.insert(field.to_owned(), value);
    }

    /// Takes a field that must be there.
    ///
    /// # Errors
    /// When it is not, or of another type.
    pub fn need<T: DeserializeOwned>(&mut self, field: &str) -> Result<T, ApiError> {
        let found = self.take(field)?;
        found.ok_or_else(|| {
            let name = self.name(field);
            ApiError::field(&name, format!("`{name}` is missing"))
                .code("missing_required_parameter")
        })
    }

    /// Takes a number within bounds.
    ///
    /// # Errors
    /// When it is no such number.
    pub fn number<T>(&mut self, field: &str, low: T, high: T) -> Result<Option<T>, ApiError>
    where
        T: DeserializeOwned + PartialOrd + std::fmt::Display,
    {
        let found: Option<T> = self.take(field)?;
        match found {
            Some(n) if !(low <= n && n <= high) => {
                let name = self.name(field);
                let message = format!("`{name}` is {n}, but should be from {low} to {high}");
                Err(ApiError::field(&name, message))
            }
            found => Ok(found),
        }
    }

    /// Takes the fields of an object.
    ///
    /// # Errors
    /// When it is none.
    pub fn object(&mut self, field: &str) -> Result<Option<Fields>, ApiError> {
        let name = self.name(field);
        self.take::<Value>(field)?.map(|value| Fields::of(value, &name)).transpose()
    }

    /// # Errors
    /// The first field that nobody took. One that is null says nothing.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((field, _)) => {
                let name = self.name(field);
                let message = format!("the field `{name}` is not supported here");
                Err(ApiError::unsupported(&name, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_taken_or_refused_by_name() {
        let parse = |text: &str| Fields::parse(text.as_bytes());
        let mut fields =
            parse(r#"{"a": 1, "b": null, "c": {"d": "x", "e": 2}, "f": 9, "g": null}"#).unwrap();
        assert_eq!(fields.take::<u8>("a"), Ok(Some(1)));
        assert_eq!(fields.take::<u8>("b"), Ok(None));
        assert_eq!(fields.need::<u8>("zz").unwrap_err().param.as_deref(), Some("zz"));
        let mut inner = fields.object("c").unwrap().unwrap();
        assert_eq!(inner.take::<u8>("d").unwrap_err().param.as_deref(), Some("c.d"));
        assert_eq!(inner.finish().unwrap_err().param.as_deref(), Some("c.e"));
        assert!(fields.number("f", 0, 8).unwrap_err().message.contains("from 0 to 8"));
        assert_eq!(fields.finish(), Ok(()));
        for bad in ["", "[]", "3", "{", "{\"a\":1e999}", "\u{0}", &"[".repeat(100_000)] {
            assert_eq!(parse(bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad:.9}");
        }
        let deep = format!("{}1{}", "{\"a\":".repeat(500), "}".repeat(500));
        assert!(parse(&deep).unwrap_err().message.contains("recursion"));
    }
}
