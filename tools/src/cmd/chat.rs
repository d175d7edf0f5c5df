//! `aether chat`: a conversation in the terminal.

mod lines;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aether_llm::chat::{Message, RenderOptions, Template};
use aether_llm::engine::{Context, GenOptions, LoadOptions, Model, StopReason, generate};
use aether_llm::sample::SamplerOptions;
use aether_llm::tokenizer::Utf8Stream;
use anyhow::{Context as _, bail};
use clap::Args;
use lines::Lines;
use serde_json::Value;

use crate::cache_type::CacheArgs;
use crate::output;
use crate::source::{LoraArgs, ModelArg, read_file};
use crate::speculate::SpeculateArgs;

/// Talk with a model
#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// What the model is told before the conversation
    #[arg(short, long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Most new tokens of an answer
    #[arg(short, long, default_value_t = 1024)]
    pub n: usize,
    /// Tokens of context; 0 for what the model was trained with, at most 4096
    #[arg(short, long, value_name = "CTX", default_value_t = 0)]
    pub context: usize,
    /// Worker threads; 0 for one per core
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Temperature; 0 takes the most probable token
    #[arg(long = "temp", value_name = "T", default_value_t = 0.8)]
    pub temperature: f32,
    /// Seed of the random choices; from the clock when absent
    #[arg(long)]
    pub seed: Option<u64>,
    /// A file with a Jinja chat template in place of the model's
    #[arg(long, value_name = "FILE")]
    pub chat_template_file: Option<PathBuf>,
    #[command(flatten)]
    pub speculate: SpeculateArgs,
}

const HELP: &str = "\
/system TEXT  tell the model something before the conversation, and begin anew
/reset        begin anew
/regen        answer the last message again
/save FILE    write the conversation to a file of JSON
/load FILE    go on with a conversation from a file
/help         this list
/exit         end (so does Ctrl-D)
Three quotes (\"\"\") begin and end a message of several lines. Ctrl-C stops an answer. Lines can be
edited, and those of earlier conversations come back with the arrow keys.";

/// What a line of input asks for.
#[derive(Debug, PartialEq)]
enum Input {
    Say(String),
    System(String),
    Reset,
    Regen,
    Save(PathBuf),
    Load(PathBuf),
    Help,
    Exit,
    Wrong(String),
}

impl Input {
    fn parse(line: &str) -> Input {
        let Some(command) = line.strip_prefix('/') else { return Input::Say(line.to_owned()) };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest.is_empty()) {
            ("system", _) => Input::System(rest.to_owned()),
            ("reset", true) => Input::Reset,
            ("regen", true) => Input::Regen,
            ("save", false) => Input::Save(rest.into()),
            ("load", false) => Input::Load(rest.into()),
            ("help", true) => Input::Help,
            ("exit" | "quit", true) => Input::Exit,
            ("save" | "load", true) => Input::Wrong(format!("/{name} needs a file")),
            _ => Input::Wrong(format!("/{name} is not known; /help lists what is")),
        }
    }
}

/// A conversation, and the tokens of it that the model has seen.
struct Chat {
    template: Template,
    context: Context,
    messages: Vec<Message>,
    seen: Vec<u32>,
    options: GenOptions,
    stop: Arc<AtomicBool>,
}

/// Talks until the input ends.
///
/// # Errors
/// When the model cannot be loaded, or the output is closed.
pub fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let drafted_rows = args.speculate.rows()?;
    let options = LoadOptions {
        context: args.context,
        threads: args.threads,
        cache_types: args.cache.types(),
        rows: drafted_rows.unwrap_or(1),
        slots: drafted_rows.map_or(0, |_| 1),
        adapters: args.lora.open(false)?,
        ..LoadOptions::default()
    };
    let model = Model::load(args.model.path()?, &options)?;
    let given = match &args.chat_template_file {
        Some(path) => Some(
            String::from_utf8(read_file(path)?)
                .with_context(|| format!("{} is not UTF-8", path.display()))?,
        ),
        None => None,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            // Nothing took notice of the one before.
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")?;
    let seed = args.seed.unwrap_or_else(super::run::clock_seed);
    let mut context = Context::new(&model)?;
    if let Some(speculation) = args.speculate.load(&model)? {
        context.speculate(&speculation)?;
    }
    let mut chat = Chat {
        template: Template::for_model(&model, given.as_deref())?,
        context,
        messages: Vec::new(),
        seen: Vec::new(),
        options: GenOptions {
            n: args.n,
            sampler: SamplerOptions {
                temperature: args.temperature,
                seed,
                ..SamplerOptions::default()
            },
            stop: Some(stop.clone()),
            ..GenOptions::default()
        },
        stop,
    };
    chat.messages.extend(args.system.as_deref().map(|text| Message::new("system", text)));
    let mut lines = Lines::open().context("cannot use the terminal")?;
    if lines.is_terminal() {
        output::note("/help lists commands");
    }
    while let Some(line) = lines.next("> ") {
        let mut line = line.context("cannot read the input")?;
        if let Some(first) = line.strip_prefix("\"\"\"") {
            line = several(first, &mut || lines.next(". "))?;
        }
        if line.trim().is_empty() {
            continue;
        }
        chat.stop.store(false, Ordering::Relaxed);
        match Input::parse(&line) {
            Input::Exit => break,
            input => {
                // What one message does wrong does not end the conversation.
                if let Err(error) = chat.take(input) {
                    if error.downcast_ref::<std::io::Error>().is_some() {
                        return Err(error);
                    }
                    output::note(&format!("error: {error:#}"));
                }
            }
        }
    }
    Ok(())
}

/// The lines up to the closing quotes.
fn several(
    first: &str,
    next: &mut impl FnMut() -> Option<std::io::Result<String>>,
) -> anyhow::Result<String> {
    let mut text = first.to_owned();
    loop {
        if let Some(end) = text.trim_end().strip_suffix("\"\"\"") {
            return Ok(end.trim_end_matches('\n').to_owned());
        }
        let Some(line) = next() else { return Ok(text) };
        if !text.is_empty() {
            text.push('\n');
        }
        text += &line.context("cannot read the input")?;
    }
}

impl Chat {
    fn take(&mut self, input: Input) -> anyhow::Result<()> {
        match input {
            Input::Say(text) => {
                self.messages.push(Message::new("user", &text));
                let answered = self.answer();
                if answered.is_err() {
                    self.messages.pop();
                }
                answered
            }
            Input::System(text) => {
                self.messages = vec![Message::new("system", &text)];
                Ok(())
            }
            Input::Reset => {
                self.messages.retain(|m| m.role() == "system");
                Ok(())
            }
            Input::Regen => {
                if self.messages.last().is_some_and(|m| m.role() == "assistant") {
                    self.messages.pop();
                }
                if self.messages.last().is_none_or(|m| m.role() != "user") {
                    bail!("there is nothing to answer");
                }
                self.options.sampler.seed = self.options.sampler.seed.wrapping_add(1);
                self.answer()
            }
            Input::Save(path) => {
                let all: Vec<_> = self.messages.iter().map(Message::fields).collect();
                let text = serde_json::to_string_pretty(&all)?;
                write(&path, &text)
            }
            Input::Load(path) => {
                let value: Value = serde_json::from_slice(&read_file(&path)?)
                    .with_context(|| format!("{} is no JSON", path.display()))?;
                self.messages = Message::parse_list(value)?;
                Ok(())
            }
            Input::Help => Ok(output::print(&format!("{HELP}\n"))?),
            Input::Wrong(message) => bail!(message),
            Input::Exit => Ok(()),
        }
    }

    /// Continues the conversation; what the model has seen of it is not computed again.
    fn answer(&mut self) -> anyhow::Result<()> {
        let model = self.context.model().clone();
        let text = self.template.render(&self.messages, &RenderOptions::default())?;
        let prompt = self.template.encode(model.tokenizer(), &text)?;
        // Two tokens at least go through again: one alone takes another road and rounds otherwise.
        let most = prompt.len().saturating_sub(2).min(self.context.n_past());
        let pairs = self.seen.iter().zip(&prompt[..most]);
        let shared = pairs.take_while(|(a, b)| a == b).count();
        self.context.truncate(shared);
        let mut stream = Utf8Stream::new();
        let mut answer = String::new();
        let mut failed = Ok(());
        let out = generate(&mut self.context, &prompt[shared..], &self.options, &mut |token| {
            let text = stream.push(model.tokenizer().token_bytes(token, false));
            answer += &text;
            failed = output::print(&text);
            if failed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        self.seen = prompt;
        let out = match out {
            Ok(out) => out,
            Err(error) => {
                // How far it came is not known.
                self.context.reset();
                return Err(error.into());
            }
        };
        failed?;
        self.seen.extend_from_slice(&out.tokens);
        let rest = stream.finish();
        answer += &rest;
        output::print(&format!("{rest}\n"))?;
        if out.stop == StopReason::Context {
            output::note("the context is full; -c gives it more room, /reset begins anew");
        }
        self.messages.push(Message::new("assistant", &answer));
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let table = [
            ("hello /reset", Input::Say("hello /reset".to_owned())),
            ("/system be brief ", Input::System("be brief".to_owned())),
            ("/reset", Input::Reset),
            ("/regen", Input::Regen),
            ("/save a b.json", Input::Save("a b.json".into())),
            ("/save", Input::Wrong("/save needs a file".to_owned())),
            ("/quit", Input::Exit),
            ("/x", Input::Wrong("/x is not known; /help lists what is".to_owned())),
        ];
        for (line, want) in table {
            assert_eq!(Input::parse(line), want);
        }
    }

    #[test]
    fn quotes_hold_several_lines() {
        let read = |first: &str, rest: &[&str]| {
            let mut lines = rest.iter().map(|line| Ok((*line).to_owned()));
            several(first, &mut || lines.next()).unwrap()
        };
        assert_eq!(read("one", &["two", "three\"\"\"", "four"]), "one\ntwo\nthree");
        assert_eq!(read("one\"\"\"", &["two"]), "one");
        assert_eq!(read("", &["a", "\"\"\""]), "a");
        assert_eq!(read("never closed", &["b"]), "never closed\nb");
    }
}
