//! `aether tokenize`: text to token ids.

use std::path::PathBuf;

use aether_llm::tokenizer::{EncodeOptions, Tokenizer};
use anyhow::bail;
use clap::Args;

use crate::output;
use crate::source::{ModelArg, read_file};

/// Print a text's token ids as a JSON list
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    #[command(flatten)]
    pub model: ModelArg,
    /// Neither add BOS or EOS nor read special tokens in the text
    #[arg(long)]
    pub no_special: bool,
    /// Take the text from a file, byte for byte
    #[arg(short, long, value_name = "FILE", conflicts_with = "text")]
    pub file: Option<PathBuf>,
    /// The text
    pub text: Option<String>,
}

/// Prints the ids.
pub fn run(args: &TokenizeArgs) -> anyhow::Result<()> {
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(path)) => read_file(path)?,
        (None, None) => bail!("give a text, or a file with -f"),
    };
    let tokenizer = Tokenizer::from_gguf(&args.model.open()?)?;
    let special = !args.no_special;
    let options = EncodeOptions { add_special: special, parse_special: special };
    let ids = tokenizer.encode(&text, options)?;
    output::print(&format!("{}\n", serde_json::to_string(&ids)?))?;
    Ok(())
}
