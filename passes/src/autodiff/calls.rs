//! Calls on the way of a gradient.
//!
//! A callee is differentiated once for each way in which gradients flow through it, however often
//! it is called, so that a gradient of N layers stays a list of calls as the model is:
//!
//! - `@f` becomes `@f.fwd`, which also returns the values that the backward part reads, and
//!   `@f.bwd`, which takes them and the gradients of the results to those of the operands. When
//!   the backward part reads operands and results only, `@f` is its own forward part.
//! - With `{checkpoint = true}` the call stays as it is, and `@f.remat` takes the operands,
//!   computes the values again and then the gradients: nothing but the operands is kept.

use std::collections::HashMap;
use std::sync::Arc;

use aether_ir::verify::MAX_CALL_DEPTH;
use aether_ir::{Func, Inst, Module, Op, TensorType, ValueId};

use super::AutodiffError;
use super::reverse::{Flow, Joint, Seed, differentiate, settle_donations};
use crate::util::compact;

/// The backward call of one call.
pub(crate) struct Cut {
    pub(crate) backward: Arc<str>,
    /// Its first operands; the gradients of the results in `seeds` follow.
    pub(crate) lead: Vec<ValueId>,
    pub(crate) seeds: Vec<usize>,
    /// The operands of the call whose gradients it returns.
    pub(crate) gradients: Vec<usize>,
}

/// What decides how a callee is differentiated: its name, the operands and results that are
/// active, and whether it recomputes.
type Key = (Arc<str>, Vec<usize>, Vec<usize>, bool);

/// A callee's parts.
#[derive(Clone)]
struct Parts {
    forward: Arc<str>,
    /// What the forward part returns beyond the callee's results.
    residuals: Vec<TensorType>,
    backward: Arc<str>,
    lead: Vec<Lead>,
    gradients: Vec<usize>,
}

/// A leading operand of the backward part, seen from the call.
#[derive(Clone, Copy)]
enum Lead {
    Operand(usize),
    /// Residuals come after the callee's results.
    Result(usize),
}

/// The callees that were differentiated so far.
#[derive(Default)]
pub(crate) struct Calls {
    known: HashMap<Key, Parts>,
    depth: usize,
}

impl Calls {
    /// Gives every call that gradients flow through its forward part, and says what to call on the
    /// way back, by instruction.
    pub(crate) fn cut(
        &mut self,
        module: &mut Module,
        func: &mut Func,
        flow: &Flow,
    ) -> Result<HashMap<usize, Cut>, AutodiffError> {
        let mut cuts = HashMap::new();
        for at in 0..func.body.len() {
            let inst = &func.body[at];
            let Some(callee) = inst.symbol.clone().filter(|_| inst.op.is_call()) else {
                continue;
            };
            let positions = |values: Vec<ValueId>| -> Vec<usize> {
                (0..values.len()).filter(|&i| flow.active(values[i])).collect()
            };
            let operands = positions(inst.inputs().collect());
            let seeds = positions(inst.results.clone());
            if operands.is_empty() || seeds.is_empty() {
                continue;
            }
            let checkpoint = inst.attrs.bool("checkpoint", false);
            let parts = self.parts(module, (callee, operands, seeds.clone(), checkpoint))?;

            let residuals: Vec<ValueId> =
                parts.residuals.into_iter().map(|ty| func.add_value(ty, None)).collect();
            let inst = &mut func.body[at];
            // What also returns residuals is no single loop any more; `fuse` finds its loops anew.
            inst.op = Op::Call;
            inst.symbol = Some(parts.forward);
            inst.results.extend(residuals);
            let lead = parts.lead.iter().map(|lead| match *lead {
                Lead::Operand(i) => inst.operands[i].value,
                Lead::Result(i) => inst.results[i],
            });
            let lead = lead.collect();
            let (backward, gradients) = (parts.backward, parts.gradients);
            cuts.insert(at, Cut { backward, lead, seeds, gradients });
        }
        Ok(cuts)
    }

    fn parts(&mut self, module: &mut Module, key: Key) -> Result<Parts, AutodiffError> {
        if let Some(parts) = self.known.get(&key) {
            return Ok(parts.clone());
        }
        let (name, operands, seeds, checkpoint) = &key;
        let callee = module.funcs.get(name);
        let callee = callee.ok_or_else(|| AutodiffError::unknown_func(module, name))?.clone();
        if self.depth == MAX_CALL_DEPTH {
            return Err(AutodiffError::Depth { func: name.clone() });
        }
        let outputs: Vec<ValueId> = seeds.iter().map(|&i| callee.returns[i]).collect();
        let wrt: Vec<ValueId> = operands.iter().map(|&i| callee.params[i]).collect();
        let params = callee.params.len();
        self.depth += 1;
        let joint = differentiate(module, self, callee, &outputs, Seed::Param, &wrt)?;
        self.depth -= 1;
        let parts = if *checkpoint {
            recompute(module, name, joint, operands, params)
        } else {
            split(module, name, joint, operands, params)
        };
        self.known.insert(key, parts.clone());
        Ok(parts)
    }
}

/// The gradients that exist, and the operands that they belong to.
fn existing(joint: &Joint, operands: &[usize]) -> (Vec<ValueId>, Vec<usize>) {
    let pairs = joint.gradients.iter().zip(operands);
    pairs.filter_map(|(g, &i)| Some(((*g)?, i))).unzip()
}

/// One function that computes everything again.
fn recompute(
    module: &mut Module,
    name: &Arc<str>,
    joint: Joint,
    operands: &[usize],
    params: usize,
) -> Parts {
    let (returns, gradients) = existing(&joint, operands);
    let mut func = joint.func;
    set_returns(&mut func, returns);
    drop_unused(&mut func);
    let backward = install(module, func, &format!("{name}.remat"));
    let lead = (0..params).map(Lead::Operand).collect();
    Parts { forward: name.clone(), residuals: Vec::new(), backward, lead, gradients }
}

/// Two functions, and the values that the second takes from the first.
fn split(
    module: &mut Module,
    name: &Arc<str>,
    joint: Joint,
    operands: &[usize],
    params: usize,
) -> Parts {
    let (returns, gradients) = existing(&joint, operands);
    let Joint { func, forward: cut, .. } = joint;
    let (own, seeds) = func.params.split_at(params);
    let defs = func.definitions();

    // What the backward part reads of the forward part, in order of first use. What takes no
    // operands is written again.
    let mut lead = Vec::new();
    let mut backward_params = Vec::new();
    let mut again: Vec<Inst> = Vec::new();
    let mut residuals = Vec::new();
    let mut seen = vec![false; func.values.len()];
    let body = func.body[cut..].iter();
    for v in body.flat_map(Inst::inputs).chain(returns.iter().copied()) {
        let from_forward = match defs[v.index()] {
            Some(at) => at < cut,
            None => own.contains(&v),
        };
        if !from_forward || std::mem::replace(&mut seen[v.index()], true) {
            continue;
        }
        let source = defs[v.index()].map(|at| &func.body[at]);
        if let Some(source) = source.filter(|inst| inst.operands.is_empty()) {
            again.push(source.clone());
            continue;
        }
        backward_params.push(v);
        let operand = own.iter().position(|&p| p == v);
        let result = func.returns.iter().position(|&r| r == v);
        lead.push(match (operand, result) {
            (Some(i), _) => Lead::Operand(i),
            (None, Some(i)) => Lead::Result(i),
            (None, None) => {
                residuals.push(v);
                Lead::Result(func.returns.len() + residuals.len() - 1)
            }
        });
    }

    let mut backward = Func { params: backward_params, ..func.clone() };
    backward.params.extend(seeds);
    backward.body.splice(..cut, again);
    set_returns(&mut backward, returns);

    let types = residuals.iter().map(|&v| func.ty(v).clone()).collect();
    let same = module.funcs.get(name).is_some_and(|f| {
        f.body.len() == cut && {
            let pairs = f.body.iter().zip(&func.body);
            residuals.is_empty() && pairs.into_iter().all(|(a, b)| a.symbol == b.symbol)
        }
    });
    let forward = if same {
        name.clone()
    } else {
        let mut forward = func.clone();
        forward.params.truncate(params);
        forward.body.truncate(cut);
        forward.returns.extend(&residuals);
        let returns = forward.returns.clone();
        set_returns(&mut forward, returns);
        install(module, forward, &format!("{name}.fwd"))
    };
    let backward = install(module, backward, &format!("{name}.bwd"));
    Parts { forward, residuals: types, backward, lead, gradients }
}

fn set_returns(func: &mut Func, returns: Vec<ValueId>) {
    func.result_types = returns.iter().map(|&v| func.ty(v).clone()).collect();
    func.returns = returns;
}

/// Removes instructions that no returned value needs.
fn drop_unused(func: &mut Func) {
    let mut live = vec![false; func.values.len()];
    func.returns.iter().for_each(|v| live[v.index()] = true);
    let mut keep = vec![false; func.body.len()];
    for (at, inst) in func.body.iter().enumerate().rev() {
        keep[at] = inst.results.iter().any(|r| live[r.index()]);
        if keep[at] {
            inst.inputs().for_each(|v| live[v.index()] = true);
        }
    }
    let mut flags = keep.into_iter();
    func.body.retain(|_| flags.next().unwrap_or(true));
}

/// Adds a function under a name that is free: `base`, or `base.1`, `base.2`, …. A function that
/// is there already is not added again.
pub(crate) fn install(module: &mut Module, mut func: Func, base: &str) -> Arc<str> {
    settle_donations(&mut func, &[]);
    compact(&mut func);
    let mut name: Arc<str> = base.into();
    let mut n = 0;
    while let Some(there) = module.funcs.get(&name) {
        func.name = name.clone();
        if without_spans(there) == without_spans(&func) {
            return name;
        }
        n += 1;
        name = format!("{base}.{n}").into();
    }
    func.name = name.clone();
    module.add_func(func);
    name
}

fn without_spans(func: &Func) -> Func {
    let mut func = func.clone();
    func.span = 0..0;
    func.return_span = 0..0;
    func.values.iter_mut().for_each(|v| v.span = 0..0);
    func.body.iter_mut().for_each(|inst| inst.span = 0..0);
    func
}
