//! The rules of a function's body: values, instructions, donation, types.

use super::{Verifier, callee, diagnostic, types_of, value_name};
use crate::diag::{Loc, counted, did_you_mean};
use crate::module::{Func, Inst, ValueId};
use crate::op::{InferCtx, Op};
use crate::types::{Layout, TensorType};

/// Checks one function.
pub fn check(v: &mut Verifier, f: usize, func: &Func) {
    let mut state = Body {
        f,
        func,
        defined: vec![None; func.values.len()],
        donated: vec![None; func.values.len()],
        seen: vec![None; func.values.len()],
        sound: vec![false; func.values.len()],
    };
    for (i, &id) in func.params.iter().enumerate() {
        state.define(v, id, Loc::Param(f, i), None);
    }
    for (i, ty) in func.result_types.iter().enumerate() {
        v.ty(ty, Loc::ResultType(f, i), &func.span);
    }
    for (i, inst) in func.body.iter().enumerate() {
        if v.full() {
            return;
        }
        state.inst(v, i, inst);
    }
    state.returns(v);
    for (value, defined) in func.values.iter().zip(&state.defined) {
        if defined.is_none() {
            v.ty(&value.ty, Loc::Func(f), &func.span);
        }
    }
}

/// Where a value came to be: its place, and the instruction unless it is a parameter.
type Definition = (Loc, Option<usize>);

struct Body<'a> {
    f: usize,
    func: &'a Func,
    defined: Vec<Option<Definition>>,
    donated: Vec<Option<Loc>>,
    /// The instruction and operand that last read each value.
    seen: Vec<Option<(usize, usize)>>,
    /// Whether the value's type keeps the rules, so that type rules may look at it.
    sound: Vec<bool>,
}

impl Body<'_> {
    fn define(&mut self, v: &mut Verifier, id: ValueId, loc: Loc, inst: Option<usize>) {
        let span = match inst {
            Some(i) => &self.func.body[i].span,
            None => &self.func.span,
        };
        let Some(value) = self.func.values.get(id.index()) else {
            let message = format!("value {} does not exist in `@{}`", id.0, self.func.name);
            v.report("V13", message, loc, span);
            return;
        };
        if let Some((first, _)) = self.defined[id.index()] {
            let message = format!("{} is defined twice", value_name(self.func, id));
            let d = diagnostic("V14", message, loc, span);
            v.push(d.note("first defined here", first, value.span.clone()));
            return;
        }
        self.defined[id.index()] = Some((loc, inst));
        let type_loc = match loc {
            Loc::Result(f, i, k) => Loc::Type(f, i, k),
            loc => loc,
        };
        self.sound[id.index()] = v.ty(&value.ty, type_loc, span);
    }

    /// Checks that a value may be read here; `true` when it exists.
    fn read(&self, v: &mut Verifier, id: ValueId, loc: Loc, span: &crate::Span) -> bool {
        let Some(value) = self.func.values.get(id.index()) else {
            let message = format!("value {} does not exist in `@{}`", id.0, self.func.name);
            v.report("V13", message, loc, span);
            return false;
        };
        if self.defined[id.index()].is_none() {
            let message = format!("{} is used before it is defined", value_name(self.func, id));
            let later = self.func.body.iter().enumerate().find_map(|(i, inst)| {
                let k = inst.results.iter().position(|&r| r == id)?;
                Some(Loc::Result(self.f, i, k))
            });
            let d = diagnostic("V15", message, loc, span);
            v.push(match later {
                Some(at) => d.note("defined here", at, value.span.clone()),
                None => d.help("nothing defines it"),
            });
            return false;
        }
        if let Some(at) = self.donated[id.index()] {
            let message = format!("{} is used after it was donated", value_name(self.func, id));
            let d = diagnostic("V25", message, loc, span);
            let given = match at {
                Loc::Operand(_, i, _) => self.func.body.get(i).map(|i| i.span.clone()),
                _ => None,
            };
            v.push(d.note("donated here", at, given.unwrap_or(0..0)));
        }
        true
    }

    fn inst(&mut self, v: &mut Verifier, i: usize, inst: &Inst) {
        let f = self.f;
        let mut whole = true;
        for (k, operand) in inst.operands.iter().enumerate() {
            let ok = self.read(v, operand.value, Loc::Operand(f, i, k), &inst.span);
            whole &= ok && self.sound[operand.value.index()];
        }
        self.donate(v, i, inst);
        whole &= self.arity(v, i, inst);
        whole &= self.attrs(v, i, inst);
        self.packed(v, i, inst);
        for (k, &id) in inst.results.iter().enumerate() {
            self.define(v, id, Loc::Result(f, i, k), Some(i));
            whole &= self.sound.get(id.index()).is_some_and(|s| *s);
        }
        let symbol = self.symbol(v, i, inst);
        if !whole {
            return;
        }
        match (inst.op, symbol) {
            (op, Some(name)) if op.is_call() => self.call(v, i, inst, &name),
            (Op::Constant, Some(name)) => self.constant(v, i, inst, &name),
            (Op::Call | Op::Fused | Op::Constant, None) => {}
            _ => self.types(v, i, inst),
        }
    }

    fn donate(&mut self, v: &mut Verifier, i: usize, inst: &Inst) {
        for (k, operand) in inst.operands.iter().enumerate() {
            let (id, loc) = (operand.value, Loc::Operand(self.f, i, k));
            let name = value_name(self.func, id);
            let Some(seen) = self.seen.get_mut(id.index()) else { continue };
            // The last operand of this instruction that read the value.
            let earlier = seen.replace((i, k)).filter(|s| s.0 == i).map(|s| s.1);
            if let Some(j) = earlier
                && (operand.donated || inst.operands[j].donated)
            {
                let (used, given) = if inst.operands[j].donated { (k, j) } else { (j, k) };
                let message = format!("{name} is donated and used in the same instruction");
                let d = diagnostic("V25", message, Loc::Operand(self.f, i, used), &inst.span);
                v.push(d.note("donated here", Loc::Operand(self.f, i, given), inst.span.clone()));
            }
            if !operand.donated {
                continue;
            }
            let Some(definition) = self.defined.get(id.index()).copied().flatten() else {
                continue;
            };
            let source = definition.1.and_then(|d| self.func.body.get(d));
            if source.is_some_and(|d| d.op == Op::Constant) {
                let d = diagnostic("V26", "a constant cannot be donated", loc, &inst.span);
                let source = source.map_or(0..0, |d| d.span.clone());
                v.push(d.note(format!("{name} is a constant"), definition.0, source));
            }
            self.donated[id.index()].get_or_insert(loc);
        }
    }

    fn arity(&self, v: &mut Verifier, i: usize, inst: &Inst) -> bool {
        let arity = inst.op.info().arity;
        let n = inst.operands.len();
        if (arity.min..=arity.max).contains(&n) {
            return true;
        }
        let wanted = if arity.min == arity.max {
            counted(arity.min, "operand")
        } else {
            format!("{} to {}", arity.min, counted(arity.max, "operand"))
        };
        let message = format!("`{}` takes {wanted}, not {n}", inst.op);
        let d = diagnostic("V16", message, Loc::Op(self.f, i), &inst.span);
        v.push(d.help(format!("`{}`: {}", inst.op, inst.op.info().doc)));
        false
    }

    fn attrs(&self, v: &mut Verifier, i: usize, inst: &Inst) -> bool {
        let (specs, op) = (inst.op.info().attrs, inst.op);
        let mut good = true;
        for (k, (name, attr)) in inst.attrs.0.iter().enumerate() {
            let loc = Loc::Attr(self.f, i, k);
            let Some(spec) = specs.iter().find(|s| s.name == &**name) else {
                good = false;
                let d =
                    diagnostic("V17", format!("`{op}` has no attribute `{name}`"), loc, &inst.span);
                let known: Vec<&str> = specs.iter().map(|s| s.name).collect();
                v.push(match did_you_mean(name, known.iter().copied()) {
                    Some(meant) => d.help(format!("did you mean `{meant}`?")),
                    None if known.is_empty() => d.help(format!("`{op}` has no attributes")),
                    None => d.help(format!("its attributes are `{}`", known.join("`, `"))),
                });
                continue;
            };
            if !spec.kind.accepts(attr) {
                good = false;
                let message = format!("attribute `{name}` of `{op}` is {}", spec.kind.name());
                let d = diagnostic("V18", message, loc, &inst.span);
                v.push(d.help(format!("`{name}`: {}", spec.doc)));
            }
        }
        for spec in specs.iter().filter(|s| s.required && inst.attrs.get(s.name).is_none()) {
            good = false;
            let message = format!("`{op}` needs the attribute `{}`", spec.name);
            let d = diagnostic("V19", message, Loc::Op(self.f, i), &inst.span);
            v.push(d.help(format!("`{}` is {}: {}", spec.name, spec.kind.name(), spec.doc)));
        }
        good
    }

    /// The instruction's symbol, when it has to have one and it names something.
    fn symbol(&self, v: &mut Verifier, i: usize, inst: &Inst) -> Option<std::sync::Arc<str>> {
        let what = match inst.op {
            op if op.is_call() => "function",
            Op::Constant => "constant",
            op => {
                if let Some(name) = &inst.symbol {
                    let message = format!("`{op}` takes no symbol, found `@{name}`");
                    v.report("V20", message, Loc::Callee(self.f, i), &inst.span);
                }
                return None;
            }
        };
        let Some(name) = &inst.symbol else {
            let message = format!("`{}` needs the name of a {what}", inst.op);
            let d = diagnostic("V20", message, Loc::Op(self.f, i), &inst.span);
            v.push(d.help(format!("write it first: `{} @name`", inst.op)));
            return None;
        };
        let known = match inst.op {
            op if op.is_call() => v.module.funcs.contains_key(name),
            _ => v.module.consts.contains_key(name),
        };
        if known {
            return Some(name.clone());
        }
        let message = format!("the module has no {what} `@{name}`");
        let names: Vec<&str> = match inst.op {
            op if op.is_call() => v.module.funcs.keys().map(|k| &**k).collect(),
            _ => v.module.consts.keys().map(|k| &**k).collect(),
        };
        let d = diagnostic("V21", message, Loc::Callee(self.f, i), &inst.span);
        v.push(match did_you_mean(name, names) {
            Some(meant) => d.help(format!("did you mean `@{meant}`?")),
            None => d,
        });
        None
    }

    fn constant(&self, v: &mut Verifier, i: usize, inst: &Inst, name: &str) {
        let Some((c, _, constant)) = v.module.consts.get_full(name) else { return };
        let [result] = inst.results[..] else {
            let message = format!("`constant` has one result, not {}", inst.results.len());
            v.report("V28", message, Loc::Op(self.f, i), &inst.span);
            return;
        };
        let written = self.func.ty(result);
        if *written != constant.ty {
            let message = format!("constant `@{name}` is {}, not {written}", constant.ty);
            let d = diagnostic("V22", message, Loc::Type(self.f, i, 0), &inst.span);
            v.push(d.note("declared here", Loc::ConstType(c), constant.span.clone()));
        }
    }

    fn call(&self, v: &mut Verifier, i: usize, inst: &Inst, name: &std::sync::Arc<str>) {
        let Some((c, target)) = callee(v.module, name) else { return };
        if target.params.len() != inst.operands.len() {
            let message = format!(
                "`@{name}` takes {}, not {}",
                counted(target.params.len(), "argument"),
                inst.operands.len()
            );
            let d = diagnostic("V23", message, Loc::Callee(self.f, i), &inst.span);
            v.push(d.note("declared here", Loc::Func(c), target.span.clone()));
            return;
        }
        for (k, (operand, &param)) in inst.operands.iter().zip(&target.params).enumerate() {
            let Some(want) = target.values.get(param.index()).map(|v| &v.ty) else { continue };
            let have = self.func.ty(operand.value);
            if have != want {
                let message = format!("argument {} of `@{name}` is {want}, not {have}", k + 1);
                let d = diagnostic("V23", message, Loc::Operand(self.f, i, k), &inst.span);
                v.push(d.note("the parameter", Loc::Param(c, k), target.span.clone()));
            }
        }
        if target.result_types.len() != inst.results.len() {
            let message = format!(
                "`@{name}` returns {}, not {}",
                counted(target.result_types.len(), "value"),
                inst.results.len()
            );
            let d = diagnostic("V24", message, Loc::Callee(self.f, i), &inst.span);
            v.push(d.note("declared here", Loc::Func(c), target.span.clone()));
        }
        for (k, (&id, want)) in inst.results.iter().zip(&target.result_types).enumerate() {
            let have = self.func.ty(id);
            if have != want {
                let message = format!("result {} of `@{name}` is {want}, not {have}", k + 1);
                let d = diagnostic("V24", message, Loc::Type(self.f, i, k), &inst.span);
                v.push(d.note("declared here", Loc::ResultType(c, k), target.span.clone()));
            }
        }
    }

    fn types(&self, v: &mut Verifier, i: usize, inst: &Inst) {
        let (f, func) = (self.f, self.func);
        let Some(operands) = types_of(func, inst.inputs()) else { return };
        let declared: Vec<TensorType> =
            inst.results.iter().map(|&id| func.ty(id).clone()).collect();
        let ctx = InferCtx { operands: &operands, attrs: &inst.attrs, declared: &declared };
        let inferred = match (inst.op.info().infer)(&ctx) {
            Ok(types) => types,
            Err(message) => {
                let d = diagnostic(
                    "V27",
                    format!("`{}`: {message}", inst.op),
                    Loc::Op(f, i),
                    &inst.span,
                );
                v.push(d.help(format!("`{}`: {}", inst.op, inst.op.info().doc)));
                return;
            }
        };
        if inferred.len() != declared.len() {
            let message = format!(
                "`{}` has {}, not {}",
                inst.op,
                counted(inferred.len(), "result"),
                declared.len()
            );
            v.report("V28", message, Loc::Op(f, i), &inst.span);
            return;
        }
        for (k, (want, have)) in inferred.iter().zip(&declared).enumerate() {
            if want != have {
                let message = format!("the result of `{}` is {want}, not {have}", inst.op);
                let d = diagnostic("V28", message, Loc::Type(f, i, k), &inst.span);
                v.push(d.label(format!("expected `{want}`")));
            }
        }
    }

    fn packed(&self, v: &mut Verifier, i: usize, inst: &Inst) {
        for (k, operand) in inst.operands.iter().enumerate() {
            let Some(value) = self.func.values.get(operand.value.index()) else { continue };
            let reads_packed = match inst.op {
                Op::Call => true,
                Op::Matmul | Op::MatmulAdd | Op::MatmulAct | Op::ExpertMatmul => k == 1,
                Op::MatmulGated => k == 1 || k == 2,
                Op::MatmulMulti => {
                    let n = usize::try_from(inst.attrs.int("weights", 0)).unwrap_or(0);
                    (1..=n).contains(&k)
                }
                Op::NormMatmulGated => k == 2 || k == 3,
                Op::NormMatmulMulti => {
                    let n = usize::try_from(inst.attrs.int("weights", 0)).unwrap_or(0);
                    (2..=n.saturating_add(1)).contains(&k)
                }
                Op::Gather => k == 0 && inst.attrs.int("axis", 0) == 0,
                _ => false,
            };
            if value.ty.layout != Layout::RowMajor && !reads_packed {
                let message = format!("`{}` cannot read the packed {} here", inst.op, value.ty);
                let d = diagnostic("V30", message, Loc::Operand(self.f, i, k), &inst.span);
                v.push(d.help(
                    "only weights of products and tables of `gather` along axis 0 are packed",
                ));
            }
        }
    }

    fn returns(&self, v: &mut Verifier) {
        let (f, func) = (self.f, self.func);
        let span = &func.return_span;
        if func.returns.len() != func.result_types.len() {
            let message = format!(
                "`@{}` returns {}, its signature says {}",
                func.name,
                counted(func.returns.len(), "value"),
                func.result_types.len()
            );
            v.report("V29", message, Loc::Return(f), span);
        }
        for (k, &id) in func.returns.iter().enumerate() {
            let loc = Loc::Returned(f, k);
            if !self.read(v, id, loc, span) {
                continue;
            }
            let Some(want) = func.result_types.get(k) else { continue };
            let have = func.ty(id);
            if have != want {
                let message = format!("the signature of `@{}` says {want}, not {have}", func.name);
                let d = diagnostic("V29", message, loc, span);
                v.push(d.note("declared here", Loc::ResultType(f, k), func.span.clone()));
            }
        }
    }
}
