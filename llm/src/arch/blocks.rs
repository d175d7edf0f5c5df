//! Blocks that architectures share: norm, linear layer, attention over the cache, gated
//! feed-forward network.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use aether_ir::{
    Attrs, BuildError, DType, Dim, Func, FuncBuilder, Op, Operand, TensorType, ValueId, donate,
};

use super::hparams::{Hparams, RopeScaling};
use super::weights::const_name;
use super::{ArchError, Bounds};

/// Symbol of the number of tokens of a call.
pub(super) const TOKENS: &str = "s";
/// Symbol of the number of rows whose logits are wanted.
pub(super) const ROWS: &str = "r";

/// Builds one layer function.
///
/// Its parameters are the input, where its tokens stand ([`Place`]), the caches, for the last layer
/// `rows`, and then the weights; its results the output and the caches. The last layer goes on from its attention with the rows
/// whose logits are wanted: nothing later looks at the others.
pub struct LayerBuilder<'a> {
    /// Sizes and constants.
    pub hparams: &'a Hparams,
    path: &'a Path,
    f: FuncBuilder,
    x: ValueId,
    place: Place,
    k_cache: ValueId,
    v_cache: ValueId,
    rows: Option<ValueId>,
    rope_freqs: Option<ValueId>,
    weights: HashMap<&'static str, ValueId>,
}

/// Where the tokens of a call stand.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Of one sequence: how many tokens came before, a scalar. Of many: every token's position.
    pub past: ValueId,
    /// Of many sequences: every token's slot.
    pub slots: Option<ValueId>,
}

impl Place {
    /// The parameters `past`, or `positions` and `slots`.
    pub fn params(f: &mut FuncBuilder, bounds: &Bounds) -> Place {
        let each = TensorType::new(DType::I32, [TOKENS]);
        match bounds.slots {
            None => Place { past: f.param("past", TensorType::scalar(DType::I32)), slots: None },
            Some(_) => Place {
                past: f.param("positions", each.clone()),
                slots: Some(f.param("slots", each)),
            },
        }
    }

    /// The values.
    pub fn values(self) -> impl Iterator<Item = ValueId> {
        std::iter::once(self.past).chain(self.slots)
    }
}

/// The type of a layer's key and value cache.
pub(super) fn cache_types(hparams: &Hparams, bounds: &Bounds) -> (TensorType, TensorType) {
    let ty = |len| {
        let one = [bounds.context as u64, hparams.n_kv_heads, len];
        let dims: Vec<u64> = bounds.slots.map(|n| n as u64).into_iter().chain(one).collect();
        TensorType::new(DType::F16, dims)
    };
    (ty(hparams.key_len), ty(hparams.value_len))
}

/// The type of what flows between the layers, for the tokens or (`ROWS`) the wanted rows.
pub(super) fn stream_type(hparams: &Hparams, rows: &str) -> TensorType {
    TensorType::new(DType::F32, [Dim::from(rows), Dim::new(hparams.n_embd)])
}

/// The type of the indices of the rows whose logits are wanted.
pub(super) fn rows_type() -> TensorType {
    TensorType::new(DType::I32, [ROWS])
}

/// `rms_norm`, the weight cast when it is not f32.
pub(super) fn rms_norm(
    f: &mut FuncBuilder,
    x: ValueId,
    weight: ValueId,
    eps: f64,
) -> Result<ValueId, BuildError> {
    let weight = as_f32(f, weight)?;
    f.op(Op::RmsNorm, &[x, weight], Attrs::new().with("eps", eps))
}

/// x · wᵀ.
pub(super) fn product(
    f: &mut FuncBuilder,
    x: ValueId,
    weight: ValueId,
) -> Result<ValueId, BuildError> {
    f.op(Op::Matmul, &[x, weight], Attrs::new().with("transpose_b", true))
}

/// The value, cast when it is not f32.
pub(super) fn as_f32(f: &mut FuncBuilder, x: ValueId) -> Result<ValueId, BuildError> {
    if f.ty(x).dtype == DType::F32 {
        return Ok(x);
    }
    let ty = f.ty(x).with_dtype(DType::F32);
    f.op_to(Op::Cast, &[x], Attrs::new(), ty)
}

impl<'a> LayerBuilder<'a> {
    pub(super) fn new(
        name: Arc<str>,
        hparams: &'a Hparams,
        path: &'a Path,
        bounds: &Bounds,
        is_last: bool,
        rope_freqs: Option<&TensorType>,
        weights: &[(&'static str, TensorType)],
    ) -> Self {
        let mut f = FuncBuilder::new(name);
        let x = f.param("x", stream_type(hparams, TOKENS));
        let place = Place::params(&mut f, bounds);
        let (k, v) = cache_types(hparams, bounds);
        let k_cache = f.param("k_cache", k);
        let v_cache = f.param("v_cache", v);
        let rows = is_last.then(|| f.param("rows", rows_type()));
        let rope_freqs = rope_freqs.map(|ty| f.param("rope_freqs", ty.clone()));
        let weights = weights
            .iter()
            .map(|(name, ty)| {
                let readable = format!("w_{}", const_name(name).replace('.', "_"));
                (*name, f.param(&readable, ty.clone()))
            })
            .collect();
        LayerBuilder { hparams, path, f, x, place, k_cache, v_cache, rows, rope_freqs, weights }
    }

    pub(super) fn finish(self) -> Func {
        self.f.finish(&[self.x, self.k_cache, self.v_cache])
    }

    fn built<T>(&self, result: Result<T, BuildError>) -> Result<T, ArchError> {
        result.map_err(|source| ArchError::Build { path: self.path.to_owned(), source })
    }

    fn named(&mut self, value: ValueId, name: &str) -> ValueId {
        self.f.name(value, name);
        value
    }

    fn weight(&self, name: &str) -> Result<ValueId, ArchError> {
        self.weights.get(name).copied().ok_or_else(|| ArchError::MissingTensor {
            path: self.path.to_owned(),
            name: name.to_owned(),
            expected: Vec::new(),
        })
    }

    /// The layer's input, later what has been added to it.
    pub fn stream(&self) -> ValueId {
        self.x
    }

    /// Adds to the stream.
    ///
    /// # Errors
    /// When the types differ.
    pub fn add(&mut self, value: ValueId, name: &str) -> Result<(), ArchError> {
        let sum = self.f.op(Op::Add, &[self.x, value], Attrs::new());
        let sum = self.built(sum)?;
        self.x = self.named(sum, name);
        Ok(())
    }

    /// The RMS norm of `x` with a weight, named after the weight.
    ///
    /// # Errors
    /// When the weight does not fit.
    pub fn norm(&mut self, x: ValueId, weight: &'static str) -> Result<ValueId, ArchError> {
        let w = self.weight(weight)?;
        let out = rms_norm(&mut self.f, x, w, self.hparams.rms_eps);
        let out = self.built(out)?;
        Ok(self.named(out, const_name(weight)))
    }

    /// x · wᵀ, plus the bias when the model has it.
    ///
    /// # Errors
    /// When the weight does not fit.
    pub fn linear(
        &mut self,
        x: ValueId,
        weight: &'static str,
        bias: &'static str,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let w = self.weight(weight)?;
        let out = product(&mut self.f, x, w);
        let mut out = self.built(out)?;
        if let Some(&bias) = self.weights.get(bias) {
            self.named(out, &format!("{name}_product"));
            let sum = as_f32(&mut self.f, bias)
                .and_then(|bias| self.f.op(Op::Add, &[out, bias], Attrs::new()));
            out = self.built(sum)?;
        }
        Ok(self.named(out, name))
    }

    fn heads(
        &mut self,
        x: ValueId,
        heads: u64,
        width: u64,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let dims = [Dim::from(TOKENS), Dim::new(heads), Dim::new(width)];
        let ty = TensorType::new(DType::F32, dims);
        let out = self.f.op_to(Op::Reshape, &[x], Attrs::new(), ty);
        let out = self.built(out)?;
        Ok(self.named(out, name))
    }

    fn rope(&mut self, x: ValueId, name: &str) -> Result<ValueId, ArchError> {
        let hp = self.hparams;
        let mut attrs = Attrs::new()
            .with("mode", hp.rope_mode.name())
            .with("theta", hp.rope_theta)
            .with("n_dims", hp.rope_dims as i64);
        match hp.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => attrs = attrs.with("freq_scale", 1.0 / factor),
            RopeScaling::Yarn { factor, attn_factor, beta_fast, beta_slow, original_context } => {
                attrs = attrs
                    .with("freq_scale", 1.0 / factor)
                    .with("ext_factor", 1.0)
                    .with("attn_factor", attn_factor)
                    .with("beta_fast", beta_fast)
                    .with("beta_slow", beta_slow)
                    .with("n_ctx_orig", i64::from(original_context));
            }
        }
        let out = match self.rope_freqs {
            Some(freqs) => self.f.op(Op::Rope, &[x, self.place.past, freqs], attrs),
            None => self.f.op(Op::Rope, &[x, self.place.past], attrs),
        };
        let out = self.built(out)?;
        Ok(self.named(out, name))
    }

    /// Attention of the normed input over the cache, which grows by the new keys and values;
    /// the projection back is included.
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
        let q = self.rope(q, "q_rope")?;
        let k = self.rope(k, "k_rope")?;
        self.k_cache = self.append(self.k_cache, k, "k_all")?;
        self.v_cache = self.append(self.v_cache, v, "v_all")?;
        let mut attrs = Attrs::new().with("scale", 1.0 / (hp.key_len as f64).sqrt());
        if hp.window > 0 {
            attrs = attrs.with("window", hp.window as i64);
        }
        let mut operands = vec![q, self.k_cache, self.v_cache];
        operands.extend(self.place.values());
        let out = self.f.op(Op::Attention, &operands, attrs);
        let out = self.built(out)?;
        let out = self.named(out, "attn_heads");
        let dims = [Dim::from(TOKENS), Dim::new(hp.n_heads * hp.value_len)];
        let flat =
            self.f.op_to(Op::Reshape, &[out], Attrs::new(), TensorType::new(DType::F32, dims));
        let flat = self.built(flat)?;
        let mut flat = self.named(flat, "attn");
        if let Some(rows) = self.rows {
            flat = self.gather(flat, rows, "attn_rows")?;
            self.x = self.gather(self.x, rows, "x_rows")?;
        }
        self.linear(flat, "attn_output.weight", "attn_output.bias", "attn_out")
    }

    fn gather(&mut self, x: ValueId, rows: ValueId, name: &str) -> Result<ValueId, ArchError> {
        let out = self.f.op(Op::Gather, &[x, rows], Attrs::new().with("axis", 0i64));
        let out = self.built(out)?;
        Ok(self.named(out, name))
    }

    fn append(&mut self, cache: ValueId, rows: ValueId, name: &str) -> Result<ValueId, ArchError> {
        let mut operands = vec![donate(cache), rows.into()];
        operands.extend(self.place.values().map(Operand::from));
        let out = self.f.op_multi(Op::KvAppend, &operands, Attrs::new(), &[]);
        let out = self.built(out)?[0];
        Ok(self.named(out, name))
    }

    /// The gated feed-forward network: `down(act(gate x) * up x)`, where `act` is a unary op.
    ///
    /// # Errors
    /// When the weights do not fit.
    pub fn gated_ffn(&mut self, x: ValueId, act: Op) -> Result<ValueId, ArchError> {
        let gate = self.linear(x, "ffn_gate.weight", "ffn_gate.bias", "ffn_gate")?;
        let up = self.linear(x, "ffn_up.weight", "ffn_up.bias", "ffn_up")?;
        let gate = self.f.op(act, &[gate], Attrs::new());
        let gate = self.built(gate)?;
        let gate = self.named(gate, "ffn_act");
        let gated = self.f.op(Op::Mul, &[gate, up], Attrs::new());
        let gated = self.built(gated)?;
        let gated = self.named(gated, "ffn_gated");
        self.linear(gated, "ffn_down.weight", "ffn_down.bias", "ffn_out")
    }
}
