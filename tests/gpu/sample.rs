//! Sampling on the GPU: the text is that of the sampler with all logits, and far less crosses.

use std::ops::ControlFlow;

use aether_llm::engine::{Context, GenOptions, LoadOptions, Model, Picking, generate};
use aether_llm::sample::{Need, SamplerOptions};
use aether_runtime::{Placement, Traffic};

use super::support::gpu;
use super::tiny::{FLOATS, QUANTIZED, Tiny, VOCAB};

const PROMPT: [u32; 9] = [72, 101, 108, 108, 111, 32, 119, 111, 114];

fn context(model: &Tiny, placement: &Placement, picking: Picking) -> Context {
    let options = LoadOptions {
        batch: 16,
        rows: 1,
        verify: true,
        gpu: Some(gpu()),
        placement: placement.clone(),
        picking,
        ..LoadOptions::default()
    };
    Context::new(&Model::from_memory(model.gguf(), &options).unwrap()).unwrap()
}

#[test]
fn text_is_the_same_whoever_picks() {
    let chains = [
        SamplerOptions::greedy(),
        SamplerOptions { seed: 3, ..SamplerOptions::default() },
        SamplerOptions { seed: 4, temperature: 3.0, min_p: 0.0, ..SamplerOptions::default() },
        SamplerOptions { seed: 5, top_k: 100, temperature: 4.0, ..SamplerOptions::default() },
        // These need all logits.
        SamplerOptions { seed: 6, top_k: 0, temperature: 2.0, ..SamplerOptions::default() },
        SamplerOptions { repeat_penalty: 1.5, ..SamplerOptions::greedy() },
    ];
    for model in [Tiny::llama(FLOATS), Tiny::qwen2(QUANTIZED)] {
        let layers = model.n_layers;
        for placement in [
            Placement::Whole,
            Placement::Supported,
            Placement::Balanced,
            Placement::LastCalls(layers - 1),
            Placement::LastCalls(layers + 1),
        ] {
            let contexts = [Picking::Sampler, Picking::Auto, Picking::Module];
            let mut contexts = contexts.map(|picking| context(&model, &placement, picking));
            for sampler in &chains {
                let opts = GenOptions {
                    n: 30,
                    ignore_eos: true,
                    sampler: sampler.clone(),
                    ..GenOptions::default()
                };
                let texts = contexts.each_mut().map(|context| {
                    context.reset();
                    generate(context, &PROMPT, &opts, &mut |_| ControlFlow::Continue(()))
                        .unwrap()
                        .tokens
                });
                assert_eq!(texts[0], texts[1], "{placement:?} {sampler:?}");
                assert_eq!(texts[0], texts[2], "{placement:?} {sampler:?}");
            }
        }
    }
}

/// Bytes of a step that come back: the status (8 bytes), and what the head gives.
#[test]
fn what_crosses_in_a_step() {
    let model = Tiny::llama(QUANTIZED);
    for placement in [Placement::Whole, Placement::LastCalls(model.n_layers + 1)] {
        let mut context = context(&model, &placement, Picking::Auto);
        context.prefill(&PROMPT).unwrap();
        let table = [
            (Need::All, VOCAB * 4),
            (Need::Best(1), 8),
            (Need::Best(40), 64 * 8),
            (Need::Best(65), 256 * 8),
            (Need::Best(257), VOCAB * 4),
        ];
        for (need, down) in table {
            // Twice: the first run of a program also sends its symbols.
            for _ in 0..2 {
                context.decode_for(5, need).unwrap();
            }
            let Traffic { up, down: found } = context.traffic();
            assert_eq!(found, 8 + down, "{need:?}");
            assert!(up > 0 && up < 1024, "{need:?}: {up}");
        }
    }
}
