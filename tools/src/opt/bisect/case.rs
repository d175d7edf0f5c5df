//! One function with its arguments: what a bisection carries through all its experiments.

use std::collections::HashSet;
use std::sync::Arc;

use aether_ir::interp::{InterpOptions, Interpreter};
use aether_ir::{Attrs, Bindings, Func, Inst, Module, Op, Tensor, ValueId};
use anyhow::Context;

use crate::opt::compare::{self, Tolerance};

/// Bounds of one experiment: a bisection makes hundreds of them.
const OPTIONS: InterpOptions = InterpOptions {
    max_elements: 1 << 24,
    max_live_bytes: 1 << 30,
    max_depth: 64,
    max_steps: 1 << 20,
};

/// An argument, and how `--input` writes it when it need not be written out.
#[derive(Clone, Debug)]
pub struct Argument {
    pub tensor: Tensor,
    pub spec: Option<String>,
}

/// A module, the function that is run, and on what.
#[derive(Clone, Debug)]
pub struct Case {
    pub module: Module,
    pub func: Arc<str>,
    pub arguments: Vec<Argument>,
    pub bindings: Bindings,
}

impl Case {
    pub fn entry(&self) -> &Func {
        &self.module.funcs[&self.func]
    }

    pub fn entry_mut(&mut self) -> &mut Func {
        &mut self.module.funcs[&self.func]
    }

    pub fn tensors(&self) -> Vec<Tensor> {
        self.arguments.iter().map(|a| a.tensor.clone()).collect()
    }

    /// What `module`, a transformed version of the case's own, gives.
    pub fn interpret(&self, module: &Module) -> anyhow::Result<Vec<Tensor>> {
        let interpreter = Interpreter::new(module).with_options(OPTIONS);
        Ok(interpreter.run_bound(&self.func, self.tensors(), &self.bindings)?)
    }

    /// Instructions of all functions.
    pub fn size(&self) -> usize {
        self.module.funcs.values().map(|f| f.body.len()).sum()
    }

    /// Drops the functions that the entry does not reach, so that passes take it for the entry.
    pub fn keep_reachable(&mut self) {
        let mut reached: HashSet<Arc<str>> = HashSet::new();
        let mut pending = vec![self.func.clone()];
        while let Some(name) = pending.pop() {
            let Some(func) = self.module.funcs.get(&name) else { continue };
            if reached.insert(name) {
                pending.extend(func.body.iter().filter_map(|inst| inst.symbol.clone()));
            }
        }
        self.module.funcs.retain(|name, _| reached.contains(name));
    }

    /// Every value of the entry, by value; `None` for those that nothing defines.
    pub fn trace(&self) -> anyhow::Result<Vec<Option<Tensor>>> {
        let mut all = self.clone();
        let func = all.entry_mut();
        for operand in func.body.iter_mut().flat_map(|inst| &mut inst.operands) {
            operand.donated = false;
        }
        let defined = func.params.iter().chain(func.body.iter().flat_map(|inst| &inst.results));
        func.returns = defined.copied().collect();
        func.result_types = func.returns.iter().map(|&v| func.ty(v).clone()).collect();
        let returned = func.returns.clone();
        let mut values = vec![None; func.values.len()];
        for (v, tensor) in returned.into_iter().zip(all.interpret(&all.module)?) {
            values[v.index()] = Some(tensor);
        }
        Ok(values)
    }

    /// The instructions of `keep`, by position, as a case of their own that returns `returns`:
    /// what they read of the rest becomes parameters that have the values of `trace`. Constants
    /// and packed weights stay what they are.
    pub fn part(
        &self,
        keep: &dyn Fn(usize) -> bool,
        returns: &[ValueId],
        trace: &[Option<Tensor>],
    ) -> anyhow::Result<Case> {
        let func = self.entry();
        let defs = func.definitions();
        let mut wanted: Vec<ValueId> = returns.to_vec();
        let mut kept: HashSet<usize> = HashSet::new();
        let mut lent: HashSet<ValueId> = HashSet::new();
        while let Some(v) = wanted.pop() {
            let weight = |inst: &Inst| matches!(inst.op, Op::Constant | Op::Pack);
            match defs[v.index()] {
                Some(i) if keep(i) || weight(&func.body[i]) => {
                    if kept.insert(i) {
                        wanted.extend(func.body[i].inputs());
                    }
                }
                _ => drop(lent.insert(v)),
            }
        }
        let mut new = func.clone();
        let mut arguments = Vec::new();
        // Old parameters first, in their order.
        let results = func.body.iter().flat_map(|inst| &inst.results);
        new.params =
            func.params.iter().chain(results).copied().filter(|v| lent.contains(v)).collect();
        for v in &new.params {
            let old = func.params.iter().position(|p| p == v);
            arguments.push(match old.and_then(|i| self.arguments.get(i)) {
                Some(argument) => argument.clone(),
                None => {
                    let tensor = trace.get(v.index()).cloned().flatten();
                    Argument { tensor: tensor.context("a value was not traced")?, spec: None }
                }
            });
        }
        new.body = (0..func.body.len())
            .filter(|i| kept.contains(i))
            .map(|i| func.body[i].clone())
            .collect();
        new.returns = returns.to_vec();
        new.result_types = returns.iter().map(|&v| func.ty(v).clone()).collect();
        // A value may be given away here only if the part does not return it.
        for operand in new.body.iter_mut().flat_map(|inst| &mut inst.operands) {
            operand.donated &= !returns.contains(&operand.value);
        }
        name_params(&mut new);
        aether_passes::util::compact(&mut new);
        let mut case = Case { arguments, ..self.clone() };
        case.module.funcs.insert(self.func.clone(), new);
        case.keep_reachable();
        case.drop_unused();
        Ok(case)
    }

    /// Drops constants and symbols that nothing mentions.
    fn drop_unused(&mut self) {
        let used: HashSet<Arc<str>> = self
            .module
            .funcs
            .values()
            .flat_map(|f| &f.body)
            .filter_map(|inst| inst.symbol.clone())
            .collect();
        self.module.consts.retain(|name, _| used.contains(name));
        let types = self.module.funcs.values().flat_map(|f| f.values.iter().map(|v| &v.ty));
        let symbols: HashSet<_> =
            types.flat_map(|ty| ty.shape.0.iter().flat_map(|d| d.symbols())).collect();
        self.module.symbols.retain(|name, _| symbols.contains(name));
        self.bindings.retain(|name, _| symbols.contains(name));
    }

    /// The `--input` arguments that give these values again.
    pub fn input_flags(&self) -> anyhow::Result<String> {
        let func = self.entry();
        let mut flags = String::new();
        for (argument, param) in self.arguments.iter().zip(&func.params) {
            let name = func.values[param.index()].name.as_deref().unwrap_or_default();
            let value = match &argument.spec {
                Some(spec) => spec.clone(),
                None => {
                    let numbers = argument.tensor.to_f64_vec()?;
                    let numbers: Vec<String> = numbers.iter().map(f64::to_string).collect();
                    format!("[{}]", numbers.join(","))
                }
            };
            flags.push_str(&format!(" --input {name}={value}"));
        }
        for (name, value) in &self.bindings {
            flags.push_str(&format!(" --sym {name}={value}"));
        }
        Ok(flags)
    }
}

/// Gives names to parameters that have none, so that `--input` can name them.
fn name_params(func: &mut Func) {
    for (i, param) in func.params.clone().into_iter().enumerate() {
        let taken =
            |func: &Func, name: &str| func.values.iter().any(|v| v.name.as_deref() == Some(name));
        if func.values[param.index()].name.is_none() {
            let mut name = format!("p{i}");
            while taken(func, &name) {
                name.push('_');
            }
            func.values[param.index()].name = Some(name.into());
        }
    }
}

/// Says in which result two runs differ, or nothing when they agree.
pub fn differ(found: &[Tensor], expected: &[Tensor], tolerance: &Tolerance) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{} results, expected {}", found.len(), expected.len()));
    }
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        match compare::distance(found, expected) {
            Ok(distance) if distance.within(tolerance) => {}
            Ok(distance) => return Some(format!("result {i}: {distance}")),
            Err(e) => return Some(format!("result {i}: {e:#}")),
        }
    }
    None
}

/// The tolerance that was asked for, or the usual one of what a module computes with.
pub fn tolerance_of(module: &Module, atol: f64, rtol: Option<f64>, ulp: Option<u64>) -> Tolerance {
    let rel = rtol.unwrap_or_else(|| compare::usual_rtol(module));
    Tolerance { abs: atol, rel, ulp }
}

/// The attributes with numbers put in place of others.
pub fn replace_ints(attrs: &Attrs, name: &str, from: i64, to: i64) -> Attrs {
    match attrs.ints(name) {
        None => attrs.clone(),
        Some(ints) => {
            let ints: Vec<i64> = ints.iter().map(|&n| if n == from { to } else { n }).collect();
            attrs.clone().with(name, ints)
        }
    }
}
