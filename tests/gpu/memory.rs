//! Models that are larger than the memory limit: the same numbers, nothing leaks, nobody waits for
//! ever.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aether_ir::{DType, Op};
use aether_llm::engine::{Context, LoadOptions, Model};
use aether_runtime::gpu::{Gpu, GpuOptions};
use aether_runtime::{Device, Placement};

use super::tiny::Tiny;

const TYPES: &[[DType; 7]] =
    &[[DType::Q8_0, DType::Q4_0, DType::F16, DType::Q4K, DType::Q6K, DType::Q8_0, DType::Q5K]];

/// A model whose weights are much larger than the memory of a run.
fn large() -> Tiny {
    Tiny { n_embd: 256, n_ff: 512, n_layers: 6, ..Tiny::llama(TYPES) }
}

fn open(memory: Option<u64>) -> Arc<Gpu> {
    Gpu::open(&GpuOptions { memory, ..GpuOptions::default() }).unwrap_or_else(|e| panic!("{e}"))
}

fn load(gpu: &Arc<Gpu>, placement: Placement) -> Result<Arc<Model>, String> {
    let options = LoadOptions {
        context: 48,
        batch: 4,
        rows: 1,
        gpu: Some(gpu.clone()),
        placement,
        ..LoadOptions::default()
    };
    Model::from_memory(large().gguf(), &options).map_err(|e| e.to_string())
}

/// Bytes of the model's weights, and of what a run needs beside them.
fn sizes(model: &Model) -> (u64, u64) {
    let gpu = model.executable().gpu().unwrap();
    (gpu.constant_bytes(), gpu.session_bytes())
}

/// The limit that would do, as an error says it.
fn needed(error: &str) -> u64 {
    let mut numbers = error.split(' ').filter_map(|word| word.trim_end_matches(';').parse().ok());
    numbers.next_back().unwrap_or_else(|| panic!("{error}"))
}

/// Greedy tokens after a prompt that is longer than a batch.
fn text(context: &mut Context, first: u32, steps: usize) -> Vec<u32> {
    context.reset();
    let prompt: Vec<u32> = (0..10).map(|i| (i * 37 + first) % 250).collect();
    let best = |logits: &[f32]| {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order[0] as u32
    };
    let mut tokens = vec![best(context.prefill(&prompt).unwrap())];
    while tokens.len() < steps {
        let next = best(context.decode(tokens[tokens.len() - 1]).unwrap());
        tokens.push(next);
    }
    tokens
}

#[test]
fn a_quarter_of_the_weights_gives_the_same_text() {
    let whole = load(&open(None), Placement::Whole).unwrap();
    let (weights, session) = sizes(&whole);
    assert_eq!(whole.executable().gpu().unwrap().streamed_bytes(), 0);
    let mut context = Context::new(&whole).unwrap();
    let want = text(&mut context, 0, 24);
    let logits = context.logits().to_vec();
    for parts in [4, 2] {
        let gpu = open(Some(session + weights / parts));
        let model = load(&gpu, Placement::Whole).unwrap();
        let streamed = model.executable().gpu().unwrap().streamed_bytes();
        assert!(streamed > weights / 3 && streamed < weights, "{streamed} of {weights}");
        let mut context = Context::new(&model).unwrap();
        assert_eq!(text(&mut context, 0, 24), want);
        assert_eq!(context.logits(), logits);
        let stats = gpu.memory();
        assert!(stats.peak <= session + weights / parts, "{stats:?}");
        assert!(stats.streamed > 20 * weights / 3 && stats.pinned == 0, "{stats:?}");
    }
}

#[test]
fn half_of_the_layers_in_half_of_the_memory() {
    let half = Placement::LastCalls(3);
    let gpu = open(None);
    let mut context = Context::new(&load(&gpu, half.clone()).unwrap()).unwrap();
    let want = text(&mut context, 0, 12);
    let limit = gpu.memory().peak / 2;
    drop(context);
    let gpu = open(Some(limit));
    let mut context = Context::new(&load(&gpu, half).unwrap()).unwrap();
    assert_eq!(text(&mut context, 0, 12), want);
    let stats = gpu.memory();
    assert!(stats.peak <= limit && stats.streamed > 0, "{stats:?}");
}

/// Every second layer on the CPU: the parts on the GPU share its memory by one plan. In steps of one
/// size nothing is evicted, and what passes through is the same in each.
#[test]
fn parts_do_not_evict_one_another() {
    let gpu = open(None);
    let whole = load(&gpu, Placement::Whole).unwrap();
    let body = &whole.module().funcs["main"].body;
    let mut layers = 0;
    let devices = body.iter().map(|inst| {
        layers += usize::from(inst.op == Op::Call);
        if layers.is_multiple_of(2) { Device::Gpu } else { Device::Cpu }
    });
    let split = Placement::Fixed(devices.collect());
    let gpu = open(None);
    let model = load(&gpu, split.clone()).unwrap();
    let parts = model.executable().parts();
    let parts: Vec<_> = parts.iter().filter_map(|part| part.gpu()).collect();
    assert_eq!(parts.len(), 4);
    let weights: u64 = parts.iter().map(|part| part.constant_bytes()).sum();
    let sessions: u64 = parts.iter().map(|part| part.session_bytes()).sum();
    let mut context = Context::new(&model).unwrap();
    let want = text(&mut context, 0, 12);
    let runs = |context: &mut Context, gpu: &Gpu| {
        context.decode(1).unwrap();
        let before = gpu.memory();
        for i in 0..4 {
            context.decode(i).unwrap();
        }
        let after = gpu.memory();
        (
            after,
            [
                after.uploads - before.uploads,
                after.dropped - before.dropped,
                after.downloads - before.downloads,
                after.streamed - before.streamed,
            ],
        )
    };
    let (_, moved) = runs(&mut context, &gpu);
    assert_eq!(moved, [0; 4], "without a limit all is there");
    for share in [2, 3, 5] {
        let limit = sessions + weights / share;
        let gpu = open(Some(limit));
        let model = load(&gpu, split.clone()).unwrap();
        let mut context = Context::new(&model).unwrap();
        assert_eq!(text(&mut context, 0, 12), want, "1/{share}");
        let (stats, [uploads, dropped, downloads, streamed]) = runs(&mut context, &gpu);
        assert_eq!((uploads, dropped, downloads), (0, 0, 0), "1/{share}: {stats:?}");
        assert!(streamed > 0 && streamed < 4 * weights, "1/{share}: {streamed} of {weights}");
        assert!(stats.peak <= limit, "1/{share}: {stats:?}");
    }
    // The least with which each runs has no room for all their runs at once: they take turns, and
    // the text is the same.
    let mut limit = 1000;
    let gpu = loop {
        let gpu = open(Some(limit));
        let Err(error) = load(&gpu, split.clone()) else { break gpu };
        assert!(needed(&error) > limit, "{error}");
        limit = needed(&error);
    };
    assert!(limit < sessions + weights / 5, "{limit}");
    let mut context = Context::new(&load(&gpu, split).unwrap()).unwrap();
    assert_eq!(text(&mut context, 0, 12), want);
    let stats = gpu.memory();
    assert!(stats.peak <= limit && stats.dropped > 0, "{stats:?}");
}

#[test]
fn a_limit_that_is_too_small_names_the_step_and_what_it_takes() {
    let whole = load(&open(None), Placement::Whole).unwrap();
    let (weights, session) = sizes(&whole);
    let error =
        load(&open(Some(session + weights / 40)), Placement::Whole).map(|_| ()).unwrap_err();
    assert!(error.contains("@layer") && error.contains("blk."), "{error}");
    assert!(error.contains("--gpu-memory"), "{error}");
    // With what it says is needed it runs.
    let needed = needed(&error);
    assert!(needed > session + weights / 40 && needed < session + weights, "{error}");
    let model = load(&open(Some(needed)), Placement::Whole).unwrap();
    text(&mut Context::new(&model).unwrap(), 0, 2);
    // Not even an arena fits.
    let error = load(&open(Some(1000)), Placement::Whole).map(|_| ()).unwrap_err();
    assert!(error.contains("limit of 1000 bytes"), "{error}");
}

#[test]
fn nothing_leaks_over_a_thousand_steps() {
    let whole = load(&open(None), Placement::Whole).unwrap();
    let (weights, session) = sizes(&whole);
    let gpu = open(Some(session + weights / 4));
    let model = load(&gpu, Placement::Whole).unwrap();
    let mut context = Context::new(&model).unwrap();
    let before = text(&mut context, 0, 24);
    let (stats, allocated) = (gpu.memory(), gpu.allocated());
    context.truncate(8);
    for step in 0..1_000 {
        if context.room() == 0 {
            context.truncate(8);
        }
        context.decode(step % 250).unwrap();
    }
    assert_eq!(text(&mut context, 0, 24), before);
    let after = gpu.memory();
    assert_eq!((after.resident, after.on_host), (stats.resident, stats.on_host));
    assert_eq!((after.on_both, after.on_device), (stats.on_both, stats.on_device));
    assert_eq!(gpu.allocated(), allocated);
    drop(context);
    drop(model);
    let stats = gpu.memory();
    assert_eq!((stats.resident, stats.on_host + stats.on_both + stats.on_device), (0, 0));
}

/// Contexts of one model, of whose caches a few fit at a time, each on a thread of its own. By
/// default for some seconds; `AETHER_TEST_SECONDS` says otherwise.
#[test]
fn eight_threads_share_a_small_memory() {
    let whole = load(&open(None), Placement::Whole).unwrap();
    let (weights, session) = sizes(&whole);
    let mut context = Context::new(&whole).unwrap();
    let want: Vec<Vec<u32>> = (0..8).map(|first| text(&mut context, first, 16)).collect();
    let limit = 2 * session + weights / 4;
    let gpu = open(Some(limit));
    let model = load(&gpu, Placement::Whole).unwrap();
    let seconds = std::env::var("AETHER_TEST_SECONDS").ok().and_then(|s| s.parse().ok());
    let long = Duration::from_secs(seconds.unwrap_or(4));
    let begun = Instant::now();
    let texts: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = want
            .iter()
            .enumerate()
            .map(|(first, want)| {
                let model = &model;
                scope.spawn(move || {
                    let mut context = Context::new(model).unwrap();
                    let mut texts = 0;
                    while texts == 0 || begun.elapsed() < long {
                        assert_eq!(text(&mut context, first as u32, 16), *want, "thread {first}");
                        texts += 1;
                    }
                    texts
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let stats = gpu.memory();
    assert!(stats.peak <= limit && stats.pinned == 0, "{stats:?}");
    // Caches went to the host and came back.
    assert!(stats.downloads > 8 && stats.streamed > 0, "{texts:?} texts, {stats:?}");
}
