//! Sizes and constants of a model, read from the metadata and checked.

use crate::gguf::{Gguf, GgufError, Optional};

use super::ArchError;

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
        attn_factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_context: u32,
    },
}

/// What the metadata says of a decoder with attention and a gated feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub struct Hparams {
    /// The value of `general.architecture`.
    pub arch: &'static str,
    /// The model's name, when the file has one.
    pub name: Option<String>,
    pub n_layers: usize,
    pub n_embd: u64,
    pub n_ff: u64,
    pub n_heads: u64,
    pub n_kv_heads: u64,
    /// Width of a head's keys and queries.
    pub key_len: u64,
    /// Width of a head's values.
    pub value_len: u64,
    pub n_vocab: u64,
    /// Context length of the training.
    pub n_ctx_train: u64,
    pub rms_eps: f64,
    pub rope_mode: RopeMode,
    pub rope_theta: f64,
    /// Elements of each head that are rotated.
    pub rope_dims: u64,
    pub rope_scaling: RopeScaling,
    /// Keys further back than this are not seen; 0 for all.
    pub window: u64,
}

/// No dimension of a model is believed beyond this.
const MOST: u64 = 1 << 24;
/// Most blocks.
const MOST_LAYERS: u64 = 1024;

/// Reads keys `ARCH.name` and checks them.
pub(super) struct Keys<'g> {
    gguf: &'g Gguf,
    arch: &'static str,
}

impl<'g> Keys<'g> {
    pub fn new(gguf: &'g Gguf, arch: &'static str) -> Self {
        Keys { gguf, arch }
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// The error for a value that makes no sense.
    pub fn wrong(
        &self,
        name: &str,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> ArchError {
        ArchError::Key {
            path: self.gguf.path().to_owned(),
            key: self.key(name),
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    fn checked(&self, name: &str, value: u64, most: u64) -> Result<u64, ArchError> {
        if value == 0 || value > most {
            return Err(self.wrong(name, value, format!("should be from 1 to {most}")));
        }
        Ok(value)
    }

    /// A dimension: from 1 to some millions.
    pub fn size(&self, name: &str) -> Result<u64, ArchError> {
        let value = self.gguf.get_u64(&self.key(name))?;
        self.checked(name, value, MOST)
    }

    pub fn size_or(&self, name: &str, default: u64) -> Result<u64, ArchError> {
        match self.gguf.get_u64(&self.key(name)).optional()? {
            Some(value) => self.checked(name, value, MOST),
            None => Ok(default),
        }
    }

    /// An integer that some files give per layer: then all layers must have the same.
    pub fn uniform(&self, name: &str) -> Result<Option<u64>, ArchError> {
        let key = self.key(name);
        let value = match self.gguf.get_u64(&key) {
            Err(GgufError::MissingKey { .. }) => return Ok(None),
            Err(GgufError::WrongType { .. }) => {
                let all = self.gguf.get_u32s(&key)?;
                match all.split_first() {
                    Some((first, rest)) if rest.iter().all(|v| v == first) => u64::from(*first),
                    _ => {
                        let expected = "layers of different sizes are not supported";
                        return Err(self.wrong(name, "an array", expected));
                    }
                }
            }
            other => other?,
        };
        self.checked(name, value, MOST).map(Some)
    }

    pub fn required(&self, name: &str) -> Result<u64, ArchError> {
        match self.uniform(name)? {
            Some(value) => Ok(value),
            None => Ok(self.gguf.get_u64(&self.key(name))?),
        }
    }

    /// A finite positive number.
    pub fn positive_or(&self, name: &str, default: f64) -> Result<f64, ArchError> {
        match self.gguf.get_f32(&self.key(name)).optional()? {
            None => Ok(default),
            Some(v) if v.is_finite() && v > 0.0 => Ok(decimal(v)),
            Some(v) => Err(self.wrong(name, v, "should be a positive number")),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&'g str>, ArchError> {
        Ok(self.gguf.get_str(&self.key(name)).optional()?)
    }

    fn rope_scaling(&self, n_ctx_train: u64) -> Result<RopeScaling, ArchError> {
        let factor = match self.gguf.get_f32(&self.key("rope.scaling.factor")).optional()? {
            Some(f) => Some(f),
            None => self.gguf.get_f32(&self.key("rope.scale_linear")).optional()?,
        };
        let factor = factor.map_or(1.0, decimal);
        let factor = if factor == 0.0 { 1.0 } else { factor };
        if !factor.is_finite() || factor < 0.0 {
            return Err(self.wrong("rope.scaling.factor", factor, "should be a positive number"));
        }
        match self.text("rope.scaling.type")?.unwrap_or("linear") {
            "none" => Ok(RopeScaling::None),
            "linear" if factor == 1.0 => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor }),
            "yarn" => {
                let name = "rope.scaling.original_context_length";
                let original = self.size_or(name, n_ctx_train)?;
                let mut attn_factor = self.positive_or("rope.scaling.attn_factor", 1.0)?;
                let log_mul =
                    self.gguf.get_f32(&self.key("rope.scaling.yarn_log_multiplier")).optional()?;
                if let Some(m) = log_mul.map(decimal).filter(|_| factor > 1.0) {
                    attn_factor /= 0.1 * m * factor.ln() + 1.0;
                }
                Ok(RopeScaling::Yarn {
                    factor,
                    attn_factor,
                    beta_fast: self.positive_or("rope.scaling.yarn_beta_fast", 32.0)?,
                    beta_slow: self.positive_or("rope.scaling.yarn_beta_slow", 1.0)?,
                    original_context: u32::try_from(original).unwrap_or(u32::MAX),
                })
            }
            other => Err(self.wrong(
                "rope.scaling.type",
                format!("{other:?}"),
                "only none, linear and yarn are supported",
            )),
        }
    }
}

/// The number that was written as `f32`, by its shortest decimal form: 1e-5 and not
/// 0.000009999999747378752 is what the text of the module should say.
fn decimal(v: f32) -> f64 {
    v.to_string().parse().unwrap_or(f64::from(v))
}

impl Hparams {
    /// Reads the keys that LLaMA and its kin have in common.
    ///
    /// # Errors
    /// When a key is missing, of the wrong type or out of range.
    pub fn read(
        gguf: &Gguf,
        arch: &'static str,
        rope_mode: RopeMode,
    ) -> Result<Hparams, ArchError> {
        let keys = Keys::new(gguf, arch);
        let n_layers = gguf.get_u64(&keys.key("block_count"))?;
        let n_layers = keys.checked("block_count", n_layers, MOST_LAYERS)? as usize;
        let n_embd = keys.size("embedding_length")?;
        let n_heads = keys.required("attention.head_count")?;
        let n_kv_heads = keys.uniform("attention.head_count_kv")?.unwrap_or(n_heads);
        if n_heads % n_kv_heads != 0 {
            let expected = format!("should divide the {n_heads} heads of attention.head_count");
            return Err(keys.wrong("attention.head_count_kv", n_kv_heads, expected));
        }
        let key_len = match keys.uniform("attention.key_length")? {
            Some(n) => n,
            None if n_embd % n_heads == 0 => n_embd / n_heads,
            None => {
                let expected = format!("should divide the embedding_length {n_embd}");
                return Err(keys.wrong("attention.head_count", n_heads, expected));
            }
        };
        let value_len = keys.uniform("attention.value_length")?.unwrap_or(key_len);
        let rope_dims = keys.size_or("rope.dimension_count", key_len)?;
        if rope_dims > key_len || rope_dims % 2 != 0 {
            let expected = format!("should be even and at most the head's width {key_len}");
            return Err(keys.wrong("rope.dimension_count", rope_dims, expected));
        }
        let n_ctx_train = keys.size("context_length")?;
        if let Some(experts) = gguf.get_u64(&keys.key("expert_count")).optional()?
            && experts > 0
        {
            let expected = "models with experts are not supported";
            return Err(keys.wrong("expert_count", experts, expected));
        }
        let eps_name = "attention.layer_norm_rms_epsilon";
        gguf.get_f32(&keys.key(eps_name))?;
        Ok(Hparams {
            arch,
            name: gguf.get_str("general.name").optional()?.map(str::to_owned),
            n_layers,
            n_embd,
            n_ff: keys.required("feed_forward_length")?,
            n_heads,
            n_kv_heads,
            key_len,
            value_len,
            n_vocab: n_vocab(gguf, &keys)?,
            n_ctx_train,
            rms_eps: keys.positive_or(eps_name, 1e-5)?,
            rope_mode,
            rope_theta: keys.positive_or("rope.freq_base", 10_000.0)?,
            rope_dims,
            rope_scaling: keys.rope_scaling(n_ctx_train)?,
            window: 0,
        })
    }

    /// The sliding window, when the file has one.
    ///
    /// # Errors
    /// When the key has the wrong type.
    pub fn read_window(&mut self, gguf: &Gguf) -> Result<(), ArchError> {
        let key = Keys::new(gguf, self.arch).key("attention.sliding_window");
        let window = gguf.get_u32(&key).optional()?.map_or(0, u64::from);
        // A window as long as the context hides nothing.
        self.window = if window >= self.n_ctx_train { 0 } else { window };
        Ok(())
    }
}

/// Rows of the embedding: what the tensor has decides, because padding is common.
fn n_vocab(gguf: &Gguf, keys: &Keys<'_>) -> Result<u64, ArchError> {
    match gguf.tensor(super::weights::TOKEN_EMBD) {
        Some(tensor) if (1..=MOST).contains(&tensor.rows()) => Ok(tensor.rows()),
        Some(tensor) => Err(keys.wrong("vocab_size", tensor.rows(), "that is not plausible")),
        None => keys.size_or("vocab_size", 1),
    }
}
