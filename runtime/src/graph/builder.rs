//! The graph: everything written down so far.

use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aether_ir::{
    Attrs, ConstData, DType, Dim, FuncBuilder, Module, Op, Shape, TensorType, ValueId,
};
use indexmap::IndexMap;

use super::param::ParamSlot;
use super::tensor::Node;
use super::{Array, ArrayError, Element, OpError, Tensor};

/// A computation in the making; clones are handles to the same one.
///
/// It can be shared between threads: each call that adds to it takes its turn.
#[derive(Clone)]
pub struct Graph(Arc<Shared>);

struct Shared {
    id: u64,
    state: Mutex<State>,
}

/// A parameter of the graph's function: where its value comes from.
#[derive(Clone)]
pub(super) enum Leaf {
    /// Data given when the tensor was made.
    Data(Array),
    /// Given for each run.
    Input(Arc<str>),
    /// Lives across runs.
    Param(Arc<ParamSlot>),
}

/// What a graph holds. All values stand in one function in the order in which they were written.
pub(super) struct State {
    pub builder: FuncBuilder,
    /// For each value the instruction that defines it; `None` for leaves.
    pub defs: Vec<Option<usize>>,
    pub leaves: IndexMap<ValueId, Leaf>,
    /// Symbols, constants and the functions that calls name.
    pub module: Module,
}

impl State {
    /// Adds an instruction.
    pub fn push(
        &mut self,
        op: Op,
        operands: &[ValueId],
        attrs: Attrs,
        declared: &[TensorType],
    ) -> Result<Vec<ValueId>, String> {
        let at = self.builder.func().body.len();
        let results =
            self.builder.op_multi(op, operands, attrs, declared).map_err(|e| e.message)?;
        self.defs.extend(results.iter().map(|_| Some(at)));
        Ok(results)
    }

    fn leaf(&mut self, name: &str, ty: TensorType, leaf: Leaf) -> ValueId {
        let id = self.builder.param(name, ty);
        self.defs.push(None);
        self.leaves.insert(id, leaf);
        id
    }

    /// The input or parameter of that name.
    fn named(&self, name: &str) -> Option<&Leaf> {
        self.leaves.values().find(|leaf| match leaf {
            Leaf::Data(_) => false,
            Leaf::Input(n) => &**n == name,
            Leaf::Param(slot) => &*slot.name == name,
        })
    }
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Graph {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let state = State {
            builder: FuncBuilder::new("main"),
            defs: Vec::new(),
            leaves: IndexMap::new(),
            module: Module::new("graph"),
        };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Graph(Arc::new(Shared { id, state: Mutex::new(state) }))
    }

    pub(super) fn id(&self) -> u64 {
        self.0.id
    }

    pub(super) fn same(&self, other: &Graph) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The state, for one addition or reading. A panic while it was held leaves whole entries, so
    /// it stays usable.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn value(&self, id: ValueId) -> Tensor {
        Tensor { graph: self.clone(), node: Node::Value(id) }
    }

    /// A tensor that remembers what was wrong.
    pub(super) fn fault(&self, error: Arc<OpError>) -> Tensor {
        Tensor { graph: self.clone(), node: Node::Fault(error) }
    }

    /// A tensor that remembers a new error.
    #[track_caller]
    pub(super) fn refuse(
        &self,
        op: &'static str,
        operands: Vec<TensorType>,
        message: impl Into<String>,
    ) -> Tensor {
        let location = Location::caller();
        self.fault(Arc::new(OpError { op, operands, message: message.into(), location }))
    }

    /// A tensor of f32 numbers, row-major.
    ///
    /// The data becomes an argument of the compiled function, so another tensor of the same shape
    /// compiles to the same code; [`Graph::constant`] is for data that passes may look into.
    #[track_caller]
    pub fn tensor(&self, values: Vec<f32>, shape: impl Into<Shape>) -> Tensor {
        self.tensor_of(values, shape)
    }

    /// A tensor of any element type, row-major.
    #[track_caller]
    pub fn tensor_of<T: Element>(&self, values: Vec<T>, shape: impl Into<Shape>) -> Tensor {
        match Array::new(&values, shape) {
            Ok(array) => self.array(&array),
            Err(e) => self.refuse_array("tensor", &e),
        }
    }

    /// A tensor of host data. The elements are shared, not copied.
    pub fn array(&self, array: &Array) -> Tensor {
        let mut state = self.state();
        let n = state.leaves.values().filter(|leaf| matches!(leaf, Leaf::Data(_))).count();
        let id = state.leaf(&format!("data.{n}"), array.ty(), Leaf::Data(array.clone()));
        drop(state);
        self.value(id)
    }

    /// A tensor of an `ndarray` array or view.
    #[track_caller]
    pub fn from_ndarray<T, S, D>(&self, array: &ndarray::ArrayBase<S, D>) -> Tensor
    where
        T: Element,
        S: ndarray::Data<Elem = T>,
        D: ndarray::Dimension,
    {
        match Array::from_ndarray(array) {
            Ok(array) => self.array(&array),
            Err(e) => self.refuse_array("from_ndarray", &e),
        }
    }

    #[track_caller]
    fn refuse_array(&self, op: &'static str, error: &ArrayError) -> Tensor {
        self.refuse(op, Vec::new(), error.to_string())
    }

    /// A constant of the module: folded, packed and laid out at compile time. It has no gradient.
    pub fn constant(&self, array: &Array) -> Tensor {
        let mut state = self.state();
        let name: Arc<str> = format!("c.{}", state.module.consts.len()).into();
        state.module.add_const(name.clone(), array.ty(), ConstData::Dense(array.bytes().into()));
        let at = state.builder.func().body.len();
        let id = state.builder.constant(name, array.ty());
        state.defs.push(Some(at));
        drop(state);
        self.value(id)
    }

    /// A dimension that is known only when the compiled function runs, between `min` and `max`.
    ///
    /// Memory is planned for `max`. Asking again for the same name gives the same dimension; the
    /// last range holds.
    pub fn symbol(&self, name: &str, min: u64, max: u64) -> Dim {
        self.state().module.declare_symbol(name, min, max);
        Dim::symbol(name)
    }

    /// A value that each run is given anew, by name.
    #[track_caller]
    pub fn input(&self, name: &str, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let ty = TensorType::with_shape(dtype, shape.into());
        if dtype.is_quantized() {
            let message = "inputs are plain numbers; use `quantize` on the tensor";
            return self.refuse("input", vec![ty], message);
        }
        let mut state = self.state();
        if state.named(name).is_some() {
            drop(state);
            return self.refuse("input", vec![ty], format!("the name `{name}` is taken"));
        }
        let id = state.leaf(name, ty, Leaf::Input(name.into()));
        drop(state);
        self.value(id)
    }

    /// A parameter: a value that lives across runs and that runs may update in place.
    ///
    /// It belongs to the graph: everything compiled from it sees the same bytes. See
    /// [`Graph::compile_with`] for updates, [`Tensor::get`] and [`Tensor::set`] for its value.
    #[track_caller]
    pub fn param(&self, name: &str, value: &Array) -> Tensor {
        let mut state = self.state();
        if state.named(name).is_some() {
            drop(state);
            let message = format!("the name `{name}` is taken");
            return self.refuse("param", vec![value.ty()], message);
        }
        let slot = match ParamSlot::new(name, value) {
            Ok(slot) => Leaf::Param(Arc::new(slot)),
            Err(e) => {
                drop(state);
                return self.refuse_array("param", &e);
            }
        };
        let id = state.leaf(name, value.ty(), slot);
        drop(state);
        self.value(id)
    }

    /// Every parameter by name, in the order in which they were made.
    pub fn params(&self) -> IndexMap<Arc<str>, Tensor> {
        let state = self.state();
        let params = state.leaves.iter().filter_map(|(&id, leaf)| match leaf {
            Leaf::Param(slot) => Some((slot.name.clone(), self.value(id))),
            _ => None,
        });
        params.collect()
    }
}

impl Default for Graph {
    fn default() -> Self {
        Graph::new()
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        let (values, leaves) = (state.builder.func().values.len(), state.leaves.len());
        write!(f, "Graph of {values} values, {leaves} of them leaves")
    }
}
