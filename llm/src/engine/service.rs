//! The engine as a service: one thread owns the model, requests reach it by a channel and answers
//! leave it by one channel for each request.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use super::request::{Event, Failure, Request, Usage};
use super::scheduler::{Elsewhere, Scheduler, SlotState};
use super::sequence::Ticket;
use super::{Drafted, EngineError, Model, Speculation};
use crate::sample::{SampleError, Sampler};

/// How to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceOptions {
    /// Requests that may wait for a slot.
    pub queue: usize,
    /// Most tokens of prompts that go through the model beside requests that are being continued:
    /// fewer make these steadier, more bring prompts through sooner.
    pub chunk: usize,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        ServiceOptions { queue: 64, chunk: 128 }
    }
}

/// A request was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("{waiting} requests are waiting already; try again later")]
    QueueFull { waiting: usize },
    #[error("the server is shutting down")]
    Draining,
    /// The GPU is gone and nothing took over: no request can be answered any more.
    #[error("the model cannot be run any more: {0}")]
    Lost(String),
    /// The prompt is empty, does not fit the context, or names unknown tokens.
    #[error(transparent)]
    Prompt(Box<EngineError>),
    #[error(transparent)]
    Sampler(#[from] SampleError),
}

impl From<EngineError> for SubmitError {
    fn from(error: EngineError) -> SubmitError {
        SubmitError::Prompt(Box::new(error))
    }
}

/// What the engine is doing, and what it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub slots: usize,
    /// Requests in slots.
    pub running: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Tokens in the caches of running requests, and how many fit all slots.
    pub cache_tokens: usize,
    pub cache_capacity: usize,
    /// Sums over requests that ended well.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    /// Sums of [`Usage::prefill`] and [`Usage::decode`].
    pub prefill: Duration,
    pub decode: Duration,
    /// Most tokens that a prompt and its answer had together.
    pub longest: usize,
    /// Calls of the model, and how many slots took part in all of them together.
    pub steps: u64,
    pub busy_slots: u64,
    /// What was proposed by speculative decoding.
    pub drafted: Drafted,
    /// Requests that ended, and those among them that failed or were left.
    pub finished: u64,
    pub broken: u64,
}

#[derive(Default)]
struct Shared {
    in_flight: AtomicUsize,
    running: AtomicUsize,
    cache_tokens: AtomicUsize,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    prefill_us: AtomicU64,
    decode_us: AtomicU64,
    longest: AtomicUsize,
    steps: AtomicU64,
    busy_slots: AtomicU64,
    slots: Mutex<Vec<SlotState>>,
    drafts: AtomicUsize,
    draft_tokens: AtomicUsize,
    draft_accepted: AtomicUsize,
    finished: AtomicU64,
    broken: AtomicU64,
    draining: AtomicBool,
    stop: AtomicBool,
    /// Why nothing runs any more.
    lost: watch::Sender<Option<String>>,
}

impl Shared {
    fn ended(&self, usage: Option<Usage>) {
        self.finished.fetch_add(1, Ordering::Relaxed);
        match usage {
            None => {
                self.broken.fetch_add(1, Ordering::Relaxed);
            }
            Some(usage) => {
                let add = |sum: &AtomicU64, n: usize| sum.fetch_add(n as u64, Ordering::Relaxed);
                add(&self.prompt_tokens, usage.prompt_tokens);
                add(&self.cached_tokens, usage.cached_tokens);
                add(&self.completion_tokens, usage.completion_tokens);
                add(&self.prefill_us, usage.prefill.as_micros() as usize);
                add(&self.decode_us, usage.decode.as_micros() as usize);
                let count = |sum: &AtomicUsize, n: usize| sum.fetch_add(n, Ordering::Relaxed);
                count(&self.drafts, usage.drafted.drafts);
                count(&self.draft_tokens, usage.drafted.tokens);
                count(&self.draft_accepted, usage.drafted.accepted);
                let tokens = usage.prompt_tokens + usage.completion_tokens;
                self.longest.fetch_max(tokens, Ordering::Relaxed);
            }
        }
        // Last, so that who sees it sees the sums too.
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A model that answers requests, many at a time.
///
/// Dropping it fails what is running and waits for the thread to end.
pub struct Service {
    model: Arc<Model>,
    options: ServiceOptions,
    draft_tokens: usize,
    shared: Arc<Shared>,
    tickets: Option<Sender<Ticket>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Service {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the model was loaded without slots, or memory or the thread cannot be had.
    pub fn start(model: Arc<Model>, options: ServiceOptions) -> Result<Service, EngineError> {
        Service::speculating(model, options, None)
    }

    /// As [`Service::start`], with tokens that are proposed ahead: answers are the same, with fewer
    /// calls of the model.
    ///
    /// # Errors
    /// As [`Service::start`], when the model runs on a GPU, and when the draft model does not fit.
    pub fn speculating(
        model: Arc<Model>,
        options: ServiceOptions,
        speculation: Option<&Speculation>,
    ) -> Result<Service, EngineError> {
        Service::start_or(model, options, speculation, Box::new(|_| None))
    }

    /// As [`Service::speculating`]. When the GPU is lost, `elsewhere` is told and may give another
    /// model of the same file with the same sizes: requests that are running go on with that, their
    /// tokens so far going through it again. Without one they fail, and no more are taken.
    ///
    /// # Errors
    /// As [`Service::speculating`].
    pub fn start_or(
        model: Arc<Model>,
        options: ServiceOptions,
        speculation: Option<&Speculation>,
        elsewhere: Elsewhere,
    ) -> Result<Service, EngineError> {
        let scheduler = Scheduler::new(&model, options.chunk, speculation, elsewhere)?;
        let slots = Mutex::new(scheduler.slot_states().collect());
        let shared = Arc::new(Shared { slots, ..Shared::default() });
        let (tickets, inbox) = mpsc::channel();
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("aether-engine".to_owned())
            .spawn(move || serve(scheduler, &inbox, &of_thread))
            .map_err(|error| EngineError::Thread(error.to_string()))?;
        let (tickets, thread) = (Some(tickets), Mutex::new(Some(thread)));
        let draft_tokens = speculation.map_or(0, |s| s.tokens);
        Ok(Service { model, options, draft_tokens, shared, tickets, thread })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Most tokens that are proposed at once by speculative decoding; 0 when it is off.
    pub fn draft_tokens(&self) -> usize {
        self.draft_tokens
    }

    /// Asks for an answer. Dropping the receiver ends it before its next token.
    ///
    /// # Errors
    /// When the request makes no sense, too many wait already, the service is draining, or the model
    /// cannot be run any more.
    pub fn submit(&self, request: Request) -> Result<UnboundedReceiver<Event>, SubmitError> {
        self.check(&request)?;
        if let Some(why) = self.lost() {
            return Err(SubmitError::Lost(why));
        }
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(SubmitError::Draining);
        }
        let slots = self.model.slots().unwrap_or(1);
        let most = slots.saturating_add(self.options.queue);
        let before = self.shared.in_flight.fetch_add(1, Ordering::AcqRel);
        if before >= most {
            self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
            return Err(SubmitError::QueueFull { waiting: before - slots.min(before) });
        }
        let (events, receiver) = unbounded_channel();
        let ticket = Ticket { request, events, since: Instant::now() };
        if self.tickets.as_ref().is_some_and(|tickets| tickets.send(ticket).is_ok()) {
            return Ok(receiver);
        }
        self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
        Err(SubmitError::Draining)
    }

    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let (tokens, context) = (request.prompt.len(), self.model.context_len());
        let vocab = self.model.vocab_len();
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt.into());
        }
        if tokens > context {
            return Err(EngineError::PromptTooLong { tokens, context }.into());
        }
        if let Some(&token) = request.prompt.iter().find(|&&t| t as usize >= vocab) {
            return Err(EngineError::Token { token, vocab }.into());
        }
        let slots = self.model.slots().unwrap_or(1);
        if let Some(slot) = request.slot.filter(|&slot| slot >= slots) {
            return Err(EngineError::Slot { slot, slots }.into());
        }
        Sampler::new(request.sampler.clone())?;
        Ok(())
    }

    /// Whether a request would be taken now.
    pub fn is_ready(&self) -> bool {
        let slots = self.model.slots().unwrap_or(1);
        !self.shared.draining.load(Ordering::Acquire)
            && self.lost().is_none()
            && self.shared.in_flight.load(Ordering::Acquire) < slots + self.options.queue
    }

    /// Why no request can be answered any more; `None` while they can.
    pub fn lost(&self) -> Option<String> {
        self.shared.lost.borrow().clone()
    }

    /// Waits until no request can be answered any more; why.
    pub async fn until_lost(&self) -> String {
        let mut lost = self.shared.lost.subscribe();
        let why = lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            // The sender lives as long as the service.
            None => std::future::pending().await,
        }
    }

    /// Takes no more requests; those that were taken go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
    }

    /// Requests that were taken and have not ended.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// What every slot was doing after the last step.
    pub fn slot_states(&self) -> Vec<SlotState> {
        self.shared.slots.lock().unwrap_or_else(|broken| broken.into_inner()).clone()
    }

    /// What it is doing.
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let running = shared.running.load(Ordering::Relaxed);
        let slots = self.model.slots().unwrap_or(1);
        Stats {
            slots,
            running,
            waiting: self.in_flight().saturating_sub(running),
            cache_tokens: shared.cache_tokens.load(Ordering::Relaxed),
            cache_capacity: slots * self.model.context_len(),
            prompt_tokens: shared.prompt_tokens.load(Ordering::Relaxed),
            cached_tokens: shared.cached_tokens.load(Ordering::Relaxed),
            completion_tokens: shared.completion_tokens.load(Ordering::Relaxed),
            prefill: Duration::from_micros(shared.prefill_us.load(Ordering::Relaxed)),
            decode: Duration::from_micros(shared.decode_us.load(Ordering::Relaxed)),
            longest: shared.longest.load(Ordering::Relaxed),
            steps: shared.steps.load(Ordering::Relaxed),
            busy_slots: shared.busy_slots.load(Ordering::Relaxed),
            drafted: Drafted {
                drafts: shared.drafts.load(Ordering::Relaxed),
                tokens: shared.draft_tokens.load(Ordering::Relaxed),
                accepted: shared.draft_accepted.load(Ordering::Relaxed),
            },
            finished: shared.finished.load(Ordering::Relaxed),
            broken: shared.broken.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.tickets = None;
        let thread = self.thread.get_mut().ok().and_then(Option::take);
        if let Some(thread) = thread {
            // It catches its panics, so there is nothing to learn from how it ended.
            let _ = thread.join();
        }
    }
}

/// What the thread does until the service is dropped.
fn serve(mut scheduler: Scheduler, inbox: &Receiver<Ticket>, shared: &Shared) {
    loop {
        if scheduler.is_idle() {
            match inbox.recv() {
                Ok(ticket) => scheduler.push(ticket),
                Err(_) => return,
            }
        }
        while let Ok(ticket) = inbox.try_recv() {
            scheduler.push(ticket);
        }
        if shared.stop.load(Ordering::Acquire) {
            scheduler.fail_all(&Failure::Shutdown, &mut |usage| shared.ended(usage));
            continue;
        }
        if let Some(why) = scheduler.lost().map(str::to_owned) {
            // Who is told that a request failed finds the reason here.
            shared.lost.send_replace(Some(why.clone()));
            scheduler.fail_all(&Failure::Run(why), &mut |usage| shared.ended(usage));
            continue;
        }
        let step = panic::catch_unwind(AssertUnwindSafe(|| {
            scheduler.step(&mut |usage| shared.ended(usage))
        }));
        shared.steps.fetch_add(1, Ordering::Relaxed);
        let busy = *step.as_ref().unwrap_or(&0);
        shared.busy_slots.fetch_add(busy as u64, Ordering::Relaxed);
        if let Err(payload) = step {
            let failure = Failure::panicked(&*payload);
            tracing::error!(%failure, "the engine begins anew");
            let recovered = scheduler.recover(&failure, &mut |usage| shared.ended(usage));
            if let Err(error) = recovered {
                let failure = Failure::Run(error.to_string());
                scheduler.fail_all(&failure, &mut |usage| shared.ended(usage));
            }
        }
        shared.running.store(scheduler.running(), Ordering::Relaxed);
        shared.cache_tokens.store(scheduler.cached_tokens(), Ordering::Relaxed);
        let mut slots = shared.slots.lock().unwrap_or_else(|broken| broken.into_inner());
        slots.clear();
        slots.extend(scheduler.slot_states());
    }
}
