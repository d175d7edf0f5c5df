//! Repeated measurements of one test, with llama-bench's statistics and field names.

use serde::Serialize;

/// One test: a prompt of `n_prompt` tokens, or `n_gen` tokens generated one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Prompt(usize),
    Generate(usize),
}

impl Test {
    /// llama-bench's name of the test.
    pub fn name(self) -> String {
        match self {
            Test::Prompt(n) => format!("pp{n}"),
            Test::Generate(n) => format!("tg{n}"),
        }
    }

    /// Tokens that one repetition processes.
    pub fn tokens(self) -> usize {
        match self {
            Test::Prompt(n) | Test::Generate(n) => n,
        }
    }
}

/// What was measured of one test.
#[derive(Clone, Debug)]
pub struct Samples {
    pub test: Test,
    /// Nanoseconds of each repetition.
    pub ns: Vec<u64>,
}

impl Samples {
    /// No measurement yet.
    pub fn new(test: Test) -> Self {
        Samples { test, ns: Vec::new() }
    }

    /// Tokens per second of each repetition.
    pub fn rates(&self) -> Vec<f64> {
        self.ns.iter().map(|&ns| self.test.tokens() as f64 * 1e9 / (ns.max(1) as f64)).collect()
    }

    /// Mean and sample deviation of the tokens per second.
    pub fn mean_and_deviation(&self) -> (f64, f64) {
        moments(&self.rates())
    }

    /// Median of the tokens per second.
    pub fn median(&self) -> f64 {
        median(&self.rates())
    }
}

/// Mean and sample standard deviation; the deviation of fewer than two values is 0.
pub fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// What does not change from test to test.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    pub build_version: String,
    pub cpu_info: String,
    pub backends: String,
    pub model_filename: String,
    pub model_type: String,
    pub model_size: u64,
    pub model_n_params: u64,
    pub n_batch: usize,
    pub n_threads: usize,
    pub type_k: String,
    pub type_v: String,
}

/// One row of `-o json`, under llama-bench's field names.
#[derive(Clone, Debug, Serialize)]
pub struct Row<'a> {
    #[serde(flatten)]
    pub setup: &'a Setup,
    pub n_prompt: usize,
    pub n_gen: usize,
    pub avg_ns: u64,
    pub stddev_ns: u64,
    pub avg_ts: f64,
    pub stddev_ts: f64,
    pub samples_ns: &'a [u64],
    pub samples_ts: Vec<f64>,
}

impl<'a> Row<'a> {
    /// The row of one test.
    pub fn new(setup: &'a Setup, samples: &'a Samples) -> Self {
        let ns: Vec<f64> = samples.ns.iter().map(|&n| n as f64).collect();
        let (avg_ns, stddev_ns) = moments(&ns);
        let (avg_ts, stddev_ts) = samples.mean_and_deviation();
        let (n_prompt, n_gen) = match samples.test {
            Test::Prompt(n) => (n, 0),
            Test::Generate(n) => (0, n),
        };
        Row {
            setup,
            n_prompt,
            n_gen,
            avg_ns: avg_ns as u64,
            stddev_ns: stddev_ns as u64,
            avg_ts,
            stddev_ts,
            samples_ns: &samples.ns,
            samples_ts: samples.rates(),
        }
    }
}

/// The Markdown table in llama-bench's form.
pub fn table(setup: &Setup, all: &[Samples]) -> String {
    let header = ["model", "size", "params", "backend", "threads", "test", "t/s"];
    let mut rows = vec![header.map(str::to_owned)];
    for samples in all {
        let (mean, deviation) = samples.mean_and_deviation();
        rows.push([
            setup.model_type.clone(),
            format!("{:.2} MiB", setup.model_size as f64 / (1 << 20) as f64),
            format!("{:.2} M", setup.model_n_params as f64 / 1e6),
            setup.backends.clone(),
            setup.n_threads.to_string(),
            samples.test.name(),
            format!("{mean:.2} ± {deviation:.2}"),
        ]);
    }
    markdown(&rows, 1)
}

/// Rows of cells as a Markdown table, the first `left` columns aligned to the left.
pub fn markdown<const N: usize>(rows: &[[String; N]], left: usize) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        text.push('|');
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            if column < left {
                text.push_str(&format!(" {cell}{pad} |"));
            } else {
                text.push_str(&format!(" {pad}{cell} |"));
            }
        }
        text.push('\n');
        if i == 0 {
            text.push('|');
            for (column, width) in widths.into_iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                text.push_str(&if column < left {
                    format!(" {dashes}|")
                } else {
                    format!("{dashes}:|")
                });
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_small_samples() {
        assert_eq!(moments(&[]), (0.0, 0.0));
        assert_eq!(moments(&[3.0]), (3.0, 0.0));
        assert_eq!(moments(&[1.0, 3.0]), (2.0, 2f64.sqrt()));
        assert_eq!(median(&[5.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        let samples = Samples { test: Test::Prompt(512), ns: vec![1_000_000_000, 500_000_000] };
        assert_eq!(samples.rates(), [512.0, 1024.0]);
    }

    #[test]
    fn tables_line_up() {
        let rows = [["a", "t/s"].map(str::to_owned), ["long", "1.5"].map(str::to_owned)];
        assert_eq!(markdown(&rows, 1), "| a    | t/s |\n| -----|----:|\n| long | 1.5 |\n");
    }
}
