//! What a pass is, what it is given and what it says afterwards.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use aether_ir::target::Target;
use aether_ir::{ConstSource, Module};
use indexmap::IndexMap;

use crate::autodiff::AutodiffError;

/// One named rewrite or decision of a pass, which can be switched off by that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub name: &'static str,
    pub doc: &'static str,
}

/// What values an option of a pass takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// One name of the module: a function, a parameter.
    Name,
    /// One or more such names: `x|w`.
    Names,
    /// A whole number.
    Number,
}

/// An option that a pass takes in a pipeline: `autodiff{func=main}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    pub name: &'static str,
    pub kind: OptionKind,
    pub required: bool,
    pub doc: &'static str,
}

/// The options given to one step, as [`Pass::options`] allows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(pub IndexMap<&'static str, Vec<String>>);

impl Options {
    /// The names given for an option, none when it is absent.
    pub fn names(&self, option: &str) -> &[String] {
        self.0.get(option).map(Vec::as_slice).unwrap_or_default()
    }

    /// The number given for an option.
    pub fn number(&self, option: &str) -> Option<u64> {
        self.name(option)?.parse().ok()
    }

    /// The one name given for an option.
    pub fn name(&self, option: &str) -> Option<&str> {
        self.names(option).first().map(String::as_str)
    }
}

/// A transformation of a module.
///
/// A pass is deterministic, idempotent and leaves a module that verifies.
pub trait Pass: Sync {
    /// The name in a pipeline.
    fn name(&self) -> &'static str;

    /// One sentence for `--list-passes`.
    fn doc(&self) -> &'static str;

    /// The parts that can be switched off one by one.
    fn rules(&self) -> &'static [Rule] {
        &[]
    }

    /// What the pass is told in a pipeline. A pass with a required option cannot run without.
    fn options(&self) -> &'static [OptionSpec] {
        &[]
    }

    /// Transforms the module.
    ///
    /// # Errors
    /// When the module cannot be processed, naming the function and value. The module is then in
    /// no defined state.
    fn run(&self, module: &mut Module, ctx: &PassCtx) -> Result<PassStats, PassError>;
}

/// What a pass may ask.
#[derive(Clone)]
pub struct PassCtx<'a> {
    pub target: &'a dyn Target,
    /// Reads constants that lie in files, for folding; without it they are left alone.
    pub consts: Option<&'a dyn ConstSource>,
    /// Verify the module after each pass.
    pub verify_each: bool,
    /// Sizes of symbols that costs are estimated at; others count with their least value.
    pub sizes: IndexMap<Arc<str>, u64>,
    /// Names of passes and rules that are switched off.
    pub disabled: BTreeSet<String>,
    /// Most rewrites by named rules in all passes together; without it there is no limit. Passes
    /// apply rewrites in the same order whatever the limit, so the first `n` are always the same.
    pub max_rewrites: Option<u64>,
    /// The rules of the rewrites done so far, shared by all copies of the context.
    applied: Arc<Mutex<Vec<&'static str>>>,
    /// What this step was told.
    pub options: Options,
}

impl<'a> PassCtx<'a> {
    /// A context with verification on, everything enabled and no reader of files.
    pub fn new(target: &'a dyn Target) -> Self {
        PassCtx {
            target,
            consts: None,
            verify_each: true,
            sizes: IndexMap::new(),
            disabled: BTreeSet::new(),
            max_rewrites: None,
            applied: Arc::default(),
            options: Options::default(),
        }
    }

    /// Asks to apply one rewrite by that rule; `false` when there have been
    /// [`max_rewrites`](PassCtx::max_rewrites) already.
    pub fn take_rewrite(&self, rule: &'static str) -> bool {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = self.max_rewrites.is_none_or(|max| (applied.len() as u64) < max);
        if allowed {
            applied.push(rule);
        }
        allowed
    }

    /// A copy that counts rewrites anew and without a limit.
    #[must_use]
    pub fn without_counting(&self) -> Self {
        PassCtx { max_rewrites: None, applied: Arc::default(), ..self.clone() }
    }

    /// The rules of the rewrites done with this context and its copies, in order.
    pub fn rewrites(&self) -> Vec<&'static str> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a pass or rule is on.
    pub fn enabled(&self, name: &str) -> bool {
        !self.disabled.contains(name)
    }

    /// The value of a symbol in cost estimates.
    pub fn size_of(&self, module: &Module, symbol: &str) -> u64 {
        let least = || module.symbols.get(symbol).map_or(1, |range| range.min.max(1));
        self.sizes.get(symbol).copied().unwrap_or_else(least)
    }
}

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassStats {
    /// Whether the module is another than before.
    pub changed: bool,
    /// Named counts, in the order in which they first occurred.
    pub counters: IndexMap<&'static str, u64>,
}

impl PassStats {
    /// Adds to a counter; the module counts as changed when `n` is not zero.
    pub fn count(&mut self, name: &'static str, n: usize) {
        if n > 0 {
            self.changed = true;
            self.note(name, n as u64);
        }
    }

    /// Adds to a counter that says nothing about change.
    pub fn note(&mut self, name: &'static str, n: u64) {
        *self.counters.entry(name).or_insert(0) += n;
    }
}

/// A pass cannot process the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// Something within one function.
    #[error("in @{func}: {message}")]
    Func { func: Arc<str>, message: String },
    /// A function cannot be differentiated.
    #[error(transparent)]
    Autodiff(#[from] AutodiffError),
    /// Something about the whole module.
    #[error("{0}")]
    Module(String),
}
