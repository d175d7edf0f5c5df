//! From the syntax tree to a module: reads numbers and types, resolves value names.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::str::FromStr;
use std::sync::Arc;

use indexmap::IndexMap;

use super::ast::{self, Word, span};
use super::lexer::short;
use super::name::{is_number, unquote};
use super::parse::MAX_DIAGNOSTICS;
use super::scalar;
use crate::attr::{Attr, Attrs};
use crate::diag::{Diagnostic, Loc, SourceMap, counted, did_you_mean};
use crate::dim::{Dim, SymbolRange};
use crate::dtype::DType;
use crate::module::{Const, ConstData, Func, Inst, Module, Operand, Span, ValueId};
use crate::op::Op;
use crate::types::{Layout, Shape, TensorType};

/// Most dimensions that are read; the verifier allows fewer.
const MAX_DIMS: usize = 64;

/// Longest dimension expression in bytes.
const MAX_DIM_TEXT: usize = 256;

/// The module, the places of its parts, and what is wrong. The module is whole only when nothing
/// is wrong.
pub fn lower(tree: &ast::Module) -> (Module, SourceMap, Vec<Diagnostic>) {
    let mut l = Lower { map: SourceMap::default(), diagnostics: Vec::new() };
    let name = l.name(&tree.name);
    let mut module = Module::new(name);
    l.map.insert(Loc::Module, tree.name.span());
    // Where each name was first declared, for the note that goes with the second.
    let mut declared: HashMap<(char, Arc<str>), Span> = HashMap::new();
    for item in &tree.items {
        let (kind, name) = match item {
            ast::Item::Sym(s) => ('[', s.name),
            ast::Item::Const(c) => ('c', c.name),
            ast::Item::Func(ast::Func { head: Some(h), .. }) => ('f', h.name),
            ast::Item::Func(ast::Func { head: None, .. }) | ast::Item::Broken => continue,
        };
        let text = l.name(&name);
        match declared.entry((kind, text.clone())) {
            Entry::Occupied(first) => {
                let sigil = if kind == '[' { "" } else { "@" };
                let message = format!("`{sigil}{}` is declared twice", short(&text));
                let d = Diagnostic::error(message, name.span());
                l.report(d.note("first declared here", Loc::Module, first.get().clone()));
                continue;
            }
            Entry::Vacant(slot) => slot.insert(name.span()),
        };
        match item {
            ast::Item::Sym(s) => {
                let (min, max) = (l.number(&s.min).unwrap_or(0), l.number(&s.max).unwrap_or(0));
                l.map.insert(Loc::Symbol(module.symbols.len()), span(s.at));
                module.symbols.insert(text, SymbolRange { min, max });
            }
            ast::Item::Const(c) => {
                let index = module.consts.len();
                let ty = l.ty(&c.ty, Loc::ConstType(index));
                let data = l.data(c, &ty);
                l.map.insert(Loc::Const(index), c.name.span());
                l.map.insert(Loc::ConstData(index), span(c.data_at));
                module.consts.insert(text, Const { ty, data, span: span(c.at) });
            }
            ast::Item::Func(ast::Func { head: Some(head), body, end }) => {
                let func = l.func(module.funcs.len(), text, head, body, *end);
                module.funcs.insert(func.name.clone(), func);
            }
            ast::Item::Func(ast::Func { head: None, .. }) | ast::Item::Broken => {}
        }
    }
    (module, l.map, l.diagnostics)
}

struct Lower {
    map: SourceMap,
    diagnostics: Vec<Diagnostic>,
}

/// The values of a function by name. Numbers that were not quoted are names of the text only.
struct Scope {
    values: HashMap<(bool, Arc<str>), ValueId>,
    /// Some statement could not be read, so an unknown name may well have been defined there.
    broken: bool,
}

impl Lower {
    fn report(&mut self, d: Diagnostic) {
        if self.diagnostics.len() < MAX_DIAGNOSTICS {
            self.diagnostics.push(d);
        }
    }

    fn string(&mut self, word: &Word) -> String {
        unquote(word.text).unwrap_or_else(|message| {
            self.report(Diagnostic::error(message, word.span()));
            String::new()
        })
    }

    fn name(&mut self, word: &Word) -> Arc<str> {
        if word.text.starts_with('"') { self.string(word).into() } else { word.text.into() }
    }

    fn number<T: FromStr>(&mut self, word: &Word) -> Option<T> {
        let value = word.text.parse().ok();
        if value.is_none() {
            let message = format!("`{}` is out of range", short(word.text));
            self.report(Diagnostic::error(message, word.span()));
        }
        value
    }

    fn ty(&mut self, ty: &ast::Type, loc: Loc) -> TensorType {
        self.map.insert(loc, span(ty.at));
        if ty.dims.len() > MAX_DIMS {
            let message = format!("a tensor cannot have {} dimensions", ty.dims.len());
            self.report(Diagnostic::error(message, span(ty.at)));
        }
        let dims = ty.dims.iter().take(MAX_DIMS).map(|d| self.dim(d)).collect();
        let dtype = ty.dtype.text.parse().unwrap_or_else(|_| {
            let message = format!("unknown element type `{}`", short(ty.dtype.text));
            let mut d = Diagnostic::error(message, ty.dtype.span());
            if let Some(meant) = did_you_mean(ty.dtype.text, DType::all().map(DType::name)) {
                d = d.help(format!("did you mean `{meant}`?"));
            }
            self.report(d);
            DType::F32
        });
        let layout = ty.layout.map_or(Layout::RowMajor, |word| {
            Layout::from_name(word.text).unwrap_or_else(|| {
                let message = format!("unknown layout `{}`", short(word.text));
                let known = Layout::ALL.map(|l| format!("`{}`", l.name())).join(", ");
                self.report(
                    Diagnostic::error(message, word.span()).help(format!("layouts are {known}")),
                );
                Layout::RowMajor
            })
        });
        TensorType { shape: Shape(dims), dtype, layout }
    }

    fn dim(&mut self, word: &Word) -> Dim {
        let text = word.text.trim_start_matches('[').trim_end_matches(']');
        if text.len() > MAX_DIM_TEXT {
            let message = format!("the dimension is longer than {MAX_DIM_TEXT} characters");
            self.report(Diagnostic::error(message, word.span()));
            return Dim::new(1);
        }
        text.parse().unwrap_or_else(|e: crate::dim::ParseDimError| {
            self.report(Diagnostic::error(e.to_string(), word.span()));
            Dim::new(1)
        })
    }

    fn data(&mut self, c: &ast::Const, ty: &TensorType) -> ConstData {
        match &c.data {
            ast::Data::File { path, offset, bytes, sha256 } => ConstData::File {
                path: self.string(path),
                offset: self.number(offset).unwrap_or(0),
                bytes: self.number(bytes).unwrap_or(0),
                sha256: sha256.as_ref().map(|w| self.string(w)),
            },
            ast::Data::Hex(word) => {
                let digits = word.text.trim_start_matches("0x");
                let bytes = scalar::parse_hex(digits).unwrap_or_else(|message| {
                    self.report(Diagnostic::error(message, word.span()));
                    Vec::new()
                });
                ConstData::Dense(bytes.into())
            }
            ast::Data::List(words) => {
                let mut bytes = Vec::with_capacity(words.len() * ty.dtype.block_bytes());
                for word in words {
                    match scalar::parse(ty.dtype, word.text) {
                        Ok(element) => bytes.extend(element),
                        Err(message) => {
                            self.report(Diagnostic::error(message, word.span()));
                            break;
                        }
                    }
                }
                ConstData::Dense(bytes.into())
            }
        }
    }

    fn func(
        &mut self,
        f: usize,
        name: Arc<str>,
        head: &ast::Head,
        body: &[ast::Stmt],
        end: (usize, usize),
    ) -> Func {
        let mut func = Func::new(name);
        func.span = span(head.at);
        self.map.insert(Loc::Func(f), head.name.span());
        let broken = body.iter().any(|s| matches!(s, ast::Stmt::Broken));
        let mut scope = Scope { values: HashMap::new(), broken };
        for (i, (word, ty)) in head.params.iter().enumerate() {
            let ty = self.ty(ty, Loc::Param(f, i));
            let id = self.define(&mut func, &mut scope, word, ty);
            func.params.push(id);
        }
        for (i, ty) in head.results.iter().enumerate() {
            let ty = self.ty(ty, Loc::ResultType(f, i));
            func.result_types.push(ty);
        }
        // Definitions first: a use before its definition is the verifier's to refuse.
        let mut defined = Vec::with_capacity(body.len());
        let mut insts = 0;
        for stmt in body {
            let ast::Stmt::Inst(inst) = stmt else { continue };
            defined.push(self.results(f, insts, inst, &mut func, &mut scope));
            insts += 1;
        }
        let mut defined = defined.into_iter();
        let mut returned = false;
        for stmt in body {
            if returned {
                let at = match stmt {
                    ast::Stmt::Inst(inst) => inst.at,
                    ast::Stmt::Return { at, .. } => *at,
                    ast::Stmt::Broken => continue,
                };
                let d = Diagnostic::error("nothing may follow `return`", span(at));
                self.report(d);
                break;
            }
            match stmt {
                ast::Stmt::Inst(inst) => {
                    let results = defined.next().unwrap_or_default();
                    let inst = self.inst(f, func.body.len(), inst, results, &scope);
                    func.body.push(inst);
                }
                ast::Stmt::Return { values, at } => {
                    returned = true;
                    func.return_span = span(*at);
                    self.map.insert(Loc::Return(f), span(*at));
                    for (i, word) in values.iter().enumerate() {
                        self.map.insert(Loc::Returned(f, i), word.span());
                        let id = self.resolve(&scope, word);
                        func.returns.push(id);
                    }
                }
                ast::Stmt::Broken => {}
            }
        }
        if !returned && !broken {
            let d = Diagnostic::error("the function ends without `return`", span(end));
            let help = "end every function with `return` and its results, or `return` alone";
            self.report(d.help(help));
        }
        func
    }

    fn key(&mut self, word: &Word) -> (bool, Arc<str>) {
        (is_number(word.text), self.name(word))
    }

    fn define(
        &mut self,
        func: &mut Func,
        scope: &mut Scope,
        word: &Word,
        ty: TensorType,
    ) -> ValueId {
        let key = self.key(word);
        let id = func.add_value(ty, (!key.0).then(|| key.1.clone()));
        func.values[id.index()].span = word.span();
        match scope.values.entry(key) {
            Entry::Occupied(first) => {
                let first = func.values[first.get().index()].span.clone();
                let message = format!("`%{}` is defined twice", short(word.text));
                let d = Diagnostic::error(message, word.span());
                self.report(d.note("first defined here", Loc::Module, first));
            }
            Entry::Vacant(slot) => {
                slot.insert(id);
            }
        }
        id
    }

    fn results(
        &mut self,
        f: usize,
        i: usize,
        inst: &ast::Inst,
        func: &mut Func,
        scope: &mut Scope,
    ) -> Vec<ValueId> {
        let (names, types) = (inst.results.len(), inst.types.len());
        if names > 0 && types == 0 {
            let end = inst.at.1;
            let d = Diagnostic::error("the result type is missing", span((end, end)));
            self.report(d.help("write the type after a colon, as in `: tensor<2x2xf32>`"));
        } else if names != types {
            let at = match (inst.types.first(), inst.types.last()) {
                (Some(first), Some(last)) => (first.at.0, last.at.1),
                _ => inst.at,
            };
            let message = format!(
                "{} named, but {} written",
                counted(names, "result"),
                counted(types, "type")
            );
            self.report(Diagnostic::error(message, span(at)));
        }
        let mut ids = Vec::with_capacity(names);
        for (k, word) in inst.results.iter().enumerate() {
            let ty = match inst.types.get(k) {
                Some(ty) => self.ty(ty, Loc::Type(f, i, k)),
                None => TensorType::scalar(DType::F32),
            };
            self.map.insert(Loc::Result(f, i, k), word.span());
            ids.push(self.define(func, scope, word, ty));
        }
        ids
    }

    fn resolve(&mut self, scope: &Scope, word: &Word) -> ValueId {
        let key = self.key(word);
        if let Some(id) = scope.values.get(&key) {
            return *id;
        }
        if !scope.broken && self.diagnostics.len() < MAX_DIAGNOSTICS {
            let message = format!("`%{}` is not defined", short(word.text));
            let mut names: Vec<&str> = scope.values.keys().map(|(_, n)| &**n).collect();
            names.sort_unstable();
            let d = Diagnostic::error(message, word.span());
            let meant = if key.0 { None } else { did_you_mean(&key.1, names) };
            self.report(match meant {
                Some(meant) => d.help(format!("did you mean `%{meant}`?")),
                None => d,
            });
        }
        ValueId(u32::MAX)
    }

    fn inst(
        &mut self,
        f: usize,
        i: usize,
        inst: &ast::Inst,
        results: Vec<ValueId>,
        scope: &Scope,
    ) -> Inst {
        let op = Op::from_name(inst.op.text).unwrap_or_else(|| {
            let message = format!("unknown operation `{}`", short(inst.op.text));
            let d = Diagnostic::error(message, inst.op.span());
            self.report(match did_you_mean(inst.op.text, Op::all().map(Op::name)) {
                Some(meant) => d.help(format!("did you mean `{meant}`?")),
                None => d,
            });
            Op::Call
        });
        self.map.insert(Loc::Inst(f, i), span(inst.at));
        self.map.insert(Loc::Op(f, i), inst.op.span());
        let symbol = inst.symbol.map(|word| {
            self.map.insert(Loc::Callee(f, i), word.span());
            self.name(&word)
        });
        let mut operands = Vec::with_capacity(inst.operands.len());
        for (k, operand) in inst.operands.iter().enumerate() {
            self.map.insert(Loc::Operand(f, i, k), operand.value.span());
            let value = self.resolve(scope, &operand.value);
            operands.push(Operand { value, donated: operand.donated });
        }
        let mut attrs = IndexMap::with_capacity(inst.attrs.len());
        for (k, (key, value)) in inst.attrs.iter().enumerate() {
            self.map.insert(Loc::Attr(f, i, k), key.span());
            let value = self.attr(value);
            if attrs.insert(self.name(key), value).is_some() {
                let message = format!("attribute `{}` is given twice", short(key.text));
                self.report(Diagnostic::error(message, key.span()));
            }
        }
        Inst { op, operands, attrs: Attrs(attrs), symbol, results, span: span(inst.at) }
    }

    fn attr(&mut self, value: &ast::Value) -> Attr {
        match value {
            ast::Value::Int(word) => Attr::Int(self.number(word).unwrap_or(0)),
            ast::Value::Float(word) => Attr::Float(match scalar::parse_float(word.text) {
                Some(v) => v,
                None => {
                    let message = format!("`{}` is out of range", short(word.text));
                    self.report(Diagnostic::error(message, word.span()));
                    0.0
                }
            }),
            ast::Value::Str(word) => Attr::Str(self.string(word).into()),
            ast::Value::Bool(v) => Attr::Bool(*v),
            ast::Value::Ints(words) => {
                Attr::Ints(words.iter().filter_map(|w| self.number(w)).collect())
            }
        }
    }
}
