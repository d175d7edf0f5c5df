//! `aether-opt`: runs passes over IR text and prints what comes out.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use aether_codegen_cpu::CpuTarget;
use aether_ir::Module;
use aether_ir::text::print_module;
use aether_passes::{Observer, PassCtx, Pipeline, StepReport, passes};
use aether_tools::{exit, ir_file, output};
use anyhow::Context;
use clap::Parser;

/// Run passes over an IR module and print it
#[derive(Debug, Parser)]
#[command(name = "aether-opt", version, max_term_width = 100)]
struct Cli {
    /// The module; standard input when absent or `-`
    file: Option<PathBuf>,
    /// Passes to run, for instance "cse,fold,dce"
    #[arg(long, value_name = "PASSES", default_value = "")]
    pipeline: String,
    /// List the passes with their rules and end
    #[arg(long)]
    list_passes: bool,
    /// Print the pipeline as it was understood to standard error
    #[arg(long)]
    dump_pipeline: bool,
    /// Switch off a pass or rule; may be repeated
    #[arg(long, value_name = "NAME")]
    disable: Vec<String>,
    /// Print the module to standard error after each pass
    #[arg(long)]
    print_ir_after_all: bool,
    /// Print each pass's time, instructions and counters to standard error
    #[arg(long)]
    timing: bool,
    /// Do not verify the module after each pass
    #[arg(long)]
    no_verify_each: bool,
    /// Threads that the target is taken to have: costs depend on it
    #[arg(short, long, default_value_t = 1)]
    threads: usize,
}

struct Printer {
    all: bool,
}

impl Observer for Printer {
    fn after(&mut self, _index: usize, report: &StepReport, module: &Module) {
        if self.all {
            output::note(&format!("// after {}\n{}", report.pass, print_module(module)));
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    if cli.list_passes {
        let mut text = String::new();
        for pass in passes() {
            text.push_str(&format!("{:<10} {}\n", pass.name(), pass.doc()));
            for option in pass.options() {
                let need = if option.required { " (required)" } else { "" };
                text.push_str(&format!(
                    "  {:<16} {}{need}\n",
                    format!("{}=", option.name),
                    option.doc
                ));
            }
            for rule in pass.rules() {
                text.push_str(&format!("  {:<16} {}\n", rule.name, rule.doc));
            }
        }
        output::print(&text)?;
        return Ok(());
    }
    let (name, source) = match &cli.file {
        Some(path) if path.as_os_str() != "-" => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            (path.display().to_string(), text)
        }
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            ("<stdin>".to_owned(), text)
        }
    };
    let pipeline = Pipeline::parse(&cli.pipeline)?;
    if cli.dump_pipeline {
        output::note(&pipeline.to_string());
    }
    let mut module = ir_file::parse(&source, &name)?;
    let target = CpuTarget::detect(cli.threads);
    let mut ctx = PassCtx::new(&target);
    ctx.verify_each = !cli.no_verify_each;
    ctx.disabled = cli.disable.iter().cloned().collect::<BTreeSet<String>>();
    let mut printer = Printer { all: cli.print_ir_after_all };
    let reports = pipeline.run(&mut module, &ctx, &mut printer)?;
    if cli.timing {
        for report in &reports {
            let counters: Vec<String> =
                report.stats.counters.iter().map(|(name, n)| format!("{name}={n}")).collect();
            output::note(&format!(
                "{:<10} {:>9.3} ms  {:>5} -> {:<5} instructions  {}",
                report.pass,
                report.time.as_secs_f64() * 1e3,
                report.insts.0,
                report.insts.1,
                counters.join(" ")
            ));
        }
    }
    output::print(&print_module(&module))?;
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    exit::start_tracing();
    exit::report(run(&cli).map(|()| ExitCode::SUCCESS))
}
