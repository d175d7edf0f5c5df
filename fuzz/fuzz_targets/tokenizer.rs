//! Any vocabulary is refused or encodes any text; tokens of plain text decode to that text.
//!
//! The first byte says where the vocabulary comes from: one of the repository's samples, or the
//! input itself.

#![no_main]

use std::sync::LazyLock;

use aether_llm::gguf::Gguf;
use aether_llm::tokenizer::{EncodeOptions, Tokenizer};
use libfuzzer_sys::fuzz_target;

macro_rules! sample {
    ($name:literal) => {
        include_bytes!(concat!("../../llm/tests/data/tokenizer/", $name, ".gguf")).as_slice()
    };
}

static SAMPLES: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    [sample!("bpe-qwen2"), sample!("bpe-smollm"), sample!("spm"), sample!("spm-strip")]
        .into_iter()
        .map(|bytes| {
            let gguf = Gguf::from_bytes("sample.gguf", bytes).expect("a good sample");
            Tokenizer::from_gguf(&gguf).expect("a good sample")
        })
        .collect()
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    if let Some(tokenizer) = SAMPLES.get(usize::from(first)) {
        for options in [EncodeOptions::PLAIN, EncodeOptions::PROMPT] {
            if let Ok(ids) = tokenizer.encode(rest, options) {
                assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                let _ = tokenizer.decode(&ids, true);
            }
        }
        return;
    }
    let Ok(gguf) = Gguf::from_bytes("fuzz.gguf", rest) else { return };
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        let _ = tokenizer.encode(b"any text \xff<s>", EncodeOptions::PROMPT);
    }
});
