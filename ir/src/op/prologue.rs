//! Ops that the fuse pass makes for targets on which the number of kernels decides: what precedes
//! a product, or follows several, in the same kernel.
//!
//! Meanings are those of the parts, each rounded to its type.

use super::attention::{eval_kv_append, infer_kv_append};
use super::fused::{eval_matmul_gated, eval_matmul_multi, infer_matmul_gated, infer_matmul_multi};
use super::norm::{eval_rms_norm, infer_rms_norm};
use super::rope::{eval_rope, infer_rope};
use super::{EvalFn, InferCtx, InferFn};
use crate::tensor::{EvalCtx, EvalError, Evaluated};
use crate::types::TensorType;

type Types = Result<Vec<TensorType>, String>;

/// The type rule of a product of the first operand normed by the second.
fn infer_normed(ctx: &InferCtx, product: InferFn) -> Types {
    let InferCtx { operands, attrs, declared } = *ctx;
    let [x, weight, rest @ ..] = operands else {
        return Err("expected x, a norm's weight and weights".to_owned());
    };
    infer_rms_norm(&InferCtx { operands: &[*x, *weight], attrs, declared: &[] })?;
    let operands: Vec<&TensorType> = std::iter::once(*x).chain(rest.iter().copied()).collect();
    product(&InferCtx { operands: &operands, attrs, declared })
}

/// The meaning of such a product.
fn eval_normed(ctx: &EvalCtx, product: EvalFn) -> Evaluated {
    let EvalCtx { operands, attrs, results } = *ctx;
    let [x, weight, rest @ ..] = operands else {
        return Err(EvalError("expected x, a norm's weight and weights".to_owned()));
    };
    let normed = [*x, *weight];
    let normed = eval_rms_norm(&EvalCtx { operands: &normed, attrs, results: &[x.ty()] })?;
    let operands: Vec<_> = normed.iter().chain(rest.iter().copied()).collect();
    product(&EvalCtx { operands: &operands, attrs, results })
}

/// As `matmul_multi`.
pub fn infer_norm_matmul_multi(ctx: &InferCtx) -> Types {
    infer_normed(ctx, infer_matmul_multi)
}

/// As `matmul_multi` of the normed x.
pub fn eval_norm_matmul_multi(ctx: &EvalCtx) -> Evaluated {
    eval_normed(ctx, eval_matmul_multi)
}

/// As `matmul_gated`.
pub fn infer_norm_matmul_gated(ctx: &InferCtx) -> Types {
    infer_normed(ctx, infer_matmul_gated)
}

/// As `matmul_gated` of the normed x.
pub fn eval_norm_matmul_gated(ctx: &EvalCtx) -> Evaluated {
    eval_normed(ctx, eval_matmul_gated)
}

/// The operands of `rope_append`: q, k, v, both caches, where tokens stand (one or two), factors.
struct Parts<'a, T> {
    q: &'a T,
    k: &'a T,
    v: &'a T,
    caches: [&'a T; 2],
    places: Vec<&'a T>,
    factors: Option<&'a T>,
}

impl<'a, T> Parts<'a, T> {
    /// A cache with an axis of slots takes a position and a slot for each token.
    fn of(operands: &[&'a T], rank: impl Fn(&T) -> usize) -> Result<Self, String> {
        let [q, k, v, k_cache, v_cache, rest @ ..] = operands else {
            return Err("expected q, k, v and two caches".to_owned());
        };
        let n = if rank(k_cache) > 3 { 2 } else { 1 };
        if rest.len() < n || rest.len() > n + 1 {
            return Err(format!("expected {n} operands after the caches, and factors or none"));
        }
        Ok(Parts {
            q,
            k,
            v,
            caches: [k_cache, v_cache],
            places: rest[..n].to_vec(),
            factors: rest.get(n).copied(),
        })
    }

    fn rope(&self, x: &'a T) -> Vec<&'a T> {
        [x, self.places[0]].into_iter().chain(self.factors).collect()
    }

    fn append(&self, cache: &'a T, rows: &'a T) -> Vec<&'a T> {
        [cache, rows].into_iter().chain(self.places.iter().copied()).collect()
    }
}

/// The types of q and of both caches.
pub fn infer_rope_append(ctx: &InferCtx) -> Types {
    let InferCtx { operands, attrs, .. } = *ctx;
    let p = Parts::of(operands, TensorType::rank)?;
    let infer = |rule: InferFn, operands: &[&TensorType]| {
        rule(&InferCtx { operands, attrs, declared: &[] })
    };
    let mut types = infer(infer_rope, &p.rope(p.q))?;
    infer(infer_rope, &p.rope(p.k))?;
    for (cache, rows) in p.caches.into_iter().zip([p.k, p.v]) {
        types.extend(infer(infer_kv_append, &p.append(cache, rows))?);
    }
    Ok(types)
}

/// q turned, and the caches with k turned and v.
pub fn eval_rope_append(ctx: &EvalCtx) -> Evaluated {
    let EvalCtx { operands, attrs, .. } = *ctx;
    let p = Parts::of(operands, |t| t.shape().len()).map_err(EvalError)?;
    let eval = |f: EvalFn, operands: &[&crate::tensor::Tensor], ty| {
        f(&EvalCtx { operands, attrs, results: &[ty] })
    };
    let mut results = eval(eval_rope, &p.rope(p.q), p.q.ty())?;
    let k = eval(eval_rope, &p.rope(p.k), p.k.ty())?;
    results.extend(eval(eval_kv_append, &p.append(p.caches[0], &k[0]), p.caches[0].ty())?);
    results.extend(eval(eval_kv_append, &p.append(p.caches[1], p.v), p.caches[1].ty())?);
    Ok(results)
}
