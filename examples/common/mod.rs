//! What the examples share: arguments, a progress bar, a curve of text.

use std::collections::BTreeMap;
use std::str::FromStr;

use indicatif::{ProgressBar, ProgressStyle};

/// `--name value` pairs of the command line.
pub struct Args(BTreeMap<String, String>);

impl Args {
    /// Reads the command line, which may hold these names.
    pub fn parse(known: &[&str]) -> Result<Args, String> {
        let mut given = BTreeMap::new();
        let mut words = std::env::args().skip(1);
        while let Some(name) = words.next() {
            if !known.contains(&name.as_str()) {
                return Err(format!("unknown argument `{name}`; known: {}", known.join(", ")));
            }
            let value = words.next().ok_or_else(|| format!("`{name}` needs a value"))?;
            given.insert(name, value);
        }
        Ok(Args(given))
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.parse().map_err(|_| format!("`{name}` takes a number, found `{text}`"))
    }
}

/// A bar on standard error, for so many steps.
pub fn progress(steps: usize) -> ProgressBar {
    let style = "{bar:32} {pos}/{len} steps, {eta} left, {msg}";
    let bar = ProgressBar::new(steps as u64);
    bar.set_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()));
    bar
}

/// A loss curve in one line: means of 48 parts, and the first and last of them in numbers.
pub fn curve(losses: &[f32]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let size = losses.len().div_ceil(48).max(1);
    let means: Vec<f32> =
        losses.chunks(size).map(|part| part.iter().sum::<f32>() / part.len() as f32).collect();
    let (Some(first), Some(last)) = (means.first(), means.last()) else { return String::new() };
    let top = means.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let bar = |m: &f32| BARS[((m / top * 8.0) as usize).min(7)];
    let line: String = means.iter().map(bar).collect();
    format!("{first:.3} {line} {last:.3}")
}
