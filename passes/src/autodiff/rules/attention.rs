//! Attention and its cache.

use aether_ir::{Attrs, DType, Dim, Op, Shape};

use super::super::emit::Val;
use super::super::vjp::Vjp;

type Ruled = Result<(), String>;

/// Attention from products and a softmax, which are differentiated in turn.
///
/// It reads the whole cache and hides the rows that are not valid, so these must be finite. Over
/// slots the caches are one long one, of which a token sees the part that is its slot's.
pub(crate) fn attention<'e>(v: &Vjp<'e>) -> Result<Vec<Val<'e>>, String> {
    let (q, past) = (v.x(0), v.x(3));
    let slots = v.has(4).then(|| (v.x(4), v.x(1).dim(1)));
    let joined = |x: Val<'e>| match slots {
        None => x,
        Some(_) => x.reshape(Shape(vec![&x.dim(0) * &x.dim(1), x.dim(2), x.dim(3)])),
    };
    let k = joined(v.x(1));
    let (values, dtype) = (joined(v.x(2)).cast(q.dtype()), q.dtype());
    let (tokens, heads, d) = (q.dim(0), q.dim(1), q.dim(2));
    let (context, kv, dv) = (k.dim(0), k.dim(1), values.dim(2));
    let group = heads.exact_div(&kv).ok_or("the heads are no multiple of the kv heads")?;
    let rows = &group * &tokens;

    // [kv, group · tokens, ·], so that one product serves the query heads of a kv head.
    let by_head = |x: Val, last: &Dim| {
        let split = Shape(vec![tokens.clone(), kv.clone(), group.clone(), last.clone()]);
        let x = x.emitter().val(x.id()).reshape(split).transpose(&[1, 2, 0, 3]);
        x.reshape(Shape(vec![kv.clone(), rows.clone(), last.clone()])).id()
    };
    let queries = v.e.val(by_head(q, &d));
    let keys = k.cast(dtype).transpose(&[1, 0, 2]);
    let mut scores = v.attrs().float("scale", 1.0) * queries.matmul(keys, true);
    let cap = v.attrs().float("softcap", 0.0);
    if cap > 0.0 {
        scores = cap * (scores / cap).op1(Op::Tanh);
    }

    // One mask [tokens, context] for every head.
    let index = |axis: usize| {
        let mut shape = vec![Dim::new(1), Dim::new(1)];
        shape[axis] = [&tokens, &context][axis].clone();
        v.e.iota(DType::I32, Shape(shape), axis)
    };
    let key = index(1);
    let (position, first) = match &slots {
        None => (index(0) + past, None),
        Some((slots, context)) => {
            let first = first_row(v, *slots, context).reshape(column(&tokens));
            (first + past.reshape(column(&tokens)), Some(first))
        }
    };
    let mut seen = if v.attrs().bool("causal", true) {
        key.op2(Op::Le, position)
    } else {
        let last = v.e.iota(DType::I32, Shape(vec![tokens.clone()]), 0);
        let last = last.reduce(Op::ReduceMax, &[0], false);
        key.op2(Op::Le, last + past).broadcast(Shape(vec![tokens.clone(), context.clone()]))
    };
    if let Some(first) = first {
        seen = seen.op2(Op::And, key.op2(Op::Ge, first));
    }
    let window = v.attrs().int("window", 0);
    if window > 0 {
        let width = v.e.scalar(DType::I32, window as f64);
        seen = seen.op2(Op::And, key.op2(Op::Gt, position - width));
    }
    let split = Shape(vec![kv.clone(), group.clone(), tokens.clone(), context.clone()]);
    let hidden = v.e.scalar(dtype, f64::NEG_INFINITY);
    let scores = seen.select(scores.reshape(split), hidden);
    let scores = scores.reshape(Shape(vec![kv.clone(), rows.clone(), context.clone()]));

    let weights = v.e.op(Op::Softmax, &[scores], Attrs::new().with("axis", -1i64), None);
    let mixed = weights.matmul(values.transpose(&[1, 0, 2]), false);
    let split = Shape(vec![kv.clone(), group.clone(), tokens.clone(), dv.clone()]);
    let mixed = mixed.reshape(split).transpose(&[2, 0, 1, 3]);
    Ok(vec![mixed.reshape(v.y(0).shape())])
}

fn column(tokens: &Dim) -> Shape {
    Shape(vec![tokens.clone(), Dim::new(1)])
}

/// For every token the first row of its slot, when the caches of all slots are joined.
fn first_row<'e>(v: &Vjp<'e>, slots: Val<'e>, context: &Dim) -> Val<'e> {
    // The number of rows as a value: a dimension may be a symbol.
    let rows = v.e.iota(DType::I32, Shape(vec![context.clone()]), 0);
    let last = rows.reduce(Op::ReduceMax, &[0], false);
    slots * (last + v.e.scalar(DType::I32, 1.0))
}

/// The rows that were replaced have the new rows' gradient, the others the cache's.
pub(crate) fn kv_append(v: &Vjp) -> Ruled {
    let (g, rows, past) = (v.g(), v.x(1), v.x(2));
    let tokens = Shape(vec![rows.dim(0)]);
    if v.has(3) {
        let whole = g.shape();
        let all = &g.dim(0) * &g.dim(1);
        let flat = g.reshape(Shape(vec![all.clone(), g.dim(2), g.dim(3)]));
        let new = first_row(v, v.x(3), &whole.0[1]) + past;
        if v.needs(0) {
            let row = v.e.iota(DType::I32, column(&all), 0);
            let hit = row.op2(Op::Eq, new.reshape(Shape(vec![Dim::new(1), rows.dim(0)])));
            let hits = hit.cast(DType::I32).reduce(Op::ReduceMax, &[1], false);
            let replaced = hits.op2(Op::Gt, v.e.scalar(DType::I32, 0.0));
            let replaced = replaced.reshape(Shape(vec![all, Dim::new(1), Dim::new(1)]));
            v.give(0, flat.unless(replaced).reshape(whole));
        }
        if v.needs(1) {
            v.give(1, flat.gather(new, 0));
        }
        return Ok(());
    }
    let new = v.e.iota(DType::I32, tokens, 0) + past;
    if v.needs(0) {
        let shape = Shape(vec![g.dim(0), Dim::new(1), Dim::new(1)]);
        let row = v.e.iota(DType::I32, shape, 0);
        let end = new.reduce(Op::ReduceMax, &[0], false);
        let replaced = row.op2(Op::Ge, past).op2(Op::And, row.op2(Op::Le, end));
        v.give(0, g.unless(replaced));
    }
    if v.needs(1) {
        v.give(1, g.gather(new, 0));
    }
    Ok(())
}
