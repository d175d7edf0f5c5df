//! Files that test themselves: each `.aet` file under `tests/ir` says in its header how
//! `aether-opt` is called and behind `// expect:` what must come out.
//!
//! ```text
//! // What the case is about.
//! // RUN: aether-opt --pipeline cse,dce
//! module @m {
//! …
//! // expect:
//! …
//! ```
//!
//! What is expected is the whole of standard output; standard error, when there is any, stands
//! above it as comments. A file without `// expect:` must succeed and say nothing, as those with
//! `--verify-diagnostics` do. `AETHER_BLESS=1 cargo test --test filetests` writes what came out
//! into the files; git then shows what changed.
//!
//! Beyond what the files say, and not to be blessed away: a pipeline that is run on its own result
//! changes nothing, a pass says truly whether it changed the module, and what is printed reads
//! back and prints the same.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use aether_codegen_cpu::CpuTarget;
use aether_ir::Module;
use aether_ir::target::Target;
use aether_ir::text::{parse_and_verify, print};
use aether_passes::{GenericTarget, Observer, PassCtx, Pipeline, StepReport};
use aether_tools::opt::{self, Cli, EXPECT, Env, TargetName};

/// One file, read.
struct Case {
    path: PathBuf,
    input: String,
    expected: Option<String>,
}

impl Case {
    fn read(path: PathBuf) -> Case {
        let text = std::fs::read_to_string(&path).unwrap();
        let (input, expected) = match text.split_once(EXPECT) {
            Some((input, expected)) => (input.to_owned(), Some(expected.to_owned())),
            None => (text, None),
        };
        Case { path, input, expected }
    }

    /// Runs every `RUN` line; says what came out, or what is wrong.
    fn run(&self) -> Result<String, String> {
        let runs = opt::run_lines(&self.input).map_err(|e| format!("{e:#}"))?;
        if runs.is_empty() {
            return Err(format!("its header has no `{}` line", opt::RUN));
        }
        let mut said = String::new();
        for cli in runs {
            self.one(&cli, &mut said)?;
        }
        Ok(said)
    }

    fn one(&self, cli: &Cli, said: &mut String) -> Result<(), String> {
        let file = self.path.file_name().map(PathBuf::from);
        let reproducers = tempfile::tempdir().map_err(|e| e.to_string())?;
        let cli = Cli { file, reproducer_dir: reproducers.path().to_owned(), ..cli.clone() };
        let env = Env { source: Some(&self.input), ..Env::default() };
        match opt::run(&cli, &env) {
            Ok(output) => {
                for line in output.stderr.lines() {
                    let _ = writeln!(said, "{}", format!("// {line}").trim_end());
                }
                said.push_str(&output.stdout);
                if !output.ok && self.expected.is_none() {
                    return Err(output.stderr);
                }
            }
            // An error is one paragraph; where the reproducer went differs from run to run.
            Err(e) => {
                let text = aether_tools::exit::paragraph(&e);
                for line in text.lines().filter(|line| !line.starts_with("reproducer: ")) {
                    let _ = writeln!(said, "{}", format!("// {line}").trim_end());
                }
                return Ok(());
            }
        }
        let plain = cli.run.is_none() && !cli.split_input_file && !cli.verify_diagnostics;
        if plain && !cli.bisect && !said.is_empty() {
            self.invariants(&cli)?;
        }
        Ok(())
    }

    /// What no expectation can loosen.
    fn invariants(&self, cli: &Cli) -> Result<(), String> {
        let parse = |text: &str| {
            parse_and_verify(text).map_err(|d| aether_ir::diag::render(&d, text, "the result"))
        };
        let pipeline = cli.pipeline.as_deref().unwrap_or_default();
        let pipeline = Pipeline::parse(pipeline).map_err(|e| e.to_string())?;
        let cpu = CpuTarget { isa: aether_codegen_cpu::Isa::Scalar, threads: cli.threads };
        let target: &dyn Target = match cli.target {
            TargetName::Cpu => &cpu,
            TargetName::Generic => &GenericTarget,
        };
        let mut ctx = PassCtx::new(target);
        ctx.disabled = cli.disable_rule.iter().cloned().collect();
        let mut module = parse(&self.input)?;
        let mut watch = Watch::default();
        pipeline.run(&mut module, &ctx, &mut watch).map_err(|e| e.to_string())?;
        let first = print(&module);
        let mut again = parse(&first)?;
        if print(&again) != first {
            return Err("the result does not print as it reads".to_owned());
        }
        pipeline.run(&mut again, &ctx, &mut watch).map_err(|e| e.to_string())?;
        let second = print(&again);
        if second != first {
            return Err(format!("not idempotent: {}", difference(&first, &second)));
        }
        match watch.lies.is_empty() {
            true => Ok(()),
            false => Err(watch.lies),
        }
    }
}

/// Notes passes that say of a module that they changed it when they did not, or the reverse.
#[derive(Default)]
struct Watch {
    before: String,
    lies: String,
}

impl Observer for Watch {
    fn before(&mut self, _: usize, _: &'static str, module: &Module) {
        self.before = print(module);
    }

    fn after(&mut self, _: usize, report: &StepReport, module: &Module) {
        let changed = print(module) != self.before;
        if changed != report.stats.changed {
            let _ = writeln!(self.lies, "pass {} says changed = {}", report.pass, !changed);
        }
    }
}

/// The first line that differs.
fn difference(expected: &str, found: &str) -> String {
    let mut lines = expected.lines();
    for (i, line) in found.lines().enumerate() {
        let want = lines.next();
        if want != Some(line) {
            let want = want.unwrap_or("the end");
            return format!("line {}: expected\n{want}\nfound\n{line}\nin\n{found}", i + 1);
        }
    }
    lines.next().map_or_else(|| "equal".to_owned(), |want| format!("expected further\n{want}"))
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "aet") {
            found.push(path);
        }
    }
}

#[test]
fn files_give_what_they_expect() {
    let bless = std::env::var_os("AETHER_BLESS").is_some();
    let mut paths = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ir"), &mut paths);
    paths.sort();
    assert!(paths.len() >= 58, "filetests are missing");
    let mut wrong = String::new();
    for path in paths {
        let case = Case::read(path);
        let name = case.path.display();
        match case.run() {
            Err(e) => {
                let _ = writeln!(wrong, "{name}: {e}");
            }
            Ok(said) if bless && (case.expected.is_some() || !said.is_empty()) => {
                let input = case.input.trim_end();
                std::fs::write(&case.path, format!("{input}\n\n{EXPECT}{said}")).unwrap();
            }
            Ok(said) => {
                let expected = case.expected.as_deref().unwrap_or_default();
                if said != expected {
                    let _ = writeln!(wrong, "{name}: {}", difference(expected, &said));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}
