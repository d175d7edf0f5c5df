//! The command line of Aether: what `aether`, `aetherc` and `aether-opt` share.

pub mod cmd;
pub mod exit;
pub mod output;
pub mod progress;
pub mod source;
