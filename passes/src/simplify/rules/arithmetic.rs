//! Identities of numbers, and cheaper ways to the same number.

use aether_ir::{Attr, Attrs, Bindings, DType, Op, Tensor, TensorType, eval_inst};

use crate::egraph::Number;
use crate::simplify::rule::Compute::Attrs as Attributes;
use crate::simplify::rule::Cond::{Constant, Float, Holds, Int, NonNegative, PowerOfTwo, SameType};
use crate::simplify::rule::Legality::{Exact, Within, ZeroSign};
use crate::simplify::rule::{Rule, View, rule};

pub(super) static RULES: &[Rule] = &[
    rule("neg-neg", &["(neg (neg ?x))"], "?x", Exact, "Two negations are none."),
    rule("add-zero", &["(add ?x 0)"], "?x", ZeroSign, "Adding 0 changes nothing."),
    rule("sub-zero", &["(sub ?x 0)"], "?x", ZeroSign, "Subtracting 0 changes nothing."),
    rule("zero-sub", &["(sub 0 ?x)"], "(neg ?x)", ZeroSign, "0 - x is -x."),
    rule("mul-one", &["(mul ?x 1)"], "?x", Exact, "Multiplying by 1 changes nothing."),
    rule("div-one", &["(div ?x 1)"], "?x", Exact, "Dividing by 1 changes nothing."),
    rule("mul-minus-one", &["(mul ?x -1)"], "(neg ?x)", Exact, "x * -1 is -x."),
    rule("div-minus-one", &["(div ?x -1)"], "(neg ?x)", Exact, "x / -1 is -x."),
    rule("mul-zero-int", &["(mul ?x 0)"], "0", Exact, "An integer times 0 is 0.")
        .when(&[Int("?x")]),
    rule("sub-self-int", &["(sub ?x ?x)"], "0", Exact, "An integer minus itself is 0.")
        .when(&[Int("?x")]),
    rule("add-neg", &["(add ?x (neg ?y))"], "(sub ?x ?y)", Exact, "x + -y is x - y."),
    rule("sub-neg", &["(sub ?x (neg ?y))"], "(add ?x ?y)", Exact, "x - -y is x + y."),
    rule("neg-sub", &["(neg (sub ?x ?y))"], "(sub ?y ?x)", ZeroSign, "-(x - y) is y - x."),
    rule("mul-neg-neg", &["(mul (neg ?x) (neg ?y))"], "(mul ?x ?y)", Exact, "-x * -y is x * y."),
    rule("div-neg-neg", &["(div (neg ?x) (neg ?y))"], "(div ?x ?y)", Exact, "-x / -y is x / y.")
        .when(&[Float("?x")]),
    rule(
        "neg-mul-const",
        &["(neg (mul ?x ?c))"],
        "(mul ?x (splat{?n}:?t))",
        Exact,
        "A sign goes into a constant factor.",
    )
    .when(&[Constant("?c"), Float("?c")])
    .with(&[("?n", Attributes(negated)), ("?t", super::TYPE_OF_C)]),
    rule(
        "add-const-const-int",
        &["(add (add ?x ?c) ?d)"],
        "(add ?x (splat{?n}:?t))",
        Exact,
        "Integer constants are added first.",
    )
    .when(&[Int("?x"), Constant("?c"), Constant("?d"), SameType("?c", "?d")])
    .with(&[("?n", Attributes(sum)), ("?t", super::TYPE_OF_C)]),
    rule(
        "mul-const-const-int",
        &["(mul (mul ?x ?c) ?d)"],
        "(mul ?x (splat{?n}:?t))",
        Exact,
        "Integer constants are multiplied first.",
    )
    .when(&[Int("?x"), Constant("?c"), Constant("?d"), SameType("?c", "?d")])
    .with(&[("?n", Attributes(product)), ("?t", super::TYPE_OF_C)]),
    rule(
        "div-power-of-two",
        &["(div ?x ?c)"],
        "(mul ?x (splat{?n}:?t))",
        Exact,
        "Dividing by a power of two is multiplying by its reciprocal.",
    )
    .when(&[PowerOfTwo("?c")])
    .with(&[("?n", Attributes(reciprocal)), ("?t", super::TYPE_OF_C)]),
    rule(
        "div-sqrt",
        &["(div ?x (sqrt ?y))"],
        "(mul ?x (rsqrt ?y))",
        Within(3.0),
        "x / sqrt(y) is x * rsqrt(y).",
    ),
    rule(
        "one-div-sqrt",
        &["(div 1 (sqrt ?y))"],
        "(rsqrt ?y)",
        Within(2.0),
        "1 / sqrt(y) is rsqrt(y).",
    ),
    rule(
        "div-rsqrt",
        &["(div 1 (rsqrt ?y))"],
        "(sqrt ?y)",
        Within(2.0),
        "1 / rsqrt(y) is sqrt(y).",
    ),
    rule(
        "pow-zero",
        &["(pow ?x 0)"],
        "1",
        Exact,
        "Everything to the power of 0 is 1, NaN as well.",
    ),
    rule("pow-one", &["(pow ?x 1)"], "?x", Exact, "x to the power of 1 is x."),
    rule("one-pow", &["(pow 1 ?x)"], "1", Exact, "1 to any power is 1, NaN as well."),
    rule("pow-two", &["(pow ?x 2)"], "(mul ?x ?x)", Within(1.0), "x squared is x * x."),
    rule(
        "pow-three",
        &["(pow ?x 3)"],
        "(mul ?x (mul ?x ?x))",
        Within(2.0),
        "x cubed is x * (x * x).",
    ),
    rule(
        "pow-minus-one",
        &["(pow ?x -1)"],
        "(div 1 ?x)",
        Within(1.0),
        "x to the power of -1 is 1 / x.",
    ),
    rule(
        "pow-half",
        &["(pow ?x 0.5)"],
        "(sqrt ?x)",
        Within(1.0),
        "The power of 1/2 of what is not negative is its root.",
    )
    .when(&[NonNegative("?x")]),
    rule(
        "pow-minus-half",
        &["(pow ?x -0.5)"],
        "(rsqrt ?x)",
        Within(2.0),
        "The power of -1/2 of what is not negative is its reciprocal root.",
    )
    .when(&[NonNegative("?x")]),
    rule(
        "exp-log",
        &["(exp (log ?x))"],
        "?x",
        Within(1200.0),
        "exp(log(x)) is x where x is not negative; log rounds by up to its own size.",
    )
    .when(&[NonNegative("?x")]),
    rule("abs-neg", &["(abs (neg ?x))"], "(abs ?x)", Exact, "The sign does not matter to abs.")
        .when(&[Holds("the type has a sign", |v| {
            Some(!matches!(v.ty("?x")?.dtype, DType::U8 | DType::U32))
        })]),
    rule(
        "abs-non-negative",
        &["(abs ?x)"],
        "?x",
        ZeroSign,
        "What is not negative is its absolute value.",
    )
    .when(&[NonNegative("?x")]),
    rule("relu-non-negative", &["(relu ?x)"], "?x", ZeroSign, "What is not negative passes relu.")
        .when(&[NonNegative("?x")]),
    rule("max-zero", &["(max ?x 0)", "(max 0 ?x)"], "(relu ?x)", ZeroSign, "max(x, 0) is relu."),
    rule("sign-sign", &["(sign (sign ?x))"], "(sign ?x)", Exact, "sign is its own sign."),
    rule("cos-neg", &["(cos (neg ?x))"], "(cos ?x)", Exact, "Cosine is even."),
    rule("neg-sin-neg", &["(neg (sin (neg ?x)))"], "(sin ?x)", Exact, "Sine is odd."),
    rule("neg-tanh-neg", &["(neg (tanh (neg ?x)))"], "(tanh ?x)", Exact, "tanh is odd."),
    rule("neg-erf-neg", &["(neg (erf (neg ?x)))"], "(erf ?x)", Exact, "erf is odd."),
    rule(
        "floor-integral",
        &["(floor (floor ?x))", "(ceil (floor ?x))", "(round (floor ?x))"],
        "(floor ?x)",
        Exact,
        "What floor gives is integral already.",
    ),
    rule(
        "ceil-integral",
        &["(floor (ceil ?x))", "(ceil (ceil ?x))", "(round (ceil ?x))"],
        "(ceil ?x)",
        Exact,
        "What ceil gives is integral already.",
    ),
    rule(
        "round-integral",
        &["(floor (round ?x))", "(ceil (round ?x))", "(round (round ?x))"],
        "(round ?x)",
        Exact,
        "What round gives is integral already.",
    ),
    rule(
        "max-self",
        &["(max ?x ?x)", "(min ?x ?x)"],
        "?x",
        Exact,
        "The greater and the smaller of equals is either.",
    ),
    rule(
        "max-max",
        &[
            "(max ?x (max ?x ?y))",
            "(max ?x (max ?y ?x))",
            "(max (max ?x ?y) ?x)",
            "(max (max ?y ?x) ?x)",
        ],
        "(max ?x ?y)",
        ZeroSign,
        "Taking part once more in max changes nothing.",
    ),
    rule(
        "min-min",
        &[
            "(min ?x (min ?x ?y))",
            "(min ?x (min ?y ?x))",
            "(min (min ?x ?y) ?x)",
            "(min (min ?y ?x) ?x)",
        ],
        "(min ?x ?y)",
        ZeroSign,
        "Taking part once more in min changes nothing.",
    ),
    rule(
        "max-min-int",
        &[
            "(max ?x (min ?x ?y))",
            "(max ?x (min ?y ?x))",
            "(max (min ?x ?y) ?x)",
            "(max (min ?y ?x) ?x)",
        ],
        "?x",
        Exact,
        "max absorbs min of integers.",
    )
    .when(&[Int("?x")]),
    rule(
        "min-max-int",
        &[
            "(min ?x (max ?x ?y))",
            "(min ?x (max ?y ?x))",
            "(min (max ?x ?y) ?x)",
            "(min (max ?y ?x) ?x)",
        ],
        "?x",
        Exact,
        "min absorbs max of integers.",
    )
    .when(&[Int("?x")]),
    rule(
        "unary-splat",
        &["(@unary ?c)"],
        "(splat{?n})",
        Exact,
        "A function of a constant is a constant.",
    )
    .when(&[Constant("?c")])
    .with(&[("?n", Attributes(unary_value))]),
    rule(
        "binary-splat",
        &["(@binary ?c ?d)"],
        "(splat{?n})",
        Exact,
        "An operation on two constants is a constant.",
    )
    .when(&[Constant("?c"), Constant("?d")])
    .with(&[("?n", Attributes(binary_value))]),
];

/// The attributes of a splat of `value` in elements of `dtype`.
pub(super) fn splat_of(value: Number, dtype: DType) -> Attrs {
    let attr = match value {
        Number::Float(v) if dtype == DType::F32 => Attr::Float(shortest(v, dtype)),
        Number::Float(v) if !dtype.is_float() => Attr::Int(v as i64),
        Number::Int(v) if dtype.is_float() => Attr::Float(v as f64),
        _ => value.attr(),
    };
    Attrs::new().with("value", attr)
}

/// The shortest number that rounds to the element `value` of an f32 tensor; other elements as
/// they are.
pub(super) fn shortest(value: f64, dtype: DType) -> f64 {
    if dtype != DType::F32 {
        return value;
    }
    (value as f32).to_string().parse().unwrap_or(value)
}

fn negated(view: &View) -> Option<Attrs> {
    match view.number("?c")? {
        Number::Float(v) => Some(splat_of(Number::Float(-v), view.ty("?c")?.dtype)),
        Number::Int(_) => None,
    }
}

fn reciprocal(view: &View) -> Option<Attrs> {
    Some(Attrs::new().with("value", 1.0 / view.number("?c")?.as_f64()))
}

/// `op` on two integer constants, wrapped to their type.
fn folded(view: &View, op: Op) -> Option<Attrs> {
    value_of(op, &[(view.number("?c")?, view.ty("?c")?), (view.number("?d")?, view.ty("?d")?)])
}

fn sum(view: &View) -> Option<Attrs> {
    folded(view, Op::Add)
}

fn product(view: &View) -> Option<Attrs> {
    folded(view, Op::Mul)
}

fn unary_value(view: &View) -> Option<Attrs> {
    value_of(view.op("@unary")?, &[(view.number("?c")?, view.ty("?c")?)])
}

fn binary_value(view: &View) -> Option<Attrs> {
    folded(view, view.op("@binary")?)
}

/// The splat of what the op's reference meaning gives for these numbers.
fn value_of(op: Op, operands: &[(Number, &TensorType)]) -> Option<Attrs> {
    let scalar = |&(number, ty): &(Number, &TensorType)| match number {
        Number::Float(v) => Tensor::from_f64(ty.dtype, &[], &[v]).ok(),
        Number::Int(v) => Tensor::from_i64(ty.dtype, &[], &[v]).ok(),
    };
    let tensors: Vec<Tensor> = operands.iter().map(scalar).collect::<Option<_>>()?;
    let operands: Vec<&Tensor> = tensors.iter().collect();
    let types: Vec<TensorType> = tensors.iter().map(|t| t.ty().to_type()).collect();
    let types: Vec<&TensorType> = types.iter().collect();
    let attrs = Attrs::new();
    let ctx = aether_ir::op::InferCtx { operands: &types, attrs: &attrs, declared: &[] };
    let result = (op.info().infer)(&ctx).ok()?;
    let result = aether_ir::tensor::ConcreteType::of(result.first()?, &Bindings::new()).ok()?;
    let value = eval_inst(op, &attrs, &operands, std::slice::from_ref(&result)).ok()?;
    Some(splat_of(Number::of(value.first()?)?, result.dtype))
}
