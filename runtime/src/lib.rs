//! The runtime of Aether: compiles modules, keeps the memory they run in, runs them.
//!
//! [`Executable`] is a module that went through the passes and the code generator; [`Session`] is
//! the memory of one line of runs of it; [`Files`] serves the constants that lie in files.
//! [`run_module`] does it all at once for tensors.

mod arg;
mod bind;
mod error;
mod executable;
mod files;
pub mod gpu;
pub mod graph;
mod hybrid;
mod saved;
mod session;
mod tensors;
pub mod trace;

pub use aether_codegen_cpu::pool::{Pool, PoolError};
pub use aether_codegen_cpu::{AlignedBytes, Isa};
pub use aether_passes::place::Device;
pub use aether_passes::plan::Arena;
pub use aether_passes::specialise;
pub use arg::{Arg, ArgData, State};
pub use error::{RunError, RuntimeError};
pub use executable::{DEFAULT_PIPELINE, Executable, Options, Prepared, default_threads};
pub use files::{Backing, Files};
pub use hybrid::Placement;
pub use saved::{Identity, MAX_PLAN_FILE, Recompile, SavedError};
pub use session::{ArgBuffer, Session, check_memory};
pub use tensors::{run_executable, run_module};
pub use trace::Traffic;
