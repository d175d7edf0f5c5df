//! Why an op was fused: its figures beside those of its parts.
//!
//! The parts of an op that stands for a fixed composition are spelt out here and priced by the
//! same target that the pass asked. An op whose symbol names its body (`fused`) is priced
//! instruction by instruction.

use aether_ir::target::Cost;
use aether_ir::{Func, Inst, Module, Op, TensorType};
use aether_passes::{PassCtx, cost};

/// A fused op and what it replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct Fusion {
    /// The function it stands in.
    pub func: String,
    /// The op, with the function it calls if any.
    pub op: String,
    /// The ops it stands for.
    pub parts: String,
    /// What it costs.
    pub fused: Cost,
    /// What its parts cost, each for itself.
    pub apart: Cost,
}

/// The figures of one instruction; nothing when it is no fused op.
pub fn of(module: &Module, ctx: &PassCtx, func: &Func, inst: &Inst) -> Option<Fusion> {
    let price = |op: Op, operands: &[&TensorType], results: &[&TensorType]| {
        ctx.target.cost(op, operands, results, &|s| ctx.size_of(module, s))
    };
    let types: Vec<&TensorType> = inst.inputs().map(|v| func.ty(v)).collect();
    let results: Vec<&TensorType> = inst.results.iter().map(|&r| func.ty(r)).collect();
    let product = |w: &TensorType, y: &TensorType| price(Op::Matmul, &[types[0], w], &[y]);
    let (parts, apart) = match inst.op {
        Op::MatmulAdd => {
            let y = results[0];
            (
                "matmul, add".to_owned(),
                sum([product(types[1], y), price(Op::Add, &[y, types[2]], &[y])]),
            )
        }
        Op::MatmulGated => {
            let y = results[0];
            let act = inst.attrs.str("act").unwrap_or_default();
            let all = [
                product(types[1], y),
                product(types[2], y),
                price(Op::from_name(act)?, &[y], &[y]),
                price(Op::Mul, &[y, y], &[y]),
            ];
            (format!("matmul, matmul, {act}, mul"), sum(all))
        }
        Op::MatmulMulti => {
            let products = results.iter().enumerate().map(|(i, y)| product(types[1 + i], y));
            (format!("{} × matmul of one operand", results.len()), sum(products))
        }
        op if op.name() == "fused" => {
            let body = module.funcs.get(inst.symbol.as_ref()?)?;
            let ops: Vec<&str> = body.body.iter().map(|i| i.op.name()).collect();
            (ops.join(", "), sum(body.body.iter().map(|i| cost::of_inst(module, ctx, body, i))))
        }
        _ => return None,
    };
    let symbol = inst.symbol.as_ref().map_or(String::new(), |s| format!(" @{s}"));
    Some(Fusion {
        func: func.name.to_string(),
        op: format!("{}{symbol}", inst.op),
        parts,
        fused: cost::of_inst(module, ctx, func, inst),
        apart,
    })
}

fn sum(costs: impl IntoIterator<Item = Cost>) -> Cost {
    costs.into_iter().fold(Cost::default(), |a, b| Cost {
        bytes: a.bytes + b.bytes,
        flops: a.flops + b.flops,
        launches: a.launches + b.launches,
    })
}
