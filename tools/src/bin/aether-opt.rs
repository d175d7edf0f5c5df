//! `aether-opt`: runs passes over IR text, and finds out which of them is wrong.

use std::process::ExitCode;

use aether_tools::opt::{self, Cli, Env};
use aether_tools::{exit, output};
use clap::Parser;

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let said = opt::run(cli, &Env::default())?;
    if !said.stderr.is_empty() {
        output::note(said.stderr.trim_end());
    }
    output::print(&said.stdout)?;
    Ok(if said.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    exit::start_tracing();
    exit::report(run(&cli))
}
