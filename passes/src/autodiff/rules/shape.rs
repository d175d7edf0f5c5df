//! Ops that move elements: the gradient moves them back.

use aether_ir::{Dim, Op, Shape};

use super::super::emit::Val;
use super::super::vjp::Vjp;
use super::axis_index;
use super::index::Index;

type Ruled = Result<(), String>;

pub(crate) fn reshape(v: &Vjp) -> Ruled {
    v.give(0, v.g().reshape(v.x(0).shape()));
    Ok(())
}

/// What was repeated is summed, which [`Vjp::give`] does.
pub(crate) fn broadcast(v: &Vjp) -> Ruled {
    v.give(0, v.g());
    Ok(())
}

pub(crate) fn transpose(v: &Vjp) -> Ruled {
    let perm = v.attrs().ints("perm").unwrap_or_default();
    let mut back = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        back[p as usize] = i;
    }
    v.give(0, v.g().transpose(&back));
    Ok(())
}

/// Each operand gets its part.
pub(crate) fn concat(v: &Vjp) -> Ruled {
    let g = v.g();
    let axis = axis_index(v.attrs().int("axis", 0), g.rank());
    let mut start = Dim::new(0);
    for i in 0..v.len() {
        let length = v.x(i).dim(axis);
        if v.needs(i) {
            v.give(i, part(g, axis, &start, &length));
        }
        start = &start + &length;
    }
    Ok(())
}

/// `length` elements from `start` on of an axis: a slice, or where a symbol takes part a gather.
fn part<'e>(x: Val<'e>, axis: usize, start: &Dim, length: &Dim) -> Val<'e> {
    let limit = start + length;
    if *length == x.dim(axis) {
        return x;
    }
    match (x.dim(axis).as_const(), start.as_const(), limit.as_const()) {
        (Some(_), Some(start), Some(limit)) => x.slice(axis, start, limit),
        _ => {
            let index = Index::over(x.emitter(), &Shape(vec![x.dim(axis)]));
            let count = index.count(&Shape(vec![length.clone()]), 0);
            let at = if start.is(0) { count } else { count + index.size(start) };
            x.gather(at, axis)
        }
    }
}

/// What was not picked has no gradient: elements are set apart by zeros, as they were picked, and
/// surrounded by zeros.
pub(crate) fn slice(v: &Vjp) -> Ruled {
    let x = v.x(0);
    let starts = v.attrs().ints("starts").unwrap_or_default();
    let ones = vec![1; x.rank()];
    let steps = v.attrs().ints("steps").unwrap_or(&ones);
    let mut g = v.g();
    let (mut low, mut high) = (vec![0; x.rank()], vec![0; x.rank()]);
    for axis in 0..x.rank() {
        let (Some(n), Some(picked)) = (x.dim(axis).as_const(), g.dim(axis).as_const()) else {
            continue;
        };
        let mut length = picked;
        if steps[axis] > 1 && picked > 1 {
            g = spread(g, axis, steps[axis]);
            length = (picked - 1) * steps[axis] as u64 + 1;
        }
        low[axis] = if picked == 0 { 0 } else { starts[axis] };
        high[axis] = n as i64 - low[axis] - length as i64;
    }
    v.give(0, g.pad(low, high));
    Ok(())
}

/// `step - 1` zeros between neighbours of an axis.
fn spread(g: Val, axis: usize, step: i64) -> Val {
    let shape = g.shape();
    let n = shape.0[axis].clone();
    let whole = &(&n * &Dim::new(step as u64)) - &Dim::new(step as u64 - 1);
    let outer = Shape(shape.0[..axis].to_vec()).numel();
    let inner = Shape(shape.0[axis + 1..].to_vec()).numel();
    // A new axis with one element becomes one with `step`; what comes after the last is cut off.
    let column = g.reshape(Shape(vec![outer.clone(), n.clone(), Dim::new(1), inner.clone()]));
    let wide = column.pad(vec![0; 4], vec![0, 0, step - 1, 0]);
    let joined = wide.reshape(Shape(vec![outer, &n * &Dim::new(step as u64), inner]));
    let mut dims = shape.0;
    dims[axis] = whole.clone();
    part(joined, 1, &Dim::new(0), &whole).reshape(Shape(dims))
}

pub(crate) fn pad(v: &Vjp) -> Ruled {
    let (x, mut g) = (v.x(0), v.g());
    let low = v.attrs().ints("low").unwrap_or_default();
    for (axis, &low) in low.iter().enumerate() {
        g = part(g, axis, &Dim::new(low as u64), &x.dim(axis));
    }
    v.give(0, g);
    Ok(())
}

pub(crate) fn flip(v: &Vjp) -> Ruled {
    v.give(0, v.e.op(Op::Flip, &[v.g()], v.attrs().clone(), None));
    Ok(())
}

/// Each operand has the gradient of its result.
pub(crate) fn barrier(v: &Vjp) -> Ruled {
    for i in 0..v.len() {
        if let Some(g) = v.cotangent(i) {
            v.give(i, g);
        }
    }
    Ok(())
}

/// The operand has the gradient of the result, wherever placement puts what computes it.
pub(crate) fn transfer(v: &Vjp) -> Ruled {
    barrier(v)
}
