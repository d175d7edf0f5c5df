//! One loop over elements: elementwise ops, reductions, and bodies that fusion made of them.
//!
//! Without a reduction an invocation computes the elements of one word of every result. With one,
//! a workgroup or an invocation computes a group of elements that are reduced together, pass after
//! pass: values of the whole space are computed anew in each pass that reads them.

use aether_ir::fusion::{Fusion, Place, Role};
use aether_ir::{Dim, Func, Op, Shape, TensorType, ValueId};

use super::build::{Build, WORKGROUP, Words};
use super::ops::{self, Reduction};
use super::{Lower, Site, View, text};
use crate::error::CompileError;

/// Longest group of elements that one invocation reduces where a workgroup could.
const ALONE: u64 = 64;

/// Lowers a single op as a body of its own.
pub fn single(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let mut func = Func::new("single");
    for view in &site.inputs {
        let value = func.add_value(view.ty.clone(), None);
        func.params.push(value);
    }
    let mut inst = site.inst.clone();
    inst.operands = func.params.iter().map(|&p| p.into()).collect();
    let result = func.add_value(site.outputs[0].ty.clone(), None);
    inst.results = vec![result];
    func.body.push(inst);
    func.returns.push(result);
    lower_body(lower, site, &func)
}

/// Lowers a `fused`.
pub fn lower(lower: &mut Lower, site: &Site, body: &Func) -> Result<(), CompileError> {
    lower_body(lower, site, body)
}

fn lower_body(lower: &mut Lower, site: &Site, func: &Func) -> Result<(), CompileError> {
    let fusion = match Fusion::of(func) {
        Ok(fusion) => fusion,
        Err(e) => return site.unsupported(e.message),
    };
    let types = func.values.iter().map(|v| &v.ty);
    if let Some(ty) = types.clone().find(|ty| text::value_type(ty.dtype).is_none()) {
        return site.unsupported(format!("WGSL has no elements of {ty}"));
    }
    let body = Body { lower, site, func, fusion: &fusion, build: Build::new("map") };
    match &fusion.reduced {
        None => body.map(),
        Some(_) => body.reduce(),
    }
}

struct Body<'a, 'b, 'm> {
    lower: &'a mut Lower<'m>,
    site: &'a Site<'b>,
    func: &'a Func,
    fusion: &'a Fusion,
    build: Build,
}

impl Body<'_, '_, '_> {
    fn map(mut self) -> Result<(), CompileError> {
        let space = self.fusion.space.clone();
        let numel = space.numel();
        let results: Vec<View> = self.site.outputs.clone();
        let per = results.iter().map(|r| text::per_word(r.ty.dtype)).max().unwrap_or(1);
        if per == 1 && self.whole_vectors(&numel) {
            return self.map_vectors(&numel);
        }
        let count = self.lower.dim(&numel);
        self.build.line(format!("let count = {count};"));
        self.build.line(format!("let first = unit * {per}u;"));
        self.build.line("if first >= count { return; }");
        for (i, r) in results.iter().enumerate() {
            let words = per / text::per_word(r.ty.dtype);
            if text::per_word(r.ty.dtype) > 1 {
                self.build.line(format!("var word{i}: array<u32, {words}>;"));
            }
        }
        self.build.line(format!("for (var j = 0u; j < {per}u; j++) {{"));
        self.build.line("let e = first + j;");
        self.build.line("if e >= count { break; }");
        self.indices(&space, "e");
        self.wide(0, &|_| true)?;
        for (i, (r, &v)) in results.iter().zip(&self.func.returns).enumerate() {
            let bits = text::to_bits(&name(v), r.ty.dtype);
            let own = text::per_word(r.ty.dtype);
            if own == 1 {
                let buffer = self.build.write(r);
                self.build.line(format!("{buffer}[e] = {bits};"));
            } else {
                let width = 32 / own;
                self.build
                    .line(format!("word{i}[j / {own}u] |= ({bits}) << ((j % {own}u) * {width}u);"));
            }
        }
        self.build.line("}");
        for (i, r) in results.iter().enumerate() {
            let own = text::per_word(r.ty.dtype);
            if own == 1 {
                continue;
            }
            let buffer = self.build.write(r);
            for word in 0..per / own {
                self.build.line(format!(
                    "if first + {}u < count {{ {buffer}[first / {own}u + {word}u] = \
                     word{i}[{word}]; }}",
                    word * own
                ));
            }
        }
        let Body { lower, site, build, .. } = self;
        build.finish(lower, site, numel, WORKGROUP * per as u32)
    }

    /// Whether elements can be read and written four at a time: all results and operands are words,
    /// operands have the whole space or one element, and the space is a multiple of four.
    fn whole_vectors(&self, numel: &Dim) -> bool {
        let fours = numel.monomials().all(|(_, coefficient)| coefficient % 4 == 0);
        let word = |ty: &TensorType| text::per_word(ty.dtype) == 1;
        let whole = |ty: &TensorType| ty.shape == self.fusion.space;
        let operands = self.func.params.iter().map(|&p| self.func.ty(p));
        let iota = self.func.body.iter().any(|i| i.op == Op::Iota);
        let small = |ty: &TensorType| ty.shape.0.iter().all(|d| d.is(1));
        // One element may not lie where a whole operand does.
        fours && !iota && operands.clone().all(|ty| word(ty) && (whole(ty) || small(ty)))
    }

    fn map_vectors(mut self, numel: &Dim) -> Result<(), CompileError> {
        let count = self.lower.dim(numel);
        self.build.line(format!("if unit * 4u >= {count} {{ return; }}"));
        let space = self.fusion.space.clone();
        let mut vectors = Vec::new();
        for (i, view) in self.site.inputs.iter().enumerate() {
            let whole = view.ty.shape == space;
            let words = if whole { Words::Four } else { Words::Single };
            let buffer = self.build.bind(view, words);
            if whole {
                self.build.line(format!("let x{i} = {buffer}[unit];"));
                vectors.push(format!("x{i}"));
            } else {
                self.build.line(format!("let x{i} = {buffer}[0];"));
                vectors.push(String::new());
            }
        }
        let outputs = self.site.outputs.clone();
        for i in 0..outputs.len() {
            self.build.line(format!("var y{i}: vec4<u32>;"));
        }
        for j in 0..4 {
            self.build.line("{");
            for (i, &p) in self.func.params.iter().enumerate() {
                let bits = match vectors[i].is_empty() {
                    true => format!("x{i}"),
                    false => format!("x{i}[{j}]"),
                };
                let value = text::from_bits(&bits, self.func.ty(p).dtype);
                self.build.line(format!("let {} = {value};", name(p)));
            }
            self.insts(0, &|_| true)?;
            for (i, (r, &v)) in outputs.iter().zip(&self.func.returns).enumerate() {
                let bits = text::to_bits(&name(v), r.ty.dtype);
                self.build.line(format!("y{i}[{j}] = {bits};"));
            }
            self.build.line("}");
        }
        for (i, r) in outputs.iter().enumerate() {
            let buffer = self.build.bind(r, Words::Four);
            self.build.line(format!("{buffer}[unit] = y{i};"));
        }
        let Body { lower, site, build, .. } = self;
        build.finish(lower, site, numel.clone(), WORKGROUP * 4)
    }

    /// `i0`, `i1`, …: the place of element `e` along each axis of a shape.
    fn indices(&mut self, shape: &Shape, e: &str) {
        if shape.rank() == 0 {
            return;
        }
        self.build.line(format!("var rest = {e};"));
        for (axis, d) in shape.0.iter().enumerate().rev() {
            // Nothing has an element there, but a shader must not divide by zero.
            let d = if d.is(0) { "1u".to_owned() } else { self.lower.dim(d) };
            if axis == 0 {
                self.build.line("let i0 = rest;");
            } else {
                self.build.line(format!("let i{axis} = rest % {d}; rest = rest / {d};"));
            }
        }
    }

    /// The index of the element of an operand that belongs to element `e` of the space.
    fn operand_index(&self, ty: &TensorType) -> String {
        let space = &self.fusion.space;
        if ty.shape == *space {
            return "e".to_owned();
        }
        broadcast_index(self.lower, &ty.shape, space)
    }

    /// Operands and wide values of a pass that `wanted` asks for.
    fn wide(&mut self, pass: usize, wanted: &dyn Fn(ValueId) -> bool) -> Result<(), CompileError> {
        for (i, &p) in self.func.params.iter().enumerate() {
            if !wanted(p) {
                continue;
            }
            let ty = self.func.ty(p).clone();
            let index = self.operand_index(&ty);
            let buffer = self.build.read(&self.site.inputs[i]);
            self.build.line(format!("let at{} = {index};", p.0));
            let value = text::load(&buffer, &format!("at{}", p.0), ty.dtype);
            self.build.line(format!("let {} = {value};", name(p)));
        }
        self.insts(pass, wanted)
    }

    /// Wide instructions up to a pass.
    fn insts(&mut self, pass: usize, wanted: &dyn Fn(ValueId) -> bool) -> Result<(), CompileError> {
        for at in 0..self.func.body.len() {
            let result = self.func.body[at].results[0];
            let here = matches!(self.fusion.places[result.index()],
                Place::Wide { pass: own } if own <= pass);
            if here && wanted(result) {
                self.inst(at)?;
            }
        }
        Ok(())
    }

    /// One instruction that is no reduction.
    fn inst(&mut self, at: usize) -> Result<(), CompileError> {
        let func = self.func;
        let inst = &func.body[at];
        let result = inst.results[0];
        let ty = func.ty(result);
        let value = match inst.op {
            Op::Splat => text::number(inst.attrs.float("value", 0.0), ty.dtype),
            Op::Iota => {
                let Some(axis) = ty.shape.axis(inst.attrs.int("axis", 0)) else {
                    return self.site.unsupported("an axis that is not there");
                };
                // Axes are counted from the end: the value broadcasts to the space.
                let axis = axis + self.fusion.space.rank() - ty.rank();
                let wide = self.fusion.space.0[axis]
                    == ty.shape.0[axis + ty.rank() - self.fusion.space.rank()];
                let place = if wide { format!("i{axis}") } else { "0u".to_owned() };
                let kind = text::value_type(ty.dtype).unwrap_or("f32");
                match kind {
                    "bool" => format!("({place} != 0u)"),
                    kind => text::rounded(&format!("{kind}({place})"), ty.dtype),
                }
            }
            _ => {
                let args: Vec<String> = inst.inputs().map(name).collect();
                let from = func.ty(inst.operands[0].value).dtype;
                // The condition of a select has a type of its own.
                let from = match inst.op {
                    Op::Select => func.ty(inst.operands[1].value).dtype,
                    _ => from,
                };
                if ops::divides(inst, from) && !self.build.globals.contains("fn div_i32") {
                    self.build.can_fail();
                    self.build.globals.push_str(ops::DIVISION);
                }
                match ops::element(inst, &args, from, ty.dtype) {
                    Some(value) => value,
                    None => return self.site.unsupported(format!("{ty}")),
                }
            }
        };
        self.build.line(format!("let {} = {value};", name(result)));
        Ok(())
    }

    fn reduce(mut self) -> Result<(), CompileError> {
        self.build = Build::new("reduce");
        let axes = self.fusion.reduced.clone().unwrap_or(0..0);
        let dims = self.fusion.space.0.clone();
        let product = |dims: &[Dim]| dims.iter().fold(Dim::new(1), |acc, d| &acc * d);
        let (outer, length, inner) = (
            product(&dims[..axes.start]),
            product(&dims[axes.clone()]),
            product(&dims[axes.end..]),
        );
        let groups = &outer * &inner;
        let short = length.as_const().is_some_and(|n| n <= ALONE);
        let alone = axes.end != dims.len() || short;
        let (length_text, inner_text) = (self.lower.dim(&length), self.lower.dim(&inner));
        let count = self.lower.dim(&groups);
        let own = if alone { "unit" } else { "group" };
        self.build.line(format!("let length = {length_text};"));
        self.build.line(format!("let g = {own};"));
        self.build.line(format!("if g >= {count} {{ return; }}"));
        // Element r of group g.
        let element = match axes.end == dims.len() {
            true => "g * length + r".to_owned(),
            false => format!("((g / {inner_text}) * length + r) * {inner_text} + g % {inner_text}"),
        };
        let (first, step) = if alone { ("0u", "1u") } else { ("lane", "256u") };
        let last = self.fusion.passes;
        for pass in 0..=last {
            self.narrow_of(pass, alone)?;
            if pass < last {
                self.pass(pass, &element, (first, step), alone)?;
            }
        }
        // What a group gives is written once.
        let narrow: Vec<(View, ValueId)> =
            self.results(|place| matches!(place, Place::Narrow { .. }));
        if !narrow.is_empty() {
            self.build.line(if alone { "{" } else { "if lane == 0u {" });
            for (view, v) in narrow {
                let bits = text::to_bits(&name(v), view.ty.dtype);
                let line = self.build.store(&view, "g", &bits);
                self.build.line(line);
            }
            self.build.line("}");
        }
        let Body { lower, site, build, .. } = self;
        build.finish(lower, site, groups, if alone { WORKGROUP } else { 1 })
    }

    fn results(&self, of: impl Fn(Place) -> bool) -> Vec<(View, ValueId)> {
        let returns = self.func.returns.iter().copied();
        let all = self.site.outputs.iter().cloned().zip(returns);
        all.filter(|(_, v)| of(self.fusion.places[v.index()])).collect()
    }

    /// Values of a group that are known before a pass, and are no reductions.
    fn narrow_of(&mut self, pass: usize, _alone: bool) -> Result<(), CompileError> {
        for at in 0..self.func.body.len() {
            let inst = &self.func.body[at];
            let result = inst.results[0];
            let here = self.fusion.places[result.index()] == Place::Narrow { pass };
            if here && Role::of(inst.op) != Some(Role::Reduce) {
                self.single_operands(at)?;
                self.inst(at)?;
            }
        }
        Ok(())
    }

    /// Operands and constants of one element that a narrow value reads beside narrow ones.
    fn single_operands(&mut self, at: usize) -> Result<(), CompileError> {
        let inputs: Vec<ValueId> = self.func.body[at].inputs().collect();
        for v in inputs {
            let declared = format!("let {} = ", name(v));
            let wide = matches!(self.fusion.places[v.index()], Place::Wide { .. });
            if !wide || self.at_top_level(&declared) {
                continue;
            }
            match self.func.params.iter().position(|&p| p == v) {
                Some(i) => {
                    let buffer = self.build.read(&self.site.inputs[i]);
                    let value = text::load(&buffer, "0u", self.func.ty(v).dtype);
                    self.build.line(format!("{declared}{value};"));
                }
                None => {
                    let by = self.func.definitions()[v.index()];
                    if let Some(by) = by {
                        self.single_operands(by)?;
                        self.inst(by)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a declaration stands outside of loops, where later statements see it.
    fn at_top_level(&self, declaration: &str) -> bool {
        let mut depth = 0i32;
        self.build.body.lines().any(|line| {
            let found = depth == 0 && line.trim_start().starts_with(declaration);
            depth += line.matches('{').count() as i32 - line.matches('}').count() as i32;
            found
        })
    }

    /// One pass over the elements of a group.
    fn pass(
        &mut self,
        pass: usize,
        element: &str,
        (first, step): (&str, &str),
        alone: bool,
    ) -> Result<(), CompileError> {
        let func = self.func;
        let last = pass + 1 == self.fusion.passes;
        let reductions: Vec<usize> = (0..func.body.len())
            .filter(|&at| {
                let inst = &func.body[at];
                Role::of(inst.op) == Some(Role::Reduce)
                    && self.fusion.places[inst.results[0].index()]
                        == Place::Narrow { pass: pass + 1 }
            })
            .collect();
        let outputs = match last {
            true => self.results(|place| matches!(place, Place::Wide { .. })),
            false => Vec::new(),
        };
        let mut wanted = vec![false; func.values.len()];
        for &at in &reductions {
            wanted[func.body[at].operands[0].value.index()] = true;
        }
        outputs.iter().for_each(|(_, v)| wanted[v.index()] = true);
        for inst in func.body.iter().rev() {
            let result = inst.results[0].index();
            if wanted[result] && matches!(self.fusion.places[result], Place::Wide { .. }) {
                inst.inputs().for_each(|v| wanted[v.index()] = true);
            }
        }
        let mut sums = Vec::new();
        for &at in &reductions {
            let inst = &func.body[at];
            let dtype = func.ty(inst.operands[0].value).dtype;
            let Some(reduction) = Reduction::of(inst.op, dtype) else {
                return self.site.unsupported(format!("a reduction of {dtype}"));
            };
            let kind = text::value_type(dtype).unwrap_or("f32");
            let v = inst.results[0].0;
            self.build.line(format!("var sum{v}: {kind} = {};", reduction.start));
            sums.push((inst.results[0], inst.operands[0].value, reduction, kind));
        }
        self.build.line(format!("for (var r = {first}; r < length; r += {step}) {{"));
        self.build.line(format!("let e = {element};"));
        let space = self.fusion.space.clone();
        self.indices(&space, "e");
        self.wide(pass, &|v| wanted[v.index()])?;
        for (result, operand, reduction, _) in &sums {
            let sum = format!("sum{}", result.0);
            self.build.line(format!("{sum} = {};", reduction.join(&sum, &name(*operand))));
        }
        for (view, v) in &outputs {
            let bits = text::to_bits(&name(*v), view.ty.dtype);
            let line = self.build.store(view, "e", &bits);
            self.build.line(line);
        }
        self.build.line("}");
        for (result, _, reduction, kind) in &sums {
            let v = result.0;
            let sum = format!("sum{v}");
            let total = match alone {
                true => sum,
                false => self.build.across(&sum, kind, |a, b| reduction.join(a, b)),
            };
            self.build.line(format!(
                "let {} = {};",
                name(*result),
                reduction.end(&total, "length")
            ));
        }
        Ok(())
    }
}

fn name(v: ValueId) -> String {
    format!("v{}", v.0)
}

/// The index, within a tensor that broadcasts to `space`, of the element at `i0`, `i1`, ….
pub fn broadcast_index(lower: &Lower, shape: &Shape, space: &Shape) -> String {
    let skip = space.rank() - shape.rank();
    let mut terms = Vec::new();
    for (axis, d) in shape.0.iter().enumerate() {
        // An axis of length 1 has one place, also where the space has that axis as 1.
        if d.is(1) {
            continue;
        }
        let stride = shape.0[axis + 1..].iter().fold(Dim::new(1), |acc, d| &acc * d);
        let place = format!("i{}", axis + skip);
        terms.push(match stride.is(1) {
            true => place,
            false => format!("{place} * {}", lower.dim(&stride)),
        });
    }
    if terms.is_empty() { "0u".to_owned() } else { terms.join(" + ") }
}
