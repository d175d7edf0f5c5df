//! Reverse-mode differentiation, from IR to IR.
//!
//! A gradient is a function like any other: it can be printed, optimised, run and differentiated
//! again. For every op, [`table`] says how it is differentiated; the rules stand in one file for
//! each family of ops. Integers, `bool` and quantised values have no gradient.
//!
//! ```
//! use aether_ir::{parse_and_verify, print_module};
//! use aether_passes::autodiff;
//!
//! let mut module = parse_and_verify(
//!     "module @m {
//!        func @loss(%x: tensor<4x3xf32>, %w: tensor<3x2xf32>) -> tensor<f32> {
//!          %y = matmul %x, %w : tensor<4x2xf32>
//!          %z = tanh %y : tensor<4x2xf32>
//!          %l = reduce_sum %z {axes = [0, 1]} : tensor<f32>
//!          return %l
//!        }
//!      }",
//! )
//! .unwrap();
//! let name = autodiff::gradient(&mut module, "loss", &["w"])?;
//! assert_eq!(&*name, "loss.grad");
//! let text = print_module(&module);
//! let gradient = &text[text.find("  func @loss.grad").unwrap()..];
//! assert_eq!(
//!     gradient,
//!     "  func @loss.grad(%x: tensor<4x3xf32>, %w: tensor<3x2xf32>) -> (tensor<f32>, tensor<3x2xf32>) {
//!     %y = matmul %x, %w : tensor<4x2xf32>
//!     %z = tanh %y : tensor<4x2xf32>
//!     %l = reduce_sum %z {axes = [0, 1]} : tensor<f32>
//!     %0 = splat {value = 1.0} : tensor<f32>
//!     %1 = mul %z, %z : tensor<4x2xf32>
//!     %2 = sub %0, %1 : tensor<4x2xf32>
//!     %3 = transpose %x {perm = [1, 0]} : tensor<3x4xf32>
//!     %4 = matmul %3, %2 : tensor<3x2xf32>
//!     return %l, %4
//!   }
//! }
//! "
//! );
//! # Ok::<(), autodiff::AutodiffError>(())
//! ```
//!
//! # Where a function has no derivative
//!
//! The choices are JAX's, so that models behave as they do there (but for `abs` at 0, whose slope
//! there is 1):
//!
//! | op | at | gradient |
//! |---|---|---|
//! | `relu` | 0 | 0 |
//! | `abs` | 0 | 0 |
//! | `max`, `min` | equal operands | half to each |
//! | `reduce_max`, `reduce_min` | ties | split evenly among them |
//! | `sqrt`, `rsqrt`, `log` | 0 | infinite, as the limit is |
//! | `pow` | base 0 | 0 to the exponent |
//! | `sign`, `floor`, `ceil`, `round`, comparisons | everywhere | 0 |
//!
//! # Memory
//!
//! What the backward part reads of the forward part stays alive in between, and nothing else
//! does. `call @f … {checkpoint = true}` keeps only the call's operands: the gradient computes
//! the callee's values again, behind a call that no pass looks through.

pub(crate) mod calls;
pub(crate) mod emit;
pub(crate) mod pass;
pub(crate) mod reverse;
pub(crate) mod rules;
pub mod table;
pub(crate) mod vjp;

use std::sync::Arc;

use aether_ir::{BuildError, Func, Module, Op, Span, TensorType, ValueId};

use crate::util::nearest;
use calls::{Calls, install};
pub use pass::AutodiffPass;
use reverse::{Seed, differentiate};

/// A function cannot be differentiated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AutodiffError {
    #[error("there is no function @{func}{hint}")]
    UnknownFunc { func: Arc<str>, hint: String },
    #[error("@{func} has no parameter `{param}`{hint}")]
    UnknownParam { func: Arc<str>, param: String, hint: String },
    #[error("in @{func}: value {value} does not exist")]
    UnknownValue { func: Arc<str>, value: u32 },
    #[error("in @{func}: {ty} has no gradient: only floating-point values have")]
    NotFloat { func: Arc<str>, ty: TensorType },
    #[error(
        "in @{func}: expected a floating-point scalar to differentiate, found {ty}; reduce it \
         first, or use the vjp form"
    )]
    NotScalar { func: Arc<str>, ty: String },
    #[error("in @{func}, `{op}`{}: {message}", .value.as_ref().map(|v| format!(" of %{v}")).unwrap_or_default())]
    Refused {
        func: Arc<str>,
        op: Op,
        /// The name of its first result, if it has one.
        value: Option<Arc<str>>,
        /// Where the instruction stands in the text that the module was read from.
        span: Span,
        message: String,
    },
    #[error("calls are nested too deep at @{func}")]
    Depth { func: Arc<str> },
    /// A rule wrote what does not verify: a bug in it.
    #[error("a gradient rule wrote an instruction that does not fit: {0}")]
    Build(#[from] BuildError),
}

impl AutodiffError {
    fn unknown_func(module: &Module, func: &str) -> Self {
        let names = module.funcs.keys().map(|n| &**n);
        AutodiffError::UnknownFunc { func: func.into(), hint: hint(func, names) }
    }

    /// The function that it is about.
    pub fn func(&self) -> &Arc<str> {
        match self {
            AutodiffError::UnknownFunc { func, .. }
            | AutodiffError::UnknownParam { func, .. }
            | AutodiffError::UnknownValue { func, .. }
            | AutodiffError::NotFloat { func, .. }
            | AutodiffError::NotScalar { func, .. }
            | AutodiffError::Refused { func, .. }
            | AutodiffError::Depth { func } => func,
            AutodiffError::Build(e) => &e.func,
        }
    }
}

fn hint<'a>(name: &str, candidates: impl Iterator<Item = &'a str> + Clone) -> String {
    let list: Vec<&str> = candidates.clone().collect();
    match nearest(name, candidates) {
        Some(meant) => format!("; did you mean `{meant}`?"),
        None if list.is_empty() => String::new(),
        None => format!("; there are {}", list.join(", ")),
    }
}

/// Adds `@func.grad`, which returns what `@func` returns and then the gradients of its first
/// result, a scalar, with respect to the parameters named in `wrt`, in that order.
///
/// A parameter that the result does not depend on gets zeros. Returns the new function's name: a
/// number is added to it when another function has it already.
///
/// # Errors
/// When the function, a parameter or a scalar float result is missing, or an op on the way has no
/// gradient.
pub fn gradient(module: &mut Module, func: &str, wrt: &[&str]) -> Result<Arc<str>, AutodiffError> {
    gradient_of(module, func, 0, wrt)
}

/// As [`gradient`], of the result number `result`: of a gradient that `@func.grad` returns, for
/// instance.
///
/// # Errors
/// As [`gradient`].
pub fn gradient_of(
    module: &mut Module,
    func: &str,
    result: usize,
    wrt: &[&str],
) -> Result<Arc<str>, AutodiffError> {
    let primal = find(module, func)?;
    let wrt = params(&primal, wrt)?;
    let Some(&output) = primal.returns.get(result) else {
        let ty = format!("{} results", primal.returns.len());
        return Err(AutodiffError::NotScalar { func: primal.name, ty });
    };
    let mut func = primal.clone();
    let gradients = append(module, &mut func, output, &wrt)?;
    func.returns.extend(gradients);
    Ok(add(module, func, "grad"))
}

/// Adds `@func.vjp`: it takes the parameters of `@func` and one more for each of its floating-point
/// results, the gradient of some scalar with respect to that result, and returns what `@func`
/// returns and then the gradients of that scalar with respect to the parameters named in `wrt`.
///
/// # Errors
/// As [`gradient`], but for the shape of the results.
pub fn vjp(module: &mut Module, func: &str, wrt: &[&str]) -> Result<Arc<str>, AutodiffError> {
    let primal = find(module, func)?;
    let wrt = params(&primal, wrt)?;
    let is_float = |v: &ValueId| primal.ty(*v).dtype.is_float();
    let outputs: Vec<ValueId> = primal.returns.iter().copied().filter(is_float).collect();
    let mut calls = Calls::default();
    let joint = differentiate(module, &mut calls, primal.clone(), &outputs, Seed::Param, &wrt)?;
    let mut func = joint.func;
    let gradients = or_zeros(&mut func, &wrt, &joint.gradients);
    func.returns.extend(gradients);
    Ok(add(module, func, "vjp"))
}

/// Appends to `func` the gradients of its scalar value `output` with respect to values of it,
/// parameters or not, and returns the values that hold them, in the order of `wrt`.
///
/// The forward values are shared: values that are there keep their numbers and meaning. What
/// `func` calls is looked up in `module`, which gets the parts of callees; `func` itself need not
/// be in it. Values that `output` does not depend on get zeros.
///
/// # Errors
/// When a value does not exist, `output` is no scalar, something is no float, or an op on the way
/// has no gradient.
pub fn append(
    module: &mut Module,
    func: &mut Func,
    output: ValueId,
    wrt: &[ValueId],
) -> Result<Vec<ValueId>, AutodiffError> {
    for v in wrt.iter().chain([&output]) {
        let data = func.values.get(v.index());
        let data =
            data.ok_or(AutodiffError::UnknownValue { func: func.name.clone(), value: v.0 })?;
        if !data.ty.dtype.is_float() {
            return Err(AutodiffError::NotFloat { func: func.name.clone(), ty: data.ty.clone() });
        }
    }
    let ty = func.ty(output);
    if ty.rank() != 0 {
        return Err(AutodiffError::NotScalar { func: func.name.clone(), ty: ty.to_string() });
    }
    let mut calls = Calls::default();
    let joint = differentiate(module, &mut calls, func.clone(), &[output], Seed::One, wrt)?;
    *func = joint.func;
    Ok(or_zeros(func, wrt, &joint.gradients))
}

fn find(module: &Module, func: &str) -> Result<Func, AutodiffError> {
    let found = module.funcs.get(func).cloned();
    found.ok_or_else(|| AutodiffError::unknown_func(module, func))
}

/// The parameters of these names. A parameter without a name is named by its position.
fn params(func: &Func, names: &[&str]) -> Result<Vec<ValueId>, AutodiffError> {
    let name_of = |&p: &ValueId| func.values[p.index()].name.as_deref();
    let by_name = |name: &str| {
        let named = func.params.iter().find(|p| name_of(p) == Some(name));
        let position =
            || func.params.get(name.parse::<usize>().ok()?).filter(|p| name_of(p).is_none());
        let found = named.or_else(position).copied();
        found.ok_or_else(|| AutodiffError::UnknownParam {
            func: func.name.clone(),
            param: name.to_owned(),
            hint: hint(name, func.params.iter().filter_map(name_of)),
        })
    };
    let params: Vec<ValueId> = names.iter().map(|name| by_name(name)).collect::<Result<_, _>>()?;
    match params.iter().map(|&p| func.ty(p)).find(|ty| !ty.dtype.is_float()) {
        Some(ty) => Err(AutodiffError::NotFloat { func: func.name.clone(), ty: ty.clone() }),
        None => Ok(params),
    }
}

/// The gradients, zeros where there is none.
fn or_zeros(func: &mut Func, wrt: &[ValueId], gradients: &[Option<ValueId>]) -> Vec<ValueId> {
    let e = emit::Emitter::new(std::mem::replace(func, Func::new("")));
    let pairs = wrt.iter().zip(gradients);
    let all = pairs.map(|(&v, g)| g.unwrap_or_else(|| e.splat(e.val(v).ty(), 0.0).id())).collect();
    *func = e.into_func();
    all
}

fn add(module: &mut Module, mut func: Func, suffix: &str) -> Arc<str> {
    func.result_types = func.returns.iter().map(|&v| func.ty(v).clone()).collect();
    let base = format!("{}.{suffix}", func.name);
    install(module, func, &base)
}
