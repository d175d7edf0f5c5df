//! Server-sent events (HTML living standard, 9.2).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::Response;
use futures_core::Stream;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Events that wait for the client.
const AHEAD: usize = 32;
/// How long a client may let the server wait.
const SLOW: Duration = Duration::from_secs(30);
/// After so long without an event a comment is sent, so that nobody on the way gives up.
pub(super) const QUIET: Duration = Duration::from_secs(15);

/// The comment.
pub(super) const COMMENT: &str = ": still here\n\n";

/// The client left, or does not read.
#[derive(Debug)]
pub(super) struct Gone;

/// Where events are written.
pub(super) struct Sink(Sender<Bytes>);

impl Sink {
    pub async fn raw(&self, text: String) -> Result<(), Gone> {
        match tokio::time::timeout(SLOW, self.0.send(Bytes::from(text))).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }

    /// One event of JSON.
    pub async fn data(&self, value: &Value) -> Result<(), Gone> {
        self.raw(format!("data: {value}\n\n")).await
    }

    /// One event of JSON with a name.
    pub async fn named(&self, name: &str, value: &Value) -> Result<(), Gone> {
        self.raw(format!("event: {name}\ndata: {value}\n\n")).await
    }

    /// Returns when the client has left.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

struct Lines(Receiver<Bytes>);

impl Stream for Lines {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|line| line.map(Ok))
    }
}

/// A response whose body is what `write` writes.
pub(super) fn respond<F>(content_type: &'static str, write: impl FnOnce(Sink) -> F) -> Response
where
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (sender, receiver) = channel(AHEAD);
    let written = write(Sink(sender));
    // A client that left ends the writing; there is nobody to tell.
    tokio::spawn(async move { written.await.is_ok() });
    let mut response = Response::new(Body::from_stream(Lines(receiver)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
    response
}

/// The type of a body of events.
pub(super) const EVENT_STREAM: &str = "text/event-stream";
