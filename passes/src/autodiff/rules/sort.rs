//! Ops that pick elements by their order: the gradient goes back to where they were.

use super::super::vjp::Vjp;
use super::axis_index;
use super::index::scatter_along;

type Ruled = Result<(), String>;

/// The second result says where each element of the first comes from.
pub(crate) fn sort(v: &Vjp) -> Ruled {
    let axis = axis_index(v.attrs().int("axis", 0), v.x(0).rank());
    back(v, axis)
}

pub(crate) fn top_k(v: &Vjp) -> Ruled {
    back(v, v.x(0).rank() - 1)
}

fn back(v: &Vjp, axis: usize) -> Ruled {
    if let Some(g) = v.cotangent(0) {
        v.give(0, scatter_along(g, v.y(1), axis, &v.x(0).shape()));
    }
    Ok(())
}
