//! Elementwise ops: one result element from one element of each operand.
//!
//! Meanings: floats are computed in f64 with `libm`, so that results are the same on every
//! machine, and rounded once; integers are computed in i64 and wrap to their width.

use ndarray::ArrayD;

use super::InferCtx;
use crate::dtype::DType;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor};
use crate::types::{Shape, TensorType};

type Types = Result<Vec<TensorType>, String>;

fn plain(ty: &TensorType, what: &str) -> Result<(), String> {
    if ty.dtype.is_quantized() {
        return Err(format!("{what} is quantised ({ty}); `cast` it first"));
    }
    Ok(())
}

/// Same type out as in, any number type.
pub fn infer_unary(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    plain(x, "the operand")?;
    if x.dtype == DType::Bool {
        return Err(format!("expected a number type, found {x}"));
    }
    Ok(vec![x.clone()])
}

/// Same type out as in, floats only.
pub fn infer_unary_float(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if !x.dtype.is_float() {
        return Err(format!("expected a floating-point operand, found {x}"));
    }
    Ok(vec![x.clone()])
}

/// `bool` to `bool`.
pub fn infer_not(ctx: &InferCtx) -> Types {
    let x = ctx.operands[0];
    if x.dtype != DType::Bool {
        return Err(format!("expected a bool operand, found {x}"));
    }
    Ok(vec![x.clone()])
}

/// The broadcast of two shapes, with both in the message.
pub fn broadcast(a: &TensorType, b: &TensorType) -> Result<Shape, String> {
    a.shape.broadcast(&b.shape).ok_or_else(|| format!("shapes of {a} and {b} do not broadcast"))
}

fn same_dtype(a: &TensorType, b: &TensorType) -> Result<(), String> {
    plain(a, "the left operand")?;
    plain(b, "the right operand")?;
    if a.dtype != b.dtype {
        return Err(format!("element types differ: {a} and {b}"));
    }
    Ok(())
}

/// Broadcast of two number types.
pub fn infer_binary(ctx: &InferCtx) -> Types {
    let (a, b) = (ctx.operands[0], ctx.operands[1]);
    same_dtype(a, b)?;
    if a.dtype == DType::Bool {
        return Err(format!("expected number operands, found {a}"));
    }
    Ok(vec![TensorType::with_shape(a.dtype, broadcast(a, b)?)])
}

/// Broadcast of two floats.
pub fn infer_binary_float(ctx: &InferCtx) -> Types {
    if !ctx.operands[0].dtype.is_float() {
        return Err(format!("expected floating-point operands, found {}", ctx.operands[0]));
    }
    infer_binary(ctx)
}

/// Broadcast to `bool`.
pub fn infer_compare(ctx: &InferCtx) -> Types {
    let (a, b) = (ctx.operands[0], ctx.operands[1]);
    same_dtype(a, b)?;
    Ok(vec![TensorType::with_shape(DType::Bool, broadcast(a, b)?)])
}

/// Broadcast of two `bool`s.
pub fn infer_logical(ctx: &InferCtx) -> Types {
    let (a, b) = (ctx.operands[0], ctx.operands[1]);
    for x in [a, b] {
        if x.dtype != DType::Bool {
            return Err(format!("expected bool operands, found {x}"));
        }
    }
    Ok(vec![TensorType::with_shape(DType::Bool, broadcast(a, b)?)])
}

/// Condition and two branches of one type, all broadcast.
pub fn infer_select(ctx: &InferCtx) -> Types {
    let (c, a, b) = (ctx.operands[0], ctx.operands[1], ctx.operands[2]);
    if c.dtype != DType::Bool {
        return Err(format!("expected a bool condition, found {c}"));
    }
    same_dtype(a, b)?;
    let branches = TensorType::with_shape(a.dtype, broadcast(a, b)?);
    Ok(vec![TensorType::with_shape(a.dtype, broadcast(c, &branches)?)])
}

/// The operand's shape with the declared element type.
pub fn infer_cast(ctx: &InferCtx) -> Types {
    let (x, target) = (ctx.operands[0], ctx.target()?);
    if target.dtype.is_quantized() {
        return Err(format!("cannot cast to the quantised type {}", target.dtype));
    }
    Ok(vec![TensorType::with_shape(target.dtype, x.shape.clone())])
}

fn map_float(ctx: &EvalCtx, f: impl Fn(f64) -> f64) -> Evaluated {
    let x = ctx.operands[0];
    let mut values = x.to_f64_vec()?;
    values.iter_mut().for_each(|v| *v = f(*v));
    Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &values)?])
}

fn map(ctx: &EvalCtx, float: impl Fn(f64) -> f64, int: impl Fn(i64) -> i64) -> Evaluated {
    let x = ctx.operands[0];
    if x.dtype().is_float() {
        return map_float(ctx, float);
    }
    let mut values = x.to_i64_vec()?;
    values.iter_mut().for_each(|v| *v = int(*v));
    Ok(vec![Tensor::from_i64(x.dtype(), x.shape(), &values)?])
}

/// `f` of every pair, both broadcast to the shape of the first result.
fn pairs<A: Copy, B: Clone + Default>(
    ctx: &EvalCtx,
    read: impl Fn(&Tensor) -> Result<ArrayD<A>, EvalError>,
    f: impl Fn(A, A) -> B,
) -> Result<Vec<B>, EvalError> {
    let (a, b) = (read(ctx.operands[0])?, read(ctx.operands[1])?);
    let shape = ctx.results[0].shape.as_slice();
    let (a, b) = (a.broadcast(shape), b.broadcast(shape));
    let (Some(a), Some(b)) = (a, b) else {
        return Err(EvalError(format!("the operands do not broadcast to {}", ctx.results[0])));
    };
    let numel = a.len();
    let mut out = crate::tensor::reserve(numel)
        .ok_or_else(|| EvalError(format!("no memory for {numel} elements")))?;
    // Row-major, whatever order would suit the strides of the broadcasts (`ndarray::Zip` follows
    // those).
    out.extend(a.iter().zip(b.iter()).map(|(x, y)| f(*x, *y)));
    Ok(out)
}

fn zip_float(ctx: &EvalCtx, f: impl Fn(f64, f64) -> f64) -> Evaluated {
    let values = pairs(ctx, Tensor::to_array_f64, f)?;
    let ty = &ctx.results[0];
    Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &values)?])
}

fn zip(ctx: &EvalCtx, float: impl Fn(f64, f64) -> f64, int: impl Fn(i64, i64) -> i64) -> Evaluated {
    if ctx.operands[0].dtype().is_float() {
        return zip_float(ctx, float);
    }
    let values = pairs(ctx, Tensor::to_array_i64, int)?;
    let ty = &ctx.results[0];
    Ok(vec![Tensor::from_i64(ty.dtype, &ty.shape, &values)?])
}

fn compare(
    ctx: &EvalCtx,
    float: impl Fn(f64, f64) -> bool,
    int: impl Fn(i64, i64) -> bool,
) -> Evaluated {
    let values = if ctx.operands[0].dtype().is_float() {
        pairs(ctx, Tensor::to_array_f64, |a, b| i64::from(float(a, b)))?
    } else {
        pairs(ctx, Tensor::to_array_i64, |a, b| i64::from(int(a, b)))?
    };
    Ok(vec![Tensor::from_i64(DType::Bool, &ctx.results[0].shape, &values)?])
}

/// The greater of two; NaN wins.
pub fn max(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// The smaller of two; NaN wins.
pub fn min(a: f64, b: f64) -> f64 {
    if a.is_nan() || a < b { a } else { b }
}

/// 1 / (1 + exp(-x)), exact at both ends.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + libm::exp(-x))
    } else {
        let e = libm::exp(x);
        e / (1.0 + e)
    }
}

/// x * Phi(x).
pub fn gelu(x: f64) -> f64 {
    if x == f64::NEG_INFINITY {
        return -0.0;
    }
    0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), written as x times a sigmoid so that nothing
/// cancels on the negative side.
pub fn gelu_tanh(x: f64) -> f64 {
    if x == f64::NEG_INFINITY {
        return -0.0;
    }
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    x * sigmoid(2.0 * inner)
}

/// x * sigmoid(x).
pub fn silu(x: f64) -> f64 {
    if x == f64::NEG_INFINITY { -0.0 } else { x * sigmoid(x) }
}

/// The activation of that name, as in the `act` attribute.
pub fn activation(name: &str) -> Option<fn(f64) -> f64> {
    match name {
        "relu" => Some(|x| max(x, 0.0)),
        "sigmoid" => Some(sigmoid),
        "tanh" => Some(libm::tanh),
        "silu" => Some(silu),
        "gelu" => Some(gelu),
        "gelu_tanh" => Some(gelu_tanh),
        _ => None,
    }
}

fn sign(x: f64) -> f64 {
    if x == 0.0 || x.is_nan() { x } else { x.signum() }
}

/// -x.
pub fn eval_neg(ctx: &EvalCtx) -> Evaluated {
    map(ctx, |x| -x, i64::wrapping_neg)
}

/// |x|.
pub fn eval_abs(ctx: &EvalCtx) -> Evaluated {
    map(ctx, f64::abs, i64::wrapping_abs)
}

/// -1, 0 or 1; zeros keep their sign.
pub fn eval_sign(ctx: &EvalCtx) -> Evaluated {
    map(ctx, sign, i64::signum)
}

/// max(x, 0); NaN stays.
pub fn eval_relu(ctx: &EvalCtx) -> Evaluated {
    map(ctx, |x| max(x, 0.0), |x| x.max(0))
}

/// Defines the meanings of unary float ops.
macro_rules! unary_float {
    ($($(#[$doc:meta])* $name:ident = $f:expr;)*) => {
        $($(#[$doc])* pub fn $name(ctx: &EvalCtx) -> Evaluated {
            map_float(ctx, $f)
        })*
    };
}

unary_float! {
    /// e to the power of x.
    eval_exp = libm::exp;
    /// Natural logarithm.
    eval_log = libm::log;
    /// Square root.
    eval_sqrt = f64::sqrt;
    /// One over the square root.
    eval_rsqrt = |x| 1.0 / x.sqrt();
    /// Sine of radians.
    eval_sin = libm::sin;
    /// Cosine of radians.
    eval_cos = libm::cos;
    /// Hyperbolic tangent.
    eval_tanh = libm::tanh;
    /// 1 / (1 + exp(-x)).
    eval_sigmoid = sigmoid;
    /// x * Phi(x).
    eval_gelu = gelu;
    /// The tanh approximation of gelu.
    eval_gelu_tanh = gelu_tanh;
    /// x * sigmoid(x).
    eval_silu = silu;
    /// The error function.
    eval_erf = libm::erf;
    /// Rounds down.
    eval_floor = f64::floor;
    /// Rounds up.
    eval_ceil = f64::ceil;
    /// Rounds to nearest, ties to even.
    eval_round = f64::round_ties_even;
}

/// Logical not.
pub fn eval_not(ctx: &EvalCtx) -> Evaluated {
    map(ctx, |x| x, |x| 1 - x)
}

/// Sum.
pub fn eval_add(ctx: &EvalCtx) -> Evaluated {
    zip(ctx, |a, b| a + b, i64::wrapping_add)
}

/// Difference.
pub fn eval_sub(ctx: &EvalCtx) -> Evaluated {
    zip(ctx, |a, b| a - b, i64::wrapping_sub)
}

/// Product.
pub fn eval_mul(ctx: &EvalCtx) -> Evaluated {
    zip(ctx, |a, b| a * b, i64::wrapping_mul)
}

/// Quotient. An integer zero divisor is an error if any element pair meets it.
pub fn eval_div(ctx: &EvalCtx) -> Evaluated {
    let met_zero = std::cell::Cell::new(false);
    let result = zip(
        ctx,
        |a, b| a / b,
        |a, b| {
            met_zero.set(met_zero.get() || b == 0);
            if b == 0 { 0 } else { a.wrapping_div(b) }
        },
    )?;
    if met_zero.get() {
        return Err(EvalError("integer division by zero".to_owned()));
    }
    Ok(result)
}

/// Power.
pub fn eval_pow(ctx: &EvalCtx) -> Evaluated {
    zip_float(ctx, libm::pow)
}

/// Greater of two.
pub fn eval_max(ctx: &EvalCtx) -> Evaluated {
    zip(ctx, max, i64::max)
}

/// Smaller of two.
pub fn eval_min(ctx: &EvalCtx) -> Evaluated {
    zip(ctx, min, i64::min)
}

/// Equal; NaN equals nothing.
pub fn eval_eq(ctx: &EvalCtx) -> Evaluated {
    compare(ctx, |a, b| a == b, |a, b| a == b)
}

/// Not equal.
pub fn eval_ne(ctx: &EvalCtx) -> Evaluated {
    compare(ctx, |a, b| a != b, |a, b| a != b)
}

/// Less.
pub fn eval_lt(ctx: &EvalCtx) -> Evaluated {
    compare(ctx, |a, b| a < b, |a, b| a < b)
}

/// Less or equal.
pub fn eval_le(ctx: &EvalCtx) -> Evaluated {
    compare(ctx, |a, b| a <= b, |a, b| a <= b)
}

/// Greater.
pub fn eval_gt(ctx: &EvalCtx) -> Evaluated {
    compare(ctx, |a, b| a > b, |a, b| a > b)
}

/// Greater or equal.
pub fn eval_ge(ctx: &EvalCtx) -> Evaluated {
    compare(ctx, |a, b| a >= b, |a, b| a >= b)
}

/// Logical and.
pub fn eval_and(ctx: &EvalCtx) -> Evaluated {
    zip(ctx, |a, _| a, |a, b| a & b)
}

/// Logical or.
pub fn eval_or(ctx: &EvalCtx) -> Evaluated {
    zip(ctx, |a, _| a, |a, b| a | b)
}

/// The second operand where the first holds, else the third, bit for bit.
pub fn eval_select(ctx: &EvalCtx) -> Evaluated {
    let ty = &ctx.results[0];
    let condition = ctx.operands[0].to_array_i64()?;
    let condition = condition.broadcast(ty.shape.as_slice());
    let condition =
        condition.ok_or_else(|| EvalError(format!("the condition does not broadcast to {ty}")))?;
    let size = ty.dtype.block_bytes();
    let branch = |x: &Tensor| super::shape::broadcast_to(x, ty);
    let (a, b) = (branch(ctx.operands[1])?, branch(ctx.operands[2])?);
    let mut bytes = crate::tensor::reserve(a.bytes().len())
        .ok_or_else(|| EvalError(format!("no memory for {ty}")))?;
    let elements = a.bytes().chunks_exact(size).zip(b.bytes().chunks_exact(size));
    for (c, (a, b)) in condition.iter().zip(elements) {
        bytes.extend_from_slice(if *c != 0 { a } else { b });
    }
    Ok(vec![Tensor::new(ty.clone(), bytes)?])
}

/// To another element type; integers wrap to narrower ones.
pub fn eval_cast(ctx: &EvalCtx) -> Evaluated {
    let (x, to) = (ctx.operands[0], ctx.results[0].dtype);
    if x.dtype() == to {
        return Ok(vec![x.with_layout(ctx.results[0].layout)]);
    }
    let result = if x.dtype().is_float() || x.dtype().is_quantized() {
        Tensor::from_f64(to, x.shape(), &x.to_f64_vec()?)?
    } else {
        Tensor::from_i64(to, x.shape(), &x.to_i64_vec()?)?
    };
    Ok(vec![result])
}
