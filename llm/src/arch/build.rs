//! Puts a model together: constants, layer functions, `@main`.

use std::sync::Arc;

use aether_ir::{
    Attrs, BuildError, DType, FuncBuilder, Module, Op, Operand, TensorType, ValueId, donate,
};

use super::blocks::{self, Place, ROWS, TOKENS, cache_types, rows_type, stream_type};
use super::lora::{self, Adapters, PairType, PairValue};
use super::rope::RopeScaling;
use super::weights::{Spec, TOKEN_EMBD, Weights};
use super::{
    ArchError, Architecture, Block, Bounds, Hparams, LayerBuilder, MAIN, decoder, identifier,
};
use crate::gguf::{Gguf, TensorInfo};

/// What a block's function is made of; blocks with equal ones share a function.
#[derive(Clone, Debug, PartialEq)]
struct Signature {
    /// Whether the block is the last.
    last: bool,
    /// What the block has for itself.
    block: Block,
    /// Its weights by name and type.
    weights: Vec<(&'static str, TensorType)>,
    /// What adapters add to them.
    pairs: Vec<PairType>,
}

/// LongRoPE's factors beyond the original context, and up to it.
const LONG_FACTORS: &str = "rope_factors_long.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";

struct Builder<'g> {
    arch: &'g dyn Architecture,
    gguf: &'g Gguf,
    hp: &'g Hparams,
    bounds: &'g Bounds,
    weights: Weights<'g>,
    adapters: Adapters<'g>,
    module: Module,
    /// Layer functions made so far.
    layers: Vec<(Signature, Arc<str>)>,
}

pub(super) fn module(
    arch: &dyn Architecture,
    gguf: &Gguf,
    file: &str,
    (hp, bounds): (&Hparams, &Bounds),
    adapters: Adapters<'_>,
) -> Result<Module, ArchError> {
    let name = identifier(hp.name.as_deref().unwrap_or(arch.name()), "m_");
    let mut module = Module::new(name);
    module.declare_symbol(TOKENS, 1, bounds.batch.max(1) as u64);
    module.declare_symbol(ROWS, 1, bounds.rows.max(1) as u64);
    let weights = Weights::new(gguf, file);
    let builder = Builder { arch, gguf, hp, bounds, weights, adapters, module, layers: Vec::new() };
    builder.build()
}

impl<'g> Builder<'g> {
    fn built<T>(&self, result: Result<T, BuildError>) -> Result<T, ArchError> {
        result.map_err(|source| ArchError::Build { path: self.gguf.path().to_owned(), source })
    }

    fn constant(&mut self, f: &mut FuncBuilder, tensor: &TensorInfo, spec: &Spec) -> ValueId {
        let (name, ty) = self.weights.declare(&mut self.module, tensor, spec);
        let value = f.constant(name.clone(), ty);
        f.name(value, &name.replace('.', "_"));
        value
    }

    fn build(mut self) -> Result<Module, ArchError> {
        let hp = self.hp;
        let mut f = FuncBuilder::new(MAIN);
        let tokens = f.param("tokens", TensorType::new(DType::I32, [TOKENS]));
        let place = Place::params(&mut f, self.bounds);
        let rows = f.param("rows", rows_type());
        let (k, v) = self.bounds.cache_types;
        for (what, dtype, len) in [("keys", k, hp.key_len), ("values", v, hp.value_len)] {
            let block = dtype.block_len();
            if !len.is_multiple_of(block as u64) {
                let path = self.gguf.path().to_owned();
                return Err(ArchError::CacheType { path, what, dtype, block, len });
            }
        }
        let (k_type, v_type) = cache_types(hp, self.bounds);
        let caches: Vec<(ValueId, ValueId)> = (0..hp.n_layers())
            .map(|i| {
                let k = f.param(&format!("k{i}"), k_type.clone());
                (k, f.param(&format!("v{i}"), v_type.clone()))
            })
            .collect();

        let embd_spec = Spec::matrix(TOKEN_EMBD, hp.n_vocab, hp.n_embd);
        let embd = self.weights.require(&embd_spec)?;
        let embd = self.constant(&mut f, &embd, &embd_spec);
        let gathered = f
            .op(Op::Gather, &[embd, tokens], Attrs::new().with("axis", 0i64))
            .and_then(|x| blocks::as_f32(&mut f, x))
            .and_then(|x| blocks::scaled(&mut f, x, hp.embd_scale));
        let mut x = self.built(gathered)?;
        f.name(x, "embedded");

        let factors = self.rope_factors(&mut f)?;

        let mut returns = Vec::with_capacity(1 + 2 * caches.len());
        for (i, &(k, v)) in caches.iter().enumerate() {
            let mut operands: Vec<Operand> = vec![x.into()];
            operands.extend(place.values().map(Operand::from));
            operands.extend([donate(k), donate(v)]);
            let is_last = i + 1 == caches.len();
            operands.extend(is_last.then_some(Operand::from(rows)));
            operands.extend(factors.map(Operand::from));
            let (mut weights, mut pairs, mut pair_operands) = (Vec::new(), Vec::new(), Vec::new());
            let (block, prefix) = (hp.blocks[i], format!("blk.{i}."));
            for spec in self.arch.layer_weights(hp, &block) {
                if let Some(tensor) = self.weights.find(&prefix, &spec)? {
                    let value = self.constant(&mut f, &tensor, &spec);
                    weights.push((spec.name, f.ty(value).clone()));
                    operands.push(value.into());
                    for (ty, pair) in self.pairs(&mut f, &prefix, &spec)? {
                        pairs.push(ty);
                        pair_operands.extend(pair.values().map(Operand::from));
                    }
                }
            }
            operands.extend(pair_operands);
            let factors_type = factors.map(|v| f.ty(v).clone());
            let signature = Signature { last: is_last, block, weights, pairs };
            let callee = self.layer(signature, factors_type.as_ref())?;
            let of = if is_last { ROWS } else { TOKENS };
            let types = [stream_type(hp, of), k_type.clone(), v_type.clone()];
            let results = f.call(callee, &operands, &types);
            x = results[0];
            for (value, name) in results.iter().zip(["x", "k", "v"]) {
                f.name(*value, &format!("{name}{i}_out"));
            }
            returns.extend_from_slice(&results[1..]);
        }

        let norm_spec = Spec::vector("output_norm.weight", hp.n_embd);
        let norm = self.weights.require(&norm_spec)?;
        let norm = self.constant(&mut f, &norm, &norm_spec);
        let head_spec = Spec::matrix("output.weight", hp.n_vocab, hp.n_embd).optional();
        let (head, head_pairs) = match self.weights.find("", &head_spec)? {
            Some(tensor) => {
                let head = self.constant(&mut f, &tensor, &head_spec);
                (head, self.pairs(&mut f, "", &head_spec)?)
            }
            // Tied to the embedding.
            None => (embd, Vec::new()),
        };
        let head_pairs: Vec<PairValue> = head_pairs.into_iter().map(|(_, pair)| pair).collect();
        let normed = blocks::rms_norm(&mut f, x, norm, hp.rms_eps);
        let normed = self.built(normed)?;
        f.name(normed, "normed");
        self.weights.all_used()?;
        self.adapters.all_used()?;
        let logits = blocks::product(&mut f, normed, head)
            .and_then(|logits| lora::adapted(&mut f, normed, logits, &head_pairs))
            .and_then(|logits| blocks::capped(&mut f, logits, hp.logit_softcap));
        let logits = self.built(logits)?;
        f.name(logits, "logits");
        returns.insert(0, logits);
        // Who serves many also serves embeddings.
        returns.extend(self.bounds.slots.map(|_| normed));
        self.module.add_func(f.finish(&returns));
        Ok(self.module)
    }

    /// What adapters add to a weight, as constants of the function.
    fn pairs(
        &mut self,
        f: &mut FuncBuilder,
        prefix: &str,
        spec: &Spec,
    ) -> Result<Vec<(PairType, PairValue)>, ArchError> {
        let stacked = self.weights.stacked(prefix, spec);
        let pairs = self.adapters.find(prefix, spec, stacked)?;
        let declare = |pair| self.adapters.declare(&mut self.module, f, (prefix, spec), pair);
        Ok(pairs.iter().map(declare).collect())
    }

    /// What divides the frequencies of the rotation: Llama 3's factors, or of LongRoPE's those for
    /// the context that is asked for.
    fn rope_factors(&mut self, f: &mut FuncBuilder) -> Result<Option<ValueId>, ArchError> {
        let Some(rope) = self.hp.blocks.first().map(|block| block.rope) else { return Ok(None) };
        let spec = |name| Spec::vector(name, rope.dims / 2).optional();
        let mut found = None;
        // All are looked for: a file may have those for the other range too.
        for name in ["rope_freqs.weight", LONG_FACTORS, SHORT_FACTORS] {
            let spec = spec(name);
            let wanted = match name {
                LONG_FACTORS => self.bounds.context as u64 > rope.original_context,
                SHORT_FACTORS => self.bounds.context as u64 <= rope.original_context,
                _ => true,
            };
            let tensor = self.weights.find("", &spec)?;
            if wanted && found.is_none() {
                found = tensor.map(|tensor| self.constant(f, &tensor, &spec));
            }
        }
        match found {
            None if rope.scaling == RopeScaling::Long => {
                self.weights.require(&spec(SHORT_FACTORS))?;
                self.weights.require(&spec(LONG_FACTORS))?;
                Ok(None)
            }
            None => Ok(None),
            Some(factors) => {
                let cast = blocks::as_f32(f, factors);
                self.built(cast).map(Some)
            }
        }
    }

    /// The function for blocks with these weights.
    fn layer(
        &mut self,
        signature: Signature,
        factors: Option<&TensorType>,
    ) -> Result<Arc<str>, ArchError> {
        if let Some((_, name)) = self.layers.iter().find(|(s, _)| *s == signature) {
            return Ok(name.clone());
        }
        let name: Arc<str> = match self.layers.len() {
            0 => "layer".into(),
            n => format!("layer.{n}").into(),
        };
        let mut layer = LayerBuilder::new(
            name.clone(),
            self.hp,
            self.gguf.path(),
            self.bounds,
            (signature.last, signature.block),
            factors,
            &signature.weights,
        );
        layer.add_pairs(&signature.pairs);
        decoder::layer(&mut layer)?;
        self.module.add_func(layer.finish()?);
        self.layers.push((signature, name.clone()));
        Ok(name)
    }
}
