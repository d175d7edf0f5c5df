//! The block of a decoder: what all architectures here have in common, told apart by their
//! hyperparameters and by the weights that they have.

use super::attention::attention_weights;
use super::{ArchError, Block, Hparams, LayerBuilder, Spec};

/// The weights of a block with plain attention and a gated feed-forward network.
pub(super) fn weights(hp: &Hparams, block: &Block) -> Vec<Spec> {
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

/// The weights of the norms of each head's query and key.
pub(super) fn head_norms(hp: &Hparams) -> [Spec; 2] {
    ["attn_q_norm.weight", "attn_k_norm.weight"].map(|name| Spec::vector(name, hp.key_len))
}

/// The weights of the norms behind attention and the feed-forward network.
pub(super) fn post_norms(hp: &Hparams) -> [Spec; 2] {
    ["post_attention_norm.weight", "post_ffw_norm.weight"].map(|name| Spec::vector(name, hp.n_embd))
}

/// Norm, attention, residual; norm, feed-forward network, residual; norms of what is added where
/// the block has weights for them.
///
/// # Errors
/// When the weights do not fit together.
pub(super) fn layer(layer: &mut LayerBuilder<'_>) -> Result<(), ArchError> {
    let normed = layer.norm(layer.stream(), "attn_norm.weight")?;
    let attended = match layer.hparams.latent {
        Some(latent) => layer.latent_attention(&latent, normed)?,
        None => layer.attention(normed)?,
    };
    let attended = layer.norm_if(attended, "post_attention_norm.weight")?;
    layer.add(attended, "attn_residual")?;
    let normed = layer.norm(layer.stream(), "ffn_norm.weight")?;
    let fed = layer.ffn(normed, layer.hparams.ffn_act)?;
    let fed = layer.norm_if(fed, "post_ffw_norm.weight")?;
    layer.add(fed, "ffn_residual")
}
