//! `aether pull`: downloads a model of the catalogue.

use aether_llm::hub::{self, Cache, Catalogue, DEFAULT_MODEL, PullOptions};
use clap::Args;

use crate::progress::Reporter;

/// Download a model of the catalogue and print the path of its file
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Name of the model; `aether models` lists them
    #[arg(default_value = DEFAULT_MODEL)]
    pub name: String,
    /// Download it even if it is there already
    #[arg(long)]
    pub force: bool,
    /// Include the models that tests and benchmarks use
    #[arg(long, hide = true)]
    pub dev: bool,
}

/// Downloads the model, unless it is there, and prints the path of its file.
pub fn run(args: &PullArgs) -> anyhow::Result<()> {
    let catalogue = Catalogue::load(args.dev)?;
    let entry = catalogue.get(&args.name)?;
    let cache = Cache::open()?;
    let options = PullOptions { force: args.force, ..PullOptions::from_env() };
    let mut reporter = Reporter::new();
    let path = hub::pull(&cache, entry, &options, &mut |p| reporter.show(p))?;
    drop(reporter);
    println!("{}", path.display());
    Ok(())
}
