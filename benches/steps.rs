//! Speed of whole steps: prefill of a prompt, and one decoded token.
//!
//! `cargo bench --bench steps`. A small random llama, built as any model file is, and smollm2-135m
//! when the cache folder has it (`aether pull` puts it there). Elements are tokens: elem/s is
//! tokens a second. `cargo bench --bench steps -- --test` runs each once.

#[path = "../llm/tests/common/tiny.rs"]
mod tiny;

use std::sync::Arc;

use aether_ir::DType;
use aether_llm::engine::{Context, LoadOptions, Model};
use aether_llm::hub::{Cache, Catalogue, DEFAULT_MODEL};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tiny::{Tiny, VOCAB};

/// Tokens of a prefill, and before a decoded one.
const PROMPT: usize = 128;

const TYPES: &[[DType; 7]] = &[
    [DType::Q4_0, DType::Q4_0, DType::Q8_0, DType::Q4_0, DType::Q4_0, DType::Q4_0, DType::Q5_0],
    [DType::Q4K, DType::Q4K, DType::Q6K, DType::Q4K, DType::Q4K, DType::Q4K, DType::Q6K],
];

fn steps(c: &mut Criterion, name: &str, model: &Arc<Model>) {
    let ids = model.vocab_len().min(VOCAB as usize) as u32;
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| (i * 37 + 11) % ids).collect();
    let mut context = Context::new(model).expect("memory for the cache");
    let mut group = c.benchmark_group(name);
    group.sample_size(20);
    group.throughput(Throughput::Elements(PROMPT as u64));
    group.bench_function(format!("prefill_{PROMPT}"), |bench| {
        bench.iter(|| {
            context.reset();
            context.prefill(&prompt).expect("the prompt fits").len()
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("decode_after_{PROMPT}"), |bench| {
        bench.iter(|| {
            context.truncate(PROMPT);
            context.decode(prompt[0]).expect("the token fits").len()
        });
    });
    group.finish();
}

fn synthetic(c: &mut Criterion) {
    let llama = Tiny {
        n_layers: 4,
        n_embd: 512,
        n_heads: 8,
        n_kv_heads: 4,
        n_ff: 1536,
        context: 512,
        ..Tiny::llama(TYPES)
    };
    let model = Model::from_memory(llama.gguf(), &LoadOptions::default()).expect("it is valid");
    steps(c, "llama_4x512", &model);
}

fn smollm2(c: &mut Criterion) {
    let catalogue = Catalogue::load(false).expect("the catalogue is built in");
    let entry = catalogue.get(DEFAULT_MODEL).expect("the default model is in it");
    let cache = Cache::open().expect("there is a cache folder");
    if !cache.is_present(entry) {
        return;
    }
    let options = LoadOptions { context: 512, ..LoadOptions::default() };
    let model = Model::load(cache.model_path(entry), &options).expect("the model loads");
    steps(c, DEFAULT_MODEL, &model);
}

criterion_group!(benches, synthetic, smollm2);
criterion_main!(benches);
