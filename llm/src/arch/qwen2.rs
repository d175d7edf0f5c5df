//! Qwen2 and Qwen2.5 (Yang et al. 2024): LLaMA's form with biases on q, k and v, and GPT-NeoX's
//! rotation; with experts and one that every token goes through in part, Qwen1.5-MoE and Qwen2-57B.

use super::experts::SHARED_GATE;
use super::{ArchError, Architecture, Block, Hparams, Keys, RopeMode, Spec, decoder};
use crate::gguf::Gguf;

/// `general.architecture = "qwen2"`.
pub struct Qwen2;

/// `general.architecture = "qwen2moe"`.
pub struct Qwen2Moe;

impl Architecture for Qwen2 {
    fn name(&self) -> &'static str {
        "qwen2"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        Hparams::read(gguf, self.name(), RopeMode::Neox)?.without_experts(gguf)
    }

    fn layer_weights(&self, hp: &Hparams, block: &Block) -> Vec<Spec> {
        decoder::weights(hp, block).into_iter().map(Spec::needed).collect()
    }
}

impl Architecture for Qwen2Moe {
    fn name(&self) -> &'static str {
        "qwen2moe"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        let mut hp = Hparams::read(gguf, self.name(), RopeMode::Neox)?.with_experts(gguf)?;
        let keys = Keys::new(gguf, self.name());
        let shared = keys.size_or("expert_shared_feed_forward_length", hp.n_ff)?;
        if let Some(experts) = &mut hp.experts {
            (experts.n_ff_shared, experts.normed) = (shared, false);
        }
        Ok(hp)
    }

    fn layer_weights(&self, hp: &Hparams, block: &Block) -> Vec<Spec> {
        let gate = Spec::matrix(SHARED_GATE, 1, hp.n_embd);
        decoder::weights(hp, block).into_iter().chain([gate]).collect()
    }
}
