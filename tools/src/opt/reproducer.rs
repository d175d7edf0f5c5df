//! What is left behind when a pass fails: a file that fails in the same way when it is run alone.

use std::fmt::Write as _;
use std::path::PathBuf;

use aether_ir::text::print_module;
use aether_passes::StepFailure;

use sha2::{Digest, Sha256};

use super::{Cli, RUN};

/// The failure as an error, with the path of the reproducer that was written. A file that is run
/// by its own header (`alone`) is a reproducer already.
pub fn report(failure: &StepFailure, cli: &Cli, alone: bool) -> anyhow::Error {
    if alone {
        return anyhow::anyhow!("{failure}");
    }
    let text = text(failure, cli);
    match write(&text, failure, cli) {
        Ok(path) => {
            anyhow::anyhow!("{failure}\nreproducer: {} (run `aether-opt {0}`)", path.display())
        }
        Err(e) => anyhow::anyhow!("{failure}\nno reproducer could be written: {e}"),
    }
}

/// The failing step and the module it was given.
fn text(failure: &StepFailure, cli: &Cli) -> String {
    let mut text = String::new();
    for line in failure.error.to_string().lines().take(1) {
        let _ = writeln!(text, "// {line}");
    }
    let _ = write!(text, "{RUN} --pipeline \"{}\"", failure.step);
    for name in &cli.disable_rule {
        let _ = write!(text, " --disable-rule {name}");
    }
    if !cli.verify_each {
        text.push_str(" --verify-each=false");
    }
    text.push_str(&cli.target_flags());
    let _ = write!(text, "\n\n{}", print_module(&failure.before));
    text
}

/// Writes under a name that tells the pass and the content apart from others.
fn write(text: &str, failure: &StepFailure, cli: &Cli) -> std::io::Result<PathBuf> {
    let pass: String = failure.step.chars().take_while(|c| *c != '{').collect();
    let digest = Sha256::digest(text.as_bytes());
    let path = cli.reproducer_dir.join(format!(
        "aether-{pass}-{:02x}{:02x}{:02x}{:02x}.aet",
        digest[0], digest[1], digest[2], digest[3]
    ));
    std::fs::create_dir_all(&cli.reproducer_dir)?;
    std::fs::write(&path, text)?;
    Ok(path)
}
