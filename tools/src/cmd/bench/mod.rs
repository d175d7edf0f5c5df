//! `aether bench`: prompt and generation speed, as llama-bench measures and prints it, beside
//! llama-bench itself when asked.

mod parallel;
mod peer;
mod sample;
mod synthetic;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use aether_llm::engine::{Context, LoadOptions, Model};
use aether_llm::sample::Need;
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use peer::Peer;
use sample::{Row, Samples, Setup, Test, markdown};

use crate::cache_type::CacheArgs;
use crate::device::DeviceArgs;
use crate::output;
use crate::source::{LoraArgs, ModelArg};

/// Measure prompt and generation speed
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Measure a model of this shape with random weights instead
    #[arg(long, value_enum, value_name = "SHAPE", conflicts_with = "model")]
    pub synthetic: Option<synthetic::Shape>,
    /// Type of the synthetic model's matrices
    #[arg(long, value_name = "TYPE", default_value = "q4_k", requires = "synthetic")]
    pub quant: String,
    /// Tokens that are in the context before each test
    #[arg(short = 'd', long, default_value_t = 0)]
    pub depth: usize,
    /// Tokens of the prompt; 0 for no such test; several by commas
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512")]
    pub n_prompt: Vec<usize>,
    /// Tokens generated one by one; 0 for no such test; several by commas
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "128")]
    pub n_gen: Vec<usize>,
    /// Worker threads; 0 for one per core
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Repetitions of each test
    #[arg(short, long, default_value_t = 5)]
    pub repetitions: usize,
    /// Most tokens that go through the model at once
    #[arg(short, long, default_value_t = 512)]
    pub batch: usize,
    /// Measure so many requests at a time in place of one, several numbers by commas: each has a
    /// prompt of -p and an answer of -n tokens, -r times
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        conflicts_with_all = ["depth", "profile", "compare_llama_cpp"]
    )]
    pub parallel: Vec<usize>,
    /// Time every op in one more turn of each test, write a trace that Perfetto opens, and print
    /// the kernels that took longest
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Format::Md)]
    pub output: Format,
    /// Run llama-bench on the same file, turn by turn with ours, in each of its settings; the
    /// program is looked for on PATH, or at PATH
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "", require_equals = true)]
    pub compare_llama_cpp: Option<PathBuf>,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A Markdown table in llama-bench's form
    Md,
    /// A JSON list under llama-bench's field names
    Json,
}

/// Measures and prints.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if args.repetitions == 0 {
        bail!("-r must be at least 1");
    }
    let tests: Vec<Test> = args
        .n_prompt
        .iter()
        .map(|&n| Test::Prompt(n))
        .chain(args.n_gen.iter().map(|&n| Test::Generate(n)))
        .filter(|test| test.tokens() > 0)
        .collect();
    let longest = tests.iter().map(|test| test.tokens()).max().unwrap_or(0);
    if longest == 0 {
        bail!("nothing to measure: -p and -n are 0");
    }
    let made = args.synthetic.map(|shape| synthetic::write(shape, &args.quant)).transpose()?;
    let path = match &made {
        Some(made) => made.path.clone(),
        None => args.model.path()?,
    };
    if !args.parallel.is_empty() {
        return parallel::run(args, &path);
    }
    let options = LoadOptions {
        context: longest + args.depth,
        batch: args.batch.max(1),
        rows: 1,
        threads: args.threads,
        cache_types: args.cache.types(),
        gpu: args.device.open()?,
        placement: args.device.placement(),
        adapters: args.lora.open(false)?,
        ..LoadOptions::default()
    };
    let model = Model::load(&path, &options)?;
    let memory = Memory::of(&model, args.depth)?;
    let setup = setup(&model, &path);
    let mut ours: Vec<Samples> = tests.iter().map(|&test| Samples::new(test)).collect();
    let mut context = Context::new(&model)?;
    for &test in &tests {
        measure(&mut context, warm_up(test, &model), args.depth)?;
    }
    if let Some(file) = &args.profile {
        profile(&model, &tests, args.depth, file)?;
    }
    match &args.compare_llama_cpp {
        None => {
            for samples in &mut ours {
                for _ in 0..args.repetitions {
                    let ns = measure(&mut context, samples.test, args.depth)?;
                    samples.ns.push(ns);
                }
            }
            print(args.output, &setup, &ours, None)?;
        }
        Some(program) => {
            let peers = Peer::settings(program)?;
            let mut theirs: Vec<Vec<Samples>> = vec![ours.clone(); peers.len()];
            for turn in 0..args.repetitions {
                output::note(&format!("turn {} of {}", turn + 1, args.repetitions));
                for (peer, samples) in peers.iter().zip(&mut theirs) {
                    for mine in &mut ours {
                        let ns = measure(&mut context, mine.test, args.depth)?;
                        mine.ns.push(ns);
                    }
                    let ns = peer.run(&path, &tests, model.executable().threads())?;
                    for (samples, ns) in samples.iter_mut().zip(ns) {
                        samples.ns.push(ns);
                    }
                }
            }
            let names: Vec<String> = peers.iter().map(Peer::name).collect();
            print(args.output, &setup, &ours, Some((&names, &theirs)))?;
        }
    }
    if let Some(memory) = memory.filter(|_| args.output == Format::Md) {
        for samples in &ours {
            memory.print(samples)?;
        }
    }
    Ok(())
}

/// What a GPU's memory can do, and what a token asks of it.
struct Memory {
    /// Bytes per second that a copy reads and writes.
    copy_rate: f64,
    /// Bytes of weights that a token reads, and of the cache at each position.
    weights: f64,
    position: f64,
    depth: usize,
}

impl Memory {
    /// `None` without a GPU, and for models of which a token reads only some experts.
    fn of(model: &Model, depth: usize) -> anyhow::Result<Option<Memory>> {
        let Some(gpu) = model.executable().gpu() else { return Ok(None) };
        let tensors = model.gguf().tensors();
        if tensors.iter().any(|t| t.name.contains("_exps.")) {
            return Ok(None);
        }
        // Of a table of embeddings that is not the output matrix too, a token reads a row.
        let untied = tensors.iter().any(|t| t.name == "output.weight");
        let read = tensors.iter().filter(|t| !(untied && t.name == "token_embd.weight"));
        Ok(Some(Memory {
            copy_rate: gpu.gpu().copy_rate()?,
            weights: read.map(|t| t.bytes).sum::<u64>() as f64,
            position: model.cache_bytes() as f64 / model.context_len().max(1) as f64,
            depth,
        }))
    }

    /// The rate that generating reached, as a share of a copy's.
    fn print(&self, samples: &Samples) -> anyhow::Result<()> {
        let Test::Generate(n) = samples.test else { return Ok(()) };
        let bytes = self.weights + self.position * (self.depth as f64 + n as f64 / 2.0);
        let rate = bytes * samples.median();
        output::print(&format!(
            "{}: {:.2} GB a token, {:.0} GB/s: {:.0} % of the {:.0} GB/s that a copy reads and writes\n",
            samples.test.name(),
            bytes / 1e9,
            rate / 1e9,
            100.0 * rate / self.copy_rate,
            self.copy_rate / 1e9
        ))?;
        Ok(())
    }
}

/// Times every op of the tests.
fn profile(model: &Arc<Model>, tests: &[Test], depth: usize, file: &Path) -> anyhow::Result<()> {
    let mut context = Context::new(model)?;
    for &test in tests {
        measure(&mut context, warm_up(test, model), depth)?;
    }
    context.profile()?;
    for &test in tests {
        // A few tokens say as much as many.
        let test = match test {
            Test::Generate(n) => Test::Generate(n.min(8)),
            prompt => prompt,
        };
        measure(&mut context, test, depth)?;
    }
    let Some(trace) = context.trace() else { return Ok(()) };
    let mut text = Vec::new();
    trace.write(&mut text)?;
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    for (kernel, n, time) in trace.by_kernel() {
        let each = time.as_secs_f64() * 1e6 / n as f64;
        output::note(&format!(
            "{kernel}: {n} times {each:.1} us, {:.3} ms",
            time.as_secs_f64() * 1e3
        ));
    }
    Ok(())
}

/// What a test is warmed up with: everything is touched once, quickly; on a GPU it is the test
/// itself, because clocks rise with the load.
fn warm_up(test: Test, model: &Model) -> Test {
    match test {
        _ if model.executable().gpu().is_some() => test,
        Test::Prompt(n) => Test::Prompt(n.min(64)),
        Test::Generate(n) => Test::Generate(n.min(4)),
    }
}

/// Nanoseconds of one repetition after `depth` tokens. Tokens are arbitrary: their values do not
/// change the work.
fn measure(context: &mut Context, test: Test, depth: usize) -> anyhow::Result<u64> {
    context.reset();
    let vocab = context.model().vocab_len() as u64;
    let token = |i: usize| ((i as u64).wrapping_mul(2_654_435_761) % vocab.max(1)) as u32;
    if depth > 0 {
        let tokens: Vec<u32> = (0..depth).map(token).collect();
        context.prefill(&tokens)?;
    }
    let start = Instant::now();
    match test {
        Test::Prompt(n) => {
            let tokens: Vec<u32> = (0..n).map(token).collect();
            context.prefill(&tokens)?;
        }
        Test::Generate(n) => {
            // On a GPU the greatest logit is found there, as for an answer at temperature 0.
            let need = match context.model().executable().gpu() {
                Some(_) => Need::Best(1),
                None => Need::All,
            };
            for i in 0..n {
                context.decode_for(token(i), need)?;
            }
        }
    }
    Ok(start.elapsed().as_nanos() as u64)
}

fn setup(model: &Arc<Model>, path: &Path) -> Setup {
    let gguf = model.gguf();
    let text = |key: &str| gguf.get_str(key).unwrap_or("?").to_owned();
    let name = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    Setup {
        build_version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_info: cpu_name(),
        backends: model.executable().backend(),
        model_filename: path.to_string_lossy().into_owned(),
        model_type: format!("{} {name}", text("general.architecture")),
        model_size: gguf.tensors().iter().map(|t| t.bytes).sum(),
        model_n_params: gguf.tensors().iter().map(|t| t.elements()).sum(),
        n_batch: model.batch_len(),
        n_threads: model.executable().threads(),
        type_k: "f16".to_owned(),
        type_v: "f16".to_owned(),
    }
}

/// The processor's name where the system tells it.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or(std::env::consts::ARCH, |line| line.trim_start_matches(['\t', ' ', ':'])).to_owned()
}

/// Names of the peer's settings and what was measured with each.
type Compared<'a> = (&'a [String], &'a [Vec<Samples>]);

fn print(
    format: Format,
    setup: &Setup,
    ours: &[Samples],
    compared: Option<Compared>,
) -> anyhow::Result<()> {
    let rows: Vec<Row> = ours.iter().map(|samples| Row::new(setup, samples)).collect();
    let text = match (format, compared) {
        (Format::Md, None) => sample::table(setup, ours),
        (Format::Md, Some(compared)) => {
            format!("{}\n{}", sample::table(setup, ours), comparison(ours, compared))
        }
        (Format::Json, None) => format!("{}\n", serde_json::to_string_pretty(&rows)?),
        (Format::Json, Some((names, theirs))) => {
            let mut list = serde_json::to_value(&rows)?;
            for (i, mine) in ours.iter().enumerate() {
                let peers: serde_json::Map<String, serde_json::Value> = names
                    .iter()
                    .zip(theirs)
                    .map(|(name, samples)| (name.clone(), serde_json::json!(samples[i].rates())))
                    .collect();
                list[i]["llama_cpp_samples_ts"] = peers.into();
                list[i]["ratio"] = serde_json::json!(ratio(mine, theirs, i));
            }
            format!("{}\n", serde_json::to_string_pretty(&list)?)
        }
    };
    output::print(&text)?;
    Ok(())
}

/// The best of the peer's medians of test `i`.
fn best(theirs: &[Vec<Samples>], i: usize) -> (usize, f64) {
    let medians = theirs.iter().map(|samples| samples[i].median()).enumerate();
    medians.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
}

fn ratio(mine: &Samples, theirs: &[Vec<Samples>], i: usize) -> f64 {
    mine.median() / best(theirs, i).1.max(1e-9)
}

/// Medians side by side, with the best of the peer's settings.
fn comparison(ours: &[Samples], (names, theirs): Compared) -> String {
    let header = ["test", "aether t/s", "llama.cpp t/s", "ratio", "its best setting"];
    let mut rows = vec![header.map(str::to_owned)];
    for (i, mine) in ours.iter().enumerate() {
        let (setting, median) = best(theirs, i);
        rows.push([
            mine.test.name(),
            format!("{:.2}", mine.median()),
            format!("{median:.2}"),
            format!("{:.2}", ratio(mine, theirs, i)),
            names[setting].clone(),
        ]);
    }
    markdown(&rows, 1)
}
