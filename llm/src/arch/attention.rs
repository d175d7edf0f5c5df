//! Attention with a cache of keys and values.

use aether_ir::{Attrs, Dim, Op, ValueId, donate};

use super::ArchError;
use super::blocks::{LayerBuilder, plain};
use super::hparams::Hparams;
use super::weights::Spec;

/// The weights of attention: norm, q, k and v, apart or stacked, and the projection back.
pub(super) fn attention_weights(hp: &Hparams) -> Vec<Spec> {
    let (q, k, v) =
        (hp.n_heads * hp.key_len, hp.n_kv_heads * hp.key_len, hp.n_kv_heads * hp.value_len);
    let of = |spec: Spec, first| {
        let stacked = if spec.shape.len() > 1 { "attn_qkv.weight" } else { "attn_qkv.bias" };
        spec.within(stacked, first, q + k + v)
    };
    vec![
        Spec::vector("attn_norm.weight", hp.n_embd),
        of(Spec::matrix("attn_q.weight", q, hp.n_embd), 0),
        of(Spec::matrix("attn_k.weight", k, hp.n_embd), q),
        of(Spec::matrix("attn_v.weight", v, hp.n_embd), q + k),
        of(Spec::vector("attn_q.bias", q).optional(), 0),
        of(Spec::vector("attn_k.bias", k).optional(), q),
        of(Spec::vector("attn_v.bias", v).optional(), q + k),
        Spec::matrix("attn_output.weight", hp.n_embd, hp.n_heads * hp.value_len),
    ]
}

impl LayerBuilder<'_> {
    /// Attention of the normed input over the cache, which grows by the new keys and values;
    /// the projection back is included. Queries and keys are normed where the block has weights
    /// for that.
    ///
    /// # Errors
    /// When the weights do not fit.
    pub fn attention(&mut self, x: ValueId) -> Result<ValueId, ArchError> {
        let hp = self.hparams;
        let q = self.linear(x, "attn_q.weight", "attn_q.bias", "q")?;
        let k = self.linear(x, "attn_k.weight", "attn_k.bias", "k")?;
        let v = self.linear(x, "attn_v.weight", "attn_v.bias", "v")?;
        let q = self.heads(q, hp.n_heads, hp.key_len, "q_heads")?;
        let k = self.heads(k, hp.n_kv_heads, hp.key_len, "k_heads")?;
        let v = self.heads(v, hp.n_kv_heads, hp.value_len, "v_heads")?;
        let q = self.norm_if(q, "attn_q_norm.weight")?;
        let k = self.norm_if(k, "attn_k_norm.weight")?;
        let q = self.rope(q, "q_rope")?;
        let k = self.rope(k, "k_rope")?;
        let out = self.attend(q, k, v)?;
        let width = hp.n_heads * hp.value_len;
        let flat = self.reshape(out, [self.row_count(out), Dim::new(width)], "attn")?;
        let flat = self.wanted_rows(flat)?;
        self.linear(flat, "attn_output.weight", "attn_output.bias", "attn_out")
    }

    /// `[tokens, heads * width]` as `[tokens, heads, width]`.
    pub(super) fn heads(
        &mut self,
        x: ValueId,
        heads: u64,
        width: u64,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let dims = [self.row_count(x), Dim::new(heads), Dim::new(width)];
        self.reshape(x, dims, name)
    }

    pub(super) fn rope(&mut self, x: ValueId, name: &str) -> Result<ValueId, ArchError> {
        let attrs = self.block.rope.attrs();
        let operands: Vec<ValueId> =
            [x, self.place.past].into_iter().chain(self.rope_factors).collect();
        self.op(Op::Rope, &operands, attrs, name)
    }

    /// Appends keys and values to the caches, and lets the queries see them.
    pub(super) fn attend(
        &mut self,
        q: ValueId,
        k: ValueId,
        v: ValueId,
    ) -> Result<ValueId, ArchError> {
        let hp = self.hparams;
        self.k_cache = self.append(self.k_cache, k, "k_all")?;
        self.v_cache = self.append(self.v_cache, v, "v_all")?;
        let mut attrs = Attrs::new().with("scale", hp.attn_scale);
        if self.block.window > 0 {
            attrs = attrs.with("window", self.block.window as i64);
        }
        if hp.attn_softcap > 0.0 {
            attrs = attrs.with("softcap", hp.attn_softcap);
        }
        let mut operands = vec![q, self.k_cache, self.v_cache];
        operands.extend(self.place.values());
        self.op(Op::Attention, &operands, attrs, "attn_heads")
    }

    fn append(&mut self, cache: ValueId, rows: ValueId, name: &str) -> Result<ValueId, ArchError> {
        let mut operands = vec![donate(cache), rows.into()];
        operands.extend(plain(self.place.values()));
        let out = self.f.op_multi(Op::KvAppend, &operands, Attrs::new(), &[]);
        self.named(out.map(|out| out[0]), name)
    }
}
