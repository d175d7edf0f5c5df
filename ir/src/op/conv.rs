//! Convolution: a kernel of weights slides over the spatial axes ([`Window`]).
//!
//! It is the cross-correlation that neural networks call convolution. Both gradients are
//! convolutions again, as XLA and JAX have them (Dumoulin and Visin 2016): with output y of
//! x [n, G·i, s] and w [G·o, i, k], stride t, padding (a, b), dilation d and lhs_dilation e,
//!
//! - that with respect to x takes g with lhs_dilation t, stride e, dilation d, padding
//!   ((k-1)·d - a, what makes the length s), and w flipped in space with the channels of each
//!   group exchanged: [G·i, o, k];
//! - that with respect to w takes x as [i, G·n, s] and g as the kernel [G·o, n, k'], with stride
//!   d, dilation t, lhs_dilation e and padding (a, what makes the length k), and gives
//!   [i, G·o, k].
//!
//! Meaning: f64 sums over f64 values, channel by channel, rounded once.

use super::InferCtx;
use super::window::{Positions, Window, offsets};
use crate::attr::Attrs;
use crate::dim::Dim;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor, reserve};
use crate::types::{Shape, TensorType};

type Types = Result<Vec<TensorType>, String>;

/// The number of groups, when it is positive.
fn groups(attrs: &Attrs) -> Result<u64, String> {
    let groups = attrs.int("groups", 1);
    u64::try_from(groups)
        .ok()
        .filter(|&g| g > 0)
        .ok_or_else(|| format!("groups = {groups} must be positive"))
}

/// x [n, c_in, spatial…] and w [c_out, c_in / groups, kernel…] to [n, c_out, spatial…].
pub fn infer_conv(ctx: &InferCtx) -> Types {
    let (x, w) = (ctx.operands[0], ctx.operands[1]);
    if !x.dtype.is_float() || !w.dtype.is_float() {
        return Err(format!("expected floating-point operands, found {x} and {w}"));
    }
    if x.rank() < 3 || x.rank() != w.rank() {
        return Err(format!(
            "expected [n, c_in, spatial…] and [c_out, c_in / groups, kernel…] of one rank from 3 \
             on, found {x} and {w}"
        ));
    }
    let groups = groups(ctx.attrs)?;
    let (xd, wd) = (&x.shape.0, &w.shape.0);
    if xd[1] != &wd[1] * &Dim::new(groups) {
        return Err(format!(
            "channels differ: {x} has {}, {w} takes {} for each of {groups} groups",
            xd[1], wd[1]
        ));
    }
    if wd[0].exact_div(&Dim::new(groups)).is_none() {
        return Err(format!("the {} output channels of {w} are not {groups} groups", wd[0]));
    }
    let kernel: Option<Vec<i64>> =
        wd[2..].iter().map(|d| d.as_const().and_then(|k| i64::try_from(k).ok())).collect();
    let kernel = kernel.ok_or_else(|| format!("the kernel of {w} needs numbers as lengths"))?;
    let windows = Window::of(ctx.attrs, &kernel)?;
    let mut dims = vec![xd[0].clone(), wd[0].clone()];
    for (window, length) in windows.iter().zip(&xd[2..]) {
        dims.push(window.count(length)?);
    }
    Ok(vec![TensorType::with_shape(x.dtype, Shape(dims))])
}

/// The convolution.
pub fn eval_conv(ctx: &EvalCtx) -> Evaluated {
    let (x, w, ty) = (ctx.operands[0], ctx.operands[1], &ctx.results[0]);
    let groups = groups(ctx.attrs).map_err(EvalError)? as usize;
    let ([n, c_in, plane @ ..], [c_out, c_group, kernel @ ..]) = (x.shape(), w.shape()) else {
        return Err(EvalError(format!("expected an image and a kernel, found {}", x.ty())));
    };
    let sizes: Vec<i64> = kernel.iter().map(|&k| k as i64).collect();
    let windows = Window::of(ctx.attrs, &sizes).map_err(EvalError)?;
    let (plane_size, kernel_size) =
        (plane.iter().product::<usize>(), kernel.iter().product::<usize>());
    let out_size: usize = ty.shape[2..].iter().product();
    let (values, weights) = (x.to_f64_vec()?, w.to_f64_vec()?);
    let numel = ty.numel().unwrap_or(usize::MAX);
    let mut out = reserve(numel).ok_or_else(|| EvalError(format!("no memory for {ty}")))?;
    out.resize(numel, 0.0);
    let mut positions = Positions::new(&ty.shape[2..]);
    let mut place = 0;
    while let Some(at) = positions.next() {
        let held = offsets(&windows, plane, at);
        for i in 0..*n {
            for o in 0..*c_out {
                let first = o / (c_out / groups) * c_group;
                let mut sum = 0.0;
                for c in 0..*c_group {
                    let image = (i * c_in + first + c) * plane_size;
                    let kernel = (o * c_group + c) * kernel_size;
                    for (from, by) in &held {
                        sum += values[image + from] * weights[kernel + by];
                    }
                }
                out[(i * c_out + o) * out_size + place] = sum;
            }
        }
        place += 1;
    }
    Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &out)?])
}
