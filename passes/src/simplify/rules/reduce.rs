//! Reductions: dropped, merged, and taken of less.

use aether_ir::{Attrs, Shape, TensorType};

use crate::simplify::rule::Compute::{Attrs as Attributes, Type};
use crate::simplify::rule::Cond::{self, Constant, Holds, Static};
use crate::simplify::rule::Legality::{Exact, Within, ZeroSign};
use crate::simplify::rule::{Rule, View, epsilon, rule};

pub(super) static RULES: &[Rule] = &[
    rule(
        "reduce-nothing",
        &["(@reduce{?a} ?x)"],
        "(reshape ?x)",
        ZeroSign,
        "A reduction over no axes, or axes of length 1, is a reshape.",
    )
    .when(&[Holds("the number of elements stays and none is empty", |v| {
        let x = v.ty("?x")?;
        let mask = mask(v.attrs("?a")?, x.rank())?;
        Some(x.shape.0.iter().zip(&mask).all(|(d, &reduced)| !reduced || d.is(1)))
    })]),
    rule(
        "sum-sum",
        &["(reduce_sum{?a} (reduce_sum{?b} ?x))"],
        "(reduce_sum{?c} ?x)",
        Within(16.0),
        "A sum of sums is one sum.",
    )
    .with(&[("?c", Attributes(merged))]),
    rule(
        "prod-prod",
        &["(reduce_prod{?a} (reduce_prod{?b} ?x))"],
        "(reduce_prod{?c} ?x)",
        Within(64.0),
        "A product of products is one product.",
    )
    .with(&[("?c", Attributes(merged))]),
    rule(
        "mean-mean",
        &["(reduce_mean{?a} (reduce_mean{?b} ?x))"],
        "(reduce_mean{?c} ?x)",
        Within(16.0),
        "A mean of means over axes is one mean.",
    )
    .with(&[("?c", Attributes(merged))]),
    rule(
        "max-max-axes",
        &["(reduce_max{?a} (reduce_max{?b} ?x))"],
        "(reduce_max{?c} ?x)",
        Exact,
        "The greatest of the greatest is one maximum.",
    )
    .with(&[("?c", Attributes(merged))]),
    rule(
        "min-min-axes",
        &["(reduce_min{?a} (reduce_min{?b} ?x))"],
        "(reduce_min{?c} ?x)",
        Exact,
        "The smallest of the smallest is one minimum.",
    )
    .with(&[("?c", Attributes(merged))]),
    rule(
        "reduce-keepdims",
        &["(reshape (@reduce{?a} ?x))"],
        "(@reduce{?b} ?x)",
        Exact,
        "A reshape that brings reduced axes back is `keepdims`.",
    )
    .with(&[("?b", Attributes(with_keepdims))]),
    rule(
        "reduce-transpose",
        &["(@reduce{?a} (transpose{?p} ?x))"],
        "(@reduce{?b} ?x)",
        Within(16.0),
        "Axes need no order to be reduced, if those that stay keep theirs.",
    )
    .with(&[("?b", Attributes(before_transpose))]),
    rule(
        "sum-broadcast",
        &["(reduce_sum{?a} (broadcast:?m ?x))"],
        "(mul (reshape:?s ?x) (splat{?n}:?t))",
        Within(16.0),
        "The sum of so many equal elements is a multiple.",
    )
    .when(&[Static("?m"), BROADCAST_AXES])
    .with(&[("?s", Type(whole)), ("?n", Attributes(count)), ("?t", Type(scalar))]),
    rule(
        "mean-broadcast",
        &["(reduce_mean{?a} (broadcast:?m ?x))"],
        "(reshape ?x)",
        Within(16.0),
        "The mean of equal elements is one of them.",
    )
    .when(&[Static("?m"), BROADCAST_AXES]),
    rule(
        "max-broadcast",
        &["(reduce_max{?a} (broadcast:?m ?x))", "(reduce_min{?a} (broadcast:?m ?x))"],
        "(reshape ?x)",
        Exact,
        "The greatest of equal elements is one of them.",
    )
    .when(&[Static("?m"), BROADCAST_AXES]),
    rule(
        "sum-div-count",
        &["(div (reduce_sum{?a} ?x) ?c)"],
        "(reduce_mean{?a} ?x)",
        Within(4.0),
        "A sum divided by the number of its elements is a mean.",
    )
    .when(&[
        Constant("?c"),
        Cond::Float("?x"),
        Holds("the constant is the number of elements", |v| {
            let n = reduced_elements(v.attrs("?a")?, v.ty("?x")?)?;
            Some(is_near(v, n))
        }),
    ]),
    rule(
        "sum-mul-count",
        &["(mul (reduce_sum{?a} ?x) ?c)"],
        "(reduce_mean{?a} ?x)",
        Within(4.0),
        "A sum times one over the number of its elements is a mean.",
    )
    .when(&[
        Constant("?c"),
        Cond::Float("?x"),
        Holds("the constant is one over the number of elements", |v| {
            let n = reduced_elements(v.attrs("?a")?, v.ty("?x")?)?;
            Some(is_near(v, 1.0 / n))
        }),
    ]),
    rule(
        "sum-neg",
        &["(reduce_sum{?a} (neg ?x))"],
        "(neg (reduce_sum{?a} ?x))",
        ZeroSign,
        "The sum is negated once.",
    ),
    rule(
        "mean-neg",
        &["(reduce_mean{?a} (neg ?x))"],
        "(neg (reduce_mean{?a} ?x))",
        ZeroSign,
        "The mean is negated once.",
    ),
    rule(
        "max-neg",
        &["(reduce_max{?a} (neg ?x))"],
        "(neg (reduce_min{?a} ?x))",
        ZeroSign,
        "The greatest of the negated is the smallest, negated.",
    )
    .when(&[Cond::Float("?x")]),
    rule(
        "min-neg",
        &["(reduce_min{?a} (neg ?x))"],
        "(neg (reduce_max{?a} ?x))",
        ZeroSign,
        "The smallest of the negated is the greatest, negated.",
    )
    .when(&[Cond::Float("?x")]),
    rule(
        "max-axes-exp",
        &["(reduce_max{?a} (exp ?x))"],
        "(exp (reduce_max{?a} ?x))",
        Within(2.0),
        "exp keeps the order, so the greatest alone is computed.",
    )
    .when(&[NOT_EMPTY]),
    rule(
        "max-axes-relu",
        &["(reduce_max{?a} (relu ?x))"],
        "(relu (reduce_max{?a} ?x))",
        Exact,
        "relu keeps the order, so the greatest alone is computed.",
    )
    .when(&[NOT_EMPTY]),
];

/// Over no elements a maximum is the least value of the type.
const NOT_EMPTY: Cond =
    Holds("no axis is empty", |v| Some(v.ty("?x")?.shape.as_const()?.iter().all(|&d| d > 0)));

/// The broadcast made the axes that are reduced, and no others.
const BROADCAST_AXES: Cond =
    Holds("the axes that are reduced were broadcast, and they alone", |v| {
        let (m, x) = (v.ty("?m")?, v.ty("?x")?);
        let added = m.rank().checked_sub(x.rank())?;
        let reduced = mask(v.attrs("?a")?, m.rank())?;
        let dims = m.shape.0.iter().zip(&reduced).enumerate();
        Some(dims.into_iter().all(|(i, (dim, &reduced))| {
            let repeated = i < added || (x.shape.0[i - added].is(1) && !dim.is(1));
            let empty = dim.is(0);
            !empty && if reduced { repeated || dim.is(1) } else { !repeated || dim.is(1) }
        }))
    });

/// Whether the constant `?c` is that number to within its rounding.
fn is_near(view: &View, want: f64) -> bool {
    let near = || {
        let unit = epsilon(view.ty("?c")?.dtype);
        Some((view.number("?c")?.as_f64() - want).abs() <= unit * want)
    };
    near().unwrap_or(false)
}

/// Which axes are reduced.
fn mask(attrs: &Attrs, rank: usize) -> Option<Vec<bool>> {
    let mut mask = vec![false; rank];
    for &axis in attrs.ints("axes")? {
        *mask.get_mut(usize::try_from(axis).ok()?)? = true;
    }
    Some(mask)
}

fn axes(mask: &[bool]) -> Vec<i64> {
    (0..mask.len() as i64).filter(|&i| mask[i as usize]).collect()
}

fn reduce_attrs(mask: &[bool], keepdims: bool) -> Attrs {
    let attrs = Attrs::new().with("axes", axes(mask));
    if keepdims { attrs.with("keepdims", true) } else { attrs }
}

/// Elements that become one, as a float; `None` with symbols or without elements.
fn reduced_elements(attrs: &Attrs, x: &TensorType) -> Option<f64> {
    let mask = mask(attrs, x.rank())?;
    let dims = x.shape.0.iter().zip(&mask).filter(|(_, reduced)| **reduced);
    let n = dims.map(|(d, _)| d.as_const().map(|n| n as f64)).product::<Option<f64>>()?;
    (n > 0.0).then_some(n)
}

/// The axes of the outer reduction as axes of the operand, with those of the inner one.
fn merged(view: &View) -> Option<Attrs> {
    let (outer, inner) = (view.attrs("?a")?, view.attrs("?b")?);
    let keepdims = inner.bool("keepdims", false);
    if keepdims != outer.bool("keepdims", false) {
        return None;
    }
    let mut all = mask(inner, view.ty("?x")?.rank())?;
    let left: Vec<usize> = (0..all.len()).filter(|&i| keepdims || !all[i]).collect();
    for &axis in outer.ints("axes")? {
        all[*left.get(usize::try_from(axis).ok()?)?] = true;
    }
    Some(reduce_attrs(&all, keepdims))
}

/// The same reduction with `keepdims`, when that has the shape of the whole.
fn with_keepdims(view: &View) -> Option<Attrs> {
    let x = view.ty("?x")?;
    let mask = mask(view.attrs("?a")?, x.rank())?;
    let one = aether_ir::Dim::new(1);
    let kept = x.shape.0.iter().zip(&mask).map(|(d, &reduced)| match reduced {
        true => one.clone(),
        false => d.clone(),
    });
    (Shape(kept.collect()) == view.root()?.shape).then(|| reduce_attrs(&mask, true))
}

fn before_transpose(view: &View) -> Option<Attrs> {
    let perm = view.attrs("?p")?.ints("perm")?;
    let outer = mask(view.attrs("?a")?, perm.len())?;
    let keepdims = view.attrs("?a")?.bool("keepdims", false);
    let mut inner = vec![false; perm.len()];
    let mut staying = Vec::new();
    for (i, &p) in perm.iter().enumerate() {
        match outer[i] {
            true => inner[usize::try_from(p).ok()?] = true,
            false => staying.push((i, p)),
        }
    }
    // Kept axes of length 1 hold their places, so those that stay must too.
    let in_order = staying.windows(2).all(|w| w[0].1 < w[1].1);
    let in_place = !keepdims || staying.iter().all(|&(i, p)| i as i64 == p);
    (in_order && in_place).then(|| reduce_attrs(&inner, keepdims))
}

fn whole(view: &View) -> Option<TensorType> {
    view.root().cloned()
}

fn scalar(view: &View) -> Option<TensorType> {
    Some(TensorType::scalar(view.root()?.dtype))
}

fn count(view: &View) -> Option<Attrs> {
    let n = reduced_elements(view.attrs("?a")?, view.ty("?m")?)?;
    let number = match view.root()?.dtype.is_float() {
        true => crate::egraph::Number::Float(n),
        false => crate::egraph::Number::Int(n as i64),
    };
    Some(super::arithmetic::splat_of(number, view.root()?.dtype))
}
