//! Any grammar, in llama.cpp's form or Lark's, and any JSON Schema is refused or used: what it
//! allows it also takes.
//!
//! The first byte says which form the rest has.

#![no_main]

use std::sync::LazyLock;

use aether_llm::gguf::Gguf;
use aether_llm::grammar::Grammars;
use aether_llm::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

static GRAMMARS: LazyLock<(Grammars, u32)> = LazyLock::new(|| {
    let bytes = include_bytes!("../../llm/tests/data/tokenizer/spm.gguf").as_slice();
    let gguf = Gguf::from_bytes("sample.gguf", bytes).expect("a good sample");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a good sample");
    let grammars = Grammars::new(&tokenizer).expect("it has an end");
    (grammars, tokenizer.vocab_size() as u32)
});

/// Tokens that are chosen of what a grammar allows.
const STEPS: u32 = 8;

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let (grammars, vocab) = &*GRAMMARS;
    let made = match first % 3 {
        0 => grammars.gbnf(text),
        1 => grammars.lark(text),
        _ => match serde_json::from_str(text) {
            Ok(schema) => grammars.schema(schema),
            Err(_) => return,
        },
    };
    let Ok(mut constraint) = made else { return };
    for step in 0..STEPS {
        let Ok(allowed) = constraint.allowed() else { return };
        // Another place of the vocabulary each time.
        let from = vocab / STEPS * step;
        let token = (from..*vocab).chain(0..from).find(|&token| allowed.contains(token));
        let Some(token) = token else { return };
        if constraint.accept(token).is_err() {
            return;
        }
    }
});
