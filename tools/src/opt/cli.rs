//! The flags of `aether-opt`.

use std::path::PathBuf;

use aether_codegen_cpu::Isa;
use clap::{Parser, ValueEnum};

/// Run passes over IR modules: print, check, run, explain and bisect them
///
/// A file whose header holds a line `// RUN: aether-opt ARGUMENTS` may be given alone: those
/// arguments are then used. Files that tests expect and reproducers of failures are of this kind.
#[derive(Clone, Debug, Parser)]
#[command(name = "aether-opt", version, max_term_width = 100)]
pub struct Cli {
    /// The module; standard input when absent or `-`
    pub file: Option<PathBuf>,
    /// Passes to run, for instance "cse,fold,dce"; `default` is the usual pipeline
    #[arg(long, value_name = "PASSES")]
    pub pipeline: Option<String>,
    /// Switch off a rule, or a whole pass; may be repeated
    #[arg(long, value_name = "NAME", alias = "disable")]
    pub disable_rule: Vec<String>,

    /// List the passes and end
    #[arg(long, help_heading = "Listing")]
    pub list_passes: bool,
    /// List the rules of all passes and end
    #[arg(long, help_heading = "Listing")]
    pub list_rules: bool,
    /// Print the pipeline as it was understood to standard error
    #[arg(long, help_heading = "Listing")]
    pub dump_pipeline: bool,

    /// Print the module to standard error before this pass; may be repeated
    #[arg(long, value_name = "PASS", help_heading = "Printing")]
    pub print_ir_before: Vec<String>,
    /// Print the module to standard error after this pass; may be repeated
    #[arg(long, value_name = "PASS", help_heading = "Printing")]
    pub print_ir_after: Vec<String>,
    /// Print the module to standard error before each pass
    #[arg(long, help_heading = "Printing")]
    pub print_ir_before_all: bool,
    /// Print the module to standard error after each pass
    #[arg(long, help_heading = "Printing")]
    pub print_ir_after_all: bool,
    /// Print the module to standard error after each pass that changed it
    #[arg(long, help_heading = "Printing")]
    pub print_ir_after_change: bool,
    /// Print each pass's time and instructions to standard error
    #[arg(long, help_heading = "Printing")]
    pub timing: bool,
    /// Print operations, bytes and flops before and after, and how often each rule was used
    #[arg(long, help_heading = "Printing")]
    pub stats: bool,
    /// Print which calls are worth a GPU, with estimated times: what --device auto goes by
    #[arg(long, help_heading = "Printing")]
    pub placements: bool,
    /// With --placements, memory of the GPU for weights and states, such as 4GiB
    #[arg(long, value_name = "BYTES", value_parser = crate::device::bytes, requires = "placements",
          help_heading = "Printing")]
    pub gpu_memory: Option<u64>,
    /// Print the rewrites that led to a value: `%NAME`, or `@FUNC:%NAME`; may be repeated
    #[arg(long, value_name = "VALUE", help_heading = "Printing")]
    pub explain: Vec<String>,

    /// Verify the module after each pass
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set, help_heading = "Checking")]
    pub verify_each: bool,
    /// Treat each part between lines `// -----` as a file of its own
    #[arg(long, help_heading = "Checking")]
    pub split_input_file: bool,
    /// Expect exactly the errors that the file announces: `// expected-error@+1 {{text}}`
    #[arg(long, help_heading = "Checking")]
    pub verify_diagnostics: bool,
    /// Where reproducers of failing passes are written
    #[arg(long, value_name = "FOLDER", default_value = ".", help_heading = "Checking")]
    pub reproducer_dir: PathBuf,

    /// Run this function after the passes and print its results in place of the module
    #[arg(long, value_name = "@FUNC", help_heading = "Running")]
    pub run: Option<String>,
    /// A parameter: NAME=FILE.npy, NAME=[1, 2.5, …], NAME=0.5 or NAME=random:SEED; without NAME
    /// for all that are not named
    #[arg(long, value_name = "VALUE", help_heading = "Running")]
    pub input: Vec<String>,
    /// The value of a symbol that no input binds: NAME=NUMBER
    #[arg(long, value_name = "NAME=N", help_heading = "Running")]
    pub sym: Vec<String>,
    /// What runs it
    #[arg(long, value_enum, default_value_t = DeviceName::Interp, help_heading = "Running")]
    pub device: DeviceName,
    /// Compare with the interpreter on the module before the passes; fails beyond the tolerance
    #[arg(long, help_heading = "Running")]
    pub compare: bool,
    /// Greatest distance of an element
    #[arg(long, value_name = "X", default_value_t = 1e-6, help_heading = "Running")]
    pub atol: f64,
    /// Greatest distance as a share of the greatest magnitude; 1e-5, where a narrow or quantised
    /// type takes part 1e-2 or 2e-2
    #[arg(long, value_name = "X", help_heading = "Running")]
    pub rtol: Option<f64>,
    /// Accept this distance in units in the last place as well
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub ulp: Option<u64>,

    /// Name the first pass, rule or kernel that changes the numbers, and shrink the module
    #[arg(long, help_heading = "Bisecting")]
    pub bisect: bool,
    /// Where the shrunk module is written; standard output when absent
    #[arg(short, long, value_name = "FILE", help_heading = "Bisecting")]
    pub output: Option<PathBuf>,

    /// What the passes optimise for
    #[arg(long, value_enum, default_value_t = TargetName::Cpu, help_heading = "Target")]
    pub target: TargetName,
    /// Threads that the target is taken to have: costs and plans depend on it
    #[arg(short, long, default_value_t = 1, help_heading = "Target")]
    pub threads: usize,
    /// Instruction set of the target; the best of this machine when absent
    #[arg(long, value_name = "NAME", value_parser = parse_isa, help_heading = "Target")]
    pub isa: Option<Isa>,
}

impl Cli {
    /// The flags that say for what target the passes ran, as far as they are not the usual.
    pub(super) fn target_flags(&self) -> String {
        let mut flags = String::new();
        if self.target == TargetName::Generic {
            flags.push_str(" --target generic");
        }
        if self.threads != 1 {
            flags.push_str(&format!(" --threads {}", self.threads));
        }
        if let Some(isa) = self.isa {
            flags.push_str(&format!(" --isa {isa}"));
        }
        flags
    }
}

/// What carries out a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    /// The reference interpreter
    Interp,
    /// Compiled for this machine's CPU
    Cpu,
}

/// What passes take costs, layouts and the choice of kernels from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TargetName {
    /// This machine's CPU
    Cpu,
    /// No machine in particular: the same everywhere
    Generic,
}

fn parse_isa(text: &str) -> Result<Isa, String> {
    let available = Isa::available();
    available.iter().copied().find(|isa| isa.name() == text).ok_or_else(|| {
        let names: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
        format!("this machine has {}", names.join(", "))
    })
}
