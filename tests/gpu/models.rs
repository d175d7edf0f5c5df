//! Language models: the GPU's logits beside the CPU's, step by step.

use aether_ir::DType;
use aether_llm::engine::{Context, LoadOptions, Model};
use aether_runtime::{Arena, Placement};

use super::support::gpu;
use super::tiny::{FLOATS, QUANTIZED, Tiny};

/// The model twice: on the CPU, and as the options say.
fn both(model: &Tiny, options: &LoadOptions) -> [Context; 2] {
    let base = LoadOptions { context: 128, batch: 64, verify: true, ..options.clone() };
    let cpu = LoadOptions { pipeline: None, arena: Arena::Shared, ..base.clone() };
    [cpu, LoadOptions { gpu: Some(gpu()), ..base }].map(|options| {
        let model = Model::from_memory(model.gguf(), &options).unwrap();
        Context::new(&model).unwrap()
    })
}

pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The greatest, and by how much it is greater than the next.
fn best(logits: &[f32]) -> (usize, f32) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    (order[0], logits[order[0]] - logits[order[1]])
}

/// Goes on greedily for some steps, both fed what the CPU chose.
#[track_caller]
pub fn compare(mut contexts: [Context; 2], prompt: &[u32], steps: usize, least: f64) {
    let [cpu, gpu] = &mut contexts;
    let mut a = cpu.prefill(prompt).unwrap().to_vec();
    let mut b = gpu.prefill(prompt).unwrap().to_vec();
    for step in 0..steps {
        let similar = cosine(&a, &b);
        assert!(similar > least, "step {step}: cosine similarity {similar}");
        let ((x, gap), (y, _)) = (best(&a), best(&b));
        let scale = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(x == y || gap < 0.02 * scale, "step {step}: token {y}, expected {x}");
        a = cpu.decode(x as u32).unwrap().to_vec();
        b = gpu.decode(x as u32).unwrap().to_vec();
    }
}

fn tiny(model: &Tiny) {
    with(model, &LoadOptions::default());
}

fn with(model: &Tiny, options: &LoadOptions) {
    let contexts = both(model, options);
    let prompt: Vec<u32> = (0..40).map(|i| (i * 37) % 250).collect();
    compare(contexts, &prompt, 20, 0.999);
}

#[test]
fn plain_weights() {
    tiny(&Tiny::llama(FLOATS));
}

#[test]
fn quantised_weights() {
    tiny(&Tiny::llama(QUANTIZED));
    tiny(&Tiny::qwen2(QUANTIZED));
}

/// As built, and with neither fusion nor an arena.
#[test]
fn every_quantised_type() {
    let plain = LoadOptions {
        pipeline: Some("layout".to_owned()),
        arena: Arena::Separate,
        ..LoadOptions::default()
    };
    for dtype in [DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0] {
        let types: &'static [[DType; 7]] = Box::leak(Box::new([[dtype; 7]]));
        let model = Tiny { embd: dtype, n_layers: 2, ..Tiny::llama(types) };
        tiny(&model);
        with(&model, &plain);
    }
    for dtype in [DType::Q2K, DType::Q3K, DType::Q4K, DType::Q5K, DType::Q6K] {
        let types: &'static [[DType; 7]] = Box::leak(Box::new([[dtype; 7]]));
        let wide = Tiny { n_embd: 256, n_ff: 512, n_layers: 2, ..Tiny::llama(types) };
        let model = Tiny { embd: dtype, ..wide };
        tiny(&model);
        with(&model, &plain);
    }
}

/// The number of parts of the two executables.
fn parts(model: &Tiny, placement: Placement) -> [usize; 2] {
    let options = LoadOptions { context: 128, gpu: Some(gpu()), placement, ..Default::default() };
    let model = Model::from_memory(model.gguf(), &options).unwrap();
    let single = model.few().unwrap().map_or(0, |single| single.parts().len());
    [model.executable().parts().len(), single]
}

#[test]
fn half_of_the_layers() {
    for model in [Tiny::llama(QUANTIZED), Tiny::qwen2(QUANTIZED)] {
        let layers = model.n_layers;
        for (n, count) in [(layers / 2, 3), (layers + 1, 2)] {
            let placement = Placement::LastCalls(n);
            assert_eq!(parts(&model, placement.clone()), [count; 2], "{n} layers");
            with(&model, &LoadOptions { placement, ..LoadOptions::default() });
        }
        assert_eq!(parts(&model, Placement::LastCalls(0)), [0; 2]);
    }
}
