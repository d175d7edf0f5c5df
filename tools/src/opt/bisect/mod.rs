//! `--bisect`: which pass, rule or kernel is the first to change the numbers.
//!
//! The interpreter's results on the module as it is given are the truth. The pipeline runs step by
//! step, and the first step after which the interpreter gives other results is searched in turn:
//! by the number of its rewrites, else by its rules. When no step does harm, the compiled program
//! is compared with the interpreter instruction by instruction. What is found is shrunk to a small
//! module that still shows it, with a header that repeats the bisection.

mod case;
mod kernels;
mod search;
mod shrink;

use std::fmt::Write as _;

use aether_ir::Module;
use aether_ir::text::print_module;
use aether_passes::Pipeline;
use anyhow::Context;

use self::case::{Argument, Case, tolerance_of};
use super::compare::Tolerance;
use super::{Output, RUN, Session, inputs};

impl Session<'_> {
    /// Bisects one module; the report goes to standard error, the shrunk module to where
    /// `--output` says.
    pub(super) fn bisect(&self, module: &Module, out: &mut Output) -> anyhow::Result<()> {
        let case = self.case(module)?;
        let cli = self.cli;
        let tolerance = |module: &Module| tolerance_of(module, cli.atol, cli.rtol, cli.ulp);
        let ctx = || self.ctx();
        let passes = search::Judge { ctx: &ctx, tolerance: &tolerance };
        let (before, culprit) = passes.search(&case, self.pipeline)?;
        if let Some(found) = culprit {
            let steps = self.pipeline.steps.len();
            let name = found.step.pass.name();
            out.note(format!(
                "pass `{name}` (step {} of {steps}) is the first to go wrong: {}",
                found.index + 1,
                found.why
            ));
            if let Some(rule) = found.rule {
                let which = found
                    .rewrite
                    .map_or(String::new(), |(n, all)| format!(" in rewrite {n} of {all}"));
                out.note(format!("rule `{rule}` does it{which}"));
            }
            let fails = |case: &Case| passes.spoils(case, &found.step, None).is_some();
            let step = Pipeline { steps: vec![found.step.clone()] }.to_string();
            return self.shrunk(before, &fails, &step, &cli.target_flags(), out);
        }
        let device = self.device();
        let kernels = kernels::Judge { device: &*device, tolerance: &tolerance };
        if let Some(found) = kernels.search(&before)? {
            match found.op {
                Some(op) => {
                    out.note(format!("kernel of `{op}` ({}) is wrong: {}", found.path, found.why))
                }
                None => out.note(format!(
                    "each kernel is right alone, but together they are wrong ({}): {}",
                    found.path, found.why
                )),
            }
            let fails = |case: &Case| kernels.spoils(case).is_some();
            let isa = format!(" --isa {} --threads {}", self.cpu.isa, self.cpu.threads);
            return self.shrunk(found.case, &fails, "", &isa, out);
        }
        let Tolerance { abs, rel, .. } = tolerance(module);
        out.note(format!(
            "no pass and no kernel changes the numbers beyond {abs:e} + {rel:e} of the greatest"
        ));
        Ok(())
    }

    /// The function to be run and its arguments.
    fn case(&self, module: &Module) -> anyhow::Result<Case> {
        let entry = match &self.cli.run {
            Some(name) => name.strip_prefix('@').unwrap_or(name),
            None => {
                let entry = aether_passes::util::entries(module).into_iter().next();
                let (name, _) = entry
                    .and_then(|f| module.funcs.get_index(f))
                    .context("the module has no function")?;
                name
            }
        };
        let random = ["random:0".to_owned()];
        let specs = if self.cli.input.is_empty() { &random[..] } else { &self.cli.input };
        let read = inputs::read(module, entry, specs, &self.cli.sym)?;
        let arguments = read.tensors.into_iter().zip(read.specs);
        let arguments = arguments.map(|(tensor, spec)| Argument { tensor, spec }).collect();
        let mut case =
            Case { module: module.clone(), func: entry.into(), arguments, bindings: read.bindings };
        case.keep_reachable();
        Ok(case)
    }

    /// Shrinks, and writes the result with a header that bisects it again.
    fn shrunk(
        &self,
        case: Case,
        fails: &dyn Fn(&Case) -> bool,
        pipeline: &str,
        target: &str,
        out: &mut Output,
    ) -> anyhow::Result<()> {
        let from = case.size();
        let small = shrink::shrink(case, fails);
        out.note(format!("shrunk from {from} to {} instructions", small.size()));
        out.ok = false;
        let mut text = String::new();
        for line in out.stderr.lines() {
            let _ = writeln!(text, "// {line}");
        }
        let _ = write!(text, "{RUN} --bisect --pipeline \"{pipeline}\" --run @{}", small.func);
        text.push_str(target);
        text.push_str(&small.input_flags()?);
        for name in &self.cli.disable_rule {
            let _ = write!(text, " --disable-rule {name}");
        }
        let _ = write!(text, "\n\n{}", print_module(&small.module));
        match &self.cli.output {
            None => out.stdout.push_str(&text),
            Some(path) => std::fs::write(path, text)
                .with_context(|| format!("cannot write {}", path.display()))?,
        }
        Ok(())
    }
}
