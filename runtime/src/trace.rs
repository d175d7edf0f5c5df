//! What ran when, as a trace that Perfetto and Chrome open.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

/// One thing that ran.
#[derive(Clone, Debug)]
pub struct Span {
    /// The path of calls and the op, such as `@layer#3/matmul_add %ffn`.
    pub label: Arc<str>,
    /// The kernel.
    pub kernel: &'static str,
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

    /// Writes the trace event format (JSON): a thread for ops, one for the calls around them.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
        let mut first = true;
        let mut event = |out: &mut dyn Write,
                         name: &str,
                         tid: u32,
                         at: f64,
                         long: f64,
                         kind: &str| {
            let comma = if std::mem::take(&mut first) { "" } else { ",\n" };
            let name = serde_json::Value::from(name);
            write!(
                out,
                "{comma}{{\"name\":{name},\"cat\":\"{kind}\",\"ph\":\"X\",\"pid\":1,\"tid\":{tid},\
                 \"ts\":{at:.3},\"dur\":{long:.3}}}"
            )
        };
        let micros = |d: Duration| d.as_secs_f64() * 1e6;
        let mut base = 0.0;
        for run in &self.runs {
            // The call that the last op belongs to, and when it began.
            let mut call: Option<(&str, f64)> = None;
            let mut end = base;
            for span in run {
                let at = base + micros(span.start);
                let (path, op) = span.label.rsplit_once('/').unwrap_or(("", &span.label));
                if let Some((name, since)) = call.filter(|(name, _)| *name != path) {
                    if !name.is_empty() {
                        event(out, name, 1, since, end - since, "call")?;
                    }
                    call = None;
                }
                call.get_or_insert((path, at));
                event(out, &format!("{op} [{}]", span.kernel), 2, at, micros(span.duration), "op")?;
                end = at + micros(span.duration);
            }
            if let Some((name, since)) = call.filter(|(name, _)| !name.is_empty()) {
                event(out, name, 1, since, end - since, "call")?;
            }
            base = end + 10.0;
        }
        writeln!(out, "\n]}}")
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
        let names: Vec<&str> = events.iter().map(|e| e["name"].as_str().unwrap()).collect();
        let want = ["gather [map]", "add \"x\" [map]", "mul [map]", "@layer#1", "gather [map]"];
        assert_eq!(names, want);
        assert_eq!((events[3]["ts"].as_f64(), events[3]["dur"].as_f64()), (Some(10.0), Some(15.0)));
        assert_eq!(trace.by_kernel(), [("map", 4, Duration::from_micros(20))]);
    }
}
