//! `aether bench --parallel`: many requests at once, as the server runs them.

use std::path::Path;
use std::time::{Duration, Instant};

use aether_llm::engine::{Event, LoadOptions, Model, Request, Service, ServiceOptions};
use aether_llm::sample::SamplerOptions;
use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{BenchArgs, Format};
use crate::output;

/// What so many requests at a time gave.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    pub parallel: usize,
    pub n_prompt: usize,
    pub n_gen: usize,
    pub requests: usize,
    /// New tokens per second, of all together.
    pub tokens_per_second: f64,
    /// Milliseconds from a request to its first token: the middle, and the 99th of a hundred.
    pub first_ms_p50: f64,
    pub first_ms_p99: f64,
    /// Milliseconds between tokens, in the middle.
    pub between_ms_p50: f64,
}

/// Measures each number of requests at a time and prints a row for each.
///
/// # Errors
/// When the model cannot be loaded, or a request fails.
pub fn run(args: &BenchArgs, path: &Path) -> anyhow::Result<()> {
    let (n_prompt, n_gen) = match (args.n_prompt.as_slice(), args.n_gen.as_slice()) {
        (&[p], &[g]) if p > 0 && g > 0 => (p, g),
        _ => bail!("--parallel wants one length of the prompt and one of the answer"),
    };
    let most = args.parallel.iter().copied().max().unwrap_or(1);
    if most == 0 || most > 256 || args.parallel.contains(&0) {
        bail!("--parallel takes from 1 to 256 requests at a time");
    }
    let options = LoadOptions {
        context: n_prompt + n_gen,
        batch: args.batch.max(1),
        slots: most,
        rows: most,
        threads: args.threads,
        gpu: args.device.open()?,
        placement: args.device.placement(),
        cache_types: args.cache.types(),
        adapters: args.lora.open(false)?,
        ..LoadOptions::default()
    };
    let service = Service::start(Model::load(path, &options)?, ServiceOptions::default())?;
    // Everything is touched once.
    measure(&service, (1, 1), (n_prompt.min(64), 4), 0)?;
    let mut loads = Vec::new();
    for (i, &parallel) in args.parallel.iter().enumerate() {
        let salt = 1 + i * args.repetitions * most;
        loads.push(measure(&service, (parallel, args.repetitions), (n_prompt, n_gen), salt)?);
    }
    match args.output {
        Format::Json => Ok(output::print(&format!("{}\n", serde_json::to_string_pretty(&loads)?))?),
        Format::Md => Ok(output::print(&markdown(&loads))?),
    }
}

/// `parallel` threads, each with one request after another. No prompt begins as another does.
fn measure(
    service: &Service,
    (parallel, repetitions): (usize, usize),
    (n_prompt, n_gen): (usize, usize),
    salt: usize,
) -> anyhow::Result<Load> {
    let vocab = service.model().vocab_len() as u64;
    let start = Instant::now();
    let times: Vec<Times> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..parallel)
            .map(|client| {
                scope.spawn(move || {
                    let mut times = Times::default();
                    for turn in 0..repetitions {
                        let id = (salt + client * repetitions + turn) as u64;
                        let token = |i: usize| {
                            let mixed = (id << 20 | i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                            ((mixed >> 32) % vocab.max(1)) as u32
                        };
                        let prompt = (0..n_prompt).map(token).collect();
                        let request = Request {
                            sampler: SamplerOptions { seed: id, ..SamplerOptions::default() },
                            ignore_eos: true,
                            ..Request::new(prompt, n_gen)
                        };
                        times.ask(service, request)?;
                    }
                    Ok(times)
                })
            })
            .collect();
        let joined = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<Times>>| {
            thread.join().unwrap_or_else(|_| bail!("a client's thread panicked"))
        };
        threads.into_iter().map(joined).collect::<anyhow::Result<_>>()
    })?;
    let elapsed = start.elapsed();
    let sorted = |of: fn(&Times) -> &Vec<Duration>| {
        let mut all: Vec<Duration> = times.iter().flat_map(|t| of(t).iter().copied()).collect();
        all.sort_unstable();
        all
    };
    let (first, between) = (sorted(|t| &t.first), sorted(|t| &t.between));
    let tokens = first.len() + between.len();
    Ok(Load {
        parallel,
        n_prompt,
        n_gen,
        requests: first.len(),
        tokens_per_second: tokens as f64 / elapsed.as_secs_f64().max(1e-9),
        first_ms_p50: percentile(&first, 50),
        first_ms_p99: percentile(&first, 99),
        between_ms_p50: percentile(&between, 50),
    })
}

#[derive(Default)]
struct Times {
    first: Vec<Duration>,
    between: Vec<Duration>,
}

impl Times {
    fn ask(&mut self, service: &Service, request: Request) -> anyhow::Result<()> {
        let mut last = Instant::now();
        let mut is_first = true;
        let mut events = service.submit(request)?;
        while let Some(event) = events.blocking_recv() {
            match event {
                Event::Token { .. } => {
                    let now = Instant::now();
                    let times = if is_first { &mut self.first } else { &mut self.between };
                    times.push(now - last);
                    (last, is_first) = (now, false);
                }
                Event::Failed(failure) => return Err(failure).context("a request failed"),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Milliseconds; of nothing 0. The list is sorted.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

fn markdown(loads: &[Load]) -> String {
    let mut text =
        "| parallel | requests | prompt | new | t/s of all | first p50 ms | first p99 ms \
                    | between p50 ms |\n|---:|---:|---:|---:|---:|---:|---:|---:|\n"
            .to_owned();
    for load in loads {
        text += &format!(
            "| {} | {} | {} | {} | {:.1} | {:.0} | {:.0} | {:.1} |\n",
            load.parallel,
            load.requests,
            load.n_prompt,
            load.n_gen,
            load.tokens_per_second,
            load.first_ms_p50,
            load.first_ms_p99,
            load.between_ms_p50,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted() {
        let ms: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&ms, 50), 51.0);
        assert_eq!(percentile(&ms, 99), 100.0);
        assert_eq!((percentile(&ms[..1], 99), percentile(&[], 50)), (1.0, 0.0));
    }
}
