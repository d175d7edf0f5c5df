//! Sizes and constants of a model, read from the metadata and checked.

use aether_ir::Op;

use crate::gguf::{Gguf, GgufError, Optional, Value};

use super::ArchError;
use super::experts::Experts;
use super::latent::Latent;
use super::rope::{Rope, RopeMode};

/// What the metadata says of a decoder with attention and a gated feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub struct Hparams {
    /// The value of `general.architecture`.
    pub arch: &'static str,
    /// The model's name, when the file has one.
    pub name: Option<String>,
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
    /// Activation of the gate of feed-forward networks.
    pub ffn_act: Op,
    /// Factor of what is looked up in the embedding table.
    pub embd_scale: f64,
    /// Factor of the scores of attention.
    pub attn_scale: f64,
    /// Scores become `cap * tanh(score / cap)`; 0 for none.
    pub attn_softcap: f64,
    /// The same of the logits.
    pub logit_softcap: f64,
    /// The experts of those blocks that have some.
    pub experts: Option<Experts>,
    /// Sizes of multi-head latent attention, where the blocks have it.
    pub latent: Option<Latent>,
    /// What differs between blocks, one for each.
    pub blocks: Vec<Block>,
}

/// What differs between the blocks of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// Keys further back than this are not seen; 0 for all.
    pub window: u64,
    pub rope: Rope,
    /// Whether its feed-forward network has experts.
    pub experts: bool,
}

/// No dimension of a model is believed beyond this.
const MOST: u64 = 1 << 24;
/// Most blocks.
const MOST_LAYERS: u64 = 1024;

/// Keys of near kin that change what a model computes, and that no architecture here knows. Zero
/// stands for "without".
const REFUSED: &[&str] = &[
    "attention.clamp_kqv",
    "attention.key_length_swa",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.temperature_scale",
    "attention.value_length_swa",
    "embedding_scale",
    "logit_scale",
    "nextn_predict_layers",
    "residual_scale",
    "rope.dimension_count_swa",
    "rope.scaling.alpha",
];

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

    /// A number that may be missing, which is 0.
    pub fn count(&self, name: &str) -> Result<u64, ArchError> {
        match self.gguf.get_u64(&self.key(name)).optional()? {
            None | Some(0) => Ok(0),
            Some(value) => self.checked(name, value, MOST),
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

    pub fn flag(&self, name: &str) -> Result<bool, ArchError> {
        Ok(self.gguf.get_bool(&self.key(name)).optional()?.unwrap_or(false))
    }

    /// A number as the file has it.
    pub fn float(&self, name: &str) -> Result<Option<f64>, ArchError> {
        Ok(self.gguf.get_f32(&self.key(name)).optional()?.map(decimal))
    }

    /// A finite positive number.
    pub fn positive_or(&self, name: &str, default: f64) -> Result<f64, ArchError> {
        match self.float(name)? {
            None => Ok(default),
            Some(v) if v.is_finite() && v > 0.0 => Ok(v),
            Some(v) => Err(self.wrong(name, v, "should be a positive number")),
        }
    }

    /// A finite positive number; 0 when it is missing or 0.
    pub fn positive_or_none(&self, name: &str) -> Result<f64, ArchError> {
        match self.float(name)? {
            None | Some(0.0) => Ok(0.0),
            Some(_) => self.positive_or(name, 0.0),
        }
    }

    pub fn text(&self, name: &str) -> Result<Option<&'g str>, ArchError> {
        Ok(self.gguf.get_str(&self.key(name)).optional()?)
    }

    /// The keys that would change the result if they were heeded.
    fn refuse(&self) -> Result<(), ArchError> {
        for name in REFUSED {
            match self.gguf.get(&self.key(name)) {
                Some(v) if v.as_f32() != Some(0.0) => {
                    let value = v.as_f32().map_or("set".to_owned(), |v| v.to_string());
                    return Err(self.wrong(name, value, "models with it are not supported"));
                }
                _ => {}
            }
        }
        Ok(())
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
    /// When a key is missing, of the wrong type or out of range, or asks for what is not supported.
    pub fn read(
        gguf: &Gguf,
        arch: &'static str,
        rope_mode: RopeMode,
    ) -> Result<Hparams, ArchError> {
        let keys = Keys::new(gguf, arch);
        keys.refuse()?;
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
        let n_ctx_train = keys.size("context_length")?;
        let rope = Rope::read(&keys, rope_mode, key_len, n_ctx_train)?;
        let experts = Experts::read(&keys)?;
        let eps_name = "attention.layer_norm_rms_epsilon";
        gguf.get_f32(&keys.key(eps_name))?;
        let block = Block { window: 0, rope, experts: experts.is_some() };
        Ok(Hparams {
            arch,
            name: gguf.get_str("general.name").optional()?.map(str::to_owned),
            n_embd,
            n_ff: keys.required("feed_forward_length")?,
            n_heads,
            n_kv_heads,
            key_len,
            value_len,
            n_vocab: n_vocab(gguf, &keys)?,
            n_ctx_train,
            rms_eps: keys.positive_or(eps_name, 1e-5)?,
            ffn_act: Op::Silu,
            embd_scale: 1.0,
            attn_scale: 1.0 / (key_len as f64).sqrt(),
            attn_softcap: 0.0,
            logit_softcap: 0.0,
            experts,
            latent: None,
            blocks: vec![block; n_layers],
        })
    }

    /// Refuses experts, for architectures whose blocks have none.
    ///
    /// # Errors
    /// When the file has some.
    pub(super) fn without_experts(self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        match &self.experts {
            None => Ok(self),
            Some(experts) => {
                let expected = format!("{} with experts is not supported", self.arch);
                Err(Keys::new(gguf, self.arch).wrong("expert_count", experts.count, expected))
            }
        }
    }

    /// Refuses a file without experts, for architectures whose blocks have some.
    ///
    /// # Errors
    /// When the file has none.
    pub(super) fn with_experts(self, gguf: &Gguf) -> Result<Hparams, ArchError> {
        match &self.experts {
            Some(_) => Ok(self),
            None => {
                let expected = format!("{} has experts", self.arch);
                Err(Keys::new(gguf, self.arch).wrong("expert_count", 0, expected))
            }
        }
    }

    /// Number of blocks.
    pub fn n_layers(&self) -> usize {
        self.blocks.len()
    }

    /// The sliding window, `default` when the file has none; 0 when it hides nothing.
    ///
    /// # Errors
    /// When the key has the wrong type.
    pub(super) fn window(&self, gguf: &Gguf, default: u64) -> Result<u64, ArchError> {
        let key = Keys::new(gguf, self.arch).key("attention.sliding_window");
        let window = gguf.get_u32(&key).optional()?.map_or(default, u64::from);
        Ok(if window >= self.n_ctx_train { 0 } else { window })
    }

    /// Which blocks have the sliding window: what the file says of each, or all but each
    /// `period`th, by the file's period or the given one.
    ///
    /// # Errors
    /// When the key is neither a number nor has an entry for each block.
    pub(super) fn windowed(&self, gguf: &Gguf, period: u64) -> Result<Vec<bool>, ArchError> {
        let keys = Keys::new(gguf, self.arch);
        let name = "attention.sliding_window_pattern";
        let n = self.n_layers();
        if let Some(array) = gguf.get(&keys.key(name)).and_then(|v| v.as_array()) {
            let one = |v: Value<'_>| v.as_bool().or_else(|| v.as_int().map(|v| v != 0));
            let all: Option<Vec<bool>> = array.iter().map(one).collect();
            return all.filter(|all| all.len() == n).ok_or_else(|| {
                keys.wrong(name, "an array", format!("should say of {n} blocks yes or no"))
            });
        }
        let period = gguf.get_u64(&keys.key(name)).optional()?.unwrap_or(period);
        Ok((1..=n as u64).map(|i| period == 0 || i % period != 0).collect())
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
