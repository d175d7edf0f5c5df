//! From a module to something that runs: verify, optimise, plan, compile.

use std::collections::HashSet;
use std::sync::Arc;

use aether_codegen_cpu::{CompileOptions, CpuTarget, Isa, Program};
use aether_codegen_wgsl::{GpuProgram, GpuTarget};
use aether_ir::plan::MemoryPlan;
use aether_ir::target::Target;
use aether_ir::{Module, TensorType};
use aether_passes::place::Device;
use aether_passes::plan::Arena;
use aether_passes::{PassCtx, Pipeline, StepReport};

use crate::gpu::{Gpu, GpuExecutable, Weights};
use crate::hybrid::{self, Hybrid, Parts, Placement};
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
    /// Whether values that do not live at the same time share memory.
    pub arena: Arena,
    /// The GPU to run on; the CPU when `None`.
    pub gpu: Option<Arc<Gpu>>,
    /// What of the module runs on the GPU; the rest runs on the CPU.
    pub placement: Placement,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            entry: "main".to_owned(),
            threads: 0,
            isa: None,
            pipeline: None,
            verify: cfg!(debug_assertions),
            arena: Arena::default(),
            gpu: None,
            placement: Placement::Whole,
        }
    }
}

impl Options {
    /// The CPU that these options mean on this machine.
    ///
    /// # Errors
    /// When this machine lacks the instruction set.
    pub(crate) fn cpu(&self) -> Result<CpuTarget, RuntimeError> {
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
    pub(crate) machine: Machine,
    reports: Vec<StepReport>,
}

/// Where a module runs.
pub(crate) enum Machine {
    Cpu(CpuTarget),
    Gpu(Arc<Gpu>),
    Hybrid(Parts),
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
        aether_ir::verify(&module)
            .map_err(|found| RuntimeError::Verify(aether_ir::text::explain(&module, &found)))?;
        keep_reachable(&mut module, &opts.entry);
        let mut gpu = opts.gpu.clone();
        if let Some(device) = gpu.as_ref().filter(|_| opts.placement != Placement::Whole) {
            let devices = hybrid::devices(&module, files, opts, device)?;
            match hybrid::only(&module.funcs[opts.entry.as_str()], &devices) {
                Some(Device::Gpu) => {}
                Some(Device::Cpu) => gpu = None,
                None => return Prepared::split(&module, files, opts, devices),
            }
        }
        let (machine, target): (Machine, Box<dyn Target>) = match gpu {
            Some(gpu) => {
                let adapter = gpu.adapter();
                (Machine::Gpu(gpu), Box::new(GpuTarget { adapter }))
            }
            None => {
                let target = opts.cpu()?;
                (Machine::Cpu(target), Box::new(target))
            }
        };
        let pipeline = Pipeline::parse(opts.pipeline.as_deref().unwrap_or(DEFAULT_PIPELINE))?;
        let mut ctx = PassCtx::new(&*target);
        ctx.verify_each = opts.verify;
        ctx.consts = Some(files);
        let reports = pipeline.run(&mut module, &ctx, &mut ())?;
        let plan = aether_passes::plan::plan_in(&module, &*target, opts.arena)?;
        if opts.verify {
            aether_passes::plan_check::check(&module, &plan, &*target)
                .map_err(|e| RuntimeError::PlanCheck(e.to_string()))?;
        }
        let entry = opts.entry.as_str().into();
        Ok(Prepared { module, plan, entry, machine, reports })
    }

    /// As [`Prepared::new`], in parts: each is optimised and planned on its own.
    fn split(
        module: &Module,
        files: &Files,
        opts: &Options,
        devices: Vec<Device>,
    ) -> Result<Prepared, RuntimeError> {
        let (module, parts) = hybrid::prepare(module, files, opts, devices)?;
        Ok(Prepared {
            module,
            plan: MemoryPlan::default(),
            entry: opts.entry.as_str().into(),
            reports: parts.reports().cloned().collect(),
            machine: Machine::Hybrid(parts),
        })
    }

    pub(crate) fn reports(&self) -> &[StepReport] {
        &self.reports
    }

    /// What a file gave, checked already.
    pub(crate) fn from_parts(
        module: Module,
        plan: MemoryPlan,
        entry: Arc<str>,
        target: CpuTarget,
    ) -> Prepared {
        Prepared { module, plan, entry, machine: Machine::Cpu(target), reports: Vec::new() }
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
        self.load_sharing(files, &Weights::default())
    }

    /// As [`Prepared::load`], with the weights that are on the GPU already for other programs of
    /// the same files.
    ///
    /// # Errors
    /// As [`Prepared::load`].
    pub fn load_sharing(
        self,
        files: &Files,
        weights: &Weights,
    ) -> Result<Executable, RuntimeError> {
        self.load_beside(files, weights, None)
    }

    /// As [`Prepared::load_sharing`], beside an executable of the same module for other sizes: of
    /// one that is split alike the parts of the CPU are taken, whose code serves all sizes.
    ///
    /// # Errors
    /// As [`Prepared::load`].
    pub fn load_beside(
        self,
        files: &Files,
        weights: &Weights,
        other: Option<&Executable>,
    ) -> Result<Executable, RuntimeError> {
        let Prepared { module, plan, entry, machine, reports } = self;
        files.will_load();
        let code = match machine {
            Machine::Hybrid(parts) => {
                let beside = other.and_then(Executable::hybrid);
                parts
                    .load(&module.funcs[&entry], &module.symbols, files, weights, beside)
                    .map(|hybrid| Code::Hybrid(Arc::new(hybrid)))
            }
            Machine::Cpu(CpuTarget { isa, threads }) => {
                let compile = CompileOptions { isa, threads };
                let program = aether_codegen_cpu::compile(&module, &plan, &entry, files, compile);
                program.map_err(RuntimeError::from).map(|program| {
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
                    Code::Cpu { program: Box::new(program), threads, isa }
                })
            }
            Machine::Gpu(gpu) => gpu_program(&gpu, &module, &plan, &entry, files)
                .and_then(|program| GpuExecutable::load(gpu, program, &module, files, weights))
                .map(|program| Code::Gpu(Arc::new(program))),
        };
        files.loaded();
        Ok(Executable { module, plan, code: code?, entry, reports })
    }
}

/// Compiles a module for a GPU.
fn gpu_program(
    gpu: &Gpu,
    module: &Module,
    plan: &MemoryPlan,
    entry: &str,
    files: &Files,
) -> Result<GpuProgram, RuntimeError> {
    let program = aether_codegen_wgsl::compile(module, plan, entry, files, gpu.adapter())?;
    tracing::debug!(
        dispatches = program.steps.len(),
        shaders = program.shaders.len(),
        frame = program.frame_bytes,
        "compiled for the GPU"
    );
    Ok(program)
}

/// As [`Prepared::load_sharing`] for parts that run one after another; those on a GPU share its
/// memory by one plan.
///
/// # Errors
/// As [`Prepared::load`], with the place of the part.
pub(crate) fn load_parts(
    parts: Vec<Prepared>,
    files: &Files,
    weights: &Weights,
) -> Result<Vec<Executable>, (usize, RuntimeError)> {
    let (mut places, mut programs, mut gpu) = (Vec::new(), Vec::new(), None);
    for (at, part) in parts.iter().enumerate() {
        let Prepared { module, plan, entry, machine, .. } = part;
        if let Machine::Gpu(of_part) = machine {
            let program = gpu_program(of_part, module, plan, entry, files).map_err(|e| (at, e))?;
            programs.push((program, module));
            places.push(at);
            gpu = Some(of_part);
        }
    }
    let loaded = match gpu {
        Some(gpu) => GpuExecutable::load_all(gpu, programs, files, weights),
        None => Ok(Vec::new()),
    };
    let mut loaded = loaded.map_err(|(k, e)| (places[k], e))?.into_iter();
    let mut all = Vec::with_capacity(parts.len());
    for (at, part) in parts.into_iter().enumerate() {
        let on_gpu = matches!(part.machine, Machine::Gpu(_));
        all.push(match loaded.by_ref().take(usize::from(on_gpu)).next() {
            Some(program) => {
                let Prepared { module, plan, entry, reports, .. } = part;
                Executable { module, plan, code: Code::Gpu(Arc::new(program)), entry, reports }
            }
            None => part.load_sharing(files, weights).map_err(|e| (at, e))?,
        });
    }
    Ok(all)
}

/// What a module became.
pub(crate) enum Code {
    Cpu { program: Box<Program>, threads: usize, isa: Isa },
    Gpu(Arc<GpuExecutable>),
    Hybrid(Arc<Hybrid>),
}

/// A compiled module.
pub struct Executable {
    module: Module,
    plan: MemoryPlan,
    code: Code,
    entry: Arc<str>,
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

    /// Where its values live; nothing when it runs in parts, each of which has a plan of its own.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    pub(crate) fn code(&self) -> &Code {
        &self.code
    }

    /// What runs on the CPU; `None` when a GPU runs any of it.
    pub fn cpu(&self) -> Option<&Program> {
        match &self.code {
            Code::Cpu { program, .. } => Some(program),
            Code::Gpu(_) | Code::Hybrid(_) => None,
        }
    }

    /// What runs on a GPU, when that runs all of it.
    pub fn gpu(&self) -> Option<&Arc<GpuExecutable>> {
        match &self.code {
            Code::Gpu(program) => Some(program),
            Code::Cpu { .. } | Code::Hybrid(_) => None,
        }
    }

    fn hybrid(&self) -> Option<&Hybrid> {
        match &self.code {
            Code::Hybrid(hybrid) => Some(hybrid),
            Code::Cpu { .. } | Code::Gpu(_) => None,
        }
    }

    /// The parts that run one after another, when the module is split over devices.
    pub fn parts(&self) -> Vec<&Arc<Executable>> {
        self.hybrid().map_or(Vec::new(), |hybrid| hybrid.executables().collect())
    }

    /// A placement that splits the same module for other sizes as this one is split.
    pub fn placement(&self) -> Placement {
        self.hybrid().map_or(Placement::Whole, |h| Placement::Fixed(h.devices().clone()))
    }

    /// Whether sessions of the two can be siblings: on the same device, split alike.
    pub fn shares_states(&self, other: &Executable) -> bool {
        match (&self.code, &other.code) {
            (Code::Cpu { .. }, Code::Cpu { .. }) => true,
            (Code::Gpu(a), Code::Gpu(b)) => Arc::ptr_eq(a.gpu(), b.gpu()),
            (Code::Hybrid(a), Code::Hybrid(b)) => a.shares_states(b),
            _ => false,
        }
    }

    /// Types of the parameters.
    pub fn params(&self) -> &[TensorType] {
        match &self.code {
            Code::Cpu { program, .. } => program.params(),
            Code::Gpu(gpu) => &gpu.program().params,
            Code::Hybrid(hybrid) => hybrid.params(),
        }
    }

    /// Types of the results.
    pub fn results(&self) -> &[TensorType] {
        match &self.code {
            Code::Cpu { program, .. } => program.results(),
            Code::Gpu(gpu) => &gpu.program().results,
            Code::Hybrid(hybrid) => hybrid.results(),
        }
    }

    /// For each result the donated parameter whose buffer holds it.
    pub fn result_aliases(&self) -> &[Option<usize>] {
        match &self.code {
            Code::Cpu { program, .. } => program.result_aliases(),
            Code::Gpu(gpu) => &gpu.program().result_aliases,
            Code::Hybrid(hybrid) => hybrid.result_aliases(),
        }
    }

    /// Instructions without a kernel of their own, which the reference interpreter carries out.
    pub fn by_reference(&self) -> &[String] {
        self.cpu().map_or(&[], Program::by_reference)
    }

    /// Name of the function that runs.
    pub fn entry(&self) -> &Arc<str> {
        &self.entry
    }

    /// Workers that it was compiled for; one when a GPU runs it.
    pub fn threads(&self) -> usize {
        match &self.code {
            Code::Cpu { threads, .. } => *threads,
            Code::Gpu(_) => 1,
            Code::Hybrid(hybrid) => hybrid.executables().map(|e| e.threads()).max().unwrap_or(1),
        }
    }

    /// Instruction set of its kernels on the CPU.
    pub fn isa(&self) -> Option<Isa> {
        match &self.code {
            Code::Cpu { isa, .. } => Some(*isa),
            Code::Gpu(_) => None,
            Code::Hybrid(hybrid) => hybrid.executables().find_map(|e| e.isa()),
        }
    }

    /// What runs it, for people: `CPU avx512`, or the GPU's name.
    pub fn backend(&self) -> String {
        match &self.code {
            Code::Cpu { isa, .. } => format!("CPU {isa}"),
            Code::Gpu(gpu) => gpu.gpu().name(),
            Code::Hybrid(hybrid) => {
                let mut names: Vec<String> = hybrid.executables().map(|e| e.backend()).collect();
                names.sort();
                names.dedup();
                names.join(" and ")
            }
        }
    }

    /// What each pass did.
    pub fn reports(&self) -> &[StepReport] {
        &self.reports
    }
}
