//! A decode step allocates nothing on the heap after warm-up, counted over all threads.

#[path = "common/tiny.rs"]
mod tiny;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use aether_llm::engine::{Context, LoadOptions, Model};
use aether_llm::sample::{Sampler, SamplerOptions};
use tiny::{FLOATS, QUANTIZED, Tiny};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn decoding_allocates_nothing() {
    for (tiny, threads) in
        [(Tiny::llama(QUANTIZED), 1), (Tiny::llama(QUANTIZED), 2), (Tiny::qwen2(FLOATS), 2)]
    {
        let options = LoadOptions { threads, ..LoadOptions::default() };
        let model = Model::from_memory(tiny.gguf(), &options).unwrap();
        let mut context = Context::new(&model).unwrap();
        let mut greedy = Sampler::new(SamplerOptions::greedy()).unwrap();
        let mut drawn = Sampler::new(SamplerOptions::default()).unwrap();
        let mut token = greedy.sample(context.prefill(&[1, 2, 3]).unwrap()).unwrap();
        let mut step = |token: u32| {
            let logits = context.decode(token).unwrap();
            drawn.sample(logits).unwrap().min(greedy.sample(logits).unwrap())
        };
        for _ in 0..3 {
            token = step(token);
        }
        let before = COUNT.load(Ordering::Relaxed);
        assert!(before > 0, "the allocator counts");
        for _ in 0..20 {
            token = step(token);
        }
        let allocations = COUNT.load(Ordering::Relaxed) - before;
        assert_eq!(allocations, 0, "{} with {threads} threads", tiny.arch);
    }
}
