//! `+ - * /`, negation and `!` between tensors, references to them, and numbers.
//!
//! A number takes the element type of the tensor it meets; two tensors must have the same one. On
//! the right stands an f32, f64, i32 or i64, on the left an f64 or i64.

use std::ops::{Add, Div, Mul, Neg, Not, Sub};

use aether_ir::{Attr, Attrs, Op, ValueId};

use super::Tensor;
use super::tensor::Scope;

/// What can stand beside a tensor: another tensor, or a number.
pub trait IntoOperand {
    #[doc(hidden)]
    fn into_operand(self) -> Operand;
}

/// An operand of an expression.
#[doc(hidden)]
#[derive(Clone)]
pub enum Operand {
    Tensor(Tensor),
    Number(Attr),
}

impl IntoOperand for Tensor {
    fn into_operand(self) -> Operand {
        Operand::Tensor(self)
    }
}

impl IntoOperand for &Tensor {
    fn into_operand(self) -> Operand {
        Operand::Tensor(self.clone())
    }
}

/// One instruction on `x` and what stands beside it.
#[track_caller]
pub(super) fn binary(name: &'static str, op: Op, x: &Tensor, other: Operand) -> Tensor {
    pair(name, x, other, |s, x, y| s.plain(op, &[x, y]))
}

/// As [`binary`], with the number or tensor on the left.
#[track_caller]
fn binary_from(name: &'static str, op: Op, x: &Tensor, other: Operand) -> Tensor {
    pair(name, x, other, |s, x, y| s.plain(op, &[y, x]))
}

/// An expression of `x` and what stands beside it, as values of one element type unless both are
/// tensors.
#[track_caller]
pub(super) fn pair(
    name: &'static str,
    x: &Tensor,
    other: Operand,
    body: impl FnOnce(&mut Scope, ValueId, ValueId) -> Result<ValueId, String>,
) -> Tensor {
    match other {
        Operand::Tensor(y) => Tensor::build(name, &[x, &y], |s| {
            let (x, y) = (s.args[0], s.args[1]);
            body(s, x, y)
        }),
        Operand::Number(n) => Tensor::build(name, &[x], |s| {
            let x = s.args[0];
            let y = number(s, x, n)?;
            body(s, x, y)
        }),
    }
}

/// A number as a scalar of the element type of `like`.
pub(super) fn number(s: &mut Scope, like: ValueId, n: Attr) -> Result<ValueId, String> {
    let dtype = s.ty(like).dtype;
    if dtype.is_quantized() {
        return Err(format!("there are no single numbers of type {dtype}; `dequantize` first"));
    }
    if let (true, Attr::Float(v)) = (dtype.is_int(), &n)
        && v.fract() != 0.0
    {
        return Err(format!("the number {v} is no {dtype}; `cast` the tensor first"));
    }
    s.scalar(dtype, n)
}

// The right side is generic, so that the type of an expression is known before that of a literal
// in it.
macro_rules! operator {
    ($trait:ident, $method:ident, $op:expr; $($number:ty),*) => {
        impl<T: IntoOperand> $trait<T> for Tensor {
            type Output = Tensor;

            #[track_caller]
            fn $method(self, other: T) -> Tensor {
                binary(stringify!($method), $op, &self, other.into_operand())
            }
        }

        impl<T: IntoOperand> $trait<T> for &Tensor {
            type Output = Tensor;

            #[track_caller]
            fn $method(self, other: T) -> Tensor {
                binary(stringify!($method), $op, self, other.into_operand())
            }
        }

        $(
            impl $trait<Tensor> for $number {
                type Output = Tensor;

                #[track_caller]
                fn $method(self, other: Tensor) -> Tensor {
                    binary_from(stringify!($method), $op, &other, self.into_operand())
                }
            }

            impl $trait<&Tensor> for $number {
                type Output = Tensor;

                #[track_caller]
                fn $method(self, other: &Tensor) -> Tensor {
                    binary_from(stringify!($method), $op, other, self.into_operand())
                }
            }
        )*
    };
}

macro_rules! numbers {
    ($($number:ty => $wide:ty),*) => {$(
        impl IntoOperand for $number {
            fn into_operand(self) -> Operand {
                Operand::Number(<$wide>::from(self).into())
            }
        }
    )*};
}

numbers! { f32 => f64, f64 => f64, i32 => i64, i64 => i64 }
operator!(Add, add, Op::Add; f64, i64);
operator!(Sub, sub, Op::Sub; f64, i64);
operator!(Mul, mul, Op::Mul; f64, i64);
operator!(Div, div, Op::Div; f64, i64);

impl Neg for Tensor {
    type Output = Tensor;

    #[track_caller]
    fn neg(self) -> Tensor {
        self.unary(Op::Neg, Attrs::new())
    }
}

impl Neg for &Tensor {
    type Output = Tensor;

    #[track_caller]
    fn neg(self) -> Tensor {
        self.unary(Op::Neg, Attrs::new())
    }
}

impl Not for Tensor {
    type Output = Tensor;

    #[track_caller]
    fn not(self) -> Tensor {
        self.unary(Op::Not, Attrs::new())
    }
}

impl Not for &Tensor {
    type Output = Tensor;

    #[track_caller]
    fn not(self) -> Tensor {
        self.unary(Op::Not, Attrs::new())
    }
}
