//! Architectures: from a GGUF file to an IR module.
//!
//! A model is one function `@main` that calls a layer function once per block. Blocks that compute
//! the same with weights of the same types share their layer function; another one (`@layer.1`, …) is added
//! at the first block that differs. Weights are constants that name ranges of the file, so the
//! module is small, prints as text, and can be edited and run again.
//!
//! ```text
//! func @main(%tokens: tensor<[s]xi32>, %past: tensor<i32>, %rows: tensor<[r]xi32>,
//!            donate %k0: tensor<CTXxKVxDxf16>, donate %v0: …, …)
//!     -> (tensor<[r]xVOCABxf32>, tensor<CTXxKVxDxf16>, …)
//! ```
//!
//! `tokens` are the next `s` tokens after `past` earlier ones, `rows` the positions within them
//! whose logits are wanted; the key and value caches are donated and come back extended.
//!
//! With [`Bounds::slots`] the same function serves many sequences at once: the caches get an axis of
//! slots in front, and in place of `past` come `%positions: tensor<[s]xi32>, %slots:
//! tensor<[s]xi32>`, the position and the slot of every token. The tokens of a slot stand together.
//! After the caches it also returns what the logits are computed from, for embeddings.
//!
//! [`best_tokens`] gives a module another output head: some best tokens in place of all logits.
//!
//! An architecture is one file here with an [`Architecture`], listed in [`ARCHITECTURES`]: it reads
//! its metadata and names its weights. The body of a layer is the same for all (`decoder`).

use std::sync::Arc;

use aether_ir::{DType, Module};

use crate::gguf::{Gguf, Optional};

mod attention;
mod blocks;
mod build;
mod decoder;
mod deepseek2;
mod error;
mod experts;
mod gemma;
mod head;
mod hparams;
mod latent;
mod llama;
mod lora;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;
mod weights;

pub use blocks::LayerBuilder;
pub use error::ArchError;
pub use experts::{Experts, Gating};
pub use head::best_tokens;
pub use hparams::{Block, Hparams};
pub use latent::Latent;
pub use lora::Adapter;
pub use rope::{Rope, RopeMode, RopeScaling};
pub use weights::{Spec, Weights, Within};

use hparams::Keys;

/// Name of the function that a model runs.
pub const MAIN: &str = "main";

/// One model architecture.
pub trait Architecture: Sync {
    /// The value of `general.architecture`.
    fn name(&self) -> &'static str;

    /// The sizes and constants, from the metadata.
    ///
    /// # Errors
    /// When a key is missing, of the wrong type or out of range.
    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError>;

    /// The weights of one block, in the order of the layer function's parameters.
    fn layer_weights(&self, hparams: &Hparams, block: &Block) -> Vec<Spec> {
        decoder::weights(hparams, block)
    }
}

/// Every architecture that can be run.
pub static ARCHITECTURES: &[&dyn Architecture] = &[
    &deepseek2::DeepSeek2,
    &gemma::Gemma,
    &gemma::Gemma2,
    &gemma::Gemma3,
    &llama::Llama,
    &phi3::Phi3,
    &qwen2::Qwen2,
    &qwen2::Qwen2Moe,
    &qwen3::Qwen3,
    &qwen3::Qwen3Moe,
];

/// Upper bounds of one call, fixed when the module is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Tokens that the caches hold.
    pub context: usize,
    /// Tokens per call.
    pub batch: usize,
    /// Rows of logits per call.
    pub rows: usize,
    /// Sequences that have caches; `None` for the form of one sequence.
    pub slots: Option<usize>,
    /// Element types of the caches of keys and of values: floats, or blocks of 32 elements.
    pub cache_types: (DType, DType),
}

/// A model as IR.
#[derive(Clone, Debug)]
pub struct ModelIr {
    pub module: Module,
    pub hparams: Hparams,
}

/// The architecture that a file names.
///
/// # Errors
/// When the key is missing or no architecture of that name is known, and when the file is in memory and
/// a part of a model, or something else than a model.
pub fn of(gguf: &Gguf) -> Result<&'static dyn Architecture, ArchError> {
    let path = || gguf.path().to_owned();
    let count = gguf.get_u64("split.count").optional()?;
    if let Some(count) = count.filter(|&count| count > 1 && gguf.parts().len() == 1) {
        return Err(ArchError::Part { path: path(), count });
    }
    if let Some(kind) = gguf.get_str("general.type").optional()?.filter(|&kind| kind != "model") {
        return Err(ArchError::NotAModel { path: path(), kind: kind.to_owned() });
    }
    let name = gguf.get_str("general.architecture")?;
    ARCHITECTURES.iter().copied().find(|a| a.name() == name).ok_or_else(|| ArchError::Unsupported {
        path: path(),
        name: name.to_owned(),
        supported: ARCHITECTURES.iter().map(|a| a.name()).collect(),
    })
}

/// The model's module, with weights that name ranges of `file`: the path under which the text of
/// the module will find the GGUF again. The products of adapters are added to those of its weights.
///
/// # Errors
/// When the architecture is unknown, a key or tensor is missing or does not fit, or an adapter is
/// made for another model.
pub fn build(
    gguf: &Gguf,
    file: &str,
    bounds: &Bounds,
    adapters: &[Arc<Adapter>],
) -> Result<ModelIr, ArchError> {
    let arch = of(gguf)?;
    let hparams = arch.hparams(gguf)?;
    let adapters = lora::Adapters::new(adapters, arch.name())?;
    let module = build::module(arch, gguf, file, (&hparams, bounds), adapters)?;
    Ok(ModelIr { module, hparams })
}

/// The context length that the model was trained with, when the file says it.
///
/// # Errors
/// When the key has the wrong type.
pub fn trained_context(gguf: &Gguf) -> Result<Option<usize>, ArchError> {
    let name = gguf.get_str("general.architecture")?;
    Ok(gguf.get_u32(&format!("{name}.context_length")).optional()?.map(|n| n as usize))
}

/// A name out of the file that can be an identifier of the text form: letters, digits, `_`, `.`.
fn identifier(name: &str, fallback: &str) -> Arc<str> {
    let mut out: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .take(64)
        .collect();
    if !out.starts_with(|c: char| c.is_ascii_alphabetic()) {
        out.insert_str(0, fallback);
    }
    out.into()
}
