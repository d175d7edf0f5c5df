//! `aetherc`: compiles, inspects and runs IR modules and models.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aether_codegen_cpu::CpuTarget;
use aether_ir::Module;
use aether_ir::interp::{ConstSource, Interpreter};
use aether_ir::text::print_module;
use aether_passes::{DEFAULT_PIPELINE, PassCtx, Pipeline, plan};
use aether_runtime::{Arena, Files, Options, Prepared, Recompile, run_executable};
use aether_tools::device::DeviceArgs;
use aether_tools::opt::inputs;
use aether_tools::report::{self, Report};
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
    /// Run a function of a .aet file, or a saved plan
    Run(RunArgs),
    /// Write a page about a module: graphs, fusion, costs, memory over time
    Report(ReportArgs),
}

#[derive(Debug, Args)]
struct CompileArgs {
    /// A .aet or .gguf file
    file: PathBuf,
    /// What to print; a plan to be run later when the output's name ends in .aeplan
    #[arg(long, value_enum)]
    emit: Option<Emit>,
    /// The function that a saved plan runs
    #[arg(long, default_value = "main")]
    func: String,
    /// Passes to run
    #[arg(long, value_name = "PASSES", default_value = DEFAULT_PIPELINE)]
    pipeline: String,
    /// Threads to compile for
    #[arg(short, long, default_value_t = 1)]
    threads: usize,
    /// Plan without sharing memory between values
    #[arg(long)]
    no_arena: bool,
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
    /// The optimised module with its plan, for `aetherc run`
    Aeplan,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A .aet file, or a .aeplan file that `aetherc compile` wrote
    file: PathBuf,
    /// The function; a saved plan knows its own
    #[arg(long, default_value = "main")]
    func: String,
    /// A parameter: NAME=FILE.npy, NAME=[1, 2.5, …], NAME=0.5 or NAME=random:SEED; without NAME
    /// for all that are not named
    #[arg(short, long, value_name = "VALUE")]
    input: Vec<String>,
    /// The value of a symbol that no input binds: NAME=NUMBER
    #[arg(long, value_name = "NAME=N")]
    sym: Vec<String>,
    /// Write result number I to FILE.npy: I=FILE.npy; results not named are printed
    #[arg(long, value_name = "I=FILE.npy")]
    output: Vec<String>,
    /// Carry it out with the reference interpreter
    #[arg(long)]
    interpret: bool,
    /// Give every value memory of its own
    #[arg(long)]
    no_arena: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Threads to run with; as many as the plan was made for, or as the machine has
    #[arg(short, long)]
    threads: Option<usize>,
    /// Compile a plan again that was made by another version or for another machine
    #[arg(long)]
    recompile: bool,
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// A .aet or .gguf file
    file: PathBuf,
    /// The page
    #[arg(short, long, value_name = "FILE.html")]
    output: PathBuf,
    /// Passes to run
    #[arg(long, value_name = "PASSES", default_value = DEFAULT_PIPELINE)]
    pipeline: String,
    /// Threads to compile for
    #[arg(short, long, default_value_t = 1)]
    threads: usize,
}

/// What `--no-arena` means.
fn arena(none: bool) -> Arena {
    if none { Arena::Separate } else { Arena::Shared }
}

/// Whether the name of a file ends so.
fn is(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// The module of a file, by its extension.
fn load(path: &Path) -> anyhow::Result<Module> {
    if is(path, "gguf") {
        let gguf = aether_llm::gguf::Gguf::open(path)?;
        let options = aether_llm::engine::LoadOptions::default();
        return Ok(aether_llm::engine::Model::build_ir(&gguf, &options)?.module);
    }
    ir_file::read(path)
}

/// The folder that a module's relative paths start at is the current one, as for every command.
fn files() -> Files {
    Files::new()
}

fn compile(args: &CompileArgs) -> anyhow::Result<()> {
    let module = load(&args.file)?;
    let to_plan = args.output.as_ref().is_some_and(|path| is(path, "aeplan"));
    let emit = args.emit.unwrap_or(if to_plan { Emit::Aeplan } else { Emit::Ir });
    if matches!(emit, Emit::Aeplan) {
        let options = Options {
            entry: args.func.clone(),
            threads: args.threads,
            pipeline: Some(args.pipeline.clone()),
            verify: true,
            arena: arena(args.no_arena),
            ..Options::default()
        };
        let bytes = Prepared::new(module, &files(), &options)?.to_bytes(&files())?;
        return write(args.output.as_deref(), &bytes);
    }
    let mut module = module;
    let target = CpuTarget::detect(args.threads);
    let pipeline = Pipeline::parse(&args.pipeline)?;
    let files = files();
    let mut ctx = PassCtx::new(&target);
    ctx.consts = Some(&files as &dyn ConstSource);
    pipeline.run(&mut module, &ctx, &mut ())?;
    let text = match emit {
        Emit::Plan => plan::text(&module, &plan::plan_in(&module, &target, arena(args.no_arena))?),
        Emit::Dot => dot::module(&module),
        Emit::Json => format!("{}\n", serde_json::to_string_pretty(&module)?),
        Emit::Ir | Emit::Aeplan => print_module(&module),
    };
    write(args.output.as_deref(), text.as_bytes())
}

fn write(path: Option<&Path>, bytes: &[u8]) -> anyhow::Result<()> {
    match path {
        Some(path) => {
            std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
        }
        None => Ok(output::write(bytes)?),
    }
}

fn report(args: &ReportArgs) -> anyhow::Result<()> {
    let module = load(&args.file)?;
    let files = files();
    let name = args.file.file_name().unwrap_or(args.file.as_os_str()).to_string_lossy();
    let page = report::page(&Report {
        name: &name,
        module: &module,
        pipeline: &Pipeline::parse(&args.pipeline)?,
        target: CpuTarget::detect(args.threads),
        consts: Some(&files),
    })?;
    write(Some(&args.output), page.as_bytes())
}

fn inspect(file: &Path) -> anyhow::Result<()> {
    if is(file, "gguf") {
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

/// What a `.aeplan` file holds; its number of threads is taken over unless another is asked for.
fn saved(args: &RunArgs, files: &Files) -> anyhow::Result<Prepared> {
    let path = &args.file;
    let about = || format!("cannot use {}", path.display());
    if args.no_arena || args.device.is_given() {
        bail!("a saved plan is for the CPU and has its memory plan: compile the module instead");
    }
    let length = std::fs::metadata(path).with_context(about)?.len();
    if length > aether_runtime::MAX_PLAN_FILE {
        bail!("{} has {length} bytes: no plan is that long", path.display());
    }
    let bytes = std::fs::read(path).with_context(about)?;
    // A plan for more threads than there are was made for another machine.
    let most = aether_runtime::default_threads();
    let made_for = aether_runtime::Identity::peek(&bytes).map(|identity| identity.threads);
    let threads = args.threads.or(made_for.filter(|n| *n <= most)).unwrap_or(most);
    let options = Options { threads, ..Options::default() };
    let recompile = if args.recompile { Recompile::Yes } else { Recompile::No };
    Prepared::from_bytes(&bytes, files, &options, recompile).with_context(about)
}

fn run(args: &RunArgs) -> anyhow::Result<()> {
    let files = files();
    let results = if is(&args.file, "aeplan") {
        let prepared = saved(args, &files)?;
        let func = prepared.entry().clone();
        let given = inputs::read(prepared.module(), &func, &args.input, &args.sym)?;
        if args.interpret {
            Interpreter::new(prepared.module()).run_bound(&func, given.tensors, &given.bindings)?
        } else {
            run_executable(&prepared.load(&files)?.into(), given.tensors)?
        }
    } else {
        let module = ir_file::read(&args.file)?;
        let given = inputs::read(&module, &args.func, &args.input, &args.sym)?;
        if args.interpret {
            Interpreter::new(&module).run_bound(&args.func, given.tensors, &given.bindings)?
        } else {
            let threads = args.threads.unwrap_or(0);
            let options = Options {
                entry: args.func.clone(),
                threads,
                arena: arena(args.no_arena),
                gpu: args.device.open()?,
                placement: args.device.placement(),
                ..Options::default()
            };
            run_executable(
                &Prepared::new(module, &files, &options)?.load(&files)?.into(),
                given.tensors,
            )?
        }
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
        bail!("there are {} results, none is number {index}", results.len());
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
        Command::Report(args) => report(args),
    };
    exit::report(outcome.map(|()| ExitCode::SUCCESS))
}
