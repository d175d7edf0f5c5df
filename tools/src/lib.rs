//! The command line of Aether: what `aether`, `aetherc` and `aether-opt` share.

pub mod cache_type;
pub mod cmd;
pub mod device;
pub mod dot;
pub mod exit;
pub mod fusion;
pub mod ir_file;
pub mod npy;
pub mod opt;
pub mod output;
pub mod progress;
pub mod report;
pub mod source;
pub mod speculate;
