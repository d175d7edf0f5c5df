//! Lines of input: with editing and history in a terminal, as they are from anywhere else.

use std::io::{self, BufRead, IsTerminal, StdinLock};
use std::path::PathBuf;

use aether_llm::hub::Cache;
use rustyline::config::Builder;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use crate::output;

/// Most lines that are remembered.
const MOST_HISTORY: usize = 1000;

/// Where lines come from.
pub(super) enum Lines {
    Terminal { editor: Box<Editor<(), FileHistory>>, history: Option<PathBuf> },
    Plain(io::Lines<StdinLock<'static>>),
}

impl Lines {
    /// The terminal with the lines of earlier conversations, or standard input.
    ///
    /// # Errors
    /// When the terminal cannot be set up.
    pub fn open() -> io::Result<Lines> {
        if !io::stdin().is_terminal() {
            return Ok(Lines::Plain(io::stdin().lock().lines()));
        }
        let config = Config::builder().max_history_size(MOST_HISTORY).map(Builder::build);
        let editor = config.and_then(Editor::with_config);
        let mut editor = Box::new(editor.map_err(io::Error::other)?);
        let history = Cache::open().ok().map(|cache| cache.root().join("chat-history"));
        // The first time there is none; and a conversation goes well without.
        let _ = history.as_ref().map(|path| editor.load_history(path));
        Ok(Lines::Terminal { editor, history })
    }

    /// Whether somebody types.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Lines::Terminal { .. })
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// When the input cannot be read.
    pub fn next(&mut self, prompt: &str) -> Option<io::Result<String>> {
        let (editor, history) = match self {
            Lines::Plain(lines) => return lines.next(),
            Lines::Terminal { editor, history } => (editor, history),
        };
        loop {
            match editor.readline(prompt) {
                Ok(line) => {
                    if editor.add_history_entry(&line).is_ok_and(|added| added) {
                        // As when it is read.
                        let _ = history.as_ref().map(|path| editor.append_history(path));
                    }
                    return Some(Ok(line));
                }
                Err(ReadlineError::Eof) => return None,
                Err(ReadlineError::Interrupted) => output::note("Ctrl-D or /exit ends"),
                Err(ReadlineError::Io(error)) => return Some(Err(error)),
                Err(error) => return Some(Err(io::Error::other(error))),
            }
        }
    }
}
