//! LoRA adapters (Hu et al. 2021): to the product with a weight, `x · wᵀ`, comes
//! `x · aᵀ · bᵀ · scale`, where `a` has few rows. The weight itself stays as it is, quantised or not.
//!
//! Adapters are files of their own, as llama.cpp's `convert_lora_to_gguf.py` writes them:
//! `general.type` is `adapter`, `adapter.type` is `lora`, the tensors are called
//! `NAME.lora_a` and `NAME.lora_b` after those of the model, and `adapter.lora.alpha` over the number
//! of rows of `a` is a factor (1 when it is 0 or missing).

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use aether_ir::{Attrs, ConstData, FuncBuilder, Module, Op, TensorType, ValueId};

use super::blocks::{LayerBuilder, product, scaled};
use super::weights::{Spec, Within, const_name, file_order};
use super::{ArchError, blocks};
use crate::gguf::{Gguf, Optional, TensorInfo};

/// An adapter that was read.
#[derive(Debug)]
pub struct Adapter {
    gguf: Gguf,
    scale: f32,
    alpha: f32,
}

impl Adapter {
    /// The adapter in a file that counts `scale` times.
    ///
    /// # Errors
    /// When it is none, or of another kind than LoRA.
    pub fn new(gguf: Gguf, scale: f32) -> Result<Adapter, ArchError> {
        let wrong = |problem: String| wrong(&gguf, problem);
        let kind = gguf.get_str("general.type").optional()?.unwrap_or("model");
        if kind != "adapter" {
            return Err(wrong(format!("it is a {kind:?} (general.type), not an adapter")));
        }
        let kind = gguf.get_str("adapter.type")?;
        if kind != "lora" {
            return Err(wrong(format!("adapter.type is {kind:?}, but only \"lora\" is supported")));
        }
        // It would hold only behind these tokens.
        if gguf.get("adapter.alora.invocation_tokens").is_some() {
            let key = "adapter.alora.invocation_tokens";
            return Err(wrong(format!("activated adapters ({key}) are not supported")));
        }
        let alpha = gguf.get_f32("adapter.lora.alpha").optional()?.unwrap_or(0.0);
        if !alpha.is_finite() || !scale.is_finite() {
            return Err(wrong(format!("its alpha {alpha} and scale {scale} should be numbers")));
        }
        Ok(Adapter { gguf, scale, alpha })
    }

    /// Opens an adapter's file; `detached` as in [`Gguf::open_detached`].
    ///
    /// # Errors
    /// As [`Gguf::open`] and [`Adapter::new`].
    pub fn open(path: impl AsRef<Path>, scale: f32, detached: bool) -> Result<Adapter, ArchError> {
        let gguf = if detached { Gguf::open_detached(path)? } else { Gguf::open(path)? };
        Adapter::new(gguf, scale)
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// How often it counts.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    fn file(&self, tensor: &TensorInfo) -> String {
        self.gguf.parts()[tensor.part].path().to_string_lossy().into_owned()
    }
}

fn wrong(gguf: &Gguf, problem: String) -> ArchError {
    ArchError::Adapter { path: gguf.path().to_owned(), problem }
}

/// The two matrices that an adapter adds to a weight, and their factor.
pub(super) struct Pair {
    /// Which adapter.
    index: usize,
    a: TensorInfo,
    b: TensorInfo,
    factor: f64,
}

/// A pair as a layer function sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PairType {
    /// The weight that it is added to.
    pub weight: &'static str,
    a: TensorType,
    b: TensorType,
    factor: f64,
}

/// A pair in a function.
#[derive(Clone, Copy)]
pub(super) struct PairValue {
    a: ValueId,
    b: ValueId,
    factor: f64,
}

/// The adapters of a model that is being built.
pub(super) struct Adapters<'g> {
    all: &'g [Arc<Adapter>],
    /// Names of tensors that were found, of each adapter.
    used: Vec<HashSet<String>>,
}

impl<'g> Adapters<'g> {
    /// # Errors
    /// When an adapter is made for another architecture.
    pub fn new(all: &'g [Arc<Adapter>], arch: &str) -> Result<Adapters<'g>, ArchError> {
        for adapter in all {
            let of = adapter.gguf.get_str("general.architecture")?;
            if of != arch {
                let problem = format!("it is made for {of:?}, but the model is {arch:?}");
                return Err(wrong(&adapter.gguf, problem));
            }
        }
        Ok(Adapters { all, used: vec![HashSet::new(); all.len()] })
    }

    /// What the adapters add to a weight; `prefix` stands before its name. `stacked` says whether
    /// the model has it within another tensor.
    ///
    /// # Errors
    /// When one of two matrices is missing, or they do not fit the weight.
    pub fn find(
        &mut self,
        prefix: &str,
        spec: &Spec,
        stacked: Option<Within>,
    ) -> Result<Vec<Pair>, ArchError> {
        let mut pairs = Vec::new();
        if spec.shape.len() != 2 {
            return Ok(pairs);
        }
        let (n, k, count) = (spec.shape[0] / spec.count, spec.shape[1], spec.count);
        let name = format!("{prefix}{}", stacked.map_or(spec.name, |within| within.name));
        for (index, adapter) in self.all.iter().enumerate() {
            let [a, b] = ["a", "b"].map(|end| adapter.gguf.tensor(&format!("{name}.lora_{end}")));
            let (a, b) = match (a, b) {
                (Some(a), Some(b)) => (a, b),
                (None, None) => continue,
                _ => {
                    let problem = format!("of {name}.lora_a and .lora_b one is missing");
                    return Err(wrong(&adapter.gguf, problem));
                }
            };
            let rank = a.shape.get(1).copied().unwrap_or(1);
            let rows = stacked.map_or(n, |within| within.rows);
            let fits = |tensor: &TensorInfo, shape: [u64; 3]| {
                let found = tensor.shape.iter().copied().chain(std::iter::repeat(1));
                found.take(4).eq(shape.into_iter().chain([1]))
            };
            if !fits(a, [k, rank, count]) || !fits(b, [rank, rows, count]) {
                let problem = format!(
                    "{name}.lora_a and .lora_b have shapes {:?} and {:?}, but the model's weight is \
                     {:?}",
                    a.shape,
                    b.shape,
                    file_order(&[count, rows, k])
                );
                return Err(wrong(&adapter.gguf, problem));
            }
            let known = |t: &TensorInfo| {
                (t.dtype.is_float() && t.dtype != aether_ir::DType::F64) || t.dtype.is_quantized()
            };
            if !known(a) || !known(b) {
                let problem = format!("{name}.lora_a is {}, .lora_b {}", a.dtype, b.dtype);
                return Err(wrong(&adapter.gguf, problem));
            }
            self.used[index].extend([a.name.clone(), b.name.clone()]);
            let mut b = b.clone();
            if let Some(within) = stacked {
                let row = b.bytes / within.rows;
                (b.offset, b.bytes) = (b.offset + within.first * row, n * row);
            }
            let alpha = adapter.alpha;
            let relative = if alpha == 0.0 { 1.0 } else { f64::from(alpha) / rank as f64 };
            let factor = f64::from(adapter.scale) * relative;
            pairs.push(Pair { index, a: a.clone(), b, factor });
        }
        Ok(pairs)
    }

    /// Declares the matrices of a pair as constants of a function.
    pub fn declare(
        &self,
        module: &mut Module,
        f: &mut FuncBuilder,
        (prefix, spec): (&str, &Spec),
        pair: &Pair,
    ) -> (PairType, PairValue) {
        let adapter = &self.all[pair.index];
        let rank = pair.a.shape.get(1).copied().unwrap_or(1);
        let (rows, k) = (spec.shape[0], spec.shape[1]);
        let mut constant = |tensor: &TensorInfo, end: &str, shape: [u64; 2]| {
            let base = format!("{prefix}{}", spec.name);
            let name = format!("{}.lora_{end}.{}", const_name(&base), pair.index);
            let ty = TensorType::new(tensor.dtype, shape);
            let data = ConstData::File {
                path: adapter.file(tensor),
                offset: tensor.offset,
                bytes: tensor.bytes,
                sha256: None,
            };
            module.add_const(name.clone(), ty.clone(), data);
            let value = f.constant(name.clone(), ty.clone());
            f.name(value, &name.replace('.', "_"));
            (ty, value)
        };
        let (a_type, a) = constant(&pair.a, "a", [spec.count * rank, k]);
        let (b_type, b) = constant(&pair.b, "b", [rows, rank]);
        let factor = pair.factor;
        let ty = PairType { weight: spec.name, a: a_type, b: b_type, factor };
        (ty, PairValue { a, b, factor })
    }

    /// Refuses adapters with tensors that nothing asked for.
    ///
    /// # Errors
    /// Names the first.
    pub fn all_used(&self) -> Result<(), ArchError> {
        for (adapter, used) in self.all.iter().zip(&self.used) {
            let left = adapter.gguf.tensors().iter().find(|t| !used.contains(&t.name));
            if let Some(tensor) = left {
                let problem = format!(
                    "the model has no weight for its tensor {:?}, or one that adapters cannot \
                     change here: only those of products are",
                    tensor.name
                );
                return Err(wrong(&adapter.gguf, problem));
            }
        }
        Ok(())
    }
}

impl PairType {
    /// The parameters of a layer function for it.
    pub fn params(&self, f: &mut FuncBuilder, index: usize) -> PairValue {
        let name = const_name(self.weight).replace('.', "_");
        let a = f.param(&format!("lora_a{index}_{name}"), self.a.clone());
        let b = f.param(&format!("lora_b{index}_{name}"), self.b.clone());
        PairValue { a, b, factor: self.factor }
    }
}

impl PairValue {
    /// Both matrices.
    pub fn values(self) -> [ValueId; 2] {
        [self.a, self.b]
    }
}

/// `out` plus what the pairs make of `x`.
pub(super) fn adapted(
    f: &mut FuncBuilder,
    x: ValueId,
    mut out: ValueId,
    pairs: &[PairValue],
) -> Result<ValueId, aether_ir::BuildError> {
    for pair in pairs {
        let low = product(f, x, pair.a)?;
        let high = product(f, low, pair.b)?;
        let high = scaled(f, high, pair.factor)?;
        out = f.op(Op::Add, &[out, high], Attrs::new())?;
    }
    Ok(out)
}

impl LayerBuilder<'_> {
    /// Each row of `x` times the matrix of each of its experts in `ids`, of `count` matrices one
    /// above the other, and what adapters add.
    ///
    /// # Errors
    /// When the weight does not fit.
    pub(super) fn expert_product(
        &mut self,
        x: ValueId,
        weight: &'static str,
        ids: ValueId,
        count: u64,
        name: &str,
    ) -> Result<ValueId, ArchError> {
        let w = self.weight(weight)?;
        let attrs = || Attrs::new().with("experts", count as i64);
        let mut out = self.op(Op::ExpertMatmul, &[x, w, ids], attrs(), name)?;
        for pair in self.pairs(weight) {
            let low = self.op(Op::ExpertMatmul, &[x, pair.a, ids], attrs(), "lora_low")?;
            let high = self.op(Op::ExpertMatmul, &[low, pair.b, ids], attrs(), "lora_high")?;
            let high = blocks::scaled(&mut self.f, high, pair.factor);
            let high = self.built(high)?;
            out = self.op(Op::Add, &[out, high], Attrs::new(), &format!("{name}_adapted"))?;
        }
        Ok(out)
    }
}
