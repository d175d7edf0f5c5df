//! `aether run`: continues a text.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aether_llm::engine::{
    Context, EngineError, GenOptions, GenOutput, LoadOptions, Model, StopReason, generate_or,
};
use aether_llm::sample::SamplerOptions;
use aether_llm::tokenizer::{EncodeOptions, Utf8Stream};
use aether_runtime::Placement;
use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::cache_type::CacheArgs;
use crate::device::DeviceArgs;
use crate::source::{LoraArgs, ModelArg, read_file};
use crate::speculate::SpeculateArgs;
use crate::{ir_file, output};

/// Exit code after Ctrl-C, as shells expect it.
const INTERRUPTED: u8 = 130;

/// Continue a text: standard output is the continuation alone
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// The text to continue, as it is: no chat template is applied
    #[arg(short, long, value_name = "TEXT", conflicts_with_all = ["file", "prompt_ids"])]
    pub prompt: Option<String>,
    /// Take the text from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt_ids")]
    pub file: Option<PathBuf>,
    /// Token ids instead of text: 1,2,3
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub prompt_ids: Option<Vec<u32>>,
    /// Most new tokens
    #[arg(short, long, default_value_t = 128)]
    pub n: usize,
    /// Tokens of context; 0 for what the model was trained with, at most 4096
    #[arg(short, long, value_name = "CTX", default_value_t = 0)]
    pub context: usize,
    /// Worker threads; 0 for one per core
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub speculate: SpeculateArgs,
    /// Temperature; 0 takes the most probable token
    #[arg(long = "temp", value_name = "T", default_value_t = 0.8)]
    pub temperature: f32,
    /// Choose among the K most probable tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: usize,
    /// Choose among the most probable tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,
    /// Choose among tokens at least P times as probable as the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub min_p: f32,
    /// Make tokens of the last 64 less probable; 1 for no change
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// Seed of the random choices; from the clock when absent
    #[arg(long)]
    pub seed: Option<u64>,
    /// Go on after a token that ends the text
    #[arg(long)]
    pub ignore_eos: bool,
    /// With --json, for every step the K most probable tokens as [id, natural logprob]
    #[arg(long, value_name = "K", default_value_t = 0, requires = "json")]
    pub logprobs: usize,
    /// Print one JSON object in the end: prompt_tokens, tokens, text, timings
    #[arg(long)]
    pub json: bool,
    /// Write the model's IR module to a file (the passes have not run on it yet)
    #[arg(long, value_name = "FILE")]
    pub emit_ir: Option<PathBuf>,
    /// Run this IR module, an edited one of the same model, on the model's weights
    #[arg(long, value_name = "FILE")]
    pub ir: Option<PathBuf>,
    /// Passes to run instead of the default ones
    #[arg(long, value_name = "PASSES")]
    pub pipeline: Option<String>,
}

/// Runs the model.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => Some(text.clone().into_bytes()),
        (None, Some(path)) => Some(read_file(path)?),
        (None, None) if args.prompt_ids.is_some() => None,
        (None, None) => bail!("give a text with -p, a file with -f, or ids with --prompt-ids"),
    };
    let ir = args.ir.as_deref().map(ir_file::read).transpose()?;
    let drafted_rows = args.speculate.rows()?;
    let options = LoadOptions {
        context: args.context,
        threads: args.threads,
        cache_types: args.cache.types(),
        gpu: args.device.open()?,
        placement: args.device.placement(),
        rows: drafted_rows.unwrap_or(1),
        slots: drafted_rows.map_or(0, |_| 1),
        pipeline: args.pipeline.clone(),
        ir,
        adapters: args.lora.open(false)?,
        ..LoadOptions::default()
    };
    let path = args.model.path()?;
    let model = Model::load(&path, &options)?;
    if let Some(path) = &args.emit_ir {
        std::fs::write(path, model.module_text())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let prompt = match (text, &args.prompt_ids) {
        (Some(text), _) => model.tokenizer().encode(&text, EncodeOptions::PROMPT)?,
        (None, ids) => ids.clone().unwrap_or_default(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            // The second Ctrl-C does not wait for the step to end.
            std::process::exit(i32::from(INTERRUPTED));
        }
    })
    .context("cannot listen for Ctrl-C")?;
    let opts = GenOptions {
        n: args.n,
        sampler: SamplerOptions {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repeat_penalty: args.repeat_penalty,
            seed: args.seed.unwrap_or_else(clock_seed),
            ..SamplerOptions::default()
        },
        ignore_eos: args.ignore_eos,
        logprobs: args.logprobs,
        stop: Some(stop),
    };
    let mut context = Context::new(&model)?;
    if let Some(speculation) = args.speculate.load(&model)? {
        context.speculate(&speculation)?;
    }
    let mut stream = Utf8Stream::new();
    let mut failed = Ok(());
    let mut on_token = |token| {
        if args.json {
            return ControlFlow::Continue(());
        }
        let text = stream.push(model.tokenizer().token_bytes(token, false));
        failed = output::print(&text);
        if failed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut on_cpu = |lost: &EngineError| {
        if !args.device.falls_back() {
            return None;
        }
        tracing::warn!(error = %lost, "going on with the CPU");
        let options = LoadOptions { gpu: None, placement: Placement::Whole, ..options.clone() };
        Some(match Model::load(&path, &options) {
            Ok(model) => Context::new(&model),
            Err(error) => Err(error),
        })
    };
    let out = generate_or(&mut context, &prompt, &opts, &mut on_token, &mut on_cpu)?;
    failed?;
    if args.json {
        output::print(&format!("{}\n", object(&model, &prompt, &out)))?;
    } else {
        output::print(&format!("{}\n", stream.finish()))?;
        summary(&out);
    }
    Ok(match out.stop {
        StopReason::Stopped => ExitCode::from(INTERRUPTED),
        _ => ExitCode::SUCCESS,
    })
}

pub(super) fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_nanos() as u64)
}

/// What `--json` prints.
fn object(model: &Model, prompt: &[u32], out: &GenOutput) -> Value {
    let t = &out.timings;
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
    let mut object = json!({
        "prompt_tokens": prompt,
        "tokens": out.tokens,
        "text": String::from_utf8_lossy(&model.tokenizer().decode(&out.tokens, false)),
        "stop": stop_name(out.stop),
        "timings": {
            "load_ms": ms(t.load),
            "prompt_n": t.prefill_tokens,
            "prompt_ms": ms(t.prefill),
            "prompt_per_second": t.prefill_per_second(),
            "predicted_n": out.tokens.len(),
            "predicted_ms": ms(t.decode),
            "predicted_per_second": t.decode_per_second(),
        },
    });
    if t.drafted.drafts > 0 {
        object["timings"]["draft_n"] = json!(t.drafted.tokens);
        object["timings"]["draft_n_accepted"] = json!(t.drafted.accepted);
    }
    if !out.logprobs.is_empty() {
        let steps: Vec<Vec<Value>> = out
            .logprobs
            .iter()
            .map(|step| step.iter().map(|best| json!([best.token, best.logprob])).collect())
            .collect();
        object["logprobs"] = json!(steps);
    }
    object
}

fn stop_name(stop: StopReason) -> &'static str {
    match stop {
        StopReason::Length => "length",
        StopReason::Eos(_) => "eos",
        StopReason::Context => "context",
        StopReason::Stopped => "interrupted",
        StopReason::Callback => "closed",
    }
}

fn summary(out: &GenOutput) {
    let t = &out.timings;
    output::note(&format!(
        "load {:.2} s; prompt {} tokens, {:.1} tokens/s; generated {} tokens, {:.1} tokens/s",
        t.load.as_secs_f64(),
        t.prefill_tokens,
        t.prefill_per_second(),
        out.tokens.len(),
        t.decode_per_second()
    ));
    if t.drafted.drafts > 0 {
        output::note(&format!(
            "drafted {} tokens, {} of them accepted",
            t.drafted.tokens, t.drafted.accepted
        ));
    }
    if out.stop == StopReason::Context {
        output::note("the context is full; -c gives it more room");
    }
}
