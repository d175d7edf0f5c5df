//! Rotary position embedding (Su et al. 2021) as the metadata describes it.

use aether_ir::Attrs;

use super::ArchError;
use super::hparams::Keys;

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeMode {
    /// Neighbours, as in LLaMA's own weights.
    Norm,
    /// An element and the one half the rotated width further, as in GPT-NeoX.
    Neox,
}

impl RopeMode {
    /// The value of the op's attribute.
    pub fn name(self) -> &'static str {
        match self {
            RopeMode::Norm => "norm",
            RopeMode::Neox => "neox",
        }
    }
}

/// How positions are stretched beyond the context of the training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions are divided by the factor.
    Linear {
        factor: f64,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
    },
    /// LongRoPE (Ding et al. 2024): the frequencies are divided by factors from the file, other
    /// ones up to the original context than beyond. Files that have the factors need not say so.
    Long,
}

/// The rotation of a block's queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    pub mode: RopeMode,
    pub theta: f64,
    /// Elements of each head that are rotated.
    pub dims: u64,
    pub scaling: RopeScaling,
    /// Factor of the rotated elements, besides the one that the op adds for YaRN.
    pub attn_factor: f64,
    /// Context length of the training before it was extended.
    pub original_context: u64,
}

/// By how much YaRN raises the magnitude for a stretch by `factor`.
pub(super) fn yarn_magnitude(factor: f64, multiplier: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * multiplier * factor.ln() + 1.0 }
}

impl Rope {
    /// Reads the keys `rope.*`.
    pub(super) fn read(
        keys: &Keys<'_>,
        mode: RopeMode,
        head: u64,
        n_ctx_train: u64,
    ) -> Result<Rope, ArchError> {
        let dims = keys.size_or("rope.dimension_count", head)?;
        if dims > head || dims % 2 != 0 {
            let expected = format!("should be even and at most the head's width {head}");
            return Err(keys.wrong("rope.dimension_count", dims, expected));
        }
        let mut attn_factor = keys.positive_or("rope.scaling.attn_factor", 1.0)?;
        let scaling = scaling(keys)?;
        if let RopeScaling::Yarn { factor, .. } = scaling
            && let Some(multiplier) = keys.float("rope.scaling.yarn_log_multiplier")?
        {
            attn_factor /= yarn_magnitude(factor, multiplier);
        }
        Ok(Rope {
            mode,
            theta: keys.positive_or("rope.freq_base", 10_000.0)?,
            dims,
            scaling,
            attn_factor,
            original_context: keys.size_or("rope.scaling.original_context_length", n_ctx_train)?,
        })
    }

    /// The attributes of the op.
    pub(super) fn attrs(&self) -> Attrs {
        let mut attrs = Attrs::new()
            .with("mode", self.mode.name())
            .with("theta", self.theta)
            .with("n_dims", self.dims as i64);
        match self.scaling {
            RopeScaling::None | RopeScaling::Long => {}
            RopeScaling::Linear { factor } => attrs = attrs.with("freq_scale", 1.0 / factor),
            RopeScaling::Yarn { factor, beta_fast, beta_slow } => {
                attrs = attrs
                    .with("freq_scale", 1.0 / factor)
                    .with("ext_factor", 1.0)
                    .with("beta_fast", beta_fast)
                    .with("beta_slow", beta_slow)
                    .with("n_ctx_orig", self.original_context as i64);
            }
        }
        if self.attn_factor != 1.0 {
            attrs = attrs.with("attn_factor", self.attn_factor);
        }
        attrs
    }
}

fn scaling(keys: &Keys<'_>) -> Result<RopeScaling, ArchError> {
    let factor = match keys.float("rope.scaling.factor")? {
        Some(f) => Some(f),
        None => keys.float("rope.scale_linear")?,
    };
    let factor = factor.filter(|f| *f != 0.0).unwrap_or(1.0);
    if !factor.is_finite() || factor < 0.0 {
        return Err(keys.wrong("rope.scaling.factor", factor, "should be a positive number"));
    }
    match keys.text("rope.scaling.type")?.unwrap_or("linear") {
        "none" => Ok(RopeScaling::None),
        "linear" if factor == 1.0 => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor }),
        "yarn" => Ok(RopeScaling::Yarn {
            factor,
            beta_fast: keys.positive_or("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: keys.positive_or("rope.scaling.yarn_beta_slow", 1.0)?,
        }),
        "longrope" if factor == 1.0 => Ok(RopeScaling::Long),
        "longrope" => {
            let expected = "with longrope only 1 is supported: the factors are tensors of the file";
            Err(keys.wrong("rope.scaling.factor", factor, expected))
        }
        other => Err(keys.wrong(
            "rope.scaling.type",
            format!("{other:?}"),
            "only none, linear, yarn and longrope are supported",
        )),
    }
}
