//! Tokenizers against llama.cpp's ids (`scripts/oracles/tokenizer.py`), round trips over
//! random bytes, vocabularies that are wrong, and the growth of time with length.

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aether_llm::gguf::{Gguf, GgufWriter};
use aether_llm::tokenizer::{EncodeOptions, SpecialIds, Tokenizer, TokenizerError, VocabData};
use serde_json::Value;

const BPE: [&str; 10] = [
    "bpe-default",
    "bpe-gpt-2",
    "bpe-smollm",
    "bpe-llama-bpe",
    "bpe-qwen2",
    "bpe-deepseek-coder",
    "bpe-deepseek-llm",
    "bpe-deepseek-v3",
    "bpe-falcon",
    "bpe-tekken",
];
const SPM: [&str; 2] = ["spm", "spm-strip"];

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer").join(file)
}

fn json(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data(file)).unwrap()).unwrap()
}

fn load(path: &Path) -> Tokenizer {
    Tokenizer::from_gguf(&Gguf::open(path).unwrap()).unwrap()
}

fn small(name: &str) -> Tokenizer {
    load(&data(&format!("{name}.gguf")))
}

/// Holds a tokenizer against the ids in `NAME.json`.
fn check(name: &str, tokenizer: &Tokenizer) {
    let (texts, expected) = (json("texts.json"), json(&format!("{name}.json")));
    let texts = texts.as_array().unwrap();
    assert!(texts.len() >= 60);
    for (mode, options) in [("special", EncodeOptions::PROMPT), ("plain", EncodeOptions::PLAIN)] {
        let rows = expected[mode].as_array().unwrap();
        assert_eq!(rows.len(), texts.len());
        for (text, row) in texts.iter().zip(rows) {
            let text = text.as_str().unwrap();
            let row: Vec<u32> =
                row.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
            let ids = tokenizer.encode(text.as_bytes(), options).unwrap();
            assert_eq!(ids, row, "{name} {mode} {text:?}");
        }
    }
}

#[test]
fn small_vocabularies_give_the_ids_of_llama_cpp() {
    for name in BPE.into_iter().chain(SPM) {
        check(name, &small(name));
    }
}

#[test]
fn real_models_give_the_ids_of_llama_cpp() {
    check("smollm2-135m", &load(&common::default_model()));
    for name in ["qwen2.5-coder-0.5b", "gemma3-270m"] {
        if let Some(path) = common::cached_model(name) {
            check(name, &load(&path));
        }
    }
}

#[test]
fn byte_level_bpe_gives_back_any_bytes() {
    let mut rng = fastrand::Rng::with_seed(11);
    for name in BPE {
        let tokenizer = small(name);
        for round in 0..500 {
            let most = [255, 127, b'\'', 0x21][round % 4];
            let text: Vec<u8> = (0..rng.usize(..200)).map(|_| rng.u8(..=most)).collect();
            let ids = tokenizer.encode(&text, EncodeOptions::PLAIN).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), text, "{name}");
        }
    }
}

#[test]
fn spm_gives_back_texts_without_the_space_it_put_before_them() {
    let mut rng = fastrand::Rng::with_seed(12);
    for name in SPM {
        let tokenizer = small(name);
        for round in 0..500 {
            let text: Vec<u8> = match round % 2 {
                0 => (0..rng.usize(1..100)).map(|_| rng.u8(..)).collect(),
                _ => (0..rng.usize(1..40)).map(|_| rng.char(' '..'~')).collect::<String>().into(),
            };
            let ids = tokenizer.encode(&text, EncodeOptions::PLAIN).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), text, "{name}");
        }
    }
    let text = b"<tool> The compiler<tool>reads";
    for (name, expected) in [("spm", &text[..]), ("spm-strip", b"<tool>The compiler<tool>reads")] {
        let tokenizer = small(name);
        let ids = tokenizer.encode(text, EncodeOptions::PLAIN).unwrap();
        assert_eq!(tokenizer.decode(&ids, true), expected, "{name}");
    }
}

#[test]
fn bos_and_control_tokens_are_for_those_who_ask() {
    let tokenizer = small("bpe-gpt-2");
    let encode = |add_special, parse_special| {
        tokenizer.encode(b"<|im_end|>", EncodeOptions { add_special, parse_special }).unwrap()
    };
    assert!(tokenizer.adds_bos() && !tokenizer.adds_eos());
    assert_eq!(encode(true, true), [0, 2]);
    assert_eq!(encode(false, true), [2]);
    let plain = encode(false, false);
    assert!(plain.len() > 2 && !plain.contains(&2));
    assert_eq!(encode(true, false)[1..], plain);
    assert_eq!(tokenizer.special_token("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.special_token("the"), None);
    assert_eq!(tokenizer.token_bytes(2, true), b"<|im_end|>");
    assert_eq!(tokenizer.token_bytes(2, false), b"");
    assert_eq!(tokenizer.token_bytes(u32::MAX, true), b"");
    assert_eq!(tokenizer.eog_ids(), [0, 2]);
    assert!(tokenizer.is_eog(2) && !tokenizer.is_eog(1) && tokenizer.is_control(1));
    assert!(tokenizer.encode(b"", EncodeOptions::PLAIN).unwrap().is_empty());
}

#[test]
fn long_texts_take_time_in_proportion() {
    // Far above what the work takes (tenths of a second in a debug build), far below what
    // anything quadratic would.
    let limit = Duration::from_secs(30);
    let mut rng = fastrand::Rng::with_seed(13);
    let n = 500_000;
    let texts: Vec<Vec<u8>> = vec![
        b"a".repeat(n),
        b" ".repeat(n),
        b"\n".repeat(n),
        b"0".repeat(n),
        (0..n).map(|_| rng.u8(b'a'..=b'z')).collect(),
        (0..n).map(|_| rng.u8(..)).collect(),
        b"<|im_start|>".repeat(n / 12),
        b"<|im_start".repeat(n / 10),
    ];
    for name in ["bpe-smollm", "bpe-default", "spm"] {
        let tokenizer = small(name);
        for text in &texts {
            let start = Instant::now();
            let ids = tokenizer.encode(text, EncodeOptions::PROMPT).unwrap();
            assert!(start.elapsed() < limit, "{name} {:?}", &text[..12]);
            let from = usize::from(tokenizer.adds_bos());
            assert!(tokenizer.decode(&ids[from..], true) == *text, "{name} {:?}", &text[..12]);
        }
    }
}

fn bpe<'a>(tokens: &[&'a str], merges: &[&'a str]) -> VocabData<'a> {
    VocabData {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: tokens.iter().map(|t| t.as_bytes()).collect(),
        merges: Some(merges.iter().map(|t| t.as_bytes()).collect()),
        ..VocabData::default()
    }
}

fn spm<'a>(tokens: &[&'a str]) -> VocabData<'a> {
    let tokens = tokens.iter().map(|t| t.as_bytes()).collect();
    VocabData { model: "llama".into(), tokens, ..VocabData::default() }
}

#[test]
fn wrong_vocabularies_are_refused_with_the_key() {
    let base = || bpe(&["a", "b", "ab"], &["a b"]);
    let ids = |bos| SpecialIds { bos: Some(bos), ..SpecialIds::default() };
    let table: Vec<(VocabData, &str)> = vec![
        (VocabData { model: "t5".into(), ..base() }, "tokenizer.ggml.model: 't5' is not supported"),
        (
            VocabData { pre: Some("x\n".into()), ..base() },
            "tokenizer.ggml.pre: 'x\\n' is not supported (supported: default, gpt-2",
        ),
        (VocabData { tokens: vec![], ..base() }, "tokenizer.ggml.tokens: the vocabulary is empty"),
        (VocabData { merges: None, ..base() }, "tokenizer.ggml.merges: missing"),
        (
            VocabData { types: Some(vec![1]), ..base() },
            "tokenizer.ggml.token_type: has 1 entries for the 3",
        ),
        (
            VocabData { scores: Some(vec![0.0]), ..spm(&["a", "b"]) },
            "tokenizer.ggml.scores: has 1 entries for the 2",
        ),
        (
            VocabData { scores: Some(vec![0.0, f32::NAN]), ..spm(&["a", "b"]) },
            "tokenizer.ggml.scores[1]: is not a number",
        ),
        (bpe(&["a", "b", "a"], &[]), "tokenizer.ggml.tokens: ids 0 and 2 are the same token \"a\""),
        (
            VocabData { types: Some(vec![1, 6]), ..spm(&["a", "<0x-1>"]) },
            "tokenizer.ggml.tokens[1]: \"<0x-1>\" is of type byte",
        ),
        (
            VocabData { ids: ids(3), ..base() },
            "tokenizer.ggml.bos_token_id: token id 3 is outside the vocabulary of 3 tokens",
        ),
        (
            VocabData { add_bos: Some(true), ..base() },
            "tokenizer.ggml.add_bos_token: is true, but tokenizer.ggml.bos_token_id names no token",
        ),
    ];
    for (data, expected) in table {
        let error = Tokenizer::new(&data).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn odd_vocabularies_are_taken() {
    // Merges without a space, of nothing, of what is no token, of what no bytes form.
    let merges = ["", " ", "a", "a ", " b", "a b", "x y", "ab c", "漢 字", "b a"];
    let data = VocabData {
        ids: SpecialIds { bos: Some(u32::MAX), ..SpecialIds::default() },
        types: Some(vec![1, 1, 1, -7, 99]),
        ..bpe(&["a", "b", "ab", "", "[x]"], &merges)
    };
    let tokenizer = Tokenizer::new(&data).unwrap();
    // "abc" is no token: its bytes are, but for "c".
    let table: &[(&str, &[u32])] = &[("ab", &[2]), ("abc", &[0, 1]), ("ba", &[1, 0]), ("q", &[])];
    for (text, ids) in table {
        let got = tokenizer.encode(text.as_bytes(), EncodeOptions::PROMPT).unwrap();
        assert_eq!(got, *ids, "{text}");
    }
    assert_eq!(tokenizer.special_ids().bos, None);

    // SPM without byte tokens has the unknown token for them.
    let tokenizer = Tokenizer::new(&spm(&["<unk>", "<s>", "</s>", "a"])).unwrap();
    assert_eq!(tokenizer.encode(b"az", EncodeOptions::PLAIN).unwrap(), [0, 0, 0, 3, 0]);
}

#[test]
fn metadata_of_the_wrong_kind_is_refused_with_the_key() {
    let read = |writer: &GgufWriter| {
        let gguf = Gguf::from_bytes("small.gguf", &writer.to_bytes()).unwrap();
        Tokenizer::from_gguf(&gguf)
    };
    let mut writer = GgufWriter::new();
    let error = |result: Result<Tokenizer, TokenizerError>| result.unwrap_err().to_string();
    assert!(error(read(&writer)).contains("tokenizer.ggml.model"));
    writer.string("tokenizer.ggml.model", "llama");
    assert!(error(read(&writer)).contains("tokenizer.ggml.tokens"));
    writer.strings("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>"]);
    writer.value("tokenizer.ggml.eot_token_id", -1i32);
    assert_eq!(read(&writer).unwrap().special_ids().eot, None);
    writer.string("tokenizer.ggml.add_bos_token", "yes");
    assert!(error(read(&writer)).contains("tokenizer.ggml.add_bos_token"));
}
