//! Softmax, the norms and attention recognised from their parts, and taken apart where a part
//! suffices.

use aether_ir::{Attrs, DType, Shape, TensorType};

use super::arithmetic::{shortest, splat_of};
use crate::egraph::Number;
use crate::simplify::rule::Compute::{Attrs as Attributes, Type};
use crate::simplify::rule::Cond::{self, Constant, Holds};
use crate::simplify::rule::Legality::{Limit, Within};
use crate::simplify::rule::{Rule, View, rule};

pub(super) static RULES: &[Rule] = &[
    rule("softmax", &[
        "(div (exp (sub ?x (reduce_max{?a} ?x))) (reduce_sum{?a} (exp (sub ?x (reduce_max{?a} ?x)))))",
    ], "(softmax{?s} ?x)", Within(8.0), "exp(x - max) over its sum along an axis is softmax.")
        .with(&[("?s", Attributes(axis_of_a))]),
    rule("log-softmax", &[
        "(sub (sub ?x (reduce_max{?a} ?x)) (log (reduce_sum{?a} (exp (sub ?x (reduce_max{?a} ?x))))))",
        "(sub ?x (add (reduce_max{?a} ?x) (log (reduce_sum{?a} (exp (sub ?x (reduce_max{?a} ?x)))))))",
    ], "(log_softmax{?s} ?x)", Within(8.0), "x - max - log(sum(exp(x - max))) along an axis is log_softmax.")
        .with(&[("?s", Attributes(axis_of_a))]),
    rule("log-of-softmax", &["(log (softmax{?s} ?x))"], "(log_softmax{?s} ?x)", Limit(16.0), "The logarithm of softmax is log_softmax, finite where a probability underflows."),
    rule("exp-of-log-softmax", &["(exp (log_softmax{?s} ?x))"], "(softmax{?s} ?x)", Within(64.0), "exp of log_softmax is softmax."),
    rule("softmax-shift", &["(softmax{?s} (sub ?x (reduce_max{?a} ?x)))"], "(softmax{?s} ?x)", Within(8.0), "softmax subtracts the greatest itself.")
        .when(&[Holds("the axes are the same", |v| {
            Some(axis_of_a(v)?.int("axis", -1) == v.attrs("?s")?.int("axis", -2))
        })]),
    rule("rms-norm", &[
        "(mul (mul ?x (rsqrt (add (reduce_mean{?a} (mul ?x ?x)) ?e))) ?w)",
        "(mul (mul ?x ?w) (rsqrt (add (reduce_mean{?a} (mul ?x ?x)) ?e)))",
    ], "(rms_norm{?n} ?x ?w)", Limit(16.0), "x * rsqrt(mean(x^2) + eps) * weight is rms_norm.")
        .when(&[EPS, LAST_AXIS, WEIGHT])
        .with(&[("?n", Attributes(eps))]),
    rule("rms-norm-bare", &["(mul ?x (rsqrt (add (reduce_mean{?a} (mul ?x ?x)) ?e)))"], "(rms_norm{?n} ?x (splat{?o}:?t))", Limit(16.0), "x * rsqrt(mean(x^2) + eps) is rms_norm with a weight of ones.")
        .when(&[EPS, LAST_AXIS])
        .with(&[("?n", Attributes(eps)), ("?o", Attributes(ones)), ("?t", Type(row))]),
    rule("layer-norm", &[
        "(add (mul (mul (sub ?x (reduce_mean{?a} ?x)) (rsqrt (add (reduce_mean{?a} (mul (sub ?x (reduce_mean{?a} ?x)) (sub ?x (reduce_mean{?a} ?x)))) ?e))) ?w) ?b)",
    ], "(layer_norm{?n} ?x ?w ?b)", Limit(16384.0), "(x - mean) * rsqrt(var + eps) * weight + bias is layer_norm; the parts lose digits where a row is nearly constant.")
        .when(&[EPS, LAST_AXIS, WEIGHT, BIAS])
        .with(&[("?n", Attributes(eps))]),
    rule("layer-norm-bare", &[
        "(mul (sub ?x (reduce_mean{?a} ?x)) (rsqrt (add (reduce_mean{?a} (mul (sub ?x (reduce_mean{?a} ?x)) (sub ?x (reduce_mean{?a} ?x)))) ?e)))",
    ], "(layer_norm{?n} ?x (splat{?o}:?t) (splat{?z}:?t))", Limit(16384.0), "(x - mean) * rsqrt(var + eps) is layer_norm with a weight of ones and no bias; the parts lose digits where a row is nearly constant.")
        .when(&[EPS, LAST_AXIS])
        .with(&[("?n", Attributes(eps)), ("?o", Attributes(ones)), ("?z", Attributes(zeros)), ("?t", Type(row))]),
    rule("attention", &[
        "(matmul (softmax{?s} (mul (matmul{transpose_b=true} ?q ?k) ?c)) ?v)",
    ], "(transpose{?p} (attention{?n} (transpose{?p} ?q) (transpose{?p} ?k) (transpose{?p} ?v) (splat{?o}:?t)))", Limit(16.0), "softmax(q · kᵀ * scale) · v per head is attention over all keys.")
        .when(&[Constant("?c"), HEADS])
        .with(&[
            ("?p", Attributes(heads_last)),
            ("?n", Attributes(attention)),
            ("?o", Attributes(past)),
            ("?t", Type(|_| Some(TensorType::scalar(DType::I32)))),
        ]),
];

/// One reduced axis that is kept.
fn axis_of_a(view: &View) -> Option<Attrs> {
    let attrs = view.attrs("?a")?;
    let [axis] = attrs.ints("axes")? else { return None };
    attrs.bool("keepdims", false).then(|| Attrs::new().with("axis", *axis))
}

const LAST_AXIS: Cond = Holds("the last axis alone is reduced and kept", |v| {
    let last = v.ty("?x")?.rank().checked_sub(1)?;
    Some(axis_of_a(v)?.int("axis", -1) == last as i64)
});

const EPS: Cond = Holds("eps is a constant that is not negative", |v| {
    let e = v.number("?e")?.as_f64();
    Some(e.is_finite() && e >= 0.0)
});

const WEIGHT: Cond = Holds("the weight is a vector over the last axis", |v| is_row(v, "?w"));
const BIAS: Cond = Holds("the bias is a vector over the last axis", |v| is_row(v, "?b"));

fn is_row(view: &View, name: &str) -> Option<bool> {
    Some(*view.ty(name)? == row(view)?)
}

/// A vector over the last axis.
fn row(view: &View) -> Option<TensorType> {
    let x = view.ty("?x")?;
    Some(TensorType::with_shape(x.dtype, Shape(vec![x.shape.0.last()?.clone()])))
}

fn eps(view: &View) -> Option<Attrs> {
    let eps = shortest(view.number("?e")?.as_f64(), view.ty("?e")?.dtype);
    Some(Attrs::new().with("eps", eps))
}

fn ones(_: &View) -> Option<Attrs> {
    Some(Attrs::new().with("value", 1.0))
}

fn zeros(_: &View) -> Option<Attrs> {
    Some(Attrs::new().with("value", 0.0))
}

/// q [heads, tokens, d], k [heads, context, d], v [heads, context, dv] of known sizes with no
/// more tokens than keys, as the op wants them; the softmax is over the keys.
const HEADS: Cond = Holds("q, k and v have heads, rows and columns", |v| {
    let (q, k, value) = (v.ty("?q")?, v.ty("?k")?, v.ty("?v")?);
    let shape = |ty: &TensorType| ty.shape.as_const().filter(|s| s.len() == 3);
    let (qs, ks, vs) = (shape(q)?, shape(k)?, shape(value)?);
    let one = q.dtype == k.dtype && k.dtype == value.dtype;
    let heads = qs[0] == ks[0] && ks[0] == vs[0] && qs[0] > 0;
    let keys = ks[1] == vs[1] && qs[1] <= ks[1] && ks[1] > 0 && i32::try_from(ks[1]).is_ok();
    let scalar = v.ty("?c")?.shape.numel().is(1);
    Some(one && heads && keys && scalar && v.attrs("?s")?.int("axis", 0) == 2)
});

fn heads_last(_: &View) -> Option<Attrs> {
    Some(Attrs::new().with("perm", vec![1, 0, 2]))
}

fn attention(view: &View) -> Option<Attrs> {
    let scale = shortest(view.number("?c")?.as_f64(), view.ty("?c")?.dtype);
    scale.is_finite().then(|| Attrs::new().with("scale", scale).with("causal", false))
}

/// All keys are valid: `past` and the tokens together are the keys.
fn past(view: &View) -> Option<Attrs> {
    let rows = |name| view.ty(name)?.shape.0.get(1)?.as_const();
    let past = rows("?k")?.checked_sub(rows("?q")?)?;
    Some(splat_of(Number::Int(i64::try_from(past).ok()?), DType::I32))
}
