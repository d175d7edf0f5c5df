//! Three linear layers: what they give, and the gradients of a loss.

use aether_ir::{Attrs, BuildError, Module, Op, ValueId};
use aether_passes::autodiff;
use candle_core::Var;
use ndarray::{Array1, Array2, Axis, Zip};

use super::{Draft, Error, array, case, random, tensor, to_vec};
use crate::Case;

/// Rows of the batch and widths of the layers.
const BATCH: usize = 128;
const WIDTHS: [usize; 4] = [784, 512, 256, 10];

/// Weights and biases of a layer.
type Layer = (Array2<f32>, Array1<f32>);

/// What the layers are made of.
struct Data {
    x: Vec<f32>,
    /// Weights `[out, in]` and biases.
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Data {
    fn new() -> Data {
        let layers = WIDTHS.windows(2).zip(0..).map(|(widths, i)| {
            let scale = 1.0 / (widths[0] as f32).sqrt();
            let weight = random(widths[0] * widths[1], 10 + i);
            (weight.iter().map(|v| v * scale).collect(), random(widths[1], 20 + i))
        });
        Data { x: random(BATCH * WIDTHS[0], 3), layers: layers.collect() }
    }

    fn arrays(&self) -> Result<Vec<Layer>, Error> {
        let layers = self.layers.iter().zip(WIDTHS.windows(2));
        layers
            .map(|((w, b), widths)| Ok((array(w, widths[1], widths[0])?, Array1::from(b.clone()))))
            .collect()
    }
}

/// The last layer's result, from `x`, `w0`, `b0` and so on.
fn network(draft: &mut Draft, data: &Data) -> Result<ValueId, BuildError> {
    let mut h = draft.input("x", &[BATCH, WIDTHS[0]], &data.x);
    for (i, (w, b)) in data.layers.iter().enumerate() {
        let w = draft.input(&format!("w{i}"), &[WIDTHS[i + 1], WIDTHS[i]], w);
        let b = draft.input(&format!("b{i}"), &[WIDTHS[i + 1]], b);
        h = draft.f.op(Op::Matmul, &[h, w], Attrs::new().with("transpose_b", true))?;
        h = draft.op(Op::Add, &[h, b])?;
        if i < 2 {
            h = draft.op(Op::Relu, &[h])?;
        }
    }
    Ok(h)
}

pub fn forward(name: &'static str) -> Result<Case, Error> {
    let data = Data::new();
    let mut draft = Draft::new();
    let h = network(&mut draft, &data)?;
    let mut linear = Vec::new();
    for (i, (w, b)) in data.layers.iter().enumerate() {
        let weight = tensor(w, &[WIDTHS[i + 1], WIDTHS[i]])?;
        linear.push(candle_nn::Linear::new(weight, Some(tensor(b, &[WIDTHS[i + 1]])?)));
    }
    let arrays = data.arrays()?;
    let cx = tensor(&data.x, &[BATCH, WIDTHS[0]])?;
    let nx = array(&data.x, BATCH, WIDTHS[0])?;
    let case = draft.case(name, h, move || {
        use candle_nn::Module;
        let h = linear[0].forward(&cx)?.relu()?;
        let h = linear[1].forward(&h)?.relu()?;
        Ok(vec![linear[2].forward(&h)?])
    })?;
    Ok(case.ndarray(move || {
        let mut h = nx.clone();
        for (i, (w, b)) in arrays.iter().enumerate() {
            h = h.dot(&w.t()) + b;
            if i < 2 {
                h.mapv_inplace(|v| v.max(0.0));
            }
        }
        vec![to_vec(h)]
    }))
}

/// The mean of the squares of the last layer and its gradients by all weights and biases. Ours and
/// candle's are derived, ndarray's is written by hand.
pub fn backward(name: &'static str) -> Result<Case, Error> {
    let data = Data::new();
    let mut draft = Draft::new();
    let h = network(&mut draft, &data)?;
    let squares = draft.op(Op::Mul, &[h, h])?;
    let axes = Attrs::new().with("axes", vec![0i64, 1]);
    let loss = draft.f.op(Op::ReduceMean, &[squares], axes)?;
    let mut module = Module::new("peers");
    module.add_func(draft.f.finish(&[loss]));
    let wrt = ["w0", "b0", "w1", "b1", "w2", "b2"];
    let entry = autodiff::gradient(&mut module, "main", &wrt)?;

    let mut vars = Vec::new();
    for (i, (w, b)) in data.layers.iter().enumerate() {
        let weight = Var::from_tensor(&tensor(w, &[WIDTHS[i + 1], WIDTHS[i]])?)?;
        vars.push((weight, Var::from_tensor(&tensor(b, &[WIDTHS[i + 1]])?)?));
    }
    let arrays = data.arrays()?;
    let cx = tensor(&data.x, &[BATCH, WIDTHS[0]])?;
    let nx = array(&data.x, BATCH, WIDTHS[0])?;
    let case = case(name, module, &entry, draft.inputs, move || {
        let mut h = cx.clone();
        for (i, (w, b)) in vars.iter().enumerate() {
            h = h.matmul(&w.t()?)?.broadcast_add(b)?;
            if i < 2 {
                h = h.relu()?;
            }
        }
        let loss = h.sqr()?.mean_all()?;
        let grads = loss.backward()?;
        let all = vars.iter().flat_map(|(w, b)| [w, b]);
        Ok(all.filter_map(|v| grads.get(v).cloned()).chain([loss]).collect())
    })?;
    Ok(case.ndarray(move || {
        let mut activations = vec![nx.clone()];
        for (i, (w, b)) in arrays.iter().enumerate() {
            let mut h = activations[i].dot(&w.t()) + b;
            if i < 2 {
                h.mapv_inplace(|v| v.max(0.0));
            }
            activations.push(h);
        }
        let count = (BATCH * WIDTHS[3]) as f32;
        let mut d = &activations[3] * (2.0 / count);
        let mut results = vec![vec![activations[3].iter().map(|v| v * v).sum::<f32>() / count]];
        for i in (0..3).rev() {
            results.push(to_vec(d.t().dot(&activations[i]).as_standard_layout().to_owned()));
            results.push(d.sum_axis(Axis(0)).to_vec());
            if i > 0 {
                d = d.dot(&arrays[i].0);
                Zip::from(&mut d).and(&activations[i]).for_each(|d, h| {
                    if *h <= 0.0 {
                        *d = 0.0;
                    }
                });
            }
        }
        results
    }))
}
