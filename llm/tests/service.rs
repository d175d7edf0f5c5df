//! The engine as a service: many requests at once give what each gives alone, and none harms the
//! others.

#[path = "common/tiny.rs"]
mod tiny;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aether_llm::engine::{
    Done, Event, Failure, Finish, LoadOptions, Logprobs, Model, Request, Service, ServiceOptions,
    SubmitError,
};
use aether_llm::sample::{Constraint, SamplerOptions, TokenSet};
use tiny::{FLOATS, SMALL_BLOCKS, Tiny};
use tokio::sync::mpsc::UnboundedReceiver;

fn model(slots: usize) -> Arc<Model> {
    let options =
        LoadOptions { batch: 32, rows: slots + 8, slots, threads: 2, ..LoadOptions::default() };
    Model::from_memory(Tiny::llama(SMALL_BLOCKS).gguf(), &options).unwrap()
}

fn service(slots: usize, queue: usize) -> Service {
    Service::start(model(slots), ServiceOptions { queue, chunk: 16 }).unwrap()
}

fn text(seed: u64, n: usize) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| rng.u32(0..256)).collect()
}

fn request(seed: u64, prompt: Vec<u32>, n: usize) -> Request {
    let sampler = SamplerOptions { seed, temperature: 1.5, ..SamplerOptions::default() };
    Request { sampler, ignore_eos: true, reproducible: true, ..Request::new(prompt, n) }
}

#[derive(Debug, Default)]
struct Answer {
    cached: usize,
    progress: Vec<usize>,
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<Logprobs>,
    prompt: Vec<Logprobs>,
    embedding: Vec<f32>,
    done: Option<Done>,
}

fn wait(mut events: UnboundedReceiver<Event>) -> Result<Answer, Failure> {
    let mut answer = Answer::default();
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Started { cached } => answer.cached = cached,
            Event::Progress { processed, .. } => answer.progress.push(processed),
            Event::Prompt(logprobs) => answer.prompt = logprobs,
            Event::Embedding(values) => answer.embedding = values,
            Event::Token { id, text, logprobs, .. } => {
                answer.tokens.push(id);
                answer.text += &text;
                answer.logprobs.extend(logprobs);
            }
            Event::Done(done) => {
                answer.text += &done.text;
                answer.done = Some(done);
            }
            Event::Failed(failure) => return Err(failure),
        }
    }
    assert!(answer.done.is_some(), "an answer ends with its end");
    Ok(answer)
}

fn finish(answer: &Answer) -> &Finish {
    &answer.done.as_ref().unwrap().finish
}

#[test]
fn company_changes_no_answer() {
    let asks: Vec<(u64, Vec<u32>, usize)> =
        (0..9).map(|i| (i, text(i % 6, 3 + 7 * i as usize), 12)).collect();
    let alone: Vec<Vec<u32>> = asks
        .iter()
        .map(|(seed, prompt, n)| {
            let service = service(1, 0);
            let events = service.submit(request(*seed, prompt.clone(), *n)).unwrap();
            wait(events).unwrap().tokens
        })
        .collect();
    let service = service(4, 100);
    for round in 0..3 {
        let running: Vec<_> = asks
            .iter()
            .map(|(seed, prompt, n)| {
                // Others come and go meanwhile, at moments of their own.
                std::thread::sleep(Duration::from_millis(round * 3));
                service.submit(request(*seed, prompt.clone(), *n)).unwrap()
            })
            .collect();
        for (events, want) in running.into_iter().zip(&alone) {
            assert_eq!(wait(events).unwrap().tokens, *want, "round {round}");
        }
    }
    let stats = service.stats();
    assert_eq!((stats.finished, stats.broken, service.in_flight()), (27, 0, 0));
    assert_eq!(stats.completion_tokens, 27 * 12);
    assert!(stats.steps < 27 * 12, "many go through the model together");
}

#[test]
fn shared_beginnings_are_paid_for_once() {
    let service = service(2, 8);
    let prompt = text(1, 40);
    let ask = |request: Request| wait(service.submit(request).unwrap()).unwrap();
    let loose = |prompt: &[u32]| Request { reproducible: false, ..request(1, prompt.to_vec(), 6) };
    let first = ask(loose(&prompt));
    assert_eq!(first.cached, 0);
    let again = ask(loose(&prompt));
    assert_eq!((again.cached, &again.tokens), (38, &first.tokens));
    // What was generated counts too.
    let longer = [&prompt[..], &first.tokens, &[7, 8]].concat();
    assert_eq!(ask(loose(&longer)).cached, 45);
    assert_eq!(ask(request(1, longer.clone(), 6)).cached, 40, "single tokens took another road");
    // From the slot of another request while this one is running.
    let running = service.submit(loose(&longer)).unwrap();
    let copied = ask(loose(&[&longer[..30], &text(9, 5)].concat()));
    assert_eq!(copied.cached, 30);
    assert_eq!(wait(running).unwrap().done.unwrap().usage.cached_tokens, 46);
    assert_eq!(ask(loose(&text(2, 40))).cached, 0);
}

#[test]
fn answers_end_for_their_reasons() {
    let service = service(2, 8);
    let ask = |request: Request| wait(service.submit(request).unwrap()).unwrap();
    let prompt = text(3, 10);
    let whole = ask(request(5, prompt.clone(), 20));
    assert_eq!((whole.tokens.len(), finish(&whole)), (20, &Finish::Length));
    let usage = whole.done.as_ref().unwrap().usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (10, 20));

    let none = ask(request(5, prompt.clone(), 0));
    assert_eq!((none.tokens.len(), finish(&none)), (0, &Finish::Length));

    let full = ask(request(5, text(4, 90), 1000));
    // 96 places hold the prompt and six tokens; the seventh comes from the last of them.
    assert_eq!((full.tokens.len(), finish(&full)), (7, &Finish::Context));
    let brim = ask(request(5, text(4, 96), 1000));
    assert_eq!((brim.tokens.len(), finish(&brim)), (1, &Finish::Context));

    let stop = whole.text.chars().skip(3).take(2).collect::<String>();
    let stopped = ask(Request { stop: vec![stop.clone()], ..request(5, prompt.clone(), 20) });
    assert_eq!(finish(&stopped), &Finish::StopText(stop.clone()));
    assert_eq!(stopped.text, whole.text[..whole.text.find(&stop).unwrap()]);

    let late = Request { deadline: Some(Instant::now()), ..request(5, prompt.clone(), 20) };
    assert_eq!(wait(service.submit(late).unwrap()).unwrap_err(), Failure::Deadline);
    let soon = Some(Instant::now() + Duration::from_millis(60));
    let cut = Request { deadline: soon, ..request(5, prompt, 100_000) };
    let cut = wait(service.submit(cut).unwrap()).unwrap();
    assert!(matches!(finish(&cut), Finish::Deadline | Finish::Context));
}

#[test]
fn a_full_context_is_shifted_when_asked_for() {
    let service = service(2, 8);
    let ask = |request: Request| wait(service.submit(request).unwrap()).unwrap();
    let prompt = text(4, 90);
    let plain = ask(request(5, prompt.clone(), 1000));
    let shifted = ask(Request { shift: true, ..request(5, prompt.clone(), 200) });
    assert_eq!((shifted.tokens.len(), finish(&shifted)), (200, &Finish::Length));
    assert_eq!(shifted.tokens[..7], plain.tokens, "until it is full nothing changes");
    let usage = shifted.done.as_ref().unwrap().usage;
    assert!(usage.shifted && (usage.prompt_tokens, usage.completion_tokens) == (90, 200));
    // After the shift the answer is that to the first token and the later half.
    let greedy = |prompt: Vec<u32>, n| Request {
        sampler: SamplerOptions::greedy(),
        shift: true,
        ..request(0, prompt, n)
    };
    let long = ask(greedy(prompt.clone(), 12));
    let all = [&prompt[..], &long.tokens].concat();
    let rest = ask(greedy([&all[..1], &all[97 - 48..97]].concat(), 5));
    assert_eq!(long.tokens[7..], rest.tokens);
}

#[test]
fn a_slot_can_be_chosen_and_progress_told() {
    let service = service(2, 8);
    let in_slot = |slot: usize, prompt: Vec<u32>, n| Request {
        slot: Some(slot),
        progress: true,
        reproducible: false,
        ..request(1, prompt, n)
    };
    // Both want the same slot: the second waits, and a third passes it.
    let first = service.submit(in_slot(1, text(1, 40), 30)).unwrap();
    let second = service.submit(in_slot(1, text(1, 40), 3)).unwrap();
    let third = wait(service.submit(request(2, text(2, 5), 3)).unwrap()).unwrap();
    let slot = |answer: &Answer| answer.done.as_ref().unwrap().usage.slot;
    assert_eq!(slot(&third), 0);
    let (first, second) = (wait(first).unwrap(), wait(second).unwrap());
    assert_eq!((slot(&first), slot(&second)), (1, 1));
    assert_eq!((first.progress[0], *first.progress.last().unwrap()), (0, 40));
    assert!(first.progress.is_sorted());
    assert_eq!(second.progress, [second.cached, 40]);
    assert!(service.submit(in_slot(2, text(1, 5), 3)).is_err());
    assert!(service.slot_states().iter().all(|slot| slot.cached > 0));
}

#[test]
fn probabilities_come_with_prompt_and_answer() {
    let service = service(2, 8);
    let prompt = text(3, 30);
    let logprobs = Some(3);
    let ask = request(2, prompt.clone(), 4);
    let ask = Request { logprobs, prompt_logprobs: logprobs, ..ask };
    let answer = wait(service.submit(ask).unwrap()).unwrap();
    let of_prompt: Vec<u32> = answer.prompt.iter().map(|l| l.chosen.token).collect();
    assert_eq!(of_prompt, prompt[1..]);
    let of_answer: Vec<u32> = answer.logprobs.iter().map(|l| l.chosen.token).collect();
    assert_eq!(of_answer, answer.tokens);
    for l in answer.prompt.iter().chain(&answer.logprobs) {
        assert!(l.top.len() == 3 && l.top[0].logprob >= l.chosen.logprob, "{l:?}");
    }
    // The answer as a prompt has the probabilities that it had as an answer.
    let whole = [&prompt[..], &answer.tokens].concat();
    let ask = Request { prompt_logprobs: logprobs, ..request(2, whole, 0) };
    let replay = wait(service.submit(ask).unwrap()).unwrap();
    for (a, b) in replay.prompt[29..].iter().zip(&answer.logprobs) {
        assert_eq!(a.chosen.token, b.chosen.token);
        assert!((a.chosen.logprob - b.chosen.logprob).abs() < 0.1, "{a:?} {b:?}");
    }
}

#[test]
fn embeddings_are_of_length_one() {
    let service = service(3, 8);
    let embed = |prompt: Vec<u32>| {
        let ask = Request { embedding: true, ..Request::new(prompt, 0) };
        wait(service.submit(ask).unwrap()).unwrap().embedding
    };
    let (a, b) = (embed(text(1, 20)), embed(text(2, 20)));
    assert_eq!(a.len(), 64);
    for x in [&a, &b] {
        assert!((x.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert!(a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>() < 0.99);
}

#[test]
fn who_leaves_frees_a_slot() {
    let service = service(1, 1);
    let endless = || request(1, text(1, 5), 80);
    let mut running = service.submit(endless()).unwrap();
    assert!(matches!(running.blocking_recv(), Some(Event::Started { .. })));
    let waiting = service.submit(request(2, text(2, 5), 2)).unwrap();
    let full = service.submit(request(3, text(3, 5), 2));
    assert!(matches!(full, Err(SubmitError::QueueFull { waiting: 1 })));
    assert!(!service.is_ready());
    drop(running);
    assert_eq!(wait(waiting).unwrap().tokens.len(), 2);
    assert!(service.is_ready());
    assert_eq!(service.stats().broken, 1);
    service.drain();
    assert!(!service.is_ready());
    assert!(matches!(service.submit(endless()), Err(SubmitError::Draining)));
}

/// Allows everything, until it panics.
struct Broken(TokenSet, usize);

impl Constraint for Broken {
    fn allowed(&mut self) -> Result<&TokenSet, String> {
        self.1 -= 1;
        assert!(self.1 > 0, "as a test wants it");
        Ok(&self.0)
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn a_panic_takes_one_request_down() {
    let service = service(2, 8);
    let mut all = TokenSet::empty(258);
    (0..256).for_each(|t| all.insert(t));
    let broken: Box<dyn Constraint> = Box::new(Broken(all, 4));
    let good = service.submit(request(1, text(1, 5), 30)).unwrap();
    let bad = Request { constraint: Some(broken), ..request(1, text(2, 5), 30) };
    let bad = service.submit(bad).unwrap();
    let failure = wait(bad).unwrap_err();
    assert!(failure.to_string().contains("as a test wants it"), "{failure}");
    assert_eq!(wait(good).unwrap().tokens.len(), 30);
    let none = Box::new(Broken(TokenSet::empty(258), 9));
    let none = Request { constraint: Some(none), ..request(1, text(2, 5), 30) };
    let failure = wait(service.submit(none).unwrap()).unwrap_err();
    assert!(matches!(failure, Failure::Sample(_)), "{failure}");
    assert_eq!(wait(service.submit(request(1, text(3, 5), 3)).unwrap()).unwrap().tokens.len(), 3);
}

#[test]
fn a_run_that_fails_takes_its_requests_down() {
    let tiny = Tiny::llama(FLOATS);
    let options =
        LoadOptions { batch: 32, rows: 10, slots: 2, threads: 2, ..LoadOptions::default() };
    let text = Model::from_memory(tiny.gguf(), &options).unwrap().module_text();
    // A model that looks up twice the token: a fault of a kernel for every token from 129 on.
    let ty = text.split("%tokens: ").nth(1).unwrap().split([',', ')']).next().unwrap();
    let line = text.lines().find(|l| l.contains("gather") && l.contains("%tokens")).unwrap();
    let twice =
        format!("    %twice = add %tokens, %tokens : {ty}\n{}", line.replace("%tokens", "%twice"));
    let ir = aether_ir::parse_and_verify(&text.replace(line, &twice)).unwrap();
    let options = LoadOptions { ir: Some(ir), ..options };
    let model = Model::from_memory(tiny.gguf(), &options).unwrap();
    let service = Service::start(model, ServiceOptions { queue: 8, chunk: 16 }).unwrap();
    let good = || wait(service.submit(request(1, vec![100; 20], 1)).unwrap());
    let before = good().unwrap().tokens;
    for _ in 0..3 {
        let failure = wait(service.submit(request(1, vec![200; 20], 1)).unwrap()).unwrap_err();
        assert!(matches!(&failure, Failure::Run(why) if why.contains("outside")), "{failure}");
    }
    assert_eq!(good().unwrap().tokens, before);
    assert_eq!((service.stats().broken, service.in_flight()), (3, 0));
}

#[test]
fn senseless_requests_are_refused() {
    let service = service(1, 8);
    for (prompt, message) in
        [(vec![], "no tokens"), (vec![258], "token 258"), (vec![1; 97], "97 tokens")]
    {
        let error = service.submit(Request::new(prompt, 1)).err().unwrap().to_string();
        assert!(error.contains(message), "{error}");
    }
    let sampler = SamplerOptions { top_p: 2.0, ..SamplerOptions::default() };
    let error = service.submit(Request { sampler, ..Request::new(vec![1], 1) });
    assert!(matches!(error, Err(SubmitError::Sampler(_))));
    let plain = Model::from_memory(Tiny::llama(FLOATS).gguf(), &LoadOptions::default()).unwrap();
    assert!(Service::start(plain, ServiceOptions::default()).is_err());
    assert_eq!(service.in_flight(), 0);
}

#[test]
fn a_shutdown_fails_what_is_running() {
    let service = service(1, 8);
    let all: Vec<_> =
        (0..3).map(|i| service.submit(request(i, text(i, 5), 100_000)).unwrap()).collect();
    drop(service);
    for events in all {
        match wait(events) {
            Err(failure) => assert_eq!(failure, Failure::Shutdown),
            Ok(answer) => assert_eq!(finish(&answer), &Finish::Context),
        }
    }
}
