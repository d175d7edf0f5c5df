//! `--print-ir-before`, `--print-ir-after` and their kin.

use aether_ir::Module;
use aether_ir::text::print_module;
use aether_passes::{Observer, StepReport};

use super::{Cli, Output};

/// Prints modules between passes as the flags ask.
pub struct Printer<'a> {
    cli: &'a Cli,
    out: &'a mut Output,
    /// The module before the pass that runs, when changes are to be seen.
    before: Option<String>,
}

impl<'a> Printer<'a> {
    pub fn new(cli: &'a Cli, out: &'a mut Output) -> Self {
        Printer { cli, out, before: None }
    }
}

fn names(list: &[String], pass: &str) -> bool {
    list.iter().any(|name| name == pass)
}

impl Observer for Printer<'_> {
    fn before(&mut self, _index: usize, pass: &'static str, module: &Module) {
        self.before = self.cli.print_ir_after_change.then(|| print_module(module));
        if self.cli.print_ir_before_all || names(&self.cli.print_ir_before, pass) {
            self.out.note(format!("// before {pass}\n{}", print_module(module)));
        }
    }

    fn after(&mut self, _index: usize, report: &StepReport, module: &Module) {
        let pass = report.pass;
        let text = print_module(module);
        let changed = self.before.take().is_some_and(|before| before != text);
        if changed || self.cli.print_ir_after_all || names(&self.cli.print_ir_after, pass) {
            self.out.note(format!("// after {pass}\n{text}"));
        }
    }
}
