//! Reductions: the gradient is spread over what was reduced.

use aether_ir::{Attrs, DType, Dim, Op, Shape, TensorType};

use super::super::emit::{Emitter, Val};
use super::super::vjp::Vjp;
use super::axis_index;

type Ruled = Result<(), String>;

/// The axes that an instruction reduces, in order.
fn axes(v: &Vjp) -> Vec<usize> {
    let rank = v.x(0).rank();
    let listed = v.attrs().ints("axes").unwrap_or_default();
    let mut axes: Vec<usize> = listed.iter().map(|&a| axis_index(a, rank)).collect();
    axes.sort_unstable();
    axes
}

/// A value of the result's shape in one that broadcasts to the operand's: with the reduced axes of
/// length 1, unless they lead.
fn keep<'e>(v: &Vjp<'e>, value: Val<'e>) -> Val<'e> {
    let mut shape = v.x(0).shape();
    let axes = axes(v);
    if axes.iter().enumerate().all(|(i, &a)| i == a) && value.rank() + axes.len() == shape.rank() {
        return value;
    }
    for a in axes {
        shape.0[a] = Dim::new(1);
    }
    value.reshape(shape)
}

pub(crate) fn sum(v: &Vjp) -> Ruled {
    v.give(0, keep(v, v.g()).broadcast(v.x(0).shape()));
    Ok(())
}

/// The product of some dimensions as a float scalar: a number, or counted by a sum of ones.
fn count<'e>(e: &'e Emitter, dims: &[Dim], dtype: DType) -> Val<'e> {
    let (known, open): (Vec<&Dim>, Vec<&Dim>) = dims.iter().partition(|d| d.as_const().is_some());
    let known: f64 = known.iter().filter_map(|d| d.as_const()).map(|n| n as f64).product();
    let ty = TensorType::with_shape(dtype, Shape(open.into_iter().cloned().collect()));
    let axes: Vec<usize> = (0..ty.rank()).collect();
    known * e.splat(ty, 1.0).sum(&axes, false)
}

pub(crate) fn mean(v: &Vjp) -> Ruled {
    let (g, x) = (v.g(), v.x(0));
    let dims: Vec<Dim> = axes(v).into_iter().map(|a| x.dim(a)).collect();
    // Half types cannot count far.
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let n = count(v.e, &dims, wide);
    let share = match n.constant() {
        Some(n) => g * (1.0 / n),
        None => g * (1.0 / n).cast(x.dtype()),
    };
    v.give(0, keep(v, share).broadcast(x.shape()));
    Ok(())
}

/// The greatest or smallest: split evenly among those that are equal to it.
pub(crate) fn extremum(v: &Vjp) -> Ruled {
    let x = v.x(0);
    let hit = x.op2(Op::Eq, keep(v, v.y(0))).cast(x.dtype());
    let share = keep(v, v.g()) / hit.sum(&axes(v), true);
    v.give(0, share * hit);
    Ok(())
}

/// By a product of products whose factors are differentiated one by one, so that zeros among
/// them are no special case in any order of derivative.
pub(crate) fn prod<'e>(v: &Vjp<'e>) -> Result<Vec<Val<'e>>, String> {
    let mut y = v.x(0);
    for axis in axes(v).into_iter().rev() {
        y = product(y, axis)?;
    }
    Ok(vec![y.reshape(v.y(0).shape())])
}

/// The product over an axis, which is dropped: halves are multiplied until one is left.
fn product(x: Val, axis: usize) -> Result<Val, String> {
    let mut x = x;
    let Some(mut n) = x.dim(axis).as_const() else {
        return Err(format!(
            "axis {axis} has the symbolic length {}: a product has a gradient only over axes of \
             known length",
            x.dim(axis)
        ));
    };
    let mut shape = x.shape();
    shape.0.remove(axis);
    if n == 0 {
        return Ok(x.emitter().splat(TensorType::with_shape(x.dtype(), shape), 1.0));
    }
    while n > 1 {
        let half = n / 2;
        let mut next = x.slice(axis, 0, half) * x.slice(axis, half, 2 * half);
        if n % 2 == 1 {
            next = next.concat(x.slice(axis, n - 1, n), axis);
        }
        x = next;
        n = n.div_ceil(2);
    }
    Ok(x.reshape(shape))
}

/// The running sum from the other end.
pub(crate) fn cumsum(v: &Vjp) -> Ruled {
    let attr = |name: &str| v.attrs().bool(name, false);
    let mut attrs = Attrs::new().with("axis", v.attrs().int("axis", 0));
    if attr("exclusive") {
        attrs = attrs.with("exclusive", true);
    }
    if !attr("reverse") {
        attrs = attrs.with("reverse", true);
    }
    v.give(0, v.e.op(Op::Cumsum, &[v.g()], attrs, None));
    Ok(())
}
