//! Elementwise ops. `g` is the result's gradient, `x` the operand, `y` the result.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

use aether_ir::Op;

use super::super::emit::Val;
use super::super::vjp::Vjp;

type Ruled = Result<(), String>;

pub(crate) fn neg<'e>(g: Val<'e>, _: Val<'e>, _: Val<'e>) -> Val<'e> {
    -g
}

/// 0 at 0.
pub(crate) fn abs<'e>(g: Val<'e>, x: Val<'e>, _: Val<'e>) -> Val<'e> {
    g * x.op1(Op::Sign)
}

pub(crate) fn exp<'e>(g: Val<'e>, _: Val<'e>, y: Val<'e>) -> Val<'e> {
    g * y
}

pub(crate) fn log<'e>(g: Val<'e>, x: Val<'e>, _: Val<'e>) -> Val<'e> {
    g / x
}

pub(crate) fn sqrt<'e>(g: Val<'e>, _: Val<'e>, y: Val<'e>) -> Val<'e> {
    (0.5 * g) / y
}

/// -1/2 x^(-3/2), as -1/2 y / x.
pub(crate) fn rsqrt<'e>(g: Val<'e>, x: Val<'e>, y: Val<'e>) -> Val<'e> {
    (-0.5 * g) * (y / x)
}

pub(crate) fn sin<'e>(g: Val<'e>, x: Val<'e>, _: Val<'e>) -> Val<'e> {
    g * x.op1(Op::Cos)
}

pub(crate) fn cos<'e>(g: Val<'e>, x: Val<'e>, _: Val<'e>) -> Val<'e> {
    -(g * x.op1(Op::Sin))
}

pub(crate) fn tanh<'e>(g: Val<'e>, _: Val<'e>, y: Val<'e>) -> Val<'e> {
    g * (1.0 - y * y)
}

pub(crate) fn sigmoid<'e>(g: Val<'e>, _: Val<'e>, y: Val<'e>) -> Val<'e> {
    g * (y * (1.0 - y))
}

/// 0 at 0.
pub(crate) fn relu<'e>(g: Val<'e>, x: Val<'e>, _: Val<'e>) -> Val<'e> {
    g.where_(x.op2(Op::Gt, x.emitter().scalar(x.dtype(), 0.0)))
}

/// Φ(x) + x φ(x), with the normal distribution Φ and its density φ.
pub(crate) fn gelu<'e>(g: Val<'e>, x: Val<'e>, _: Val<'e>) -> Val<'e> {
    let cumulative = 0.5 * (1.0 + (FRAC_1_SQRT_2 * x).op1(Op::Erf));
    let density = (1.0 / (2.0 * PI).sqrt()) * (-0.5 * (x * x)).op1(Op::Exp);
    g * (cumulative + x * density)
}

/// With y = x σ(2u), u = sqrt(2/π) (x + 0.044715 x³): s + 2 x s (1 - s) u'.
pub(crate) fn gelu_tanh<'e>(g: Val<'e>, x: Val<'e>, _: Val<'e>) -> Val<'e> {
    let k = (2.0 / PI).sqrt();
    let xx = x * x;
    let s = ((2.0 * k) * (x * (1.0 + 0.044_715 * xx))).op1(Op::Sigmoid);
    let slope = (2.0 * k) * (1.0 + (3.0 * 0.044_715) * xx);
    g * (s * (1.0 + (x * (1.0 - s)) * slope))
}

pub(crate) fn silu<'e>(g: Val<'e>, x: Val<'e>, _: Val<'e>) -> Val<'e> {
    let s = x.op1(Op::Sigmoid);
    g * (s * (1.0 + x * (1.0 - s)))
}

pub(crate) fn erf<'e>(g: Val<'e>, x: Val<'e>, _: Val<'e>) -> Val<'e> {
    g * (FRAC_2_SQRT_PI * (-(x * x)).op1(Op::Exp))
}

/// The gradient goes back to the operand's element type.
pub(crate) fn cast<'e>(g: Val<'e>, _: Val<'e>, _: Val<'e>) -> Val<'e> {
    g
}

pub(crate) fn add(v: &Vjp) -> Ruled {
    v.give(0, v.g());
    v.give(1, v.g());
    Ok(())
}

pub(crate) fn sub(v: &Vjp) -> Ruled {
    v.give(0, v.g());
    if v.needs(1) {
        v.give(1, -v.g());
    }
    Ok(())
}

pub(crate) fn mul(v: &Vjp) -> Ruled {
    if v.needs(0) {
        v.give(0, v.g() * v.x(1));
    }
    if v.needs(1) {
        v.give(1, v.g() * v.x(0));
    }
    Ok(())
}

/// g / b, and -g / b · y.
pub(crate) fn div(v: &Vjp) -> Ruled {
    let g = v.g() / v.x(1);
    v.give(0, g);
    if v.needs(1) {
        v.give(1, -(g * v.y(0)));
    }
    Ok(())
}

/// b a^(b-1), 0 where b is 0; and log(a) y, 0 where a is 0.
pub(crate) fn pow(v: &Vjp) -> Ruled {
    let (g, a, b) = (v.g(), v.x(0), v.x(1));
    if v.needs(0) {
        let da = match b.constant() {
            Some(0.0) => None,
            Some(1.0) => Some(g),
            Some(2.0) => Some(g * (2.0 * a)),
            Some(n) => Some(g * (n * a.op2(Op::Pow, v.e.scalar(a.dtype(), n - 1.0)))),
            None => {
                let zero = b.op2(Op::Eq, v.e.scalar(b.dtype(), 0.0));
                let one = v.e.scalar(b.dtype(), 1.0);
                // The exponent is made harmless first: 0^(-1) would be infinite.
                let power = a.op2(Op::Pow, zero.select(one, b - 1.0));
                Some(g * (b * power))
            }
        };
        if let Some(da) = da {
            v.give(0, da);
        }
    }
    if v.needs(1) {
        let zero = a.op2(Op::Eq, v.e.scalar(a.dtype(), 0.0));
        let safe = zero.select(v.e.scalar(a.dtype(), 1.0), a);
        v.give(1, g * (safe.op1(Op::Log) * v.y(0)));
    }
    Ok(())
}

/// All to the greater; half to each when they are equal.
pub(crate) fn max(v: &Vjp) -> Ruled {
    extremum(v, Op::Gt)
}

/// All to the smaller; half to each when they are equal.
pub(crate) fn min(v: &Vjp) -> Ruled {
    extremum(v, Op::Lt)
}

fn extremum(v: &Vjp, wins: Op) -> Ruled {
    let (g, a, b) = (v.g(), v.x(0), v.x(1));
    let tie = a.op2(Op::Eq, b);
    let first = a.op2(wins, b);
    if v.needs(0) {
        v.give(0, tie.select(0.5 * g, g.where_(first)));
    }
    if v.needs(1) {
        v.give(1, tie.select(0.5 * g, g.unless(first)));
    }
    Ok(())
}

pub(crate) fn select(v: &Vjp) -> Ruled {
    if v.needs(1) {
        v.give(1, v.g().where_(v.x(0)));
    }
    if v.needs(2) {
        v.give(2, v.g().unless(v.x(0)));
    }
    Ok(())
}
