//! One file per subcommand of `aether`: its arguments, and a `run` that does it.

pub mod models;
pub mod pull;
