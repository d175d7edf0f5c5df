//! Optimisers: from gradients to new values of parameters, as graphs.
//!
//! An optimiser adds to the graph what one step of training computes, and gives the list of
//! [`Update`]s that [`Graph::compile_with`](super::Graph::compile_with) takes. Its own state
//! (moments, the number of steps done) are parameters of the graph too, so that one compiled
//! step holds all of it and updates it in place.
//!
//! ```
//! use aether_runtime::graph::{Adam, Array, Device, Graph, Optimizer, Schedule};
//! use aether_ir::DType;
//!
//! let g = Graph::new();
//! let w = g.param("w", &Array::new(&[5f32, -3.0], [2])?);
//! let loss = (&w - 1.0).square().sum_all();
//! let params = [&w];
//! let gradients = loss.backward_to(&params)?;
//! let updates = Adam::new(Schedule::constant(0.1)).updates(&gradients, &params)?;
//! let mut step = g.compile_with(&[&loss], &updates, Device::Cpu)?;
//! for _ in 0..200 {
//!     step.run(&[])?;
//! }
//! assert!(w.get()?.to_vec::<f32>()?.iter().all(|v| (v - 1.0).abs() < 0.01));
//! # Ok::<(), aether_runtime::graph::GraphError>(())
//! ```

mod adam;
mod clip;
mod schedule;
mod sgd;

use std::sync::Arc;

use aether_ir::DType;

use super::param::ParamSlot;
use super::{Array, Gradients, GraphError, Tensor, Update};

pub use adam::Adam;
pub use schedule::Schedule;
pub use sgd::Sgd;

/// What turns gradients into new values.
pub trait Optimizer {
    /// The new values of `params`, and of the optimiser's own state, after one step down the
    /// gradients.
    ///
    /// Called once for a graph: the state that it adds is named after the optimiser and the
    /// parameters.
    ///
    /// # Errors
    /// When a tensor is no floating-point parameter or has no gradient, or the state is there
    /// already.
    fn updates(&self, gradients: &Gradients, params: &[&Tensor])
    -> Result<Vec<Update>, GraphError>;
}

/// A parameter that is trained, with its gradient.
struct Trained<'a> {
    param: &'a Tensor,
    gradient: &'a Tensor,
    slot: Arc<ParamSlot>,
}

impl<'a> Trained<'a> {
    fn of(gradients: &'a Gradients, param: &'a Tensor) -> Result<Self, GraphError> {
        let slot = param.slot()?;
        let gradient = gradients.get(&param.id());
        let gradient = gradient.ok_or_else(|| GraphError::NoGradient(slot.name.clone()))?;
        Ok(Trained { param, gradient, slot })
    }

    /// State of the parameter's type, zeros at first.
    fn state(&self, optimizer: &str, what: &str) -> Result<Tensor, GraphError> {
        let name = format!("{optimizer}.{what}.{}", self.slot.name);
        let zeros = Array::zeros(&self.slot.ty)?;
        let state = self.param.graph.param(&name, &zeros);
        state.value()?;
        Ok(state)
    }
}

/// The number of steps done, an i64 scalar, and its update.
fn counter(params: &[&Tensor], optimizer: &str) -> Result<Option<(Tensor, Update)>, GraphError> {
    let Some(first) = params.first() else { return Ok(None) };
    let count = first.graph.param(&format!("{optimizer}.step"), &Array::scalar(0i64));
    let done = count.cast(DType::F64);
    let next = Update { value: &count + 1i64, param: count };
    next.value.value()?;
    Ok(Some((done, next)))
}
