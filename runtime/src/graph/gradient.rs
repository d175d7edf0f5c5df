//! Gradients: reverse-mode differentiation of the graph, in the graph.

use std::collections::HashMap;
use std::ops::Index;
use std::panic::Location;
use std::sync::Arc;

use aether_ir::{FuncBuilder, ValueId};
use aether_passes::autodiff;

use super::builder::State;
use super::tensor::Node;
use super::{GraphError, OpError, Tensor, TensorId};

/// Gradients of one scalar, by the tensors that they belong to.
///
/// Each is a tensor of the same graph: it can be run, compiled with others, and differentiated.
#[derive(Clone, Debug)]
pub struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// The gradient with respect to a tensor; `None` for one that was not asked about.
    pub fn get(&self, id: &TensorId) -> Option<&Tensor> {
        self.0.get(id)
    }

    /// The gradients in the order of the graph.
    pub fn sorted(&self) -> impl Iterator<Item = (&TensorId, &Tensor)> {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by_key(|(id, _)| **id);
        all.into_iter()
    }

    /// Each gradient replaced by what `f` makes of it.
    #[must_use]
    pub fn map(&self, mut f: impl FnMut(&Tensor) -> Tensor) -> Gradients {
        Gradients(self.sorted().map(|(&id, g)| (id, f(g))).collect())
    }

    /// Number of gradients.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Index<&TensorId> for Gradients {
    type Output = Tensor;

    /// The gradient with respect to a tensor.
    ///
    /// # Panics
    /// When it is not among them; [`Gradients::get`] asks.
    fn index(&self, id: &TensorId) -> &Tensor {
        match self.0.get(id) {
            Some(gradient) => gradient,
            None => panic!(
                "no gradient with respect to {id:?}: `backward` gives those of the floating-point \
                 tensors made from data, inputs and parameters that the value depends on, \
                 `backward_to` those of other tensors"
            ),
        }
    }
}

impl Tensor {
    /// The gradients of this scalar with respect to everything it is computed from: the
    /// floating-point tensors made from data, inputs and parameters.
    ///
    /// # Errors
    /// When the expression does not fit together, the value is no scalar, or an op on the way has
    /// no gradient; the error names the line of this call.
    #[track_caller]
    pub fn backward(&self) -> Result<Gradients, GraphError> {
        let id = self.value()?;
        let wrt = leaves(&self.graph.state(), id);
        self.differentiate(id, &wrt)
    }

    /// As [`Tensor::backward`], with respect to the given tensors, whether data or computed. Those
    /// that the value does not depend on get zeros.
    ///
    /// # Errors
    /// As [`Tensor::backward`], and when one of the tensors is no float or of another graph.
    #[track_caller]
    pub fn backward_to(&self, wrt: &[&Tensor]) -> Result<Gradients, GraphError> {
        let id = self.value()?;
        let wrt: Vec<ValueId> = wrt.iter().map(|t| self.graph.own(t)).collect::<Result<_, _>>()?;
        self.differentiate(id, &wrt)
    }

    #[track_caller]
    fn differentiate(&self, output: ValueId, wrt: &[ValueId]) -> Result<Gradients, GraphError> {
        let location = Location::caller();
        let mut state = self.graph.state();
        let operands = vec![state.builder.ty(output).clone()];
        let mut func = state.builder.func().clone();
        let gradients =
            autodiff::append(&mut state.module, &mut func, output, wrt).map_err(|e| {
                let message = e.to_string();
                Arc::new(OpError { op: "backward", operands, message, location })
            })?;
        state.defs = func.definitions();
        state.builder = FuncBuilder::resume(func);
        drop(state);
        let tensor = |id| Tensor { graph: self.graph.clone(), node: Node::Value(id) };
        let pairs = wrt.iter().zip(gradients);
        let named = pairs.map(|(&of, g)| (TensorId::new(&self.graph, of), tensor(g)));
        Ok(Gradients(named.collect()))
    }
}

/// The floating-point leaves that a value depends on, in the order of the graph.
fn leaves(state: &State, value: ValueId) -> Vec<ValueId> {
    let needed = super::module::needed(state, &[value]);
    let leaves = state.leaves.keys().copied();
    leaves.filter(|v| needed.values[v.index()] && state.builder.ty(*v).dtype.is_float()).collect()
}
