//! Continues a prompt greedily: `generate MODEL.gguf PROMPT [N] [THREADS]`.
//!
//! The text goes to standard output, rates to standard error.

use std::io::Write;
use std::ops::ControlFlow;

use aether_llm::engine::{Context, GenOptions, LoadOptions, Model, generate};
use aether_llm::sample::SamplerOptions;
use aether_llm::tokenizer::{EncodeOptions, Utf8Stream};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let (Some(path), Some(prompt)) = (args.get(1), args.get(2)) else {
        return Err("usage: generate MODEL.gguf PROMPT [N] [THREADS]".into());
    };
    let n = args.get(3).map_or(Ok(32), |n| n.parse())?;
    let threads = args.get(4).map_or(Ok(0), |n| n.parse())?;
    let model = Model::load(path, &LoadOptions { threads, ..LoadOptions::default() })?;
    let tokens = model.tokenizer().encode(prompt.as_bytes(), EncodeOptions::PROMPT)?;
    let mut context = Context::new(&model)?;
    let mut text = Utf8Stream::default();
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{prompt}")?;
    let opts = GenOptions { n, sampler: SamplerOptions::greedy(), ..GenOptions::default() };
    let out = generate(&mut context, &tokens, &opts, &mut |token| {
        let piece = text.push(model.tokenizer().token_bytes(token, false));
        match write!(stdout, "{piece}").and_then(|()| stdout.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    writeln!(stdout, "{}", text.finish())?;
    let t = out.timings;
    eprintln!(
        "load {:.2} s; prefill {} tokens, {:.1}/s; decode {} tokens, {:.1}/s; {:?}",
        t.load.as_secs_f64(),
        t.prefill_tokens,
        t.prefill_per_second(),
        t.decode_tokens,
        t.decode_per_second(),
        out.stop
    );
    Ok(())
}
