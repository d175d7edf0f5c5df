//! The cases: the same computation written for each.

mod mlp;
mod products;
mod rows;
mod windows;

use std::cell::Cell;
use std::rc::Rc;

use aether_ir::{Attrs, BuildError, DType, FuncBuilder, Module, Op, TensorType, ValueId};
use candle_core::{Device, Tensor};
use ndarray::Array2;

use crate::{Case, ours};

type Error = Box<dyn std::error::Error>;

/// Makes a case of that name.
pub type Make = fn(&'static str) -> Result<Case, Error>;

/// Every case by name.
pub const ALL: &[(&str, Make)] = &[
    ("matmul 512", |name| products::matmul(name, 512)),
    ("matmul 1024", |name| products::matmul(name, 1024)),
    ("matmul 2048", |name| products::matmul(name, 2048)),
    ("matmul 1024, relu", products::matmul_relu),
    ("MLP forward", mlp::forward),
    ("MLP forward and backward", mlp::backward),
    ("attention 12x512x64", products::attention),
    ("attention 12x512x64, composed", products::composed),
    ("conv 8x64x56x56, 64 of 3x3", |name| windows::conv(name, [8, 64, 56], 64, 3, 1, 1)),
    ("conv 8x3x112x112, 32 of 7x7, stride 2", |name| windows::conv(name, [8, 3, 112], 32, 7, 2, 1)),
    ("conv 8x256x14x14, 256 of 1x1", |name| windows::conv(name, [8, 256, 14], 256, 1, 1, 1)),
    ("conv 8x64x56x56, depthwise 3x3", |name| windows::conv(name, [8, 64, 56], 64, 3, 1, 64)),
    ("max pool 8x64x56x56, 2x2", windows::max_pool),
    ("reduce_max 10 million", rows::max_all),
    ("chain of 8, 10 million", rows::chain),
    ("softmax 4096x1024", rows::softmax),
    ("layer_norm 4096x1024", rows::layer_norm),
];

/// A case in the making: our function and the inputs of all.
struct Draft {
    f: FuncBuilder,
    inputs: Vec<(Vec<usize>, Vec<f32>)>,
}

impl Draft {
    fn new() -> Draft {
        Draft { f: FuncBuilder::new("main"), inputs: Vec::new() }
    }

    /// One more parameter, and what it is given.
    fn input(&mut self, name: &str, dims: &[usize], data: &[f32]) -> ValueId {
        self.inputs.push((dims.to_vec(), data.to_vec()));
        let ty = TensorType::new(DType::F32, dims.iter().map(|&d| d as u64));
        self.f.param(name, ty)
    }

    fn op(&mut self, op: Op, operands: &[ValueId]) -> Result<ValueId, BuildError> {
        self.f.op(op, operands, Attrs::new())
    }

    fn splat(&mut self, dtype: DType, value: f64) -> Result<ValueId, BuildError> {
        let attrs = Attrs::new().with("value", value);
        self.f.op_to(Op::Splat, &[], attrs, TensorType::scalar(dtype))
    }

    /// The function with this result beside candle's.
    fn case(
        self,
        name: &'static str,
        result: ValueId,
        candle: impl FnMut() -> candle_core::Result<Vec<Tensor>> + 'static,
    ) -> Result<Case, Error> {
        let mut module = Module::new("peers");
        module.add_func(self.f.finish(&[result]));
        case(name, module, "main", self.inputs, candle)
    }
}

/// One function of a module beside candle.
fn case(
    name: &'static str,
    module: Module,
    entry: &str,
    inputs: Vec<(Vec<usize>, Vec<f32>)>,
    mut candle: impl FnMut() -> candle_core::Result<Vec<Tensor>> + 'static,
) -> Result<Case, Error> {
    let check = Rc::new(Cell::new(false));
    let ours = ours::runner(module, entry, inputs, check.clone())?;
    let asked = check.clone();
    let candle = Box::new(move || {
        let results = candle().unwrap_or_else(|e| panic!("candle: {e}"));
        if asked.get() { results.iter().map(magnitude).sum() } else { 0.0 }
    });
    Ok(Case { name, ours, candle, ndarray: None, check })
}

impl Case {
    /// The case with ndarray as well.
    fn ndarray<T: AsRef<[f32]>>(mut self, mut run: impl FnMut() -> Vec<T> + 'static) -> Case {
        let asked = self.check.clone();
        self.ndarray = Some(Box::new(move || {
            let results = run();
            if !asked.get() {
                return 0.0;
            }
            results.iter().flat_map(|r| r.as_ref()).map(|v| f64::from(v.abs())).sum()
        }));
        self
    }
}

fn magnitude(t: &Tensor) -> f64 {
    let sum = t.abs().and_then(|t| t.sum_all()).and_then(|t| t.to_scalar::<f32>());
    f64::from(sum.expect("a sum of f32"))
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    // xorshift (Marsaglia 2003): the same numbers on every run.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn to_vec(a: Array2<f32>) -> Vec<f32> {
    a.into_raw_vec_and_offset().0
}

fn array(data: &[f32], rows: usize, columns: usize) -> Result<Array2<f32>, Error> {
    Ok(Array2::from_shape_vec((rows, columns), data.to_vec())?)
}

fn tensor(data: &[f32], dims: &[usize]) -> Result<Tensor, Error> {
    Ok(Tensor::from_vec(data.to_vec(), dims, &Device::Cpu)?)
}
