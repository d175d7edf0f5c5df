//! The handle to one value of a graph.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use aether_ir::{Attr, Attrs, DType, Op, Shape, TensorType, ValueId};

use super::{Graph, GraphError, OpError};

/// One value of a [`Graph`]; cloning copies the handle, not the value.
#[derive(Clone)]
pub struct Tensor {
    pub(super) graph: Graph,
    pub(super) node: Node,
}

#[derive(Clone)]
pub(super) enum Node {
    Value(ValueId),
    /// The expression, or one that it depends on, does not fit.
    Fault(Arc<OpError>),
}

/// Identifies a value: equal for handles to the same value.
///
/// Every tensor that an error stands behind has one and the same identity within its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId {
    graph: u64,
    value: Option<ValueId>,
}

impl TensorId {
    pub(super) fn new(graph: &Graph, value: ValueId) -> Self {
        TensorId { graph: graph.id(), value: Some(value) }
    }
}

impl Tensor {
    /// The value's identity.
    pub fn id(&self) -> TensorId {
        let value = match &self.node {
            Node::Value(id) => Some(*id),
            Node::Fault(_) => None,
        };
        TensorId { graph: self.graph.id(), value }
    }

    /// The graph it belongs to.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The value within the graph's function, or what was wrong.
    pub(super) fn value(&self) -> Result<ValueId, Arc<OpError>> {
        match &self.node {
            Node::Value(id) => Ok(*id),
            Node::Fault(error) => Err(error.clone()),
        }
    }

    /// Its type.
    ///
    /// # Errors
    /// When the expression does not fit together.
    pub fn ty(&self) -> Result<TensorType, GraphError> {
        let id = self.value()?;
        Ok(self.graph.state().builder.ty(id).clone())
    }

    /// Its shape.
    ///
    /// # Errors
    /// When the expression does not fit together.
    pub fn shape(&self) -> Result<Shape, GraphError> {
        Ok(self.ty()?.shape)
    }

    /// Its element type.
    ///
    /// # Errors
    /// When the expression does not fit together.
    pub fn dtype(&self) -> Result<DType, GraphError> {
        Ok(self.ty()?.dtype)
    }

    /// Names the value in the text of the module. An input or parameter keeps its name.
    #[must_use]
    pub fn named(self, name: &str) -> Tensor {
        if let Node::Value(id) = self.node {
            let mut state = self.graph.state();
            if state.defs[id.index()].is_some() {
                state.builder.name(id, name);
            }
        }
        self
    }

    /// Builds an expression of several instructions. The first that does not fit ends it; the
    /// error names `op` and the line of the call.
    #[track_caller]
    pub(super) fn build(
        op: &'static str,
        operands: &[&Tensor],
        body: impl FnOnce(&mut Scope) -> Result<ValueId, String>,
    ) -> Tensor {
        let graph = operands[0].graph.clone();
        match Tensor::build_many(op, operands, |scope| Ok(vec![body(scope)?])) {
            Ok(ids) => graph.value(ids[0]),
            Err(error) => graph.fault(error),
        }
    }

    /// As [`Tensor::build`], for any number of results.
    #[track_caller]
    pub(super) fn build_many(
        op: &'static str,
        operands: &[&Tensor],
        body: impl FnOnce(&mut Scope) -> Result<Vec<ValueId>, String>,
    ) -> Result<Vec<ValueId>, Arc<OpError>> {
        let location = Location::caller();
        let graph = &operands[0].graph;
        let mut args = Vec::with_capacity(operands.len());
        for tensor in operands {
            if !tensor.graph.same(graph) {
                let message = "the tensors belong to different graphs".to_owned();
                let operands = operands.iter().filter_map(|t| t.ty().ok()).collect();
                return Err(Arc::new(OpError { op, operands, message, location }));
            }
            args.push(tensor.value()?);
        }
        let mut state = graph.state();
        let types: Vec<TensorType> = args.iter().map(|&id| state.builder.ty(id).clone()).collect();
        let mut scope = Scope::new(&mut state, args);
        body(&mut scope)
            .map_err(|message| Arc::new(OpError { op, operands: types, message, location }))
    }

    /// One instruction on one operand.
    #[track_caller]
    pub(super) fn unary(&self, op: Op, attrs: Attrs) -> Tensor {
        Tensor::build(op.name(), &[self], |s| s.op(op, &[s.args[0]], attrs))
    }
}

/// The graph while one expression is added to it.
pub(super) struct Scope<'a> {
    state: &'a mut super::builder::State,
    /// The operands of the expression.
    pub args: Vec<ValueId>,
}

impl<'a> Scope<'a> {
    pub fn new(state: &'a mut super::builder::State, args: Vec<ValueId>) -> Self {
        Scope { state, args }
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> TensorType {
        self.state.builder.ty(value).clone()
    }

    /// An instruction whose type follows from its operands.
    pub fn op(&mut self, op: Op, operands: &[ValueId], attrs: Attrs) -> Result<ValueId, String> {
        Ok(self.state.push(op, operands, attrs, &[])?[0])
    }

    /// An instruction without attributes.
    pub fn plain(&mut self, op: Op, operands: &[ValueId]) -> Result<ValueId, String> {
        self.op(op, operands, Attrs::new())
    }

    /// An instruction with several results.
    pub fn multi(
        &mut self,
        op: Op,
        operands: &[ValueId],
        attrs: Attrs,
    ) -> Result<Vec<ValueId>, String> {
        self.state.push(op, operands, attrs, &[])
    }

    /// An instruction with several results, some of them of written types.
    pub fn multi_to(
        &mut self,
        op: Op,
        operands: &[ValueId],
        attrs: Attrs,
        declared: &[TensorType],
    ) -> Result<Vec<ValueId>, String> {
        self.state.push(op, operands, attrs, declared)
    }

    /// An instruction whose result type is written.
    pub fn op_to(
        &mut self,
        op: Op,
        operands: &[ValueId],
        attrs: Attrs,
        ty: TensorType,
    ) -> Result<ValueId, String> {
        Ok(self.state.push(op, operands, attrs, &[ty])?[0])
    }

    /// A number as a scalar of that element type.
    pub fn scalar(&mut self, dtype: DType, value: impl Into<Attr>) -> Result<ValueId, String> {
        let attrs = Attrs::new().with("value", value);
        self.op_to(Op::Splat, &[], attrs, TensorType::scalar(dtype))
    }

    /// `axis` from the front, or what is wrong with it.
    pub fn axis(&self, value: ValueId, axis: i64) -> Result<usize, String> {
        let ty = self.state.builder.ty(value);
        ty.shape
            .axis(axis)
            .ok_or_else(|| format!("axis {axis} is out of range for rank {}", ty.rank()))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.node, self.ty()) {
            (Node::Value(id), Ok(ty)) => write!(f, "Tensor(%{}: {ty})", id.0),
            (_, Err(e)) => write!(f, "Tensor(error: {e})"),
            (Node::Fault(e), _) => write!(f, "Tensor(error: {e})"),
        }
    }
}
