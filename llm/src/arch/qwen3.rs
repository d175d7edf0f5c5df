//! Qwen3 (Yang et al. 2025): LLaMA's form with norms of each head's query and key, and GPT-NeoX's
//! rotation; with experts too.

use super::decoder::{self, head_norms};
use super::{ArchError, Architecture, Block, Hparams, RopeMode, Spec};
use crate::gguf::Gguf;

/// `general.architecture = "qwen3"`.
pub struct Qwen3;

/// `general.architecture = "qwen3moe"`.
pub struct Qwen3Moe;

impl Architecture for Qwen3 {
    fn name(&self) -> &'static str {
        "qwen3"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        Hparams::read(gguf, self.name(), RopeMode::Neox)?.without_experts(gguf)
    }

    fn layer_weights(&self, hp: &Hparams, block: &Block) -> Vec<Spec> {
        decoder::weights(hp, block).into_iter().chain(head_norms(hp)).collect()
    }
}

impl Architecture for Qwen3Moe {
    fn name(&self) -> &'static str {
        "qwen3moe"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        let mut hp = Hparams::read(gguf, self.name(), RopeMode::Neox)?.with_experts(gguf)?;
        if let Some(experts) = &mut hp.experts {
            experts.normed = true;
        }
        Ok(hp)
    }

    fn layer_weights(&self, hp: &Hparams, block: &Block) -> Vec<Spec> {
        decoder::weights(hp, block).into_iter().chain(head_norms(hp)).collect()
    }
}
