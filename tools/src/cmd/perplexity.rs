//! `aether perplexity`: how well a model predicts a text, scored as llama.cpp's llama-perplexity
//! does it (its `perplexity` function), so that the numbers compare.
//!
//! The text is cut into chunks of the context's length. In each, the first token is replaced by
//! BOS where the model wants one, and the second half of the tokens is scored, each after all that
//! stand before it in the chunk.

use std::path::PathBuf;

use aether_llm::engine::{Context, LoadOptions, Model};
use aether_llm::sample::log_sum_exp;
use aether_llm::tokenizer::EncodeOptions;
use anyhow::bail;
use clap::Args;

use crate::cache_type::CacheArgs;
use crate::device::DeviceArgs;
use crate::output;
use crate::source::{LoraArgs, ModelArg, read_file};

/// Measure how well a model predicts a text, as llama-perplexity does
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// The text
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Tokens per chunk
    #[arg(short, long, value_name = "CTX", default_value_t = 512)]
    pub context: usize,
    /// Worker threads; 0 for one per core
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Sums over scored tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Score {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Score {
    fn add(&mut self, nll: f64) {
        self.count += 1;
        self.sum += nll;
        self.squares += nll * nll;
    }

    /// Perplexity and its standard error.
    fn perplexity(&self) -> (f64, f64) {
        let n = self.count as f64;
        let mean = self.sum / n;
        let variance = self.squares / n - mean * mean;
        let ppl = mean.exp();
        let error =
            if variance > 0.0 && self.count > 1 { (variance / (n - 1.0)).sqrt() } else { 0.0 };
        (ppl, error * ppl)
    }
}

/// Prints the perplexity after each chunk to standard error, and in the end to standard output.
pub fn run(args: &PerplexityArgs) -> anyhow::Result<()> {
    let text = read_file(&args.file)?;
    if args.context < 4 {
        bail!("a chunk needs at least 4 tokens, -c says {}", args.context);
    }
    let options = LoadOptions {
        context: args.context,
        batch: args.context.min(512),
        threads: args.threads,
        cache_types: args.cache.types(),
        gpu: args.device.open()?,
        placement: args.device.placement(),
        adapters: args.lora.open(false)?,
        ..LoadOptions::default()
    };
    let model = Model::load(args.model.path()?, &options)?;
    let tokenizer = model.tokenizer();
    let tokens =
        tokenizer.encode(&text, EncodeOptions { add_special: true, parse_special: false })?;
    let chunks = tokens.len() / args.context;
    if chunks < 2 {
        bail!(
            "{} has {} tokens, and two chunks of {} are needed; take a longer text or a smaller -c",
            args.file.display(),
            tokens.len(),
            args.context
        );
    }
    let bos = if tokenizer.adds_bos() { tokenizer.special_ids().bos } else { None };
    let first = args.context / 2;
    let rows: Vec<u32> = (first as u32..args.context as u32 - 1).collect();
    let mut context = Context::new(&model)?;
    let mut score = Score::default();
    for (i, chunk) in tokens.chunks_exact(args.context).enumerate() {
        let mut input = chunk.to_vec();
        if let Some(bos) = bos {
            input[0] = bos;
        }
        context.reset();
        let mut bad = None;
        context.logits_rows(&input, &rows, |row, logits| {
            let target = chunk[row as usize + 1] as usize;
            match log_sum_exp(logits) {
                Ok(total) => score.add(total - f64::from(logits[target])),
                Err(e) => bad = Some(e),
            }
        })?;
        if let Some(e) = bad {
            return Err(e.into());
        }
        output::note(&format!("[{}/{chunks}] {:.4}", i + 1, score.perplexity().0));
    }
    let (ppl, error) = score.perplexity();
    output::print(&format!("ppl = {ppl:.4} +/- {error:.5} over {chunks} chunks\n"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_of_known_losses() {
        let mut score = Score::default();
        for _ in 0..4 {
            score.add(2f64.ln());
        }
        let (ppl, error) = score.perplexity();
        assert!((ppl - 2.0).abs() < 1e-12 && error < 1e-6);
        score.add(0.0);
        assert!(score.perplexity().1 > 0.0);
    }
}
