//! Ops that the fuse pass makes: differentiated as what they were made of.

use aether_ir::Op;

use super::super::emit::Val;
use super::super::vjp::Vjp;

type Composed<'e> = Result<Vec<Val<'e>>, String>;

pub(crate) fn matmul_add<'e>(v: &Vjp<'e>) -> Composed<'e> {
    Ok(vec![v.x(0).matmul(v.x(1), true) + v.x(2)])
}

pub(crate) fn matmul_act<'e>(v: &Vjp<'e>) -> Composed<'e> {
    let name = v.attrs().str("act").unwrap_or_default();
    let act = Op::from_name(name).ok_or_else(|| format!("unknown activation `{name}`"))?;
    let product = v.x(0).matmul(v.x(1), v.attrs().bool("transpose_b", false));
    let sum = if v.inst.operands.len() > 2 { product + v.x(2) } else { product };
    Ok(vec![sum.op1(act)])
}

pub(crate) fn matmul_gated<'e>(v: &Vjp<'e>) -> Composed<'e> {
    let act = match v.attrs().str("act") {
        Some("silu") => Op::Silu,
        Some("gelu") => Op::Gelu,
        Some("gelu_tanh") => Op::GeluTanh,
        other => return Err(format!("unknown activation `{}`", other.unwrap_or_default())),
    };
    let gate = v.x(0).matmul(v.x(1), true).op1(act);
    Ok(vec![gate * v.x(0).matmul(v.x(2), true)])
}

pub(crate) fn matmul_multi<'e>(v: &Vjp<'e>) -> Composed<'e> {
    let n = v.inst.results.len();
    let biases = v.attrs().ints("biases").unwrap_or_default();
    let mut results: Vec<_> = (0..n).map(|i| v.x(0).matmul(v.x(1 + i), true)).collect();
    for (at, &weight) in biases.iter().enumerate() {
        let sum = &mut results[weight as usize];
        *sum = *sum + v.x(1 + n + at);
    }
    Ok(results)
}
