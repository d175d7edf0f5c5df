//! From a module to its canonical text.
//!
//! Symbols, constants and functions stand in the module's order, one instruction a line. Values
//! without a name are numbered from `%0` in the order of their definition; a name that is already
//! taken gets `_1`, `_2`, … behind it. Floats have the shortest form that reads back as the same
//! bits. Lists of at most [`LIST_MAX`] plain elements are listed, other bytes are hexadecimal.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::lexer::is_keyword;
use super::name::{is_bare, is_number, quote};
use super::scalar;
use crate::attr::Attr;
use crate::diag::{Diagnostic, Loc, SourceMap, render};
use crate::dim::is_symbol_name;
use crate::module::{Const, ConstData, Func, Inst, Module, ValueId};
use crate::types::TensorType;

/// Most elements that are listed one by one.
pub const LIST_MAX: usize = 64;

/// The canonical text. Broken modules are printed as far as they go, and may not read back.
pub fn print_module(module: &Module) -> String {
    print_with_map(module).0
}

/// The canonical text and where each part of the module is in it.
pub fn print_with_map(module: &Module) -> (String, SourceMap) {
    let mut p = Printer { out: String::new(), map: SourceMap::default() };
    p.module(module);
    (p.out, p.map)
}

/// Shows diagnostics of a module that did not come from text in its printed form.
pub fn explain(module: &Module, diagnostics: &[Diagnostic]) -> String {
    let (text, map) = print_with_map(module);
    let mut diagnostics = diagnostics.to_vec();
    diagnostics.iter_mut().for_each(|d| d.relocate(&map));
    render(&diagnostics, &text, &format!("@{}", module.name))
}

struct Printer {
    out: String,
    map: SourceMap,
}

impl Printer {
    fn at(&mut self, loc: Loc, print: impl FnOnce(&mut Self)) {
        let start = self.out.len();
        print(self);
        self.map.insert(loc, super::ast::span((start, self.out.len())));
    }

    fn push(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn comma_separated<T>(&mut self, items: &[T], mut print: impl FnMut(&mut Self, usize, &T)) {
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.push(", ");
            }
            print(self, i, item);
        }
    }

    fn global(&mut self, name: &str) {
        self.push("@");
        if is_bare(name) { self.push(name) } else { quote(&mut self.out, name) }
    }

    fn ty(&mut self, ty: &TensorType) {
        let _ = write!(self.out, "{ty}");
    }

    fn module(&mut self, module: &Module) {
        self.push("module ");
        self.at(Loc::Module, |p| p.global(&module.name));
        self.push(" {\n");
        for (i, (name, range)) in module.symbols.iter().enumerate() {
            self.push("  ");
            self.at(Loc::Symbol(i), |p| {
                let _ = write!(p.out, "sym {name} in {}..={}", range.min, range.max);
            });
            self.push("\n");
        }
        for (i, (name, c)) in module.consts.iter().enumerate() {
            self.push("  const ");
            self.at(Loc::Const(i), |p| p.global(name));
            self.push(" : ");
            self.at(Loc::ConstType(i), |p| p.ty(&c.ty));
            self.push(" = ");
            self.at(Loc::ConstData(i), |p| p.data(c));
            self.push("\n");
        }
        for (i, (name, func)) in module.funcs.iter().enumerate() {
            self.func(i, name, func);
        }
        self.push("}\n");
    }

    fn data(&mut self, c: &Const) {
        match &c.data {
            ConstData::File { path, offset, bytes, sha256 } => {
                self.push("file(");
                quote(&mut self.out, path);
                let _ = write!(self.out, ", {offset}, {bytes}");
                if let Some(digest) = sha256 {
                    self.push(", sha256 = ");
                    quote(&mut self.out, digest);
                }
                self.push(")");
            }
            ConstData::Dense(bytes) => match listed(&c.ty, bytes) {
                Some(elements) => {
                    self.push("dense<[");
                    self.comma_separated(&elements, |p, _, e| p.push(e));
                    self.push("]>");
                }
                None => {
                    self.push("dense<0x");
                    scalar::hex(&mut self.out, bytes);
                    self.push(">");
                }
            },
        }
    }

    fn func(&mut self, f: usize, name: &str, func: &Func) {
        let names = value_names(func);
        let value = |p: &mut Self, id: ValueId| match names.get(id.index()) {
            Some(Some(name)) => p.push(name),
            // Defined nowhere: shown, but not to be read back.
            _ => {
                let _ = write!(p.out, "%!{}", id.0);
            }
        };
        self.push("  func ");
        self.at(Loc::Func(f), |p| p.global(name));
        self.push("(");
        self.comma_separated(&func.params, |p, i, &id| {
            p.at(Loc::Param(f, i), |p| {
                value(p, id);
                p.push(": ");
                p.value_ty(func, id);
            });
        });
        self.push(") -> ");
        let single = func.result_types.len() == 1;
        self.push(if single { "" } else { "(" });
        self.comma_separated(&func.result_types, |p, i, ty| {
            p.at(Loc::ResultType(f, i), |p| p.ty(ty));
        });
        self.push(if single { " {\n" } else { ") {\n" });
        for (i, inst) in func.body.iter().enumerate() {
            self.push("    ");
            self.at(Loc::Inst(f, i), |p| p.inst((f, i), func, inst, &value));
            self.push("\n");
        }
        self.push("    ");
        self.at(Loc::Return(f), |p| {
            p.push(if func.returns.is_empty() { "return" } else { "return " });
            p.comma_separated(&func.returns, |p, i, &id| {
                p.at(Loc::Returned(f, i), |p| value(p, id));
            });
        });
        self.push("\n  }\n");
    }

    fn value_ty(&mut self, func: &Func, id: ValueId) {
        match func.values.get(id.index()) {
            Some(v) => self.ty(&v.ty),
            None => self.push("tensor<!>"),
        }
    }

    fn inst(
        &mut self,
        (f, i): (usize, usize),
        func: &Func,
        inst: &Inst,
        value: &impl Fn(&mut Self, ValueId),
    ) {
        self.comma_separated(&inst.results, |p, k, &id| {
            p.at(Loc::Result(f, i, k), |p| value(p, id));
        });
        if !inst.results.is_empty() {
            self.push(" = ");
        }
        self.at(Loc::Op(f, i), |p| p.push(inst.op.name()));
        if let Some(symbol) = &inst.symbol {
            self.push(" ");
            self.at(Loc::Callee(f, i), |p| p.global(symbol));
        }
        if !inst.operands.is_empty() {
            self.push(" ");
            self.comma_separated(&inst.operands, |p, k, operand| {
                if operand.donated {
                    p.push("donate ");
                }
                p.at(Loc::Operand(f, i, k), |p| value(p, operand.value));
            });
        }
        if !inst.attrs.is_empty() {
            self.push(" {");
            let attrs: Vec<_> = inst.attrs.0.iter().collect();
            self.comma_separated(&attrs, |p, k, (key, attr)| {
                p.at(Loc::Attr(f, i, k), |p| p.key(key));
                p.push(" = ");
                p.attr(attr);
            });
            self.push("}");
        }
        if !inst.results.is_empty() {
            self.push(" : ");
            self.comma_separated(&inst.results, |p, k, &id| {
                p.at(Loc::Type(f, i, k), |p| p.value_ty(func, id));
            });
        }
    }

    fn key(&mut self, key: &str) {
        if is_symbol_name(key) && !is_keyword(key) {
            self.push(key);
        } else {
            quote(&mut self.out, key);
        }
    }

    fn attr(&mut self, attr: &Attr) {
        match attr {
            Attr::Bool(v) => {
                let _ = write!(self.out, "{v}");
            }
            Attr::Int(v) => {
                let _ = write!(self.out, "{v}");
            }
            Attr::Float(v) => self.push(&scalar::float_text(*v)),
            Attr::Ints(v) => {
                let _ = write!(self.out, "{v:?}");
            }
            Attr::Str(v) => quote(&mut self.out, v),
        }
    }
}

/// The elements' texts, when they are few and read back as the same bytes.
fn listed(ty: &TensorType, bytes: &[u8]) -> Option<Vec<String>> {
    if ty.dtype.is_quantized() {
        return None;
    }
    let size = ty.dtype.block_bytes();
    if !bytes.len().is_multiple_of(size) || bytes.len() / size > LIST_MAX {
        return None;
    }
    bytes.chunks_exact(size).map(|element| scalar::text(ty.dtype, element)).collect()
}

/// What each defined value is called in the text, sigil included.
pub fn value_names(func: &Func) -> Vec<Option<String>> {
    let given: HashSet<&str> = func.values.iter().filter_map(|v| v.name.as_deref()).collect();
    let mut taken: HashSet<String> = HashSet::new();
    let mut names = vec![None; func.values.len()];
    // Where to go on looking for a free name, so that many equal names cost no more than few.
    let mut suffixes: HashMap<&str, u64> = HashMap::new();
    let mut number = 0usize;
    let results = func.body.iter().flat_map(|i| &i.results);
    for id in func.params.iter().chain(results) {
        let Some(data) = func.values.get(id.index()) else { continue };
        let slot: &mut Option<String> = &mut names[id.index()];
        if slot.is_some() {
            continue;
        }
        let Some(name) = &data.name else {
            *slot = Some(format!("%{number}"));
            number += 1;
            continue;
        };
        let mut unique = name.to_string();
        let suffix = suffixes.entry(name).or_insert(0u64);
        while taken.contains(&unique) || (*suffix > 0 && given.contains(&*unique)) {
            // A name that another value has by right stays free for it.
            *suffix += 1;
            unique = format!("{name}_{suffix}");
        }
        let mut text = "%".to_owned();
        if is_bare(&unique) && !is_number(&unique) {
            text.push_str(&unique);
        } else {
            quote(&mut text, &unique);
        }
        taken.insert(unique);
        *slot = Some(text);
    }
    names
}
