//! `aether completions`: scripts that let a shell complete commands and options.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::output;

/// Write a script that lets a shell complete commands and options
///
/// bash: aether completions bash > ~/.local/share/bash-completion/completions/aether
/// zsh:  aether completions zsh > ~/.zfunc/_aether
/// fish: aether completions fish > ~/.config/fish/completions/aether.fish
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: Shell,
}

/// Writes the script for a command.
///
/// # Errors
/// When the output is closed.
pub fn run(args: &CompletionsArgs, mut command: Command) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    Ok(output::print(&String::from_utf8_lossy(&script))?)
}
