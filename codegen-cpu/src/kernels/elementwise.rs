//! Elementwise operations on contiguous f32, with the broadcasts that models need.
//!
//! Every function works on the slices it is given; a caller that spreads the work over threads
//! hands each thread its own range. Lengths must agree: the shorter one bounds the work, and a
//! debug build asserts. Maximum and minimum follow `f32::max` only for numbers: NaN in either
//! operand gives NaN. The accuracy of the transcendental operations is stated in
//! [`math`](super::math).

use super::isa::Isa;
use super::math;
use super::simd::{Simd, dispatch};

/// A binary operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
    Pow,
    /// Comparisons give 1 where they hold and 0 where they do not.
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A unary operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    Neg,
    Abs,
    /// −1, 0 or 1; zeros and NaN stay as they are.
    Sign,
    /// 1 − x: the negation of a truth value.
    Not,
    Relu,
    Square,
    Sqrt,
    Rsqrt,
    Recip,
    Exp,
    Tanh,
    Sigmoid,
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
    /// GELU in its exact form.
    GeluErf,
    Erf,
    Log,
    Sin,
    Cos,
    Floor,
    Ceil,
    /// To the nearest integer, ties to even.
    Round,
}

/// The second operand of a binary operation, as vectors at an element offset.
trait Operand: Copy {
    unsafe fn vector<S: Simd>(self, i: usize) -> S::V;
    unsafe fn part<S: Simd>(self, i: usize, n: usize) -> S::V;
}

#[derive(Clone, Copy)]
struct Slice(*const f32);

#[derive(Clone, Copy)]
struct Value(f32);

// SAFETY of both: the caller keeps `i` and `n` within what the pointer covers.
impl Operand for Slice {
    #[inline(always)]
    unsafe fn vector<S: Simd>(self, i: usize) -> S::V {
        unsafe { S::load(self.0.add(i)) }
    }
    #[inline(always)]
    unsafe fn part<S: Simd>(self, i: usize, n: usize) -> S::V {
        unsafe { S::load_part(self.0.add(i), n) }
    }
}

impl Operand for Value {
    #[inline(always)]
    unsafe fn vector<S: Simd>(self, _: usize) -> S::V {
        unsafe { S::splat(self.0) }
    }
    #[inline(always)]
    unsafe fn part<S: Simd>(self, _: usize, _: usize) -> S::V {
        unsafe { S::splat(self.0) }
    }
}

/// What is done to each pair of vectors. A type and not a closure: a closure cannot be forced
/// inline, and vector code that is not inlined into its entry point lacks the target features.
trait Function: Copy {
    unsafe fn call<S: Simd>(self, a: S::V, b: S::V) -> S::V;
}

/// `functions! { Name(a, b) => expression; }` makes types with a [`Function`].
macro_rules! functions {
    ($($name:ident($a:ident, $b:pat) => $body:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;

        // SAFETY: no condition but the instruction set, which the caller vouches for.
        impl Function for $name {
            #[inline(always)]
            unsafe fn call<S: Simd>(self, $a: S::V, $b: S::V) -> S::V {
                unsafe { $body }
            }
        }
    )*};
}

functions! {
    Add(x, y) => S::add(x, y);
    Sub(x, y) => S::sub(x, y);
    Mul(x, y) => S::mul(x, y);
    Div(x, y) => S::div(x, y);
    // `max` and `min` pass NaN on from the second operand alone.
    Max(x, y) => keep_nan::<S>(x, S::max(x, y));
    Min(x, y) => keep_nan::<S>(x, S::min(x, y));

    Eq(x, y) => S::select(S::eq(x, y), S::splat(1.0), S::splat(0.0));
    Ne(x, y) => S::select(S::eq(x, y), S::splat(0.0), S::splat(1.0));
    Lt(x, y) => S::select(S::lt(x, y), S::splat(1.0), S::splat(0.0));
    Le(x, y) => S::select(S::le(x, y), S::splat(1.0), S::splat(0.0));
    Gt(x, y) => S::select(S::lt(y, x), S::splat(1.0), S::splat(0.0));
    Ge(x, y) => S::select(S::le(y, x), S::splat(1.0), S::splat(0.0));

    Neg(v, _) => S::mul(v, S::splat(-1.0));
    Abs(v, _) => S::abs(v);
    Sign(v, _) => {
        let one = S::copysign(S::splat(1.0), v);
        S::select(S::lt(S::splat(0.0), S::abs(v)), one, v)
    };
    Not(v, _) => S::sub(S::splat(1.0), v);
    Relu(v, _) => S::max(S::splat(0.0), v);
    Square(v, _) => S::mul(v, v);
    Sqrt(v, _) => S::sqrt(v);
    Rsqrt(v, _) => S::div(S::splat(1.0), S::sqrt(v));
    Recip(v, _) => S::div(S::splat(1.0), v);
    Exp(v, _) => math::exp::<S>(v);
    Tanh(v, _) => math::tanh::<S>(v);
    Sigmoid(v, _) => math::sigmoid::<S>(v);
    Silu(v, _) => math::silu::<S>(v);
    GeluTanh(v, _) => math::gelu_tanh::<S>(v);
    GeluErf(v, _) => math::gelu_erf::<S>(v);
    Erf(v, _) => math::erf::<S>(v);
}

/// `f(a) · b`.
#[derive(Clone, Copy)]
struct Gated<F>(F);

// SAFETY: no condition but the instruction set, which the caller vouches for.
impl<F: Function> Function for Gated<F> {
    #[inline(always)]
    unsafe fn call<S: Simd>(self, a: S::V, b: S::V) -> S::V {
        unsafe { S::mul(self.0.call::<S>(a, b), b) }
    }
}

/// `value`, or `x` where `x` is NaN.
#[inline(always)]
unsafe fn keep_nan<S: Simd>(x: S::V, value: S::V) -> S::V {
    // SAFETY: no condition but the instruction set.
    unsafe {
        let number = S::lt(S::splat(-1.0), S::abs(x));
        S::select(number, value, x)
    }
}

/// `out[i] = f(a[i], b[i])` for `i < n`; `out` may be `a` or `b`.
#[inline(always)]
unsafe fn zip<S: Simd, A: Operand, B: Operand, F: Function>(
    a: A,
    b: B,
    out: *mut f32,
    n: usize,
    f: F,
) {
    // SAFETY: the caller's pointers cover `n` elements; each is read before its place is written.
    unsafe {
        let mut i = 0;
        while i + S::LANES <= n {
            S::store(out.add(i), f.call::<S>(a.vector::<S>(i), b.vector::<S>(i)));
            i += S::LANES;
        }
        if i < n {
            let v = f.call::<S>(a.part::<S>(i, n - i), b.part::<S>(i, n - i));
            S::store_part(out.add(i), v, n - i);
        }
    }
}

/// Powers, one by one in f64: rounded correctly but for a few ties.
#[inline(always)]
unsafe fn pow<S: Simd, A: Operand, B: Operand>(a: A, b: B, out: *mut f32, n: usize) {
    let (mut x, mut y) = ([0f32; 16], [0f32; 16]);
    let mut i = 0;
    while i < n {
        let m = S::LANES.min(n - i);
        // SAFETY: as for `zip`.
        unsafe {
            if m == S::LANES {
                S::store(x.as_mut_ptr(), a.vector::<S>(i));
                S::store(y.as_mut_ptr(), b.vector::<S>(i));
            } else {
                S::store(x.as_mut_ptr(), a.part::<S>(i, m));
                S::store(y.as_mut_ptr(), b.part::<S>(i, m));
            }
            for j in 0..m {
                *out.add(i + j) = f64::from(x[j]).powf(f64::from(y[j])) as f32;
            }
        }
        i += m;
    }
}

#[inline(always)]
unsafe fn binary_op<S: Simd, A: Operand, B: Operand>(
    op: Binary,
    a: A,
    b: B,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match op {
            Binary::Add => zip::<S, A, B, _>(a, b, out, n, Add),
            Binary::Sub => zip::<S, A, B, _>(a, b, out, n, Sub),
            Binary::Mul => zip::<S, A, B, _>(a, b, out, n, Mul),
            Binary::Div => zip::<S, A, B, _>(a, b, out, n, Div),
            Binary::Max => zip::<S, A, B, _>(a, b, out, n, Max),
            Binary::Min => zip::<S, A, B, _>(a, b, out, n, Min),
            Binary::Pow => pow::<S, A, B>(a, b, out, n),
            Binary::Eq => zip::<S, A, B, _>(a, b, out, n, Eq),
            Binary::Ne => zip::<S, A, B, _>(a, b, out, n, Ne),
            Binary::Lt => zip::<S, A, B, _>(a, b, out, n, Lt),
            Binary::Le => zip::<S, A, B, _>(a, b, out, n, Le),
            Binary::Gt => zip::<S, A, B, _>(a, b, out, n, Gt),
            Binary::Ge => zip::<S, A, B, _>(a, b, out, n, Ge),
        }
    }
}

#[inline(always)]
unsafe fn binary_body<S: Simd>(op: Binary, a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: passed on.
    unsafe { binary_op::<S, _, _>(op, Slice(a), Slice(b), out, n) }
}

#[inline(always)]
unsafe fn binary_left_body<S: Simd>(op: Binary, a: f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: passed on.
    unsafe { binary_op::<S, _, _>(op, Value(a), Slice(b), out, n) }
}

#[inline(always)]
unsafe fn binary_right_body<S: Simd>(op: Binary, a: *const f32, b: f32, out: *mut f32, n: usize) {
    // SAFETY: passed on.
    unsafe { binary_op::<S, _, _>(op, Slice(a), Value(b), out, n) }
}

dispatch! {
    /// `out[i] = op(a[i], b[i])` for `i < n`; the operands may be `out` itself.
    ///
    /// # Safety
    /// The pointers cover `n` elements and either coincide or do not overlap.
    pub unsafe fn binary_raw(isa; op: Binary, a: *const f32, b: *const f32, out: *mut f32, n: usize)
        = binary_body
}

dispatch! {
    /// `out[i] = op(a, b[i])` for `i < n`.
    ///
    /// # Safety
    /// As [`binary_raw`].
    pub unsafe fn binary_left_raw(isa; op: Binary, a: f32, b: *const f32, out: *mut f32, n: usize)
        = binary_left_body
}

dispatch! {
    /// `out[i] = op(a[i], b)` for `i < n`.
    ///
    /// # Safety
    /// As [`binary_raw`].
    pub unsafe fn binary_right_raw(isa; op: Binary, a: *const f32, b: f32, out: *mut f32, n: usize)
        = binary_right_body
}

#[inline(always)]
unsafe fn select_body<S: Simd>(
    c: *const f32,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: the caller's pointers cover `n` elements.
    unsafe {
        let zero = S::splat(0.0);
        let mut i = 0;
        while i + S::LANES <= n {
            let no = S::eq(S::load(c.add(i)), zero);
            S::store(out.add(i), S::select(no, S::load(b.add(i)), S::load(a.add(i))));
            i += S::LANES;
        }
        if i < n {
            let m = n - i;
            let no = S::eq(S::load_part(c.add(i), m), zero);
            let v = S::select(no, S::load_part(b.add(i), m), S::load_part(a.add(i), m));
            S::store_part(out.add(i), v, m);
        }
    }
}

dispatch! {
    /// `out[i]` is `a[i]` where `c[i]` is not 0, else `b[i]`, for `i < n`.
    ///
    /// # Safety
    /// As [`binary_raw`].
    pub unsafe fn select_raw(isa; c: *const f32, a: *const f32, b: *const f32, out: *mut f32,
        n: usize) = select_body
}

fn common(a: usize, b: usize) -> usize {
    debug_assert_eq!(a, b, "operands of an elementwise kernel differ in length");
    a.min(b)
}

/// `out[i] = op(a[i], b[i])`.
pub fn binary(isa: Isa, op: Binary, a: &[f32], b: &[f32], out: &mut [f32]) {
    let n = common(common(a.len(), b.len()), out.len());
    // SAFETY: all three cover `n` elements and the borrow keeps them apart.
    unsafe { binary_raw(isa, op, a.as_ptr(), b.as_ptr(), out.as_mut_ptr(), n) }
}

/// `a[i] = op(a[i], b[i])`.
pub fn binary_assign(isa: Isa, op: Binary, a: &mut [f32], b: &[f32]) {
    let n = common(a.len(), b.len());
    let p = a.as_mut_ptr();
    // SAFETY: both cover `n` elements; `out` is `a` itself.
    unsafe { binary_raw(isa, op, p, b.as_ptr(), p, n) }
}

/// `out[r][c] = op(a[r][c], row[c])` for rows of `row.len()` elements.
pub fn binary_row(isa: Isa, op: Binary, a: &[f32], row: &[f32], out: &mut [f32]) {
    common(a.len(), out.len());
    if row.is_empty() {
        return;
    }
    for (a, out) in a.chunks_exact(row.len()).zip(out.chunks_exact_mut(row.len())) {
        binary(isa, op, a, row, out);
    }
}

/// `out[i] = op(a[i], b)`.
pub fn binary_scalar(isa: Isa, op: Binary, a: &[f32], b: f32, out: &mut [f32]) {
    let n = common(a.len(), out.len());
    // SAFETY: both cover `n` elements.
    unsafe { binary_right_raw(isa, op, a.as_ptr(), b, out.as_mut_ptr(), n) }
}

#[inline(always)]
unsafe fn map<S: Simd, F: Function>(x: *const f32, out: *mut f32, n: usize, f: F) {
    // SAFETY: the caller's pointers cover `n` elements.
    unsafe { zip::<S, _, _, F>(Slice(x), Value(0.0), out, n, f) }
}

/// Operations that are not worth vector code of their own.
#[inline(always)]
unsafe fn map_scalar(x: *const f32, out: *mut f32, n: usize, f: impl Fn(f32) -> f32) {
    for i in 0..n {
        // SAFETY: the caller's pointers cover `n` elements.
        unsafe { *out.add(i) = f(*x.add(i)) };
    }
}

#[inline(always)]
unsafe fn unary_body<S: Simd>(op: Unary, x: *const f32, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise, passed on; the vector operations have no other condition.
    unsafe {
        match op {
            Unary::Neg => map::<S, _>(x, out, n, Neg),
            Unary::Abs => map::<S, _>(x, out, n, Abs),
            Unary::Sign => map::<S, _>(x, out, n, Sign),
            Unary::Not => map::<S, _>(x, out, n, Not),
            Unary::Relu => map::<S, _>(x, out, n, Relu),
            Unary::Square => map::<S, _>(x, out, n, Square),
            Unary::Sqrt => map::<S, _>(x, out, n, Sqrt),
            Unary::Rsqrt => map::<S, _>(x, out, n, Rsqrt),
            Unary::Recip => map::<S, _>(x, out, n, Recip),
            Unary::Exp => map::<S, _>(x, out, n, Exp),
            Unary::Tanh => map::<S, _>(x, out, n, Tanh),
            Unary::Sigmoid => map::<S, _>(x, out, n, Sigmoid),
            Unary::Silu => map::<S, _>(x, out, n, Silu),
            Unary::GeluTanh => map::<S, _>(x, out, n, GeluTanh),
            Unary::GeluErf => map::<S, _>(x, out, n, GeluErf),
            Unary::Erf => map::<S, _>(x, out, n, Erf),
            Unary::Log => map_scalar(x, out, n, f32::ln),
            Unary::Sin => map_scalar(x, out, n, f32::sin),
            Unary::Cos => map_scalar(x, out, n, f32::cos),
            Unary::Floor => map_scalar(x, out, n, f32::floor),
            Unary::Ceil => map_scalar(x, out, n, f32::ceil),
            Unary::Round => map_scalar(x, out, n, f32::round_ties_even),
        }
    }
}

dispatch! {
    /// `out[i] = op(x[i])` for `i < n`; `out` may be `x`.
    ///
    /// # Safety
    /// The pointers cover `n` elements and either coincide or do not overlap.
    pub unsafe fn unary_raw(isa; op: Unary, x: *const f32, out: *mut f32, n: usize) = unary_body
}

/// `out[i] = op(x[i])`.
pub fn unary(isa: Isa, op: Unary, x: &[f32], out: &mut [f32]) {
    let n = common(x.len(), out.len());
    // SAFETY: both cover `n` elements.
    unsafe { unary_raw(isa, op, x.as_ptr(), out.as_mut_ptr(), n) }
}

/// `x[i] = op(x[i])`.
pub fn unary_assign(isa: Isa, op: Unary, x: &mut [f32]) {
    let p = x.as_mut_ptr();
    // SAFETY: `out` is `x` itself.
    unsafe { unary_raw(isa, op, p, p, x.len()) }
}

/// The activation of a gated feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    Silu,
    GeluTanh,
    GeluErf,
    Relu,
    Sigmoid,
}

#[inline(always)]
unsafe fn gated_body<S: Simd>(op: Gate, g: *const f32, u: *const f32, out: *mut f32, n: usize) {
    let (a, b) = (Slice(g), Slice(u));
    // SAFETY: the caller's promise, passed on; the vector operations have no other condition.
    unsafe {
        match op {
            Gate::Silu => zip::<S, _, _, _>(a, b, out, n, Gated(Silu)),
            Gate::GeluTanh => zip::<S, _, _, _>(a, b, out, n, Gated(GeluTanh)),
            Gate::GeluErf => zip::<S, _, _, _>(a, b, out, n, Gated(GeluErf)),
            Gate::Relu => zip::<S, _, _, _>(a, b, out, n, Gated(Relu)),
            Gate::Sigmoid => zip::<S, _, _, _>(a, b, out, n, Gated(Sigmoid)),
        }
    }
}

dispatch! {
    /// `out[i] = op(g[i]) · u[i]` for `i < n`; `out` may be `g` or `u`.
    ///
    /// # Safety
    /// The pointers cover `n` elements and either coincide or do not overlap.
    pub unsafe fn gated_raw(isa; op: Gate, g: *const f32, u: *const f32, out: *mut f32, n: usize)
        = gated_body
}

/// `out[i] = op(g[i]) · u[i]`.
pub fn gated(isa: Isa, op: Gate, g: &[f32], u: &[f32], out: &mut [f32]) {
    let n = common(common(g.len(), u.len()), out.len());
    // SAFETY: all three cover `n` elements.
    unsafe { gated_raw(isa, op, g.as_ptr(), u.as_ptr(), out.as_mut_ptr(), n) }
}
