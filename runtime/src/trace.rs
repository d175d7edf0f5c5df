//! What ran when, as a trace that Perfetto and Chrome open.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

/// Who was busy with something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lane {
    /// Kernels.
    #[default]
    Ops,
    /// Copies of weights by the device.
    Copies,
    /// Reading and packing of weights by the host, and what it sends and takes in a run.
    Host,
}

/// Bytes that crossed between host and GPU in a run: arguments and weights that pass through, and
/// results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub up: u64,
    pub down: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        self.up += other.up;
        self.down += other.down;
    }
}

/// One thing that ran.
#[derive(Clone, Debug)]
pub struct Span {
    /// The path of calls and the op, such as `@layer#3/matmul_add %ffn`.
    pub label: Arc<str>,
    /// The kernel.
    pub kernel: &'static str,
    pub lane: Lane,
    /// Bytes that were moved; 0 where they are not counted.
    pub bytes: u64,
    /// From the beginning of its run.
    pub start: Duration,
    pub duration: Duration,
}

/// Spans of several runs, one after another.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    runs: Vec<Vec<Span>>,
}

impl Trace {
    /// Appends the spans of a run.
    pub fn push(&mut self, spans: Vec<Span>) {
        self.runs.push(spans);
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.runs.iter().all(Vec::is_empty)
    }

    /// Kernels by the time that they took in all runs, the greatest first: name, number, time.
    pub fn by_kernel(&self) -> Vec<(&'static str, usize, Duration)> {
        let mut sums: indexmap::IndexMap<&'static str, (usize, Duration)> =
            indexmap::IndexMap::new();
        for span in self.runs.iter().flatten() {
            let sum = sums.entry(span.kernel).or_default();
            sum.0 += 1;
            sum.1 += span.duration;
        }
        let mut all: Vec<_> = sums.into_iter().map(|(name, (n, time))| (name, n, time)).collect();
        all.sort_by_key(|(_, _, time)| std::cmp::Reverse(*time));
        all
    }

    /// Writes the trace event format (JSON): a thread for ops, one for the calls around them, one
    /// each for copies of weights and the host's part in them.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
        let mut first = true;
        let mut event = |out: &mut dyn Write, e: Event| {
            let comma = if std::mem::take(&mut first) { "" } else { ",\n" };
            let name = serde_json::Value::from(e.name);
            let Event { kind, tid, at, long, bytes, .. } = e;
            write!(
                out,
                "{comma}{{\"name\":{name},\"cat\":\"{kind}\",\"ph\":\"X\",\"pid\":1,\"tid\":{tid},\
                 \"ts\":{at:.3},\"dur\":{long:.3},\"args\":{{\"bytes\":{bytes}}}}}"
            )
        };
        let micros = |d: Duration| d.as_secs_f64() * 1e6;
        let mut base = 0.0;
        for run in &self.runs {
            // The call that the last op belongs to, and when it began.
            let mut call: Option<(&str, f64)> = None;
            let (mut end, mut latest) = (base, base);
            for span in run {
                let (at, long) = (base + micros(span.start), micros(span.duration));
                latest = f64::max(latest, at + long);
                let (path, op) = span.label.rsplit_once('/').unwrap_or(("", &span.label));
                let (tid, kind) = match span.lane {
                    Lane::Ops => (2, "op"),
                    Lane::Copies => (3, "copy"),
                    Lane::Host => (4, "host"),
                };
                if span.lane == Lane::Ops {
                    if let Some((name, since)) = call.filter(|(name, _)| *name != path) {
                        if !name.is_empty() {
                            event(out, Event::call(name, since, end))?;
                        }
                        call = None;
                    }
                    call.get_or_insert((path, at));
                    end = at + long;
                }
                let name = format!("{op} [{}]", span.kernel);
                event(out, Event { name: &name, kind, tid, at, long, bytes: span.bytes })?;
            }
            if let Some((name, since)) = call.filter(|(name, _)| !name.is_empty()) {
                event(out, Event::call(name, since, end))?;
            }
            base = latest + 10.0;
        }
        let mut comma = if self.is_empty() { "" } else { ",\n" };
        for (tid, name) in [(1, "calls"), (2, "ops"), (3, "copies of weights"), (4, "host")] {
            write!(
                out,
                "{comma}{{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":{tid},\
                 \"args\":{{\"name\":\"{name}\"}}}}"
            )?;
            comma = ",\n";
        }
        writeln!(out, "\n]}}")
    }
}

/// An event of the trace format, times in microseconds.
struct Event<'a> {
    name: &'a str,
    kind: &'static str,
    tid: u32,
    at: f64,
    long: f64,
    bytes: u64,
}

impl Event<'_> {
    fn call(name: &str, since: f64, end: f64) -> Event<'_> {
        Event { name, kind: "call", tid: 1, at: since, long: end - since, bytes: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_json_with_calls_around_ops() {
        let span = |label: &str, start| Span {
            label: label.into(),
            kernel: "map",
            lane: Lane::Ops,
            bytes: 0,
            start: Duration::from_micros(start),
            duration: Duration::from_micros(5),
        };
        let mut trace = Trace::default();
        trace.push(vec![
            span("gather", 0),
            span("@layer#1/add \"x\"", 10),
            span("@layer#1/mul", 20),
        ]);
        trace.push(vec![span("gather", 0)]);
        let mut text = Vec::new();
        trace.write(&mut text).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        let (events, threads) = events.split_at(events.len() - 4);
        assert!(threads.iter().all(|e| e["ph"] == "M"));
        let names: Vec<&str> = events.iter().map(|e| e["name"].as_str().unwrap()).collect();
        let want = ["gather [map]", "add \"x\" [map]", "mul [map]", "@layer#1", "gather [map]"];
        assert_eq!(names, want);
        assert_eq!((events[3]["ts"].as_f64(), events[3]["dur"].as_f64()), (Some(10.0), Some(15.0)));
        assert_eq!(trace.by_kernel(), [("map", 4, Duration::from_micros(20))]);
    }
}
