//! LLaMA (Touvron et al. 2023) and the models that share its form: Mistral, SmolLM2 and others.

use aether_ir::Op;

use super::{ArchError, Architecture, Hparams, LayerBuilder, RopeMode, Spec};
use crate::gguf::Gguf;

/// `general.architecture = "llama"`.
pub struct Llama;

impl Architecture for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        let mut hparams = Hparams::read(gguf, self.name(), RopeMode::Norm)?;
        hparams.read_window(gguf)?;
        Ok(hparams)
    }

    fn layer_weights(&self, hparams: &Hparams) -> Vec<Spec> {
        decoder_weights(hparams, Biases::Optional)
    }

    fn layer(&self, layer: &mut LayerBuilder<'_>) -> Result<(), ArchError> {
        decoder_layer(layer)
    }
}

/// Whether q, k and v have biases.
pub(super) enum Biases {
    /// Some checkpoints have them; so may the other products.
    Optional,
    /// Part of the architecture for q, k and v, and absent elsewhere.
    Attention,
}

/// The weights of a block of this form.
pub(super) fn decoder_weights(hp: &Hparams, biases: Biases) -> Vec<Spec> {
    let (q, k, v) =
        (hp.n_heads * hp.key_len, hp.n_kv_heads * hp.key_len, hp.n_kv_heads * hp.value_len);
    let bias = |name, n| match biases {
        Biases::Optional => Spec::vector(name, n).optional(),
        Biases::Attention => Spec::vector(name, n),
    };
    let mut specs = vec![
        Spec::vector("attn_norm.weight", hp.n_embd),
        Spec::matrix("attn_q.weight", q, hp.n_embd),
        Spec::matrix("attn_k.weight", k, hp.n_embd),
        Spec::matrix("attn_v.weight", v, hp.n_embd),
        bias("attn_q.bias", q),
        bias("attn_k.bias", k),
        bias("attn_v.bias", v),
        Spec::matrix("attn_output.weight", hp.n_embd, hp.n_heads * hp.value_len),
        Spec::vector("ffn_norm.weight", hp.n_embd),
        Spec::matrix("ffn_gate.weight", hp.n_ff, hp.n_embd),
        Spec::matrix("ffn_up.weight", hp.n_ff, hp.n_embd),
        Spec::matrix("ffn_down.weight", hp.n_embd, hp.n_ff),
    ];
    if matches!(biases, Biases::Optional) {
        specs.extend([
            Spec::vector("attn_output.bias", hp.n_embd).optional(),
            Spec::vector("ffn_gate.bias", hp.n_ff).optional(),
            Spec::vector("ffn_up.bias", hp.n_ff).optional(),
            Spec::vector("ffn_down.bias", hp.n_embd).optional(),
        ]);
    }
    specs
}

/// Norm, attention, residual; norm, gated network, residual.
pub(super) fn decoder_layer(layer: &mut LayerBuilder<'_>) -> Result<(), ArchError> {
    let normed = layer.norm(layer.stream(), "attn_norm.weight")?;
    let attended = layer.attention(normed)?;
    layer.add(attended, "attn_residual")?;
    let normed = layer.norm(layer.stream(), "ffn_norm.weight")?;
    let fed = layer.gated_ffn(normed, Op::Silu)?;
    layer.add(fed, "ffn_residual")
}
