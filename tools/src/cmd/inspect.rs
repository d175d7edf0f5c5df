//! `aether inspect`: what a GGUF file holds.

use aether_llm::gguf::inspect;
use clap::Args;

use crate::output;
use crate::source::ModelArg;

/// Print a model file's metadata and tensors
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArg,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Prints the file's contents.
pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let gguf = args.model.open()?;
    let text =
        if args.json { format!("{:#}\n", inspect::json(&gguf)) } else { inspect::text(&gguf) };
    output::print(&text)?;
    Ok(())
}
