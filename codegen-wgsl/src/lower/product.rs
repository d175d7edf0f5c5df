//! Products with weights stored as [n, k], by the templates: weights of one type in one dispatch,
//! those above the adapter's limit for a binding in parts of their rows.

use aether_ir::{DType, Dim, Inst, Layout, Op, Symbol, SymbolRange, TensorType};
use indexmap::IndexMap;

use super::{Lower, Site};
use crate::adapter::Adapter;
use crate::error::CompileError;
use crate::kernel::Bind;
use crate::program::Binding;
use crate::templates::product::{Addend, Product, Weight};
use crate::templates::{Operand, Site as Template};

/// What an instruction multiplies and adds.
struct Parts {
    /// Operands that are weights.
    weights: Vec<usize>,
    /// Operands that are added, and to the product with which weight.
    addends: Vec<(usize, usize)>,
    act: Option<String>,
    gated: bool,
    /// The norm of x: its weight's operand and `eps`.
    norm: Option<(usize, f32)>,
}

impl Parts {
    /// `None` for products with a weight stored as [k, n].
    fn of(inst: &Inst) -> Option<Parts> {
        let attrs = &inst.attrs;
        let transposed = attrs.bool("transpose_b", false);
        if matches!(inst.op, Op::Matmul | Op::MatmulAct) && !transposed {
            return None;
        }
        let act = attrs.str("act").map(str::to_owned);
        let norm = matches!(inst.op, Op::NormMatmulMulti | Op::NormMatmulGated)
            .then(|| (1, attrs.float("eps", 0.0) as f32));
        // The first weight.
        let w = 1 + usize::from(norm.is_some());
        let none = Parts { weights: vec![w], addends: Vec::new(), act: None, gated: false, norm };
        Some(match inst.op {
            Op::MatmulAdd => Parts { addends: vec![(2, 0)], ..none },
            Op::MatmulAct if inst.operands.len() > 2 => {
                Parts { addends: vec![(2, 0)], act, ..none }
            }
            Op::MatmulAct => Parts { act, ..none },
            Op::MatmulGated | Op::NormMatmulGated => {
                Parts { weights: vec![w, w + 1], act, gated: true, ..none }
            }
            Op::MatmulMulti | Op::NormMatmulMulti => {
                let n = attrs.int("weights", 1).max(1) as usize;
                let biases = attrs.ints("biases").unwrap_or_default();
                let addends = biases.iter().enumerate().map(|(i, &g)| (w + n + i, g as usize));
                Parts { weights: (w..w + n).collect(), addends: addends.collect(), ..none }
            }
            _ => none,
        })
    }

    /// Addends of a group's weights: the operand, and the weight's place in the group.
    fn addends_of(&self, group: &[usize]) -> Vec<(usize, usize)> {
        let place = |weight: usize| group.iter().position(|&g| g == weight);
        self.addends.iter().filter_map(|&(o, w)| Some((o, place(w)?))).collect()
    }
}

/// Some of an instruction's weights, which are multiplied together, or a part of their rows.
struct Task {
    /// Places among the instruction's weights.
    group: Vec<usize>,
    product: Product,
    /// First row, when it is a part.
    part: Option<usize>,
}

/// The tasks of a product; `None` when there is no template for it.
fn tasks(
    inst: &Inst,
    operands: &[&TensorType],
    results: &[&TensorType],
    symbols: &IndexMap<Symbol, SymbolRange>,
    adapter: &Adapter,
) -> Option<Vec<Task>> {
    let p = Parts::of(inst)?;
    let x = operands[0];
    let f32s = results.iter().chain([&x]).all(|ty| ty.dtype == DType::F32);
    let added = p.addends.iter().all(|(o, _)| operands[*o].dtype == DType::F32);
    if !f32s || !added {
        return None;
    }
    let sizes: Vec<(usize, usize)> = p
        .weights
        .iter()
        .map(|&i| {
            let dims = operands[i].shape.as_const().filter(|d| d.len() == 2)?;
            Some((dims[0] as usize, dims[1] as usize))
        })
        .collect::<Option<_>>()?;
    let tokens = x.shape.0[..x.rank() - 1].iter().fold(Dim::new(1), |acc, d| &acc * d);
    let most_tokens = tokens.upper_bound(symbols)? as usize;
    let row_bytes = |g: usize| {
        let ty = operands[p.weights[g]];
        match ty.layout {
            Layout::Planes => ty.dtype.planes_row_bytes(sizes[g].1),
            _ => ty.dtype.row_bytes(sizes[g].1),
        }
    };
    let mut tasks = Vec::new();
    for group in groups(&p, operands, &|g| Some(row_bytes(g)? * sizes[g].0), adapter)? {
        let whole = Product {
            k: sizes[group[0]].1,
            tokens: tokens.clone(),
            most_tokens,
            weights: group
                .iter()
                .map(|&g| {
                    let ty = operands[p.weights[g]];
                    Weight { dtype: ty.dtype, layout: ty.layout, rows: sizes[g].0 }
                })
                .collect(),
            addends: p
                .addends_of(&group)
                .into_iter()
                .map(|(o, weight)| Addend { weight, row: operands[o].rank() == 1 })
                .collect(),
            act: p.act.clone(),
            gated: p.gated,
            norm: p.norm.map(|(_, eps)| eps.to_bits()),
            part: None,
        };
        if !whole.is_supported() {
            return None;
        }
        let rows = sizes[group[0]].0;
        let mut step = rows;
        for &g in &group {
            let most = adapter.binding_bytes as usize / row_bytes(g)?.max(1);
            // Parts begin at multiples of 256 bytes.
            step = if most < sizes[g].0 { step.min(most / 256 * 256) } else { step };
        }
        if step == 0 {
            return None;
        }
        if step == rows {
            tasks.push(Task { group, product: whole, part: None });
            continue;
        }
        for first in (0..rows).step_by(step) {
            let count = step.min(rows - first);
            let mut product = whole.clone();
            product.part = Some((first, rows));
            product.weights.iter_mut().for_each(|w| w.rows = count);
            tasks.push(Task { group: group.clone(), product, part: Some(first) });
        }
    }
    Some(tasks)
}

/// Weights that one dispatch takes.
fn groups(
    p: &Parts,
    operands: &[&TensorType],
    bytes: &dyn Fn(usize) -> Option<usize>,
    adapter: &Adapter,
) -> Option<Vec<Vec<usize>>> {
    if p.gated {
        return Some(vec![vec![0, 1]]);
    }
    let mut groups: IndexMap<(DType, usize), Vec<usize>> = IndexMap::new();
    for (g, &w) in p.weights.iter().enumerate() {
        // One that is split goes alone.
        let split = bytes(g)? as u64 > adapter.binding_bytes;
        groups.entry((operands[w].dtype, if split { g + 1 } else { 0 })).or_default().push(g);
    }
    // x and a norm's weight, and a weight, an addend and a result for each.
    let each = ((adapter.storage_buffers as usize).saturating_sub(2) / 3).max(1);
    Some(
        groups
            .into_values()
            .flat_map(|g| g.chunks(each).map(<[_]>::to_vec).collect::<Vec<_>>())
            .collect(),
    )
}

/// Bytes of scratch that a product needs.
pub fn scratch_bytes(
    inst: &Inst,
    operands: &[&TensorType],
    results: &[&TensorType],
    symbols: &IndexMap<Symbol, SymbolRange>,
    adapter: &Adapter,
) -> u64 {
    let tasks = tasks(inst, operands, results, symbols, adapter).unwrap_or_default();
    tasks.iter().map(|t| t.product.scratch_bytes(adapter)).max().unwrap_or(0)
}

/// Lowers a product when there is a template for it; `false` leaves it to another way.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<bool, CompileError> {
    let operands: Vec<&TensorType> = site.inputs.iter().map(|v| &v.ty).collect();
    let results: Vec<&TensorType> = site.outputs.iter().map(|v| &v.ty).collect();
    let symbols = &lower.module.symbols;
    let tasks = tasks(site.inst, &operands, &results, symbols, &lower.adapter);
    let (Some(tasks), Some(p)) = (tasks, Parts::of(site.inst)) else { return Ok(false) };
    for task in &tasks {
        emit(lower, site, &p, task)?;
    }
    Ok(true)
}

/// Appends a task's dispatches.
fn emit(lower: &mut Lower, site: &Site, p: &Parts, task: &Task) -> Result<(), CompileError> {
    let Task { group, product, part } = task;
    let bind = |i: usize| site.operand(i);
    // In the template's order.
    let weights = group.iter().map(|&g| p.weights[g]);
    let added = p.addends_of(group).into_iter().map(|(operand, _)| operand);
    let operands: Vec<Operand> = std::iter::once(0)
        .chain(weights)
        .chain(added)
        .chain(p.norm.map(|(w, _)| w))
        .map(bind)
        .collect();
    let launches = {
        let template =
            Template { adapter: &lower.adapter, symbols: &lower.symbols, operands: &operands };
        product.launches(&template)
    };
    lower.launch(site, launches, |bind| match bind {
        Bind::Operand(i) => {
            let whole = site.inputs[i].binding;
            let place = p.weights.iter().position(|&w| w == i);
            let (Some(first), Some(place)) = (part, place) else { return Ok(whole) };
            let place = group.iter().position(|&g| g == place).unwrap_or(0);
            let rows = product.weights[place].rows as u64;
            let row = whole.bytes / product.columns(place).max(1) as u64;
            let offset = whole.offset + *first as u64 * row;
            Ok(Binding { offset, bytes: rows * row, ..whole })
        }
        Bind::Result(i) => {
            let at = if product.gated { 0 } else { group[i] };
            Ok(site.outputs[at].binding)
        }
        _ => site.binding(bind),
    })
}
