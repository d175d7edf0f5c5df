//! The cases: the same computation written for each.

use std::cell::Cell;
use std::rc::Rc;

use aether_ir::{Attrs, BuildError, DType, FuncBuilder, Op, TensorType, ValueId};
use candle_core::{Device, Tensor, Var};
use ndarray::{Array1, Array2, Axis, Zip};

use crate::{Case, Runner, ours};

type Error = Box<dyn std::error::Error>;

/// Makes a case of that name.
pub type Make = fn(&'static str) -> Result<Case, Error>;

/// Every case by name.
pub const ALL: &[(&str, Make)] = &[
    ("matmul 512", |name| matmul(name, 512)),
    ("matmul 1024", |name| matmul(name, 1024)),
    ("matmul 2048", |name| matmul(name, 2048)),
    ("matmul 1024, relu", matmul_relu),
    ("MLP forward", mlp_forward),
    ("MLP forward and backward", mlp_backward),
    ("attention 12x512x64", attention),
    ("attention 12x512x64, composed", composed),
    ("conv 8x64x56x56, 64 of 3x3", |name| conv(name, [8, 64, 56], 64, 3, 1, 1)),
    ("conv 8x3x112x112, 32 of 7x7, stride 2", |name| conv(name, [8, 3, 112], 32, 7, 2, 1)),
    ("conv 8x256x14x14, 256 of 1x1", |name| conv(name, [8, 256, 14], 256, 1, 1, 1)),
    ("conv 8x64x56x56, depthwise 3x3", |name| conv(name, [8, 64, 56], 64, 3, 1, 64)),
    ("max pool 8x64x56x56, 2x2", max_pool),
    ("reduce_sum 10 million", sum_all),
    ("chain of 8, 10 million", chain),
    ("softmax 4096x1024", softmax),
    ("layer_norm 4096x1024", layer_norm),
];

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

fn f32s(dims: &[usize]) -> TensorType {
    TensorType::new(DType::F32, dims.iter().map(|&d| d as u64))
}

fn op(f: &mut FuncBuilder, op: Op, operands: &[ValueId]) -> Result<ValueId, BuildError> {
    f.op(op, operands, Attrs::new())
}

fn splat(f: &mut FuncBuilder, value: f64) -> Result<ValueId, BuildError> {
    f.op_to(Op::Splat, &[], Attrs::new().with("value", value), TensorType::scalar(DType::F32))
}

fn magnitude(t: &Tensor) -> f64 {
    let sum = t.abs().and_then(|t| t.sum_all()).and_then(|t| t.to_scalar::<f32>());
    f64::from(sum.expect("a sum of f32"))
}

/// A candle runner: the tensors that it computes, and their magnitudes when asked.
fn candle(
    check: &Rc<Cell<bool>>,
    mut run: impl FnMut() -> candle_core::Result<Vec<Tensor>> + 'static,
) -> Option<Runner> {
    let check = check.clone();
    Some(Box::new(move || {
        let results = run().unwrap_or_else(|e| panic!("candle: {e}"));
        if check.get() { results.iter().map(magnitude).sum() } else { 0.0 }
    }))
}

fn ndarray<T: AsRef<[f32]>>(
    check: &Rc<Cell<bool>>,
    mut run: impl FnMut() -> Vec<T> + 'static,
) -> Option<Runner> {
    let check = check.clone();
    Some(Box::new(move || {
        let results = run();
        if !check.get() {
            return 0.0;
        }
        results.iter().flat_map(|r| r.as_ref()).map(|v| f64::from(v.abs())).sum()
    }))
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

fn matmul(name: &'static str, n: usize) -> Result<Case, Error> {
    let (a, b) = (random(n * n, 1), random(n * n, 2));
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let (x, w) = (f.param("x", f32s(&[n, n])), f.param("w", f32s(&[n, n])));
    let y = op(&mut f, Op::Matmul, &[x, w])?;
    let inputs = vec![(vec![n, n], a.clone()), (vec![n, n], b.clone())];
    let (ca, cb) = (tensor(&a, &[n, n])?, tensor(&b, &[n, n])?);
    let (na, nb) = (array(&a, n, n)?, array(&b, n, n)?);
    Ok(Case {
        name,
        ours: ours::runner(f.finish(&[y]), inputs, check.clone())?,
        candle: candle(&check, move || Ok(vec![ca.matmul(&cb)?])),
        ndarray: ndarray(&check, move || vec![to_vec(na.dot(&nb))]),
        check,
    })
}

fn matmul_relu(name: &'static str) -> Result<Case, Error> {
    let n = 1024;
    let (a, b) = (random(n * n, 1), random(n * n, 2));
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let (x, w) = (f.param("x", f32s(&[n, n])), f.param("w", f32s(&[n, n])));
    let y = op(&mut f, Op::Matmul, &[x, w])?;
    let y = op(&mut f, Op::Relu, &[y])?;
    let inputs = vec![(vec![n, n], a.clone()), (vec![n, n], b.clone())];
    let (ca, cb) = (tensor(&a, &[n, n])?, tensor(&b, &[n, n])?);
    let (na, nb) = (array(&a, n, n)?, array(&b, n, n)?);
    Ok(Case {
        name,
        ours: ours::runner(f.finish(&[y]), inputs, check.clone())?,
        candle: candle(&check, move || Ok(vec![ca.matmul(&cb)?.relu()?])),
        ndarray: ndarray(&check, move || {
            let mut y = na.dot(&nb);
            y.mapv_inplace(|v| v.max(0.0));
            vec![to_vec(y)]
        }),
        check,
    })
}

/// Rows of the batch and widths of the layers.
const BATCH: usize = 128;
const WIDTHS: [usize; 4] = [784, 512, 256, 10];

/// Weights `[out, in]` and biases of each layer.
fn layers() -> Vec<(Vec<f32>, Vec<f32>, usize, usize)> {
    (0..3)
        .map(|i| {
            let (inputs, outputs) = (WIDTHS[i], WIDTHS[i + 1]);
            let scale = 1.0 / (inputs as f32).sqrt();
            let weight = random(inputs * outputs, 10 + i as u64);
            let weight = weight.iter().map(|v| v * scale).collect();
            (weight, random(outputs, 20 + i as u64), outputs, inputs)
        })
        .collect()
}

/// The parameters of ours: x, then weight and bias of each layer.
fn mlp_params(f: &mut FuncBuilder) -> (ValueId, Vec<(ValueId, ValueId)>) {
    let x = f.param("x", f32s(&[BATCH, WIDTHS[0]]));
    let params = (0..3)
        .map(|i| {
            let w = f.param(&format!("w{i}"), f32s(&[WIDTHS[i + 1], WIDTHS[i]]));
            (w, f.param(&format!("b{i}"), f32s(&[WIDTHS[i + 1]])))
        })
        .collect();
    (x, params)
}

fn mlp_inputs(x: &[f32]) -> Vec<(Vec<usize>, Vec<f32>)> {
    let mut inputs = vec![(vec![BATCH, WIDTHS[0]], x.to_vec())];
    for (w, b, outputs, width) in layers() {
        inputs.push((vec![outputs, width], w));
        inputs.push((vec![outputs], b));
    }
    inputs
}

fn mlp_forward(name: &'static str) -> Result<Case, Error> {
    let x = random(BATCH * WIDTHS[0], 3);
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let (mut h, params) = mlp_params(&mut f);
    for (i, (w, b)) in params.into_iter().enumerate() {
        h = f.op(Op::Matmul, &[h, w], Attrs::new().with("transpose_b", true))?;
        h = op(&mut f, Op::Add, &[h, b])?;
        if i < 2 {
            h = op(&mut f, Op::Relu, &[h])?;
        }
    }
    let ours = ours::runner(f.finish(&[h]), mlp_inputs(&x), check.clone())?;
    let mut linear = Vec::new();
    let mut arrays = Vec::new();
    for (w, b, outputs, width) in layers() {
        let weight = tensor(&w, &[outputs, width])?;
        linear.push(candle_nn::Linear::new(weight, Some(tensor(&b, &[outputs])?)));
        arrays.push((array(&w, outputs, width)?, Array1::from(b)));
    }
    let (cx, nx) = (tensor(&x, &[BATCH, WIDTHS[0]])?, array(&x, BATCH, WIDTHS[0])?);
    Ok(Case {
        name,
        ours,
        candle: candle(&check, move || {
            use candle_nn::Module;
            let h = linear[0].forward(&cx)?.relu()?;
            let h = linear[1].forward(&h)?.relu()?;
            Ok(vec![linear[2].forward(&h)?])
        }),
        ndarray: ndarray(&check, move || {
            let mut h = nx.clone();
            for (i, (w, b)) in arrays.iter().enumerate() {
                h = h.dot(&w.t()) + b;
                if i < 2 {
                    h.mapv_inplace(|v| v.max(0.0));
                }
            }
            vec![to_vec(h)]
        }),
        check,
    })
}

/// The mean of the squares of the last layer and its gradients by all weights and biases.
fn mlp_backward(name: &'static str) -> Result<Case, Error> {
    let x = random(BATCH * WIDTHS[0], 3);
    let check = Rc::new(Cell::new(false));
    let ours = ours::runner(backward_by_hand()?, mlp_inputs(&x), check.clone())?;
    let mut vars = Vec::new();
    let mut arrays = Vec::new();
    for (w, b, outputs, width) in layers() {
        let weight = Var::from_tensor(&tensor(&w, &[outputs, width])?)?;
        vars.push((weight, Var::from_tensor(&tensor(&b, &[outputs])?)?));
        arrays.push((array(&w, outputs, width)?, Array1::from(b)));
    }
    let (cx, nx) = (tensor(&x, &[BATCH, WIDTHS[0]])?, array(&x, BATCH, WIDTHS[0])?);
    Ok(Case {
        name,
        ours,
        candle: candle(&check, move || {
            let mut h = cx.clone();
            for (i, (w, b)) in vars.iter().enumerate() {
                h = h.matmul(&w.t()?)?.broadcast_add(b)?;
                if i < 2 {
                    h = h.relu()?;
                }
            }
            let grads = h.sqr()?.mean_all()?.backward()?;
            let all = vars.iter().flat_map(|(w, b)| [w, b]);
            Ok(all.filter_map(|v| grads.get(v).cloned()).collect())
        }),
        ndarray: ndarray(&check, move || {
            let mut activations = vec![nx.clone()];
            for (i, (w, b)) in arrays.iter().enumerate() {
                let mut h = activations[i].dot(&w.t()) + b;
                if i < 2 {
                    h.mapv_inplace(|v| v.max(0.0));
                }
                activations.push(h);
            }
            let scale = 2.0 / (BATCH * WIDTHS[3]) as f32;
            let mut d = &activations[3] * scale;
            let mut grads = Vec::new();
            for i in (0..3).rev() {
                grads.push(to_vec(d.t().dot(&activations[i]).as_standard_layout().to_owned()));
                grads.push(d.sum_axis(Axis(0)).to_vec());
                if i > 0 {
                    d = d.dot(&arrays[i].0);
                    Zip::from(&mut d).and(&activations[i]).for_each(|d, h| {
                        if *h <= 0.0 {
                            *d = 0.0;
                        }
                    });
                }
            }
            grads
        }),
        check,
    })
}

fn backward_by_hand() -> Result<aether_ir::Func, BuildError> {
    let mut f = FuncBuilder::new("main");
    let (x, params) = mlp_params(&mut f);
    let mut activations = vec![x];
    for (i, (w, b)) in params.iter().enumerate() {
        let attrs = Attrs::new().with("transpose_b", true);
        let h = f.op(Op::Matmul, &[activations[i], *w], attrs)?;
        let h = op(&mut f, Op::Add, &[h, *b])?;
        activations.push(if i < 2 { op(&mut f, Op::Relu, &[h])? } else { h });
    }
    let scale = splat(&mut f, 2.0 / (BATCH * WIDTHS[3]) as f64)?;
    let mut d = op(&mut f, Op::Mul, &[activations[3], scale])?;
    let mut grads = Vec::new();
    for i in (0..3).rev() {
        let t = f.op(Op::Transpose, &[d], Attrs::new().with("perm", vec![1i64, 0]))?;
        grads.push(op(&mut f, Op::Matmul, &[t, activations[i]])?);
        grads.push(f.op(Op::ReduceSum, &[d], Attrs::new().with("axes", vec![0i64]))?);
        if i > 0 {
            d = op(&mut f, Op::Matmul, &[d, params[i].0])?;
            let zero = splat(&mut f, 0.0)?;
            let alive = op(&mut f, Op::Gt, &[activations[i], zero])?;
            d = op(&mut f, Op::Select, &[alive, d, zero])?;
        }
    }
    Ok(f.finish(&grads))
}

fn attention(name: &'static str) -> Result<Case, Error> {
    let (heads, tokens, d) = (12, 512, 64);
    let n = heads * tokens * d;
    // Ours takes [tokens, heads, d], candle [heads, tokens, d].
    let data = [random(n, 4), random(n, 5), random(n, 6)];
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let ty = f32s(&[tokens, heads, d]);
    let [q, k, v] = ["q", "k", "v"].map(|name| f.param(name, ty.clone()));
    let zero = Attrs::new().with("value", 0.0);
    let past = f.op_to(Op::Splat, &[], zero, TensorType::scalar(DType::I32))?;
    let attrs = Attrs::new().with("scale", 0.125).with("causal", false);
    let y = f.op(Op::Attention, &[q, k, v, past], attrs)?;
    let inputs = data.iter().map(|x| (vec![tokens, heads, d], x.clone())).collect();
    let mut tensors = Vec::new();
    for x in &data {
        tensors.push(tensor(x, &[tokens, heads, d])?.transpose(0, 1)?.contiguous()?);
    }
    Ok(Case {
        name,
        ours: ours::runner(f.finish(&[y]), inputs, check.clone())?,
        candle: candle(&check, move || {
            let [q, k, v] = &tensors[..] else { return Ok(Vec::new()) };
            let scores = (q.matmul(&k.t()?)? * 0.125)?;
            Ok(vec![candle_nn::ops::softmax_last_dim(&scores)?.matmul(v)?])
        }),
        ndarray: None,
        check,
    })
}

/// Eight ops of one read each: `relu(sqrt(abs((1.5 x + 0.25)² - x)) x)`.
fn chain(name: &'static str) -> Result<Case, Error> {
    let n = 10_000_000;
    let x = random(n, 7);
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let p = f.param("x", f32s(&[n]));
    let (a, b) = (splat(&mut f, 1.5)?, splat(&mut f, 0.25)?);
    let y = op(&mut f, Op::Mul, &[p, a])?;
    let y = op(&mut f, Op::Add, &[y, b])?;
    let y = op(&mut f, Op::Mul, &[y, y])?;
    let y = op(&mut f, Op::Sub, &[y, p])?;
    let y = op(&mut f, Op::Abs, &[y])?;
    let y = op(&mut f, Op::Sqrt, &[y])?;
    let y = op(&mut f, Op::Mul, &[y, p])?;
    let y = op(&mut f, Op::Relu, &[y])?;
    let ours = ours::runner(f.finish(&[y]), vec![(vec![n], x.clone())], check.clone())?;
    let (cx, nx) = (tensor(&x, &[n])?, Array1::from(x));
    Ok(Case {
        name,
        ours,
        candle: candle(&check, move || {
            let y = ((&cx * 1.5)? + 0.25)?.sqr()?;
            let y = y.sub(&cx)?.abs()?.sqrt()?;
            Ok(vec![y.mul(&cx)?.relu()?])
        }),
        ndarray: ndarray(&check, move || {
            let mut y = &nx * 1.5;
            y += 0.25;
            y.mapv_inplace(|v| v * v);
            y -= &nx;
            y.mapv_inplace(f32::abs);
            y.mapv_inplace(f32::sqrt);
            y *= &nx;
            y.mapv_inplace(|v| v.max(0.0));
            vec![y.into_raw_vec_and_offset().0]
        }),
        check,
    })
}

const ROWS: usize = 4096;
const COLUMNS: usize = 1024;

fn softmax(name: &'static str) -> Result<Case, Error> {
    let x = random(ROWS * COLUMNS, 8);
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let p = f.param("x", f32s(&[ROWS, COLUMNS]));
    let y = f.op(Op::Softmax, &[p], Attrs::new().with("axis", -1i64))?;
    let inputs = vec![(vec![ROWS, COLUMNS], x.clone())];
    let (cx, nx) = (tensor(&x, &[ROWS, COLUMNS])?, array(&x, ROWS, COLUMNS)?);
    Ok(Case {
        name,
        ours: ours::runner(f.finish(&[y]), inputs, check.clone())?,
        candle: candle(&check, move || Ok(vec![candle_nn::ops::softmax_last_dim(&cx)?])),
        ndarray: ndarray(&check, move || {
            let mut y = nx.clone();
            y.axis_iter_mut(Axis(0)).for_each(|mut row| {
                let top = row.fold(f32::MIN, |a, &b| a.max(b));
                row.mapv_inplace(|v| (v - top).exp());
                let sum = row.sum();
                row /= sum;
            });
            vec![to_vec(y)]
        }),
        check,
    })
}

fn layer_norm(name: &'static str) -> Result<Case, Error> {
    let x = random(ROWS * COLUMNS, 9);
    let (w, b) = (random(COLUMNS, 10), random(COLUMNS, 11));
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let p = f.param("x", f32s(&[ROWS, COLUMNS]));
    let (pw, pb) = (f.param("w", f32s(&[COLUMNS])), f.param("b", f32s(&[COLUMNS])));
    let y = f.op(Op::LayerNorm, &[p, pw, pb], Attrs::new().with("eps", 1e-5))?;
    let inputs = vec![
        (vec![ROWS, COLUMNS], x.clone()),
        (vec![COLUMNS], w.clone()),
        (vec![COLUMNS], b.clone()),
    ];
    let (cx, nx) = (tensor(&x, &[ROWS, COLUMNS])?, array(&x, ROWS, COLUMNS)?);
    let (cw, cb) = (tensor(&w, &[COLUMNS])?, tensor(&b, &[COLUMNS])?);
    let (nw, nb) = (Array1::from(w), Array1::from(b));
    Ok(Case {
        name,
        ours: ours::runner(f.finish(&[y]), inputs, check.clone())?,
        candle: candle(&check, move || Ok(vec![candle_nn::ops::layer_norm(&cx, &cw, &cb, 1e-5)?])),
        ndarray: ndarray(&check, move || {
            let mut y = nx.clone();
            y.axis_iter_mut(Axis(0)).for_each(|mut row| {
                let mean = row.mean().unwrap_or(0.0);
                row -= mean;
                let var = row.fold(0.0, |a, &v| a + v * v) / COLUMNS as f32;
                row *= 1.0 / (var + 1e-5).sqrt();
                row *= &nw;
                row += &nb;
            });
            vec![to_vec(y)]
        }),
        check,
    })
}

fn conv(
    name: &'static str,
    [n, c, size]: [usize; 3],
    out: usize,
    k: usize,
    stride: usize,
    groups: usize,
) -> Result<Case, Error> {
    let (x, w) = ([n, c, size, size], [out, c / groups, k, k]);
    let data = [random(x.iter().product(), 1), random(w.iter().product(), 2)];
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let params = [f.param("x", f32s(&x)), f.param("w", f32s(&w))];
    let attrs = Attrs::new()
        .with("stride", vec![stride as i64; 2])
        .with("padding", vec![k as i64 / 2; 4])
        .with("groups", groups as i64);
    let y = f.op(Op::Conv, &params, attrs)?;
    let inputs = vec![(x.to_vec(), data[0].clone()), (w.to_vec(), data[1].clone())];
    let (cx, cw) = (tensor(&data[0], &x)?, tensor(&data[1], &w)?);
    Ok(Case {
        name,
        ours: ours::runner(f.finish(&[y]), inputs, check.clone())?,
        candle: candle(&check, move || Ok(vec![cx.conv2d(&cw, k / 2, stride, 1, groups)?])),
        ndarray: None,
        check,
    })
}

fn max_pool(name: &'static str) -> Result<Case, Error> {
    let x = [8, 64, 56, 56];
    let data = random(x.iter().product(), 1);
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let p = f.param("x", f32s(&x));
    let attrs = Attrs::new().with("window", vec![2i64, 2]).with("stride", vec![2i64, 2]);
    let y = f.op_multi(Op::WindowMax, &[p], attrs, &[])?;
    let cx = tensor(&data, &x)?;
    Ok(Case {
        name,
        ours: ours::runner(f.finish(&y[..1]), vec![(x.to_vec(), data)], check.clone())?,
        candle: candle(&check, move || Ok(vec![cx.max_pool2d(2)?])),
        ndarray: None,
        check,
    })
}

fn sum_all(name: &'static str) -> Result<Case, Error> {
    let n = 10_000_000;
    let data = random(n, 1);
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let p = f.param("x", f32s(&[n]));
    let q = f.op(Op::Abs, &[p], Attrs::new())?;
    let _ = q;
    let y = f.op(Op::ReduceMax, &[p], Attrs::new().with("axes", vec![0i64]))?;
    let cx = tensor(&data, &[n])?;
    Ok(Case {
        name,
        ours: ours::runner(f.finish(&[y]), vec![(vec![n], data)], check.clone())?,
        candle: candle(&check, move || Ok(vec![cx.max_all()?])),
        ndarray: None,
        check,
    })
}

fn composed(name: &'static str) -> Result<Case, Error> {
    let (heads, tokens, d) = (12, 512, 64);
    let n = heads * tokens * d;
    let data = [random(n, 4), random(n, 5), random(n, 6)];
    let check = Rc::new(Cell::new(false));
    let mut f = FuncBuilder::new("main");
    let ty = f32s(&[heads, tokens, d]);
    let [q, k, v] = ["q", "k", "v"].map(|name| f.param(name, ty.clone()));
    let s = f.op(Op::Matmul, &[q, k], Attrs::new().with("transpose_b", true))?;
    let scale = splat(&mut f, 0.125)?;
    let s = op(&mut f, Op::Mul, &[s, scale])?;
    let p = f.op(Op::Softmax, &[s], Attrs::new().with("axis", -1i64))?;
    let y = op(&mut f, Op::Matmul, &[p, v])?;
    let inputs = data.iter().map(|x| (vec![heads, tokens, d], x.clone())).collect();
    let mut tensors = Vec::new();
    for x in &data {
        tensors.push(tensor(x, &[heads, tokens, d])?);
    }
    Ok(Case {
        name,
        ours: ours::runner(f.finish(&[y]), inputs, check.clone())?,
        candle: candle(&check, move || {
            let [q, k, v] = &tensors[..] else { return Ok(Vec::new()) };
            let scores = (q.matmul(&k.t()?)? * 0.125)?;
            Ok(vec![candle_nn::ops::softmax_last_dim(&scores)?.matmul(v)?])
        }),
        ndarray: None,
        check,
    })
}
