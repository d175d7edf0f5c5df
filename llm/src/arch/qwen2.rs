//! Qwen2 and Qwen2.5 (Yang et al. 2024): LLaMA's form with biases on q, k and v, and GPT-NeoX's
//! rotation.

use super::llama::{Biases, decoder_layer, decoder_weights};
use super::{ArchError, Architecture, Hparams, LayerBuilder, RopeMode, Spec};
use crate::gguf::Gguf;

/// `general.architecture = "qwen2"`.
pub struct Qwen2;

impl Architecture for Qwen2 {
    fn name(&self) -> &'static str {
        "qwen2"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        Hparams::read(gguf, self.name(), RopeMode::Neox)
    }

    fn layer_weights(&self, hparams: &Hparams) -> Vec<Spec> {
        decoder_weights(hparams, Biases::Attention)
    }

    fn layer(&self, layer: &mut LayerBuilder<'_>) -> Result<(), ArchError> {
        decoder_layer(layer)
    }
}
