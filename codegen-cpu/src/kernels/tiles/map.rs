//! Elementwise ops on tiles.

use aether_ir::Op;
use aether_ir::op::elementwise as meaning;

use super::DivisionByZero;
use crate::kernels::elementwise::{self as kernel, Binary, Unary};
use crate::kernels::isa::Isa;
use crate::kernels::simd::{Simd, dispatch};

/// The f32 kernel of an op of one operand.
pub fn unary(op: Op) -> Option<Unary> {
    Some(match op {
        Op::Neg => Unary::Neg,
        Op::Abs => Unary::Abs,
        Op::Sign => Unary::Sign,
        Op::Not => Unary::Not,
        Op::Relu => Unary::Relu,
        Op::Sqrt => Unary::Sqrt,
        Op::Rsqrt => Unary::Rsqrt,
        Op::Exp => Unary::Exp,
        Op::Log => Unary::Log,
        Op::Sin => Unary::Sin,
        Op::Cos => Unary::Cos,
        Op::Tanh => Unary::Tanh,
        Op::Sigmoid => Unary::Sigmoid,
        Op::Silu => Unary::Silu,
        Op::Gelu => Unary::GeluErf,
        Op::GeluTanh => Unary::GeluTanh,
        Op::Erf => Unary::Erf,
        Op::Floor => Unary::Floor,
        Op::Ceil => Unary::Ceil,
        Op::Round => Unary::Round,
        _ => return None,
    })
}

/// The f32 kernel of an op of two operands; truth values are 0 and 1.
pub fn binary(op: Op) -> Option<Binary> {
    Some(match op {
        Op::Add => Binary::Add,
        Op::Sub => Binary::Sub,
        Op::Mul | Op::And => Binary::Mul,
        Op::Div => Binary::Div,
        Op::Pow => Binary::Pow,
        Op::Max | Op::Or => Binary::Max,
        Op::Min => Binary::Min,
        Op::Eq => Binary::Eq,
        Op::Ne => Binary::Ne,
        Op::Lt => Binary::Lt,
        Op::Le => Binary::Le,
        Op::Gt => Binary::Gt,
        Op::Ge => Binary::Ge,
        _ => return None,
    })
}

/// An op on tiles of f32.
///
/// # Safety
/// The pointers cover `n` lanes as the op asks for; `dst` is one of the operands or apart from
/// them.
pub unsafe fn f32(isa: Isa, op: Op, [a, b, c]: [*const u8; 3], dst: *mut u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(op) = unary(op) {
            kernel::unary_raw(isa, op, a.cast(), dst.cast(), n);
        } else if let Some(op) = binary(op) {
            kernel::binary_raw(isa, op, a.cast(), b.cast(), dst.cast(), n);
        } else if op == Op::Select {
            kernel::select_raw(isa, a.cast(), b.cast(), c.cast(), dst.cast(), n);
        }
    }
}

/// `dst[i] = f(a[i])`.
#[inline(always)]
unsafe fn one<A: Copy, B>(a: *const u8, dst: *mut u8, n: usize, f: impl Fn(A) -> B) {
    let (a, dst) = (a.cast::<A>(), dst.cast::<B>());
    for i in 0..n {
        // SAFETY: the caller's pointers cover `n` lanes; lane i is read before it is written.
        unsafe { *dst.add(i) = f(*a.add(i)) };
    }
}

/// `dst[i] = f(a[i], b[i])`.
#[inline(always)]
unsafe fn two<A: Copy, B>(
    a: *const u8,
    b: *const u8,
    dst: *mut u8,
    n: usize,
    f: impl Fn(A, A) -> B,
) {
    let (a, b, dst) = (a.cast::<A>(), b.cast::<A>(), dst.cast::<B>());
    for i in 0..n {
        // SAFETY: as above.
        unsafe { *dst.add(i) = f(*a.add(i), *b.add(i)) };
    }
}

/// `dst[i]` is `a[i]` where `c[i]` is not 0, else `b[i]`, for lanes of eight bytes.
#[inline(always)]
unsafe fn pick([c, a, b]: [*const u8; 3], dst: *mut u8, n: usize) {
    let (c, a, b, dst) = (c.cast::<f32>(), a.cast::<u64>(), b.cast::<u64>(), dst.cast::<u64>());
    for i in 0..n {
        // SAFETY: as above.
        unsafe { *dst.add(i) = if *c.add(i) != 0.0 { *a.add(i) } else { *b.add(i) } };
    }
}

fn truth(v: bool) -> f32 {
    f32::from(u8::from(v))
}

#[inline(always)]
unsafe fn f64_body<S: Simd>(op: Op, [a, b, c]: [*const u8; 3], d: *mut u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match op {
            Op::Neg => one(a, d, n, |x: f64| -x),
            Op::Abs => one(a, d, n, f64::abs),
            Op::Sign => one(a, d, n, |x: f64| if x == 0.0 || x.is_nan() { x } else { x.signum() }),
            Op::Relu => one(a, d, n, |x: f64| meaning::max(x, 0.0)),
            Op::Sqrt => one(a, d, n, f64::sqrt),
            Op::Rsqrt => one(a, d, n, |x: f64| 1.0 / x.sqrt()),
            Op::Exp => one(a, d, n, libm::exp),
            Op::Log => one(a, d, n, libm::log),
            Op::Sin => one(a, d, n, libm::sin),
            Op::Cos => one(a, d, n, libm::cos),
            Op::Tanh => one(a, d, n, libm::tanh),
            Op::Sigmoid => one(a, d, n, meaning::sigmoid),
            Op::Silu => one(a, d, n, meaning::silu),
            Op::Gelu => one(a, d, n, meaning::gelu),
            Op::GeluTanh => one(a, d, n, meaning::gelu_tanh),
            Op::Erf => one(a, d, n, libm::erf),
            Op::Floor => one(a, d, n, f64::floor),
            Op::Ceil => one(a, d, n, f64::ceil),
            Op::Round => one(a, d, n, f64::round_ties_even),
            Op::Add => two(a, b, d, n, |x: f64, y| x + y),
            Op::Sub => two(a, b, d, n, |x: f64, y| x - y),
            Op::Mul => two(a, b, d, n, |x: f64, y| x * y),
            Op::Div => two(a, b, d, n, |x: f64, y| x / y),
            Op::Pow => two(a, b, d, n, libm::pow),
            Op::Max => two(a, b, d, n, meaning::max),
            Op::Min => two(a, b, d, n, meaning::min),
            Op::Eq => two(a, b, d, n, |x: f64, y| truth(x == y)),
            Op::Ne => two(a, b, d, n, |x: f64, y| truth(x != y)),
            Op::Lt => two(a, b, d, n, |x: f64, y| truth(x < y)),
            Op::Le => two(a, b, d, n, |x: f64, y| truth(x <= y)),
            Op::Gt => two(a, b, d, n, |x: f64, y| truth(x > y)),
            Op::Ge => two(a, b, d, n, |x: f64, y| truth(x >= y)),
            Op::Select => pick([a, b, c], d, n),
            _ => {}
        }
    }
}

dispatch! {
    unsafe fn f64_raw(isa; op: Op, args: [*const u8; 3], dst: *mut u8, n: usize) = f64_body
}

/// An op on tiles of f64; comparisons give f32 truth values.
///
/// # Safety
/// As [`f32`]; `dst` of a comparison is apart from its operands, because lanes differ in size.
pub unsafe fn f64(isa: Isa, op: Op, args: [*const u8; 3], dst: *mut u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { f64_raw(isa, op, args, dst, n) }
}

#[inline(always)]
unsafe fn i64_body<S: Simd>(op: Op, [a, b, c]: [*const u8; 3], d: *mut u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match op {
            Op::Neg => one(a, d, n, i64::wrapping_neg),
            Op::Abs => one(a, d, n, i64::wrapping_abs),
            Op::Sign => one(a, d, n, i64::signum),
            Op::Relu => one(a, d, n, |x: i64| x.max(0)),
            Op::Add => two(a, b, d, n, i64::wrapping_add),
            Op::Sub => two(a, b, d, n, i64::wrapping_sub),
            Op::Mul => two(a, b, d, n, i64::wrapping_mul),
            // Divisors of zero were found before.
            Op::Div => two(a, b, d, n, |x: i64, y| if y == 0 { 0 } else { x.wrapping_div(y) }),
            Op::Max => two(a, b, d, n, i64::max),
            Op::Min => two(a, b, d, n, i64::min),
            Op::Eq => two(a, b, d, n, |x: i64, y| truth(x == y)),
            Op::Ne => two(a, b, d, n, |x: i64, y| truth(x != y)),
            Op::Lt => two(a, b, d, n, |x: i64, y| truth(x < y)),
            Op::Le => two(a, b, d, n, |x: i64, y| truth(x <= y)),
            Op::Gt => two(a, b, d, n, |x: i64, y| truth(x > y)),
            Op::Ge => two(a, b, d, n, |x: i64, y| truth(x >= y)),
            Op::Select => pick([a, b, c], d, n),
            _ => {}
        }
    }
}

dispatch! {
    unsafe fn i64_raw(isa; op: Op, args: [*const u8; 3], dst: *mut u8, n: usize) = i64_body
}

/// An op on tiles of i64; comparisons give f32 truth values.
///
/// # Errors
/// At a division by zero.
///
/// # Safety
/// As [`f64`].
pub unsafe fn i64(
    isa: Isa,
    op: Op,
    args: [*const u8; 3],
    dst: *mut u8,
    n: usize,
) -> Result<(), DivisionByZero> {
    // SAFETY: the caller's promise.
    unsafe {
        if op == Op::Div {
            let divisors = std::slice::from_raw_parts(args[1].cast::<i64>(), n);
            if divisors.contains(&0) {
                return Err(DivisionByZero);
            }
        }
        i64_raw(isa, op, args, dst, n);
    }
    Ok(())
}
