//! A small convolutional network learns handwritten digits.
//!
//!     cargo run --release --example digits
//!
//! The graph of one training step (forward, gradients, AdamW, new parameters) is compiled once
//! and run on one batch after another; the parameters stay in place. `--epochs N` changes how
//! often the images are seen, `--save FILE` writes the parameters as safetensors.

mod common;

use aether::prelude::*;
use common::{Args, curve, progress};

/// The images: examples/data/NOTICE.md says where they are from.
const DIGITS: &[u8] = include_bytes!("data/digits.bin");
const RECORD: usize = 65;
const CLASSES: usize = 10;
/// Every n-th image is held out.
const HELD_OUT: usize = 5;
const BATCH: usize = 64;

/// Images [n, 1, 8, 8] with pixels from 0 to 1, and their digits [n].
struct Images {
    pixels: Vec<f32>,
    digits: Vec<i32>,
}

impl Images {
    fn read(keep: impl Fn(usize) -> bool) -> Images {
        let records: Vec<&[u8]> = DIGITS
            .chunks_exact(RECORD)
            .enumerate()
            .filter(|(i, _)| keep(*i))
            .map(|r| r.1)
            .collect();
        Images {
            pixels: records.iter().flat_map(|r| &r[..64]).map(|&p| f32::from(p) / 16.0).collect(),
            digits: records.iter().map(|r| i32::from(r[64])).collect(),
        }
    }

    fn len(&self) -> usize {
        self.digits.len()
    }

    /// The images of these indices.
    fn batch(&self, indices: &[usize]) -> Result<(Array, Array), ArrayError> {
        let pixels: Vec<f32> =
            indices.iter().flat_map(|i| &self.pixels[i * 64..][..64]).copied().collect();
        let digits: Vec<i32> = indices.iter().map(|&i| self.digits[i]).collect();
        let n = indices.len();
        Ok((Array::new(&pixels, [n, 1, 8, 8])?, Array::new(&digits, [n])?))
    }
}

/// Two convolutions, each with a pool of 2x2, and a linear layer: logits [n, 10].
fn network(g: &Graph, images: &Tensor) -> Result<Tensor, GraphError> {
    let layer = |name: &str, shape: &[usize], fan_in: usize, seed| {
        // Kaiming He et al. 2015: the variance of the activations stays.
        let scale = (2.0 / fan_in as f64).sqrt();
        let weight = (Graph::new().rng(seed).normal(shape) * scale).run(Device::Cpu)?;
        let mut per_channel = vec![1; shape.len().max(3) - 1];
        per_channel[0] = shape[0];
        let bias = if shape.len() == 2 { vec![shape[0]] } else { per_channel };
        let zeros = Array::new(&vec![0f32; shape[0]], bias)?;
        let weight = g.param(&format!("{name}.weight"), &weight);
        Ok::<_, GraphError>((weight, g.param(&format!("{name}.bias"), &zeros)))
    };
    let (w, b) = layer("conv1", &[16, 1, 3, 3], 9, 1)?;
    let x = (images.conv2d(&w, Conv::padded(1)) + b).relu().max_pool2d(Pool::tiles([2, 2]));
    let (w, b) = layer("conv2", &[32, 16, 3, 3], 144, 2)?;
    let x = (x.conv2d(&w, Conv::padded(1)) + b).relu().max_pool2d(Pool::tiles([2, 2]));
    let (w, b) = layer("head", &[CLASSES, 128], 128, 3)?;
    let flat = [x.shape()?.0[0].clone(), Dim::from(128usize)];
    Ok(x.reshape_to(flat).linear(&w) + b)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse(&["--epochs", "--save"])?;
    let epochs: usize = args.number("--epochs", 12)?;

    let train = Images::read(|i| i % HELD_OUT != 0);
    let test = Images::read(|i| i % HELD_OUT == 0);
    let steps_per_epoch = train.len() / BATCH;
    let steps = epochs * steps_per_epoch;

    let g = Graph::new();
    let images = g.input("images", DType::F32, [BATCH, 1, 8, 8]);
    let digits = g.input("digits", DType::I32, [BATCH]);
    let loss = network(&g, &images)?.cross_entropy(&digits).mean_all();
    let params = g.params();
    let params: Vec<&Tensor> = params.values().collect();
    let rate = Schedule::cosine(4e-3, steps as u64).with_warmup(steps_per_epoch as u64 / 2);
    let updates = Adam::with_decay(rate, 1e-2).updates(&loss.backward_to(&params)?, &params)?;
    let mut step = g.compile_with(&[&loss], &updates, Device::Cpu)?;

    let started = std::time::Instant::now();
    let bar = progress(steps);
    let mut losses = Vec::with_capacity(steps);
    let mut order: Vec<usize> = (0..train.len()).collect();
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..epochs {
        random.shuffle(&mut order);
        for indices in order.chunks_exact(BATCH) {
            let (pixels, targets) = train.batch(indices)?;
            let loss = step.run(&[("images", &pixels), ("digits", &targets)])?;
            losses.push(loss[0].item::<f32>()?);
            bar.inc(1);
            bar.set_message(format!("loss {:.3}", losses[losses.len() - 1]));
        }
    }
    bar.finish_and_clear();
    println!("{} steps in {:.1} s", steps, started.elapsed().as_secs_f64());
    println!("loss {}", curve(&losses));

    let (pixels, targets) = test.batch(&(0..test.len()).collect::<Vec<_>>())?;
    let h = Graph::new();
    let predicted = network(&h, &h.array(&pixels))?.argmax(-1);
    for (name, param) in h.params() {
        param.set(&g.params()[&name].get()?)?;
    }
    let right = predicted.eq(h.array(&targets)).cast(DType::F32).sum_all();
    let right = right.run(Device::Cpu)?.item::<f32>()?;
    let share = 100.0 * right / test.len() as f32;
    println!("held out: {share:.1} % of {} images right", test.len());
    if let Some(path) = args.text("--save") {
        h.save_params(path)?;
    }
    if epochs >= 8 && share < 97.0 {
        return Err("fewer than 97 % of the held-out images were right".into());
    }
    Ok(())
}
