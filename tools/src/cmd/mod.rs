//! One file per subcommand of `aether`: its arguments, and a `run` that does it.

pub mod bench;
pub mod chat;
pub mod completions;
pub mod inspect;
pub mod models;
pub mod perplexity;
pub mod pull;
pub mod run;
pub mod serve;
pub mod tokenize;
