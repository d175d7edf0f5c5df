//! Connections: how many, how long, and how they end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::{App, router};

/// How to listen.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Most connections at a time; further ones wait to be accepted.
    pub connections: usize,
    /// How long the head of a request may take, and how long an idle connection stays.
    pub head_time: Duration,
    /// How long running requests may go on once the server is told to end.
    pub grace: Duration,
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions {
            connections: 1024,
            head_time: Duration::from_secs(10),
            grace: Duration::from_secs(30),
        }
    }
}

/// Serves until `end` resolves; then takes no more requests (`/ready` says so), lets the running
/// ones go on for the grace time, and closes what is left.
///
/// A connection that fails concerns only itself; when none can be accepted it is tried again.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    options: ListenOptions,
    end: impl Future<Output = ()>,
) {
    let service = TowerToHyperService::new(router(app.clone()));
    let places = Arc::new(Semaphore::new(options.connections.max(1)));
    let (tell, told) = watch::channel(false);
    let mut end = std::pin::pin!(end);
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut end => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file handles, or a client that left already.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Tokens should leave at once; a socket that cannot do it still works.
        let _ = stream.set_nodelay(true);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(options.head_time)
            .max_buf_size(64 << 10)
            // As most servers write them: some programs compare names with their case.
            .title_case_headers(true)
            .serve_connection(TokioIo::new(stream), service.clone());
        let mut told = told.clone();
        tokio::spawn(async move {
            let _place = place;
            let mut connection = std::pin::pin!(connection);
            let ending = async {
                // A sender that is gone means the same.
                let _ = told.wait_for(|ending| *ending).await;
            };
            let outcome = tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = ending => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    drain(&app, &listener, service, &tell, options).await;
}

/// As [`serve`], on this thread, for programs without a runtime of their own: until `end` tells, or
/// its other end is gone.
///
/// # Errors
/// When the listener cannot be used, or a runtime or thread cannot be had.
pub fn serve_here(
    app: Arc<App>,
    listener: std::net::TcpListener,
    options: ListenOptions,
    end: std::sync::mpsc::Receiver<()>,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tell, told) = watch::channel(false);
    std::thread::Builder::new().name("aether-end".to_owned()).spawn(move || {
        // A sender that is gone means the same.
        let _ = end.recv();
        let _ = tell.send(true);
    })?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let mut told = told;
        let end = async { drop(told.wait_for(|end| *end).await) };
        serve(app, listener, options, end).await;
        Ok(())
    })
}

/// Lets running requests end. Probes are still answered meanwhile.
async fn drain(
    app: &App,
    listener: &TcpListener,
    service: TowerToHyperService<axum::Router>,
    tell: &watch::Sender<bool>,
    options: ListenOptions,
) {
    app.service.drain();
    let until = Instant::now() + options.grace;
    while app.service.in_flight() > 0 && Instant::now() < until {
        let tick = Duration::from_millis(50);
        let Ok(Ok((stream, _))) = tokio::time::timeout(tick, listener.accept()).await else {
            continue;
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(options.head_time)
            .keep_alive(false)
            .title_case_headers(true)
            .serve_connection(TokioIo::new(stream), service.clone());
        tokio::spawn(async move { connection.await.is_ok() });
    }
    // Waiting ones are told to end with what they are writing.
    let _ = tell.send(true);
    let left = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
    tokio::time::sleep(left.min(Duration::from_millis(200))).await;
}
