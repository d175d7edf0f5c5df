//! llama.cpp's llama-bench beside us: found, run on the same file, its JSON read.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::sample::Test;

/// A llama-bench program.
pub struct Peer {
    program: PathBuf,
    /// Switches of the setting that is compared.
    switches: Vec<&'static str>,
    environment: Vec<(&'static str, &'static str)>,
}

/// The settings of llama.cpp that are tried: weights repacked at load or not, and its tiled
/// product on or off. The best of each test counts.
const SETTINGS: [(&str, &str); 4] = [("1", "1"), ("1", "0"), ("0", "1"), ("0", "0")];

impl Peer {
    /// The settings of the program at `path`, or found on PATH when it is empty.
    ///
    /// # Errors
    /// When there is none.
    pub fn settings(path: &Path) -> anyhow::Result<Vec<Peer>> {
        let program = if path.as_os_str().is_empty() { find_on_path()? } else { in_folder(path) };
        if !program.is_file() {
            bail!("there is no llama-bench at {}", program.display());
        }
        Ok(SETTINGS
            .iter()
            .map(|&(repack, tiled)| Peer {
                program: program.clone(),
                switches: vec!["--repack", repack],
                environment: vec![("GGML_CPU_TILED_MM", tiled)],
            })
            .collect())
    }

    /// The setting in words.
    pub fn name(&self) -> String {
        let environment: Vec<String> =
            self.environment.iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("{} {}", self.switches.join(" "), environment.join(" "))
    }

    /// One repetition of each test; nanoseconds in the order of `tests`.
    ///
    /// # Errors
    /// When the program fails or prints something else than its JSON.
    pub fn run(&self, model: &Path, tests: &[Test], threads: usize) -> anyhow::Result<Vec<u64>> {
        let (mut prompts, mut generations) = (Vec::new(), Vec::new());
        for test in tests {
            match test {
                Test::Prompt(n) => prompts.push(n.to_string()),
                Test::Generate(n) => generations.push(n.to_string()),
            }
        }
        let list = |values: Vec<String>| {
            if values.is_empty() { "0".to_owned() } else { values.join(",") }
        };
        let output = Command::new(&self.program)
            .arg("-m")
            .arg(model)
            .args(["-p", &list(prompts), "-n", &list(generations)])
            .args(["-t", &threads.to_string(), "-r", "1", "-o", "json"])
            .args(&self.switches)
            .envs(self.environment.iter().copied())
            .output()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let last = stderr.lines().last().unwrap_or("it printed nothing");
            bail!("{} failed ({}): {last}", self.program.display(), output.status);
        }
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{} printed no JSON", self.program.display()))?;
        let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
        tests
            .iter()
            .map(|&test| {
                let (n_prompt, n_gen) = match test {
                    Test::Prompt(n) => (n, 0),
                    Test::Generate(n) => (0, n),
                };
                let row = rows.iter().find(|row| {
                    row["n_prompt"].as_u64() == Some(n_prompt as u64)
                        && row["n_gen"].as_u64() == Some(n_gen as u64)
                });
                row.and_then(|row| row["avg_ns"].as_u64()).with_context(|| {
                    format!("{} reports nothing for {}", self.program.display(), test.name())
                })
            })
            .collect()
    }
}

/// A folder stands for the program in it.
fn in_folder(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("llama-bench") } else { path.to_owned() }
}

fn find_on_path() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("llama-bench"))
        .find(|program| program.is_file())
        .context("llama-bench is not on PATH; give it as --compare-llama-cpp=PATH")
}
