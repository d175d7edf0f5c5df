//! `--explain %v`: by which named rewrites a value came to be, and what they were worth.
//!
//! The rewrites of `simplify` come from egg's proofs ([`aether_passes::simplify::explain`]), from
//! the module as that pass was given it. A fused op is explained by the target's figures for it
//! and for its parts.

use std::fmt::Write as _;

use aether_ir::Module;
use aether_ir::target::Cost;
use aether_ir::text::value_names;
use aether_passes::{Observer, PassCtx, StepReport, cost, simplify};
use anyhow::{Context, bail};

use crate::fusion;

/// The pass whose rewrites can be proved.
const SIMPLIFY: &str = "simplify";

/// What `--explain` asks for: a value, in one function or in any.
struct Question<'a> {
    func: Option<&'a str>,
    value: String,
}

impl<'a> Question<'a> {
    /// Reads `%v`, `v`, `@f:%v` or `f:v`.
    fn parse(text: &'a str) -> Question<'a> {
        let (func, value) = match text.split_once(':') {
            Some((func, value)) => (Some(func.strip_prefix('@').unwrap_or(func)), value),
            None => (None, text),
        };
        Question { func, value: format!("%{}", value.strip_prefix('%').unwrap_or(value)) }
    }
}

/// Keeps the module before each step that can be explained, while passing everything on.
pub struct Recorder<'o> {
    inner: &'o mut dyn Observer,
    wanted: bool,
    before: Vec<Module>,
}

impl<'o> Recorder<'o> {
    pub fn new(inner: &'o mut dyn Observer, wanted: bool) -> Self {
        Recorder { inner, wanted, before: Vec::new() }
    }

    /// The modules that were kept.
    pub fn kept(self) -> Vec<Module> {
        self.before
    }
}

impl Observer for Recorder<'_> {
    fn before(&mut self, index: usize, pass: &'static str, module: &Module) {
        if self.wanted && pass == SIMPLIFY {
            self.before.push(module.clone());
        }
        self.inner.before(index, pass, module);
    }

    fn after(&mut self, index: usize, report: &StepReport, module: &Module) {
        self.inner.after(index, report, module);
    }
}

/// The answers to all questions.
///
/// # Errors
/// When a value is nowhere, or there is no proof of it.
pub fn text(
    questions: &[String],
    kept: &[Module],
    after: &Module,
    ctx: &PassCtx,
) -> anyhow::Result<String> {
    let mut out = String::new();
    for question in questions {
        answer(&Question::parse(question), kept, after, ctx, &mut out)
            .with_context(|| format!("--explain {question}"))?;
    }
    Ok(out)
}

fn answer(
    question: &Question,
    kept: &[Module],
    after: &Module,
    ctx: &PassCtx,
    out: &mut String,
) -> anyhow::Result<()> {
    let mut known = false;
    let funcs = after.funcs.keys().filter(|name| question.func.is_none_or(|f| f == &***name));
    for name in funcs {
        let mut chain = String::new();
        let mut refused = None;
        for before in kept.iter().filter(|m| m.funcs.contains_key(name)) {
            match simplify::explain(before, ctx, name, &question.value) {
                Ok(steps) => {
                    known = true;
                    for step in steps {
                        let _ = writeln!(chain, "  {}", step.to_string().replace('\n', "\n  "));
                    }
                }
                Err(e) => refused = Some(e),
            }
        }
        let fused = fused(after, ctx, name, &question.value);
        let is_there = position(after, name, &question.value).is_some();
        known |= is_there;
        if is_there
            && chain.is_empty()
            && fused.is_none()
            && let Some(e) = refused
        {
            bail!("{e}");
        }
        if !is_there && chain.is_empty() {
            continue;
        }
        let _ = writeln!(out, "@{name}, {}:", question.value);
        if chain.is_empty() && fused.is_none() {
            out.push_str("  as it was written\n");
        }
        out.push_str(&chain);
        out.push_str(&fused.unwrap_or_default());
        if let Some(first) = kept.first() {
            let costs = (cost::of_func(first, ctx, name), cost::of_func(after, ctx, name));
            let _ = writeln!(
                out,
                "  @{name} costs {}, before {}",
                figures(&costs.1, ctx),
                figures(&costs.0, ctx)
            );
        }
    }
    if !known {
        bail!("no function has a value {}", question.value);
    }
    Ok(())
}

/// The instruction that defines a value, by the value's name in the text.
fn position(module: &Module, func: &str, value: &str) -> Option<usize> {
    let func = module.funcs.get(func)?;
    let names = value_names(func);
    func.body
        .iter()
        .position(|inst| inst.results.iter().any(|r| names[r.index()].as_deref() == Some(value)))
}

/// What a fused op stands for, and the figures that decided.
fn fused(module: &Module, ctx: &PassCtx, name: &str, value: &str) -> Option<String> {
    let func = module.funcs.get(name)?;
    let inst = &func.body[position(module, name, value)?];
    let found = fusion::of(module, ctx, func, inst)?;
    Some(format!(
        "  {} stands for {}\n    together {}\n    apart    {}\n",
        found.op,
        found.parts,
        figures(&found.fused, ctx),
        figures(&found.apart, ctx)
    ))
}

fn figures(cost: &Cost, ctx: &PassCtx) -> String {
    format!(
        "{:.0} bytes, {:.0} flops, {:.0} launches ({:.2} µs)",
        cost.bytes,
        cost.flops,
        cost.launches,
        ctx.target.seconds(cost) * 1e6
    )
}
