//! Casts: dropped, merged, and moved to where fewer bytes are cast.

use aether_ir::{Attrs, DType, TensorType};

use super::arithmetic::splat_of;
use crate::egraph::Number;
use crate::simplify::rule::Compute::{Attrs as Attributes, Type};
use crate::simplify::rule::Cond::{Constant, Holds};
use crate::simplify::rule::Legality::Exact;
use crate::simplify::rule::{Rule, View, rule};

pub(super) static RULES: &[Rule] = &[
    rule(
        "cast-same",
        &["(cast ?x)"],
        "?x",
        Exact,
        "A cast to the type that is there changes nothing.",
    )
    .when(&[Holds("the types are equal", |v| Some(v.root()? == v.ty("?x")?))]),
    rule(
        "cast-cast",
        &["(cast (cast:?m ?x))"],
        "(cast ?x)",
        Exact,
        "A cast on the way that keeps every value is left out.",
    )
    .when(&[Holds("the type on the way holds every value", |v| {
        let (from, on_the_way) = (v.ty("?x")?.dtype, v.ty("?m")?.dtype);
        // Integers wrap to narrower ones, floats saturate.
        let wraps = from.is_int() && on_the_way.is_float() && v.root()?.dtype.is_int();
        Some(holds_all(from, on_the_way) && !wraps)
    })]),
    rule(
        "cast-splat",
        &["(cast ?c)"],
        "(splat{?n})",
        Exact,
        "The cast of a constant is a constant.",
    )
    .when(&[Constant("?c")])
    .with(&[("?n", Attributes(cast_value))]),
    rule(
        "cast-transpose",
        &["(cast (transpose{?p} ?x))"],
        "(transpose{?p} (cast:?t ?x))",
        Exact,
        "A cast moves before a transposition.",
    )
    .with(&[("?t", Type(input_cast))]),
    rule(
        "transpose-cast",
        &["(transpose{?p} (cast ?x))"],
        "(cast (transpose{?p} ?x))",
        Exact,
        "A cast moves behind a transposition.",
    )
    .when(&[PLAIN]),
    rule(
        "cast-reshape",
        &["(cast (reshape ?x))"],
        "(reshape (cast:?t ?x))",
        Exact,
        "A cast moves before a reshape.",
    )
    .with(&[("?t", Type(input_cast))]),
    rule(
        "cast-broadcast",
        &["(cast (broadcast ?x))"],
        "(broadcast (cast:?t ?x))",
        Exact,
        "A cast moves before a broadcast.",
    )
    .with(&[("?t", Type(input_cast))]),
    rule(
        "slice-cast",
        &["(slice{?s} (cast ?x))"],
        "(cast (slice{?s} ?x))",
        Exact,
        "Only the part that is used is cast.",
    )
    .when(&[PLAIN]),
    rule(
        "cast-slice",
        &["(cast (slice{?s} ?x))"],
        "(slice{?s} (cast:?t ?x))",
        Exact,
        "A cast moves before a slice, where another use shares it.",
    )
    .with(&[("?t", Type(input_cast))]),
];

const PLAIN: crate::simplify::rule::Cond =
    Holds("the operand is not quantised", |v| Some(!v.ty("?x")?.dtype.is_quantized()));

/// The operand's shape in the element type of the whole.
fn input_cast(view: &View) -> Option<TensorType> {
    Some(TensorType::with_shape(view.root()?.dtype, view.ty("?x")?.shape.clone()))
}

fn cast_value(view: &View) -> Option<Attrs> {
    let from = view.ty("?c")?.dtype;
    let to = view.root()?.dtype;
    let tensor = match view.number("?c")? {
        Number::Float(v) => aether_ir::Tensor::from_f64(from, &[], &[v]),
        Number::Int(v) => aether_ir::Tensor::from_i64(from, &[], &[v]),
    };
    let tensor = tensor.ok()?;
    let result = aether_ir::tensor::ConcreteType::new(to, Vec::new());
    let cast = aether_ir::eval_inst(
        aether_ir::Op::Cast,
        &Attrs::new(),
        &[&tensor],
        std::slice::from_ref(&result),
    );
    Some(splat_of(Number::of(cast.ok()?.first()?)?, to))
}

/// Whether `to` has every value of `from`, so that a further cast gives the same from both.
fn holds_all(from: DType, to: DType) -> bool {
    use DType::*;
    from == to && !from.is_quantized()
        || match from {
            F16 | Bf16 => matches!(to, F32 | F64),
            F32 => to == F64,
            I8 => matches!(to, I16 | I32 | I64 | F16 | F32 | F64),
            U8 => matches!(to, I16 | I32 | I64 | U32 | F16 | F32 | F64),
            I16 => matches!(to, I32 | I64 | F32 | F64),
            I32 => matches!(to, I64 | F64),
            U32 => matches!(to, I64 | F64),
            Bool => to != Bool && !to.is_quantized(),
            _ => false,
        }
}
