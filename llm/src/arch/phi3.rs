//! Phi-3 (Abdin et al. 2024) and Phi-4: LLaMA's form with q, k and v in one weight, gate and up in
//! another, GPT-NeoX's rotation of a part of each head, and LongRoPE's factors.

use super::attention::attention_weights;
use super::{ArchError, Architecture, Block, Hparams, RopeMode, Spec};
use crate::gguf::Gguf;

/// `general.architecture = "phi3"`.
pub struct Phi3;

impl Architecture for Phi3 {
    fn name(&self) -> &'static str {
        "phi3"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        let hp = Hparams::read(gguf, self.name(), RopeMode::Neox)?.without_experts(gguf)?;
        // As llama.cpp does: files have windows that the models do not (its pull request 13676).
        let window = hp.window(gguf, 0)?;
        if window > 0 {
            tracing::warn!(window, "the sliding window of phi3 files is not heeded");
        }
        Ok(hp)
    }

    fn layer_weights(&self, hp: &Hparams, _: &Block) -> Vec<Spec> {
        let gate_and_up = |name, first| {
            Spec::matrix(name, hp.n_ff, hp.n_embd).within("ffn_up.weight", first, 2 * hp.n_ff)
        };
        let mut specs = attention_weights(hp);
        specs.extend([
            Spec::vector("ffn_norm.weight", hp.n_embd),
            gate_and_up("ffn_gate.weight", 0),
            gate_and_up("ffn_up.weight", hp.n_ff),
            Spec::matrix("ffn_down.weight", hp.n_embd, hp.n_ff),
        ]);
        specs
    }
}
