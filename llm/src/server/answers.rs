//! The events of one or several requests that answer one call.

use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, channel};

use super::App;
use super::auth::CALLER;
use super::error::ApiError;
use super::metrics::Watch;
use super::sse::{Gone, QUIET, Sink};
use crate::engine::{Done, Event, Logprobs, Request};

/// Events that wait for a reader, of all requests together.
const AHEAD: usize = 64;

/// The answers to a call, merged. Dropping them frees their slots.
pub(super) struct Answers {
    events: Receiver<(usize, Event)>,
}

impl Answers {
    /// Submits the requests.
    ///
    /// # Errors
    /// When one of them is not taken; then none goes on.
    pub fn start(app: &Arc<App>, requests: Vec<Request>) -> Result<Answers, ApiError> {
        let caller = CALLER.try_with(|caller| *caller).unwrap_or_default();
        let submitted: Result<Vec<_>, _> =
            requests.into_iter().map(|request| app.service.submit(request)).collect();
        let (sender, events) = channel(AHEAD);
        for (index, mut receiver) in submitted?.into_iter().enumerate() {
            let (sender, app) = (sender.clone(), app.clone());
            let mut watch = Watch::new();
            tokio::spawn(async move {
                loop {
                    let event = tokio::select! {
                        event = receiver.recv() => event,
                        () = sender.closed() => return,
                    };
                    let Some(event) = event else { return };
                    app.metrics.event(&mut watch, &event);
                    if let Event::Done(done) = &event {
                        let usage = &done.usage;
                        app.keys.spend(caller, usage.prompt_tokens + usage.completion_tokens);
                    }
                    if sender.send((index, event)).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Answers { events })
    }

    /// The next event and the index of its request; `None` when all have ended.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        self.events.recv().await
    }

    /// As [`Answers::next`] for a stream to a client: writes `idle` after each while without an
    /// event.
    ///
    /// # Errors
    /// When the client has left.
    pub async fn next_for(
        &mut self,
        sink: &Sink,
        idle: &str,
    ) -> Result<Option<(usize, Event)>, Gone> {
        loop {
            tokio::select! {
                next = tokio::time::timeout(QUIET, self.next()) => match next {
                    Ok(next) => return Ok(next),
                    Err(_) if idle.is_empty() => {}
                    Err(_) => sink.raw(idle.to_owned()).await?,
                },
                () = sink.closed() => return Err(Gone),
            }
        }
    }

    /// Waits for the end of all.
    ///
    /// # Errors
    /// When one fails; the others are then given up.
    pub async fn collect(mut self, n: usize) -> Result<Vec<Answer>, ApiError> {
        let mut all: Vec<Answer> = (0..n).map(|_| Answer::default()).collect();
        while let Some((index, event)) = self.next().await {
            let answer = &mut all[index];
            match event {
                Event::Started { .. } | Event::Progress { .. } => {}
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
                Event::Failed(failure) => return Err(failure.into()),
            }
        }
        match all.iter().all(|a| a.done.is_some()) {
            true => Ok(all),
            false => Err(ApiError::internal("the engine ended before the answer did")),
        }
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub text: String,
    pub tokens: Vec<u32>,
    pub logprobs: Vec<Logprobs>,
    /// Of the prompt's tokens but the first, when they were asked for.
    pub prompt: Vec<Logprobs>,
    pub embedding: Vec<f32>,
    pub done: Option<Done>,
}
