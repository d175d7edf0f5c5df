//! The pass manager: the list of passes, pipelines as text, running them.
//!
//! A pipeline is a comma-separated list of pass names. A pass may carry options in braces:
//! `fuse{disable=matmul-gated|matmul-multi}` runs `fuse` without two of its rules, and
//! `autodiff{func=loss,wrt=x|w}` tells a pass what to work on. Several values of one option are
//! separated by `|`. Which options there are, [`Pass::options`] says; every pass with rules takes
//! `disable`.

use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use aether_ir::Module;

use crate::pass::{OptionKind, OptionSpec, Options, Pass, PassCtx, PassError, PassStats};
use crate::util::nearest;

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

/// A pipeline's text cannot be read. [`Display`](fmt::Display) shows the text with a caret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsePipelineError {
    /// The pipeline as given.
    pub text: String,
    /// The bytes of it that are wrong.
    pub span: Range<usize>,
    pub message: String,
}

impl fmt::Display for ParsePipelineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.text[..self.span.start].chars().count();
        let width = self.text[self.span.clone()].chars().count().max(1);
        writeln!(f, "in the pipeline at column {}: {}", before + 1, self.message)?;
        writeln!(f, "  {}", self.text.replace(['\n', '\t'], " "))?;
        write!(f, "  {}{}", " ".repeat(before), "^".repeat(width))
    }
}

impl std::error::Error for ParsePipelineError {}

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

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.steps.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(step.pass.name())?;
            let disabled = Some(("disable", step.disabled.join("|")));
            let given = step.options.0.iter().map(|(name, values)| (*name, values.join("|")));
            let all: Vec<String> = disabled
                .filter(|(_, rules)| !rules.is_empty())
                .into_iter()
                .chain(given)
                .map(|(name, values)| format!("{name}={values}"))
                .collect();
            if !all.is_empty() {
                write!(f, "{{{}}}", all.join(","))?;
            }
        }
        Ok(())
    }
}

impl Pipeline {
    /// Reads a pipeline. An empty text is the empty pipeline.
    ///
    /// # Errors
    /// At an unknown pass, option or rule, with its place and the name that was probably meant.
    pub fn parse(text: &str) -> Result<Pipeline, ParsePipelineError> {
        Pipeline::parse_with(text, PASSES)
    }

    /// As [`Pipeline::parse`], where the text may name these passes and no others.
    ///
    /// # Errors
    /// As [`Pipeline::parse`].
    pub fn parse_with(
        text: &str,
        passes: &[&'static dyn Pass],
    ) -> Result<Pipeline, ParsePipelineError> {
        let mut parser = Parser { text, at: 0, passes };
        let mut steps = Vec::new();
        parser.skip_space();
        if parser.rest().is_empty() {
            return Ok(Pipeline { steps });
        }
        loop {
            steps.push(parser.step()?);
            if parser.rest().is_empty() {
                return Ok(Pipeline { steps });
            }
            parser.expect(",", "`,` or the end")?;
        }
    }

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

struct Parser<'a> {
    text: &'a str,
    at: usize,
    passes: &'a [&'static dyn Pass],
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn error(&self, span: Range<usize>, message: String) -> ParsePipelineError {
        ParsePipelineError { text: self.text.to_owned(), span, message }
    }

    fn expect(&mut self, token: &str, what: &str) -> Result<(), ParsePipelineError> {
        if !self.rest().starts_with(token) {
            let width = self.rest().chars().next().map_or(0, char::len_utf8);
            return Err(self.error(self.at..self.at + width, format!("expected {what}")));
        }
        self.at += token.len();
        self.skip_space();
        Ok(())
    }

    /// A word of letters, digits, `-`, `_` and `also`, with its place.
    fn word(
        &mut self,
        also: &[char],
        what: &str,
    ) -> Result<(&'a str, Range<usize>), ParsePipelineError> {
        let is_part =
            |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || also.contains(&c);
        let len = self.rest().find(|c| !is_part(c)).unwrap_or(self.rest().len());
        if len == 0 {
            let width = self.rest().chars().next().map_or(0, char::len_utf8);
            return Err(self.error(self.at..self.at + width, format!("expected {what}")));
        }
        let span = self.at..self.at + len;
        self.at = span.end;
        self.skip_space();
        Ok((&self.text[span.clone()], span))
    }

    fn step(&mut self) -> Result<Step, ParsePipelineError> {
        let (name, span) = self.word(&[], "the name of a pass")?;
        let names = || self.passes.iter().map(|p| p.name());
        let Some(pass) = self.passes.iter().copied().find(|p| p.name() == name) else {
            return Err(self.error(span, unknown("pass", name, names)));
        };
        let mut step = Step { pass, disabled: Vec::new(), options: Options::default() };
        if self.rest().starts_with('{') {
            self.expect("{", "`{`")?;
            while !self.rest().starts_with('}') {
                self.option(&mut step)?;
                if !self.rest().starts_with('}') {
                    self.expect(",", "`,`, `|` or `}`")?;
                }
            }
            self.expect("}", "`}`")?;
        }
        let given = |spec: &OptionSpec| step.options.0.contains_key(spec.name);
        match pass.options().iter().find(|spec| spec.required && !given(spec)) {
            Some(spec) => {
                let message = format!("`{name}` needs the option `{}`: {}", spec.name, spec.doc);
                Err(self.error(span, message))
            }
            None => Ok(step),
        }
    }

    /// One option with its values.
    fn option(&mut self, step: &mut Step) -> Result<(), ParsePipelineError> {
        let (name, span) = self.word(&[], "an option such as `disable=RULE`")?;
        let spec = step.pass.options().iter().find(|spec| spec.name == name);
        if spec.is_none() && name != "disable" {
            let own = step.pass.options();
            let names = || own.iter().map(|spec| spec.name).chain(["disable"]);
            return Err(self.error(span, unknown("option", name, names)));
        }
        if spec.is_some_and(|spec| step.options.0.contains_key(spec.name)) {
            return Err(self.error(span, format!("option `{name}` is given twice")));
        }
        self.expect("=", "`=`")?;
        let mut values = Vec::new();
        loop {
            match spec {
                None => step.disabled.push(self.rule(step.pass)?),
                Some(spec) => {
                    let value = self.value(spec, values.is_empty())?;
                    values.push(value);
                }
            }
            if !self.rest().starts_with('|') {
                break;
            }
            self.expect("|", "`|`")?;
        }
        if let Some(spec) = spec {
            step.options.0.insert(spec.name, values);
        }
        Ok(())
    }

    /// One value of an option.
    fn value(&mut self, spec: &OptionSpec, first: bool) -> Result<String, ParsePipelineError> {
        let what = if spec.kind == OptionKind::Number { "a whole number" } else { "a name" };
        let (value, span) = self.word(&['.', '$'], what)?;
        if spec.kind != OptionKind::Names && !first {
            return Err(self.error(span, format!("`{}` takes one value", spec.name)));
        }
        if spec.kind == OptionKind::Number && value.parse::<u64>().is_err() {
            return Err(self.error(span, format!("expected {what}, found `{value}`")));
        }
        Ok(value.to_owned())
    }

    fn rule(&mut self, pass: &dyn Pass) -> Result<&'static str, ParsePipelineError> {
        let (name, span) = self.word(&[], "the name of a rule")?;
        let rules = pass.rules();
        if let Some(rule) = rules.iter().find(|r| r.name == name) {
            return Ok(rule.name);
        }
        if rules.is_empty() {
            let message = format!("pass `{}` has no rules that can be switched off", pass.name());
            return Err(self.error(span, message));
        }
        Err(self.error(span, unknown("rule", name, || rules.iter().map(|r| r.name))))
    }
}

fn unknown<I: Iterator<Item = &'static str>>(
    kind: &str,
    name: &str,
    candidates: impl Fn() -> I,
) -> String {
    match nearest(name, candidates()) {
        Some(meant) => format!("unknown {kind} `{name}`; did you mean `{meant}`?"),
        None => {
            let all: Vec<&str> = candidates().collect();
            format!("unknown {kind} `{name}`; there are {}", all.join(", "))
        }
    }
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

    #[test]
    fn pipelines_round_trip() {
        let texts = [
            "",
            "cse",
            "cse,fold,dce",
            "fuse{disable=matmul-add|matmul-multi},dce",
            "autodiff{func=main.grad,wrt=x|w,result=1}",
        ];
        for text in texts {
            assert_eq!(Pipeline::parse(text).unwrap().to_string(), text);
        }
        let spaced = Pipeline::parse(" cse , fuse { disable = matmul-add } ").unwrap();
        assert_eq!(spaced.to_string(), "cse,fuse{disable=matmul-add}");
        assert!(Pipeline::parse(DEFAULT_PIPELINE).is_ok());
    }

    #[test]
    fn errors_say_where_and_what_was_meant() {
        let table = [
            ("cse,fuze", 4..8, "unknown pass `fuze`; did you mean `fuse`?"),
            ("cse,,dce", 4..5, "expected the name of a pass"),
            ("cse,", 4..4, "expected the name of a pass"),
            ("cse dce", 4..5, "expected `,` or the end"),
            (
                "fuse{disable=matmul-ad}",
                13..22,
                "unknown rule `matmul-ad`; did you mean `matmul-add`?",
            ),
            ("dce{disable=x}", 12..13, "pass `dce` has no rules that can be switched off"),
            ("fuse{enable=x}", 5..11, "unknown option `enable`; there are disable"),
            ("autodiff{fun=main}", 9..12, "unknown option `fun`; did you mean `func`?"),
            ("autodiff{func=a|b}", 16..17, "`func` takes one value"),
            ("autodiff{func=a,func=b}", 16..20, "option `func` is given twice"),
            ("autodiff{result=one}", 16..19, "expected a whole number, found `one`"),
            ("autodiff{wrt=}", 13..14, "expected a name"),
            (
                "cse,autodiff{func=main}",
                4..12,
                "`autodiff` needs the option `wrt`: the parameters it differentiates with \
                 respect to",
            ),
            ("fuse{disable=matmul-add", 23..23, "expected `,`, `|` or `}`"),
            ("fuse{disable", 12..12, "expected `=`"),
            ("é", 0..2, "expected the name of a pass"),
        ];
        for (text, span, message) in table {
            let error = Pipeline::parse(text).err().expect(text);
            assert_eq!((error.span.clone(), error.message.as_str()), (span, message), "{text}");
        }
        let shown = Pipeline::parse("cse,fuze").err().unwrap().to_string();
        let want = "in the pipeline at column 5: unknown pass `fuze`; did you mean `fuse`?\n  \
                    cse,fuze\n      ^^^^";
        assert_eq!(shown, want);
    }
}
