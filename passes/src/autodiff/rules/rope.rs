//! Rotary position embedding: the gradient is rotated back.

use aether_ir::{Op, Shape};

use super::super::vjp::Vjp;

type Ruled = Result<(), String>;

/// A rotation's transpose is the rotation by the opposite angle, and angles are proportional to
/// positions; the magnitude is the same either way.
pub(crate) fn rope(v: &Vjp) -> Ruled {
    if v.inst.operands.len() > 2 && v.needs(2) {
        return Err("the frequency factors have no gradient".to_owned());
    }
    let (g, at) = (v.g(), v.x(1));
    let tokens = Shape(vec![g.dim(0)]);
    let at = if at.rank() == 0 { v.e.iota(at.dtype(), tokens, 0) + at } else { at };
    let mut operands = vec![g, -at];
    if v.inst.operands.len() > 2 {
        operands.push(v.x(2));
    }
    v.give(0, v.e.op(Op::Rope, &operands, v.attrs().clone(), None));
    Ok(())
}
