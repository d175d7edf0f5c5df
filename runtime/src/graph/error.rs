//! What can be wrong with an expression, and with running it.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use aether_ir::TensorType;

use super::ArrayError;
use crate::RuntimeError;

/// An expression whose operands do not fit, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpError {
    /// The operation, by its name in the API.
    pub op: &'static str,
    /// Types of the operands, in order.
    pub operands: Vec<TensorType>,
    /// What was expected.
    pub message: String,
    /// The line of the call.
    pub location: &'static Location<'static>,
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}`", self.location, self.op)?;
        for (i, ty) in self.operands.iter().enumerate() {
            let before = match i {
                0 => " of ",
                _ if i + 1 == self.operands.len() => " and ",
                _ => ", ",
            };
            write!(f, "{before}{ty}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for OpError {}

/// A tensor cannot be computed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GraphError {
    /// An expression that the value depends on has operands that do not fit; the first one.
    #[error(transparent)]
    Op(#[from] Arc<OpError>),
    /// Tensors of two graphs met outside of an expression.
    #[error("the tensors belong to different graphs")]
    OtherGraph,
    /// An input has no value for this run.
    #[error("no value was given for the input `{0}`")]
    MissingInput(Arc<str>),
    /// A value was given under a name that no input has.
    #[error("there is no input `{name}`; the inputs are: {}", inputs.join(", "))]
    UnknownInput { name: String, inputs: Vec<String> },
    /// A value was given twice.
    #[error("the input `{0}` was given twice")]
    InputTwice(String),
    /// An input's value has another element type.
    #[error("the input `{name}` takes {expected}, found {found}")]
    InputType { name: Arc<str>, expected: TensorType, found: TensorType },
    /// A value is asked of a tensor, or given to one, that is no parameter.
    #[error("the tensor is no parameter; make it with `Graph::param`")]
    NoParam,
    /// A parameter is given a value of another type.
    #[error("the parameter `{name}` has the type {expected}, the value {found}")]
    ParamType { name: Arc<str>, expected: TensorType, found: TensorType },
    /// A parameter is trained without a gradient.
    #[error("there is no gradient with respect to the parameter `{0}`; name it in `backward_to`")]
    NoGradient(Arc<str>),
    /// A parameter has two new values in one run.
    #[error("the parameter `{0}` is updated twice")]
    UpdatedTwice(Arc<str>),
    /// Host data does not fit.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// The module cannot be compiled or run.
    #[error(transparent)]
    Runtime(#[from] Arc<RuntimeError>),
}

impl From<RuntimeError> for GraphError {
    fn from(e: RuntimeError) -> Self {
        GraphError::Runtime(Arc::new(e))
    }
}
