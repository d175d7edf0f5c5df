//! Random numbers from an explicit state.
//!
//! The state is a tensor, u32 [4]: equal states give equal numbers, on any machine, and nothing
//! is random that the graph does not show. Keep it in a parameter and store
//! [`Rng::state`] there to go on with other numbers in the next run.

use aether_ir::{Attrs, DType, Op, Shape, TensorType, ValueId};

use crate::graph::tensor::Scope;
use crate::graph::{Array, Graph, Tensor};

/// A source of random tensors; each draw takes the state further.
///
/// ```
/// use aether_runtime::graph::{Device, Graph, Rng, Update};
///
/// let g = Graph::new();
/// let state = g.param("rng", &Rng::seed(7));
/// let mut rng = Rng::new(&state);
/// let noise = rng.normal([2, 3]);
/// let next = Update { param: state, value: rng.state().clone() };
/// let mut draw = g.compile_with(&[&noise], &[next], Device::Cpu)?;
/// assert_ne!(draw.run(&[])?, draw.run(&[])?);
/// # Ok::<(), aether_runtime::graph::GraphError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rng {
    state: Tensor,
}

impl Rng {
    /// Goes on from a state, u32 [4].
    pub fn new(state: &Tensor) -> Rng {
        Rng { state: state.clone() }
    }

    /// The state that belongs to a seed.
    pub fn seed(seed: u64) -> Array {
        let words = [(seed >> 32) as u32, seed as u32, 0, 0];
        Array::new(&words, [4]).expect("four words for four places")
    }

    /// The state after all draws so far.
    pub fn state(&self) -> &Tensor {
        &self.state
    }

    #[track_caller]
    fn draw(
        &mut self,
        name: &'static str,
        body: impl FnOnce(&mut Scope, &mut ValueId) -> Result<ValueId, String>,
    ) -> Tensor {
        let graph = self.state.graph.clone();
        let drawn = Tensor::build_many(name, &[&self.state], |s| {
            let mut state = s.args[0];
            let value = body(s, &mut state)?;
            Ok(vec![value, state])
        });
        match drawn {
            Ok(ids) => {
                self.state = graph.value(ids[1]);
                graph.value(ids[0])
            }
            Err(error) => graph.fault(error),
        }
    }

    /// u32 numbers, each of them equally likely.
    #[track_caller]
    pub fn bits(&mut self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        self.draw("bits", |s, state| bits(s, state, shape))
    }

    /// f32 numbers in 0..1, multiples of 2⁻²⁴.
    #[track_caller]
    pub fn uniform(&mut self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        self.draw("uniform", |s, state| uniform(s, state, shape))
    }

    /// f32 numbers of the normal distribution with mean 0 and variance 1 (Box and Muller 1958).
    #[track_caller]
    pub fn normal(&mut self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        self.draw("normal", |s, state| {
            let (radius, angle) = (uniform(s, state, shape.clone())?, uniform(s, state, shape)?);
            // 1 - u is never 0.
            let one = s.scalar(DType::F32, 1.0)?;
            let inner = s.plain(Op::Sub, &[one, radius])?;
            let log = s.plain(Op::Log, &[inner])?;
            let factor = s.scalar(DType::F32, -2.0)?;
            let square = s.plain(Op::Mul, &[log, factor])?;
            let radius = s.plain(Op::Sqrt, &[square])?;
            let turn = s.scalar(DType::F32, std::f64::consts::TAU)?;
            let angle = s.plain(Op::Mul, &[angle, turn])?;
            let cos = s.plain(Op::Cos, &[angle])?;
            s.plain(Op::Mul, &[radius, cos])
        })
    }

    /// `true` with probability `p`.
    #[track_caller]
    pub fn bernoulli(&mut self, p: f64, shape: impl Into<Shape>) -> Tensor {
        self.uniform(shape).lt(p)
    }
}

fn bits(s: &mut Scope, state: &mut ValueId, shape: Shape) -> Result<ValueId, String> {
    let ty = TensorType::with_shape(DType::U32, shape);
    let drawn = s.multi_to(Op::RngBits, &[*state], Attrs::new(), &[ty])?;
    *state = drawn[1];
    Ok(drawn[0])
}

fn uniform(s: &mut Scope, state: &mut ValueId, shape: Shape) -> Result<ValueId, String> {
    let bits = bits(s, state, shape.clone())?;
    // f32 holds the upper 24 bits exactly.
    let low = s.scalar(DType::U32, 256i64)?;
    let high = s.plain(Op::Div, &[bits, low])?;
    let ty = TensorType::with_shape(DType::F32, shape);
    let whole = s.op_to(Op::Cast, &[high], Attrs::new(), ty)?;
    let unit = s.scalar(DType::F32, 2f64.powi(-24))?;
    s.plain(Op::Mul, &[whole, unit])
}

impl Graph {
    /// A source of random numbers that begins with a seed, the same in every run.
    pub fn rng(&self, seed: u64) -> Rng {
        Rng { state: self.array(&Rng::seed(seed)) }
    }
}

impl Tensor {
    /// Each element set to 0 with probability `p`, the others divided by 1 - p (Srivastava et al.
    /// 2014).
    #[must_use]
    #[track_caller]
    pub fn dropout(&self, p: f64, rng: &mut Rng) -> Tensor {
        let shape = match self.shape() {
            Ok(shape) if (0.0..1.0).contains(&p) => shape,
            _ => {
                return Tensor::build("dropout", &[self], |_| {
                    Err(format!("the probability {p} is not in 0..1"))
                });
            }
        };
        let kept = rng.uniform(shape).ge(p);
        kept.select(self * (1.0 / (1.0 - p)), 0.0)
    }
}
