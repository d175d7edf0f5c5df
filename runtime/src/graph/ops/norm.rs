//! Softmax and normalisation.

use aether_ir::{Attrs, Dim, Op, Shape};

use super::reduce::reduce;
use super::shape::reshape;
use crate::graph::{Tensor, keepdims};

impl Tensor {
    /// exp(x) over its sum, along the last axis.
    #[must_use]
    #[track_caller]
    pub fn softmax(&self) -> Tensor {
        self.softmax_along(-1)
    }

    /// exp(x) over its sum, along an axis.
    #[must_use]
    #[track_caller]
    pub fn softmax_along(&self, axis: i64) -> Tensor {
        self.unary(Op::Softmax, Attrs::new().with("axis", axis))
    }

    /// The logarithm of [`Tensor::softmax`].
    #[must_use]
    #[track_caller]
    pub fn log_softmax(&self) -> Tensor {
        self.log_softmax_along(-1)
    }

    /// The logarithm of [`Tensor::softmax_along`].
    #[must_use]
    #[track_caller]
    pub fn log_softmax_along(&self, axis: i64) -> Tensor {
        self.unary(Op::LogSoftmax, Attrs::new().with("axis", axis))
    }

    /// (x - mean) / sqrt(variance + eps) · weight + bias over the last axis (Ba et al. 2016);
    /// weight and bias are vectors.
    #[must_use]
    #[track_caller]
    pub fn layer_norm(&self, weight: &Tensor, bias: &Tensor, eps: f64) -> Tensor {
        Tensor::build("layer_norm", &[self, weight, bias], |s| {
            let operands = s.args.clone();
            s.op(Op::LayerNorm, &operands, Attrs::new().with("eps", eps))
        })
    }

    /// x / sqrt(mean(x²) + eps) · weight over the last axis (Zhang and Sennrich 2019); the weight
    /// is a vector.
    #[must_use]
    #[track_caller]
    pub fn rms_norm(&self, weight: &Tensor, eps: f64) -> Tensor {
        Tensor::build("rms_norm", &[self, weight], |s| {
            let operands = s.args.clone();
            s.op(Op::RmsNorm, &operands, Attrs::new().with("eps", eps))
        })
    }

    /// Group normalisation (Wu and He 2018) of x [n, channels, …]: the channels fall into
    /// `groups`, each normalised on its own; weight and bias have one number for each channel.
    #[must_use]
    #[track_caller]
    pub fn group_norm(&self, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Tensor {
        Tensor::build("group_norm", &[self, weight, bias], |s| {
            let (x, weight, bias) = (s.args[0], s.args[1], s.args[2]);
            let ty = s.ty(x);
            let [n, channels, rest @ ..] = ty.shape.0.as_slice() else {
                return Err(format!("expected [n, channels, …], found {ty}"));
            };
            let size = channels.exact_div(&Dim::from(groups)).ok_or_else(|| {
                format!("{channels} channels do not fall into {groups} groups of one size")
            })?;
            for w in [weight, bias] {
                if s.ty(w).shape != Shape(vec![channels.clone()]) {
                    return Err(format!("expected one number for each of {channels} channels"));
                }
            }
            let row = rest.iter().fold(size, |acc, d| &acc * d);
            let grouped = reshape(s, x, Shape(vec![n.clone(), Dim::from(groups), row]))?;
            let mean = reduce(s, Op::ReduceMean, grouped, &keepdims(-1))?;
            let distance = s.plain(Op::Sub, &[grouped, mean])?;
            let square = s.plain(Op::Mul, &[distance, distance])?;
            let variance = reduce(s, Op::ReduceMean, square, &keepdims(-1))?;
            let eps = s.scalar(ty.dtype, eps)?;
            let sum = s.plain(Op::Add, &[variance, eps])?;
            let scale = s.plain(Op::Rsqrt, &[sum])?;
            let normal = s.plain(Op::Mul, &[distance, scale])?;
            let normal = reshape(s, normal, ty.shape.clone())?;
            let mut per_channel = vec![channels.clone()];
            per_channel.extend(rest.iter().map(|_| Dim::new(1)));
            let weight = reshape(s, weight, Shape(per_channel.clone()))?;
            let bias = reshape(s, bias, Shape(per_channel))?;
            let scaled = s.plain(Op::Mul, &[normal, weight])?;
            s.plain(Op::Add, &[scaled, bias])
        })
    }
}
