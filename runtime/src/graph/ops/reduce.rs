//! Reductions over any axes.

use aether_ir::{Attr, Attrs, DType, Op, ValueId};

use crate::graph::tensor::Scope;
use crate::graph::{Axes, Tensor, keepdims};

/// The axes as indices, or what is wrong with one.
pub(super) fn resolve(s: &Scope, x: ValueId, axes: &Axes) -> Result<Vec<i64>, String> {
    match &axes.axes {
        None => Ok((0..s.ty(x).rank() as i64).collect()),
        Some(list) => list.iter().map(|&a| Ok(s.axis(x, a)? as i64)).collect(),
    }
}

/// One reduction.
pub(super) fn reduce(s: &mut Scope, op: Op, x: ValueId, axes: &Axes) -> Result<ValueId, String> {
    let mut attrs = Attrs::new().with("axes", resolve(s, x, axes)?);
    if axes.keepdims {
        attrs = attrs.with("keepdims", true);
    }
    s.op(op, &[x], attrs)
}

macro_rules! reductions {
    ($($(#[$doc:meta])* $name:ident => $op:ident;)*) => {
        impl Tensor {$(
            $(#[$doc])*
            #[must_use]
            #[track_caller]
            pub fn $name(&self, axes: impl Into<Axes>) -> Tensor {
                let axes = axes.into();
                Tensor::build(stringify!($name), &[self], |s| reduce(s, Op::$op, s.args[0], &axes))
            }
        )*}
    };
}

reductions! {
    /// Sum. Of no elements it is 0.
    sum => ReduceSum;
    /// Mean. Of no elements it is NaN.
    mean => ReduceMean;
    /// Product. Of no elements it is 1.
    prod => ReduceProd;
    /// Greatest; NaN wins.
    max => ReduceMax;
    /// Smallest; NaN wins.
    min => ReduceMin;
}

impl Tensor {
    /// Sum of all elements.
    #[must_use]
    #[track_caller]
    pub fn sum_all(&self) -> Tensor {
        self.sum(..)
    }

    /// Mean of all elements.
    #[must_use]
    #[track_caller]
    pub fn mean_all(&self) -> Tensor {
        self.mean(..)
    }

    /// Variance: the mean square distance from the mean, with `n - correction` in the place of
    /// the number n of elements. 0 is NumPy's default, 1 the unbiased estimate.
    #[must_use]
    #[track_caller]
    pub fn var(&self, axes: impl Into<Axes>, correction: f64) -> Tensor {
        let axes = axes.into();
        Tensor::build("var", &[self], |s| {
            let x = s.args[0];
            let mean = reduce(s, Op::ReduceMean, x, &keepdims(axes.clone()))?;
            let distance = s.plain(Op::Sub, &[x, mean])?;
            let square = s.plain(Op::Mul, &[distance, distance])?;
            let variance = reduce(s, Op::ReduceMean, square, &axes)?;
            if correction == 0.0 {
                return Ok(variance);
            }
            let ty = s.ty(x);
            let mut n = 1.0;
            for axis in resolve(s, x, &axes)? {
                let dim = &ty.shape.0[axis as usize];
                let length = dim.as_const().ok_or_else(|| {
                    format!("axis {axis} of {ty} has a symbolic length: only correction 0 is known")
                })?;
                n *= length as f64;
            }
            let factor = s.scalar(ty.dtype, n / (n - correction))?;
            s.plain(Op::Mul, &[variance, factor])
        })
    }

    /// log(sum(exp(x))), which does not overflow where the result does not.
    #[must_use]
    #[track_caller]
    pub fn logsumexp(&self, axes: impl Into<Axes>) -> Tensor {
        let axes = axes.into();
        Tensor::build("logsumexp", &[self], |s| {
            let x = s.args[0];
            let dtype = s.ty(x).dtype;
            let kept = keepdims(axes.clone());
            let greatest = reduce(s, Op::ReduceMax, x, &kept)?;
            // Infinities would meet in a difference; and the result does not depend on it.
            let greatest = s.plain(Op::StopGradient, &[greatest])?;
            let infinity = s.scalar(dtype, f64::INFINITY)?;
            let size = s.plain(Op::Abs, &[greatest])?;
            let finite = s.plain(Op::Lt, &[size, infinity])?;
            let zero = s.scalar(dtype, 0.0)?;
            let offset = s.plain(Op::Select, &[finite, greatest, zero])?;
            let shifted = s.plain(Op::Sub, &[x, offset])?;
            let powers = s.plain(Op::Exp, &[shifted])?;
            let sum = reduce(s, Op::ReduceSum, powers, &axes)?;
            let log = s.plain(Op::Log, &[sum])?;
            let shape = s.ty(log).shape;
            let offset = super::shape::reshape(s, offset, shape)?;
            s.plain(Op::Add, &[log, offset])
        })
    }

    /// Index (i32) of the greatest along an axis; the first among equals; NaN is greatest.
    #[must_use]
    #[track_caller]
    pub fn argmax(&self, axis: i64) -> Tensor {
        self.unary(Op::Argmax, Attrs::new().with("axis", axis))
    }

    /// Index (i32) of the smallest along an axis; the first among equals; NaN is smallest.
    #[must_use]
    #[track_caller]
    pub fn argmin(&self, axis: i64) -> Tensor {
        Tensor::build("argmin", &[self], |s| {
            let x = s.args[0];
            let dtype = s.ty(x).dtype;
            let turned = match dtype {
                DType::Bool => s.plain(Op::Not, &[x])?,
                // Negation would leave the least integer where it is; this turns all of them.
                d if d.is_int() => {
                    let top = match d {
                        DType::U8 => i64::from(u8::MAX),
                        DType::U32 => i64::from(u32::MAX),
                        _ => -1,
                    };
                    let top = s.scalar(d, Attr::Int(top))?;
                    s.plain(Op::Sub, &[top, x])?
                }
                _ => s.plain(Op::Neg, &[x])?,
            };
            s.op(Op::Argmax, &[turned], Attrs::new().with("axis", axis))
        })
    }
}
