//! Matrix products: transpositions taken into them.

use aether_ir::Attrs;

use crate::simplify::rule::Compute::Attrs as Attributes;
use crate::simplify::rule::Cond::{self, Holds};
use crate::simplify::rule::Legality::{Exact, Within};
use crate::simplify::rule::{Rule, View, rule};

pub(super) static RULES: &[Rule] = &[
    rule(
        "matmul-transpose-right",
        &["(matmul{?a} ?x (transpose{?p} ?w))"],
        "(matmul{?b} ?x ?w)",
        Within(2.0),
        "A transposed right operand is read with the other `transpose_b`.",
    )
    .when(&[SWAPS])
    .with(&[("?b", Attributes(other_side))]),
    rule(
        "transpose-matmul",
        &["(transpose{?p} (matmul{transpose_b=true} ?x ?w))"],
        "(matmul{transpose_b=true} ?w ?x)",
        Within(2.0),
        "The transposed product is the product in the other order.",
    )
    .when(&[SWAPS, PLAIN_MATRICES]),
    rule(
        "transpose-matmul-plain",
        &["(transpose{?p} (matmul (transpose{?p} ?x) ?w))"],
        "(matmul (transpose{?p} ?w) ?x)",
        Within(2.0),
        "The transposed product of a transposed matrix has the other one transposed.",
    )
    .when(&[SWAPS, PLAIN_MATRICES]),
    rule(
        "matmul-neg-neg",
        &["(matmul{?a} (neg ?x) (neg ?w))"],
        "(matmul{?a} ?x ?w)",
        Exact,
        "Two negated factors are none.",
    ),
    rule(
        "matmul-reshape-rows",
        &["(matmul{?a} (reshape ?x) ?w)"],
        "(reshape (matmul{?a} ?x ?w))",
        Exact,
        "Rows are multiplied before they are regrouped.",
    )
    .when(&[Holds("the weight is a matrix and the rows keep their length", |v| {
        let (x, w, root) = (v.ty("?x")?, v.ty("?w")?, v.root()?);
        let transposed = v.attrs("?a")?.bool("transpose_b", false);
        let length = w.shape.0.get(usize::from(transposed))?;
        Some(w.rank() == 2 && x.rank() >= 2 && root.rank() >= 2 && x.shape.0.last()? == length)
    })]),
];

/// The permutation exchanges the last two axes and leaves the others.
const SWAPS: Cond = Holds("the last two axes are exchanged", |v| {
    let perm = v.attrs("?p")?.ints("perm")?;
    let n = perm.len() as i64;
    let want = (0..n).map(|i| match n - i {
        1 => n - 2,
        2 => n - 1,
        _ => i,
    });
    Some(n >= 2 && want.eq(perm.iter().copied()))
});

const PLAIN_MATRICES: Cond = Holds("both are matrices of one plain type", |v| {
    let (x, w) = (v.ty("?x")?, v.ty("?w")?);
    Some(x.rank() == 2 && w.rank() == 2 && x.dtype == w.dtype && v.root()?.dtype == x.dtype)
});

fn other_side(view: &View) -> Option<Attrs> {
    Some(match view.attrs("?a")?.bool("transpose_b", false) {
        true => Attrs::new(),
        false => Attrs::new().with("transpose_b", true),
    })
}
