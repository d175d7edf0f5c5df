//! `matmul-multi`: several products of one x become one.
//!
//! This is a step after extraction and no e-graph rule: a class stands for one value, while the
//! choice here is made for several values at once and only pays if all of them take part. What
//! can be grouped follows from the order of instructions alone: the group stands where its first
//! product stood, so every other weight and bias must be there by then.

use std::collections::HashMap;

use aether_ir::op::MAX_OPERANDS;
use aether_ir::{Attrs, DType, Func, Inst, Layout, Op, Operand, TensorType, ValueId};

/// Seconds that an op takes from operands of these types to results of those.
pub type Seconds<'a> = dyn Fn(Op, &[&TensorType], &[&TensorType]) -> f64 + 'a;

/// Asks the target: whether it has the op for these operands, and what an op costs in seconds.
pub struct Asks<'a> {
    pub supports: &'a dyn Fn(Op, &[&TensorType]) -> bool,
    pub seconds: &'a Seconds<'a>,
    /// Asked before each group.
    pub allow: &'a dyn Fn() -> bool,
}

/// A product that may join a group.
#[derive(Clone, Copy)]
struct Product {
    at: usize,
    weight: ValueId,
    bias: Option<ValueId>,
    result: ValueId,
}

/// Groups what can be grouped; returns the number of groups.
pub fn group(func: &mut Func, asks: &Asks) -> usize {
    let defs = func.definitions();
    let hoistable = hoistable(func);
    let mut by_x: HashMap<ValueId, usize> = HashMap::new();
    let mut families: Vec<(ValueId, Vec<Product>)> = Vec::new();
    for (at, inst) in func.body.iter().enumerate() {
        let Some((x, product)) = product(func, at, inst) else { continue };
        let family = *by_x.entry(x).or_insert_with(|| {
            families.push((x, Vec::new()));
            families.len() - 1
        });
        families[family].1.push(product);
    }
    let mut groups: Vec<(ValueId, Vec<Product>)> = Vec::new();
    for (x, products) in families {
        let mut rest = products;
        // What is not ready at the first product may still be at a later one.
        while rest.len() > 1 {
            let at = rest[0].at;
            let ready =
                |v: ValueId| hoistable[v.index()] || defs[v.index()].is_none_or(|def| def < at);
            let (now, later): (Vec<_>, Vec<_>) =
                rest.iter().partition(|p| ready(p.weight) && p.bias.is_none_or(ready));
            if now.is_empty() {
                rest.remove(0);
                continue;
            }
            let chunks = chunks(func, x, &now, asks).into_iter().filter(|_| (asks.allow)());
            groups.extend(chunks.map(|g| (x, g)));
            rest = later;
        }
    }
    let count = groups.len();
    if count > 0 {
        rebuild(func, groups, &hoistable);
    }
    count
}

fn product(func: &Func, at: usize, inst: &Inst) -> Option<(ValueId, Product)> {
    let bias = match inst.op {
        Op::Matmul if inst.attrs.bool("transpose_b", false) => None,
        // A row is a bias; an addend of the product's shape is a residual and stays.
        Op::MatmulAdd if func.ty(inst.operands[2].value).rank() == 1 => {
            Some(inst.operands[2].value)
        }
        _ => return None,
    };
    let weight = inst.operands[1].value;
    if func.ty(weight).rank() != 2 || inst.operands.iter().any(|o| o.donated) {
        return None;
    }
    Some((inst.operands[0].value, Product { at, weight, bias, result: inst.results[0] }))
}

/// Constants and packed constants: they can be read earlier than they are.
fn hoistable(func: &Func) -> Vec<bool> {
    let mut is = vec![false; func.values.len()];
    for inst in &func.body {
        if matches!(inst.op, Op::Constant | Op::Pack) && inst.inputs().all(|v| is[v.index()]) {
            inst.results.iter().for_each(|r| is[r.index()] = true);
        }
    }
    is
}

/// Groups of at least two that the target has a kernel for and that are worth it: all products
/// together, else those of one weight type together.
fn chunks(func: &Func, x: ValueId, products: &[Product], asks: &Asks) -> Vec<Vec<Product>> {
    let whole = split(products);
    if whole.iter().all(|chunk| worth(func, x, chunk, asks)) {
        return whole;
    }
    let mut kinds: Vec<((DType, Layout), Vec<Product>)> = Vec::new();
    for p in products {
        let ty = func.ty(p.weight);
        let kind = (ty.dtype, ty.layout);
        match kinds.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, members)) => members.push(*p),
            None => kinds.push((kind, vec![*p])),
        }
    }
    kinds
        .iter()
        .flat_map(|(_, members)| split(members))
        .filter(|chunk| worth(func, x, chunk, asks))
        .collect()
}

/// Parts that do not exceed the number of operands an op takes; single products are left out.
fn split(products: &[Product]) -> Vec<Vec<Product>> {
    let mut chunks = vec![Vec::new()];
    let mut operands = 1;
    for p in products {
        let more = 1 + usize::from(p.bias.is_some());
        if operands + more > MAX_OPERANDS {
            chunks.push(Vec::new());
            operands = 1;
        }
        operands += more;
        if let Some(last) = chunks.last_mut() {
            last.push(*p);
        }
    }
    chunks.retain(|chunk: &Vec<Product>| chunk.len() > 1);
    chunks
}

fn operands(x: ValueId, chunk: &[Product]) -> Vec<ValueId> {
    let weights = chunk.iter().map(|p| p.weight);
    std::iter::once(x).chain(weights).chain(chunk.iter().filter_map(|p| p.bias)).collect()
}

fn worth(func: &Func, x: ValueId, chunk: &[Product], asks: &Asks) -> bool {
    let types: Vec<&TensorType> = operands(x, chunk).iter().map(|&v| func.ty(v)).collect();
    if !(asks.supports)(Op::MatmulMulti, &types) {
        return false;
    }
    let apart: f64 = chunk
        .iter()
        .map(|p| {
            let inst = &func.body[p.at];
            let types: Vec<&TensorType> = inst.inputs().map(|v| func.ty(v)).collect();
            (asks.seconds)(inst.op, &types, &[func.ty(p.result)])
        })
        .sum();
    let results: Vec<&TensorType> = chunk.iter().map(|p| func.ty(p.result)).collect();
    (asks.seconds)(Op::MatmulMulti, &types, &results) < apart
}

fn rebuild(func: &mut Func, groups: Vec<(ValueId, Vec<Product>)>, hoistable: &[bool]) {
    let mut starts: HashMap<usize, (ValueId, Vec<Product>)> = HashMap::new();
    let mut gone = vec![false; func.body.len()];
    for (x, chunk) in groups {
        for p in &chunk {
            gone[p.at] = true;
        }
        starts.insert(chunk[0].at, (x, chunk));
    }
    let defs = func.definitions();
    let mut emitted = vec![false; func.body.len()];
    let body = std::mem::take(&mut func.body);
    for at in 0..body.len() {
        if emitted[at] {
            continue;
        }
        let Some((x, chunk)) = starts.get(&at) else {
            if !gone[at] {
                func.body.push(body[at].clone());
                emitted[at] = true;
            }
            continue;
        };
        let operands = operands(*x, chunk);
        for &v in operands.iter().filter(|v| hoistable[v.index()]) {
            hoist(v, &body, &defs, &mut emitted, &mut func.body);
        }
        let biased = chunk.iter().enumerate().filter(|(_, p)| p.bias.is_some());
        let biases: Vec<i64> = biased.map(|(i, _)| i as i64).collect();
        let mut attrs = Attrs::new().with("weights", chunk.len() as i64);
        if !biases.is_empty() {
            attrs = attrs.with("biases", biases);
        }
        func.body.push(Inst {
            op: Op::MatmulMulti,
            operands: operands.into_iter().map(Operand::from).collect(),
            attrs,
            symbol: None,
            results: chunk.iter().map(|p| p.result).collect(),
            span: body[at].span.clone(),
        });
    }
}

/// Emits the constant `v`, and the one that it packs, unless they are there already.
fn hoist(
    v: ValueId,
    body: &[Inst],
    defs: &[Option<usize>],
    emitted: &mut [bool],
    out: &mut Vec<Inst>,
) {
    let mut chain = Vec::new();
    let mut next = Some(v);
    while let Some(at) = next.and_then(|v| defs[v.index()]).filter(|&at| !emitted[at]) {
        emitted[at] = true;
        chain.push(at);
        next = body[at].inputs().next();
    }
    out.extend(chain.into_iter().rev().map(|at| body[at].clone()));
}
