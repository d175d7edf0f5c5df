//! Comparisons, logic and selection.

use crate::simplify::rule::Cond::Int;
use crate::simplify::rule::Legality::Exact;
use crate::simplify::rule::{Rule, rule};

pub(super) static RULES: &[Rule] = &[
    rule(
        "same-holds-int",
        &["(eq ?x ?x)", "(le ?x ?x)", "(ge ?x ?x)"],
        "1",
        Exact,
        "An integer equals itself.",
    )
    .when(&[Int("?x")]),
    rule("same-fails-int", &["(ne ?x ?x)"], "0", Exact, "An integer does not differ from itself.")
        .when(&[Int("?x")]),
    rule(
        "same-fails",
        &["(lt ?x ?x)", "(gt ?x ?x)"],
        "0",
        Exact,
        "Nothing is less than itself, NaN neither.",
    ),
    rule("not-not", &["(not (not ?x))"], "?x", Exact, "Two negations are none."),
    rule(
        "not-eq",
        &["(not (eq ?x ?y))"],
        "(ne ?x ?y)",
        Exact,
        "Not equal is different, for NaN too.",
    ),
    rule(
        "not-ne",
        &["(not (ne ?x ?y))"],
        "(eq ?x ?y)",
        Exact,
        "Not different is equal, for NaN too.",
    ),
    rule(
        "not-lt-int",
        &["(not (lt ?x ?y))"],
        "(ge ?x ?y)",
        Exact,
        "Of integers, not less is greater or equal.",
    )
    .when(&[Int("?x")]),
    rule(
        "not-le-int",
        &["(not (le ?x ?y))"],
        "(gt ?x ?y)",
        Exact,
        "Of integers, not less or equal is greater.",
    )
    .when(&[Int("?x")]),
    rule(
        "not-gt-int",
        &["(not (gt ?x ?y))"],
        "(le ?x ?y)",
        Exact,
        "Of integers, not greater is less or equal.",
    )
    .when(&[Int("?x")]),
    rule(
        "not-ge-int",
        &["(not (ge ?x ?y))"],
        "(lt ?x ?y)",
        Exact,
        "Of integers, not greater or equal is less.",
    )
    .when(&[Int("?x")]),
    rule("and-true", &["(and ?x 1)"], "?x", Exact, "`and` with true changes nothing."),
    rule("and-false", &["(and ?x 0)"], "0", Exact, "`and` with false is false."),
    rule("or-false", &["(or ?x 0)"], "?x", Exact, "`or` with false changes nothing."),
    rule("or-true", &["(or ?x 1)"], "1", Exact, "`or` with true is true."),
    rule(
        "and-self",
        &["(and ?x ?x)", "(or ?x ?x)"],
        "?x",
        Exact,
        "`and` and `or` of equals is either.",
    ),
    rule("and-not-self", &["(and ?x (not ?x))"], "0", Exact, "Nothing holds and does not."),
    rule("or-not-self", &["(or ?x (not ?x))"], "1", Exact, "Everything holds or does not."),
    rule("and-or", &["(and ?x (or ?x ?y))"], "?x", Exact, "`and` absorbs `or`."),
    rule("or-and", &["(or ?x (and ?x ?y))"], "?x", Exact, "`or` absorbs `and`."),
    rule(
        "and-nots",
        &["(and (not ?x) (not ?y))"],
        "(not (or ?x ?y))",
        Exact,
        "Neither is not either (De Morgan).",
    ),
    rule(
        "or-nots",
        &["(or (not ?x) (not ?y))"],
        "(not (and ?x ?y))",
        Exact,
        "One not is not both (De Morgan).",
    ),
    rule(
        "select-true",
        &["(select 1 ?x ?y)"],
        "?x",
        Exact,
        "A condition that holds picks the second operand.",
    ),
    rule(
        "select-false",
        &["(select 0 ?x ?y)"],
        "?y",
        Exact,
        "A condition that fails picks the third operand.",
    ),
    rule("select-same", &["(select ?c ?x ?x)"], "?x", Exact, "Equal branches need no condition."),
    rule(
        "select-not",
        &["(select (not ?c) ?x ?y)"],
        "(select ?c ?y ?x)",
        Exact,
        "A negated condition swaps the branches.",
    ),
    rule(
        "select-condition",
        &["(select ?c 1 0)"],
        "?c",
        Exact,
        "Choosing between true and false is the condition.",
    )
    .when(&[super::BOOL_ROOT]),
    rule(
        "select-negation",
        &["(select ?c 0 1)"],
        "(not ?c)",
        Exact,
        "Choosing between false and true is the negation.",
    )
    .when(&[super::BOOL_ROOT]),
    rule(
        "select-select-then",
        &["(select ?c (select ?c ?x ?y) ?z)"],
        "(select ?c ?x ?z)",
        Exact,
        "What is known to hold is not asked again.",
    ),
    rule(
        "select-select-else",
        &["(select ?c ?x (select ?c ?y ?z))"],
        "(select ?c ?x ?z)",
        Exact,
        "What is known to fail is not asked again.",
    ),
    rule(
        "select-broadcast-then",
        &["(select ?c (broadcast ?x) ?y)"],
        "(select ?c ?x ?y)",
        Exact,
        "select broadcasts its second operand.",
    ),
    rule(
        "select-broadcast-else",
        &["(select ?c ?x (broadcast ?y))"],
        "(select ?c ?x ?y)",
        Exact,
        "select broadcasts its third operand.",
    ),
    rule(
        "select-broadcast-condition",
        &["(select (broadcast ?c) ?x ?y)"],
        "(select ?c ?x ?y)",
        Exact,
        "select broadcasts its condition.",
    ),
];
