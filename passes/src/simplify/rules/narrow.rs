//! Ops on f16 and bf16 computed in f32, for targets whose kernels are for f32 alone.
//!
//! The rules hold everywhere; cost decides. A target that has the op in the narrow type never pays
//! for the casts, one that would carry it out by its reference meaning does.

use aether_ir::{DType, TensorType};

use crate::simplify::rule::Compute::{self, Type};
use crate::simplify::rule::Cond::{self, Holds};
use crate::simplify::rule::Legality::Within;
use crate::simplify::rule::{Rule, View, rule};

pub(super) static RULES: &[Rule] = &[
    rule(
        "wide-softmax",
        &["(softmax{?a} ?x)"],
        "(cast (softmax{?a} (cast:?t ?x)))",
        Within(2.0),
        "softmax of f16 or bf16 is that of f32, rounded.",
    )
    .when(&[NARROW])
    .with(&[WIDE]),
    rule(
        "wide-log-softmax",
        &["(log_softmax{?a} ?x)"],
        "(cast (log_softmax{?a} (cast:?t ?x)))",
        Within(2.0),
        "log_softmax of f16 or bf16 is that of f32, rounded.",
    )
    .when(&[NARROW])
    .with(&[WIDE]),
    rule(
        "wide-rms-norm",
        &["(rms_norm{?a} ?x ?w)"],
        "(cast (rms_norm{?a} (cast:?t ?x) (cast:?u ?w)))",
        Within(2.0),
        "rms_norm of f16 or bf16 is that of f32, rounded.",
    )
    .when(&[SOME_NARROW])
    .with(&[WIDE, ("?u", Type(|v| wide(v, "?w")))]),
    rule(
        "wide-layer-norm",
        &["(layer_norm{?a} ?x ?w ?b)"],
        "(cast (layer_norm{?a} (cast:?t ?x) (cast:?u ?w) (cast:?v ?b)))",
        Within(2.0),
        "layer_norm of f16 or bf16 is that of f32, rounded.",
    )
    .when(&[SOME_NARROW])
    .with(&[WIDE, ("?u", Type(|v| wide(v, "?w"))), ("?v", Type(|v| wide(v, "?b")))]),
    rule(
        "wide-matmul",
        &["(matmul{?a} ?x ?w)"],
        "(cast (matmul{?a} (cast:?t ?x) (cast:?u ?w)))",
        Within(2.0),
        "A product with an f16 or bf16 matrix is that of f32 matrices, rounded.",
    )
    .when(&[SOME_NARROW])
    .with(&[WIDE, ("?u", Type(|v| wide(v, "?w")))]),
    rule(
        "wide-matmul-left",
        &["(matmul{?a} ?x ?w)"],
        "(cast (matmul{?a} (cast:?t ?x) ?w))",
        Within(2.0),
        "A product with an f16 or bf16 matrix on the left is that of an f32 matrix, rounded.",
    )
    .when(&[NARROW])
    .with(&[WIDE]),
    rule(
        "wide-conv",
        &["(conv{?a} ?x ?w)"],
        "(cast (conv{?a} (cast:?t ?x) (cast:?u ?w)))",
        Within(2.0),
        "conv of f16 or bf16 is that of f32, rounded.",
    )
    .when(&[SOME_NARROW])
    .with(&[WIDE, ("?u", Type(|v| wide(v, "?w")))]),
    rule(
        "wide-attention",
        &["(attention{?a} ?x ?k ?v ?p)"],
        "(cast (attention{?a} (cast:?t ?x) ?k ?v ?p))",
        Within(2.0),
        "attention with f16 or bf16 queries is that with f32 queries, rounded.",
    )
    .when(&[NARROW])
    .with(&[WIDE]),
    rule(
        "wide-scatter-add",
        &["(scatter_add{?a} ?x ?i ?v)"],
        "(cast (scatter_add{?a} (cast:?t ?x) ?i (cast:?u ?v)))",
        Within(2.0),
        "Sums of f16 or bf16 are those of f32, rounded once.",
    )
    .when(&[NARROW])
    .with(&[WIDE, ("?u", Type(|v| wide(v, "?v")))]),
];

const NARROW: Cond = Holds("the operand is f16 or bf16", |v| Some(narrow(v.ty("?x")?.dtype)));
const SOME_NARROW: Cond = Holds("an operand is f16 or bf16 and none is wider than f32", |v| {
    let operands = ["?x", "?w", "?b"].into_iter().filter_map(|name| v.ty(name));
    let types: Vec<DType> = operands.map(|ty| ty.dtype).collect();
    Some(types.iter().all(|&ty| narrow(ty) || ty == DType::F32) && types.into_iter().any(narrow))
});
const WIDE: (&str, Compute) = ("?t", Type(|v| wide(v, "?x")));

fn narrow(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::Bf16)
}

/// The type of an operand with elements of f32.
fn wide(view: &View, name: &str) -> Option<TensorType> {
    Some(TensorType::with_shape(DType::F32, view.ty(name)?.shape.clone()))
}
