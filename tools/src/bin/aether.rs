//! `aether`: run language models through the IR.

use std::process::ExitCode;

use aether_tools::cmd::{
    bench, chat, completions, inspect, models, perplexity, pull, run, serve, tokenize,
};
use aether_tools::{exit, speculate};
use clap::{CommandFactory, Parser, Subcommand};

/// Run language models: every model is an IR module that is compiled for this machine
#[derive(Debug, Parser)]
#[command(name = "aether", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Chat(chat::ChatArgs),
    Serve(serve::ServeArgs),
    Bench(bench::BenchArgs),
    Perplexity(perplexity::PerplexityArgs),
    Tokenize(tokenize::TokenizeArgs),
    Inspect(inspect::InspectArgs),
    Pull(pull::PullArgs),
    Models(models::ModelsArgs),
    Completions(completions::CompletionsArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(speculate::command_line());
    exit::start_tracing();
    let done = |outcome: anyhow::Result<()>| outcome.map(|()| ExitCode::SUCCESS);
    exit::report(match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Chat(args) => done(chat::run(args)),
        Command::Serve(args) => done(serve::run(args)),
        Command::Bench(args) => done(bench::run(args)),
        Command::Perplexity(args) => done(perplexity::run(args)),
        Command::Tokenize(args) => done(tokenize::run(args)),
        Command::Inspect(args) => done(inspect::run(args)),
        Command::Pull(args) => done(pull::run(args)),
        Command::Models(args) => done(models::run(args)),
        Command::Completions(args) => done(completions::run(args, Cli::command())),
    })
}
