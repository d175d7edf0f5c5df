//! Which pass, and which rewrite in it, changes the numbers.

use aether_ir::Module;
use aether_passes::{PassCtx, Pipeline, Step};

use super::case::{Case, differ};
use crate::opt::compare::Tolerance;

/// What a search found: a step that turns a right module into a wrong one.
pub struct Culprit {
    /// Position in the pipeline.
    pub index: usize,
    /// The step, narrowed to the one rule when there is one.
    pub step: Step,
    pub rule: Option<&'static str>,
    /// The wrong rewrite and how many there were: the first `n - 1` alone do no harm.
    pub rewrite: Option<(u64, u64)>,
    /// How the numbers differ.
    pub why: String,
}

/// Runs single steps on cases and judges what they leave.
pub struct Judge<'a> {
    pub ctx: &'a dyn Fn() -> PassCtx<'a>,
    pub tolerance: &'a dyn Fn(&Module) -> Tolerance,
}

impl Judge<'_> {
    /// Runs one step; with `limit`, only so many rewrites. The rules of the rewrites done come
    /// along. An error tells how the step failed.
    fn apply(
        &self,
        module: &mut Module,
        step: &Step,
        limit: Option<u64>,
    ) -> (Result<(), String>, Vec<&'static str>) {
        let mut ctx = (self.ctx)();
        ctx.max_rewrites = limit;
        let pipeline = Pipeline { steps: vec![step.clone()] };
        let ran = pipeline.run_guarded(module, &ctx, &mut ());
        (ran.map(|_| ()).map_err(|failure| failure.to_string()), ctx.rewrites())
    }

    /// How the step spoils the case, if it does. A case that the interpreter cannot run is not
    /// spoilt by anything.
    pub fn spoils(&self, case: &Case, step: &Step, limit: Option<u64>) -> Option<String> {
        let expected = case.interpret(&case.module).ok()?;
        let mut module = case.module.clone();
        if let (Err(why), _) = self.apply(&mut module, step, limit) {
            return Some(why);
        }
        self.differs(case, &module, &expected)
    }

    fn differs(
        &self,
        case: &Case,
        module: &Module,
        expected: &[aether_ir::Tensor],
    ) -> Option<String> {
        match case.interpret(module) {
            Ok(found) => differ(&found, expected, &(self.tolerance)(&case.module)),
            Err(e) => Some(format!("the interpreter refuses what it left: {e:#}")),
        }
    }

    /// The first step of the pipeline that spoils the case, with the case as it was before that
    /// step; else the case after all of them.
    ///
    /// # Errors
    /// When the interpreter cannot run the case as it is given.
    pub fn search(
        &self,
        case: &Case,
        pipeline: &Pipeline,
    ) -> anyhow::Result<(Case, Option<Culprit>)> {
        let expected = case.interpret(&case.module)?;
        let mut now = case.clone();
        for (index, step) in pipeline.steps.iter().enumerate() {
            let before = now.clone();
            let (ran, _) = self.apply(&mut now.module, step, None);
            let why = match ran {
                Err(why) => Some(why),
                Ok(()) => self.differs(&now, &now.module, &expected),
            };
            if let Some(why) = why {
                let culprit = self.narrow(&before, index, step, why);
                return Ok((before, Some(culprit)));
            }
        }
        Ok((now, None))
    }

    /// From a step to a rewrite or at least a rule of it.
    fn narrow(&self, before: &Case, index: usize, step: &Step, why: String) -> Culprit {
        let mut module = before.module.clone();
        let (_, rewrites) = self.apply(&mut module, step, None);
        let all = rewrites.len() as u64;
        let mut culprit = Culprit { index, step: step.clone(), rule: None, rewrite: None, why };
        if all > 0 && self.spoils(before, step, Some(0)).is_none() {
            // Invariant: `good` rewrites do no harm, `bad` do.
            let (mut good, mut bad) = (0, all);
            while bad - good > 1 {
                let middle = good + (bad - good) / 2;
                match self.spoils(before, step, Some(middle)) {
                    None => good = middle,
                    Some(_) => bad = middle,
                }
            }
            culprit.rewrite = Some((bad, all));
            let mut module = before.module.clone();
            let (_, done) = self.apply(&mut module, step, Some(bad));
            culprit.rule = done.last().copied();
        } else {
            culprit.rule = self.rule(before, step);
        }
        if let Some(rule) = culprit.rule {
            let others = step.pass.rules().iter().map(|r| r.name).filter(|name| *name != rule);
            let alone = Step { disabled: others.collect(), ..step.clone() };
            if let Some(why) = self.spoils(before, &alone, None) {
                culprit.step = alone;
                culprit.why = why;
            }
        }
        culprit
    }

    /// The rule without which the step does no harm; else the one with which harm begins when
    /// they are switched on in their order.
    fn rule(&self, before: &Case, step: &Step) -> Option<&'static str> {
        let names: Vec<&'static str> = step.pass.rules().iter().map(|rule| rule.name).collect();
        let harmless = |disabled: Vec<&'static str>| {
            let step = Step { disabled, ..step.clone() };
            self.spoils(before, &step, None).is_none()
        };
        if !harmless(names.clone()) {
            return None;
        }
        let without = |name: &&&'static str| harmless(vec![**name]);
        names.iter().find(without).copied().or_else(|| {
            (0..names.len()).find(|&i| !harmless(names[i + 1..].to_vec())).map(|i| names[i])
        })
    }
}
