//! Compiling and running what a graph holds.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use aether_codegen_cpu::AlignedBytes;
use aether_ir::tensor::ConcreteType;
use aether_ir::{Module, TensorType, ValueId};

use super::builder::Leaf;
use super::module::{Cut, cut};
use super::{Array, Graph, GraphError, Tensor};
use crate::{
    Arg, ArgData, Executable, Files, Options, Pool, RuntimeError, Session, default_threads,
};

/// Where to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor, with as many workers as it offers.
    #[default]
    Cpu,
}

/// A new value for a parameter, stored in its place at the end of a run.
#[derive(Clone, Debug)]
pub struct Update {
    /// The parameter.
    pub param: Tensor,
    /// What it becomes; of the parameter's type.
    pub value: Tensor,
}

/// Some values of a graph, compiled together, to be run many times.
pub struct Compiled {
    session: Session,
    leaves: Vec<Leaf>,
    /// How many of the results are given back; updates follow them.
    n_outputs: usize,
    /// For each update the leaf that takes the new value.
    updated: Vec<usize>,
}

/// The workers of everything that is compiled through this API: runs take turns.
fn workers() -> Result<Arc<Pool>, RuntimeError> {
    static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = POOL.get() {
        return Ok(pool.clone());
    }
    let pool = Arc::new(Pool::new(default_threads())?);
    Ok(POOL.get_or_init(|| pool).clone())
}

impl Graph {
    /// Compiles some values together. What they share is computed once.
    ///
    /// ```
    /// use aether_runtime::graph::{Array, Device, Graph};
    /// use aether_ir::DType;
    ///
    /// let g = Graph::new();
    /// let x = g.input("x", DType::F32, [3]);
    /// let mut square = g.compile(&[&(&x * &x)], Device::Cpu)?;
    /// for i in 0..3 {
    ///     let x = Array::new(&[i as f32; 3], [3])?;
    ///     let y = square.run(&[("x", &x)])?;
    ///     assert_eq!(y[0].to_vec::<f32>()?, [(i * i) as f32; 3]);
    /// }
    /// # Ok::<(), aether_runtime::graph::GraphError>(())
    /// ```
    ///
    /// # Errors
    /// When an expression does not fit together, or the module cannot be compiled.
    pub fn compile(&self, outputs: &[&Tensor], device: Device) -> Result<Compiled, GraphError> {
        self.compile_with(outputs, &[], device)
    }

    /// As [`Graph::compile`]; each run also stores new values of parameters, in place.
    ///
    /// All values, outputs and updates alike, are those before the updates.
    ///
    /// # Errors
    /// As [`Graph::compile`], and when an update does not fit its parameter.
    pub fn compile_with(
        &self,
        outputs: &[&Tensor],
        updates: &[Update],
        device: Device,
    ) -> Result<Compiled, GraphError> {
        let Device::Cpu = device;
        // In the order of the parameters, so that the plan finds each new value its own buffer.
        let mut updates: Vec<&Update> = updates.iter().collect();
        updates.sort_by_key(|u| self.own(&u.param).ok());
        let values = updates.iter().map(|u| &u.value);
        let returned: Vec<ValueId> =
            outputs.iter().copied().chain(values).map(|t| self.own(t)).collect::<Result<_, _>>()?;
        let mut updated: Vec<ValueId> = Vec::with_capacity(updates.len());
        for (update, value) in updates.iter().zip(&returned[outputs.len()..]) {
            let param = self.own(&update.param)?;
            let slot = update.param.slot()?;
            let (expected, found) = (slot.ty.to_type(), self.state().builder.ty(*value).clone());
            if expected != found {
                return Err(GraphError::ParamType { name: slot.name.clone(), expected, found });
            }
            if updated.contains(&param) {
                return Err(GraphError::UpdatedTwice(slot.name.clone()));
            }
            updated.push(param);
        }
        let Cut { module, leaves } = cut(&self.state(), &returned, &updated);
        let updated = updated.iter().filter_map(|p| leaves.get_index_of(p)).collect();
        let leaves = leaves.into_values().collect();
        let executable = Executable::compile(module, &Files::new(), &Options::default())?;
        let session = Session::with_pool(Arc::new(executable), workers()?)?;
        Ok(Compiled { session, leaves, n_outputs: outputs.len(), updated })
    }

    /// The value of one of this graph's tensors.
    pub(super) fn own(&self, tensor: &Tensor) -> Result<ValueId, GraphError> {
        if !tensor.graph.same(self) {
            return Err(GraphError::OtherGraph);
        }
        Ok(tensor.value()?)
    }
}

impl Tensor {
    /// Compiles and runs once. The value must depend on no input.
    ///
    /// # Errors
    /// When the expression does not fit together, or cannot be compiled or run.
    pub fn run(&self, device: Device) -> Result<Array, GraphError> {
        self.run_with(&[], device)
    }

    /// As [`Tensor::run`], with values for inputs.
    ///
    /// # Errors
    /// As [`Tensor::run`], and when the inputs do not fit.
    pub fn run_with(&self, inputs: &[(&str, &Array)], device: Device) -> Result<Array, GraphError> {
        let mut results = self.graph.compile(&[self], device)?.run(inputs)?;
        Ok(results.remove(0))
    }

    /// Compiles this value alone.
    ///
    /// # Errors
    /// As [`Graph::compile`].
    pub fn compile(&self, device: Device) -> Result<Compiled, GraphError> {
        self.graph.compile(&[self], device)
    }
}

impl Compiled {
    /// The module that runs, after the passes.
    pub fn module(&self) -> &Module {
        self.session.executable().module()
    }

    /// What was compiled: its plan, program, pass reports.
    pub fn executable(&self) -> &Arc<Executable> {
        self.session.executable()
    }

    /// Names of the inputs that a run needs, in the order in which they were made.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        input_names(&self.leaves)
    }

    /// Runs once: the values of the outputs, in order. Parameters are updated if all goes well;
    /// after an error in a step, updated parameters hold unspecified numbers.
    ///
    /// # Errors
    /// When the inputs do not fit, or a step fails.
    pub fn run(&mut self, inputs: &[(&str, &Array)]) -> Result<Vec<Array>, GraphError> {
        let Compiled { session, leaves, n_outputs, updated } = self;
        let executable = session.executable().clone();
        let program = &*executable;
        let given = given(leaves, program.params(), inputs)?;
        // Leaves are in the order of the graph, so runs that share parameters cannot wait for each
        // other in a circle.
        let mut params: Vec<Option<MutexGuard<'_, AlignedBytes>>> = leaves
            .iter()
            .map(|leaf| match leaf {
                Leaf::Param(slot) => Some(slot.lock()),
                Leaf::Data(_) | Leaf::Input(_) => None,
            })
            .collect();
        let mut args: Vec<Arg<'_>> = leaves
            .iter()
            .zip(&given)
            .zip(&mut params)
            .filter_map(|((leaf, given), bytes)| match (leaf, given, bytes) {
                (Leaf::Param(slot), _, Some(bytes)) => {
                    let data = ArgData::Write(bytes.as_mut_slice());
                    Some(Arg { shape: &slot.ty.shape, data })
                }
                (_, array, _) => array
                    .as_ref()
                    .map(|array| Arg { shape: array.shape(), data: ArgData::Read(array.bytes()) }),
            })
            .collect();
        session.run(&mut args).map_err(RuntimeError::from)?;
        drop(args);
        let bytes_of = |i: usize| match program.result_aliases()[i] {
            Some(leaf) => params[leaf].as_ref().map_or(&[][..], |bytes| bytes.as_slice()),
            None => session.result(i),
        };
        let mut outputs = Vec::with_capacity(*n_outputs);
        for (i, ty) in program.results().iter().take(*n_outputs).enumerate() {
            let ty = ConcreteType::new(ty.dtype, session.result_shape(i));
            let bytes = bytes_of(i);
            let len = ty.row_major_bytes().unwrap_or(usize::MAX);
            outputs.push(Array::from_bytes(ty, bytes.get(..len).unwrap_or(bytes))?);
        }
        // A new value that was not made in place is copied there. All are read before any is
        // written: one may lie in the buffer of another parameter.
        let moved: Vec<(usize, Vec<u8>)> = updated
            .iter()
            .enumerate()
            .map(|(k, &leaf)| (*n_outputs + k, leaf))
            .filter(|&(i, leaf)| program.result_aliases()[i] != Some(leaf))
            .map(|(i, leaf)| (leaf, bytes_of(i).to_vec()))
            .collect();
        for (leaf, bytes) in moved {
            if let Some(param) = &mut params[leaf] {
                let len = param.len();
                param.as_mut_slice().copy_from_slice(&bytes[..len]);
            }
        }
        Ok(outputs)
    }
}

/// For each leaf but parameters the array that a run reads.
fn given<'a>(
    leaves: &'a [Leaf],
    types: &[TensorType],
    inputs: &[(&str, &'a Array)],
) -> Result<Vec<Option<&'a Array>>, GraphError> {
    for (i, (name, _)) in inputs.iter().enumerate() {
        if !input_names(leaves).any(|n| n == *name) {
            let inputs = input_names(leaves).map(str::to_owned).collect();
            return Err(GraphError::UnknownInput { name: (*name).to_owned(), inputs });
        }
        if inputs[..i].iter().any(|(n, _)| n == name) {
            return Err(GraphError::InputTwice((*name).to_owned()));
        }
    }
    let mut given = Vec::with_capacity(leaves.len());
    for (leaf, ty) in leaves.iter().zip(types) {
        given.push(match leaf {
            Leaf::Param(_) => None,
            Leaf::Data(array) => Some(array),
            Leaf::Input(name) => {
                let array = inputs.iter().find(|(n, _)| *n == &**name).map(|(_, a)| *a);
                let array = array.ok_or_else(|| GraphError::MissingInput(name.clone()))?;
                let found = array.ty();
                if found.dtype != ty.dtype || found.rank() != ty.rank() {
                    let (name, expected) = (name.clone(), ty.clone());
                    return Err(GraphError::InputType { name, expected, found });
                }
                Some(array)
            }
        });
    }
    Ok(given)
}

fn input_names(leaves: &[Leaf]) -> impl Iterator<Item = &str> {
    leaves.iter().filter_map(|leaf| match leaf {
        Leaf::Input(name) => Some(&**name),
        Leaf::Data(_) | Leaf::Param(_) => None,
    })
}
