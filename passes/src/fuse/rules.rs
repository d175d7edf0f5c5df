//! The local fusion rules, as data.

use aether_ir::Op;

/// A rewrite of a single result: patterns over the e-graph, and the op that does the same.
pub struct FuseRule {
    pub name: &'static str,
    pub doc: &'static str,
    pub forms: &'static [Form],
}

/// One pattern of a rule and what it becomes.
pub struct Form {
    /// Heads are ops with their attributes, variables begin with `?`.
    pub pattern: &'static str,
    pub op: Op,
    /// The one text attribute of the new op, when it has one.
    pub attr: Option<(&'static str, &'static str)>,
    /// The new op has `transpose_b = true`.
    pub transpose_b: bool,
    /// The pattern's variables that become operands.
    pub operands: &'static [&'static str],
}

const fn add(pattern: &'static str) -> Form {
    let operands = &["?x", "?w", "?r"];
    Form { pattern, op: Op::MatmulAdd, attr: None, transpose_b: false, operands }
}

const fn gated(pattern: &'static str, act: &'static str) -> Form {
    Form {
        pattern,
        op: Op::MatmulGated,
        attr: Some(("act", act)),
        transpose_b: false,
        operands: &["?x", "?gate", "?up"],
    }
}

const fn act(
    pattern: &'static str,
    act: &'static str,
    transpose_b: bool,
    operands: &'static [&'static str],
) -> Form {
    Form { pattern, op: Op::MatmulAct, attr: Some(("act", act)), transpose_b, operands }
}

macro_rules! act_forms {
    ($($act:literal),*) => {
        &[$(
            act(concat!("(", $act, " (matmul ?x ?w))"), $act, false, &["?x", "?w"]),
            act(concat!("(", $act, " (add (matmul ?x ?w) ?r))"), $act, false, &["?x", "?w", "?r"]),
            act(concat!("(", $act, " (add ?r (matmul ?x ?w)))"), $act, false, &["?x", "?w", "?r"]),
            act(concat!("(", $act, " (matmul{transpose_b=true} ?x ?w))"), $act, true, &["?x", "?w"]),
            act(
                concat!("(", $act, " (add (matmul{transpose_b=true} ?x ?w) ?r))"),
                $act,
                true,
                &["?x", "?w", "?r"],
            ),
            act(
                concat!("(", $act, " (add ?r (matmul{transpose_b=true} ?x ?w)))"),
                $act,
                true,
                &["?x", "?w", "?r"],
            ),
        )*]
    };
}

macro_rules! gated_forms {
    ($($act:literal),*) => {
        &[$(
            gated(concat!(
                "(mul (", $act, " (matmul{transpose_b=true} ?x ?gate))",
                " (matmul{transpose_b=true} ?x ?up))"
            ), $act),
            gated(concat!(
                "(mul (matmul{transpose_b=true} ?x ?up)",
                " (", $act, " (matmul{transpose_b=true} ?x ?gate)))"
            ), $act),
        )*]
    };
}

/// Every local rule.
pub static RULES: &[FuseRule] = &[
    FuseRule {
        name: "matmul-add",
        doc: "x · wᵀ + r becomes matmul_add, for r of the product's shape or a row of it.",
        forms: &[
            add("(add (matmul{transpose_b=true} ?x ?w) ?r)"),
            add("(add ?r (matmul{transpose_b=true} ?x ?w))"),
        ],
    },
    FuseRule {
        name: "matmul-gated",
        doc: "act(x · gᵀ) * (x · uᵀ) becomes matmul_gated, which reads x once.",
        forms: gated_forms!("silu", "gelu", "gelu_tanh"),
    },
    FuseRule {
        name: "matmul-act",
        doc: "act(x · w) and act(x · w + r) become matmul_act.",
        forms: act_forms!("relu", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh"),
    },
];

/// The rule that introduces this head, with the position of the head among its ops.
pub fn rule_of(op: Op) -> Option<&'static FuseRule> {
    RULES.iter().find(|rule| rule.forms.iter().any(|form| form.op == op))
}
