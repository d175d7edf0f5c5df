//! The product of each row with the matrix of an expert that is picked for it, of many that are
//! stacked.
//!
//! Meaning: that of the matrix product, row by row.

use super::InferCtx;
use super::matmul::{Matrix, multiply_rows};
use crate::dtype::DType;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor, reserve};
use crate::types::{Layout, TensorType};

type Types = Result<Vec<TensorType>, String>;

/// `[tokens, picks, n]` in x's element type.
pub fn infer_expert_matmul(ctx: &InferCtx) -> Types {
    let (x, w, ids) = (ctx.operands[0], ctx.operands[1], ctx.operands[2]);
    if !x.dtype.is_float() || x.rank() != 3 {
        return Err(format!("expected floating-point [tokens, picks or 1, k], found {x}"));
    }
    if !(w.dtype.is_float() || w.dtype.is_quantized()) || w.rank() != 2 {
        return Err(format!("expected floating-point or quantised [experts * n, k], found {w}"));
    }
    if ids.dtype != DType::I32 || ids.rank() != 2 || ids.shape.0[0] != x.shape.0[0] {
        let tokens = &x.shape.0[0];
        return Err(format!("expected i32 [{tokens}, picks] as experts, found {ids}"));
    }
    if x.shape.0[1] != ids.shape.0[1] && !x.shape.0[1].is(1) {
        return Err(format!("{x} has neither one row for a token nor one for each of {ids}"));
    }
    if x.shape.0[2] != w.shape.0[1] {
        return Err(format!(
            "inner dimensions differ: {x} has {}, {w} has {}",
            x.shape.0[2], w.shape.0[1]
        ));
    }
    let experts = ctx.attrs.int("experts", 0);
    let rows = w.shape.0[0].as_const().zip(u64::try_from(experts).ok());
    let n = match rows.and_then(|(rows, e)| Some((rows, e, rows.checked_rem(e)?))) {
        Some((rows, experts, 0)) => rows / experts,
        _ => {
            return Err(format!(
                "the rows of {w} are no whole number for each of {experts} experts"
            ));
        }
    };
    if w.layout != Layout::RowMajor && !w.layout.divides(n) {
        return Err(format!("experts of {n} rows share groups of the packed {w}"));
    }
    let mut ty = x.clone();
    ty.shape.0[1] = ids.shape.0[1].clone();
    ty.shape.0[2] = n.into();
    Ok(vec![ty])
}

/// Every row times the transposed matrix of its expert.
pub fn eval_expert_matmul(ctx: &EvalCtx) -> Evaluated {
    let (x, w, ids, ty) = (ctx.operands[0], ctx.operands[1], ctx.operands[2], &ctx.results[0]);
    let [_, per_token, k] = *x.shape() else {
        return Err(EvalError(format!("expected three axes, found {}", x.ty())));
    };
    let (picks, n) = (ty.shape[1], ty.shape[2]);
    let experts = usize::try_from(ctx.attrs.int("experts", 0)).unwrap_or(0);
    let numel = ty.shape.iter().product();
    let mut out: Vec<f64> =
        reserve(numel).ok_or_else(|| EvalError(format!("no memory for {ty}")))?;
    out.resize(numel, 0.0);
    let values = x.to_f64_vec()?;
    for (pair, id) in ids.to_i64_vec()?.into_iter().enumerate() {
        let expert = usize::try_from(id).ok().filter(|&e| e < experts);
        let expert =
            expert.ok_or_else(|| EvalError(format!("expert {id} is not among the {experts}")))?;
        let row = if per_token == picks { pair } else { pair / picks };
        let at = Matrix { start: expert * n * k, rows: n, columns: k };
        if n > 0 {
            multiply_rows(&values[row * k..(row + 1) * k], w, &at, &mut out[pair * n..][..n])?;
        }
    }
    Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &out)?])
}
