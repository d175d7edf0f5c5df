//! `aether-server`: a model over HTTP. The same as `aether serve`.

use std::process::ExitCode;

use aether_tools::cmd::serve;
use aether_tools::{exit, speculate};
use clap::Parser;

/// Serve a model over HTTP, with OpenAI's API
#[derive(Debug, Parser)]
#[command(name = "aether-server", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    serve: serve::ServeArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(speculate::command_line());
    exit::start_tracing();
    exit::report(serve::run(&cli.serve).map(|()| ExitCode::SUCCESS))
}
