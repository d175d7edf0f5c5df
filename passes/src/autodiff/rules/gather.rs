//! Reading and adding along an axis by indices: each is the adjoint of the other.

use aether_ir::{Attrs, Op};

use super::super::vjp::Vjp;
use super::axis_index;

type Ruled = Result<(), String>;

/// Rows that were read more than once have their gradients added up.
pub(crate) fn gather(v: &Vjp) -> Ruled {
    let axis = v.attrs().int("axis", 0);
    let zeros = v.e.splat(v.x(0).ty(), 0.0);
    let operands = [zeros, v.x(1), v.g()];
    v.give(0, v.e.op(Op::ScatterAdd, &operands, Attrs::new().with("axis", axis), None));
    Ok(())
}

pub(crate) fn scatter_add(v: &Vjp) -> Ruled {
    v.give(0, v.g());
    if v.needs(2) {
        let axis = axis_index(v.attrs().int("axis", 0), v.x(0).rank());
        v.give(2, v.g().gather(v.x(1), axis));
    }
    Ok(())
}
