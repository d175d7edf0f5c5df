//! `/metrics`: counts and times in Prometheus' text form (exposition format 0.0.4).

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use super::Shared;
use super::error::ApiError;
use super::props::switched_off;
use crate::engine::{Event, Stats};

/// Upper bounds in seconds, from a millisecond to some minutes.
const BOUNDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Durations, counted by size.
#[derive(Default)]
struct Histogram {
    counts: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Histogram {
    fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let at = BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let mut sum = 0;
        let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&self.counts) {
            sum += count.load(Ordering::Relaxed);
            line(out, &format!("{name}_bucket{{le=\"{bound}\"}}"), sum);
        }
        let seconds = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        line(out, &format!("{name}_sum"), seconds);
        line(out, &format!("{name}_count"), sum);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string does not fail.
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name} {value}");
}

/// What the server counts by itself; the engine's [`Stats`] come beside it.
#[derive(Default)]
pub(super) struct Metrics {
    queue: Histogram,
    first_token: Histogram,
    between_tokens: Histogram,
    request: Histogram,
    /// Responses by status.
    statuses: Mutex<Vec<(u16, u64)>>,
}

/// The times of one request.
pub(super) struct Watch {
    start: Instant,
    last: Option<Instant>,
}

impl Watch {
    pub fn new() -> Watch {
        Watch { start: Instant::now(), last: None }
    }
}

impl Metrics {
    /// Notes what happened to a request.
    pub fn event(&self, watch: &mut Watch, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Started { .. } => self.queue.add(now - watch.start),
            Event::Token { .. } => {
                match watch.last {
                    None => self.first_token.add(now - watch.start),
                    Some(last) => self.between_tokens.add(now - last),
                }
                watch.last = Some(now);
            }
            Event::Done(_) | Event::Failed(_) => self.request.add(now - watch.start),
            Event::Progress { .. } | Event::Prompt(_) | Event::Embedding(_) => {}
        }
    }

    /// Notes a response.
    pub fn response(&self, status: StatusCode) {
        let mut all = self.statuses.lock().unwrap_or_else(|broken| broken.into_inner());
        match all.binary_search_by_key(&status.as_u16(), |(status, _)| *status) {
            Ok(at) => all[at].1 += 1,
            Err(at) => all.insert(at, (status.as_u16(), 1)),
        }
    }

    fn text(&self, stats: &Stats, cache_bytes: usize) -> String {
        let mut out = String::new();
        let o = &mut out;
        of_llama_cpp(o, stats);
        head(o, "aether_http_responses_total", "counter", "Responses by status.");
        for (status, count) in self.statuses.lock().unwrap_or_else(|b| b.into_inner()).iter() {
            line(o, &format!("aether_http_responses_total{{status=\"{status}\"}}"), count);
        }
        let counters = [
            ("aether_prompt_tokens_total", "Tokens of prompts.", stats.prompt_tokens),
            (
                "aether_cached_tokens_total",
                "Tokens of prompts that were in a cache.",
                stats.cached_tokens,
            ),
            ("aether_completion_tokens_total", "Tokens of answers.", stats.completion_tokens),
            (
                "aether_draft_tokens_total",
                "Tokens proposed by speculative decoding.",
                stats.drafted.tokens as u64,
            ),
            (
                "aether_draft_accepted_tokens_total",
                "Proposed tokens that were chosen.",
                stats.drafted.accepted as u64,
            ),
            ("aether_steps_total", "Calls of the model.", stats.steps),
            ("aether_requests_total", "Requests that ended.", stats.finished),
            ("aether_requests_broken_total", "Requests that failed or were left.", stats.broken),
        ];
        for (name, help, value) in counters {
            head(o, name, "counter", help);
            line(o, name, value);
        }
        let gauges = [
            ("aether_slots", "Requests that can be answered at the same time.", stats.slots),
            ("aether_slots_busy", "Requests that are being answered.", stats.running),
            ("aether_requests_waiting", "Requests that wait for a slot.", stats.waiting),
            (
                "aether_cache_tokens",
                "Tokens in the caches of running requests.",
                stats.cache_tokens,
            ),
            ("aether_cache_capacity_tokens", "Tokens that the caches hold.", stats.cache_capacity),
            ("aether_cache_bytes", "Bytes of the caches when they are full.", cache_bytes),
        ];
        for (name, help, value) in gauges {
            head(o, name, "gauge", help);
            line(o, name, value);
        }
        if let Some(bytes) = resident_bytes() {
            head(o, "process_resident_memory_bytes", "gauge", "Memory of the process.");
            line(o, "process_resident_memory_bytes", bytes);
        }
        self.queue.write(o, "aether_queue_seconds", "From a request to its slot.");
        self.first_token.write(
            o,
            "aether_first_token_seconds",
            "From a request to its first token.",
        );
        self.between_tokens.write(o, "aether_between_tokens_seconds", "From a token to the next.");
        self.request.write(o, "aether_request_seconds", "From a request to its end.");
        out
    }
}

/// The names of llama.cpp's server, for dashboards that know them.
fn of_llama_cpp(o: &mut String, stats: &Stats) {
    let rate = |n: u64, time: Duration| match time.is_zero() {
        true => 0.0,
        false => n as f64 / time.as_secs_f64(),
    };
    let fresh = stats.prompt_tokens - stats.cached_tokens;
    let drafted = stats.drafted;
    let all: [(&str, &str, &str, f64); 15] = [
        ("prompt_tokens_total", "counter", "Tokens of prompts that were computed.", fresh as f64),
        (
            "prompt_tokens_cached_total",
            "counter",
            "Tokens of prompts that were in a cache.",
            stats.cached_tokens as f64,
        ),
        ("prompt_seconds_total", "counter", "Time of prompts.", stats.prefill.as_secs_f64()),
        ("tokens_predicted_total", "counter", "Tokens of answers.", stats.completion_tokens as f64),
        (
            "tokens_predicted_seconds_total",
            "counter",
            "Time of answers after their first token.",
            stats.decode.as_secs_f64(),
        ),
        ("n_decode_total", "counter", "Calls of the model.", stats.steps as f64),
        ("n_tokens_max", "counter", "Most tokens of a prompt and answer.", stats.longest as f64),
        ("spec_decode_num_draft_tokens_total", "counter", "Tokens drafted.", drafted.tokens as f64),
        (
            "spec_decode_num_accepted_tokens_total",
            "counter",
            "Drafted tokens taken.",
            drafted.accepted as f64,
        ),
        ("spec_decode_num_drafts_total", "counter", "Drafts.", drafted.drafts as f64),
        (
            "prompt_tokens_seconds",
            "gauge",
            "Tokens of prompts per second.",
            rate(fresh, stats.prefill),
        ),
        (
            "predicted_tokens_seconds",
            "gauge",
            "Tokens of answers per second.",
            rate(stats.completion_tokens, stats.decode),
        ),
        ("requests_processing", "gauge", "Requests in slots.", stats.running as f64),
        ("requests_deferred", "gauge", "Requests that wait for a slot.", stats.waiting as f64),
        (
            "n_busy_slots_per_decode",
            "gauge",
            "Slots in a call of the model.",
            stats.busy_slots as f64 / stats.steps.max(1) as f64,
        ),
    ];
    for (name, kind, help, value) in all {
        let name = format!("llamacpp:{name}");
        head(o, &name, kind, help);
        line(o, &name, value);
    }
}

/// Where the system tells it.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = rest.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): Shared) -> Result<Response, ApiError> {
    if !app.options.metrics_endpoint {
        return Err(switched_off("/metrics"));
    }
    let text = app.metrics.text(&app.service.stats(), app.model().cache_bytes());
    let mut response = Response::new(Body::from(text));
    let plain = HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response.headers_mut().insert("process-start-time-unix", HeaderValue::from(app.started));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let histogram = Histogram::default();
        for ms in [1, 2, 2, 40, 400_000] {
            histogram.add(Duration::from_millis(ms));
        }
        let mut out = String::new();
        histogram.write(&mut out, "x", "help");
        for want in [
            "le=\"0.001\"} 1\n",
            "le=\"0.0025\"} 3\n",
            "le=\"0.05\"} 4\n",
            "le=\"300\"} 4\n",
            "le=\"+Inf\"} 5\n",
            "x_sum 400.045\n",
            "x_count 5\n",
        ] {
            assert!(out.contains(want), "{want} is not in {out}");
        }
    }
}
