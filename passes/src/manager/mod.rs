//! The pass manager: the list of passes, and running pipelines of them.

mod text;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use aether_ir::Module;

pub use self::text::ParsePipelineError;
use crate::pass::{Options, Pass, PassCtx, PassError, PassStats};

static PASSES: &[&dyn Pass] = &[
    &crate::autodiff::AutodiffPass,
    &crate::simplify::Simplify,
    &crate::cse::Cse,
    &crate::fold::Fold,
    &crate::dce::Dce,
    &crate::layout::LayoutPass,
    &crate::fuse::Fuse,
    &crate::plan::PlanPass,
];

/// Every pass, in the order of a usual pipeline.
pub fn passes() -> &'static [&'static dyn Pass] {
    PASSES
}

/// The pass of that name.
pub fn pass(name: &str) -> Option<&'static dyn Pass> {
    PASSES.iter().copied().find(|p| p.name() == name)
}

/// The pipeline that modules are compiled with when none is asked for.
pub const DEFAULT_PIPELINE: &str = "simplify,cse,fold,dce,layout,fuse,dce";

/// A pipeline stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// A pass refused the module.
    #[error("pass `{pass}`: {source}")]
    Pass {
        pass: &'static str,
        #[source]
        source: PassError,
    },
    /// The module that a pass left does not verify: a bug in that pass.
    #[error("the module does not verify after pass `{pass}`:\n{diagnostics}")]
    Verify { pass: &'static str, diagnostics: String },
    /// A pass panicked, which is a bug of that pass ([`Pipeline::run_guarded`] alone reports it).
    #[error("pass `{pass}` panicked: {message}")]
    Panic { pass: &'static str, message: String },
}

/// A step failed, with all that is needed to see it fail again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct StepFailure {
    #[source]
    pub error: PipelineError,
    /// The step alone, as a pipeline's text.
    pub step: String,
    /// The module as that step was given it.
    pub before: Module,
}

/// One step of a pipeline.
#[derive(Clone)]
pub struct Step {
    pub pass: &'static dyn Pass,
    /// Rules switched off for this step alone.
    pub disabled: Vec<&'static str>,
    pub options: Options,
}

/// What one step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    pub pass: &'static str,
    /// Time of the pass itself, without verification.
    pub time: Duration,
    pub stats: PassStats,
    /// Instructions in all functions before and after.
    pub insts: (usize, usize),
}

/// Is told what happens while a pipeline runs; `()` ignores it all.
pub trait Observer {
    /// Step `index` is about to run.
    fn before(&mut self, _index: usize, _pass: &'static str, _module: &Module) {}

    /// Step `index` has run, and the module verified if that was asked for.
    fn after(&mut self, _index: usize, _report: &StepReport, _module: &Module) {}
}

impl Observer for () {}

/// Steps to run one after the other.
#[derive(Clone, Default)]
pub struct Pipeline {
    pub steps: Vec<Step>,
}

impl Pipeline {
    /// Runs every step whose pass is not switched off. Returns one report per step that ran.
    ///
    /// # Errors
    /// The first step that fails, or whose result does not verify.
    pub fn run(
        &self,
        module: &mut Module,
        ctx: &PassCtx,
        observer: &mut dyn Observer,
    ) -> Result<Vec<StepReport>, PipelineError> {
        let mut reports = Vec::with_capacity(self.steps.len());
        for index in 0..self.steps.len() {
            reports.extend(self.run_step(index, module, ctx, observer)?);
        }
        Ok(reports)
    }

    /// Runs step `index` alone; `None` when its pass is switched off.
    ///
    /// # Errors
    /// When the pass fails, or what it left does not verify.
    pub fn run_step(
        &self,
        index: usize,
        module: &mut Module,
        ctx: &PassCtx,
        observer: &mut dyn Observer,
    ) -> Result<Option<StepReport>, PipelineError> {
        let step = &self.steps[index];
        let name = step.pass.name();
        if !ctx.enabled(name) {
            return Ok(None);
        }
        let mut step_ctx = ctx.clone();
        step_ctx.disabled.extend(step.disabled.iter().map(|&rule| rule.to_owned()));
        step_ctx.options = step.options.clone();
        observer.before(index, name, module);
        let insts_before = count_insts(module);
        let start = Instant::now();
        let stats = step
            .pass
            .run(module, &step_ctx)
            .map_err(|source| PipelineError::Pass { pass: name, source })?;
        let time = start.elapsed();
        tracing::debug!(pass = name, ?time, changed = stats.changed, counters = ?stats.counters);
        if ctx.verify_each {
            verify(module)
                .map_err(|diagnostics| PipelineError::Verify { pass: name, diagnostics })?;
        }
        let insts = (insts_before, count_insts(module));
        let report = StepReport { pass: name, time, stats, insts };
        observer.after(index, &report, module);
        Ok(Some(report))
    }

    /// As [`Pipeline::run`], for tools: a panic of a pass is an error too, and an error comes with
    /// the failing step and the module that it was given. Keeps a copy of the module for that.
    ///
    /// # Errors
    /// The first step that fails or panics, or whose result does not verify; the module is then in
    /// no defined state.
    pub fn run_guarded(
        &self,
        module: &mut Module,
        ctx: &PassCtx,
        observer: &mut dyn Observer,
    ) -> Result<Vec<StepReport>, Box<StepFailure>> {
        let mut reports = Vec::with_capacity(self.steps.len());
        for (index, step) in self.steps.iter().enumerate() {
            let before = module.clone();
            // Nothing is looked at after a panic but the copy.
            let run = AssertUnwindSafe(|| self.run_step(index, module, ctx, observer));
            let error = match catch_unwind(run) {
                Ok(Ok(report)) => {
                    reports.extend(report);
                    continue;
                }
                Ok(Err(error)) => error,
                Err(payload) => {
                    PipelineError::Panic { pass: step.pass.name(), message: panic_text(&*payload) }
                }
            };
            let step = Pipeline { steps: vec![step.clone()] }.to_string();
            return Err(Box::new(StepFailure { error, step, before }));
        }
        Ok(reports)
    }
}

/// What a panic said.
fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

fn count_insts(module: &Module) -> usize {
    module.funcs.values().map(|f| f.body.len()).sum()
}

fn verify(module: &Module) -> Result<(), String> {
    aether_ir::verify(module).map_err(|diagnostics| aether_ir::text::explain(module, &diagnostics))
}

#[cfg(test)]
mod tests {
    use aether_ir::target::{Cost, Target};
    use aether_ir::{Func, Inst, Layout, Op, Symbol, SymbolRange, TensorType};
    use indexmap::IndexMap;

    use super::*;

    /// Knows nothing and wants nothing.
    struct Plain;

    impl Target for Plain {
        fn name(&self) -> &'static str {
            "plain"
        }
        fn weight_layout(&self, _: &TensorType) -> Layout {
            Layout::RowMajor
        }
        fn supports(&self, _: Op, _: &[&TensorType]) -> bool {
            false
        }
        fn cost(
            &self,
            _: Op,
            _: &[&TensorType],
            _: &[&TensorType],
            _: &dyn Fn(&str) -> u64,
        ) -> Cost {
            Cost::default()
        }
        fn seconds(&self, cost: &Cost) -> f64 {
            cost.launches
        }
        fn scratch_bytes(&self, _: &Func, _: &Inst, _: &IndexMap<Symbol, SymbolRange>) -> u64 {
            0
        }
        fn in_place(&self, _: Op, _: usize) -> bool {
            false
        }
    }

    /// Leaves a module that returns nothing although it says it does.
    struct Breaks;

    impl Pass for Breaks {
        fn name(&self) -> &'static str {
            "breaks"
        }
        fn doc(&self) -> &'static str {
            "Breaks the module."
        }
        fn run(&self, module: &mut Module, _: &PassCtx) -> Result<PassStats, PassError> {
            module.funcs[0].returns.clear();
            Ok(PassStats::default())
        }
    }

    fn small() -> Module {
        let text = "module @m {\n  func @main(%x: tensor<f32>) -> tensor<f32> {\n    \
                    %y = exp %x : tensor<f32>\n    return %x\n  }\n}\n";
        aether_ir::parse_and_verify(text).unwrap()
    }

    #[test]
    fn a_broken_module_is_laid_to_its_pass() {
        let mut pipeline = Pipeline::parse("dce").unwrap();
        pipeline.steps.push(Step {
            pass: &Breaks,
            disabled: Vec::new(),
            options: Options::default(),
        });
        let mut ctx = PassCtx::new(&Plain);
        let e = pipeline.run(&mut small(), &ctx, &mut ()).unwrap_err().to_string();
        assert!(e.starts_with("the module does not verify after pass `breaks`:\n"), "{e}");
        assert!(e.contains("V29"), "{e}");
        ctx.verify_each = false;
        assert!(pipeline.run(&mut small(), &ctx, &mut ()).is_ok());
    }

    /// Panics when it sees `exp`.
    struct Panics;

    impl Pass for Panics {
        fn name(&self) -> &'static str {
            "panics"
        }
        fn doc(&self) -> &'static str {
            "Panics."
        }
        fn run(&self, module: &mut Module, _: &PassCtx) -> Result<PassStats, PassError> {
            assert!(module.funcs[0].body.iter().all(|inst| inst.op != Op::Exp), "exp is too much");
            Ok(PassStats::default())
        }
    }

    #[test]
    fn a_panic_comes_with_the_step_and_the_module_before_it() {
        let known: &[&'static dyn Pass] = &[&crate::cse::Cse, &Panics];
        let e = Pipeline::parse_with("dce", known).err().unwrap();
        assert!(e.to_string().contains("there are cse, panics"), "{e}");
        let pipeline = Pipeline::parse_with("cse,panics", known).unwrap();
        let ctx = PassCtx::new(&Plain);
        let failure = pipeline.run_guarded(&mut small(), &ctx, &mut ()).unwrap_err();
        assert_eq!(failure.to_string(), "pass `panics` panicked: exp is too much");
        assert_eq!((failure.step.as_str(), &failure.before), ("panics", &small()));

        let mut ctx = ctx.clone();
        ctx.disabled.insert("panics".to_owned());
        assert_eq!(pipeline.run_guarded(&mut small(), &ctx, &mut ()).unwrap().len(), 1);
    }

    #[test]
    fn steps_are_observed_counted_and_switched_off() {
        struct Log(Vec<String>);
        impl Observer for Log {
            fn before(&mut self, index: usize, pass: &'static str, _: &Module) {
                self.0.push(format!("{index} {pass}"));
            }
            fn after(&mut self, index: usize, report: &StepReport, module: &Module) {
                assert_eq!(report.insts.1, module.funcs[0].body.len());
                self.0.push(format!("{index} {:?} {:?}", report.insts, report.stats.counters));
            }
        }
        let pipeline = Pipeline::parse("cse,dce").unwrap();
        let mut ctx = PassCtx::new(&Plain);
        let mut log = Log(Vec::new());
        pipeline.run(&mut small(), &ctx, &mut log).unwrap();
        let dce = "1 (1, 0) {\"instructions\": 1}";
        assert_eq!(log.0, ["0 cse", "0 (1, 1) {}", "1 dce", dce]);

        ctx.disabled.insert("dce".to_owned());
        let mut module = small();
        let reports = pipeline.run(&mut module, &ctx, &mut ()).unwrap();
        assert_eq!(reports.iter().map(|r| r.pass).collect::<Vec<_>>(), ["cse"]);
        assert_eq!(module, small());
    }

    #[test]
    fn passes_are_listed_with_unique_names() {
        let mut names = std::collections::BTreeSet::new();
        for p in passes() {
            assert!(names.insert(p.name()) && p.doc().ends_with('.'), "{}", p.name());
            for rule in p.rules() {
                assert!(names.insert(rule.name) && rule.doc.ends_with('.'), "{}", rule.name);
            }
        }
    }
}
