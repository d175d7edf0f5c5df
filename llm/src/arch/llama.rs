//! LLaMA (Touvron et al. 2023) and the models that share its form: Mistral, SmolLM2 and others;
//! with experts Mixtral (Jiang et al. 2024).

use aether_ir::Op;

use super::attention::attention_weights;
use super::{ArchError, Architecture, Block, Hparams, LayerBuilder, RopeMode, Spec};
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
        let mut specs = decoder_weights(hp, block);
        specs.extend([
            Spec::vector("attn_output.bias", hp.n_embd).optional(),
            Spec::vector("ffn_gate.bias", hp.n_ff).optional(),
            Spec::vector("ffn_up.bias", hp.n_ff).optional(),
            Spec::vector("ffn_down.bias", hp.n_embd).optional(),
        ]);
        specs
    }

    fn layer(&self, layer: &mut LayerBuilder<'_>) -> Result<(), ArchError> {
        decoder_layer(layer)
    }
}

/// The weights of a block of this form.
pub(super) fn decoder_weights(hp: &Hparams, block: &Block) -> Vec<Spec> {
    let mut specs = attention_weights(hp);
    specs.extend(ffn_weights(hp, block));
    specs
}

/// The weights of a block's feed-forward network, and of the norm in front of it.
pub(super) fn ffn_weights(hp: &Hparams, block: &Block) -> Vec<Spec> {
    let mut specs = vec![Spec::vector("ffn_norm.weight", hp.n_embd)];
    match &hp.experts {
        Some(experts) if block.experts => specs.extend(experts.weights(hp)),
        _ => specs.extend([
            Spec::matrix("ffn_gate.weight", hp.n_ff, hp.n_embd),
            Spec::matrix("ffn_up.weight", hp.n_ff, hp.n_embd),
            Spec::matrix("ffn_down.weight", hp.n_embd, hp.n_ff),
        ]),
    }
    specs
}

/// Norm, attention, residual; norm, feed-forward network, residual.
pub(super) fn decoder_layer(layer: &mut LayerBuilder<'_>) -> Result<(), ArchError> {
    let normed = layer.norm(layer.stream(), "attn_norm.weight")?;
    let attended = layer.attention(normed)?;
    layer.add(attended, "attn_residual")?;
    let normed = layer.norm(layer.stream(), "ffn_norm.weight")?;
    let fed = layer.ffn(normed, Op::Silu)?;
    layer.add(fed, "ffn_residual")
}
