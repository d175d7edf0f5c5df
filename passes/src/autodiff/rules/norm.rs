//! Softmax and the norms.

use aether_ir::Op;

use super::super::emit::Val;
use super::super::vjp::Vjp;
use super::axis_index;

type Ruled = Result<(), String>;

/// (g - Σ g y) y.
pub(crate) fn softmax(v: &Vjp) -> Ruled {
    let (g, y) = (v.g(), v.y(0));
    let axis = axis_index(v.attrs().int("axis", 0), y.rank());
    v.give(0, (g - (g * y).sum(&[axis], true)) * y);
    Ok(())
}

/// g - exp(y) Σ g.
pub(crate) fn log_softmax(v: &Vjp) -> Ruled {
    let (g, y) = (v.g(), v.y(0));
    let axis = axis_index(v.attrs().int("axis", 0), y.rank());
    v.give(0, g - y.op1(Op::Exp) * g.sum(&[axis], true));
    Ok(())
}

/// With r = 1 / sqrt(mean(x²) + eps), n = x r and h = g w: dx = r (h - n mean(h n)), dw = Σ g n.
pub(crate) fn rms_norm(v: &Vjp) -> Ruled {
    let (g, x) = (v.g(), v.x(0));
    let last = [x.rank() - 1];
    let r = inverse_deviation(v, x, &last);
    let n = x * r;
    if v.needs(0) {
        let h = g * v.x(1).cast(x.dtype());
        v.give(0, r * (h - n * (h * n).mean(&last, true)));
    }
    if v.needs(1) {
        v.give(1, g * n);
    }
    Ok(())
}

/// With c = x - mean(x), r = 1 / sqrt(mean(c²) + eps), n = c r and h = g w:
/// dx = r (h - mean(h) - n mean(h n)), dw = Σ g n, db = Σ g.
pub(crate) fn layer_norm(v: &Vjp) -> Ruled {
    let (g, x) = (v.g(), v.x(0));
    let last = [x.rank() - 1];
    if v.needs(0) || v.needs(1) {
        let centred = x - x.mean(&last, true);
        let r = inverse_deviation(v, centred, &last);
        let n = centred * r;
        if v.needs(0) {
            let h = g * v.x(1).cast(x.dtype());
            v.give(0, r * ((h - h.mean(&last, true)) - n * (h * n).mean(&last, true)));
        }
        if v.needs(1) {
            v.give(1, g * n);
        }
    }
    v.give(2, g);
    Ok(())
}

fn inverse_deviation<'e>(v: &Vjp<'e>, x: Val<'e>, axes: &[usize]) -> Val<'e> {
    ((x * x).mean(axes, true) + v.attrs().float("eps", 0.0)).op1(Op::Rsqrt)
}
