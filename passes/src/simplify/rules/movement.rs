//! Reshapes, transpositions and broadcasts: merged, dropped, and moved through elementwise ops
//! towards the result, where they meet others.

use aether_ir::{Attrs, TensorType};

use super::arithmetic::splat_of;
use crate::simplify::rule::Compute::{Attrs as Attributes, Type};
use crate::simplify::rule::Cond::{self, Constant, Holds, SameType};
use crate::simplify::rule::Legality::Exact;
use crate::simplify::rule::{Rule, View, rule};

pub(super) static RULES: &[Rule] = &[
    rule(
        "reshape-same",
        &["(reshape ?x)", "(broadcast ?x)"],
        "?x",
        Exact,
        "A reshape or broadcast to the shape that is there changes nothing.",
    )
    .when(&[SAME_AS_ROOT]),
    rule(
        "reshape-reshape",
        &["(reshape (reshape ?x))"],
        "(reshape ?x)",
        Exact,
        "Of two reshapes the last counts.",
    ),
    rule(
        "broadcast-broadcast",
        &["(broadcast (broadcast ?x))"],
        "(broadcast ?x)",
        Exact,
        "Of two broadcasts the last counts.",
    ),
    rule(
        "broadcast-as-reshape",
        &["(broadcast ?x)"],
        "(reshape ?x)",
        Exact,
        "A broadcast that only adds axes of length 1 is a reshape.",
    )
    .when(&[Holds("the number of elements stays", |v| {
        Some(v.ty("?x")?.shape.numel() == v.root()?.shape.numel())
    })]),
    rule(
        "broadcast-reshape",
        &["(broadcast (reshape:?m ?x))"],
        "(broadcast ?x)",
        Exact,
        "A broadcast adds leading axes of length 1 itself.",
    )
    .when(&[Holds("the reshape adds leading axes of length 1", |v| {
        let (x, m) = (v.ty("?x")?, v.ty("?m")?);
        let added = m.rank().checked_sub(x.rank())?;
        let ones = m.shape.0[..added].iter().all(|d| d.is(1));
        Some(ones && m.shape.0[added..] == x.shape.0[..])
    })]),
    rule(
        "transpose-identity",
        &["(transpose{?p} ?x)"],
        "?x",
        Exact,
        "A transposition that leaves every axis in place changes nothing.",
    )
    .when(&[Holds("every axis stays", |v| {
        let perm = v.attrs("?p")?.ints("perm")?;
        Some(perm.iter().enumerate().all(|(i, &p)| i as i64 == p))
    })]),
    rule(
        "transpose-transpose",
        &["(transpose{?p} (transpose{?q} ?x))"],
        "(transpose{?r} ?x)",
        Exact,
        "Two transpositions are one.",
    )
    .with(&[("?r", Attributes(composed))]),
    rule(
        "transpose-as-reshape",
        &["(transpose{?p} ?x)"],
        "(reshape ?x)",
        Exact,
        "A transposition that moves only axes of length 1 is a reshape.",
    )
    .when(&[Holds("only axes of length 1 move", |v| {
        let x = v.ty("?x")?;
        let perm = v.attrs("?p")?.ints("perm")?;
        let moved = perm.iter().filter(|&&p| !x.shape.0[p as usize].is(1));
        Some(moved.is_sorted())
    })]),
    rule(
        "transpose-broadcast",
        &["(transpose{?p} (broadcast ?x))"],
        "(broadcast (transpose{?p} ?x))",
        Exact,
        "A transposition moves before a broadcast that adds no axis.",
    )
    .when(&[Holds("the ranks are equal", |v| Some(v.ty("?x")?.rank() == v.root()?.rank()))]),
    rule(
        "flip-flip",
        &["(flip{?a} (flip{?a} ?x))"],
        "?x",
        Exact,
        "Turned round twice is as before.",
    ),
    rule(
        "flip-nothing",
        &["(flip{?a} ?x)"],
        "?x",
        Exact,
        "Turning round axes of length 1, or none, changes nothing.",
    )
    .when(&[Holds("every axis has length 1", |v| {
        let x = v.ty("?x")?;
        let axes = v.attrs("?a")?.ints("axes")?;
        Some(axes.iter().all(|&axis| x.shape.axis(axis).is_some_and(|a| x.shape.0[a].is(1))))
    })]),
    rule("pad-nothing", &["(pad{?a} ?x)"], "?x", Exact, "Padding with nothing changes nothing.")
        .when(&[Holds("nothing is added", |v| {
            let none = |name| Some(v.attrs("?a")?.ints(name)?.iter().all(|&n| n == 0));
            Some(none("low")? && none("high")?)
        })]),
    rule(
        "reshape-splat",
        &["(reshape ?c)", "(broadcast ?c)", "(transpose{?p} ?c)", "(slice{?p} ?c)"],
        "(splat{?n})",
        Exact,
        "A constant has its value in every shape.",
    )
    .when(&[Constant("?c")])
    .with(&[("?n", Attributes(same_value))]),
    rule(
        "unary-reshape",
        &["(@unary (reshape ?x))"],
        "(reshape (@unary ?x))",
        Exact,
        "A reshape moves behind a function.",
    ),
    rule(
        "unary-transpose",
        &["(@unary (transpose{?p} ?x))"],
        "(transpose{?p} (@unary ?x))",
        Exact,
        "A transposition moves behind a function.",
    ),
    rule(
        "unary-broadcast",
        &["(@unary (broadcast ?x))"],
        "(broadcast (@unary ?x))",
        Exact,
        "A function is computed before a broadcast.",
    ),
    rule(
        "binary-broadcast-left",
        &["(@binary (broadcast ?x) ?y)"],
        "(@binary ?x ?y)",
        Exact,
        "Operations broadcast their left operand.",
    ),
    rule(
        "binary-broadcast-right",
        &["(@binary ?x (broadcast ?y))"],
        "(@binary ?x ?y)",
        Exact,
        "Operations broadcast their right operand.",
    ),
    rule(
        "binary-reshape",
        &["(@binary (reshape ?x) (reshape ?y))"],
        "(reshape (@binary ?x ?y))",
        Exact,
        "A reshape of both operands moves behind the operation.",
    )
    .when(&[SAME_SHAPE, KEEPS_ELEMENTS]),
    rule(
        "binary-reshape-constant",
        &["(@binary (reshape ?x) ?c)"],
        "(reshape (@binary ?x (splat{?n}:?t)))",
        Exact,
        "A reshape moves behind an operation with a constant.",
    )
    .when(&[Constant("?c"), KEEPS_ELEMENTS])
    .with(&[("?n", Attributes(same_value)), ("?t", Type(scalar))]),
    rule(
        "constant-binary-reshape",
        &["(@binary ?c (reshape ?x))"],
        "(reshape (@binary (splat{?n}:?t) ?x))",
        Exact,
        "A reshape moves behind an operation on a constant.",
    )
    .when(&[Constant("?c"), KEEPS_ELEMENTS])
    .with(&[("?n", Attributes(same_value)), ("?t", Type(scalar))]),
    rule(
        "binary-transpose",
        &["(@binary (transpose{?p} ?x) (transpose{?p} ?y))"],
        "(transpose{?p} (@binary ?x ?y))",
        Exact,
        "A transposition of both operands moves behind the operation.",
    )
    .when(&[SameType("?x", "?y")]),
    rule(
        "binary-transpose-constant",
        &["(@binary (transpose{?p} ?x) ?c)"],
        "(transpose{?p} (@binary ?x (splat{?n}:?t)))",
        Exact,
        "A transposition moves behind an operation with a constant.",
    )
    .when(&[Constant("?c"), KEEPS_ELEMENTS])
    .with(&[("?n", Attributes(same_value)), ("?t", Type(scalar))]),
    rule(
        "constant-binary-transpose",
        &["(@binary ?c (transpose{?p} ?x))"],
        "(transpose{?p} (@binary (splat{?n}:?t) ?x))",
        Exact,
        "A transposition moves behind an operation on a constant.",
    )
    .when(&[Constant("?c"), KEEPS_ELEMENTS])
    .with(&[("?n", Attributes(same_value)), ("?t", Type(scalar))]),
    rule(
        "binary-broadcast-both",
        &["(@binary (broadcast ?x) (broadcast ?y))"],
        "(broadcast (@binary ?x ?y))",
        Exact,
        "Two broadcast operands are computed on before the broadcast.",
    ),
    rule(
        "binary-broadcast-constant",
        &["(@binary (broadcast ?x) ?c)"],
        "(broadcast (@binary ?x (splat{?n}:?t)))",
        Exact,
        "An operation with a constant is computed before a broadcast.",
    )
    .when(&[Constant("?c")])
    .with(&[("?n", Attributes(same_value)), ("?t", Type(scalar))]),
    rule(
        "constant-binary-broadcast",
        &["(@binary ?c (broadcast ?x))"],
        "(broadcast (@binary (splat{?n}:?t) ?x))",
        Exact,
        "An operation on a constant is computed before a broadcast.",
    )
    .when(&[Constant("?c")])
    .with(&[("?n", Attributes(same_value)), ("?t", Type(scalar))]),
];

const SAME_AS_ROOT: Cond = Holds("the types are equal", |v| Some(v.root()? == v.ty("?x")?));

const SAME_SHAPE: Cond =
    Holds("the shapes are equal", |v| Some(v.ty("?x")?.shape == v.ty("?y")?.shape));

/// The constant does not broadcast the rest.
const KEEPS_ELEMENTS: Cond = Holds("the number of elements stays", |v| {
    Some(v.root()?.shape.numel() == v.ty("?x")?.shape.numel())
});

/// Axis i of the result is axis p[i] of the inner one, which is axis q[p[i]] of the operand.
fn composed(view: &View) -> Option<Attrs> {
    let (p, q) = (view.attrs("?p")?.ints("perm")?, view.attrs("?q")?.ints("perm")?);
    let perm: Option<Vec<i64>> = p.iter().map(|&i| q.get(i as usize).copied()).collect();
    Some(Attrs::new().with("perm", perm?))
}

pub(super) fn same_value(view: &View) -> Option<Attrs> {
    Some(splat_of(view.number("?c")?, view.ty("?c")?.dtype))
}

/// A scalar of the constant's element type.
pub(super) fn scalar(view: &View) -> Option<TensorType> {
    Some(TensorType::scalar(view.ty("?c")?.dtype))
}
