//! DeepSeek-V2 (2024), V2-Lite, V3 and R1: multi-head latent attention; experts, of which some
//! serve every token, behind a few dense blocks; YaRN.

use super::decoder::ffn_weights;
use super::latent::Latent;
use super::rope::{RopeScaling, yarn_magnitude};
use super::{ArchError, Architecture, Block, Hparams, Keys, RopeMode, Spec};
use crate::gguf::Gguf;

/// `general.architecture = "deepseek2"`.
pub struct DeepSeek2;

/// Files give YaRN's multiplier times this.
const MULTIPLIER_UNIT: f64 = 0.1;

impl Architecture for DeepSeek2 {
    fn name(&self) -> &'static str {
        "deepseek2"
    }

    fn hparams(&self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        let mut hp = Hparams::read(gguf, self.name(), RopeMode::Norm)?.with_experts(gguf)?;
        let keys = Keys::new(gguf, self.name());
        let latent = Latent::read(gguf, &hp)?;
        let shared = keys.count("expert_shared_count")?;
        if let Some(experts) = &mut hp.experts {
            experts.n_ff_shared = experts.n_ff * shared;
        }
        let dense = keys.count("leading_dense_block_count")?;
        for (block, _) in hp.blocks.iter_mut().zip(0..dense) {
            block.experts = false;
        }
        hp.attn_scale = 1.0 / ((latent.plain + latent.turned) as f64).sqrt();
        hp.latent = Some(latent);
        stretch(&mut hp, &keys)?;
        Ok(hp)
    }

    fn layer_weights(&self, hp: &Hparams, block: &Block) -> Vec<Spec> {
        let attention = hp.latent.iter().flat_map(|latent| latent.weights(hp));
        attention.chain(ffn_weights(hp, block)).collect()
    }
}

/// YaRN as DeepSeek has it: the magnitude that a stretch asks for goes into the scale of all scores,
/// not into the rotated part alone, by a multiplier of the file.
fn stretch(hp: &mut Hparams, keys: &Keys<'_>) -> Result<(), ArchError> {
    let RopeScaling::Yarn { factor, .. } = hp.blocks[0].rope.scaling else { return Ok(()) };
    let multiplier =
        keys.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0) / MULTIPLIER_UNIT;
    let given = keys.positive_or("rope.scaling.attn_factor", 1.0)?;
    // The op raises the rotated part by this; it is taken back where the scale has it.
    let raised = 1.0 + 0.1 * factor.ln();
    // V3's multiplier is 1 and stands for itself; any other one is of the rotated part too.
    let of_rotated = match multiplier {
        0.0 => yarn_magnitude(factor, 1.0),
        m if (m - 1.0).abs() < 1e-6 => yarn_magnitude(factor, 1.0) / yarn_magnitude(factor, m),
        _ => 1.0,
    };
    let rotated = of_rotated * given;
    for block in &mut hp.blocks {
        block.rope.attn_factor = rotated / raised;
    }
    let magnitude = rotated * (1.0 + 0.1 * multiplier * factor.ln());
    hp.attn_scale *= magnitude * magnitude;
    Ok(())
}
