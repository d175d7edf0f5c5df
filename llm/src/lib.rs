//! The LLM engine of Aether: model files, tokenizers, models as IR, generation.

pub mod arch;
pub mod engine;
pub mod gguf;
pub mod hub;
pub mod sample;
pub mod tokenizer;
