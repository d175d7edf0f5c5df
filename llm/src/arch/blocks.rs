//! What layer functions are built from: parameters, norms, linear layers, the gated feed-forward
//! network. Attention is in `attention`, experts in `experts`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use aether_ir::{
    Attrs, BuildError, DType, Dim, Func, FuncBuilder, Op, Operand, TensorType, ValueId,
};

use super::hparams::{Block, Hparams};
use super::lora::{self, PairType, PairValue};
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
    /// What this block has for itself.
    pub block: Block,
    path: &'a Path,
    pub(super) f: FuncBuilder,
    x: ValueId,
    pub(super) place: Place,
    pub(super) k_cache: ValueId,
    pub(super) v_cache: ValueId,
    rows: Option<ValueId>,
    pub(super) rope_factors: Option<ValueId>,
    weights: HashMap<&'static str, ValueId>,
    /// What adapters add to weights, by their names; taken out where it is added.
    pairs: HashMap<&'static str, Vec<PairValue>>,
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
    let ty = |dtype, len| {
        let one = [bounds.context as u64, hparams.n_kv_heads, len];
        let dims: Vec<u64> = bounds.slots.map(|n| n as u64).into_iter().chain(one).collect();
        TensorType::new(dtype, dims)
    };
    let (k, v) = bounds.cache_types;
    (ty(k, hparams.key_len), ty(v, hparams.value_len))
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

/// The value times a number; itself when that is one.
pub(super) fn scaled(f: &mut FuncBuilder, x: ValueId, by: f64) -> Result<ValueId, BuildError> {
    if by == 1.0 {
        return Ok(x);
    }
    let by = number(f, by)?;
    f.op(Op::Mul, &[x, by], Attrs::new())
}

/// `cap * tanh(x / cap)`; x itself when the cap is 0.
pub(super) fn capped(f: &mut FuncBuilder, x: ValueId, cap: f64) -> Result<ValueId, BuildError> {
    if cap == 0.0 {
        return Ok(x);
    }
    let x = scaled(f, x, 1.0 / cap)?;
    let x = f.op(Op::Tanh, &[x], Attrs::new())?;
    scaled(f, x, cap)
}

/// A scalar constant.
pub(super) fn number(f: &mut FuncBuilder, value: f64) -> Result<ValueId, BuildError> {
    f.op_to(Op::Splat, &[], Attrs::new().with("value", value), TensorType::scalar(DType::F32))
}

impl<'a> LayerBuilder<'a> {
    pub(super) fn new(
        name: Arc<str>,
        hparams: &'a Hparams,
        path: &'a Path,
        bounds: &Bounds,
        (is_last, block): (bool, Block),
        rope_factors: Option<&TensorType>,
        weights: &[(&'static str, TensorType)],
    ) -> Self {
        let mut f = FuncBuilder::new(name);
        let x = f.param("x", stream_type(hparams, TOKENS));
        let place = Place::params(&mut f, bounds);
        let (k, v) = cache_types(hparams, bounds);
        let k_cache = f.param("k_cache", k);
        let v_cache = f.param("v_cache", v);
        let rows = is_last.then(|| f.param("rows", rows_type()));
        let rope_factors = rope_factors.map(|ty| f.param("rope_freqs", ty.clone()));
        let weights = weights
            .iter()
            .map(|(name, ty)| {
                let readable = format!("w_{}", const_name(name).replace('.', "_"));
                (*name, f.param(&readable, ty.clone()))
            })
            .collect();
        LayerBuilder {
            hparams,
            block,
            path,
            f,
            x,
            place,
            k_cache,
            v_cache,
            rows,
            rope_factors,
            weights,
            pairs: HashMap::new(),
        }
    }

    /// Parameters for what adapters add, behind the weights.
    pub(super) fn add_pairs(&mut self, pairs: &[PairType]) {
        for (i, pair) in pairs.iter().enumerate() {
            let value = pair.params(&mut self.f, i);
            self.pairs.entry(pair.weight).or_default().push(value);
        }
    }

    /// What adapters add to a weight.
    pub(super) fn pairs(&mut self, weight: &str) -> Vec<PairValue> {
        self.pairs.remove(weight).unwrap_or_default()
    }

    /// The function.
    ///
    /// # Errors
    /// When an adapter changes a weight that is used otherwise than in a product.
    pub(super) fn finish(self) -> Result<Func, ArchError> {
        match self.pairs.keys().next() {
            None => Ok(self.f.finish(&[self.x, self.k_cache, self.v_cache])),
            Some(name) => Err(ArchError::Adapter {
                path: self.path.to_owned(),
                problem: format!("adapters cannot change {name} of this architecture"),
            }),
        }
    }

    pub(super) fn built<T>(&self, result: Result<T, BuildError>) -> Result<T, ArchError> {
        result.map_err(|source| ArchError::Build { path: self.path.to_owned(), source })
    }

    /// A value that building gave, with a name.
    pub(super) fn named(
        &mut self,
        value: Result<ValueId, BuildError>,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let value = self.built(value)?;
        self.f.name(value, name);
        Ok(value)
    }

    pub(super) fn op(
        &mut self,
        op: Op,
        operands: &[ValueId],
        attrs: Attrs,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let out = self.f.op(op, operands, attrs);
        self.named(out, name)
    }

    /// The same elements under other dimensions.
    pub(super) fn reshape(
        &mut self,
        x: ValueId,
        dims: impl IntoIterator<Item = Dim>,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let ty = TensorType::new(self.f.ty(x).dtype, dims);
        let out = self.f.op_to(Op::Reshape, &[x], Attrs::new(), ty);
        self.named(out, name)
    }

    /// The first dimension: tokens, or behind the last layer's attention the wanted rows.
    pub(super) fn row_count(&self, x: ValueId) -> Dim {
        self.f.ty(x).shape.0[0].clone()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    pub(super) fn weight(&self, name: &str) -> Result<ValueId, ArchError> {
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
        self.x = self.op(Op::Add, &[self.x, value], Attrs::new(), name)?;
        Ok(())
    }

    /// The RMS norm of `x` with a weight, named after the weight.
    ///
    /// # Errors
    /// When the weight does not fit.
    pub fn norm(&mut self, x: ValueId, weight: &'static str) -> Result<ValueId, ArchError> {
        let w = self.weight(weight)?;
        let out = rms_norm(&mut self.f, x, w, self.hparams.rms_eps);
        self.named(out, const_name(weight))
    }

    /// As [`LayerBuilder::norm`] where the block has the weight, else `x`.
    ///
    /// # Errors
    /// When the weight does not fit.
    pub fn norm_if(&mut self, x: ValueId, weight: &'static str) -> Result<ValueId, ArchError> {
        if self.has(weight) { self.norm(x, weight) } else { Ok(x) }
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
        let pairs = self.pairs(weight);
        let out =
            product(&mut self.f, x, w).and_then(|out| lora::adapted(&mut self.f, x, out, &pairs));
        let Some(&bias) = self.weights.get(bias) else { return self.named(out, name) };
        let out = self.named(out, &format!("{name}_product"))?;
        let sum = as_f32(&mut self.f, bias)
            .and_then(|bias| self.f.op(Op::Add, &[out, bias], Attrs::new()));
        self.named(sum, name)
    }

    /// Goes on with the rows whose logits are wanted, in the last layer: the stream, and `x`.
    pub(super) fn wanted_rows(&mut self, x: ValueId) -> Result<ValueId, ArchError> {
        let Some(rows) = self.rows else { return Ok(x) };
        let axis = || Attrs::new().with("axis", 0i64);
        let x = self.op(Op::Gather, &[x, rows], axis(), "attn_rows")?;
        self.x = self.op(Op::Gather, &[self.x, rows], axis(), "x_rows")?;
        Ok(x)
    }

    /// The gated feed-forward network: `down(act(gate x) * up x)`, where `act` is a unary op.
    pub(super) fn gated_ffn(&mut self, x: ValueId, act: Op) -> Result<ValueId, ArchError> {
        let gate = self.linear(x, "ffn_gate.weight", "ffn_gate.bias", "ffn_gate")?;
        let up = self.linear(x, "ffn_up.weight", "ffn_up.bias", "ffn_up")?;
        let gate = self.op(act, &[gate], Attrs::new(), "ffn_act")?;
        let gated = self.op(Op::Mul, &[gate, up], Attrs::new(), "ffn_gated")?;
        self.linear(gated, "ffn_down.weight", "ffn_down.bias", "ffn_out")
    }
}

/// Operands none of which is donated.
pub(super) fn plain(values: impl IntoIterator<Item = ValueId>) -> Vec<Operand> {
    values.into_iter().map(Operand::from).collect()
}
