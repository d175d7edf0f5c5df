//! The rules that every module keeps, and the check of them.
//!
//! [`verify`] takes any module, however broken (it may have been edited by hand or deserialised),
//! and reports each rule that it breaks, with the place. What passes may rely on all of them.
//!
//! Symbols and types
//! - V01: a symbol has a name (a letter or `_`, then letters, digits, `_`; no keyword) and a
//!   range with min ≤ max
//! - V02: every symbol in a type is declared
//! - V03: a type has at most [`MAX_RANK`] dimensions
//! - V04: the last dimension of a quantised type is a number and a whole number of blocks
//! - V05: a type has at most 2^62 elements, all symbols at their maximum
//! - V06: a dimension is never negative, whatever its symbols are
//! - V07: dimension expressions are small (terms and degree are bounded)
//! - V08: the packed layout is on matrices only
//!
//! Constants and names
//! - V09: the dimensions of a constant are numbers
//! - V10: a constant has as many bytes as its type
//! - V11: a constant's file range does not overflow, and its digest is 64 hexadecimal digits
//! - V12: names are not empty, and a function stands under its own name
//!
//! Values
//! - V13: every value that is mentioned exists in its function
//! - V14: a value is defined once
//! - V15: a value is defined before it is used
//!
//! Instructions
//! - V16: an op has as many operands as its table row says
//! - V17: attributes are known
//! - V18: attributes are of the right kind
//! - V19: required attributes are present
//! - V20: `call`, `fused` and `constant` have a symbol, other ops have none
//! - V21: the symbol names a function or a constant of the module
//! - V22: a `constant` has the type of its constant
//! - V23: a call's arguments have the types of the parameters
//! - V24: a call's results have the types that the function returns
//! - V25: a donated value is not used again: not in the same instruction, later, or returned
//! - V26: a constant is not donated
//! - V27: the op's type rule accepts operands and attributes
//! - V28: the result types are what the type rule gives
//! - V29: a function returns what its signature says
//! - V30: a packed value is read only as the weight of a product or the table of a gather along
//!   axis 0, passed on or returned
//!
//! Calls
//! - V31: functions do not call themselves, and calls nest at most [`MAX_CALL_DEPTH`] deep
//! - V32: a function is at most [`MAX_EXPANDED`] instructions, those of the functions that it
//!   calls counted
//! - V33: a function that `fused` names is one loop over elements ([`crate::fusion`])

mod body;

use std::sync::Arc;

use crate::diag::{Diagnostic, Loc};
use crate::dim::is_symbol_name;
use crate::fusion::Fusion;
use crate::module::{Const, ConstData, Func, Module, Span, ValueId};
use crate::op::Op;
use crate::text::{MAX_DIAGNOSTICS, is_keyword};
use crate::types::{Layout, MAX_RANK, TensorType};

/// How deep calls may nest.
pub const MAX_CALL_DEPTH: usize = 64;

/// Most instructions that a function may run, callees included.
pub const MAX_EXPANDED: u64 = 1 << 22;

/// Most elements of a tensor.
const MAX_ELEMENTS: u64 = 1 << 62;

/// Most terms that the product of a type's dimensions may have, and greatest degree.
const MAX_TERMS: usize = 256;
const MAX_DEGREE: usize = 32;

/// Checks every rule.
///
/// # Errors
/// What is wrong, in the order of the module, at most [`MAX_DIAGNOSTICS`].
pub fn verify(module: &Module) -> Result<(), Vec<Diagnostic>> {
    let mut v = Verifier { module, diagnostics: Vec::new() };
    v.check_name("module", &module.name, Loc::Module, &(0..0));
    v.symbols();
    for (i, (name, c)) in module.consts.iter().enumerate() {
        v.constant(i, name, c);
    }
    for (i, (name, func)) in module.funcs.iter().enumerate() {
        if v.full() {
            break;
        }
        v.check_name("function", name, Loc::Func(i), &func.span);
        if *name != func.name {
            let message = format!("function `@{}` stands under the name `@{name}`", func.name);
            v.report("V12", message, Loc::Func(i), &func.span);
        }
        body::check(&mut v, i, func);
    }
    v.calls();
    v.fused();
    if v.diagnostics.is_empty() { Ok(()) } else { Err(v.diagnostics) }
}

struct Verifier<'m> {
    module: &'m Module,
    diagnostics: Vec<Diagnostic>,
}

impl<'m> Verifier<'m> {
    fn full(&self) -> bool {
        self.diagnostics.len() >= MAX_DIAGNOSTICS
    }

    fn push(&mut self, d: Diagnostic) {
        if !self.full() {
            self.diagnostics.push(d);
        }
    }

    fn report(&mut self, code: &'static str, message: impl Into<String>, loc: Loc, span: &Span) {
        self.push(diagnostic(code, message, loc, span));
    }

    fn check_name(&mut self, what: &str, name: &str, loc: Loc, span: &Span) {
        if name.is_empty() {
            self.report("V12", format!("the name of the {what} is empty"), loc, span);
        }
    }

    fn symbols(&mut self) {
        for (i, (name, range)) in self.module.symbols.iter().enumerate() {
            let loc = Loc::Symbol(i);
            if range.min > range.max {
                let message = format!("the range of `{name}` is empty");
                let label = format!("{} is greater than {}", range.min, range.max);
                self.push(diagnostic("V01", message, loc, &(0..0)).label(label));
            }
            if !is_symbol_name(name) || is_keyword(name) {
                let message = format!("{name:?} cannot name a symbol");
                self.report("V01", message, loc, &(0..0));
            }
        }
    }

    /// Checks V02 to V08; `true` when all hold.
    fn ty(&mut self, ty: &TensorType, loc: Loc, span: &Span) -> bool {
        if self.full() {
            return false;
        }
        let before = self.diagnostics.len();
        if ty.rank() > MAX_RANK {
            let message =
                format!("a tensor has at most {MAX_RANK} dimensions, this one {}", ty.rank());
            self.report("V03", message, loc, span);
            return false;
        }
        let (mut terms, mut degree) = (1usize, 0usize);
        for d in &ty.shape.0 {
            let (t, g) = d.complexity();
            (terms, degree) = (terms.saturating_mul(t.max(1)), degree.saturating_add(g));
        }
        if terms > MAX_TERMS || degree > MAX_DEGREE {
            let message = format!(
                "the dimensions multiply to {terms} terms of degree {degree}; at most {MAX_TERMS} \
                 and {MAX_DEGREE} are possible"
            );
            self.report("V07", message, loc, span);
            return false;
        }
        let symbols = &self.module.symbols;
        let mut unknown: Vec<_> = ty.shape.0.iter().flat_map(|d| d.symbols()).collect();
        unknown.retain(|s| !symbols.contains_key(s));
        unknown.dedup();
        for s in &unknown {
            let known = symbols.keys().map(|k| &**k);
            let help = match crate::diag::did_you_mean(s, known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("declare it in the module: `sym {s} in 1..=512`"),
            };
            let d = diagnostic("V02", format!("symbol `{s}` is not declared"), loc, span);
            self.push(d.help(help));
        }
        if !unknown.is_empty() {
            return false;
        }
        let mut elements = Some(1u64);
        for d in &ty.shape.0 {
            // Bounded below by zero exactly when its negation is bounded above by zero.
            let negated = &crate::Dim::new(0) - d;
            if d.as_const().is_none() && negated.upper_bound(symbols) != Some(0) {
                let d = diagnostic("V06", format!("dimension `{d}` can be negative"), loc, span);
                self.push(d.help("raise the minimum of its symbols"));
                return false;
            }
            let bound = d.upper_bound(symbols);
            elements = elements.zip(bound).and_then(|(n, b)| n.checked_mul(b.max(1)));
        }
        if elements.is_none_or(|n| n > MAX_ELEMENTS) {
            let message = format!("{ty} can have more than 2^62 elements");
            self.report("V05", message, loc, span);
        }
        if ty.dtype.is_quantized() {
            let block = ty.dtype.block_len() as u64;
            let last = ty.shape.0.last().map(|d| d.as_const());
            if !matches!(last, Some(Some(n)) if n.is_multiple_of(block)) {
                let message = format!(
                    "the last dimension of a {} tensor is a multiple of {block}, in {ty} it is not",
                    ty.dtype
                );
                self.report("V04", message, loc, span);
            }
        }
        if ty.layout != Layout::RowMajor && ty.rank() != 2 {
            let message = format!("layout {} is for matrices, this is {ty}", ty.layout.name());
            self.report("V08", message, loc, span);
        }
        self.diagnostics.len() == before
    }

    fn constant(&mut self, i: usize, name: &str, c: &Const) {
        self.check_name("constant", name, Loc::Const(i), &c.span);
        let ok = self.ty(&c.ty, Loc::ConstType(i), &c.span);
        if let ConstData::File { offset, bytes, sha256, .. } = &c.data {
            if offset.checked_add(*bytes).is_none() {
                let message = format!("the file range {offset} + {bytes} overflows");
                self.report("V11", message, Loc::ConstData(i), &c.span);
            }
            if let Some(digest) = sha256
                && !(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()))
            {
                let message = "a SHA-256 digest has 64 hexadecimal digits";
                self.report("V11", message, Loc::ConstData(i), &c.span);
            }
        }
        if !ok {
            return;
        }
        if c.ty.shape.as_const().is_none() {
            let message = format!("constant `@{name}` has the symbolic type {}", c.ty);
            self.report("V09", message, Loc::ConstType(i), &c.span);
            return;
        }
        let has = match &c.data {
            ConstData::File { bytes, .. } => *bytes,
            ConstData::Dense(bytes) => bytes.len() as u64,
        };
        let needs = c.ty.bytes(|_| None);
        if needs != Some(has) {
            let needs = needs.map_or_else(|| "too many".to_owned(), |n| n.to_string());
            let message = format!("constant `@{name}` has {has} bytes, its type needs {needs}");
            let d = diagnostic("V10", message, Loc::ConstData(i), &c.span);
            self.push(d.label(format!("{} is {needs} bytes", c.ty)));
        }
    }

    /// V31 and V32, by a depth-first walk with its own stack.
    fn calls(&mut self) {
        /// What is known of a function: how deep its calls nest, how much it runs.
        #[derive(Clone, Copy)]
        enum State {
            New,
            Open,
            Done { depth: usize, size: u64 },
        }
        let module = self.module;
        let mut states = vec![State::New; module.funcs.len()];
        for root in 0..module.funcs.len() {
            if !matches!(states[root], State::New) {
                continue;
            }
            // Function, next instruction, depth and size so far.
            let mut stack = vec![(root, 0usize, 1usize, 0u64)];
            states[root] = State::Open;
            while let Some((f, i, depth, size)) = stack.last_mut() {
                let at = (*f, *i);
                let Some((_, func)) = module.funcs.get_index(*f) else { break };
                let Some(inst) = func.body.get(*i) else {
                    let (depth, size) = (*depth, *size);
                    self.call_limits(at.0, func, depth, size);
                    // Reported once: the callers go on as if it were small.
                    let fits = depth <= MAX_CALL_DEPTH && size <= MAX_EXPANDED;
                    let (depth, size) = if fits { (depth, size) } else { (1, 0) };
                    states[at.0] = State::Done { depth, size };
                    stack.pop();
                    if let Some((_, i, d, s)) = stack.last_mut() {
                        *i += 1;
                        *d = (*d).max(depth + 1);
                        *s = s.saturating_add(size).saturating_add(1);
                    }
                    continue;
                };
                let callee = match (&inst.op, &inst.symbol) {
                    (op, Some(name)) if op.is_call() => module.funcs.get_index_of(name),
                    _ => None,
                };
                match callee.map(|c| (c, states[c])) {
                    Some((c, State::New)) => {
                        states[c] = State::Open;
                        stack.push((c, 0, 1, 0));
                        continue;
                    }
                    Some((_, State::Open)) if self.full() => {
                        *i += 1;
                    }
                    Some((c, State::Open)) => {
                        let from = stack.iter().position(|e| e.0 == c).unwrap_or(0);
                        let cycle = stack[from..].iter().map(|e| e.0).collect::<Vec<_>>();
                        self.recursion(&cycle, c, at, &inst.span);
                        if let Some((_, i, ..)) = stack.last_mut() {
                            *i += 1;
                        }
                    }
                    Some((_, State::Done { depth: d, size: s })) => {
                        *depth = (*depth).max(d + 1);
                        *size = size.saturating_add(s).saturating_add(1);
                        *i += 1;
                    }
                    None => {
                        *size = size.saturating_add(1);
                        *i += 1;
                    }
                }
            }
        }
    }

    /// V33, once per function, shown where it is fused first. Bodies that break other rules are
    /// not looked at.
    fn fused(&mut self) {
        if !self.diagnostics.is_empty() {
            return;
        }
        let module = self.module;
        let mut seen = std::collections::HashSet::new();
        for (f, func) in module.funcs.values().enumerate() {
            for (i, inst) in func.body.iter().enumerate().filter(|(_, inst)| inst.op == Op::Fused) {
                let Some(name) = &inst.symbol else { continue };
                let Some((c, target)) = callee(module, name).filter(|_| seen.insert(name)) else {
                    continue;
                };
                let Err(e) = Fusion::of(target) else { continue };
                let message = format!("`@{name}` cannot be fused: {}", e.message);
                let d = diagnostic("V33", message, Loc::Callee(f, i), &inst.span);
                self.push(match e.inst {
                    Some(at) => d.note("here", Loc::Op(c, at), target.body[at].span.clone()),
                    None => d.note("declared here", Loc::Func(c), target.span.clone()),
                });
            }
        }
    }

    fn call_limits(&mut self, f: usize, func: &Func, depth: usize, size: u64) {
        if depth > MAX_CALL_DEPTH {
            let message =
                format!("calls from `@{}` nest deeper than {MAX_CALL_DEPTH} functions", func.name);
            self.report("V31", message, Loc::Func(f), &func.span);
        }
        if size > MAX_EXPANDED {
            let message = format!(
                "`@{}` runs more than {MAX_EXPANDED} instructions, those of its callees counted",
                func.name
            );
            self.report("V32", message, Loc::Func(f), &func.span);
        }
    }

    fn recursion(&mut self, cycle: &[usize], callee: usize, at: (usize, usize), span: &Span) {
        const SHOWN: usize = 8;
        let name = |f: usize| {
            let (name, _) = self.module.funcs.get_index(f).map_or(("", ()), |(n, _)| (n, ()));
            format!("`@{name}`")
        };
        let mut path: Vec<String> = cycle.iter().take(SHOWN).map(|&f| name(f)).collect();
        if cycle.len() > SHOWN {
            path.push("…".to_owned());
        }
        path.push(name(callee));
        let message = format!("{} calls itself", name(callee));
        let d = diagnostic("V31", message, Loc::Callee(at.0, at.1), span);
        self.push(d.label(path.join(" calls ")));
    }
}

fn diagnostic(code: &'static str, message: impl Into<String>, loc: Loc, span: &Span) -> Diagnostic {
    Diagnostic { code: Some(code), loc, ..Diagnostic::error(message, span.clone()) }
}

/// What a reader knows a value by.
fn value_name(func: &Func, id: ValueId) -> String {
    match func.values.get(id.index()).map(|v| v.name.as_ref()) {
        Some(Some(name)) => format!("`%{name}`"),
        Some(None) => "the value".to_owned(),
        None => format!("value {}", id.0),
    }
}

/// The types of some values, when all of them exist.
fn types_of(func: &Func, ids: impl Iterator<Item = ValueId>) -> Option<Vec<&TensorType>> {
    ids.map(|id| func.values.get(id.index()).map(|v| &v.ty)).collect()
}

/// A function of the module by the name in an instruction.
fn callee<'m>(module: &'m Module, symbol: &Arc<str>) -> Option<(usize, &'m Func)> {
    module.funcs.get_full(symbol).map(|(i, _, f)| (i, f))
}
