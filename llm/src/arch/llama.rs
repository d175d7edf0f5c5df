//! LLaMA (Touvron et al. 2023) and the models that share its form: Mistral, SmolLM2 and others;
//! with experts Mixtral (Jiang et al. 2024).

use super::{ArchError, Architecture, Block, Hparams, RopeMode, Spec, decoder};
use crate::gguf::Gguf;

/// `general.architecture = "llama"`.
pub struct Llama;

impl Architecture for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        let mut hp = Hparams::read(gguf, self.name(), RopeMode::Norm)?;
        if let Some(experts) = &mut hp.experts {
            (experts.n_ff, experts.normed) = (hp.n_ff, true);
        }
        // Mistral's; all blocks have it.
        let window = hp.window(gguf, 0)?;
        hp.blocks.iter_mut().for_each(|block| block.window = window);
        Ok(hp)
    }

    fn layer_weights(&self, hp: &Hparams, block: &Block) -> Vec<Spec> {
        let mut specs = decoder::weights(hp, block);
        specs.extend([
            Spec::vector("attn_output.bias", hp.n_embd).optional(),
            Spec::vector("ffn_gate.bias", hp.n_ff).optional(),
            Spec::vector("ffn_up.bias", hp.n_ff).optional(),
            Spec::vector("ffn_down.bias", hp.n_embd).optional(),
        ]);
        specs
    }
}
