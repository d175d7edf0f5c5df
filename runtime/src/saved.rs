//! Plan files (`.aeplan`): an optimised module with its memory plan, saved so that it runs again
//! without a pass and without planning.
//!
//! ```text
//! aether-plan 1
//! sha256 <digest of everything behind this line>
//! <one line of JSON: who made it, for what, the entry, the plan>
//! <the module as text>
//! ```
//!
//! Nothing in a file is believed: sizes are bounded, the module is parsed and verified like any
//! other, the target must be the one the plan was made for, and the independent checker proves the
//! plan before a byte of it is used. The digest tells damage from malice no better than that; it
//! is there for the message. Weights in files stay where they are and are only named.

use std::sync::Arc;

use aether_codegen_cpu::CpuTarget;
use aether_ir::plan::MemoryPlan;
use aether_ir::text::{parse_and_verify, print_module, strip_spans};
use aether_ir::{Module, diag};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::executable::{Machine, Prepared};
use crate::{Files, Options, RuntimeError};

const MAGIC: &str = "aether-plan";

/// Raised whenever what a plan means changes: an op, a layout, the form of this file.
const FORMAT: u32 = 1;

/// Greatest length of a plan file in bytes.
pub const MAX_PLAN_FILE: u64 = 512 << 20;

/// What a plan was made by and for. A plan runs only where all of it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The version of Aether.
    pub aether: String,
    /// The processor family.
    pub arch: String,
    /// The instruction set of the kernels.
    pub isa: String,
    /// Workers: scratch is planned for so many.
    pub threads: usize,
}

impl Identity {
    /// Of this build for a target.
    pub(crate) fn here(target: CpuTarget) -> Self {
        Identity {
            aether: env!("CARGO_PKG_VERSION").to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            isa: target.isa.name().to_owned(),
            threads: target.threads,
        }
    }

    /// What a plan file says of itself, before anything of it is checked.
    pub fn peek(bytes: &[u8]) -> Option<Identity> {
        let (_, rest) = line(bytes)?;
        let (_, body) = line(rest)?;
        let (head, _) = line(body)?;
        serde_json::from_str::<Head>(head).ok().map(|head| head.identity)
    }

    /// What is not the same, in words.
    fn difference(&self, here: &Identity) -> Option<String> {
        let rows = [
            ("version", &self.aether, &here.aether),
            ("processor", &self.arch, &here.arch),
            ("instruction set", &self.isa, &here.isa),
            ("number of threads", &self.threads.to_string(), &here.threads.to_string()),
        ];
        let differ = rows.iter().filter(|(_, made, here)| made != here);
        let list: Vec<String> = differ
            .map(|(what, made, here)| format!("{what} is {here}, the plan was made for {made}"))
            .collect();
        (!list.is_empty()).then(|| list.join("; "))
    }
}

/// What to do with a plan that was made elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompile {
    /// Refuse it.
    No,
    /// Optimise and plan its module again, for this machine.
    Yes,
}

/// A plan file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("plans are saved for the CPU alone; prepare the module without a GPU")]
    Gpu,
    #[error("it is no plan file: its first line is not `aether-plan`")]
    Magic,
    #[error(
        "its format is {found}, this version of Aether reads {FORMAT}: compile the model again"
    )]
    Format { found: String },
    #[error("it has {0} bytes, more than {MAX_PLAN_FILE}")]
    TooLong(u64),
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error("it cannot run here: {0}; compile the model again, or ask for it with --recompile")]
    Elsewhere(String),
    #[error("its module is not valid:\n{0}")]
    Module(String),
    #[error("its plan is not sound: {0}")]
    Plan(String),
    #[error("what would be written does not read back as the same module, which is a bug: {0}")]
    NotCanonical(String),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

#[derive(Serialize, Deserialize)]
struct Head {
    identity: Identity,
    entry: String,
    /// Bytes of every file that holds constants, by the path in the module.
    files: indexmap::IndexMap<String, u64>,
    plan: MemoryPlan,
}

impl Prepared {
    /// The plan file of this module.
    ///
    /// # Errors
    /// When the module's text does not read back as the module that was planned: a bug, which is
    /// found here rather than where the file is used.
    pub fn to_bytes(&self, files: &Files) -> Result<Vec<u8>, SavedError> {
        let text = print_module(&self.module);
        let mut again =
            parse_and_verify(&text).map_err(|d| SavedError::NotCanonical(shown(&d, &text)))?;
        let mut module = self.module.clone();
        strip_spans(&mut again);
        strip_spans(&mut module);
        // The plan counts values, so their order must survive; names of nameless ones need not.
        let types = |m: &Module| -> Vec<Vec<_>> {
            let funcs = m.funcs.values();
            funcs.map(|f| f.values.iter().map(|v| v.ty.clone()).collect()).collect()
        };
        if types(&again) != types(&module) || print_module(&again) != text {
            return Err(SavedError::NotCanonical("values change their order".to_owned()));
        }
        let Machine::Cpu(target) = self.machine else { return Err(SavedError::Gpu) };
        let identity = Identity::here(target);
        let head = Head {
            identity,
            entry: self.entry.to_string(),
            files: files.lengths(&self.module).map_err(SavedError::Damaged)?,
            plan: self.plan.clone(),
        };
        let head = serde_json::to_string(&head).map_err(|e| SavedError::Damaged(e.to_string()))?;
        let body = format!("{head}\n{text}");
        let digest = hex(&Sha256::digest(body.as_bytes()));
        Ok(format!("{MAGIC} {FORMAT}\nsha256 {digest}\n{body}").into_bytes())
    }

    /// Reads a plan file; `opts` says for which target, and its pipeline is that of a module that
    /// has to be compiled again.
    ///
    /// # Errors
    /// When the file cannot be believed, or was made for something else and `recompile` forbids to
    /// make a new plan.
    pub fn from_bytes(
        bytes: &[u8],
        files: &Files,
        opts: &Options,
        recompile: Recompile,
    ) -> Result<Prepared, SavedError> {
        if bytes.len() as u64 > MAX_PLAN_FILE {
            return Err(SavedError::TooLong(bytes.len() as u64));
        }
        let damaged = |what: &str| SavedError::Damaged(what.to_owned());
        let rest = bytes.strip_prefix(MAGIC.as_bytes()).ok_or(SavedError::Magic)?;
        let (format, rest) = line(rest).ok_or(SavedError::Magic)?;
        if format.trim() != FORMAT.to_string() {
            let found = format.trim().chars().take(20).collect();
            return Err(SavedError::Format { found });
        }
        let (digest, body) = line(rest).ok_or_else(|| damaged("it has no digest"))?;
        if digest.strip_prefix("sha256 ") != Some(&hex(&Sha256::digest(body))) {
            return Err(damaged("its digest is another"));
        }
        let (head, text) = line(body).ok_or_else(|| damaged("it has no plan"))?;
        let head: Head = serde_json::from_str(head).map_err(|e| damaged(&e.to_string()))?;
        let text = std::str::from_utf8(text).map_err(|_| damaged("its module is no text"))?;
        let module = parse_and_verify(text).map_err(|d| SavedError::Module(shown(&d, text)))?;
        if !module.funcs.contains_key(head.entry.as_str()) {
            return Err(damaged("its module lacks the function that is to be run"));
        }
        let target = opts.cpu()?;
        if let Some(difference) = head.identity.difference(&Identity::here(target)) {
            return match recompile {
                Recompile::No => Err(SavedError::Elsewhere(difference)),
                Recompile::Yes => {
                    let opts = Options { entry: head.entry, ..opts.clone() };
                    Ok(Prepared::new(module, files, &opts)?)
                }
            };
        }
        let found = files.lengths(&module).map_err(SavedError::Damaged)?;
        for (path, bytes) in &found {
            if head.files.get(path) != Some(bytes) {
                let difference = format!("{path} is another file than the plan was made for");
                return Err(SavedError::Elsewhere(difference));
            }
        }
        check(&module, &head.plan, target)?;
        Ok(Prepared::from_parts(module, head.plan, Arc::from(head.entry), target))
    }
}

/// Proves a plan that comes from outside.
fn check(module: &Module, plan: &MemoryPlan, target: CpuTarget) -> Result<(), SavedError> {
    for (name, func) in &plan.funcs {
        if func.frame_bytes > aether_passes::plan::MAX_FRAME {
            return Err(SavedError::Plan(format!("the frame of @{name} is too great")));
        }
    }
    aether_passes::plan_check::check(module, plan, &target)
        .map_err(|e| SavedError::Plan(e.to_string()))
}

/// The first line, without its end, and the rest.
fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn shown(diagnostics: &[diag::Diagnostic], text: &str) -> String {
    diag::render(diagnostics, text, "the plan's module")
}
