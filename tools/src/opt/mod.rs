//! `aether-opt` as a library: the flags, and a run of them that neither prints nor exits, so that
//! tests can call it.
//!
//! The order of a run is fixed: read, split, parse, run the passes, report, then print the module
//! or run it. Each feature has a file here. What is particular to a process (files, streams, exit
//! code) stays in the binary; [`Env`] holds what a test may put in place of the usual.

mod bisect;
mod cli;
pub mod compare;
mod explain;
mod header;
pub mod inputs;
mod observe;
mod placements;
mod reproducer;
mod split;
mod stats;
mod verify_diagnostics;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read;

use aether_codegen_cpu::{CpuTarget, Isa};
use aether_ir::interp::{ConstSource, FileSource, Interpreter};
use aether_ir::target::Target;
use aether_ir::text::print_module;
use aether_ir::{Module, Tensor};
use aether_passes::{DEFAULT_PIPELINE, GenericTarget, Pass, PassCtx, Pipeline};
use anyhow::{Context, bail};

pub use cli::{Cli, DeviceName, TargetName};
pub use header::{EXPECT, RUN, run_lines};

use crate::{exit, ir_file, npy};

/// What carries out compiled modules.
pub trait Device {
    /// Compiles a module as it stands, without passes, and runs one function.
    ///
    /// # Errors
    /// When it cannot be compiled or run.
    fn run(&self, module: &Module, func: &str, inputs: Vec<Tensor>) -> anyhow::Result<Vec<Tensor>>;
}

/// The CPU of this machine.
#[derive(Clone, Copy, Debug)]
pub struct CpuDevice {
    pub isa: Isa,
    pub threads: usize,
}

impl Device for CpuDevice {
    fn run(&self, module: &Module, func: &str, inputs: Vec<Tensor>) -> anyhow::Result<Vec<Tensor>> {
        let options = aether_runtime::Options {
            entry: func.to_owned(),
            threads: self.threads,
            isa: Some(self.isa),
            pipeline: Some(String::new()),
            verify: true,
            ..aether_runtime::Options::default()
        };
        let files = aether_runtime::Files::new();
        let executable = aether_runtime::Executable::compile(module.clone(), &files, &options)?;
        Ok(aether_runtime::run_executable(&executable.into(), inputs)?)
    }
}

/// What a run uses beside its arguments.
pub struct Env<'a> {
    /// The passes that pipelines may name.
    pub passes: &'a [&'static dyn Pass],
    /// What stands for the compiled CPU, in place of [`CpuDevice`].
    pub device: Option<&'a dyn Device>,
    /// The text of the file, when it is at hand already.
    pub source: Option<&'a str>,
}

impl Default for Env<'_> {
    fn default() -> Self {
        Env { passes: aether_passes::passes(), device: None, source: None }
    }
}

/// What a run says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    /// Whether everything was as asked.
    pub ok: bool,
}

impl Output {
    fn note(&mut self, text: impl AsRef<str>) {
        self.stderr.push_str(text.as_ref().trim_end_matches('\n'));
        self.stderr.push('\n');
    }
}

/// Runs `aether-opt` with these arguments.
///
/// # Errors
/// What ends the run at once: unreadable files, unknown names, a module that does not parse, a
/// pass that fails. What is found out about a module (a wrong number, an error that was not
/// expected) is in the output, whose `ok` is then false.
pub fn run(cli: &Cli, env: &Env) -> anyhow::Result<Output> {
    let mut out = Output { ok: true, ..Output::default() };
    if cli.list_passes || cli.list_rules {
        out.stdout = list(cli, env);
        return Ok(out);
    }
    let (name, mut source) = read(cli, env)?;
    let from_header = header::arguments(cli, &source)?;
    if let Some(at) = source.find(EXPECT).filter(|_| from_header.is_some()) {
        source.truncate(at);
    }
    let cli = from_header.as_ref().unwrap_or(cli);
    let text = match cli.pipeline.as_deref() {
        Some("default") => DEFAULT_PIPELINE,
        Some(text) => text,
        None => "",
    };
    let pipeline = Pipeline::parse_with(text, env.passes)?;
    check_names(cli, env)?;
    if cli.dump_pipeline {
        out.note(pipeline.to_string());
    }
    let session = Session::new(cli, env, &pipeline, from_header.is_some());
    let parts = if cli.split_input_file { split::parts(&source) } else { vec![source] };
    for (i, part) in parts.iter().enumerate() {
        if i > 0 && !cli.verify_diagnostics {
            out.stdout.push_str(split::MARK);
            out.stdout.push('\n');
        }
        if cli.verify_diagnostics {
            session.verify_diagnostics(part, &name, &mut out)?;
            continue;
        }
        let module = match ir_file::parse(part, &name) {
            // The other parts are looked at all the same.
            Err(e) if parts.len() > 1 => {
                out.note(exit::paragraph(&e));
                out.ok = false;
                continue;
            }
            module => module?,
        };
        session.part(module, &mut out)?;
    }
    Ok(out)
}

fn read(cli: &Cli, env: &Env) -> anyhow::Result<(String, String)> {
    let path = cli.file.as_ref().filter(|path| path.as_os_str() != "-");
    let name = path.map_or("<stdin>".to_owned(), |path| path.display().to_string());
    let source = match (env.source, path) {
        (Some(source), _) => source.to_owned(),
        (None, Some(path)) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?
        }
        (None, None) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            text
        }
    };
    Ok((name, source))
}

fn list(cli: &Cli, env: &Env) -> String {
    let mut text = String::new();
    for pass in env.passes {
        if cli.list_passes {
            let _ = writeln!(text, "{:<12} {}", pass.name(), pass.doc());
        }
        if cli.list_rules {
            for rule in pass.rules() {
                let _ = writeln!(text, "{:<12} {:<32} {}", pass.name(), rule.name, rule.doc);
            }
        }
    }
    text
}

/// Refuses names of passes and rules that there are not, so that a slip does not pass silently.
fn check_names(cli: &Cli, env: &Env) -> anyhow::Result<()> {
    let passes: Vec<&str> = env.passes.iter().map(|p| p.name()).collect();
    let rules = env.passes.iter().flat_map(|p| p.rules()).map(|rule| rule.name);
    let all: Vec<&str> = passes.iter().copied().chain(rules).collect();
    let printed =
        cli.print_ir_before.iter().chain(&cli.print_ir_after).map(|n| ("pass", n, &passes));
    let disabled = cli.disable_rule.iter().map(|n| ("rule", n, &all));
    for (kind, name, known) in printed.chain(disabled) {
        if !known.contains(&name.as_str()) {
            let meant = aether_passes::util::nearest(name, known.iter().copied());
            let help = meant.map_or(format!("see --list-{kind}es").replace("ees", "es"), |meant| {
                format!("did you mean `{meant}`?")
            });
            bail!("unknown {kind} `{name}`; {help}");
        }
    }
    Ok(())
}

/// What the parts of one run share.
struct Session<'a> {
    cli: &'a Cli,
    env: &'a Env<'a>,
    pipeline: &'a Pipeline,
    cpu: CpuTarget,
    consts: FileSource,
    disabled: BTreeSet<String>,
    /// Whether the arguments are those of the file's own header.
    alone: bool,
}

impl<'a> Session<'a> {
    fn new(cli: &'a Cli, env: &'a Env<'a>, pipeline: &'a Pipeline, alone: bool) -> Self {
        let isa = cli.isa.unwrap_or_else(Isa::detect);
        Session {
            cli,
            env,
            pipeline,
            cpu: CpuTarget { isa, threads: cli.threads.max(1) },
            consts: FileSource::default(),
            disabled: cli.disable_rule.iter().cloned().collect(),
            alone,
        }
    }

    fn target(&self) -> &dyn Target {
        match self.cli.target {
            TargetName::Cpu => &self.cpu,
            TargetName::Generic => &GenericTarget,
        }
    }

    fn ctx(&self) -> PassCtx<'_> {
        let mut ctx = PassCtx::new(self.target());
        ctx.consts = Some(&self.consts as &dyn ConstSource);
        ctx.verify_each = self.cli.verify_each;
        ctx.disabled = self.disabled.clone();
        ctx
    }

    fn device(&self) -> Box<dyn Device + '_> {
        match self.env.device {
            Some(device) => Box::new(Lent(device)),
            None => Box::new(CpuDevice { isa: self.cpu.isa, threads: self.cpu.threads }),
        }
    }

    /// Runs the passes over one module and prints what was asked for.
    fn part(&self, module: Module, out: &mut Output) -> anyhow::Result<()> {
        if self.cli.bisect {
            return self.bisect(&module, out);
        }
        let mut optimised = module.clone();
        self.optimise(&mut optimised, out)?;
        match &self.cli.run {
            Some(func) => self.run_func(func, &module, &optimised, out),
            None => {
                out.stdout.push_str(&print_module(&optimised));
                Ok(())
            }
        }
    }

    fn optimise(&self, module: &mut Module, out: &mut Output) -> anyhow::Result<()> {
        let ctx = self.ctx();
        let before = self.cli.stats.then(|| stats::Totals::of(module, &ctx));
        let asked = &self.cli.explain;
        let mut printer = observe::Printer::new(self.cli, out);
        let mut recorder = explain::Recorder::new(&mut printer, !asked.is_empty());
        let ran = self.pipeline.run_guarded(module, &ctx, &mut recorder);
        let kept = recorder.kept();
        let reports = match ran {
            Ok(reports) => reports,
            Err(failure) => return Err(reproducer::report(&failure, self.cli, self.alone)),
        };
        if !asked.is_empty() {
            out.note(explain::text(asked, &kept, module, &ctx)?);
        }
        if self.cli.timing {
            out.note(stats::timing(&reports));
        }
        if self.cli.placements {
            out.note(placements::text(module, &self.cpu, self.cli.gpu_memory));
        }
        if let Some(before) = before {
            out.note(stats::text(&before, &stats::Totals::of(module, &ctx), &reports));
        }
        Ok(())
    }

    fn run_func(
        &self,
        func: &str,
        original: &Module,
        optimised: &Module,
        out: &mut Output,
    ) -> anyhow::Result<()> {
        let func = func.strip_prefix('@').unwrap_or(func);
        let inputs = inputs::read(original, func, &self.cli.input, &self.cli.sym)?;
        let results = match self.cli.device {
            DeviceName::Interp => interpret(optimised, func, &inputs)?,
            DeviceName::Cpu => self.device().run(optimised, func, inputs.tensors.clone())?,
        };
        if !self.cli.compare {
            for result in &results {
                out.stdout.push_str(&npy::show(result)?);
            }
            return Ok(());
        }
        let expected = interpret(original, func, &inputs)?;
        let tolerance = self.tolerance(original);
        if results.len() != expected.len() {
            bail!("@{func} gave {} results, expected {}", results.len(), expected.len());
        }
        for (i, (found, expected)) in results.iter().zip(&expected).enumerate() {
            let distance = compare::distance(found, expected)?;
            let within = distance.within(&tolerance);
            let verdict = if within { "" } else { ": beyond the tolerance" };
            let _ = writeln!(out.stdout, "result {i}, {}: {distance}{verdict}", expected.ty());
            out.ok &= within;
        }
        Ok(())
    }

    fn tolerance(&self, module: &Module) -> compare::Tolerance {
        let rel = self.cli.rtol.unwrap_or_else(|| compare::usual_rtol(module));
        compare::Tolerance { abs: self.cli.atol, rel, ulp: self.cli.ulp }
    }
}

/// A device that belongs to somebody else.
struct Lent<'a>(&'a dyn Device);

impl Device for Lent<'_> {
    fn run(&self, module: &Module, func: &str, inputs: Vec<Tensor>) -> anyhow::Result<Vec<Tensor>> {
        self.0.run(module, func, inputs)
    }
}

fn interpret(module: &Module, func: &str, inputs: &inputs::Inputs) -> anyhow::Result<Vec<Tensor>> {
    let interpreter = Interpreter::new(module);
    Ok(interpreter.run_bound(func, inputs.tensors.clone(), &inputs.bindings)?)
}
