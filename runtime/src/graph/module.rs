//! From a graph to a module: only what the asked-for values need.

use std::collections::HashMap;

use aether_ir::{Func, Module, Op, Operand, ValueId, print_module};
use indexmap::IndexMap;

use super::builder::{Leaf, State};
use super::{GraphError, Tensor};

/// The part of a graph that some values need, as a module with the function `@main`.
pub(super) struct Cut {
    pub module: Module,
    /// Where the values of the parameters of `@main` come from, in order.
    pub leaves: IndexMap<ValueId, Leaf>,
}

/// What some values are computed from: for each value and instruction of the graph whether it
/// takes part.
pub(super) struct Needed {
    pub values: Vec<bool>,
    pub instructions: Vec<bool>,
}

/// What `outputs` are computed from, themselves included.
pub(super) fn needed(state: &State, outputs: &[ValueId]) -> Needed {
    let func = state.builder.func();
    let mut values = vec![false; func.values.len()];
    let mut instructions = vec![false; func.body.len()];
    let mut pending = outputs.to_vec();
    while let Some(v) = pending.pop() {
        if std::mem::replace(&mut values[v.index()], true) {
            continue;
        }
        if let Some(at) = state.defs[v.index()]
            && !std::mem::replace(&mut instructions[at], true)
        {
            pending.extend(func.body[at].inputs());
        }
    }
    Needed { values, instructions }
}

/// Cuts out what `outputs` need. They are what `@main` returns, in that order. The leaves in
/// `donated` are parameters of it in any case, and give their buffers away at their last use.
pub(super) fn cut(state: &State, outputs: &[ValueId], donated: &[ValueId]) -> Cut {
    let func = state.builder.func();
    let Needed { values: mut needed, instructions } = needed(state, outputs);
    donated.iter().for_each(|v| needed[v.index()] = true);
    let mut main = Func::new("main");
    let mut new_id: HashMap<ValueId, ValueId> = HashMap::new();
    let mut leaves = IndexMap::new();
    for (&v, leaf) in state.leaves.iter().filter(|(v, _)| needed[v.index()]) {
        let data = &func.values[v.index()];
        let id = main.add_value(data.ty.clone(), data.name.clone());
        main.params.push(id);
        new_id.insert(v, id);
        leaves.insert(v, leaf.clone());
    }
    for (inst, _) in func.body.iter().zip(&instructions).filter(|(_, needed)| **needed) {
        let mut inst = inst.clone();
        for operand in &mut inst.operands {
            operand.value = new_id[&operand.value];
        }
        for r in &mut inst.results {
            let data = &func.values[r.index()];
            let id = main.add_value(data.ty.clone(), data.name.clone());
            new_id.insert(*r, id);
            *r = id;
        }
        main.body.push(inst);
    }
    main.returns = outputs.iter().map(|v| new_id[v]).collect();
    main.result_types = main.returns.iter().map(|&v| main.ty(v).clone()).collect();
    for v in donated {
        if let Some(&v) = new_id.get(v) {
            donate(&mut main, v);
        }
    }
    Cut { module: with_globals(state, main), leaves }
}

/// Marks the last use of a parameter as giving it away, if it can be.
fn donate(func: &mut Func, v: ValueId) {
    let uses = |inst: &aether_ir::Inst| inst.inputs().filter(|&i| i == v).count();
    let last = func.body.iter_mut().rev().find(|inst| uses(inst) > 0);
    if let Some(inst) = last
        && uses(inst) == 1
        && !func.returns.contains(&v)
    {
        inst.operands
            .iter_mut()
            .filter(|o| o.value == v)
            .for_each(|o: &mut Operand| o.donated = true);
    }
}

/// A module of that function, with the functions, constants and symbols that it needs.
fn with_globals(state: &State, main: Func) -> Module {
    let mut module = Module::new(state.module.name.clone());
    let mut pending = vec![main];
    while let Some(func) = pending.pop() {
        for ty in func.values.iter().map(|v| &v.ty).chain(&func.result_types) {
            for symbol in ty.shape.0.iter().flat_map(|d| d.symbols()) {
                if let Some(range) = state.module.symbols.get(&symbol) {
                    module.symbols.insert(symbol, *range);
                }
            }
        }
        for inst in &func.body {
            let Some(name) = &inst.symbol else { continue };
            match inst.op {
                Op::Constant => {
                    if let Some(c) = state.module.consts.get(name) {
                        module.consts.insert(name.clone(), c.clone());
                    }
                }
                _ if module.funcs.contains_key(name) => {}
                _ => pending.extend(state.module.funcs.get(name).cloned()),
            }
        }
        module.add_func(func);
    }
    // In the order of the graph, so that equal graphs have equal text.
    module.symbols.sort_keys();
    module
}

impl Tensor {
    /// The module that computes this value, as it is before any pass.
    ///
    /// # Errors
    /// When the expression does not fit together.
    pub fn to_module(&self) -> Result<Module, GraphError> {
        let id = self.value()?;
        Ok(cut(&self.graph.state(), &[id], &[]).module)
    }

    /// The text of [`Tensor::to_module`].
    ///
    /// # Errors
    /// When the expression does not fit together.
    pub fn to_text(&self) -> Result<String, GraphError> {
        Ok(print_module(&self.to_module()?))
    }
}
