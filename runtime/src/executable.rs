//! From a module to something that runs: verify, optimise, plan, compile.

use std::collections::HashSet;
use std::sync::Arc;

use aether_codegen_cpu::{CompileOptions, CpuTarget, Isa, Program};
use aether_ir::Module;
use aether_ir::plan::MemoryPlan;
use aether_passes::{PassCtx, Pipeline, StepReport};

use crate::{Files, RuntimeError};

/// The passes that run when no others are asked for.
pub const DEFAULT_PIPELINE: &str = aether_passes::DEFAULT_PIPELINE;

/// How to compile.
#[derive(Clone, Debug)]
pub struct Options {
    /// The function to run.
    pub entry: String,
    /// Workers; 0 for as many as the machine has cores to offer.
    pub threads: usize,
    /// Instruction set of the kernels; the best of this machine when `None`.
    pub isa: Option<Isa>,
    /// The passes, as text; [`DEFAULT_PIPELINE`] when `None`.
    pub pipeline: Option<String>,
    /// Verify the module after each pass, and prove the memory plan. On in debug builds.
    pub verify: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            entry: "main".to_owned(),
            threads: 0,
            isa: None,
            pipeline: None,
            verify: cfg!(debug_assertions),
        }
    }
}

impl Options {
    /// The target that these options mean on this machine.
    ///
    /// # Errors
    /// When this machine lacks the instruction set.
    pub(crate) fn target(&self) -> Result<CpuTarget, RuntimeError> {
        let threads = if self.threads == 0 { default_threads() } else { self.threads };
        let isa = self.isa.unwrap_or_else(Isa::detect);
        if !isa.is_available() {
            return Err(RuntimeError::Isa { asked: isa, available: Isa::available() });
        }
        Ok(CpuTarget { isa, threads })
    }
}

/// As many workers as the machine offers this process.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Drops the functions that `entry` does not reach, so that passes take it for the entry.
fn keep_reachable(module: &mut Module, entry: &str) {
    let mut reached: HashSet<Arc<str>> = HashSet::new();
    let mut pending = vec![Arc::from(entry)];
    while let Some(name) = pending.pop() {
        let Some(func) = module.funcs.get(&name) else { continue };
        let calls = func.body.iter().filter(|inst| inst.op.is_call());
        if reached.insert(name) {
            pending.extend(calls.filter_map(|inst| inst.symbol.clone()));
        }
    }
    module.funcs.retain(|name, _| reached.contains(name));
}

/// A module that is optimised and planned. Its weights are not loaded yet, so it is small: it can
/// be saved ([`Prepared::to_bytes`]) and loaded without running a pass again.
pub struct Prepared {
    pub(crate) module: Module,
    pub(crate) plan: MemoryPlan,
    pub(crate) entry: Arc<str>,
    pub(crate) threads: usize,
    pub(crate) isa: Isa,
    reports: Vec<StepReport>,
}

impl Prepared {
    /// Verifies, optimises and plans a module whose constants lie in `files`.
    ///
    /// # Errors
    /// When the module does not verify, the pipeline cannot be read or fails, or the module cannot
    /// be planned.
    pub fn new(
        mut module: Module,
        files: &Files,
        opts: &Options,
    ) -> Result<Prepared, RuntimeError> {
        let target = opts.target()?;
        aether_ir::verify(&module)
            .map_err(|found| RuntimeError::Verify(aether_ir::text::explain(&module, &found)))?;
        keep_reachable(&mut module, &opts.entry);
        let pipeline = Pipeline::parse(opts.pipeline.as_deref().unwrap_or(DEFAULT_PIPELINE))?;
        let mut ctx = PassCtx::new(&target);
        ctx.verify_each = opts.verify;
        ctx.consts = Some(files);
        let reports = pipeline.run(&mut module, &ctx, &mut ())?;
        let plan = aether_passes::plan(&module, &target)?;
        if opts.verify {
            aether_passes::plan_check::check(&module, &plan, &target)
                .map_err(|e| RuntimeError::PlanCheck(e.to_string()))?;
        }
        let CpuTarget { isa, threads } = target;
        let entry = opts.entry.as_str().into();
        Ok(Prepared { module, plan, entry, threads, isa, reports })
    }

    /// What a file gave, checked already.
    pub(crate) fn from_parts(
        module: Module,
        plan: MemoryPlan,
        entry: Arc<str>,
        target: CpuTarget,
    ) -> Prepared {
        let CpuTarget { isa, threads } = target;
        Prepared { module, plan, entry, threads, isa, reports: Vec::new() }
    }

    /// The module after the passes.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Name of the function that is run.
    pub fn entry(&self) -> &Arc<str> {
        &self.entry
    }

    /// Loads the weights and makes the program.
    ///
    /// Weights that kernels want in another form are converted here, once; the originals are then
    /// dropped from memory.
    ///
    /// # Errors
    /// When a constant is missing or the module cannot be compiled.
    pub fn load(self, files: &Files) -> Result<Executable, RuntimeError> {
        let Prepared { module, plan, entry, threads, isa, reports } = self;
        files.will_load();
        let compile = CompileOptions { isa, threads };
        let program = aether_codegen_cpu::compile(&module, &plan, &entry, files, compile);
        files.loaded();
        let program = program?;
        tracing::debug!(
            steps = program.step_counts().0,
            barriers = program.step_counts().1,
            frame = program.frame_bytes(),
            constants = program.constant_bytes(),
            "compiled"
        );
        for step in program.by_reference() {
            tracing::warn!(step, "no kernel: runs by the reference interpreter");
        }
        Ok(Executable { module, plan, program, entry, threads, isa, reports })
    }
}

/// A compiled module.
pub struct Executable {
    module: Module,
    plan: MemoryPlan,
    program: Program,
    entry: Arc<str>,
    threads: usize,
    isa: Isa,
    reports: Vec<StepReport>,
}

impl Executable {
    /// Compiles a module whose constants lie in `files`: [`Prepared::new`], then
    /// [`Prepared::load`].
    ///
    /// # Errors
    /// As these two.
    pub fn compile(
        module: Module,
        files: &Files,
        opts: &Options,
    ) -> Result<Executable, RuntimeError> {
        Prepared::new(module, files, opts)?.load(files)
    }

    /// The module after the passes.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Where its values live.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// What runs.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Name of the function that runs.
    pub fn entry(&self) -> &Arc<str> {
        &self.entry
    }

    /// Workers that it was compiled for.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Instruction set of its kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What each pass did.
    pub fn reports(&self) -> &[StepReport] {
        &self.reports
    }
}
