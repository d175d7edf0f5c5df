//! The library API: computations written as Rust expressions.
//!
//! A [`Graph`] collects what is written down; a [`Tensor`] is a cheap handle to one value of it.
//! Nothing is computed while expressions are written: each call appends an instruction of the
//! IR, with the type that the op table infers. [`Tensor::run`] cuts out what a value needs as an
//! [`ir::Module`](aether_ir::Module), which then takes the same road as any other module: passes,
//! memory plan, code generator. [`Tensor::to_text`] shows that module.
//!
//! - Tensors made from data ([`Graph::tensor`]) and inputs ([`Graph::input`]) become parameters of
//!   the function, as do the parameters of a model ([`Graph::param`]), which live across runs and
//!   are updated in place.
//! - An expression whose shapes or element types do not fit gives a tensor that remembers the
//!   error with the line that made it; the error comes out of `run`, `compile` or `backward`.
//! - [`Tensor::backward`] differentiates in the IR, so a gradient is a tensor like any other and
//!   can be differentiated again.

mod array;
mod builder;
mod compile;
mod error;
mod gradient;
mod module;
mod operators;
mod ops;
mod optim;
mod param;
mod safetensors;
mod shape;
mod tensor;

pub use array::{Array, ArrayError, Element};
pub use builder::Graph;
pub use compile::{Compiled, Device, Update};
pub use error::{GraphError, OpError};
pub use gradient::Gradients;
pub use operators::IntoOperand;
pub use ops::attention::{Attention, RopePairs};
pub use ops::conv::{Conv, Pool};
pub use ops::random::Rng;
pub use optim::{Adam, Optimizer, Schedule, Sgd};
pub use safetensors::{SafetensorsError, load_safetensors, save_safetensors};
pub use shape::{Axes, keepdims};
pub use tensor::{Tensor, TensorId};
