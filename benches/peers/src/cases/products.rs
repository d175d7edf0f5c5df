//! Products of matrices, and attention.

use aether_ir::{Attrs, DType, Op};
use candle_core::Tensor;

use super::{Draft, Error, array, random, tensor, to_vec};
use crate::Case;

pub fn matmul(name: &'static str, n: usize) -> Result<Case, Error> {
    product(name, n, false)
}

pub fn matmul_relu(name: &'static str) -> Result<Case, Error> {
    product(name, 1024, true)
}

/// Two square matrices multiplied, and what is negative of it set to 0 if asked.
fn product(name: &'static str, n: usize, relu: bool) -> Result<Case, Error> {
    let (a, b) = (random(n * n, 1), random(n * n, 2));
    let mut draft = Draft::new();
    let (x, w) = (draft.input("x", &[n, n], &a), draft.input("w", &[n, n], &b));
    let mut y = draft.op(Op::Matmul, &[x, w])?;
    if relu {
        y = draft.op(Op::Relu, &[y])?;
    }
    let (ca, cb) = (tensor(&a, &[n, n])?, tensor(&b, &[n, n])?);
    let (na, nb) = (array(&a, n, n)?, array(&b, n, n)?);
    let case = draft.case(name, y, move || {
        let y = ca.matmul(&cb)?;
        Ok(vec![if relu { y.relu()? } else { y }])
    })?;
    Ok(case.ndarray(move || {
        let mut y = na.dot(&nb);
        if relu {
            y.mapv_inplace(|v| v.max(0.0));
        }
        vec![to_vec(y)]
    }))
}

const HEADS: usize = 12;
const TOKENS: usize = 512;
const HEAD: usize = 64;

fn heads() -> [Vec<f32>; 3] {
    [4, 5, 6].map(|seed| random(HEADS * TOKENS * HEAD, seed))
}

/// `softmax(q kᵀ / 8) v` of heads first.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor) -> candle_core::Result<Vec<Tensor>> {
    let scores = (q.matmul(&k.t()?)? * 0.125)?;
    Ok(vec![candle_nn::ops::softmax_last_dim(&scores)?.matmul(v)?])
}

/// The op `attention`, which takes tokens first.
pub fn attention(name: &'static str) -> Result<Case, Error> {
    let data = heads();
    let dims = [TOKENS, HEADS, HEAD];
    let mut draft = Draft::new();
    let [q, k, v] = [0, 1, 2].map(|i| draft.input(["q", "k", "v"][i], &dims, &data[i]));
    let past = draft.splat(DType::I32, 0.0)?;
    let attrs = Attrs::new().with("scale", 0.125).with("causal", false);
    let y = draft.f.op(Op::Attention, &[q, k, v, past], attrs)?;
    let candle = |x: &[f32]| tensor(x, &dims)?.transpose(0, 1)?.contiguous().map_err(Error::from);
    let (q, k, v) = (candle(&data[0])?, candle(&data[1])?, candle(&data[2])?);
    draft.case(name, y, move || attend(&q, &k, &v))
}

/// The same from its parts, with the heads first.
pub fn composed(name: &'static str) -> Result<Case, Error> {
    let data = heads();
    let dims = [HEADS, TOKENS, HEAD];
    let mut draft = Draft::new();
    let [q, k, v] = [0, 1, 2].map(|i| draft.input(["q", "k", "v"][i], &dims, &data[i]));
    let s = draft.f.op(Op::Matmul, &[q, k], Attrs::new().with("transpose_b", true))?;
    let scale = draft.splat(DType::F32, 0.125)?;
    let s = draft.op(Op::Mul, &[s, scale])?;
    let p = draft.f.op(Op::Softmax, &[s], Attrs::new().with("axis", -1i64))?;
    let y = draft.op(Op::Matmul, &[p, v])?;
    let (q, k, v) = (tensor(&data[0], &dims)?, tensor(&data[1], &dims)?, tensor(&data[2], &dims)?);
    draft.case(name, y, move || attend(&q, &k, &v))
}
