//! Gemma (Mesnard et al. 2024), Gemma 2 (Rivière et al. 2024) and Gemma 3 (Kamath et al. 2025).
//!
//! All scale the embeddings by the root of their width and gate by GELU. Gemma 2 norms what a
//! sub-block adds as well, caps the scores and the logits softly, and gives every other block a
//! sliding window. Gemma 3 norms queries and keys in place of capping the scores, and gives five
//! blocks of six a window; those rotate by a base of their own and are never stretched.

use aether_ir::Op;

use super::decoder::{self, head_norms, post_norms};
use super::rope::RopeScaling;
use super::{ArchError, Architecture, Block, Hparams, Keys, RopeMode, Spec};
use crate::gguf::Gguf;

/// `general.architecture = "gemma"`.
pub struct Gemma;

/// `general.architecture = "gemma2"`.
pub struct Gemma2;

/// `general.architecture = "gemma3"`.
pub struct Gemma3;

/// What the generations have in common. The largest model of a generation, known by its number of
/// blocks, scales scores by the embedding's width per head in place of the head's own.
fn read(gguf: &Gguf, arch: &'static str, largest: usize) -> Result<Hparams, ArchError> {
    let mut hp = Hparams::read(gguf, arch, RopeMode::Neox)?.without_experts(gguf)?;
    hp.embd_scale = (hp.n_embd as f64).sqrt();
    hp.ffn_act = Op::GeluTanh;
    if hp.n_layers() == largest {
        hp.attn_scale = 1.0 / ((hp.n_embd / hp.n_heads) as f64).sqrt();
    }
    Ok(hp)
}

impl Architecture for Gemma {
    fn name(&self) -> &'static str {
        "gemma"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        read(gguf, self.name(), usize::MAX)
    }
}

impl Architecture for Gemma2 {
    fn name(&self) -> &'static str {
        "gemma2"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        let mut hp = read(gguf, self.name(), 46)?;
        let keys = Keys::new(gguf, self.name());
        hp.attn_softcap = keys.positive_or("attn_logit_softcapping", 50.0)?;
        hp.logit_softcap = keys.positive_or("final_logit_softcapping", 30.0)?;
        let (window, windowed) = (hp.window(gguf, 4096)?, hp.windowed(gguf, 2)?);
        for (block, _) in hp.blocks.iter_mut().zip(windowed).filter(|(_, windowed)| *windowed) {
            block.window = window;
        }
        Ok(hp)
    }

    fn layer_weights(&self, hp: &Hparams, block: &Block) -> Vec<Spec> {
        decoder::weights(hp, block).into_iter().chain(post_norms(hp)).collect()
    }
}

impl Architecture for Gemma3 {
    fn name(&self) -> &'static str {
        "gemma3"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        let mut hp = read(gguf, self.name(), 62)?;
        let keys = Keys::new(gguf, self.name());
        hp.logit_softcap = keys.positive_or_none("final_logit_softcapping")?;
        if keys.count("attention.sliding_window")? == 0 {
            return Ok(hp);
        }
        let theta = keys.positive_or("rope.freq_base_swa", 10_000.0)?;
        let (window, windowed) = (hp.window(gguf, 0)?, hp.windowed(gguf, 6)?);
        for (block, _) in hp.blocks.iter_mut().zip(windowed).filter(|(_, windowed)| *windowed) {
            block.window = window;
            block.rope.theta = theta;
            block.rope.scaling = RopeScaling::None;
        }
        Ok(hp)
    }

    fn layer_weights(&self, hp: &Hparams, block: &Block) -> Vec<Spec> {
        decoder::weights(hp, block)
            .into_iter()
            .chain(post_norms(hp))
            .chain(head_norms(hp))
            .collect()
    }
}
