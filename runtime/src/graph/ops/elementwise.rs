//! One result element from one element of each operand, with NumPy's broadcasting.

use aether_ir::{Attr, Attrs, DType, Op, TensorType};

use crate::graph::operators::{Operand, binary, number};
use crate::graph::{IntoOperand, Tensor};

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident => $op:ident;)*) => {
        impl Tensor {$(
            $(#[$doc])*
            #[must_use]
            #[track_caller]
            pub fn $name(&self) -> Tensor {
                self.unary(Op::$op, Attrs::new())
            }
        )*}
    };
}

unary! {
    /// Absolute value.
    abs => Abs;
    /// -1, 0 or 1; NaN stays NaN.
    sign => Sign;
    /// e to the power of x.
    exp => Exp;
    /// Natural logarithm.
    log => Log;
    /// Square root.
    sqrt => Sqrt;
    /// One over the square root.
    rsqrt => Rsqrt;
    /// Sine of radians.
    sin => Sin;
    /// Cosine of radians.
    cos => Cos;
    /// Hyperbolic tangent.
    tanh => Tanh;
    /// 1 / (1 + exp(-x)).
    sigmoid => Sigmoid;
    /// max(x, 0).
    relu => Relu;
    /// x Φ(x), with the error function.
    gelu => Gelu;
    /// The tanh approximation of [`Tensor::gelu`].
    gelu_tanh => GeluTanh;
    /// x sigmoid(x).
    silu => Silu;
    /// The error function.
    erf => Erf;
    /// Rounds down.
    floor => Floor;
    /// Rounds up.
    ceil => Ceil;
    /// Rounds to nearest, ties to even.
    round => Round;
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident => $op:ident;)*) => {
        impl Tensor {$(
            $(#[$doc])*
            #[must_use]
            #[track_caller]
            pub fn $name(&self, other: impl IntoOperand) -> Tensor {
                binary(stringify!($name), Op::$op, self, other.into_operand())
            }
        )*}
    };
}

binary! {
    /// x to the power of `other`.
    pow => Pow;
    /// The greater of two; NaN wins.
    maximum => Max;
    /// The smaller of two; NaN wins.
    minimum => Min;
    /// Where both are equal, as `bool`.
    eq => Eq;
    /// Where they differ, as `bool`.
    ne => Ne;
    /// Where x is less, as `bool`.
    lt => Lt;
    /// Where x is less or equal, as `bool`.
    le => Le;
    /// Where x is greater, as `bool`.
    gt => Gt;
    /// Where x is greater or equal, as `bool`.
    ge => Ge;
    /// Where both `bool`s hold.
    and => And;
    /// Where one of two `bool`s holds.
    or => Or;
}

impl Tensor {
    /// Kept between two bounds, which may be numbers or tensors; the upper one wins.
    #[must_use]
    #[track_caller]
    pub fn clamp(&self, low: impl IntoOperand, high: impl IntoOperand) -> Tensor {
        self.maximum(low).minimum(high)
    }

    /// Where this `bool` holds, elements of `on_true`, else of `on_false`.
    ///
    /// At least one of the two must be a tensor: a number takes the other's element type.
    #[must_use]
    #[track_caller]
    pub fn select(&self, on_true: impl IntoOperand, on_false: impl IntoOperand) -> Tensor {
        let pick = |s: &mut crate::graph::tensor::Scope, a, b| {
            let condition = s.args[0];
            s.plain(Op::Select, &[condition, a, b])
        };
        match (on_true.into_operand(), on_false.into_operand()) {
            (Operand::Tensor(a), Operand::Tensor(b)) => {
                Tensor::build("select", &[self, &a, &b], |s| pick(s, s.args[1], s.args[2]))
            }
            (Operand::Tensor(a), Operand::Number(b)) => Tensor::build("select", &[self, &a], |s| {
                let b = number(s, s.args[1], b)?;
                pick(s, s.args[1], b)
            }),
            (Operand::Number(a), Operand::Tensor(b)) => Tensor::build("select", &[self, &b], |s| {
                let a = number(s, s.args[1], a)?;
                pick(s, a, s.args[1])
            }),
            (Operand::Number(_), Operand::Number(_)) => Tensor::build("select", &[self], |_| {
                Err("one of the two values must be a tensor; `Graph::full` makes one".to_owned())
            }),
        }
    }

    /// To another element type. Floats to integers truncate and saturate, NaN to 0; integers wrap
    /// to narrower ones; `bool` is whether a number is not 0.
    #[must_use]
    #[track_caller]
    pub fn cast(&self, dtype: DType) -> Tensor {
        Tensor::build("cast", &[self], |s| {
            let x = s.args[0];
            let ty = s.ty(x);
            if ty.dtype == dtype {
                return Ok(x);
            }
            s.op_to(Op::Cast, &[x], Attrs::new(), TensorType::with_shape(dtype, ty.shape))
        })
    }

    /// x².
    #[must_use]
    #[track_caller]
    pub fn square(&self) -> Tensor {
        Tensor::build("square", &[self], |s| s.plain(Op::Mul, &[s.args[0], s.args[0]]))
    }

    /// 1 / x.
    #[must_use]
    #[track_caller]
    pub fn recip(&self) -> Tensor {
        Tensor::build("recip", &[self], |s| {
            let one = number(s, s.args[0], Attr::Float(1.0))?;
            s.plain(Op::Div, &[one, s.args[0]])
        })
    }
}
