//! Any bytes end as an error or as a model file whose every key and tensor can be read.

#![no_main]

use aether_llm::arch;
use aether_llm::engine::{LoadOptions, Model};
use aether_llm::gguf::{Gguf, inspect};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes("fuzz.gguf", bytes) else { return };
    for tensor in gguf.tensors() {
        assert_eq!(gguf.data(tensor).len() as u64, tensor.bytes);
    }
    let _ = inspect::text(&gguf);
    let _ = arch::trained_context(&gguf);
    let _ = Model::build_ir(&gguf, &LoadOptions::default());
});
