//! Every architecture against llama.cpp: logits of tiny random models in which every special
//! feature is on.

#[path = "common/oracle.rs"]
mod oracle;
#[path = "common/tiny.rs"]
mod tiny;

use std::sync::Arc;

use aether_ir::DType;
use aether_llm::arch::{self, ARCHITECTURES, Bounds};
use aether_llm::engine::{Context, LoadOptions, Model, Piece, Slots};
use aether_llm::gguf::{Gguf, GgufWriter};
use oracle::Oracle;
use tiny::{FLOATS, Tiny};

const MODELS: &[&str] = &[
    "deepseek2",
    "deepseek2-groups",
    "deepseek2-legacy",
    "deepseek2-lite",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3-capped",
    "llama",
    "llama-f16",
    "llama-linear",
    "llama-yarn",
    "llama3",
    "mixtral",
    "phi3-long",
    "phi3-short",
    "qwen2",
    "qwen2-yarn",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
];

/// Relative to the largest logit of a row. The caches round keys and values to f16; llama.cpp's do
/// not here, but it takes GELU from a table of f16.
const TOLERANCE: f32 = 1e-3;

/// The same for weights and activations of 8 bits.
const QUANTIZED_TOLERANCE: f32 = 0.04;

fn load(name: &str, oracle: &Oracle, slots: usize) -> Arc<Model> {
    let options = LoadOptions {
        batch: 32,
        rows: 32,
        slots,
        threads: 2,
        verify: true,
        ..LoadOptions::default()
    };
    Model::from_memory(oracle.gguf(name), &options).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// How far a row is from what is expected.
fn distance(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let most = |it: &mut dyn Iterator<Item = f32>| it.fold(0.0, f32::max);
    let far = most(&mut got.iter().zip(want).map(|(g, w)| (g - w).abs()));
    far / most(&mut want.iter().map(|w| w.abs()))
}

#[test]
fn logits_are_those_of_llama_cpp() {
    for name in MODELS {
        let oracle = Oracle::read(name);
        let model = load(name, &oracle, 0);
        let slow = model.executable().by_reference();
        assert!(slow.is_empty(), "{name}: no kernels for {slow:?}");
        let mut context = Context::new(&model).unwrap();
        let mut want = oracle.logits.iter();
        context
            .logits_rows(&oracle.tokens, &oracle.rows, |row, got| {
                let far = distance(got, want.next().unwrap());
                assert!(far < TOLERANCE, "{name}, row {row}: {far}");
            })
            .unwrap();
        assert!(want.next().is_none());
        // One by one, as when text is generated.
        context.reset();
        for (position, &token) in (0u32..).zip(&oracle.tokens) {
            let got = context.decode(token).unwrap();
            if let Some(i) = oracle.rows.iter().position(|&row| row == position) {
                let far = distance(got, &oracle.logits[i]);
                assert!(far < TOLERANCE, "{name}, alone at {position}: {far}");
            }
        }
    }
}

#[test]
fn slots_give_the_same_logits() {
    for name in MODELS {
        let oracle = Oracle::read(name);
        let model = load(name, &oracle, 3);
        let mut slots = Slots::new(&model).unwrap();
        // Other sequences go along, one in front and one behind.
        let (first, rest) = oracle.tokens.split_at(9);
        let piece = |slot, tokens, rows| Piece { slot, tokens, rows, alone: false };
        slots.run(&[piece(0, &rest[..3], 0), piece(1, first, 0)]).unwrap();
        slots.run(&[piece(0, &rest[5..6], 1), piece(1, rest, 1), piece(2, first, 1)]).unwrap();
        let far = distance(slots.logits(1), oracle.logits.last().unwrap());
        assert!(far < TOLERANCE, "{name}: {far}");
    }
}

/// As files have them: in 8-bit blocks, packed at load, experts too. Activations are rounded to 8
/// bits as well.
#[test]
fn quantised_weights_give_nearby_logits_by_kernels_alone() {
    for name in MODELS {
        let oracle = Oracle::read(name);
        let gguf = oracle::quantized(&oracle.gguf(name), DType::Q8_0);
        let options = LoadOptions { threads: 2, verify: true, ..LoadOptions::default() };
        let model = Model::from_memory(gguf, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        let slow = model.executable().by_reference();
        assert!(slow.is_empty(), "{name}: no kernels for {slow:?}");
        let mut context = Context::new(&model).unwrap();
        let mut far = Vec::new();
        let mut want = oracle.logits.iter();
        context
            .logits_rows(&oracle.tokens, &oracle.rows, |_, got| {
                far.push(distance(got, want.next().unwrap()));
            })
            .unwrap();
        // Rounding may turn the choice between two experts of nearly one score: a row may be off.
        far.sort_by(f32::total_cmp);
        assert!(far[far.len() - 2] < QUANTIZED_TOLERANCE, "{name}: {far:?}");
    }
}

#[test]
fn every_architecture_is_held_against_llama_cpp() {
    for arch in ARCHITECTURES {
        let of = |name: &&&str| {
            Oracle::read(name).gguf(name).get_str("general.architecture").unwrap() == arch.name()
        };
        assert!(MODELS.iter().find(of).is_some(), "{} has no model here", arch.name());
    }
}

/// What building a model says.
fn refusal(gguf: &Gguf) -> String {
    let bounds = Bounds {
        context: 8,
        batch: 8,
        rows: 8,
        slots: None,
        cache_types: (DType::F16, DType::F16),
    };
    arch::build(gguf, "tiny.gguf", &bounds, &[]).expect_err("refused").to_string()
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let llama = Tiny::llama(FLOATS);
    type Floats = &'static [(&'static str, f32)];
    type Text = Option<(&'static str, &'static str)>;
    let table: &[(Floats, Text, &str)] = &[
        (&[("logit_scale", 2.0)], None, "\"llama.logit_scale\" is 2, but models with it"),
        (&[("attention.scale", 0.5)], None, "\"llama.attention.scale\" is 0.5"),
        (
            &[("rope.scaling.factor", -1.0)],
            None,
            "\"llama.rope.scaling.factor\" is -1, but should be",
        ),
        (&[], Some(("rope.scaling.type", "su")), "only none, linear, yarn and longrope"),
        (&[], Some(("rope.scaling.type", "longrope")), "\"rope_factors_short.weight\" is missing"),
        (
            &[("rope.scaling.factor", 4.0)],
            Some(("rope.scaling.type", "longrope")),
            "the factors are tensors of the file",
        ),
    ];
    for (keys, text, message) in table {
        let tiny = Tiny { keys, text: *text, ..llama.clone() };
        let error = refusal(&tiny.gguf());
        assert!(error.contains(message), "{error}");
    }
    // A key of 0 is none.
    let tiny = Tiny { keys: &[("logit_scale", 0.0)], ..llama.clone() };
    arch::of(&tiny.gguf()).unwrap().hparams(&tiny.gguf()).unwrap();

    let whole = |w: &mut GgufWriter| Gguf::from_bytes("tiny.gguf", &w.to_bytes()).unwrap();
    let part = whole(llama.metadata().value("split.count", 3u16));
    assert!(refusal(&part).contains("one of 3 parts of a model; make one file of them"));
    let adapter = whole(llama.metadata().string("general.type", "adapter"));
    assert!(refusal(&adapter).contains("this is \"adapter\" (general.type), not a model"));
    let model = whole(llama.metadata().string("general.type", "model").value("split.count", 1u16));
    assert!(arch::of(&model).is_ok());

    let mut w = llama.metadata();
    let sinks = ("blk.1.attn_sinks.weight".to_owned(), DType::F32, vec![4]);
    for (name, dtype, shape) in llama.tensors().into_iter().chain([sinks]) {
        let n = shape.iter().product::<u64>() as usize;
        w.tensor_from_f32(name, dtype, &shape, &vec![0.5; n]).unwrap();
    }
    let error = refusal(&Gguf::from_bytes("tiny.gguf", &w.to_bytes()).unwrap());
    assert!(error.contains("\"blk.1.attn_sinks.weight\" is not part of"), "{error}");
}
