//! A character-level transformer learns some sonnets and writes on.
//!
//!     cargo run --release --example chars
//!
//! Two blocks of causal attention with rotary positions, trained with AdamW on windows of the
//! text; one training step is compiled once, and the same layers with one window at a time give
//! the sample at the end. `--steps N` changes how long it learns, `--save FILE` writes the
//! parameters as safetensors.

mod common;

use aether::prelude::*;
use common::{Args, curve, progress};

const TEXT: &str = include_str!("data/sonnets.txt");
const BATCH: usize = 16;
const WINDOW: usize = 64;
const WIDTH: usize = 64;
const HEADS: usize = 4;
const LAYERS: usize = 2;

/// The characters of the text, each with a number.
struct Alphabet(Vec<char>);

impl Alphabet {
    fn of(text: &str) -> Self {
        let mut all: Vec<char> = text.chars().collect();
        all.sort_unstable();
        all.dedup();
        Alphabet(all)
    }

    /// The numbers of the characters that it has.
    fn encode(&self, text: &str) -> Vec<i32> {
        text.chars().filter_map(|c| self.0.binary_search(&c).ok()).map(|i| i as i32).collect()
    }
}

/// Parameters by name: made at random the first time a graph asks, or copied from another.
struct Params<'a> {
    graph: &'a Graph,
    from: Option<&'a Graph>,
    seed: u64,
}

impl Params<'_> {
    fn get(&mut self, name: &str, shape: &[usize], scale: f64) -> Result<Tensor, GraphError> {
        self.seed += 1;
        let value = match self.from {
            Some(from) => from.params()[name].get()?,
            None => (Graph::new().rng(self.seed).normal(shape) * scale).run(Device::Cpu)?,
        };
        Ok(self.graph.param(name, &value))
    }

    /// A weight [out, in] for [`Tensor::linear`].
    fn weight(&mut self, name: &str, out: usize, width: usize) -> Result<Tensor, GraphError> {
        self.get(name, &[out, width], 1.0 / (width as f64).sqrt())
    }

    /// The weight of a norm, ones at first.
    fn norm(&mut self, name: &str) -> Result<Tensor, GraphError> {
        let value = match self.from {
            Some(from) => from.params()[name].get()?,
            None => Array::new(&[1f32; WIDTH], [WIDTH])?,
        };
        Ok(self.graph.param(name, &value))
    }
}

/// Logits [batch, WINDOW, characters] for the character after each of `ids` [batch, WINDOW].
fn transformer(p: &mut Params, ids: &Tensor, characters: usize) -> Result<Tensor, GraphError> {
    let table = p.get("embedding", &[characters, WIDTH], 0.3)?;
    let positions = p.graph.arange(DType::I32, WINDOW);
    let mut x = table.take(ids, 0);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("layer.{layer}.{part}");
        let h = x.rms_norm(&p.norm(&name("attention_norm"))?, 1e-5);
        let qkv = h.linear(&p.weight(&name("qkv"), 3 * WIDTH, WIDTH)?);
        let parts = qkv.split(-1, [WIDTH; 3]);
        let turned = |t: &Tensor| {
            let heads = t.reshape([-1, WINDOW as i64, HEADS as i64, (WIDTH / HEADS) as i64]);
            heads.rope(&positions, 1e4, RopePairs::Halves).transpose(1, 2)
        };
        let causal = Attention { causal: true, ..Attention::default() };
        let values = parts[2].split_heads(HEADS);
        let seen = turned(&parts[0]).attention(&turned(&parts[1]), &values, causal);
        x = x + seen.merge_heads().linear(&p.weight(&name("output"), WIDTH, WIDTH)?);
        let h = x.rms_norm(&p.norm(&name("mlp_norm"))?, 1e-5);
        let gate = h.linear(&p.weight(&name("gate"), 2 * WIDTH, WIDTH)?).silu();
        let up = h.linear(&p.weight(&name("up"), 2 * WIDTH, WIDTH)?);
        x = x + (gate * up).linear(&p.weight(&name("down"), WIDTH, 2 * WIDTH)?);
    }
    let x = x.rms_norm(&p.norm("norm")?, 1e-5);
    Ok(x.linear(&p.weight("head", characters, WIDTH)?))
}

/// The place of one number among weights, with probability in proportion.
fn pick(logits: &[f32], temperature: f32, random: &mut fastrand::Rng) -> usize {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|l| ((l - top) / temperature).exp()).collect();
    let mut rest = random.f32() * weights.iter().sum::<f32>();
    for (i, w) in weights.iter().enumerate() {
        rest -= w;
        if rest <= 0.0 {
            return i;
        }
    }
    weights.len() - 1
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse(&["--steps", "--save", "--sample"])?;
    let steps: usize = args.number("--steps", 600)?;
    let sampled: usize = args.number("--sample", 400)?;

    let alphabet = Alphabet::of(TEXT);
    let text = alphabet.encode(TEXT);
    let characters = alphabet.0.len();

    let g = Graph::new();
    let ids = g.input("ids", DType::I32, [BATCH, WINDOW]);
    let next = g.input("next", DType::I32, [BATCH, WINDOW]);
    let logits = transformer(&mut Params { graph: &g, from: None, seed: 0 }, &ids, characters)?;
    let loss = logits.cross_entropy(&next).mean_all();
    let params = g.params();
    let params: Vec<&Tensor> = params.values().collect();
    let gradients = loss.backward_to(&params)?.clip_by_norm(1.0);
    let rate = Schedule::cosine(6e-3, steps as u64).with_warmup(steps as u64 / 20);
    let updates = Adam::with_decay(rate, 1e-2).updates(&gradients, &params)?;
    let mut step = g.compile_with(&[&loss], &updates, Device::Cpu)?;

    let started = std::time::Instant::now();
    let bar = progress(steps);
    let mut losses = Vec::with_capacity(steps);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..steps {
        let starts: Vec<usize> = (0..BATCH).map(|_| random.usize(..text.len() - WINDOW)).collect();
        let windows = |shift: usize| {
            let all: Vec<i32> =
                starts.iter().flat_map(|&s| &text[s + shift..][..WINDOW]).copied().collect();
            Array::new(&all, [BATCH, WINDOW])
        };
        let loss = step.run(&[("ids", &windows(0)?), ("next", &windows(1)?)])?;
        losses.push(loss[0].item::<f32>()?);
        bar.inc(1);
        bar.set_message(format!("loss {:.3}", losses[losses.len() - 1]));
    }
    bar.finish_and_clear();
    println!(
        "{} characters, {steps} steps in {:.1} s",
        characters,
        started.elapsed().as_secs_f64()
    );
    println!("loss {}\n", curve(&losses));
    if let Some(path) = args.text("--save") {
        g.save_params(path)?;
    }

    let h = Graph::new();
    let ids = h.input("ids", DType::I32, [1, WINDOW]);
    let mut params = Params { graph: &h, from: Some(&g), seed: 0 };
    let mut model = transformer(&mut params, &ids, characters)?.compile(Device::Cpu)?;
    let mut written = alphabet.encode("Shall I compare thee");
    for _ in 0..sampled {
        let seen = &written[written.len().saturating_sub(WINDOW)..];
        let mut window = [0; WINDOW];
        // Attention is causal, so what stands behind the last character does not matter.
        window[..seen.len()].copy_from_slice(seen);
        let logits = model.run(&[("ids", &Array::new(&window, [1, WINDOW])?)])?;
        let logits = logits[0].to_vec::<f32>()?;
        let last = &logits[(seen.len() - 1) * characters..][..characters];
        written.push(pick(last, 0.7, &mut random) as i32);
    }
    let shown: String = written.iter().map(|&i| alphabet.0[i as usize]).collect();
    println!("{shown}");
    Ok(())
}
