//! The programs of a model: the same module for other sizes and with other output heads.
//!
//! On the CPU one program serves all. A GPU's code is made for sizes, and its logits are a long way
//! from the sampler: there a model has a second program for few tokens, and of each another one
//! that gives the best tokens in place of all logits ([`arch::best_tokens`]). They share weights
//! and caches, and those with another head are made when they are first asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aether_ir::Module;
use aether_runtime::gpu::Weights;
use aether_runtime::{Device, Executable, Files, Options, Placement, Prepared, specialise};

use super::EngineError;
use super::interface::{FIXED, Interface};
use crate::arch::{self, MAIN};
use crate::sample::Need;

/// Where the best tokens of a row are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Picking {
    /// On a GPU where it computes the logits, else by the sampler.
    #[default]
    Auto,
    /// Always by the module.
    Module,
    /// Always by the sampler, from all logits.
    Sampler,
}

/// What a call gives for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Head {
    Logits,
    /// So many of the greatest.
    Best(usize),
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Most tokens, when they are few; `None` for as many as the model takes at once.
    pub few: Option<usize>,
    pub head: Head,
}

impl Form {
    /// The one that serves all.
    pub const WHOLE: Form = Form { few: None, head: Head::Logits };
}

/// Heads that are made, by how many logits they give: a handful, so that there are few programs.
const HEADS: [usize; 3] = [1, 64, 256];
/// Tokens that programs for few are made for, below one of each slot: kernels for as few as these
/// read weights once.
const FEW: [usize; 2] = [1, 8];
/// The same where products go through cooperative matrices, by their tiles.
const FEW_IN_TILES: [usize; 5] = [1, 2, 16, 32, 64];

pub(super) struct Forms {
    module: Module,
    files: Files,
    options: Options,
    weights: Weights,
    picking: Picking,
    caches: usize,
    vocab: usize,
    /// Most tokens of the greatest of the programs for few: one of each slot.
    few: usize,
    whole: Arc<Executable>,
    made: Mutex<HashMap<Form, Option<Arc<Executable>>>>,
}

impl Forms {
    /// Compiles the module for all sizes, and on a GPU for few tokens.
    ///
    /// # Errors
    /// When it cannot be compiled.
    pub fn new(
        module: Module,
        interface: &Interface,
        files: Files,
        options: Options,
        picking: Picking,
    ) -> Result<Forms, EngineError> {
        let weights = Weights::default();
        let whole = Prepared::new(module.clone(), &files, &options)?;
        let whole = whole.load_sharing(&files, &weights)?;
        // What is split is split alike.
        let placement = whole.placement();
        let gpu = options.gpu.clone().filter(|_| whole.cpu().is_none());
        let forms = Forms {
            module,
            files,
            options: Options { placement, gpu, ..options },
            weights,
            picking,
            caches: interface.caches.len(),
            vocab: interface.vocab,
            few: interface.slots.unwrap_or(1).min(interface.batch).min(interface.rows),
            whole: Arc::new(whole),
            made: Mutex::default(),
        };
        forms.get(Form { few: Some(forms.few), ..Form::WHOLE })?;
        Ok(forms)
    }

    /// The program for all sizes.
    pub fn whole(&self) -> &Arc<Executable> {
        &self.whole
    }

    /// The head that gives what is needed, as far as that is worth a program.
    pub fn head(&self, need: Need) -> Head {
        let in_module = match self.picking {
            Picking::Auto => self.whole.cpu().is_none(),
            Picking::Module => true,
            Picking::Sampler => false,
        };
        let fits = |k: &usize| matches!(need, Need::Best(most) if most <= *k) && *k < self.vocab;
        match HEADS.into_iter().filter(|_| in_module).find(fits) {
            Some(k) => Head::Best(k),
            None => Head::Logits,
        }
    }

    /// One token of each slot, as far as a call takes so many.
    pub fn few(&self) -> usize {
        self.few
    }

    /// Most tokens of each of the programs for few, rising; none on the CPU.
    pub fn sizes(&self) -> impl Iterator<Item = usize> + use<> {
        let sizes: &[usize] = match &self.options.gpu {
            Some(gpu) if gpu.adapter().cooperative_matrix => &FEW_IN_TILES,
            Some(_) => &FEW,
            None => &[],
        };
        let few = self.few;
        let last = self.options.gpu.as_ref().map(|_| few);
        sizes.iter().copied().filter(move |&n| n < few).chain(last)
    }

    /// The form for so many tokens.
    pub fn form(&self, tokens: usize, rows: usize, head: Head) -> Form {
        Form { few: self.sizes().find(|&n| tokens.max(rows) <= n), head }
    }

    /// A program, made when it is asked for first; `None` when another serves as well.
    ///
    /// # Errors
    /// When it cannot be compiled.
    pub fn get(&self, form: Form) -> Result<Option<Arc<Executable>>, EngineError> {
        if form == Form::WHOLE {
            return Ok(Some(self.whole.clone()));
        }
        if form.few.is_some() && self.options.gpu.is_none() {
            return Ok(None);
        }
        // Two who ask at once wait for one another.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = made.get(&form) {
            return Ok(found.clone());
        }
        let executable = self.make(form)?.map(Arc::new);
        made.insert(form, executable.clone());
        Ok(executable)
    }

    fn make(&self, form: Form) -> Result<Option<Executable>, EngineError> {
        let mut options = self.options.clone();
        let mut module = match form.head {
            Head::Logits => self.module.clone(),
            Head::Best(k) => {
                if let Placement::Fixed(devices) = &options.placement {
                    let on = head_device(&self.module, devices);
                    if on == Some(Device::Cpu) && self.picking == Picking::Auto {
                        // They are on the host already.
                        return Ok(None);
                    }
                    let all = devices.iter().copied().chain([on.unwrap_or(Device::Cpu)]);
                    options.placement = Placement::Fixed(all.collect());
                }
                let built = arch::best_tokens(&self.module, self.caches, k);
                built.map_err(|e| EngineError::Interface(e.to_string()))?
            }
        };
        if let Some(most) = form.few {
            narrow(&mut module, most);
        }
        let prepared = Prepared::new(module, &self.files, &options)?;
        let executable = prepared.load_beside(&self.files, &self.weights, Some(&self.whole))?;
        // An edited module may be cut otherwise when its symbols are numbers.
        Ok(self.whole.shares_states(&executable).then_some(executable))
    }
}

/// Bounds the symbols of tokens and rows.
fn narrow(module: &mut Module, most: usize) {
    let Some(main) = module.funcs.get(MAIN) else { return };
    let fixed = main.params.iter().take(FIXED).map(|&p| main.ty(p));
    let symbols: Vec<Arc<str>> =
        fixed.flat_map(|ty| ty.shape.0.iter().flat_map(aether_ir::Dim::symbols)).collect();
    if most == 1 {
        let ones: Vec<(&str, u64)> = symbols.iter().map(|s| (&**s, 1)).collect();
        return specialise(module, &ones);
    }
    for symbol in &symbols {
        if let Some(range) = module.symbols.get_mut(symbol) {
            range.max = range.max.min(most as u64);
        }
    }
}

/// The device that computes the logits.
fn head_device(module: &Module, devices: &[Device]) -> Option<Device> {
    let main = module.funcs.get(MAIN)?;
    let logits = main.returns.first()?;
    let at = main.body.iter().position(|inst| inst.results.contains(logits))?;
    devices.get(at).copied()
}
