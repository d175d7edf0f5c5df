//! Models as IR: the CPU against the reference interpreter, batches against single tokens, edited
//! text, generation.

#[path = "common/tiny.rs"]
mod tiny;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aether_ir::{DType, Interpreter, Module, Tensor};
use aether_llm::engine::{
    Context, EngineError, GenOptions, LoadOptions, Model, Picking, Piece, Slots, StopReason,
    generate,
};
use aether_llm::gguf::Gguf;
use aether_llm::sample::{Need, SamplerOptions, Scores};
use aether_runtime::{Backing, Files, Isa};
use tiny::{FLOATS, QUANTIZED, Tiny, VOCAB};

const PROMPT: [u32; 11] = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100];

fn options() -> LoadOptions {
    LoadOptions { batch: 16, rows: 12, threads: 2, verify: true, ..LoadOptions::default() }
}

fn load(tiny: &Tiny, options: &LoadOptions) -> Arc<Model> {
    Model::from_memory(tiny.gguf(), options).unwrap()
}

/// Logits of every token by the reference interpreter.
fn interpreted(module: &Module, gguf: &Gguf, tokens: &[u32]) -> Vec<Vec<f32>> {
    let logits = results(module, gguf, tokens).swap_remove(0);
    logits.to_f32_vec().unwrap().chunks(VOCAB as usize).map(<[f32]>::to_vec).collect()
}

/// All results for these tokens by the reference interpreter.
fn results(module: &Module, gguf: &Gguf, tokens: &[u32]) -> Vec<Tensor> {
    let files = Files::new();
    files.register("tiny.gguf", gguf.map().clone(), Backing::Memory);
    let interpreter = Interpreter::new(module).with_source(files);
    let main = &module.funcs["main"];
    let ints = |v: Vec<i32>| Tensor::from_i32(&[v.len()], &v).unwrap();
    let mut args = vec![
        ints(tokens.iter().map(|&t| t as i32).collect()),
        Tensor::scalar_i32(0),
        ints((0..tokens.len() as i32).collect()),
    ];
    for &cache in &main.params[3..] {
        let ty = main.ty(cache);
        let shape: Vec<usize> =
            ty.shape.as_const().unwrap().into_iter().map(|d| d as usize).collect();
        args.push(Tensor::zeros(ty.dtype, &shape).unwrap());
    }
    interpreter.run("main", args).unwrap()
}

/// Logits of every token by the engine.
fn computed(model: &Arc<Model>, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut context = Context::new(model).unwrap();
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    let mut out = Vec::new();
    context
        .logits_rows(tokens, &rows, |row, logits| {
            assert_eq!(row as usize, out.len());
            out.push(logits.to_vec());
        })
        .unwrap();
    out
}

/// Greatest difference, relative to the root mean square of what is wanted.
fn distance(got: &[Vec<f32>], want: &[Vec<f32>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let pairs = || {
        got.iter().zip(want).flat_map(|(g, w)| {
            assert_eq!(g.len(), w.len());
            g.iter().zip(w).map(|(g, w)| (f64::from(*g), f64::from(*w)))
        })
    };
    let rms = (pairs().map(|(_, w)| w * w).sum::<f64>() / pairs().count() as f64).sqrt();
    assert!(rms > 0.1, "logits say something: {rms}");
    pairs().map(|(g, w)| (g - w).abs()).fold(0.0, f64::max) / rms
}

/// A token that goes alone takes another kernel of attention, whose sums round differently. Where
/// that moves an activation over the edge between two 8-bit numbers, a whole step of the largest of
/// 256 activations comes in.
const EDGE_TOLERANCE: f64 = 0.05;
/// Floats differ by the rounding of f32 sums and of the f16 cache.
const FLOAT_TOLERANCE: f64 = 0.01;
/// Quantised products round activations to 8 bits per 32 elements as well.
const QUANTIZED_TOLERANCE: f64 = 0.15;

#[test]
fn the_cpu_computes_what_the_interpreter_says() {
    let yarn = Tiny {
        keys: &[("rope.scaling.factor", 4.0)],
        text: Some(("rope.scaling.type", "yarn")),
        ..Tiny::qwen2(FLOATS)
    };
    let table = [
        ("llama, floats", Tiny::llama(FLOATS), FLOAT_TOLERANCE),
        ("llama, quantised", Tiny::llama(QUANTIZED), QUANTIZED_TOLERANCE),
        ("llama, frequencies", Tiny { freqs: true, ..Tiny::llama(FLOATS) }, FLOAT_TOLERANCE),
        ("llama, tied", Tiny { tied: true, ..Tiny::llama(QUANTIZED) }, QUANTIZED_TOLERANCE),
        ("qwen2, floats", Tiny::qwen2(FLOATS), FLOAT_TOLERANCE),
        ("qwen2, quantised", Tiny::qwen2(QUANTIZED), QUANTIZED_TOLERANCE),
        ("qwen2, yarn", yarn, FLOAT_TOLERANCE),
    ];
    for (name, tiny, tolerance) in table {
        for isa in Isa::available() {
            let model = load(&tiny, &LoadOptions { isa: Some(isa), ..options() });
            let want = interpreted(model.module(), model.gguf(), &PROMPT);
            let got = computed(&model, &PROMPT);
            let distance = distance(&got, &want);
            assert!(distance < tolerance, "{name}, {isa}: {distance}");
            let slow = model.executable().by_reference();
            assert!(slow.is_empty(), "{name}: no kernels for {slow:?}");
        }
    }
}

/// Heads of a block or more, so that rows of caches can be blocks.
fn wide() -> Tiny {
    Tiny { n_heads: 2, n_kv_heads: 1, ..Tiny::llama(FLOATS) }
}

#[test]
fn caches_of_blocks_are_read_by_kernels() {
    let tiny = wide();
    let full = computed(&load(&tiny, &options()), &PROMPT);
    // Types, what the interpreter may differ by, and what the rounding of the cache may change.
    let table = [
        ((DType::F32, DType::F32), FLOAT_TOLERANCE, 0.01),
        ((DType::Q8_0, DType::Q8_0), 0.05, 0.15),
        ((DType::Q8_0, DType::F16), 0.05, 0.15),
        ((DType::F16, DType::Q4_0), 0.3, 1.5),
        ((DType::Q4_0, DType::Q4_0), 0.3, 1.5),
    ];
    for (cache_types, tolerance, rounding) in table {
        for isa in Isa::available() {
            let model = load(&tiny, &LoadOptions { isa: Some(isa), cache_types, ..options() });
            let bytes = |ty: DType| 32 / ty.block_len() * ty.block_bytes();
            let row = bytes(cache_types.0) + bytes(cache_types.1);
            assert_eq!(model.cache_bytes(), model.context_len() * 3 * row, "{cache_types:?}");
            let got = computed(&model, &PROMPT);
            let want = interpreted(model.module(), model.gguf(), &PROMPT);
            let from = distance(&got, &want);
            assert!(from < tolerance, "{cache_types:?}, {isa}: {from}");
            let from = distance(&got, &full);
            let blocks = cache_types.0.is_quantized() || cache_types.1.is_quantized();
            assert!(from < rounding && (from > 0.0 || !blocks), "{cache_types:?}, {isa}: {from}");
            let slow = model.executable().by_reference();
            assert!(slow.is_empty(), "{cache_types:?}: no kernels for {slow:?}");
        }
    }
    let options = LoadOptions { cache_types: (DType::F16, DType::Q4_0), ..options() };
    assert!(load(&tiny, &options).module_text().contains("tensor<96x1x32xq4_0>"));
    let refused = Model::from_memory(Tiny::llama(FLOATS).gguf(), &options).err().unwrap();
    let message = refused.to_string();
    assert!(message.contains("values in q4_0") && message.contains("16"), "{message}");
}

#[test]
fn slots_of_blocks_are_copied_and_cut() {
    let options = LoadOptions { slots: 3, cache_types: (DType::Q8_0, DType::Q4_0), ..options() };
    let mut slots = Slots::new(&load(&wide(), &options)).unwrap();
    let piece = |slot, tokens, alone| Piece { slot, tokens, rows: 1, alone };
    slots.run(&[piece(1, &PROMPT[..4], false)]).unwrap();
    slots.copy(1, 2, 3).unwrap();
    slots.truncate(1, 3);
    slots.run(&[piece(1, &PROMPT[3..5], true), piece(2, &PROMPT[3..5], true)]).unwrap();
    assert!(slots.logits(0) == slots.logits(1));
    let want = slots.logits(0).to_vec();
    slots.truncate(2, 3);
    slots.run(&[piece(2, &PROMPT[3..4], false)]).unwrap();
    slots.run(&[piece(2, &PROMPT[4..5], false)]).unwrap();
    assert!(slots.logits(0) == want, "as tokens that go alone");
}

#[test]
fn passes_change_nothing_but_rounding() {
    let tiny = Tiny::llama(QUANTIZED);
    let want = computed(&load(&tiny, &options()), &PROMPT);
    for pipeline in ["", "simplify", "cse,fold,dce", "layout", "fuse", "layout,fuse,dce"] {
        let pipeline = Some(pipeline.to_owned());
        let model = load(&tiny, &LoadOptions { pipeline: pipeline.clone(), ..options() });
        let distance = distance(&computed(&model, &PROMPT), &want);
        assert!(distance < QUANTIZED_TOLERANCE, "{pipeline:?}: {distance}");
    }
}

#[test]
fn batches_and_single_tokens_agree() {
    let tolerance = FLOAT_TOLERANCE;
    for (tiny, alone) in
        [(Tiny::llama(FLOATS), FLOAT_TOLERANCE), (Tiny::qwen2(QUANTIZED), EDGE_TOLERANCE)]
    {
        let tokens: Vec<u32> = (0..70).map(|i| (i * 37 + 5) % 256).collect();
        let whole = load(&tiny, &LoadOptions { batch: 96, rows: 96, ..options() });
        let want = computed(&whole, &tokens);
        assert_eq!(want.len(), tokens.len());
        // Batches of 16 with at most 12 rows.
        let chunked = load(&tiny, &options());
        let far = distance(&computed(&chunked, &tokens), &want);
        assert!(far < tolerance, "chunked: {far}");
        let mut context = Context::new(&chunked).unwrap();
        let singly: Vec<Vec<f32>> =
            tokens.iter().map(|&t| context.decode(t).unwrap().to_vec()).collect();
        let far = distance(&singly, &want);
        assert!(far < alone, "singly: {far}");
        assert_eq!(context.n_past(), tokens.len());
        // The last row, after a reset and in two parts of several batches.
        context.reset();
        context.prefill(&tokens[..41]).unwrap();
        let last = [context.prefill(&tokens[41..]).unwrap().to_vec()];
        assert!(distance(&last, &want[69..]) < tolerance);
        // Going back and on again.
        context.truncate(33);
        let again = [context.prefill(&tokens[33..60]).unwrap().to_vec()];
        assert!(distance(&again, &want[59..60]) < tolerance);
    }
}

#[test]
fn edited_text_runs_as_it_says() {
    let tiny = Tiny::llama(FLOATS);
    let model = load(&tiny, &options());
    let text = model.module_text();
    // The last residual add of each layer is passed over.
    let (before, after) = ("return %ffn_residual, ", "return %ffn_out, ");
    assert_eq!(text.matches(before).count(), 2, "a layer function and the last one:\n{text}");
    let edited = text.replace(before, after);
    let module = aether_ir::parse_and_verify(&edited).unwrap();
    let changed = load(&tiny, &LoadOptions { ir: Some(module.clone()), ..options() });
    let got = computed(&changed, &PROMPT);
    let want = interpreted(&module, model.gguf(), &PROMPT);
    assert!(distance(&got, &want) < FLOAT_TOLERANCE);
    assert!(distance(&got, &computed(&model, &PROMPT)) > 0.5, "the edit shows");
    // Unedited text gives the very same numbers.
    let same = aether_ir::parse_and_verify(&text).unwrap();
    let same = load(&tiny, &LoadOptions { ir: Some(same), ..options() });
    assert_eq!(computed(&same, &PROMPT), computed(&model, &PROMPT));
}

#[test]
fn edits_that_break_the_form_are_errors() {
    let tiny = Tiny::llama(FLOATS);
    let text = load(&tiny, &options()).module_text();
    let table = [
        ("func @main", "func @other", "no such function"),
        ("sym s in 1..=16", "sym s in 2..=16", "range of tokens should begin at 1"),
    ];
    for (from, to, message) in table {
        let edited = text.replace(from, to);
        assert_ne!(edited, text, "{from} is in the text:\n{text}");
        let ir = Some(aether_ir::parse_and_verify(&edited).unwrap());
        match Model::from_memory(tiny.gguf(), &LoadOptions { ir, ..options() }) {
            Err(error) => assert!(error.to_string().contains(message), "{error}"),
            Ok(_) => panic!("{to} was taken"),
        }
    }
}

#[test]
fn layers_of_equal_types_share_a_function() {
    let names = |tiny: Tiny| -> Vec<String> {
        load(&tiny, &options()).module().funcs.keys().map(|k| k.to_string()).collect()
    };
    // The last layer is a function of its own: it goes on with the wanted rows alone.
    assert_eq!(names(Tiny::llama(FLOATS)), ["layer", "layer.1", "main"]);
    let five = Tiny { n_layers: 5, ..Tiny::llama(QUANTIZED) };
    assert_eq!(names(five), ["layer", "layer.1", "layer.2", "main"]);
}

#[test]
fn the_context_is_kept() {
    let tiny = Tiny::llama(FLOATS);
    let model = load(&tiny, &LoadOptions { context: 20, ..options() });
    assert_eq!((model.context_len(), model.batch_len(), model.vocab_len()), (20, 16, 258));
    let mut context = Context::new(&model).unwrap();
    let error = context.prefill(&[1; 21]).unwrap_err().to_string();
    assert!(error.contains("21 tokens") && error.contains("context size of 20"), "{error}");
    assert!(matches!(context.prefill(&[]), Err(EngineError::EmptyPrompt)));
    let outside = context.decode(258);
    assert!(matches!(outside, Err(EngineError::Token { token: 258, vocab: 258 })));
    for rows in [&[3, 3][..], &[2, 1], &[4]] {
        let error = context.logits_rows(&[1; 4], rows, |_, _| ());
        assert!(matches!(error, Err(EngineError::Row { .. })), "{rows:?}");
    }
    assert_eq!(context.n_past(), 0, "refused tokens leave nothing behind");
    context.prefill(&[1; 20]).unwrap();
    let full = context.decode(1);
    assert!(matches!(full, Err(EngineError::ContextFull { past: 20, new: 1, context: 20 })));
    // By default the trained context, and never more than asked for.
    assert_eq!(load(&tiny, &options()).context_len(), 96);
    let huge = LoadOptions { context: usize::MAX, ..options() };
    let error = Model::from_memory(tiny.gguf(), &huge).err().unwrap();
    assert!(matches!(error, EngineError::ContextSize(_)), "{error}");
}

#[test]
fn generation_stops_for_its_reasons() {
    let tiny = Tiny::llama(FLOATS);
    let model = load(&tiny, &LoadOptions { context: 32, ..options() });
    let greedy = GenOptions { sampler: SamplerOptions::greedy(), ..GenOptions::default() };
    let run = |opts: &GenOptions, on_token: &mut dyn FnMut(u32) -> ControlFlow<()>| {
        generate(&mut Context::new(&model).unwrap(), &PROMPT, opts, on_token).unwrap()
    };
    let mut all = |_| ControlFlow::Continue(());
    let opts = GenOptions { n: 5, logprobs: 3, ignore_eos: true, ..greedy.clone() };
    let out = run(&opts, &mut all);
    assert_eq!((out.tokens.len(), out.stop), (5, StopReason::Length));
    assert_eq!((out.timings.prefill_tokens, out.timings.decode_tokens), (11, 4));
    for (token, best) in out.tokens.iter().zip(&out.logprobs) {
        assert_eq!((best.len(), best[0].token), (3, *token));
    }
    // The continuation is what single steps give.
    let mut context = Context::new(&model).unwrap();
    let mut logits = context.prefill(&PROMPT).unwrap().to_vec();
    for &token in &out.tokens {
        assert_eq!(aether_llm::sample::argmax(&logits), Ok(token));
        logits = context.decode(token).unwrap().to_vec();
    }
    let long = GenOptions { n: 1000, ignore_eos: true, ..greedy.clone() };
    let full = run(&long, &mut all);
    // 32 places hold the prompt and 21 tokens; the 22nd comes from the last of them.
    assert_eq!((full.tokens.len(), full.stop), (22, StopReason::Context));
    assert_eq!(full.tokens[..5], out.tokens);
    assert!(run(&GenOptions { n: 0, ..greedy.clone() }, &mut all).tokens.is_empty());
    let mut seen = 0;
    let ended = run(&long, &mut |_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((ended.tokens.len(), ended.stop), (3, StopReason::Callback));
    let stop = Some(Arc::new(AtomicBool::new(true)));
    let stopped = run(&GenOptions { stop, ..long.clone() }, &mut all);
    assert_eq!((stopped.tokens.len(), stopped.stop), (0, StopReason::Stopped));
    // Random draws repeat with their seed and differ without.
    let mut sampled = |seed| {
        let sampler = SamplerOptions { seed, temperature: 5.0, top_k: 0, ..Default::default() };
        run(&GenOptions { sampler, ..long.clone() }, &mut all).tokens
    };
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
}

/// The head with the best tokens means what it should, and the CPU runs it as the interpreter does.
#[test]
fn another_head_gives_the_best_tokens() {
    let tiny = Tiny::llama(FLOATS);
    let gguf = tiny.gguf();
    let model = load(&tiny, &LoadOptions { picking: Picking::Module, ..options() });
    let caches = model.module().funcs["main"].params.len() - 3;
    let k = 64;
    let module = aether_llm::arch::best_tokens(model.module(), caches, k).unwrap();
    aether_ir::verify(&module).unwrap();
    let text = aether_ir::text::print_module(&module);
    let again = aether_ir::parse_and_verify(&text).unwrap();
    assert!(aether_ir::text::print_module(&again) == text, "it prints and parses");
    let whole = interpreted(model.module(), &gguf, &PROMPT);
    let best = results(&module, &gguf, &PROMPT);
    assert_eq!(best.len(), 2 + caches);
    let (values, tokens) = (best[0].to_f32_vec().unwrap(), best[1].to_i64_vec().unwrap());
    let mut context = Context::new(&model).unwrap();
    context.prefill(&PROMPT[..10]).unwrap();
    let scores = context.decode_for(PROMPT[10], Need::Best(40)).unwrap();
    for (row, logits) in whole.iter().enumerate() {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let of_row = row * k..(row + 1) * k;
        let want: Vec<i64> = order[..k].iter().map(|&t| t as i64).collect();
        assert_eq!(tokens[of_row.clone()], want, "row {row}");
        let want: Vec<f32> = order[..k].iter().map(|&t| logits[t]).collect();
        assert_eq!(values[of_row], want, "row {row}");
    }
    // The CPU's last row: so many of the best, and close to the interpreter's.
    let Scores::Best { logits, tokens: found } = scores else { panic!("{scores:?}") };
    assert_eq!((logits.len(), found.len()), (k, k));
    let last = &whole[PROMPT.len() - 1];
    assert!(logits.is_sorted_by(|a, b| a >= b));
    for (logit, &token) in logits.iter().zip(found) {
        assert!((logit - last[token as usize]).abs() < 0.02, "{token}: {logit}");
    }
    assert!(context.logits().is_empty());
    // As many as there are, or more, are all: those come whole.
    let scores = context.decode_for(1, Need::Best(200)).unwrap();
    assert!(matches!(scores, Scores::Best { logits, .. } if logits.len() == 256));
    let scores = context.decode_for(1, Need::Best(257)).unwrap();
    assert_eq!(scores.all().map(<[f32]>::len), Some(VOCAB as usize));
    let plain = load(&tiny, &options());
    let mut context = Context::new(&plain).unwrap();
    assert!(context.decode_for(1, Need::Best(1)).unwrap().all().is_some(), "the CPU has them all");
}

/// Where tokens are picked changes no text.
#[test]
fn text_is_the_same_whoever_picks() {
    for tiny in [Tiny::llama(FLOATS), Tiny::qwen2(QUANTIZED)] {
        let models = [Picking::Auto, Picking::Module]
            .map(|picking| load(&tiny, &LoadOptions { picking, ..options() }));
        let chains = [
            SamplerOptions::greedy(),
            SamplerOptions { seed: 3, ..SamplerOptions::default() },
            SamplerOptions { seed: 4, temperature: 3.0, min_p: 0.0, ..SamplerOptions::default() },
            // These need all logits.
            SamplerOptions { seed: 5, top_k: 0, temperature: 2.0, ..SamplerOptions::default() },
            SamplerOptions { repeat_penalty: 1.5, ..SamplerOptions::greedy() },
        ];
        for sampler in chains {
            let opts = GenOptions { n: 40, ignore_eos: true, sampler, ..GenOptions::default() };
            let [all, best] = models.each_ref().map(|model| {
                let mut context = Context::new(model).unwrap();
                let go_on = &mut |_| ControlFlow::Continue(());
                generate(&mut context, &PROMPT, &opts, go_on).unwrap().tokens
            });
            assert_eq!(all, best, "{:?}", opts.sampler);
        }
    }
}
