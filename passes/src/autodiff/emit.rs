//! Writing gradient instructions as formulas.
//!
//! An [`Emitter`] appends to a function; a [`Val`] is one value of it with arithmetic, so that a
//! rule reads as in a textbook: `g * (1.0 - y * y)`. People print gradients, so nothing needless
//! is written in the first place: what the function computes already, factors of one, double
//! negations, casts and reshapes to the same type, broadcasts that the next operation does by
//! itself, sums of a constant.
//!
//! Types are those of the op table. A formula that does not fit them is a bug in its rule; the
//! first such error is kept and [`Emitter::error`] hands it out, so that formulas need no `?`.

use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::ops::{Add, Div, Mul, Neg, Sub};

use aether_ir::{
    Attrs, BuildError, DType, Dim, Func, FuncBuilder, Inst, Op, Shape, TensorType, ValueId,
};

use crate::cse::{Key, key};

/// Appends instructions to a function.
pub(crate) struct Emitter {
    state: RefCell<State>,
}

struct State {
    builder: FuncBuilder,
    /// For each value the index of the instruction that defines it.
    defs: Vec<Option<usize>>,
    /// The results of every instruction that others may be equal to.
    known: HashMap<Key, Vec<ValueId>>,
    /// Instructions before this one are not looked at.
    floor: usize,
    error: Option<BuildError>,
}

impl Emitter {
    pub(crate) fn new(func: Func) -> Self {
        let defs = func.definitions();
        let known = func.body.iter().map(|inst| (key(&func, inst), inst.results.clone()));
        let known = known.collect();
        let state =
            State { builder: FuncBuilder::resume(func), defs, known, floor: 0, error: None };
        Emitter { state: RefCell::new(state) }
    }

    /// From here on nothing that was there is looked into or taken instead of what is written:
    /// what follows is going to be differentiated itself, and its gradients must pass through the
    /// operands that it names. Returns the index of the next instruction.
    pub(crate) fn isolate(&self) -> usize {
        let mut state = self.state.borrow_mut();
        state.floor = state.builder.func().body.len();
        state.floor
    }

    /// Ends what [`Emitter::isolate`] began. Returns the index of the next instruction.
    pub(crate) fn rejoin(&self) -> usize {
        let mut state = self.state.borrow_mut();
        state.floor = 0;
        state.builder.func().body.len()
    }

    /// The first error since the last call.
    pub(crate) fn error(&self) -> Option<BuildError> {
        self.state.borrow_mut().error.take()
    }

    /// The function with what was appended.
    pub(crate) fn into_func(self) -> Func {
        let state = self.state.into_inner();
        let returns = state.builder.func().returns.clone();
        state.builder.finish(&returns)
    }

    pub(crate) fn func(&self) -> Ref<'_, Func> {
        Ref::map(self.state.borrow(), |s| s.builder.func())
    }

    pub(crate) fn val(&self, id: ValueId) -> Val<'_> {
        Val { e: self, id }
    }

    /// Adds a parameter to the function.
    pub(crate) fn param(&self, name: &str, ty: TensorType) -> Val<'_> {
        let mut state = self.state.borrow_mut();
        let id = state.builder.param(name, ty);
        state.defs.push(None);
        self.val(id)
    }

    /// Appends an op with all its results, unless an equal instruction is there; `declared` are their types where operands do not say.
    pub(crate) fn multi(
        &self,
        op: Op,
        operands: &[Val],
        attrs: Attrs,
        declared: &[TensorType],
    ) -> Vec<Val<'_>> {
        let operands: Vec<ValueId> = operands.iter().map(|v| v.id).collect();
        let mut state = self.state.borrow_mut();
        let at = state.builder.func().body.len();
        match state.builder.op_multi(op, &operands, attrs, declared) {
            Ok(results) => {
                state.defs.extend(results.iter().map(|_| Some(at)));
                // A second instruction of the kind stays unused, and unused ones are removed.
                let func = state.builder.func();
                let key = key(func, &func.body[at]);
                let free = func.body[at].operands.is_empty();
                let floor = if free { 0 } else { state.floor };
                let reusable = |r: &ValueId| state.defs[r.index()].is_some_and(|d| d >= floor);
                let there = state.known.get(&key).filter(|there| there.iter().all(reusable));
                let results = there.cloned().unwrap_or(results);
                state.known.insert(key, results.clone());
                results.into_iter().map(|id| self.val(id)).collect()
            }
            Err(e) => {
                state.error.get_or_insert(e);
                Vec::new()
            }
        }
    }

    /// Appends an op with one result. After an error the result is some value of the function.
    pub(crate) fn op(
        &self,
        op: Op,
        operands: &[Val],
        attrs: Attrs,
        declared: Option<TensorType>,
    ) -> Val<'_> {
        let results = self.multi(op, operands, attrs, declared.as_slice());
        results.first().copied().unwrap_or_else(|| self.val(ValueId(0)))
    }

    /// Appends a call.
    pub(crate) fn call(
        &self,
        callee: &str,
        operands: &[ValueId],
        types: &[TensorType],
    ) -> Vec<ValueId> {
        let operands: Vec<_> = operands.iter().map(|&v| v.into()).collect();
        let mut state = self.state.borrow_mut();
        let at = state.builder.func().body.len();
        let results = state.builder.call(callee, &operands, types);
        state.defs.extend(results.iter().map(|_| Some(at)));
        results
    }

    /// A tensor of one value.
    pub(crate) fn splat(&self, ty: TensorType, value: f64) -> Val<'_> {
        self.op(Op::Splat, &[], Attrs::new().with("value", value), Some(ty))
    }

    /// A scalar.
    pub(crate) fn scalar(&self, dtype: DType, value: f64) -> Val<'_> {
        self.splat(TensorType::scalar(dtype), value)
    }

    /// Counts along an axis.
    pub(crate) fn iota(&self, dtype: DType, shape: Shape, axis: usize) -> Val<'_> {
        let attrs = Attrs::new().with("axis", axis as i64);
        self.op(Op::Iota, &[], attrs, Some(TensorType::with_shape(dtype, shape)))
    }
}

/// A value of the function that an [`Emitter`] writes.
#[derive(Clone, Copy)]
pub(crate) struct Val<'e> {
    e: &'e Emitter,
    id: ValueId,
}

impl<'e> Val<'e> {
    pub(crate) fn id(self) -> ValueId {
        self.id
    }

    pub(crate) fn emitter(self) -> &'e Emitter {
        self.e
    }

    pub(crate) fn ty(self) -> TensorType {
        self.e.func().ty(self.id).clone()
    }

    pub(crate) fn shape(self) -> Shape {
        self.ty().shape
    }

    pub(crate) fn dtype(self) -> DType {
        self.e.func().ty(self.id).dtype
    }

    pub(crate) fn rank(self) -> usize {
        self.e.func().ty(self.id).rank()
    }

    /// The length of an axis.
    pub(crate) fn dim(self, axis: usize) -> Dim {
        self.e.func().ty(self.id).shape.0[axis].clone()
    }

    fn def(self) -> Option<Inst> {
        let state = self.e.state.borrow();
        let at = (*state.defs.get(self.id.index())?)?;
        let inst = state.builder.func().body.get(at)?;
        (at >= state.floor || inst.op == Op::Splat).then(|| inst.clone())
    }

    /// The operand of the op that defines this value, when it is `op`.
    fn of(self, op: Op) -> Option<Val<'e>> {
        let inst = self.def().filter(|inst| inst.op == op)?;
        Some(self.e.val(inst.operands.first()?.value))
    }

    /// The value of every element, when this is a `splat`.
    pub(crate) fn constant(self) -> Option<f64> {
        let inst = self.def().filter(|inst| inst.op == Op::Splat)?;
        inst.attrs.get("value").map(|_| inst.attrs.float("value", 0.0))
    }

    pub(crate) fn op1(self, op: Op) -> Val<'e> {
        self.e.op(op, &[self], Attrs::new(), None)
    }

    /// A binary op with broadcasting; what it broadcasts anyway is not broadcast before.
    pub(crate) fn op2(self, op: Op, other: Val) -> Val<'e> {
        let (a, b) = (self, self.e.val(other.id));
        let (sa, sb) = (a.shape(), b.shape());
        match sa.broadcast(&sb) {
            Some(shape) => {
                let a = if sb == shape { a.narrow() } else { a };
                let b = if sa == shape { b.narrow() } else { b };
                // Both may have been broadcast: one keeps the shape.
                let both = a.shape().broadcast(&b.shape()).as_ref() == Some(&shape);
                let a = if both { a } else { self };
                self.e.op(op, &[a, b], Attrs::new(), None)
            }
            None => self.e.op(op, &[a, b], Attrs::new(), None),
        }
    }

    /// The value before broadcasting, a scalar when all elements are one constant.
    fn narrow(self) -> Val<'e> {
        match self.constant() {
            Some(value) => self.e.scalar(self.dtype(), value),
            None => self.of(Op::Broadcast).unwrap_or(self),
        }
    }

    pub(crate) fn cast(self, dtype: DType) -> Val<'e> {
        let ty = self.ty();
        match self.constant() {
            _ if ty.dtype == dtype => self,
            Some(value) if dtype.is_float() => self.e.splat(ty.with_dtype(dtype), value),
            _ => self.e.op(Op::Cast, &[self], Attrs::new(), Some(ty.with_dtype(dtype))),
        }
    }

    pub(crate) fn reshape(self, shape: Shape) -> Val<'e> {
        let ty = TensorType::with_shape(self.dtype(), shape);
        if self.ty() == ty {
            return self;
        }
        if let Some(value) = self.constant() {
            return self.e.splat(ty, value);
        }
        let from = self.of(Op::Reshape).unwrap_or(self);
        if from.ty() == ty {
            return from;
        }
        self.e.op(Op::Reshape, &[from], Attrs::new(), Some(ty))
    }

    pub(crate) fn broadcast(self, shape: Shape) -> Val<'e> {
        let ty = TensorType::with_shape(self.dtype(), shape);
        if self.ty() == ty {
            return self;
        }
        match self.constant() {
            Some(value) => self.e.splat(ty, value),
            None => self.e.op(Op::Broadcast, &[self.narrow()], Attrs::new(), Some(ty)),
        }
    }

    /// Axis i of the result is axis `perm[i]`.
    pub(crate) fn transpose(self, perm: &[usize]) -> Val<'e> {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return self;
        }
        if let Some(value) = self.constant() {
            let shape = self.shape();
            let dims = perm.iter().map(|&p| shape.0[p].clone()).collect();
            return self.e.splat(TensorType::with_shape(self.dtype(), Shape(dims)), value);
        }
        if let Some(inst) = self.def().filter(|inst| inst.op == Op::Transpose) {
            let before = self.e.val(inst.operands[0].value);
            let first = inst.attrs.ints("perm").unwrap_or_default();
            let both: Vec<usize> = perm.iter().map(|&p| first[p] as usize).collect();
            return before.transpose(&both);
        }
        let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
        self.e.op(Op::Transpose, &[self], Attrs::new().with("perm", perm), None)
    }

    /// The last two axes exchanged.
    pub(crate) fn t(self) -> Val<'e> {
        let rank = self.rank();
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.transpose(&perm)
    }

    pub(crate) fn reduce(self, op: Op, axes: &[usize], keepdims: bool) -> Val<'e> {
        let list: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        let mut attrs = Attrs::new().with("axes", list);
        if keepdims {
            attrs = attrs.with("keepdims", true);
        }
        self.e.op(op, &[self], attrs, None)
    }

    pub(crate) fn sum(self, axes: &[usize], keepdims: bool) -> Val<'e> {
        let ty = self.ty();
        let reduced = |i: &usize| axes.contains(i);
        let count = Shape(axes.iter().map(|&a| ty.shape.0[a].clone()).collect()).numel();
        let count = count.as_const();
        if axes.is_empty() {
            return self;
        }
        if count == Some(1) || (self.constant().is_some() && count.is_some()) {
            let dims = (0..ty.rank()).filter_map(|i| match (reduced(&i), keepdims) {
                (false, _) => Some(ty.shape.0[i].clone()),
                (true, true) => Some(Dim::new(1)),
                (true, false) => None,
            });
            let shape = Shape(dims.collect());
            return match (self.constant(), count) {
                (Some(value), Some(n)) => {
                    let sum = value * n as f64;
                    self.e.splat(TensorType::with_shape(ty.dtype, shape), sum)
                }
                _ => self.reshape(shape),
            };
        }
        self.reduce(Op::ReduceSum, axes, keepdims)
    }

    pub(crate) fn mean(self, axes: &[usize], keepdims: bool) -> Val<'e> {
        self.reduce(Op::ReduceMean, axes, keepdims)
    }

    /// The sum over the axes that broadcasting `shape` to this shape repeated: the adjoint of
    /// that broadcast.
    pub(crate) fn sum_to(self, shape: &Shape) -> Val<'e> {
        let from = self.shape();
        let lead = from.rank().saturating_sub(shape.rank());
        let repeated = |i: usize| i < lead || (shape.0[i - lead].is(1) && !from.0[i].is(1));
        let axes: Vec<usize> = (0..from.rank()).filter(|&i| repeated(i)).collect();
        let within = axes.iter().any(|&a| a >= lead);
        match lead {
            0 => self.sum(&axes, true),
            _ if within => self.sum(&axes, false).reshape(shape.clone()),
            _ => self.sum(&axes, false),
        }
    }

    /// The elements from `start` to before `limit` of an axis of known length.
    pub(crate) fn slice(self, axis: usize, start: u64, limit: u64) -> Val<'e> {
        let whole = |d: &Dim| d.as_const().map_or(-1, |n| n as i64);
        let mut limits: Vec<i64> = self.shape().0.iter().map(whole).collect();
        let mut starts = vec![0; limits.len()];
        starts[axis] = start as i64;
        limits[axis] = limit as i64;
        let attrs = Attrs::new().with("starts", starts).with("limits", limits);
        self.e.op(Op::Slice, &[self], attrs, None)
    }

    /// Zeros before and behind each axis.
    pub(crate) fn pad(self, low: Vec<i64>, high: Vec<i64>) -> Val<'e> {
        if low.iter().chain(&high).all(|&n| n == 0) {
            return self;
        }
        self.e.op(Op::Pad, &[self], Attrs::new().with("low", low).with("high", high), None)
    }

    pub(crate) fn concat(self, other: Val, axis: usize) -> Val<'e> {
        self.e.op(Op::Concat, &[self, other], Attrs::new().with("axis", axis as i64), None)
    }

    pub(crate) fn gather(self, indices: Val, axis: usize) -> Val<'e> {
        self.e.op(Op::Gather, &[self, indices], Attrs::new().with("axis", axis as i64), None)
    }

    /// The matrix product, with `other` stored as `[n, k]` when `transpose`.
    pub(crate) fn matmul(self, other: Val, transpose: bool) -> Val<'e> {
        let mut attrs = Attrs::new();
        if transpose {
            attrs = attrs.with("transpose_b", true);
        }
        self.e.op(Op::Matmul, &[self, other], attrs, None)
    }

    /// `yes` where this holds, else `no`.
    pub(crate) fn select(self, yes: Val, no: Val) -> Val<'e> {
        let (yes, no) = (self.e.val(yes.id), self.e.val(no.id));
        let shape = |a: Val, b: Val| self.shape().broadcast(&a.shape())?.broadcast(&b.shape());
        // Without their broadcasts the operands must still have the shape of the result.
        let (a, b) = (yes.narrow(), no.narrow());
        let (a, b) = if shape(a, b) == shape(yes, no) { (a, b) } else { (yes, no) };
        self.e.op(Op::Select, &[self, a, b], Attrs::new(), None)
    }

    /// This where `condition` holds, else 0.
    pub(crate) fn where_(self, condition: Val) -> Val<'e> {
        self.e.val(condition.id).select(self, self.e.scalar(self.dtype(), 0.0))
    }

    /// 0 where `condition` holds, else this.
    pub(crate) fn unless(self, condition: Val) -> Val<'e> {
        self.e.val(condition.id).select(self.e.scalar(self.dtype(), 0.0), self)
    }

    /// `c` and `x`, when this is their product.
    fn scaled(self) -> Option<(f64, Val<'e>)> {
        let inst = self.def().filter(|inst| inst.op == Op::Mul)?;
        let [a, b] = [0, 1].map(|i| self.e.val(inst.operands[i].value));
        match (a.constant(), b.constant()) {
            (Some(c), _) if b.shape() == self.shape() => Some((c, b)),
            (_, Some(c)) if a.shape() == self.shape() => Some((c, a)),
            _ => None,
        }
    }

    fn result_shape(self, other: Val) -> Shape {
        let shape = self.shape();
        shape.broadcast(&other.shape()).unwrap_or(shape)
    }
}

impl<'e> Add for Val<'e> {
    type Output = Val<'e>;

    fn add(self, other: Val<'e>) -> Val<'e> {
        if self.id == other.id {
            return 2.0 * self;
        }
        if let Some(x) = other.of(Op::Neg) {
            return self.op2(Op::Sub, x);
        }
        if let Some(x) = self.of(Op::Neg) {
            return other.op2(Op::Sub, x);
        }
        self.op2(Op::Add, other)
    }
}

impl<'e> Sub for Val<'e> {
    type Output = Val<'e>;

    fn sub(self, other: Val<'e>) -> Val<'e> {
        match other.of(Op::Neg) {
            Some(x) => self.op2(Op::Add, x),
            None => self.op2(Op::Sub, other),
        }
    }
}

impl<'e> Mul for Val<'e> {
    type Output = Val<'e>;

    fn mul(self, other: Val<'e>) -> Val<'e> {
        let shape = self.result_shape(other);
        match (self.constant(), other.constant()) {
            (Some(a), Some(b)) => self.e.splat(TensorType::with_shape(self.dtype(), shape), a * b),
            (Some(1.0), _) => other.broadcast(shape),
            (_, Some(1.0)) => self.broadcast(shape),
            (Some(-1.0), _) => (-other).broadcast(shape),
            (_, Some(-1.0)) => (-self).broadcast(shape),
            (Some(a), None) => match other.scaled() {
                Some((b, x)) => (a * b) * x.broadcast(shape),
                None => self.op2(Op::Mul, other),
            },
            (None, Some(_)) if self.scaled().is_some() => other * self,
            _ => self.op2(Op::Mul, other),
        }
    }
}

impl<'e> Div for Val<'e> {
    type Output = Val<'e>;

    fn div(self, other: Val<'e>) -> Val<'e> {
        let shape = self.result_shape(other);
        match (self.constant(), other.constant()) {
            (_, Some(1.0)) => self.broadcast(shape),
            (Some(-1.0), _) => -(self.e.scalar(self.dtype(), 1.0).op2(Op::Div, other)),
            _ => self.op2(Op::Div, other),
        }
    }
}

impl<'e> Neg for Val<'e> {
    type Output = Val<'e>;

    fn neg(self) -> Val<'e> {
        match (self.constant(), self.of(Op::Neg)) {
            (Some(value), _) => self.e.splat(self.ty(), -value),
            (_, Some(x)) => x,
            _ => self.op1(Op::Neg),
        }
    }
}

/// Arithmetic of a number and a value: the number becomes a scalar of the value's element type.
macro_rules! with_numbers {
    ($($trait:ident $method:ident),*) => {
        $(impl<'e> $trait<f64> for Val<'e> {
            type Output = Val<'e>;

            fn $method(self, number: f64) -> Val<'e> {
                let number = self.e.scalar(self.dtype(), number);
                self.$method(number)
            }
        }

        impl<'e> $trait<Val<'e>> for f64 {
            type Output = Val<'e>;

            fn $method(self, value: Val<'e>) -> Val<'e> {
                value.e.scalar(value.dtype(), self).$method(value)
            }
        })*
    };
}

with_numbers!(Add add, Sub sub, Mul mul, Div div);
