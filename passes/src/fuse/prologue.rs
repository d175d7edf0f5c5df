//! What joins a product's kernel on targets where the number of kernels decides: the norm before
//! it, and, between the products of attention and attention itself, turning q and k and appending
//! k and v to the caches.
//!
//! Both are steps after extraction, as grouping is: they take several results at once.

use aether_ir::{Attrs, Func, Inst, Op, Operand, TensorType, ValueId};

/// Name of the step that takes norms into products.
pub const NORM_MATMUL: &str = "norm-matmul";

/// Name of the step that joins rope and kv_append.
pub const ROPE_APPEND: &str = "rope-append";

/// Whether the target has an op for these operands.
pub type Supports<'a> = dyn Fn(Op, &[&TensorType]) -> bool + 'a;

fn types<'f>(func: &'f Func, operands: &[Operand]) -> Vec<&'f TensorType> {
    operands.iter().map(|o| func.ty(o.value)).collect()
}

/// A product with the norm of its x inside: the same for every use of the norm, or none.
fn with_norm(inst: &Inst, norm: &Inst) -> Option<Inst> {
    let (op, attrs) = match inst.op {
        Op::Matmul if inst.attrs.bool("transpose_b", false) => {
            (Op::NormMatmulMulti, Attrs::new().with("weights", 1i64))
        }
        Op::MatmulMulti => (Op::NormMatmulMulti, inst.attrs.clone()),
        Op::MatmulGated => (Op::NormMatmulGated, inst.attrs.clone()),
        _ => return None,
    };
    let eps = norm.attrs.float("eps", 0.0);
    let mut all = Attrs::new().with("eps", eps);
    for name in ["weights", "biases", "act"] {
        if let Some(attr) = attrs.get(name) {
            all = all.with(name, attr.clone());
        }
    }
    let operands = norm.operands[..2].iter().chain(&inst.operands[1..]).copied().collect();
    Some(Inst { op, operands, attrs: all, ..inst.clone() })
}

/// Takes norms into the products that read them; returns how many.
pub fn norms(func: &mut Func, supports: &Supports, allow: &dyn Fn() -> bool) -> usize {
    let mut count = 0;
    for at in 0..func.body.len() {
        let norm = func.body[at].clone();
        if norm.op != Op::RmsNorm || norm.operands.iter().any(|o| o.donated) {
            continue;
        }
        let result = norm.results[0];
        if func.returns.contains(&result) {
            continue;
        }
        let uses: Vec<usize> = (at + 1..func.body.len())
            .filter(|&i| func.body[i].inputs().any(|v| v == result))
            .collect();
        let made: Option<Vec<Inst>> = uses
            .iter()
            .map(|&i| {
                let inst = &func.body[i];
                let once = inst.inputs().filter(|&v| v == result).count() == 1;
                let first = inst.operands.first().is_some_and(|o| o.value == result && !o.donated);
                let made = with_norm(inst, &norm).filter(|_| once && first)?;
                supports(made.op, &types(func, &made.operands)).then_some(made)
            })
            .collect();
        let Some(made) = made.filter(|made| !made.is_empty() && allow()) else { continue };
        for (i, inst) in uses.into_iter().zip(made) {
            func.body[i] = inst;
        }
        count += 1;
    }
    // The norms themselves are left to nobody: their results are no longer read.
    let read: std::collections::HashSet<ValueId> =
        func.body.iter().flat_map(Inst::inputs).chain(func.returns.iter().copied()).collect();
    func.body.retain(|inst| inst.op != Op::RmsNorm || read.contains(&inst.results[0]));
    count
}

/// Joins the ropes of q and k and the appends of k and v; returns how many times.
pub fn rope_append(func: &mut Func, supports: &Supports, allow: &dyn Fn() -> bool) -> usize {
    let mut count = 0;
    while let Some((places, made)) = find(func, supports) {
        if !allow() {
            break;
        }
        let last = places.iter().copied().max().unwrap_or(0);
        func.body[last] = made;
        let mut gone: Vec<usize> = places.into_iter().filter(|&at| at != last).collect();
        gone.sort_unstable();
        for at in gone.into_iter().rev() {
            func.body.remove(at);
        }
        count += 1;
    }
    count
}

/// The first four instructions that belong together, and what they become.
fn find(func: &Func, supports: &Supports) -> Option<([usize; 4], Inst)> {
    let uses = func.use_counts();
    let defs = func.definitions();
    let inst = |v: ValueId, op: Op| defs[v.index()].filter(|&at| func.body[at].op == op);
    for (k_at, k_append) in func.body.iter().enumerate() {
        if k_append.op != Op::KvAppend {
            continue;
        }
        let rows = k_append.operands[1].value;
        let Some(k_rope_at) = inst(rows, Op::Rope).filter(|_| uses[rows.index()] == 1) else {
            continue;
        };
        let k_rope = &func.body[k_rope_at];
        let places: Vec<ValueId> = k_append.inputs().skip(2).collect();
        if k_rope.operands[1].value != places[0] {
            continue;
        }
        // The attention that reads this cache has the q and the other cache.
        let reads = |i: &&Inst| i.op == Op::Attention && i.operands[1].value == k_append.results[0];
        let Some(attention) = func.body.iter().find(reads) else { continue };
        let (q, v_all) = (attention.operands[0].value, attention.operands[2].value);
        let (Some(q_rope_at), Some(v_at)) = (inst(q, Op::Rope), inst(v_all, Op::KvAppend)) else {
            continue;
        };
        let (q_rope, v_append) = (&func.body[q_rope_at], &func.body[v_at]);
        let alike = q_rope.attrs == k_rope.attrs
            && q_rope.operands[1..] == k_rope.operands[1..]
            && v_append.inputs().skip(2).eq(places.iter().copied())
            && v_at != k_at
            && func.ty(q).dtype == func.ty(rows).dtype;
        let at = [q_rope_at, k_rope_at, k_at, v_at];
        let (first, last) = (*at.iter().min()?, *at.iter().max()?);
        // Nothing between may read what comes later than it was, or take what is read later.
        let results = [q, rows, k_append.results[0], v_all];
        let between = (first..last).filter(|i| !at.contains(i)).map(|i| &func.body[i]);
        let mut apart = between.flat_map(|inst| inst.operands.iter());
        if !alike || apart.any(|o| results.contains(&o.value) || o.donated) {
            continue;
        }
        let mut operands = vec![
            q_rope.operands[0].value.into(),
            k_rope.operands[0].value.into(),
            v_append.operands[1].value.into(),
            k_append.operands[0],
            v_append.operands[0],
        ];
        operands.extend(places.iter().map(|&v| Operand::from(v)));
        operands.extend(q_rope.inputs().skip(2).map(Operand::from));
        if !supports(Op::RopeAppend, &types(func, &operands)) {
            continue;
        }
        let made = Inst {
            op: Op::RopeAppend,
            operands,
            attrs: q_rope.attrs.clone(),
            symbol: None,
            results: vec![q, k_append.results[0], v_all],
            span: q_rope.span.clone(),
        };
        return Some((at, made));
    }
    None
}
