//! Speculative decoding gives what comes without it, to the bit, in fewer calls of the model.

#[path = "common/oracle.rs"]
mod oracle;
#[path = "common/tiny.rs"]
mod tiny;

use std::ops::ControlFlow;
use std::sync::Arc;

use aether_ir::DType;
use aether_llm::engine::{
    Context, Done, Drafted, EngineError, Event, Finish, GenOptions, GenOutput, LoadOptions,
    Logprobs, Model, Piece, Proposer, Request, Service, ServiceOptions, Slots, Speculation,
    generate,
};
use aether_llm::sample::{
    Constraint, DryOptions, MirostatOptions, MirostatVersion, SamplerOptions, TokenSet,
};
use tiny::{FLOATS, QUANTIZED, SMALL_BLOCKS, Tiny};

fn load(tiny: &Tiny, slots: usize, threads: usize) -> Arc<Model> {
    let rows = slots.max(1) * 9 + 4;
    let options = LoadOptions { batch: 64, rows, slots, threads, ..LoadOptions::default() };
    Model::from_memory(tiny.gguf(), &options).unwrap()
}

/// A smaller model of the same vocabulary, which thinks otherwise.
fn smaller() -> Tiny {
    Tiny { n_layers: 1, n_ff: 64, ..Tiny::llama(SMALL_BLOCKS) }
}

fn by_model(model: &Arc<Model>, p_min: f32) -> Speculation {
    Speculation { tokens: 6, proposer: Proposer::Draft { model: model.clone(), p_min } }
}

const MIROSTAT: MirostatOptions =
    MirostatOptions { version: MirostatVersion::V2, tau: 5.0, eta: 0.1 };
/// Without floats, whose products depend on how many rows a step has: here that may be many.
const BLOCKS: &[[DType; 7]] =
    &[[DType::Q4_0, DType::Q8_0, DType::Q5_0, DType::Q5_1, DType::Q4_1, DType::Q5_0, DType::Q8_0]];

const NGRAM: Speculation = Speculation { tokens: 8, proposer: Proposer::Ngram };

/// A prompt that repeats itself.
fn prompt(seed: u64) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let line: Vec<u32> = (0..7).map(|_| rng.u32(0..256)).collect();
    [&line[..], &[9, 8], &line, &[3], &line[..4]].concat()
}

fn options(sampler: SamplerOptions) -> GenOptions {
    GenOptions { n: 60, sampler, ignore_eos: true, logprobs: 2, ..GenOptions::default() }
}

fn samplers() -> Vec<SamplerOptions> {
    let warm = |seed| SamplerOptions { temperature: 0.9, seed, ..SamplerOptions::default() };
    vec![
        SamplerOptions::greedy(),
        warm(1),
        warm(2),
        SamplerOptions { repeat_penalty: 1.3, ..warm(3) },
        SamplerOptions { mirostat: Some(MIROSTAT), ..warm(4) },
        SamplerOptions {
            dry: DryOptions { multiplier: 0.8, ..DryOptions::default() },
            xtc_probability: 0.5,
            ..warm(5)
        },
    ]
}

fn run(context: &mut Context, prompt: &[u32], options: &GenOptions) -> GenOutput {
    generate(context, prompt, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn one_sequence_goes_on_as_without() {
    let draft = load(&smaller(), 1, 1);
    for (tiny, threads) in
        [(Tiny::llama(SMALL_BLOCKS), 1), (Tiny::llama(QUANTIZED), 2), (Tiny::qwen2(FLOATS), 2)]
    {
        let plain = load(&tiny, 0, threads);
        let slotted = load(&tiny, 1, threads);
        let mut drafted = Drafted::default();
        for (i, sampler) in samplers().into_iter().enumerate() {
            let (options, prompt) = (options(sampler), prompt(i as u64));
            let want = run(&mut Context::new(&plain).unwrap(), &prompt, &options);
            assert_eq!(want.timings.drafted, Drafted::default());
            for speculation in [NGRAM, by_model(&draft, 0.0)] {
                let mut context = Context::new(&slotted).unwrap();
                context.speculate(&speculation).unwrap();
                let got = run(&mut context, &prompt, &options);
                assert_eq!(got.tokens, want.tokens, "{} {i}", tiny.arch);
                assert!(got.logprobs == want.logprobs, "{} {i}: the same bits", tiny.arch);
                assert_eq!(got.timings.decode_tokens, want.timings.decode_tokens);
                assert_eq!(context.n_past(), prompt.len() + got.tokens.len() - 1);
                drafted.tokens += got.timings.drafted.tokens;
                drafted.accepted += got.timings.drafted.accepted;
                // What follows finds a context as it would be without.
                let more = run(&mut context, &got.tokens[59..], &options);
                let mut again = Context::new(&plain).unwrap();
                again.prefill(&prompt).unwrap();
                want.tokens[..59].iter().for_each(|&t| {
                    again.decode(t).unwrap();
                });
                assert_eq!(more.tokens, run(&mut again, &want.tokens[59..], &options).tokens);
            }
        }
        assert!(drafted.accepted > 0 && drafted.accepted < drafted.tokens, "{drafted:?}");
    }
}

#[test]
fn a_model_that_drafts_for_itself_is_always_right() {
    for tiny in [Tiny::llama(SMALL_BLOCKS), Tiny::qwen2(FLOATS)] {
        let (target, draft) = (load(&tiny, 1, 2), load(&tiny, 1, 1));
        let mut context = Context::new(&target).unwrap();
        context.speculate(&by_model(&draft, 0.0)).unwrap();
        let out = run(&mut context, &prompt(7), &options(SamplerOptions::greedy()));
        let drafted = out.timings.drafted;
        assert_eq!(drafted.accepted, drafted.tokens, "{drafted:?}");
        assert_eq!(out.tokens.len(), 60);
        // Proposals of 4, then of 6 tokens, with one more token from each call.
        assert_eq!(drafted.tokens + drafted.drafts, 59);
        assert_eq!(drafted.drafts, 9);
    }
}

#[test]
fn drafts_end_before_what_the_draft_model_doubts() {
    let (target, draft) = (load(&Tiny::llama(FLOATS), 1, 1), load(&smaller(), 1, 1));
    let count = |p_min: f32| {
        let mut context = Context::new(&target).unwrap();
        context.speculate(&by_model(&draft, p_min)).unwrap();
        run(&mut context, &prompt(1), &options(SamplerOptions::greedy())).timings.drafted.tokens
    };
    assert_eq!(count(1.0), 0);
    assert!(count(0.05) < count(0.0));
}

#[derive(Debug, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<Logprobs>,
    finish: Finish,
}

fn answer(service: &Service, request: Request) -> (Answer, Done) {
    wait(service.submit(request).unwrap())
}

fn wait(mut events: tokio::sync::mpsc::UnboundedReceiver<Event>) -> (Answer, Done) {
    let (mut tokens, mut text, mut all) = (Vec::new(), String::new(), Vec::new());
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Token { id, text: new, logprobs, .. } => {
                tokens.push(id);
                text += &new;
                all.extend(logprobs);
            }
            Event::Done(done) => {
                text += &done.text;
                let finish = done.finish.clone();
                return (Answer { tokens, text, logprobs: all, finish }, done);
            }
            Event::Failed(failure) => panic!("{failure}"),
            _ => {}
        }
    }
    panic!("an answer ends with its end");
}

/// Allows the tokens of a period only, and an end of text after some.
struct Period {
    at: u32,
    set: TokenSet,
}

impl Constraint for Period {
    fn allowed(&mut self) -> Result<&TokenSet, String> {
        self.set = TokenSet::empty(tiny::VOCAB as usize);
        if self.at == 50 {
            self.set.insert(tiny::EOS);
        } else {
            self.set.insert(97 + self.at % 5);
            self.set.insert(65 + self.at % 5);
        }
        Ok(&self.set)
    }

    fn accept(&mut self, _token: u32) -> Result<(), String> {
        self.at += 1;
        Ok(())
    }
}

/// Requests of every kind.
fn requests() -> Vec<Request> {
    let mut all: Vec<Request> = samplers()
        .into_iter()
        .enumerate()
        .map(|(i, sampler)| {
            let request = Request::new(prompt(i as u64), 10 + 9 * i);
            Request { sampler, logprobs: Some(3), ignore_eos: i % 2 == 0, ..request }
        })
        .collect();
    let greedy = |i| Request { sampler: SamplerOptions::greedy(), ..Request::new(prompt(i), 1000) };
    // To the end of the context, and over it.
    all.push(Request { ignore_eos: true, ..greedy(20) });
    let longer = Request { ignore_eos: true, shift: true, ..greedy(21) };
    all.push(Request { max_tokens: 150, ..longer });
    let biased = SamplerOptions {
        logit_bias: vec![(100, 3.0), (7, f32::NEG_INFINITY)],
        ..SamplerOptions::default()
    };
    all.push(Request { sampler: biased, after_sampling: true, logprobs: Some(2), ..greedy(22) });
    let period = Period { at: 0, set: TokenSet::default() };
    all.push(Request { constraint: Some(Box::new(period)), ..greedy(23) });
    all.push(Request { stop: vec!["b".to_owned(), "eA".to_owned()], ..greedy(24) });
    all.push(Request {
        constraint: Some(Box::new(Period { at: 0, set: TokenSet::default() })),
        stop: vec!["deab".to_owned(), "DEAB".to_owned()],
        ..greedy(25)
    });
    for request in &mut all {
        request.reproducible = true;
    }
    all
}

#[test]
fn many_sequences_go_on_as_each_without() {
    let tiny = Tiny::llama(BLOCKS);
    let options = ServiceOptions { queue: 100, chunk: 16 };
    let plain = Service::start(load(&tiny, 1, 1), options).unwrap();
    let want: Vec<Answer> = requests().into_iter().map(|r| answer(&plain, r).0).collect();
    assert!(want.iter().any(|a| matches!(a.finish, Finish::StopText(_))));
    assert!(want.iter().any(|a| matches!(a.finish, Finish::Eos(_))));
    assert!(want.iter().any(|a| a.finish == Finish::Context));
    let steps = plain.stats().steps;
    let (same, other) = (load(&tiny, 4, 1), load(&smaller(), 4, 1));
    for (name, speculation, slots) in [
        ("ngram", NGRAM, 1),
        ("ngram", NGRAM, 4),
        ("itself", by_model(&same, 0.0), 1),
        ("another", by_model(&other, 0.0), 4),
        ("another, doubting", by_model(&other, 0.03), 3),
    ] {
        let model = load(&tiny, slots, 2);
        let service = Service::speculating(model, options, Some(&speculation)).unwrap();
        let running: Vec<_> = requests().into_iter().map(|r| service.submit(r).unwrap()).collect();
        let mut sum = Drafted::default();
        for (i, (events, want)) in running.into_iter().zip(&want).enumerate() {
            let (got, done) = wait(events);
            assert_eq!(got, *want, "{name} in {slots} slots, request {i}");
            let drafted = done.usage.drafted;
            assert!(drafted.accepted <= drafted.tokens && drafted.drafts <= drafted.tokens);
            sum.drafts += drafted.drafts;
            sum.tokens += drafted.tokens;
            sum.accepted += drafted.accepted;
        }
        while service.in_flight() > 0 {
            std::thread::yield_now();
        }
        assert_eq!(service.stats().drafted, sum, "{name}");
        // One that doubts says little.
        assert!(sum.accepted > 0 || name.ends_with("doubting"), "{name}: {sum:?}");
        if slots == 1 {
            let fewer = service.stats().steps;
            assert!(fewer < steps * 9 / 10, "{name}: {fewer} steps, without {steps}");
        }
        // A request can be without.
        let alone = Request { draft_tokens: Some(0), ..Request::new(prompt(1), 20) };
        assert_eq!(answer(&service, alone).1.usage.drafted, Drafted::default());
    }
}

/// The same bits where the kernels are AVX-512's. Those of AVX2 and the scalar ones sum a product of
/// one token in another order than that of several: there rows may differ by rounding.
fn same(found: &[f32], want: &[f32], what: &str) {
    #[cfg(target_arch = "x86_64")]
    let exact = std::env::var_os("AETHER_ISA").is_none()
        && std::arch::is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    let exact = false;
    if exact {
        return assert!(found == want, "{what}");
    }
    assert_eq!(found.len(), want.len(), "{what}");
    let greatest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (f, w) in found.iter().zip(want) {
        assert!((f - w).abs() <= 0.05 * greatest, "{what}: {f}, not {w}");
    }
}

/// Rows of tokens that each go alone have the bits of calls of their own, beside others too.
#[test]
fn tokens_that_go_alone_have_the_bits_of_their_own_calls() {
    for tiny in [Tiny::llama(SMALL_BLOCKS), Tiny::llama(QUANTIZED), Tiny::qwen2(FLOATS)] {
        let model = load(&tiny, 3, 2);
        let (prompt, next) = (prompt(3), [4, 5, 6, 7, 8, 9, 10, 11, 12]);
        let piece = |slot, tokens, rows, alone| Piece { slot, tokens, rows, alone };
        let mut slots = Slots::new(&model).unwrap();
        slots.run(&[piece(1, &prompt, 1, false)]).unwrap();
        let mut want = Vec::new();
        for token in &next {
            slots.run(&[piece(1, std::slice::from_ref(token), 1, false)]).unwrap();
            want.push(slots.logits(0).to_vec());
        }
        slots.truncate(1, prompt.len());
        let beside = [
            piece(0, &prompt[..5], 1, false),
            piece(1, &next, next.len(), true),
            piece(2, &prompt[..3], 2, true),
        ];
        slots.run(&beside).unwrap();
        for (i, want) in want.iter().enumerate() {
            same(slots.logits(1 + i), want, &format!("{} row {i}", tiny.arch));
        }
        // Once more after some are taken back.
        slots.truncate(1, prompt.len() + 4);
        slots.run(&[piece(1, &next[4..], 2, true)]).unwrap();
        same(slots.logits(0), &want[7], tiny.arch);
        same(slots.logits(1), &want[8], tiny.arch);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = load(&Tiny::llama(FLOATS), 1, 1);
    let mut context = Context::new(&model).unwrap();
    let data = oracle::Oracle::read("llama");
    let options = LoadOptions { slots: 1, ..LoadOptions::default() };
    let stranger = Model::from_memory(data.gguf("llama"), &options).unwrap();
    let unslotted = load(&Tiny::llama(FLOATS), 0, 1);
    let of = |tokens, proposer| Speculation { tokens, proposer };
    let draft = |model: &Arc<Model>, p_min| Proposer::Draft { model: model.clone(), p_min };
    type Row = (Speculation, fn(&EngineError) -> bool);
    let table: [Row; 6] = [
        (of(0, Proposer::Ngram), |e| matches!(e, EngineError::DraftTokens { tokens: 0, .. })),
        (of(13, Proposer::Ngram), |e| matches!(e, EngineError::DraftTokens { most: 12, .. })),
        (of(4, draft(&stranger, 0.5)), |e| matches!(e, EngineError::DraftVocab { .. })),
        (of(4, draft(&model, 1.5)), |e| matches!(e, EngineError::DraftProbability(_))),
        (of(4, draft(&model, f32::NAN)), |e| matches!(e, EngineError::DraftProbability(_))),
        (of(4, draft(&unslotted, 0.5)), |e| matches!(e, EngineError::Form { .. })),
    ];
    for (speculation, fits) in table {
        let error = context.speculate(&speculation).unwrap_err();
        assert!(fits(&error), "{error}");
    }
    let error = context.speculate(&of(4, draft(&stranger, 0.5))).unwrap_err().to_string();
    assert!(error.contains("llama.gguf") && error.contains("vocabularies differ"), "{error}");
    let mut plain = Context::new(&unslotted).unwrap();
    let error = plain.speculate(&NGRAM).unwrap_err();
    assert!(matches!(error, EngineError::Form { expected: "with one slot" }), "{error}");
    let many = load(&Tiny::llama(FLOATS), 2, 1);
    let service =
        Service::speculating(many, ServiceOptions::default(), Some(&by_model(&model, 0.5)));
    assert!(matches!(service.err(), Some(EngineError::Form { .. })), "one slot for two");
}
