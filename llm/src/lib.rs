pub mod gguf;
pub mod hub;
pub mod tokenizer;
