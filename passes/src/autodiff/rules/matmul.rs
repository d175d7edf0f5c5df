//! The matrix product. With y = x · w: dx = g · wᵀ and dw = xᵀ · g.

use aether_ir::{Dim, Layout, Shape};

use super::super::emit::Val;
use super::super::vjp::Vjp;

type Ruled = Result<(), String>;
type Composed<'e> = Result<Vec<Val<'e>>, String>;

pub(crate) fn matmul(v: &Vjp) -> Ruled {
    let transposed = v.attrs().bool("transpose_b", false);
    if v.needs(0) {
        v.give(0, left(v.g(), v.x(1), transposed)?);
    }
    if v.needs(1) {
        v.give(1, right(v.g(), v.x(0), v.x(1), transposed));
    }
    Ok(())
}

/// dx. A quantised weight is dequantised.
fn left<'e>(g: Val<'e>, w: Val<'e>, transposed: bool) -> Result<Val<'e>, String> {
    let ty = w.ty();
    if ty.layout != Layout::RowMajor {
        return Err(format!("the weight is packed ({ty}): differentiate before `layout` runs"));
    }
    let w = if ty.dtype.is_quantized() { w.cast(g.dtype()) } else { w };
    Ok(g.matmul(w, !transposed))
}

/// dw, as a product over all rows of x at once when one matrix multiplies them all.
fn right<'e>(g: Val<'e>, x: Val<'e>, w: Val<'e>, transposed: bool) -> Val<'e> {
    let (g, x) = if w.rank() == 2 { (rows(g), rows(x)) } else { (g, x) };
    if transposed { g.t().matmul(x, false) } else { x.t().matmul(g, false) }
}

/// The stacked rows of a tensor as one matrix.
fn rows(x: Val) -> Val {
    let shape = x.shape();
    let (last, lead) = match shape.0.split_last() {
        Some((last, lead)) => (last.clone(), Shape(lead.to_vec())),
        None => return x,
    };
    x.reshape(Shape(vec![lead.numel(), last]))
}

/// As the matrices picked, gathered, times the rows.
pub(crate) fn expert_matmul<'e>(v: &Vjp<'e>) -> Composed<'e> {
    let (x, w, picks) = (v.x(0), v.x(1), v.x(2));
    let ty = w.ty();
    if ty.layout != Layout::RowMajor {
        return Err(format!("the weight is packed ({ty}): differentiate before `layout` runs"));
    }
    let w = if ty.dtype.is_quantized() { w.cast(x.dtype()) } else { w };
    let experts = v.attrs().int("experts", 1).max(1) as u64;
    let (rows, k) = (w.dim(0).as_const().unwrap_or(0), w.dim(1));
    let n = rows / experts;
    let w = w.reshape(Shape(vec![Dim::new(experts), Dim::new(n), k.clone()]));
    let x = x.reshape(Shape(vec![x.dim(0), x.dim(1), Dim::new(1), k]));
    let out = x.matmul(w.gather(picks, 0), true);
    Ok(vec![out.reshape(Shape(vec![picks.dim(0), picks.dim(1), Dim::new(n)]))])
}
