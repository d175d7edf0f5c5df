//! Activations recognised from their parts.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};

use crate::simplify::rule::Cond::Near;
use crate::simplify::rule::Legality::{Limit, Within};
use crate::simplify::rule::{Rule, rule};

/// The square root of 2 / pi.
const ROOT: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

pub(super) static RULES: &[Rule] = &[
    rule(
        "sigmoid",
        &["(div 1 (add 1 (exp (neg ?x))))"],
        "(sigmoid ?x)",
        Limit(6.0),
        "1 / (1 + exp(-x)) is sigmoid.",
    ),
    rule(
        "sigmoid-tanh",
        &["(mul 0.5 (add 1 (tanh (mul 0.5 ?x))))", "(add 0.5 (mul 0.5 (tanh (mul 0.5 ?x))))"],
        "(sigmoid ?x)",
        Within(6.0),
        "(1 + tanh(x / 2)) / 2 is sigmoid.",
    ),
    rule(
        "sigmoid-complement",
        &["(sub 1 (sigmoid ?x))"],
        "(sigmoid (neg ?x))",
        Within(4.0),
        "1 - sigmoid(x) is sigmoid(-x).",
    ),
    rule(
        "silu",
        &["(mul ?x (sigmoid ?x))", "(div ?x (add 1 (exp (neg ?x))))"],
        "(silu ?x)",
        Limit(8.0),
        "x * sigmoid(x) is silu.",
    ),
    rule(
        "gelu",
        &[
            "(mul (mul 0.5 ?x) (add 1 (erf (mul ?x ?c))))",
            "(mul ?x (mul 0.5 (add 1 (erf (mul ?x ?c)))))",
            "(mul 0.5 (mul ?x (add 1 (erf (mul ?x ?c)))))",
        ],
        "(gelu ?x)",
        Limit(8.0),
        "x / 2 * (1 + erf(x / sqrt(2))) is gelu.",
    )
    .when(&[Near("?c", FRAC_1_SQRT_2)]),
    rule(
        "gelu-div",
        &[
            "(mul (mul 0.5 ?x) (add 1 (erf (div ?x ?c))))",
            "(mul ?x (mul 0.5 (add 1 (erf (div ?x ?c)))))",
            "(mul 0.5 (mul ?x (add 1 (erf (div ?x ?c)))))",
        ],
        "(gelu ?x)",
        Limit(8.0),
        "x / 2 * (1 + erf(x / sqrt(2))) is gelu.",
    )
    .when(&[Near("?c", SQRT_2)]),
    rule(
        "gelu-tanh",
        &[
            "(mul (mul 0.5 ?x) (add 1 (tanh (mul ?c (add ?x (mul ?k (mul ?x (mul ?x ?x))))))))",
            "(mul ?x (mul 0.5 (add 1 (tanh (mul ?c (add ?x (mul ?k (mul ?x (mul ?x ?x)))))))))",
            "(mul 0.5 (mul ?x (add 1 (tanh (mul ?c (add ?x (mul ?k (mul ?x (mul ?x ?x)))))))))",
        ],
        "(gelu_tanh ?x)",
        Limit(12.0),
        "The tanh approximation of gelu.",
    )
    .when(&[Near("?c", ROOT), Near("?k", 0.044_715)]),
];
