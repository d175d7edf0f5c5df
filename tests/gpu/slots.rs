//! Many sequences on the GPU, and the service on it: what the CPU gives, alone and in company, and
//! what happens when the device goes away.

use std::sync::Arc;

use aether_llm::engine::{
    Event, Failure, LoadOptions, Model, Piece, Request, Service, ServiceElsewhere, ServiceOptions,
    Slots, SubmitError,
};
use aether_llm::sample::{Need, SamplerOptions};
use aether_runtime::gpu::{Gpu, GpuOptions};
use aether_runtime::{Placement, Session, Traffic};

use super::models::cosine;
use super::support::gpu;
use super::tiny::{FLOATS, QUANTIZED, Tiny, VOCAB};

fn load(tiny: &Tiny, gpu: Option<Arc<Gpu>>, placement: Placement, slots: usize) -> Arc<Model> {
    let options = LoadOptions {
        batch: 32,
        rows: slots + 12,
        slots,
        threads: 2,
        gpu,
        placement,
        ..LoadOptions::default()
    };
    Model::from_memory(tiny.gguf(), &options).unwrap()
}

fn text(seed: u64, n: usize) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| rng.u32(0..256)).collect()
}

/// Steps with one token, with one of each slot, with pieces of prompts beside them.
#[test]
fn steps_of_many_sizes() {
    let texts = [text(1, 30), text(2, 19), text(3, 24)];
    let steps: [&[(usize, usize, usize, usize)]; 6] = [
        &[(3, 0, 17, 3)],
        &[(0, 1, 15, 5), (3, 0, 1, 1), (1, 2, 9, 0)],
        &[(1, 2, 1, 1), (0, 1, 1, 1), (3, 0, 1, 1)],
        &[(3, 0, 9, 4), (0, 1, 1, 1), (1, 2, 13, 2)],
        &[(0, 1, 1, 1)],
        &[(0, 1, 1, 1), (1, 2, 1, 1), (3, 0, 2, 2)],
    ];
    for tiny in [Tiny::llama(FLOATS), Tiny::qwen2(QUANTIZED)] {
        for placement in [Placement::Whole, Placement::LastCalls(2)] {
            let cpu = load(&tiny, None, Placement::Whole, 4);
            let models = [cpu, load(&tiny, Some(gpu()), placement.clone(), 4)];
            let mut slots = models.map(|model| Slots::new(&model).unwrap());
            let mut done = [0; 3];
            for step in steps {
                let pieces: Vec<Piece<'_>> = step
                    .iter()
                    .map(|&(slot, i, n, rows)| {
                        let tokens = &texts[i][done[i]..][..n];
                        Piece { slot, tokens, rows, alone: false }
                    })
                    .collect();
                slots.iter_mut().for_each(|slots| slots.run(&pieces).unwrap());
                step.iter().for_each(|&(_, i, n, _)| done[i] += n);
                let rows: usize = step.iter().map(|s| s.3).sum();
                for row in 0..rows {
                    let [a, b] = slots.each_ref().map(|slots| slots.logits(row));
                    let similar = cosine(a, b);
                    assert!(similar > 0.999, "{placement:?} {step:?} row {row}: {similar}");
                    let [a, b] = slots.each_ref().map(|slots| slots.hidden(row));
                    assert!(cosine(a, b) > 0.999, "{placement:?} {step:?} row {row}");
                }
            }
        }
    }
}

#[test]
fn a_copy_goes_on_as_the_original() {
    for placement in [Placement::Whole, Placement::LastCalls(1)] {
        let model = load(&Tiny::llama(FLOATS), Some(gpu()), placement, 3);
        let mut slots = Slots::new(&model).unwrap();
        let tokens = text(4, 12);
        slots.run(&[Piece { slot: 1, tokens: &tokens, rows: 0, alone: false }]).unwrap();
        slots.copy(1, 2, 8).unwrap();
        slots.copy(1, 0, 8).unwrap();
        slots.truncate(1, 8);
        let next = |slot| Piece { slot, tokens: &tokens[8..], rows: 1, alone: false };
        slots.run(&[next(1), next(2), next(0)]).unwrap();
        assert_eq!(slots.logits(0), slots.logits(1));
        assert_eq!(slots.logits(0), slots.logits(2));
    }
}

/// Ranges that meet, and those that are no whole words.
#[test]
fn states_are_copied_within() {
    let model = load(&Tiny::llama(FLOATS), Some(gpu()), Placement::Whole, 2);
    let session = Session::new(model.executable().clone()).unwrap();
    let mut state = session.state(4).unwrap();
    let mut want: Vec<u8> = (0..state.len()).map(|i| (i * 7 % 251) as u8).collect();
    state.write(&want).unwrap();
    for (from, to) in [(0..64, 128), (0..400, 100), (100..500, 4), (3..50, 77), (9..9, 0)] {
        state.copy_within(from.clone(), to).unwrap();
        want.copy_within(from.clone(), to);
        let mut got = vec![0; want.len()];
        state.read(&mut got).unwrap();
        assert!(got == want, "{from:?} to {to}");
    }
    let len = state.len();
    assert!(state.copy_within(0..8, len - 4).is_err());
}

/// Bytes that come back in a step of three slots: the status, and what the head gives.
#[test]
fn what_crosses_in_a_step() {
    let model = load(&Tiny::llama(FLOATS), Some(gpu()), Placement::Whole, 4);
    let mut slots = Slots::new(&model).unwrap();
    let pieces = [0, 1, 3].map(|slot| Piece { slot, tokens: &[7], rows: 1, alone: false });
    let down = |slots: &Slots| {
        let Traffic { down, .. } = slots.traffic();
        down
    };
    slots.run_for(&pieces, Need::Best(1)).unwrap();
    assert_eq!(down(&slots), 8 + 3 * 64 * 8);
    slots.run_for(&pieces, Need::All).unwrap();
    assert_eq!(down(&slots), 8 + 3 * 4 * (VOCAB + 64));
}

fn service(gpu: Option<Arc<Gpu>>, slots: usize, elsewhere: ServiceElsewhere) -> Service {
    let model = load(&Tiny::llama(FLOATS), gpu, Placement::Whole, slots);
    Service::start_or(model, ServiceOptions { queue: 100, chunk: 16 }, None, elsewhere).unwrap()
}

fn plain(gpu: Option<Arc<Gpu>>, slots: usize) -> Service {
    service(gpu, slots, Box::new(|_| None))
}

/// Greedy, top-k, and with all logits.
fn request(i: u64, n: usize) -> Request {
    let sampler = match i % 3 {
        0 => SamplerOptions::greedy(),
        1 => SamplerOptions { seed: i, ..SamplerOptions::default() },
        _ => SamplerOptions { seed: i, top_k: 0, ..SamplerOptions::default() },
    };
    Request { sampler, ignore_eos: true, ..Request::new(text(i % 4, 3 + 7 * i as usize), n) }
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    cached: usize,
    embedding: Vec<f32>,
    shifted: bool,
}

/// Waits for the end; `each` is called at every token.
fn answer(service: &Service, request: Request, each: &mut dyn FnMut()) -> Result<Answer, Failure> {
    let mut events = service.submit(request).unwrap();
    let mut answer = Answer::default();
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Started { cached } => answer.cached = cached,
            Event::Token { id, .. } => {
                answer.tokens.push(id);
                each();
            }
            Event::Embedding(values) => answer.embedding = values,
            Event::Done(done) => answer.shifted = done.usage.shifted,
            Event::Failed(failure) => return Err(failure),
            _ => {}
        }
    }
    Ok(answer)
}

fn ask(service: &Service, request: Request) -> Answer {
    answer(service, request, &mut || ()).unwrap()
}

/// All requests at once.
fn together(service: &Service, n: usize, each: &(dyn Fn() + Sync)) -> Vec<Result<Answer, Failure>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|i| scope.spawn(move || answer(service, request(i, n), &mut || each())))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn answers_are_those_of_the_cpu_in_any_company() {
    let want: Vec<Vec<u32>> = {
        let cpu = plain(None, 1);
        (0..8).map(|i| ask(&cpu, request(i, 12)).tokens).collect()
    };
    let alone = plain(Some(gpu()), 1);
    let many = plain(Some(gpu()), 4);
    for (i, want) in want.iter().enumerate() {
        assert_eq!(ask(&alone, request(i as u64, 12)).tokens, *want, "request {i}");
    }
    for _ in 0..2 {
        for (got, want) in together(&many, 12, &|| ()).into_iter().zip(&want) {
            assert_eq!(got.unwrap().tokens, *want);
        }
    }
    assert!(many.stats().steps < 2 * 8 * 12, "many go through the model together");
}

#[test]
fn prefixes_shifts_and_embeddings() {
    let services = [plain(None, 3), plain(Some(gpu()), 3)];
    let prompt = text(9, 40);
    let greedy = |n| Request {
        sampler: SamplerOptions::greedy(),
        ignore_eos: true,
        ..Request::new(prompt.clone(), n)
    };
    let answers = services.each_ref().map(|service| {
        let first = ask(service, greedy(6));
        let again = ask(service, greedy(6));
        assert_eq!((first.cached, again.cached), (0, 38));
        assert_eq!(again.tokens, first.tokens);
        // From another slot's cache.
        let slot = Request { slot: Some(2), ..greedy(6) };
        let copied = ask(service, slot);
        assert_eq!((copied.cached, &copied.tokens), (38, &first.tokens));
        // The context holds 96.
        let long = ask(service, Request { shift: true, ..greedy(80) });
        assert!(long.shifted && long.tokens.len() == 80);
        let embedding = ask(service, Request { embedding: true, ..greedy(1) }).embedding;
        (first, long.tokens, embedding)
    });
    let [cpu, gpu] = &answers;
    assert_eq!((&gpu.0, &gpu.1), (&cpu.0, &cpu.1));
    assert_eq!((cpu.2.len(), gpu.2.len()), (64, 64));
    assert!(cosine(&cpu.2, &gpu.2) > 0.9999);
}

fn open() -> Arc<Gpu> {
    Gpu::open(&GpuOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Requests that run when the GPU goes away are continued on the CPU, and give what they would have.
#[test]
fn the_cpu_goes_on_where_the_gpu_was() {
    let want: Vec<Vec<u32>> = {
        let cpu = plain(None, 1);
        (0..8).map(|i| ask(&cpu, request(i, 12)).tokens).collect()
    };
    let gpu = open();
    let elsewhere: ServiceElsewhere = Box::new(|lost| {
        assert!(lost.is_device_lost(), "{lost}");
        Some(Ok(load(&Tiny::llama(FLOATS), None, Placement::Whole, 3)))
    });
    let service = service(Some(gpu.clone()), 3, elsewhere);
    let tokens = std::sync::atomic::AtomicUsize::new(0);
    let answers = together(&service, 12, &|| {
        if tokens.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 20 {
            gpu.destroy();
        }
    });
    for (got, want) in answers.into_iter().zip(&want) {
        assert_eq!(got.unwrap().tokens, *want);
    }
    assert_eq!((service.lost(), service.stats().broken), (None, 0));
}

/// Without another model they fail, soon and with the reason, and no more are taken.
#[test]
fn nothing_goes_on_without_a_gpu() {
    let gpu = open();
    let service = plain(Some(gpu.clone()), 2);
    ask(&service, request(0, 3));
    gpu.destroy();
    let failed = answer(&service, request(1, 12), &mut || ()).unwrap_err();
    assert!(matches!(&failed, Failure::Run(why) if why.contains("lost")), "{failed}");
    let why = service.lost().unwrap();
    assert!(why.contains("lost") && why.contains("--device cpu"), "{why}");
    let refused = service.submit(request(0, 3)).unwrap_err();
    assert!(matches!(refused, SubmitError::Lost(_)), "{refused}");
    assert!(!service.is_ready());
    let begun = std::time::Instant::now();
    while service.in_flight() > 0 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "a request never ends");
        std::thread::yield_now();
    }
}
