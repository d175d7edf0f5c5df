//! `aetherc`: compiles, inspects and runs IR modules and models.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aether_codegen_cpu::CpuTarget;
use aether_ir::Module;
use aether_ir::text::print_module;
use aether_passes::{DEFAULT_PIPELINE, PassCtx, Pipeline, plan};
use aether_tools::{dot, exit, ir_file, npy, output};
use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Compile, inspect and run IR modules (.aet) and models (.gguf)
#[derive(Debug, Parser)]
#[command(name = "aetherc", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the passes and print the module, its memory plan or its graph
    Compile(CompileArgs),
    /// List a module's functions, constants and symbols, or a model file's contents
    Inspect {
        /// A .aet or .gguf file
        file: PathBuf,
    },
    /// Run a function on inputs from .npy files
    Run(RunArgs),
}

#[derive(Debug, Args)]
struct CompileArgs {
    /// A .aet or .gguf file
    file: PathBuf,
    /// What to print
    #[arg(long, value_enum, default_value_t = Emit::Ir)]
    emit: Emit,
    /// Passes to run
    #[arg(long, value_name = "PASSES", default_value = DEFAULT_PIPELINE)]
    pipeline: String,
    /// Threads to compile for
    #[arg(short, long, default_value_t = 1)]
    threads: usize,
    /// Write here instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Emit {
    /// The module as text
    Ir,
    /// The memory plan: offsets, live ranges, peak, lower bound, fragmentation
    Plan,
    /// The graph of each function in Graphviz' language
    Dot,
    /// The module as JSON
    Json,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A .aet file
    file: PathBuf,
    /// The function
    #[arg(long, default_value = "main")]
    func: String,
    /// A parameter's value: NAME=FILE.npy; may be repeated
    #[arg(short, long, value_name = "NAME=FILE.npy")]
    input: Vec<String>,
    /// Write result number I to FILE.npy: I=FILE.npy; results not named are printed
    #[arg(long, value_name = "I=FILE.npy")]
    output: Vec<String>,
    /// Carry it out with the reference interpreter
    #[arg(long)]
    interpret: bool,
}

/// The module of a file, by its extension.
fn load(path: &Path) -> anyhow::Result<Module> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        let gguf = aether_llm::gguf::Gguf::open(path)?;
        let options = aether_llm::engine::LoadOptions::default();
        return Ok(aether_llm::engine::Model::build_ir(&gguf, &options)?.module);
    }
    ir_file::read(path)
}

fn compile(args: &CompileArgs) -> anyhow::Result<()> {
    let mut module = load(&args.file)?;
    let target = CpuTarget::detect(args.threads);
    let pipeline = Pipeline::parse(&args.pipeline)?;
    pipeline.run(&mut module, &PassCtx::new(&target), &mut ())?;
    let text = match args.emit {
        Emit::Ir => print_module(&module),
        Emit::Plan => plan::text(&module, &plan::plan(&module, &target)?),
        Emit::Dot => dot::module(&module),
        Emit::Json => format!("{}\n", serde_json::to_string_pretty(&module)?),
    };
    match &args.output {
        Some(path) => std::fs::write(path, text)
            .with_context(|| format!("cannot write {}", path.display()))?,
        None => output::print(&text)?,
    }
    Ok(())
}

fn inspect(file: &Path) -> anyhow::Result<()> {
    if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        let gguf = aether_llm::gguf::Gguf::open(file)?;
        output::print(&aether_llm::gguf::inspect::text(&gguf))?;
        return Ok(());
    }
    let module = ir_file::read(file)?;
    let mut text = format!("module @{}\n", module.name);
    for (name, range) in &module.symbols {
        text.push_str(&format!("  sym {name} in {}..={}\n", range.min, range.max));
    }
    for (name, constant) in &module.consts {
        text.push_str(&format!("  const @{name} : {}\n", constant.ty));
    }
    for func in module.funcs.values() {
        let list = |types: Vec<String>| types.join(", ");
        text.push_str(&format!(
            "  func @{}({}) -> ({}): {} instructions\n",
            func.name,
            list(func.params.iter().map(|&p| func.ty(p).to_string()).collect()),
            list(func.result_types.iter().map(ToString::to_string).collect()),
            func.body.len()
        ));
    }
    output::print(&text)?;
    Ok(())
}

/// `KEY=VALUE` of an option.
fn pair<'a>(text: &'a str, option: &str) -> anyhow::Result<(&'a str, &'a str)> {
    text.split_once('=').with_context(|| format!("--{option} {text}: expected KEY=FILE.npy"))
}

fn run(args: &RunArgs) -> anyhow::Result<()> {
    let module = ir_file::read(&args.file)?;
    let Some(func) = module.funcs.get(args.func.as_str()) else {
        bail!("{} has no function @{}", args.file.display(), args.func);
    };
    let mut inputs = Vec::with_capacity(func.params.len());
    let mut given = args
        .input
        .iter()
        .map(|text| pair(text, "input"))
        .collect::<anyhow::Result<Vec<(&str, &str)>>>()?;
    for &param in &func.params {
        let name = func.values[param.index()].name.as_deref().unwrap_or_default();
        let index = given.iter().position(|(key, _)| *key == name).with_context(|| {
            format!("%{name} has no value: give it as --input {name}=FILE.npy ({})", func.ty(param))
        })?;
        let (_, path) = given.swap_remove(index);
        inputs.push(npy::read(Path::new(path))?);
    }
    if let Some((key, _)) = given.first() {
        bail!("@{} has no parameter %{key}", args.func);
    }
    let results = if args.interpret {
        aether_ir::interp::Interpreter::new(&module).run(&args.func, inputs)?
    } else {
        aether_runtime::run_module(&module, &args.func, inputs)?
    };
    let mut named = args
        .output
        .iter()
        .map(|text| {
            let (index, path) = pair(text, "output")?;
            let index: usize = index.parse().with_context(|| format!("{index} is no number"))?;
            Ok((index, path))
        })
        .collect::<anyhow::Result<Vec<(usize, &str)>>>()?;
    for (i, result) in results.iter().enumerate() {
        if let Some(at) = named.iter().position(|(index, _)| *index == i) {
            let (_, path) = named.swap_remove(at);
            npy::write(Path::new(path), result)?;
        } else {
            output::print(&npy::show(result)?)?;
        }
    }
    if let Some((index, _)) = named.first() {
        bail!("@{} has {} results, there is no number {index}", args.func, results.len());
    }
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    exit::start_tracing();
    let outcome = match &cli.command {
        Command::Compile(args) => compile(args),
        Command::Inspect { file } => inspect(file),
        Command::Run(args) => run(args),
    };
    exit::report(outcome.map(|()| ExitCode::SUCCESS))
}
