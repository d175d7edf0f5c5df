//! What a module costs on a target, by the target's own figures: bytes moved, arithmetic, launches.
//!
//! A call costs what its callee costs, so the figures are those of one run of a function. Symbols
//! count with the sizes of the context ([`PassCtx::size_of`]).

use aether_ir::fusion::Fusion;
use aether_ir::target::Cost;
use aether_ir::{Func, Inst, Module, Op, TensorType};

use crate::pass::PassCtx;
use crate::util::entries;

/// What one run of every entry function costs.
pub fn of_module(module: &Module, ctx: &PassCtx) -> Cost {
    let mut known = vec![State::New; module.funcs.len()];
    let costs = entries(module).into_iter().map(|f| of_index(module, ctx, f, &mut known));
    costs.fold(Cost::default(), add)
}

/// What one run of the function `name` costs, calls included; nothing for an unknown name.
pub fn of_func(module: &Module, ctx: &PassCtx, name: &str) -> Cost {
    let mut known = vec![State::New; module.funcs.len()];
    module
        .funcs
        .get_index_of(name)
        .map_or(Cost::default(), |f| of_index(module, ctx, f, &mut known))
}

/// What one instruction costs by itself; a call by itself costs nothing.
pub fn of_inst(module: &Module, ctx: &PassCtx, func: &Func, inst: &Inst) -> Cost {
    if inst.op == Op::Call {
        return Cost::default();
    }
    let operands: Vec<&TensorType> = inst.inputs().map(|v| func.ty(v)).collect();
    let results: Vec<&TensorType> = inst.results.iter().map(|&r| func.ty(r)).collect();
    let body = inst.symbol.as_ref().filter(|_| inst.op == Op::Fused);
    if let Some(body) = body.and_then(|s| module.funcs.get(s)) {
        return of_loop(module, ctx, body, &operands, &results);
    }
    ctx.target.cost(inst.op, &operands, &results, &|symbol| ctx.size_of(module, symbol))
}

/// What `fused` costs: its operands and results go through memory once, its body is arithmetic
/// alone, done anew for each pass over what is reduced.
pub fn of_loop(
    module: &Module,
    ctx: &PassCtx,
    body: &Func,
    operands: &[&TensorType],
    results: &[&TensorType],
) -> Cost {
    let sizes = |symbol: &str| ctx.size_of(module, symbol);
    let inner = |inst: &Inst| {
        let operands: Vec<&TensorType> = inst.inputs().map(|v| body.ty(v)).collect();
        let results: Vec<&TensorType> = inst.results.iter().map(|&r| body.ty(r)).collect();
        ctx.target.cost(inst.op, &operands, &results, &sizes).flops
    };
    let passes = Fusion::of(body).map_or(1, |fusion| fusion.passes);
    let flops = body.body.iter().map(inner).sum::<f64>() * passes as f64;
    Cost { flops, ..ctx.target.cost(Op::Fused, operands, results, &sizes) }
}

#[derive(Clone, Copy)]
enum State {
    New,
    /// Being summed up; a call to it is a recursion, which no module that verifies has.
    Open,
    Known(Cost),
}

fn of_index(module: &Module, ctx: &PassCtx, f: usize, known: &mut [State]) -> Cost {
    match known[f] {
        State::Known(cost) => return cost,
        State::Open => return Cost::default(),
        State::New => known[f] = State::Open,
    }
    let func = &module.funcs[f];
    let mut total = Cost::default();
    for inst in &func.body {
        let callee = inst.symbol.as_ref().filter(|_| inst.op == Op::Call);
        let cost = match callee.and_then(|s| module.funcs.get_index_of(s)) {
            Some(callee) => of_index(module, ctx, callee, known),
            None => of_inst(module, ctx, func, inst),
        };
        total = add(total, cost);
    }
    known[f] = State::Known(total);
    total
}

fn add(a: Cost, b: Cost) -> Cost {
    Cost { bytes: a.bytes + b.bytes, flops: a.flops + b.flops, launches: a.launches + b.launches }
}
