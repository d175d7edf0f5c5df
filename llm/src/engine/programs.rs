//! The sessions of a model's programs, which share caches: each is begun when it first runs.

use std::sync::Arc;

use aether_runtime::{Arg, Session, Traffic};

use super::forms::{Form, Head};
use super::{EngineError, Model};
use crate::sample::{Need, Scores};

pub(super) struct Programs {
    model: Arc<Model>,
    /// The first is the one that serves all.
    sessions: Vec<(Form, Session)>,
    /// Which ran last.
    last: usize,
    /// The best tokens of the last run.
    tokens: Vec<u32>,
    profiled: bool,
}

impl Programs {
    /// The session that serves all.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(model: &Arc<Model>) -> Result<Programs, EngineError> {
        let session = Session::with_pool(model.executable().clone(), model.pool().clone())?;
        let sessions = vec![(Form::WHOLE, session)];
        Ok(Programs {
            model: model.clone(),
            sessions,
            last: 0,
            tokens: Vec::new(),
            profiled: false,
        })
    }

    /// The first session.
    pub fn whole(&self) -> &Session {
        &self.sessions[0].1
    }

    /// Times every op of the runs from now on.
    ///
    /// # Errors
    /// When the device has no times.
    pub fn profile(&mut self) -> Result<(), EngineError> {
        self.sessions.iter_mut().try_for_each(|(_, session)| session.profile())?;
        self.profiled = true;
        Ok(())
    }

    /// Makes ready what runs for so many tokens and rows; its place.
    ///
    /// # Errors
    /// When it cannot be compiled, or the memory cannot be had.
    pub fn ready(&mut self, tokens: usize, rows: usize, need: Need) -> Result<usize, EngineError> {
        let forms = &self.model.forms;
        let form = forms.form(tokens, rows, forms.head(need));
        if let Some(at) = self.sessions.iter().position(|(known, _)| *known == form) {
            return Ok(at);
        }
        let logits = Form { head: Head::Logits, ..form };
        // Where there is no such program, one that does more serves.
        for form in [form, logits] {
            if let Some(at) = self.sessions.iter().position(|(known, _)| *known == form) {
                return Ok(at);
            }
            let Some(executable) = forms.get(form)? else { continue };
            let mut session = self.whole().sibling(executable)?;
            if self.profiled {
                session.profile()?;
            }
            self.sessions.push((form, session));
            return Ok(self.sessions.len() - 1);
        }
        Ok(0)
    }

    /// Runs the session at a place.
    ///
    /// # Errors
    /// When the run fails.
    pub fn run(&mut self, at: usize, args: &mut [Arg<'_>]) -> Result<(), EngineError> {
        self.last = at;
        let (form, session) = &mut self.sessions[at];
        session.run(args)?;
        if let Head::Best(_) = form.head {
            let words = session.result(1).chunks_exact(4);
            let words = words.map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
            self.tokens.clear();
            self.tokens.extend(words);
        }
        Ok(())
    }

    /// The session that ran last.
    pub fn last(&mut self) -> &mut Session {
        &mut self.sessions[self.last].1
    }

    /// Bytes that crossed to a GPU and back in the last run.
    pub fn traffic(&self) -> Traffic {
        self.sessions[self.last].1.traffic()
    }

    /// Row `i` of what the last run gave.
    pub fn scores(&self, i: usize) -> Scores<'_> {
        let (form, session) = &self.sessions[self.last];
        let (found, _) = session.result_f32(0);
        let row = |n: usize| i * n..(i + 1) * n;
        match form.head {
            Head::Logits => Scores::All(found.get(row(self.model.vocab_len())).unwrap_or_default()),
            Head::Best(k) => Scores::Best {
                logits: found.get(row(k)).unwrap_or_default(),
                tokens: self.tokens.get(row(k)).unwrap_or_default(),
            },
        }
    }

    /// Row `i` of the logits of the last run; empty when it gave none.
    pub fn logits(&self, i: usize) -> &[f32] {
        self.scores(i).all().unwrap_or_default()
    }

    /// Row `i` of what the logits of the last run were computed from; empty when there is none.
    pub fn hidden(&self, i: usize) -> &[f32] {
        let interface = &self.model.interface;
        let (form, session) = &self.sessions[self.last];
        match (interface.hidden, form.head) {
            (Some(n), Head::Logits) => {
                let (rows, _) = session.result_f32(1 + interface.caches.len());
                rows.get(i * n..(i + 1) * n).unwrap_or_default()
            }
            _ => &[],
        }
    }
}
