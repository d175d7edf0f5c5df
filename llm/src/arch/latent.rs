//! Multi-head latent attention (DeepSeek-V2, 2024).
//!
//! Keys and values of all heads come from one latent vector for each token; a part of each key that
//! is the same for all heads carries the rotation. Two forms compute the same:
//!
//! - where the file has one weight that makes keys and values of the latent (`attn_kv_b`, older
//!   files), they are made for each token and cached as in any attention;
//! - where that weight is apart (`attn_k_b`, `attn_v_b`), the latent itself is cached, with one head
//!   that all queries read: a query goes through its head's key weight before, and what it reads
//!   through the value weight behind.

use aether_ir::{Attrs, DType, Dim, Op, TensorType, ValueId};

use super::ArchError;
use super::blocks::LayerBuilder;
use super::hparams::{Hparams, Keys};
use super::weights::Spec;
use crate::gguf::Gguf;

/// Sizes of multi-head latent attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latent {
    /// Width of the latent vector of keys and values.
    pub rank: u64,
    /// Width of the latent vector of queries; 0 where queries come from the stream itself.
    pub q_rank: u64,
    /// Width of a head's key that is not rotated.
    pub plain: u64,
    /// Width of the part that is rotated.
    pub turned: u64,
    /// Width of a head's value.
    pub value: u64,
    /// Whether the latent is what is cached.
    pub absorbed: bool,
}

impl Latent {
    /// Reads the keys of a file whose common ones are in `hp`.
    pub(super) fn read(gguf: &Gguf, hp: &Hparams) -> Result<Latent, ArchError> {
        let keys = Keys::new(gguf, hp.arch);
        let rank = keys.size("attention.kv_lora_rank")?;
        let turned = hp.blocks.first().map_or(0, |block| block.rope.dims);
        let apart = keys.count("attention.key_length_mla")?;
        let absorbed = apart > 0;
        let (key, value) = match absorbed {
            true => (apart, keys.size("attention.value_length_mla")?),
            false => (hp.key_len, hp.value_len),
        };
        let latent = Latent {
            rank,
            q_rank: keys.count("attention.q_lora_rank")?,
            plain: key.saturating_sub(turned),
            turned,
            value,
            absorbed,
        };
        if latent.plain == 0 {
            let expected = format!("the key's width {key} should be more");
            return Err(keys.wrong("rope.dimension_count", turned, expected));
        }
        let cached = (hp.n_kv_heads, hp.key_len, hp.value_len);
        let fitting = match absorbed {
            true => (1, rank + turned, rank),
            false => (hp.n_heads, key, value),
        };
        if cached != fitting {
            let found = format!("{} heads of {} and {}", cached.0, cached.1, cached.2);
            let (heads, key, value) = fitting;
            let expected =
                format!("{heads} heads of {key} and {value} were expected for the cache");
            return Err(keys.wrong("attention.head_count_kv", found, expected));
        }
        Ok(latent)
    }

    /// The weights of the attention of a block.
    pub(super) fn weights(&self, hp: &Hparams) -> Vec<Spec> {
        let (n, heads) = (hp.n_embd, hp.n_heads);
        let q = heads * (self.plain + self.turned);
        let mut specs = vec![
            Spec::vector("attn_norm.weight", n),
            Spec::matrix("attn_kv_a_mqa.weight", self.rank + self.turned, n),
            Spec::vector("attn_kv_a_norm.weight", self.rank),
            Spec::matrix("attn_output.weight", n, heads * self.value),
        ];
        match self.q_rank {
            0 => specs.push(Spec::matrix("attn_q.weight", q, n)),
            rank => specs.extend([
                Spec::matrix("attn_q_a.weight", rank, n),
                Spec::vector("attn_q_a_norm.weight", rank),
                Spec::matrix("attn_q_b.weight", q, rank),
            ]),
        }
        match self.absorbed {
            true => specs.extend([
                Spec::stack("attn_k_b.weight", heads, self.rank, self.plain),
                Spec::stack("attn_v_b.weight", heads, self.value, self.rank),
            ]),
            false => specs.push(Spec::matrix(
                "attn_kv_b.weight",
                heads * (self.plain + self.value),
                self.rank,
            )),
        }
        specs
    }
}

impl LayerBuilder<'_> {
    /// Multi-head latent attention of the normed input over the cache; the projection back is
    /// included.
    ///
    /// # Errors
    /// When the weights do not fit.
    pub fn latent_attention(&mut self, sizes: &Latent, x: ValueId) -> Result<ValueId, ArchError> {
        let heads = self.hparams.n_heads;
        let q = match sizes.q_rank {
            0 => self.linear(x, "attn_q.weight", "", "q")?,
            _ => {
                let q = self.linear(x, "attn_q_a.weight", "", "q_latent")?;
                let q = self.norm(q, "attn_q_a_norm.weight")?;
                self.linear(q, "attn_q_b.weight", "", "q")?
            }
        };
        let q = self.heads(q, heads, sizes.plain + sizes.turned, "q_heads")?;
        let q_plain = self.part(q, 0, sizes.plain, "q_plain")?;
        let q_turned = self.part(q, sizes.plain, sizes.turned, "q_turned")?;
        let q_turned = self.rope(q_turned, "q_rope")?;

        let kv = self.linear(x, "attn_kv_a_mqa.weight", "", "kv_latent")?;
        let latent = self.part(kv, 0, sizes.rank, "latent")?;
        let latent = self.norm(latent, "attn_kv_a_norm.weight")?;
        let k_turned = self.part(kv, sizes.rank, sizes.turned, "k_turned")?;
        let k_turned = self.heads(k_turned, 1, sizes.turned, "k_turned_head")?;
        let k_turned = self.rope(k_turned, "k_rope")?;

        let out = match sizes.absorbed {
            true => {
                let q = self.by_head(q_plain, "attn_k_b.weight", "q_absorbed")?;
                let q = self.joined(q, q_turned, "q_all")?;
                let latent = self.heads(latent, 1, sizes.rank, "latent_head")?;
                let k = self.joined(latent, k_turned, "k_head")?;
                let out = self.attend(q, k, latent)?;
                self.by_head(out, "attn_v_b.weight", "attn_values")?
            }
            false => {
                let q = self.joined(q_plain, q_turned, "q_all")?;
                let kv = self.linear(latent, "attn_kv_b.weight", "", "kv")?;
                let kv = self.heads(kv, heads, sizes.plain + sizes.value, "kv_heads")?;
                let k = self.part(kv, 0, sizes.plain, "k_plain")?;
                let v = self.part(kv, sizes.plain, sizes.value, "v_heads")?;
                let dims = [self.row_count(x), Dim::new(heads), Dim::new(sizes.turned)];
                let ty = TensorType::new(DType::F32, dims);
                let k_turned = self.f.op_to(Op::Broadcast, &[k_turned], Attrs::new(), ty);
                let k_turned = self.named(k_turned, "k_rope_heads")?;
                let k = self.joined(k, k_turned, "k_heads")?;
                self.attend(q, k, v)?
            }
        };
        let width = Dim::new(heads * sizes.value);
        let flat = self.reshape(out, [self.row_count(out), width], "attn")?;
        let flat = self.wanted_rows(flat)?;
        self.linear(flat, "attn_output.weight", "", "attn_out")
    }

    /// `len` elements of the last axis from `start` on.
    fn part(&mut self, x: ValueId, start: u64, len: u64, name: &str) -> Result<ValueId, ArchError> {
        let dims = &self.f.ty(x).shape.0;
        let mut starts = vec![0; dims.len()];
        let mut limits: Vec<i64> =
            dims.iter().map(|d| d.as_const().map_or(-1, |n| n as i64)).collect();
        if let (Some(first), Some(last)) = (starts.last_mut(), limits.last_mut()) {
            (*first, *last) = (start as i64, (start + len) as i64);
        }
        let attrs = Attrs::new().with("starts", starts).with("limits", limits);
        self.op(Op::Slice, &[x], attrs, name)
    }

    fn joined(&mut self, a: ValueId, b: ValueId, name: &str) -> Result<ValueId, ArchError> {
        self.op(Op::Concat, &[a, b], Attrs::new().with("axis", 2i64), name)
    }

    /// Each head of `[tokens, heads, k]` times its own matrix: heads are experts that every token
    /// picks in their order.
    fn by_head(
        &mut self,
        x: ValueId,
        weight: &'static str,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let heads = self.hparams.n_heads;
        let ty = TensorType::new(DType::I32, [self.row_count(x), Dim::new(heads)]);
        let ids = self.f.op_to(Op::Iota, &[], Attrs::new().with("axis", 1i64), ty);
        let ids = self.named(ids, &format!("{name}_heads"))?;
        self.expert_product(x, weight, ids, heads, name)
    }
}
