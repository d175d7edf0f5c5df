//! The reverse sweep over one function.

use std::collections::HashMap;
use std::ops::Range;

use aether_ir::{Func, Inst, Module, Op, ValueId};

use super::AutodiffError;
use super::calls::{Calls, Cut};
use super::emit::Emitter;
use super::table::derivative;
use super::vjp::{Derivative, Vjp};

/// A function with its gradient instructions at the end.
pub(crate) struct Joint {
    pub(crate) func: Func,
    /// Number of instructions that were there before.
    pub(crate) forward: usize,
    /// By `wrt` value: its gradient, `None` where the outputs do not depend on it.
    pub(crate) gradients: Vec<Option<ValueId>>,
}

/// Where an output's gradient comes from.
#[derive(Clone, Copy)]
pub(crate) enum Seed {
    /// It is 1: the output is the scalar that is differentiated.
    One,
    /// A new parameter of the output's type.
    Param,
}

/// Which values a gradient flows through.
pub(crate) struct Flow {
    /// By value: it depends on what is differentiated with respect to, and an output depends on
    /// it.
    active: Vec<bool>,
}

impl Flow {
    fn of(func: &Func, outputs: &[ValueId], wrt: &[ValueId]) -> Self {
        let mut depends = vec![false; func.values.len()];
        for v in wrt {
            depends[v.index()] = true;
        }
        for inst in func.body.iter().filter(|inst| passes(inst)) {
            if inst.inputs().any(|v| depends[v.index()]) {
                for r in &inst.results {
                    depends[r.index()] |= func.ty(*r).dtype.is_float();
                }
            }
        }
        let mut active = vec![false; func.values.len()];
        for v in outputs {
            active[v.index()] = depends[v.index()];
        }
        for inst in func.body.iter().rev().filter(|inst| passes(inst)) {
            if inst.results.iter().any(|r| active[r.index()]) {
                for v in inst.inputs() {
                    active[v.index()] |= depends[v.index()];
                }
            }
        }
        Flow { active }
    }

    /// Values that came later are not active.
    pub(crate) fn active(&self, v: ValueId) -> bool {
        self.active.get(v.index()).copied().unwrap_or(false)
    }
}

/// Whether gradients flow through an instruction at all.
fn passes(inst: &Inst) -> bool {
    !matches!(derivative(inst.op), Derivative::Zero)
}

/// Appends to `func` the gradients of `outputs` with respect to `wrt`, added up over the outputs.
///
/// Values that are there keep their numbers. Calls on the way become calls of the forward part of
/// their callee, which also returns what the backward part reads.
pub(crate) fn differentiate(
    module: &mut Module,
    calls: &mut Calls,
    mut func: Func,
    outputs: &[ValueId],
    seed: Seed,
    wrt: &[ValueId],
) -> Result<Joint, AutodiffError> {
    let first_new = func.values.len();
    let forward = func.body.len();
    let flow = Flow::of(&func, outputs, wrt);
    let cuts = calls.cut(module, &mut func, &flow)?;
    let e = Emitter::new(func);
    let mut sweep = Sweep { e: &e, flow, cotangents: Vec::new(), cuts };
    for output in outputs {
        let ty = e.func().ty(*output).clone();
        let cotangent = match seed {
            Seed::One => e.splat(ty, 1.0),
            Seed::Param => {
                let name = e.func().values[output.index()].name.clone();
                e.param(&format!("d_{}", name.as_deref().unwrap_or("out")), ty)
            }
        };
        sweep.add(*output, cotangent.id());
    }
    sweep.run(0..forward)?;
    let mut gradients: Vec<Option<ValueId>> = wrt.iter().map(|&v| sweep.cotangent(v)).collect();
    let mut func = e.into_func();
    prune(&mut func, forward, first_new, &mut gradients);
    settle_donations(&mut func, &gradients);
    Ok(Joint { func, forward, gradients })
}

struct Sweep<'e> {
    e: &'e Emitter,
    flow: Flow,
    cotangents: Vec<Option<ValueId>>,
    /// By instruction.
    cuts: HashMap<usize, Cut>,
}

impl Sweep<'_> {
    fn cotangent(&self, v: ValueId) -> Option<ValueId> {
        self.cotangents.get(v.index()).copied().flatten()
    }

    fn add(&mut self, v: ValueId, gradient: ValueId) {
        if self.cotangents.len() <= v.index() {
            self.cotangents.resize(v.index() + 1, None);
        }
        let slot = &mut self.cotangents[v.index()];
        *slot = Some(match *slot {
            None => gradient,
            Some(sum) => (self.e.val(sum) + self.e.val(gradient)).id(),
        });
    }

    fn run(&mut self, range: Range<usize>) -> Result<(), AutodiffError> {
        for at in range.rev() {
            let inst = self.e.func().body[at].clone();
            let of_result = |&r| self.cotangent(r).filter(|_| self.flow.active(r));
            let cotangents: Vec<_> = inst.results.iter().map(of_result).collect();
            let needs: Vec<bool> = inst.inputs().map(|v| self.flow.active(v)).collect();
            if cotangents.iter().all(Option::is_none) || !needs.contains(&true) {
                continue;
            }
            if inst.op == Op::Call {
                self.call(at, &inst, &cotangents);
            } else {
                self.op(&inst, cotangents, needs)?;
            }
            if let Some(e) = self.e.error() {
                return Err(e.into());
            }
        }
        Ok(())
    }

    fn op(
        &mut self,
        inst: &Inst,
        cotangents: Vec<Option<ValueId>>,
        needs: Vec<bool>,
    ) -> Result<(), AutodiffError> {
        let vjp = Vjp::new(self.e, inst, cotangents.clone(), needs);
        match derivative(inst.op) {
            Derivative::Zero | Derivative::Structural => {}
            Derivative::Unary(f) => vjp.give(0, f(vjp.g(), vjp.x(0), vjp.y(0))),
            Derivative::Rule(rule) => rule(&vjp).map_err(|why| self.refused(inst, why))?,
            Derivative::Composed(compose) => {
                let start = self.e.isolate();
                let results = compose(&vjp);
                let end = self.e.rejoin();
                let results = results.map_err(|why| self.refused(inst, why))?;
                for (result, cotangent) in results.into_iter().zip(cotangents) {
                    if let Some(g) = cotangent {
                        self.add(result.id(), g);
                    }
                }
                self.activate(start..end);
                return self.run(start..end);
            }
            Derivative::Refused(why) => return Err(self.refused(inst, why.to_owned())),
        }
        for (i, gradient) in vjp.given() {
            self.add(inst.operands[i].value, gradient);
        }
        Ok(())
    }

    /// Extends the flow over instructions that a rule composed.
    fn activate(&mut self, range: Range<usize>) {
        let func = self.e.func();
        self.flow.active.resize(func.values.len(), false);
        for inst in func.body[range].iter().filter(|inst| passes(inst)) {
            if inst.inputs().any(|v| self.flow.active(v)) {
                for r in &inst.results {
                    self.flow.active[r.index()] = func.ty(*r).dtype.is_float();
                }
            }
        }
    }

    fn call(&mut self, at: usize, inst: &Inst, cotangents: &[Option<ValueId>]) {
        let Some(cut) = self.cuts.get(&at) else { return };
        let mut operands = cut.lead.clone();
        for &r in &cut.seeds {
            // The backward part takes all of them, whether or not one arrived.
            let zero = || self.e.splat(self.e.val(inst.results[r]).ty(), 0.0).id();
            operands.push(cotangents[r].unwrap_or_else(zero));
        }
        let gradients = cut.gradients.clone();
        let types: Vec<_> =
            gradients.iter().map(|&i| self.e.val(inst.operands[i].value).ty()).collect();
        let results = self.e.call(&cut.backward.clone(), &operands, &types);
        for (i, gradient) in gradients.into_iter().zip(results) {
            self.add(inst.operands[i].value, gradient);
        }
    }

    fn refused(&self, inst: &Inst, message: String) -> AutodiffError {
        let func = self.e.func();
        let named = inst.results.first().and_then(|r| func.values[r.index()].name.clone());
        AutodiffError::Refused {
            func: func.name.clone(),
            op: inst.op,
            value: named,
            span: inst.span.clone(),
            message,
        }
    }
}

/// Removes appended instructions that no gradient needs, and numbers the values that are left
/// from `first_new` on.
fn prune(func: &mut Func, forward: usize, first_new: usize, gradients: &mut [Option<ValueId>]) {
    let mut live = vec![false; func.values.len()];
    for v in gradients.iter().flatten() {
        live[v.index()] = true;
    }
    let mut keep = vec![true; func.body.len()];
    for (at, inst) in func.body.iter().enumerate().skip(forward).rev() {
        keep[at] = inst.results.iter().any(|r| live[r.index()]);
        if keep[at] {
            inst.inputs().for_each(|v| live[v.index()] = true);
        }
    }
    let mut flags = keep.into_iter();
    func.body.retain(|_| flags.next().unwrap_or(true));

    let mut number: Vec<u32> = (0..func.values.len() as u32).collect();
    let mut values = func.values[..first_new].to_vec();
    let defined = func.params.iter().chain(func.body.iter().flat_map(|inst| &inst.results));
    for v in defined.filter(|v| v.index() >= first_new) {
        number[v.index()] = values.len() as u32;
        values.push(func.values[v.index()].clone());
    }
    func.values = values;
    let renumber = |v: &mut ValueId| v.0 = number[v.index()];
    func.params.iter_mut().for_each(renumber);
    gradients.iter_mut().flatten().for_each(renumber);
    for inst in &mut func.body {
        inst.results.iter_mut().for_each(renumber);
        inst.operands.iter_mut().for_each(|o| renumber(&mut o.value));
    }
}

/// Takes back the donation of values that are read or returned later, or are among `results`.
pub(crate) fn settle_donations(func: &mut Func, results: &[Option<ValueId>]) {
    let mut used = vec![false; func.values.len()];
    func.returns.iter().chain(results.iter().flatten()).for_each(|v| used[v.index()] = true);
    for inst in func.body.iter_mut().rev() {
        for operand in &mut inst.operands {
            operand.donated &= !used[operand.value.index()];
        }
        inst.inputs().for_each(|v| used[v.index()] = true);
    }
}
