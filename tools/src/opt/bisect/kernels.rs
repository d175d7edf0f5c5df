//! Which kernel of a device gives other numbers than the interpreter.

use aether_ir::{Module, Op, Tensor, ValueId};

use super::case::{Case, differ};
use crate::opt::Device;
use crate::opt::compare::Tolerance;

/// Most instructions that are looked at one by one.
const MAX_INSTRUCTIONS: usize = 4096;

/// A part of the module on which device and interpreter differ.
pub struct Culprit {
    pub case: Case,
    /// The wrong op; `None` when each is right alone and only the whole is wrong.
    pub op: Option<Op>,
    /// Where it stands, callers first.
    pub path: String,
    pub why: String,
}

/// Runs cases on a device and judges the results.
pub struct Judge<'a> {
    pub device: &'a dyn Device,
    pub tolerance: &'a dyn Fn(&Module) -> Tolerance,
}

impl Judge<'_> {
    /// How the device's numbers differ, if they do.
    pub fn spoils(&self, case: &Case) -> Option<String> {
        let expected = case.interpret(&case.module).ok()?;
        match self.device.run(&case.module, &case.func, case.tensors()) {
            Ok(found) => differ(&found, &expected, &(self.tolerance)(&case.module)),
            Err(e) => Some(format!("the device refuses it: {e:#}")),
        }
    }

    /// The first instruction whose kernel is wrong, when the whole is.
    ///
    /// # Errors
    /// When the interpreter cannot run the case.
    pub fn search(&self, case: &Case) -> anyhow::Result<Option<Culprit>> {
        match self.spoils(case) {
            None => Ok(None),
            Some(why) => Ok(Some(self.find(case, why, format!("@{}", case.func))?)),
        }
    }

    fn find(&self, case: &Case, why: String, path: String) -> anyhow::Result<Culprit> {
        let trace = case.trace()?;
        let body = &case.entry().body;
        for (i, inst) in body.iter().enumerate().take(MAX_INSTRUCTIONS) {
            // Constants are read and packed with the product that uses them.
            if matches!(inst.op, Op::Constant | Op::Pack) || inst.results.is_empty() {
                continue;
            }
            let alone = case.part(&|at| at == i, &inst.results, &trace)?;
            let Some(why) = self.spoils(&alone) else { continue };
            let path = format!("{path}, instruction {i}");
            if inst.op == Op::Call
                && let Some(inside) = self.enter(case, i, &trace, &path)?
            {
                return Ok(inside);
            }
            return Ok(Culprit { case: alone, op: Some(inst.op), path, why });
        }
        // Each kernel is right alone: the plan, or steps that disturb one another.
        for (i, inst) in body.iter().enumerate().take(MAX_INSTRUCTIONS) {
            let returns: Vec<ValueId> = inst.results.clone();
            if returns.is_empty() {
                continue;
            }
            let up_to = case.part(&|at| at <= i, &returns, &trace)?;
            if let Some(why) = self.spoils(&up_to) {
                let path = format!("{path}, up to instruction {i} (`{}`)", inst.op);
                return Ok(Culprit { case: up_to, op: None, path, why });
            }
        }
        Ok(Culprit { case: case.clone(), op: None, path, why })
    }

    /// The callee of instruction `i` as a case of its own, searched in turn.
    fn enter(
        &self,
        case: &Case,
        i: usize,
        trace: &[Option<Tensor>],
        path: &str,
    ) -> anyhow::Result<Option<Culprit>> {
        let Some(callee) = callee(case, i, trace) else { return Ok(None) };
        match self.spoils(&callee) {
            Some(why) => {
                let path = format!("{path}, @{}", callee.func);
                Ok(Some(self.find(&callee, why, path)?))
            }
            None => Ok(None),
        }
    }
}

/// The function that instruction `i` calls, on the arguments it is called with. Packed values
/// cannot be arguments of a run; such a call is left alone.
pub fn callee(case: &Case, i: usize, trace: &[Option<Tensor>]) -> Option<Case> {
    let inst = &case.entry().body[i];
    let func = inst.symbol.clone().filter(|name| case.module.funcs.contains_key(name))?;
    let mut arguments = Vec::new();
    for v in inst.inputs() {
        let tensor = trace[v.index()].clone()?;
        if tensor.layout() != aether_ir::Layout::RowMajor {
            return None;
        }
        arguments.push(super::case::Argument { tensor, spec: None });
    }
    let mut callee = Case { func, arguments, ..case.clone() };
    callee.keep_reachable();
    Some(callee)
}
