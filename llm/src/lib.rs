//! The LLM engine of Aether: model files, tokenizers, models as IR,
//! generation, chat templates, the HTTP server.

pub mod arch;
pub mod chat;
pub mod engine;
pub mod gguf;
pub mod grammar;
pub mod hub;
pub mod sample;
pub mod server;
pub mod tokenizer;
