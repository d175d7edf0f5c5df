//! Puts a model together: constants, layer functions, `@main`.

use std::sync::Arc;

use aether_ir::{
    Attrs, BuildError, DType, FuncBuilder, Module, Op, Operand, TensorType, ValueId, donate,
};

use super::blocks::{self, Place, ROWS, TOKENS, cache_types, rows_type, stream_type};
use super::weights::{Spec, TOKEN_EMBD, Weights};
use super::{ArchError, Architecture, Bounds, Hparams, LayerBuilder, MAIN, identifier};
use crate::gguf::{Gguf, TensorInfo};

/// Whether a block is the last, and its weights by name and type: blocks with equal ones share a
/// function.
type Signature = (bool, Vec<(&'static str, TensorType)>);

struct Builder<'g> {
    arch: &'g dyn Architecture,
    gguf: &'g Gguf,
    hp: &'g Hparams,
    bounds: &'g Bounds,
    weights: Weights<'g>,
    module: Module,
    /// Layer functions made so far.
    layers: Vec<(Signature, Arc<str>)>,
}

pub(super) fn module(
    arch: &dyn Architecture,
    gguf: &Gguf,
    file: &str,
    hp: &Hparams,
    bounds: &Bounds,
) -> Result<Module, ArchError> {
    let name = identifier(hp.name.as_deref().unwrap_or(arch.name()), "m_");
    let mut module = Module::new(name);
    module.declare_symbol(TOKENS, 1, bounds.batch.max(1) as u64);
    module.declare_symbol(ROWS, 1, bounds.rows.max(1) as u64);
    let weights = Weights::new(gguf, file);
    let builder = Builder { arch, gguf, hp, bounds, weights, module, layers: Vec::new() };
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
        let (k_type, v_type) = cache_types(hp, self.bounds);
        let caches: Vec<(ValueId, ValueId)> = (0..hp.n_layers)
            .map(|i| {
                let k = f.param(&format!("k{i}"), k_type.clone());
                (k, f.param(&format!("v{i}"), v_type.clone()))
            })
            .collect();

        let embd_spec = Spec::matrix(TOKEN_EMBD, hp.n_vocab, hp.n_embd);
        let embd = self.weights.require(TOKEN_EMBD, &embd_spec)?;
        let embd = self.constant(&mut f, embd, &embd_spec);
        let gathered = f
            .op(Op::Gather, &[embd, tokens], Attrs::new().with("axis", 0i64))
            .and_then(|x| blocks::as_f32(&mut f, x));
        let mut x = self.built(gathered)?;
        f.name(x, "embedded");

        let freqs_spec = Spec::vector("rope_freqs.weight", hp.rope_dims / 2).optional();
        let freqs = match self.weights.find(freqs_spec.name, &freqs_spec)? {
            Some(tensor) => {
                let value = self.constant(&mut f, tensor, &freqs_spec);
                let cast = blocks::as_f32(&mut f, value);
                Some(self.built(cast)?)
            }
            None => None,
        };

        let mut returns = Vec::with_capacity(1 + 2 * hp.n_layers);
        for (i, &(k, v)) in caches.iter().enumerate() {
            let mut operands: Vec<Operand> = vec![x.into()];
            operands.extend(place.values().map(Operand::from));
            operands.extend([donate(k), donate(v)]);
            let is_last = i + 1 == hp.n_layers;
            operands.extend(is_last.then_some(Operand::from(rows)));
            operands.extend(freqs.map(Operand::from));
            let mut weights = Vec::new();
            for spec in self.arch.layer_weights(hp) {
                let name = format!("blk.{i}.{}", spec.name);
                if let Some(tensor) = self.weights.find(&name, &spec)? {
                    let value = self.constant(&mut f, tensor, &spec);
                    weights.push((spec.name, f.ty(value).clone()));
                    operands.push(value.into());
                }
            }
            let freqs_type = freqs.map(|v| f.ty(v).clone());
            let callee = self.layer((is_last, weights), freqs_type.as_ref())?;
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
        let norm = self.weights.require(norm_spec.name, &norm_spec)?;
        let norm = self.constant(&mut f, norm, &norm_spec);
        let head_spec = Spec::matrix("output.weight", hp.n_vocab, hp.n_embd).optional();
        let head = match self.weights.find(head_spec.name, &head_spec)? {
            Some(tensor) => self.constant(&mut f, tensor, &head_spec),
            // Tied to the embedding.
            None => embd,
        };
        let normed = blocks::rms_norm(&mut f, x, norm, hp.rms_eps);
        let normed = self.built(normed)?;
        f.name(normed, "normed");
        let logits = blocks::product(&mut f, normed, head);
        let logits = self.built(logits)?;
        f.name(logits, "logits");
        returns.insert(0, logits);
        // Who serves many also serves embeddings.
        returns.extend(self.bounds.slots.map(|_| normed));
        self.module.add_func(f.finish(&returns));
        Ok(self.module)
    }

    /// The function for blocks with these weights.
    fn layer(
        &mut self,
        signature: Signature,
        freqs: Option<&TensorType>,
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
            signature.0,
            freqs,
            &signature.1,
        );
        self.arch.layer(&mut layer)?;
        self.module.add_func(layer.finish());
        self.layers.push((signature, name.clone()));
        Ok(name)
    }
}
