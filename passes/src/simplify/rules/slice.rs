//! Slices and concatenations: merged, dropped, and slices moved towards the inputs, so that only
//! what is used is computed.

use aether_ir::{Attrs, Op};
use egg::Id;

use super::movement::{same_value, scalar};
use crate::simplify::rule::Compute::{Attrs as Attributes, Class, Classes, Type};
use crate::simplify::rule::Cond::{self, Constant, Holds, SameType};
use crate::simplify::rule::Legality::{Exact, Within};
use crate::simplify::rule::{Rule, View, rule};

pub(super) static RULES: &[Rule] = &[
    rule("slice-whole", &["(slice{?s} ?x)"], "?x", Exact, "A slice of everything changes nothing.")
        .when(&[Holds("every axis is taken whole", |v| {
            Some((0..v.ty("?x")?.rank()).all(|axis| is_whole(v, "?s", "?x", axis)))
        })]),
    rule(
        "slice-slice",
        &["(slice{?s} (slice{?t} ?x))"],
        "(slice{?r} ?x)",
        Exact,
        "Two slices are one.",
    )
    .with(&[("?r", Attributes(merged))]),
    rule(
        "slice-transpose",
        &["(slice{?s} (transpose{?p} ?x))"],
        "(transpose{?p} (slice{?r} ?x))",
        Exact,
        "Only the part that is used is transposed.",
    )
    .with(&[("?r", Attributes(before_transpose))]),
    rule(
        "slice-broadcast",
        &["(slice{?s} (broadcast ?x))"],
        "(broadcast (slice{?r} ?x))",
        Exact,
        "Only the part that is used is broadcast.",
    )
    .with(&[("?r", Attributes(before_broadcast))]),
    rule(
        "slice-unary",
        &["(slice{?s} (@unary ?x))"],
        "(@unary (slice{?s} ?x))",
        Exact,
        "Only the part that is used is computed.",
    ),
    rule(
        "slice-binary",
        &["(slice{?s} (@binary ?x ?y))"],
        "(@binary (slice{?s} ?x) (slice{?s} ?y))",
        Exact,
        "Only the part that is used is computed.",
    )
    .when(&[SameType("?x", "?y"), CANNOT_FAIL]),
    rule(
        "slice-binary-constant",
        &["(slice{?s} (@binary ?x ?c))"],
        "(@binary (slice{?s} ?x) (splat{?n}:?t))",
        Exact,
        "Only the part that is used is computed with a constant.",
    )
    .when(&[Constant("?c"), SHAPE_OF_X, CANNOT_FAIL])
    .with(&[("?n", Attributes(same_value)), ("?t", Type(scalar))]),
    rule(
        "slice-constant-binary",
        &["(slice{?s} (@binary ?c ?x))"],
        "(@binary (splat{?n}:?t) (slice{?s} ?x))",
        Exact,
        "Only the part that is used is computed on a constant.",
    )
    .when(&[Constant("?c"), SHAPE_OF_X, CANNOT_FAIL])
    .with(&[("?n", Attributes(same_value)), ("?t", Type(scalar))]),
    rule(
        "slice-select",
        &["(slice{?s} (select ?c ?x ?y))"],
        "(select (slice{?s} ?c) (slice{?s} ?x) (slice{?s} ?y))",
        Exact,
        "Only the part that is used is selected.",
    )
    .when(&[
        SameType("?x", "?y"),
        Holds("the shapes are equal", |v| Some(v.ty("?c")?.shape == v.ty("?x")?.shape)),
    ]),
    rule(
        "slice-softmax",
        &["(slice{?s} (softmax{?a} ?x))"],
        "(softmax{?a} (slice{?s} ?x))",
        Within(2.0),
        "Only the rows that are used are normalised.",
    )
    .when(&[Holds("the axis is taken whole", |v| {
        Some(is_whole(v, "?s", "?x", usize::try_from(v.attrs("?a")?.int("axis", 0)).ok()?))
    })]),
    rule(
        "slice-rms-norm",
        &["(slice{?s} (rms_norm{?a} ?x ?w))"],
        "(rms_norm{?a} (slice{?s} ?x) ?w)",
        Exact,
        "Only the rows that are used are normalised.",
    )
    .when(&[LAST_WHOLE]),
    rule(
        "slice-layer-norm",
        &["(slice{?s} (layer_norm{?a} ?x ?w ?b))"],
        "(layer_norm{?a} (slice{?s} ?x) ?w ?b)",
        Exact,
        "Only the rows that are used are normalised.",
    )
    .when(&[LAST_WHOLE]),
    rule(
        "slice-matmul",
        &["(slice{?s} (matmul{?a} ?x ?w))"],
        "(matmul{?a} (slice{?r} ?x) ?w)",
        Within(2.0),
        "Only the rows that are used are multiplied.",
    )
    .when(&[Holds("the weight is a matrix and the columns are taken whole", |v| {
        let columns = v.root()?.rank().checked_sub(1)?;
        let length = v.root()?.shape.0.get(columns)?;
        let w = v.ty("?w")?;
        let transposed = v.attrs("?a")?.bool("transpose_b", false);
        let whole = w.shape.0.get(usize::from(!transposed))?;
        Some(w.rank() == 2 && whole == length)
    })])
    .with(&[("?r", Attributes(rows_of_product))]),
    rule("concat-single", &["(concat{?a} ?x)"], "?x", Exact, "Joining one tensor changes nothing."),
    rule(
        "concat-concat",
        &["(concat{?a} ?xs..)"],
        "(concat{?a} ?ys..)",
        Exact,
        "A concatenation within one along the same axis is part of it.",
    )
    .with(&[("?ys", Classes(flattened))]),
    rule(
        "slice-concat",
        &["(slice{?s} (concat{?a} ?xs..))"],
        "(slice{?r} ?x)",
        Exact,
        "A slice within one operand of a concatenation is a slice of that.",
    )
    .with(&[("?x", Class(operand_sliced)), ("?r", Attributes(within_operand))]),
    rule(
        "concat-slices",
        &["(concat{?a} ?xs..)"],
        "(slice{?r} ?x)",
        Exact,
        "Adjoining slices of one tensor are one slice.",
    )
    .with(&[("?x", Class(common_source)), ("?r", Attributes(joined_slices))]),
];

/// An integer division may fail on elements that are not used.
const CANNOT_FAIL: Cond = Holds("it is no division of integers", |v| {
    Some(v.op("@binary")? != Op::Div || v.root()?.dtype.is_float())
});

const SHAPE_OF_X: Cond = Holds("the constant does not broadcast the rest", |v| {
    let x = v.ty("?x")?;
    Some(x.shape.broadcast(&v.ty("?c")?.shape).as_ref() == Some(&x.shape))
});

const LAST_WHOLE: Cond = Holds("the last axis is taken whole", |v| {
    Some(is_whole(v, "?s", "?x", v.ty("?x")?.rank().checked_sub(1)?))
});

/// One axis of a slice.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    start: i64,
    limit: i64,
    step: i64,
}

/// What takes an axis of any length whole.
const WHOLE: Range = Range { start: 0, limit: -1, step: 1 };

impl Range {
    /// Number of elements; `None` for a whole axis of symbolic length.
    fn len(self) -> Option<i64> {
        let count = |n: u64| i64::try_from(n.div_ceil(self.step.max(1) as u64)).unwrap_or(i64::MAX);
        (self.limit >= self.start).then(|| count((self.limit - self.start) as u64))
    }
}

fn ranges(attrs: &Attrs) -> Option<Vec<Range>> {
    let (starts, limits) = (attrs.ints("starts")?, attrs.ints("limits")?);
    let steps = attrs.ints("steps");
    let step = |i: usize| steps.map_or(Some(1), |s| s.get(i).copied());
    starts
        .iter()
        .zip(limits)
        .enumerate()
        .map(|(i, (&start, &limit))| Some(Range { start, limit, step: step(i)? }))
        .collect()
}

fn slice_attrs(ranges: &[Range]) -> Attrs {
    let list = |f: fn(&Range) -> i64| ranges.iter().map(f).collect::<Vec<i64>>();
    let attrs = Attrs::new().with("starts", list(|r| r.start)).with("limits", list(|r| r.limit));
    let steps = list(|r| r.step);
    if steps.iter().all(|&s| s == 1) { attrs } else { attrs.with("steps", steps) }
}

/// Whether a slice takes all of an axis.
fn is_whole(view: &View, slice: &str, x: &str, axis: usize) -> bool {
    let whole = || {
        let range = *ranges(view.attrs(slice)?)?.get(axis)?;
        let length = view.ty(x)?.shape.0.get(axis)?.as_const();
        let all = length.map(|n| Range { start: 0, limit: n as i64, step: 1 });
        Some(range == WHOLE || Some(range) == all)
    };
    whole().unwrap_or(false)
}

fn merged(view: &View) -> Option<Attrs> {
    let (outer, inner) = (ranges(view.attrs("?s")?)?, ranges(view.attrs("?t")?)?);
    let merge = |(outer, inner): (&Range, &Range)| {
        if *outer == WHOLE {
            return Some(*inner);
        }
        let step = outer.step.checked_mul(inner.step)?;
        let start = inner.start.checked_add(outer.start.checked_mul(inner.step)?)?;
        let len = outer.len()?;
        // An empty slice lies anywhere within the axis.
        if len == 0 {
            return Some(Range { start: inner.start, limit: inner.start, step: 1 });
        }
        let limit = start.checked_add((len - 1).checked_mul(step)?)?.checked_add(1)?;
        Some(Range { start, limit, step: if len == 1 { 1 } else { step } })
    };
    Some(slice_attrs(&outer.iter().zip(&inner).map(merge).collect::<Option<Vec<_>>>()?))
}

/// Axis p[i] of the operand is cut as axis i of the result.
fn before_transpose(view: &View) -> Option<Attrs> {
    let outer = ranges(view.attrs("?s")?)?;
    let mut inner = vec![WHOLE; outer.len()];
    for (range, &p) in outer.iter().zip(view.attrs("?p")?.ints("perm")?) {
        *inner.get_mut(usize::try_from(p).ok()?)? = *range;
    }
    Some(slice_attrs(&inner))
}

/// Axes that are broadcast stay, the others are cut.
fn before_broadcast(view: &View) -> Option<Attrs> {
    let outer = ranges(view.attrs("?s")?)?;
    let shape = &view.ty("?x")?.shape.0;
    let added = outer.len().checked_sub(shape.len())?;
    let cut = |(range, dim): (&Range, &aether_ir::Dim)| match dim.is(1) {
        // One element that an empty slice may not keep.
        true if range.len() == Some(0) => None,
        true => Some(Range { start: 0, limit: 1, step: 1 }),
        false => Some(*range),
    };
    if outer[..added].iter().any(|range| range.len() == Some(0)) {
        return None;
    }
    let inner = outer[added..].iter().zip(shape).map(cut).collect::<Option<Vec<_>>>()?;
    Some(slice_attrs(&inner))
}

/// The rows of the left operand, all of its columns.
fn rows_of_product(view: &View) -> Option<Attrs> {
    let x = view.ty("?x")?;
    let mut rows = ranges(view.attrs("?s")?)?;
    // The leading axes come from the left operand alone, because the weight is a matrix.
    if rows.len() != x.rank() {
        return None;
    }
    let last = x.shape.0.last()?;
    *rows.last_mut()? =
        last.as_const().map_or(WHOLE, |n| Range { start: 0, limit: n as i64, step: 1 });
    Some(slice_attrs(&rows))
}

fn flattened(view: &View) -> Option<Vec<Id>> {
    let axis = view.attrs("?a")?;
    let mut operands = Vec::new();
    let mut found = false;
    for &x in view.classes("?xs")? {
        match view.node(x, Op::Concat) {
            Some((attrs, inner)) if attrs == axis && !inner.contains(&x) => {
                operands.extend(inner.iter().map(|&i| view.graph.find(i)));
                found = true;
            }
            _ => operands.push(x),
        }
    }
    (found && operands.len() <= aether_ir::op::MAX_OPERANDS).then_some(operands)
}

/// The operand of the concatenation that the slice lies in, and where that begins.
fn sliced(view: &View) -> Option<(Id, i64)> {
    let axis = usize::try_from(view.attrs("?a")?.int("axis", 0)).ok()?;
    let range = *ranges(view.attrs("?s")?)?.get(axis)?;
    if range.len()? == 0 {
        return None;
    }
    let mut begin = 0i64;
    for &x in view.classes("?xs")? {
        let length = i64::try_from(view.ty_of(x)?.shape.0.get(axis)?.as_const()?).ok()?;
        let end = begin.checked_add(length)?;
        if range.start >= begin && range.start < end {
            let last = range.start + (range.len()? - 1) * range.step;
            return (last < end).then_some((x, begin));
        }
        begin = end;
    }
    None
}

fn operand_sliced(view: &View) -> Option<Id> {
    sliced(view).map(|(x, _)| x)
}

fn within_operand(view: &View) -> Option<Attrs> {
    let axis = usize::try_from(view.attrs("?a")?.int("axis", 0)).ok()?;
    let mut cut = ranges(view.attrs("?s")?)?;
    let (_, begin) = sliced(view)?;
    let range = cut.get_mut(axis)?;
    let last = range.start + (range.len()? - 1) * range.step;
    *range = Range { start: range.start - begin, limit: last + 1 - begin, step: range.step };
    Some(slice_attrs(&cut))
}

/// The tensor that all operands are slices of, one after the other, with the slice of them all.
fn joined(view: &View) -> Option<(Id, Vec<Range>)> {
    let axis = usize::try_from(view.attrs("?a")?.int("axis", 0)).ok()?;
    let mut all: Option<(Id, Vec<Range>)> = None;
    let operands = view.classes("?xs")?;
    if operands.len() < 2 {
        return None;
    }
    for &x in operands {
        let (attrs, source) = view.node(x, Op::Slice)?;
        let source = view.graph.find(*source.first()?);
        let next = ranges(attrs)?;
        if next.get(axis)?.step != 1 || next[axis].limit < 0 {
            return None;
        }
        match &mut all {
            None => all = Some((source, next)),
            Some((common, so_far)) => {
                let others = so_far.iter().zip(&next).enumerate();
                let fits = *common == source
                    && so_far[axis].limit == next[axis].start
                    && others.filter(|(i, _)| *i != axis).all(|(_, (a, b))| a == b);
                if !fits {
                    return None;
                }
                so_far[axis].limit = next[axis].limit;
            }
        }
    }
    all
}

fn common_source(view: &View) -> Option<Id> {
    joined(view).map(|(source, _)| source)
}

fn joined_slices(view: &View) -> Option<Attrs> {
    joined(view).map(|(_, ranges)| slice_attrs(&ranges))
}
