//! From `-m` to a model file, and from `-p` or `-f` to a text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aether_llm::arch::Adapter;
use aether_llm::gguf::{self, Gguf};
use aether_llm::hub::{self, Catalogue, PullOptions};
use anyhow::{Context, bail};
use clap::Args;

use crate::progress::Reporter;

/// Which model to use.
#[derive(Clone, Debug, Default, Args)]
pub struct ModelArg {
    /// A GGUF file, or the name of a model (`aether models`); pulled at first use
    #[arg(short, long, value_name = "FILE|NAME")]
    pub model: Option<String>,
    /// Check the SHA-256 of the file before using it: against the catalogue's for named models
    #[arg(long)]
    pub verify: bool,
}

impl ModelArg {
    /// The path of the model's file, after a download when it is not there.
    ///
    /// # Errors
    /// When there is no such file or name, the download fails, or the digest is wrong.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        let catalogue = Catalogue::load(true)?;
        let mut reporter = Reporter::new();
        let path =
            hub::locate(self.model.as_deref(), &catalogue, &PullOptions::from_env(), &mut |p| {
                reporter.show(p);
            })?;
        drop(reporter);
        if self.verify {
            self.check_digest(&catalogue, &path)?;
        }
        Ok(path)
    }

    fn check_digest(&self, catalogue: &Catalogue, path: &Path) -> anyhow::Result<()> {
        let [path] = &gguf::part_paths(path)[..] else {
            for path in gguf::part_paths(path) {
                let digest = gguf::sha256(&path, |_, _| {})?;
                crate::output::note(&format!("sha256 {digest}  {}", path.display()));
            }
            return Ok(());
        };
        let digest = gguf::sha256(path, |_, _| {})?;
        let name = self.model.as_deref().unwrap_or(hub::DEFAULT_MODEL);
        let expected = catalogue.find(name).filter(|_| !Path::new(name).exists());
        match expected {
            Some(entry) if entry.sha256 != digest => bail!(
                "{} has SHA-256 {digest}, the catalogue says {}; pull it again with `aether pull \
                 {name} --force`",
                path.display(),
                entry.sha256
            ),
            _ => crate::output::note(&format!("sha256 {digest}  {}", path.display())),
        }
        Ok(())
    }

    /// Opens the model's file.
    ///
    /// # Errors
    /// As [`ModelArg::path`], and when the file is no valid GGUF file.
    pub fn open(&self) -> anyhow::Result<Gguf> {
        Ok(Gguf::open(self.path()?)?)
    }
}

/// LoRA adapters beside the model.
#[derive(Clone, Debug, Default, Args)]
pub struct LoraArgs {
    /// A LoRA adapter (GGUF); may be given several times
    #[arg(long, value_name = "FILE")]
    pub lora: Vec<PathBuf>,
    /// The same, counting SCALE times
    #[arg(long, value_name = "FILE:SCALE", value_parser = scaled)]
    pub lora_scaled: Vec<(PathBuf, f32)>,
}

/// `FILE:SCALE`; the file's name may have colons.
fn scaled(text: &str) -> Result<(PathBuf, f32), String> {
    let (file, scale) = text.rsplit_once(':').ok_or("it should be FILE:SCALE")?;
    match scale.parse::<f32>() {
        Ok(scale) if scale.is_finite() && !file.is_empty() => Ok((file.into(), scale)),
        _ => Err(format!("{scale:?} is not a number; it should be FILE:SCALE")),
    }
}

impl LoraArgs {
    /// Opens the adapters; `detached` as in [`Gguf::open_detached`].
    ///
    /// # Errors
    /// When a file is no adapter.
    pub fn open(&self, detached: bool) -> anyhow::Result<Vec<Arc<Adapter>>> {
        let whole = self.lora.iter().map(|path| (path, 1.0));
        let scaled = self.lora_scaled.iter().map(|(path, scale)| (path, *scale));
        whole
            .chain(scaled)
            .map(|(path, scale)| Ok(Arc::new(Adapter::open(path, scale, detached)?)))
            .collect()
    }
}

/// Reads a whole file.
///
/// # Errors
/// When it cannot be read; the message names it.
pub fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
