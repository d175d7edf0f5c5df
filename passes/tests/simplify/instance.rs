//! Random typed instances of a rule's left side.
//!
//! A pattern is generated from its variables up: operands, then attributes that fit them, then the
//! op by its own type rule. What does not fit is thrown away and drawn again.

use std::collections::HashMap;

use aether_ir::{Attr, Attrs, DType, Dim, FuncBuilder, Module, Op, Shape, TensorType, ValueId};
use aether_passes::egraph::Term;
use aether_passes::egraph::pattern::{AttrTerm, Head, commutes};
use aether_passes::simplify::rule::{Cond, Rule};

/// Greatest value of the symbol `s`.
pub const S_MAX: u64 = 3;

struct Generator<'r> {
    rng: &'r mut fastrand::Rng,
    rule: &'static Rule,
    base: DType,
    f: FuncBuilder,
    values: HashMap<&'static str, ValueId>,
    attrs: HashMap<&'static str, Attrs>,
    ops: HashMap<&'static str, Op>,
    params: usize,
    /// Values of earlier instances that variables may stand for.
    pool: Vec<ValueId>,
}

/// A module whose `@main` returns one random instance of the form, or `None` when the draw does not
/// fit.
pub fn draw(rng: &mut fastrand::Rng, rule: &'static Rule, form: &Term) -> Option<Module> {
    let mut generator = Generator::new(rng, rule);
    let result = generator.term(form, None)?;
    generator.finish(&[result])
}

/// A module whose `@main` returns several instances of several rules over common values.
pub fn draw_many(rng: &mut fastrand::Rng, rules: &[&'static Rule]) -> Option<Module> {
    let mut generator = Generator::new(rng, rules[0]);
    let mut results = Vec::new();
    for _ in 0..12 {
        generator.rule = rules[generator.rng.usize(..rules.len())];
        let forms = generator.rule.forms;
        let form = Term::parse(forms[generator.rng.usize(..forms.len())]).ok()?;
        generator.values.clear();
        generator.attrs.clear();
        generator.ops.clear();
        if let Some(result) = generator.term(&form, None) {
            generator.pool.push(result);
            results.push(result);
        }
    }
    if results.is_empty() { None } else { generator.finish(&results) }
}

impl<'r> Generator<'r> {
    fn new(rng: &'r mut fastrand::Rng, rule: &'static Rule) -> Self {
        use DType::*;
        let plain = [F32, F32, F32, F32, F64, F16, Bf16, I32, I64, I8, U8, U32, Bool, Bool];
        let base = plain[rng.usize(..plain.len())];
        Generator {
            rng,
            rule,
            base,
            f: FuncBuilder::new("main"),
            values: HashMap::new(),
            attrs: HashMap::new(),
            ops: HashMap::new(),
            params: 0,
            pool: Vec::new(),
        }
    }

    fn finish(self, results: &[ValueId]) -> Option<Module> {
        let mut module = Module::new("instance");
        module.declare_symbol("s", 1, S_MAX);
        module.add_func(self.f.finish(results));
        aether_ir::verify(&module).ok().map(|_| module)
    }

    /// A value of an earlier instance of about that type.
    fn earlier(&mut self, like: Option<&TensorType>) -> Option<ValueId> {
        let base = self.base;
        let fits = |f: &FuncBuilder, v: ValueId| match like {
            Some(ty) => f.ty(v) == ty,
            None => f.ty(v).dtype == base,
        };
        let fitting: Vec<ValueId> =
            self.pool.iter().copied().filter(|&v| fits(&self.f, v)).collect();
        (!fitting.is_empty() && self.rng.bool()).then(|| fitting[self.rng.usize(..fitting.len())])
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.rng.u8(..100) < percent
    }

    fn dim(&mut self) -> Dim {
        if self.chance(8) { Dim::symbol("s") } else { Dim::new(self.rng.u64(1..=3)) }
    }

    fn shape(&mut self) -> Shape {
        let rank = [0, 1, 2, 2, 2, 3, 3, 3][self.rng.usize(..8)];
        Shape((0..rank).map(|_| self.dim()).collect())
    }

    fn any_type(&mut self) -> TensorType {
        let shape = self.shape();
        TensorType::with_shape(self.base, shape)
    }

    /// A type that most often is the one given, else one that broadcasts with it.
    fn near(&mut self, like: &TensorType) -> TensorType {
        let mut ty = TensorType::with_shape(like.dtype, like.shape.clone());
        if self.chance(25) && ty.rank() > 0 {
            if self.rng.bool() {
                ty.shape.0.remove(0);
            } else {
                let axis = self.rng.usize(..ty.rank());
                ty.shape.0[axis] = Dim::new(1);
            }
        }
        ty
    }

    fn param(&mut self, ty: TensorType) -> ValueId {
        self.params += 1;
        self.f.param(&format!("p{}", self.params), ty)
    }

    fn splat(&mut self, value: f64, ty: TensorType) -> Option<ValueId> {
        let attr = match ty.dtype {
            d if d.is_float() => Attr::Float(value),
            _ if value.fract() != 0.0 => return None,
            DType::U8 | DType::U32 | DType::Bool if value < 0.0 => return None,
            DType::Bool if value > 1.0 => return None,
            _ => Attr::Int(value as i64),
        };
        self.f.op_to(Op::Splat, &[], Attrs::new().with("value", attr), ty).ok()
    }

    fn constant_shape(&mut self, like: Option<&TensorType>) -> TensorType {
        let dtype = like.map_or(self.base, |ty| ty.dtype);
        match like {
            Some(ty) if self.chance(40) => TensorType::with_shape(dtype, ty.shape.clone()),
            _ => TensorType::scalar(dtype),
        }
    }

    fn var(&mut self, name: &'static str, like: Option<&TensorType>) -> Option<ValueId> {
        if let Some(&v) = self.values.get(name) {
            return Some(v);
        }
        let conds = self.rule.when;
        let mut constant = None;
        let mut non_negative = false;
        for cond in conds {
            match cond {
                Cond::Constant(x) if *x == name => {
                    let common = [1.0, 2.0, 3.0, 4.0, 6.0, 9.0, -1.0, 0.0, 1e-5];
                    let shares = [0.5, 1.0 / 3.0, 0.25, 1.0 / 6.0, 1.0 / 9.0, 0.7, -2.5];
                    let all = [common.as_slice(), shares.as_slice()].concat();
                    constant = Some(all[self.rng.usize(..all.len())]);
                }
                Cond::Near(x, value) if *x == name => constant = Some(*value),
                Cond::PowerOfTwo(x) if *x == name => {
                    let sign = if self.rng.bool() { 1.0 } else { -1.0 };
                    constant = Some(sign * 2f64.powi(self.rng.i32(-10..=10)));
                }
                Cond::NonNegative(x) if *x == name => non_negative = true,
                _ => {}
            }
        }
        // What a norm adds to the mean square.
        if name == "?e" {
            constant = Some([1e-5, 1e-6, 0.0, 0.25][self.rng.usize(..4)]);
        }
        let v = match constant {
            Some(value) => {
                let ty = self.constant_shape(like);
                self.splat(value, ty)?
            }
            None => {
                let ty = match like {
                    Some(like) => self.near(&like.clone()),
                    None => self.any_type(),
                };
                let mut v = match self.earlier(like) {
                    Some(v) => v,
                    None => self.param(ty),
                };
                if non_negative {
                    let op = [Op::Abs, Op::Exp, Op::Relu][self.rng.usize(..3)];
                    v = self.f.op(op, &[v], Attrs::new()).ok()?;
                }
                v
            }
        };
        self.values.insert(name, v);
        Some(v)
    }

    fn term(&mut self, term: &Term, like: Option<&TensorType>) -> Option<ValueId> {
        match term {
            Term::Var(name) => self.var(name, like),
            Term::Rest(_) => None,
            Term::Number(n) => {
                let ty = self.constant_shape(like);
                self.splat(*n, ty)
            }
            Term::Op { head, attrs, children, .. } => {
                let op = match head {
                    Head::Is(op) => *op,
                    Head::Any(name, family) => {
                        let drawn = family.ops()[self.rng.usize(..family.ops().len())];
                        *self.ops.entry(name).or_insert(drawn)
                    }
                };
                if let [Term::Rest(_)] = children.as_slice() {
                    return self.joined(op, attrs);
                }
                let operands = self.operands(op, attrs, children)?;
                self.node(op, attrs, operands)
            }
        }
    }

    /// Structured operands first, so that plain ones can follow their types.
    fn operands(&mut self, op: Op, attrs: &AttrTerm, children: &[Term]) -> Option<Vec<ValueId>> {
        let mut values: Vec<Option<ValueId>> = vec![None; children.len()];
        let structured = |t: &Term| matches!(t, Term::Op { .. });
        let number = |t: &Term| matches!(t, Term::Number(_));
        let mut order: Vec<usize> = (0..children.len()).collect();
        order.sort_by_key(|&i| (!structured(&children[i]), number(&children[i])));
        let mut beside: Option<TensorType> = None;
        for i in order {
            let like = self.like(op, attrs, i, &values, beside.as_ref());
            let v = self.term(&children[i], like.as_ref())?;
            beside.get_or_insert(self.f.ty(v).clone());
            values[i] = Some(v);
        }
        values.into_iter().collect()
    }

    /// The type that an operand should have, given those that are there.
    fn like(
        &mut self,
        op: Op,
        attrs: &AttrTerm,
        i: usize,
        values: &[Option<ValueId>],
        beside: Option<&TensorType>,
    ) -> Option<TensorType> {
        let first = values[0].map(|v| self.f.ty(v).clone());
        match (op, i, first) {
            (Op::Select, 0, _) => {
                let shape = beside.map_or_else(|| self.shape(), |ty| ty.shape.clone());
                Some(TensorType::with_shape(DType::Bool, shape))
            }
            (Op::Select, _, _) => {
                let shape = beside.map_or_else(|| self.shape(), |ty| ty.shape.clone());
                Some(TensorType::with_shape(self.base, shape))
            }
            (Op::RmsNorm | Op::LayerNorm, 1.., Some(x)) => {
                let row = Shape(x.shape.0.last().cloned().into_iter().collect());
                Some(TensorType::with_shape(x.dtype, row))
            }
            (Op::Matmul, 1, Some(x)) if x.rank() >= 2 => {
                let transposed = match attrs {
                    AttrTerm::Exactly(attrs) => attrs.bool("transpose_b", false),
                    AttrTerm::Bind(name) => self
                        .attrs
                        .get(name)
                        .map_or_else(|| self.rng.bool(), |a| a.bool("transpose_b", false)),
                };
                let (k, n) = (x.shape.0[x.rank() - 1].clone(), Dim::new(self.rng.u64(1..=3)));
                let mut dims =
                    if self.rng.bool() { x.shape.0[..x.rank() - 2].to_vec() } else { Vec::new() };
                dims.extend(if transposed { [n, k] } else { [k, n] });
                Some(TensorType::with_shape(x.dtype, Shape(dims)))
            }
            // A kernel for the image's channels, no longer than the image.
            (Op::Conv, 1, Some(x)) if x.rank() == 3 => {
                let most = x.shape.0[2].as_const().unwrap_or(1);
                let shape =
                    vec![self.dim(), x.shape.0[1].clone(), Dim::new(self.rng.u64(1..=most))];
                Some(TensorType::with_shape(x.dtype, Shape(shape)))
            }
            // As many heads as the queries have, and room for what came before them.
            (Op::Attention, 1 | 2, Some(x)) if x.rank() == 3 => {
                let keys = Dim::new(x.shape.0[0].as_const().unwrap_or(S_MAX) + 3);
                let shape = vec![keys, x.shape.0[1].clone(), x.shape.0[2].clone()];
                Some(TensorType::with_shape(x.dtype, Shape(shape)))
            }
            (Op::Attention, _, Some(_)) => Some(TensorType::scalar(DType::I32)),
            (Op::ScatterAdd, 1, Some(_)) => {
                Some(TensorType::new(DType::I32, [self.rng.u64(1..=2)]))
            }
            (Op::ScatterAdd, 2, Some(x)) if x.rank() > 0 => {
                let mut shape = x.shape.clone();
                shape.0[0] = self.f.ty(values[1]?).shape.0.first()?.clone();
                Some(TensorType::with_shape(x.dtype, shape))
            }
            _ => beside.cloned(),
        }
    }

    fn node(&mut self, op: Op, attrs: &AttrTerm, mut operands: Vec<ValueId>) -> Option<ValueId> {
        let x = operands.first().map(|&v| self.f.ty(v).clone());
        let attrs = match attrs {
            AttrTerm::Exactly(attrs) => attrs.clone(),
            AttrTerm::Bind(name) => match self.attrs.get(name) {
                Some(attrs) => attrs.clone(),
                None => {
                    let attrs = self.random_attrs(op, x.as_ref()?)?;
                    self.attrs.insert(name, attrs.clone());
                    attrs
                }
            },
        };
        if commutes(op) && operands.len() == 2 && self.rng.bool() {
            operands.swap(0, 1);
        }
        match op {
            Op::Reshape | Op::Broadcast | Op::Cast => {
                let ty = self.target(op, &x?)?;
                self.f.op_to(op, &operands, attrs, ty).ok()
            }
            _ => self.f.op(op, &operands, attrs).ok(),
        }
    }

    fn target(&mut self, op: Op, x: &TensorType) -> Option<TensorType> {
        let mut ty = TensorType::with_shape(x.dtype, x.shape.clone());
        match op {
            Op::Cast => {
                use DType::*;
                let plain = [F32, F64, F16, Bf16, I8, I16, I32, I64, U8, U32, Bool];
                if self.chance(85) {
                    ty.dtype = plain[self.rng.usize(..plain.len())];
                }
            }
            Op::Broadcast => {
                for dim in &mut ty.shape.0 {
                    if dim.is(1) && self.rng.bool() {
                        *dim = Dim::new(self.rng.u64(1..=3));
                    }
                }
                if ty.rank() < 3 && self.rng.bool() {
                    let dim = self.dim();
                    ty.shape.0.insert(0, dim);
                }
            }
            _ if self.rng.bool() => {
                // With an axis of length 1 more, or without.
                let ones: Vec<usize> = (0..ty.rank()).filter(|&i| ty.shape.0[i].is(1)).collect();
                if !ones.is_empty() && self.rng.bool() {
                    ty.shape.0.remove(ones[self.rng.usize(..ones.len())]);
                } else {
                    let at = self.rng.usize(..=ty.rank());
                    ty.shape.0.insert(at, Dim::new(1));
                }
            }
            _ => {
                let elements = ty.shape.as_const()?.iter().product::<u64>();
                let mut rest = Some(elements).filter(|&n| n > 0)?;
                let mut dims = Vec::new();
                for _ in 0..self.rng.usize(0..=2) {
                    let factors: Vec<u64> = (1..=rest).filter(|f| rest % f == 0).collect();
                    let factor = factors[self.rng.usize(..factors.len())];
                    dims.push(Dim::new(factor));
                    rest /= factor;
                }
                dims.push(Dim::new(rest));
                ty.shape = Shape(dims);
            }
        }
        Some(ty)
    }

    fn random_attrs(&mut self, op: Op, x: &TensorType) -> Option<Attrs> {
        let rank = x.rank();
        let none = Attrs::new();
        Some(match op {
            Op::Transpose => {
                let mut perm: Vec<i64> = (0..rank as i64).collect();
                if rank >= 2 && self.rng.bool() {
                    perm.swap(rank - 1, rank - 2);
                } else {
                    self.rng.shuffle(&mut perm);
                }
                none.with("perm", perm)
            }
            Op::Slice => return self.slice_of(x),
            Op::ReduceSum | Op::ReduceMean | Op::ReduceProd | Op::ReduceMax | Op::ReduceMin => {
                if rank > 0 && self.rng.bool() {
                    let axis = self.rng.usize(..rank) as i64;
                    return Some(none.with("axes", vec![axis]).with("keepdims", true));
                }
                let mut axes: Vec<i64> = Vec::new();
                for axis in 0..rank as i64 {
                    if self.rng.bool() {
                        axes.push(if self.chance(20) { axis - rank as i64 } else { axis });
                    }
                }
                match self.rng.bool() {
                    true => none.with("axes", axes),
                    false => none.with("axes", axes).with("keepdims", true),
                }
            }
            Op::Flip => {
                none.with("axes", (0..rank as i64).filter(|_| self.rng.bool()).collect::<Vec<_>>())
            }
            Op::Pad => {
                let mut amounts = || (0..rank).map(|_| self.rng.i64(0..=1)).collect::<Vec<_>>();
                none.with("low", amounts()).with("high", amounts())
            }
            Op::Softmax | Op::LogSoftmax | Op::Concat => {
                let axis = self.rng.usize(..rank.max(1)) as i64;
                none.with("axis", if self.chance(20) { axis - rank as i64 } else { axis })
            }
            Op::RmsNorm | Op::LayerNorm => none.with("eps", 1e-5),
            Op::Attention => none.with("scale", 0.5),
            Op::ScatterAdd => none.with("axis", 0i64),
            Op::Matmul => match self.rng.bool() {
                true => none.with("transpose_b", true),
                false => none,
            },
            _ => none,
        })
    }

    fn slice_of(&mut self, x: &TensorType) -> Option<Attrs> {
        let (mut starts, mut limits, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        for dim in &x.shape.0 {
            let (start, limit, step) = match dim.as_const() {
                None => (0, -1, 1),
                Some(n) if self.chance(40) => (0, n as i64, 1),
                Some(n) => {
                    let start = self.rng.u64(0..=n);
                    let limit = self.rng.u64(start..=n);
                    (start as i64, limit as i64, self.rng.i64(1..=3))
                }
            };
            starts.push(start);
            limits.push(limit);
            steps.push(step);
        }
        let attrs = Attrs::new().with("starts", starts).with("limits", limits);
        Some(if steps.iter().all(|&s| s == 1) { attrs } else { attrs.with("steps", steps) })
    }

    /// A concatenation of parameters, of other concatenations, or of slices that adjoin.
    fn joined(&mut self, op: Op, attrs: &AttrTerm) -> Option<ValueId> {
        let x = self.any_type();
        if x.rank() == 0 || op != Op::Concat {
            return None;
        }
        let axis = self.rng.usize(..x.rank());
        let along = Attrs::new().with("axis", axis as i64);
        if let AttrTerm::Bind(name) = attrs {
            self.attrs.insert(name, along.clone());
        }
        let part = |g: &mut Self| {
            let mut ty = x.clone();
            ty.shape.0[axis] = Dim::new(g.rng.u64(1..=3));
            g.param(ty)
        };
        let mut operands = Vec::new();
        match self.rng.u8(..3) {
            0 => {
                for _ in 0..self.rng.usize(1..=3) {
                    operands.push(part(self));
                }
            }
            1 => {
                let (a, b, c) = (part(self), part(self), part(self));
                let inner = self.f.op(Op::Concat, &[a, b], along.clone()).ok()?;
                operands = if self.rng.bool() { vec![inner, c] } else { vec![c, inner] };
            }
            _ => {
                let mut ty = x.clone();
                ty.shape.0[axis] = Dim::new(4);
                let whole = self.param(ty.clone());
                let mut at = self.rng.i64(0..2);
                for _ in 0..2 {
                    let Attrs(bounds) = Attrs::new();
                    let mut starts = vec![0; x.rank()];
                    let mut limits: Vec<i64> =
                        ty.shape.0.iter().map(|d| d.as_const().map_or(-1, |n| n as i64)).collect();
                    starts[axis] = at;
                    at += self.rng.i64(1..=2);
                    limits[axis] = at.min(4);
                    let cut = Attrs(bounds).with("starts", starts).with("limits", limits);
                    operands.push(self.f.op(Op::Slice, &[whole], cut).ok()?);
                }
            }
        }
        self.f.op(Op::Concat, &operands, along).ok()
    }
}
