//! Attention and rotary positions.

use aether_ir::{Attrs, DType, Dim, Op, Shape};

use super::create::count_along;
use super::shape::{expand, permute, reshape};
use crate::graph::Tensor;

/// How attention scores are made.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Attention {
    /// Factor of the scores; 1 / sqrt(d) when `None`.
    pub scale: Option<f64>,
    /// A query sees keys up to its own place only, the last query up to the last key.
    pub causal: bool,
    /// Scores become cap · tanh(score / cap).
    pub soft_cap: Option<f64>,
}

/// Which pairs of a head are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// Neighbours: 2i with 2i + 1.
    Neighbours,
    /// Halves: i with i + n / 2.
    Halves,
}

impl Tensor {
    /// Scaled dot product attention: softmax(q kᵀ · scale) v for this q [..., tokens, d],
    /// k [..., keys, d] and v [..., keys, dv]. Leading axes broadcast, so heads that share keys
    /// are written with a length of 1.
    #[must_use]
    #[track_caller]
    pub fn attention(&self, k: &Tensor, v: &Tensor, options: Attention) -> Tensor {
        Tensor::build("attention", &[self, k, v], |s| {
            let (q, k, v) = (s.args[0], s.args[1], s.args[2]);
            let (qt, kt) = (s.ty(q), s.ty(k));
            let ([.., tokens, d], [.., keys, _]) = (qt.shape.0.as_slice(), kt.shape.0.as_slice())
            else {
                return Err("expected q [..., tokens, d] and k [..., keys, d]".to_owned());
            };
            let scale = match (options.scale, d.as_const()) {
                (Some(scale), _) => scale,
                (None, Some(d)) => 1.0 / (d as f64).sqrt(),
                (None, None) => return Err("a symbolic d needs an explicit scale".to_owned()),
            };
            let mut scores = s.op(Op::Matmul, &[q, k], Attrs::new().with("transpose_b", true))?;
            let dtype = s.ty(scores).dtype;
            let scale = s.scalar(dtype, scale)?;
            scores = s.plain(Op::Mul, &[scores, scale])?;
            if let Some(cap) = options.soft_cap {
                let cap = s.scalar(dtype, cap)?;
                let ratio = s.plain(Op::Div, &[scores, cap])?;
                let bent = s.plain(Op::Tanh, &[ratio])?;
                scores = s.plain(Op::Mul, &[bent, cap])?;
            }
            if options.causal {
                let (Some(t), Some(n)) = (tokens.as_const(), keys.as_const()) else {
                    return Err("a causal mask needs known numbers of tokens and keys".to_owned());
                };
                let i = count_along(s, tokens.clone(), 0, 2, DType::I32)?;
                let j = count_along(s, keys.clone(), 1, 2, DType::I32)?;
                let past = s.scalar(DType::I32, n as i64 - t as i64)?;
                let last = s.plain(Op::Add, &[i, past])?;
                let seen = s.plain(Op::Le, &[j, last])?;
                let never = s.scalar(dtype, f64::NEG_INFINITY)?;
                scores = s.plain(Op::Select, &[seen, scores, never])?;
            }
            let weights = s.op(Op::Softmax, &[scores], Attrs::new().with("axis", -1i64))?;
            s.plain(Op::Matmul, &[weights, v])
        })
    }

    /// Rotary position embedding (Su et al. 2021) of x [..., tokens, heads, d] at i32 positions:
    /// one for each token, or a scalar for the first.
    #[must_use]
    #[track_caller]
    pub fn rope(&self, positions: &Tensor, theta: f64, pairs: RopePairs) -> Tensor {
        Tensor::build("rope", &[self, positions], |s| {
            let (x, mut positions) = (s.args[0], s.args[1]);
            let ty = s.ty(x);
            let [batch @ .., tokens, heads, d] = ty.shape.0.as_slice() else {
                return Err(format!("expected [..., tokens, heads, d], found {ty}"));
            };
            let n_dims = d.as_const().ok_or("the last axis must have a known length")?;
            let mut rows = tokens.clone();
            if !batch.is_empty() {
                // Every sequence of the batch has the same positions.
                let n = batch.iter().fold(Dim::new(1), |acc, d| &acc * d);
                if s.ty(positions).rank() == 0 {
                    let count = count_along(s, tokens.clone(), 0, 1, DType::I32)?;
                    positions = s.plain(Op::Add, &[count, positions])?;
                }
                let own = s.ty(positions).shape;
                if own != Shape(vec![tokens.clone()]) {
                    return Err(format!("expected {tokens} positions, found the shape {own}"));
                }
                positions = reshape(s, positions, Shape(vec![Dim::new(1), tokens.clone()]))?;
                positions = expand(s, positions, Shape(vec![n.clone(), tokens.clone()]))?;
                rows = &n * tokens;
                positions = reshape(s, positions, Shape(vec![rows.clone()]))?;
            }
            let flat = reshape(s, x, Shape(vec![rows, heads.clone(), d.clone()]))?;
            let mode = match pairs {
                RopePairs::Neighbours => "norm",
                RopePairs::Halves => "neox",
            };
            let attrs =
                Attrs::new().with("mode", mode).with("theta", theta).with("n_dims", n_dims as i64);
            let turned = s.op(Op::Rope, &[flat, positions], attrs)?;
            reshape(s, turned, ty.shape.clone())
        })
    }

    /// x [..., tokens, heads · d] as [..., heads, tokens, d], the form that
    /// [`Tensor::attention`] takes.
    #[must_use]
    #[track_caller]
    pub fn split_heads(&self, heads: usize) -> Tensor {
        Tensor::build("split_heads", &[self], |s| {
            let x = s.args[0];
            let ty = s.ty(x);
            let [batch @ .., tokens, width] = ty.shape.0.as_slice() else {
                return Err(format!("expected [..., tokens, heads * d], found {ty}"));
            };
            let d = width
                .exact_div(&Dim::from(heads))
                .ok_or_else(|| format!("a width of {width} does not fall into {heads} heads"))?;
            let mut dims = batch.to_vec();
            dims.extend([tokens.clone(), Dim::from(heads), d]);
            let rank = dims.len();
            let parts = reshape(s, x, Shape(dims))?;
            permute(s, parts, &swapped(rank))
        })
    }

    /// x [..., heads, tokens, d] as [..., tokens, heads · d].
    #[must_use]
    #[track_caller]
    pub fn merge_heads(&self) -> Tensor {
        Tensor::build("merge_heads", &[self], |s| {
            let x = s.args[0];
            let ty = s.ty(x);
            let [batch @ .., heads, tokens, d] = ty.shape.0.as_slice() else {
                return Err(format!("expected [..., heads, tokens, d], found {ty}"));
            };
            let mut dims = batch.to_vec();
            dims.extend([tokens.clone(), heads * d]);
            let turned = permute(s, x, &swapped(ty.rank()))?;
            reshape(s, turned, Shape(dims))
        })
    }
}

/// The order of axes that exchanges the second and third from the end.
fn swapped(rank: usize) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 3, rank - 2);
    perm
}
