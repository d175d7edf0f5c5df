//! Passes of Aether: from IR to IR, and the memory plan.
//!
//! A [`Pipeline`] is read from text and run over a module; [`passes`] lists what it may name.
//! What a pass must know of a target it asks through [`aether_ir::target::Target`].

pub mod arena;
pub mod autodiff;
pub mod balance;
pub mod cost;
pub mod cse;
pub mod dce;
pub mod egraph;
pub mod fold;
pub mod fuse;
pub mod generic;
pub mod layout;
pub mod manager;
pub mod pass;
pub mod place;
pub mod plan;
pub mod plan_check;
pub mod simplify;
mod specialise;
pub mod util;

pub use generic::GenericTarget;
pub use manager::{
    DEFAULT_PIPELINE, Observer, ParsePipelineError, Pipeline, PipelineError, Step, StepFailure,
    StepReport, pass, passes,
};
pub use pass::{OptionKind, OptionSpec, Options, Pass, PassCtx, PassError, PassStats, Rule};
pub use plan::{PlanError, plan};
pub use specialise::specialise;
