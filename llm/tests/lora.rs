//! LoRA adapters: a model with adapters computes what the model does into whose weights they are
//! merged, in all architectures, for every kind of product, one adapter and several.

#[path = "common/oracle.rs"]
mod oracle;
#[path = "common/tiny.rs"]
mod tiny;

use std::sync::Arc;

use aether_ir::DType;
use aether_llm::arch::Adapter;
use aether_llm::engine::{Context, LoadOptions, Model, Piece, Slots};
use aether_llm::gguf::{Gguf, GgufWriter};
use oracle::Oracle;
use tiny::{FLOATS, Tiny};

/// Of the largest logit: sums come in another order.
const TOLERANCE: f32 = 2e-4;

/// An adapter of random matrices for the weights whose names hold one of `of`.
fn adapter(model: &Gguf, of: &[&str], rank: u64, alpha: f32, dtype: DType, seed: u64) -> Gguf {
    let mut w = GgufWriter::new();
    w.string("general.type", "adapter")
        .string("general.architecture", model.get_str("general.architecture").unwrap())
        .string("adapter.type", "lora")
        .value("adapter.lora.alpha", alpha);
    let mut rng = fastrand::Rng::with_seed(seed);
    for tensor in model.tensors() {
        if tensor.shape.len() < 2 || !of.iter().any(|part| tensor.name.contains(part)) {
            continue;
        }
        let (k, n, more) = (tensor.shape[0], tensor.shape[1], &tensor.shape[2..]);
        for (end, dims, scale) in [("a", [k, rank], 1.0 / (k as f32).sqrt()), ("b", [rank, n], 0.3)]
        {
            let shape: Vec<u64> = dims.iter().chain(more).copied().collect();
            let count = shape.iter().product::<u64>() as usize;
            let values: Vec<f32> = (0..count).map(|_| (2.0 * rng.f32() - 1.0) * scale).collect();
            let name = format!("{}.lora_{end}", tensor.name);
            w.tensor_from_f32(name, dtype, &shape, &values).unwrap();
        }
    }
    Gguf::from_bytes(format!("adapter{seed}.gguf"), &w.to_bytes()).unwrap()
}

fn floats(gguf: &Gguf, name: &str) -> Option<(Vec<f32>, Vec<u64>)> {
    let t = gguf.tensor(name)?;
    let mut out = vec![0.0; t.elements() as usize];
    aether_ir::quant::dequantize(t.dtype, gguf.data(t), &mut out).unwrap();
    Some((out, t.shape.clone()))
}

/// The model with the adapters in its weights: `w + scale * alpha / rank * b * a`.
fn merged(model: &Gguf, adapters: &[(&Gguf, f32)]) -> Gguf {
    oracle::changed(model, |tensor, values| {
        if tensor.dtype == DType::F16 {
            // As the file has them; what is merged is not rounded again.
            values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
        }
        for (adapter, scale) in adapters {
            let Some((a, shape)) = floats(adapter, &format!("{}.lora_a", tensor.name)) else {
                continue;
            };
            let (b, _) = floats(adapter, &format!("{}.lora_b", tensor.name)).unwrap();
            let (k, n, rank) =
                (tensor.shape[0] as usize, tensor.shape[1] as usize, shape[1] as usize);
            let alpha = adapter.get_f32("adapter.lora.alpha").unwrap();
            let factor = if alpha == 0.0 { *scale } else { scale * alpha / rank as f32 };
            for (e, matrix) in values.chunks_mut(n * k).enumerate() {
                for (i, row) in matrix.chunks_mut(k).enumerate() {
                    for r in 0..rank {
                        let by = factor * b[(e * n + i) * rank + r];
                        let a = &a[(e * rank + r) * k..][..k];
                        row.iter_mut().zip(a).for_each(|(w, a)| *w += by * a);
                    }
                }
            }
        }
        DType::F32
    })
}

fn logits(gguf: Gguf, adapters: &[Arc<Adapter>], oracle: &Oracle) -> Vec<f32> {
    let options = LoadOptions {
        threads: 2,
        verify: true,
        adapters: adapters.to_vec(),
        ..LoadOptions::default()
    };
    let model = Model::from_memory(gguf, &options).unwrap();
    let slow = model.executable().by_reference();
    assert!(slow.is_empty(), "no kernels for {slow:?}");
    let mut rows = Vec::new();
    let mut context = Context::new(&model).unwrap();
    context
        .logits_rows(&oracle.tokens, &oracle.rows, |_, row| rows.extend_from_slice(row))
        .unwrap();
    rows
}

fn distance(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let most = |it: &mut dyn Iterator<Item = f32>| it.fold(0.0, f32::max);
    let far = most(&mut got.iter().zip(want).map(|(g, w)| (g - w).abs()));
    far / most(&mut want.iter().map(|w| w.abs()))
}

#[test]
fn adapters_are_as_if_merged() {
    const ALL: &[&str] = &["blk.", "output.weight"];
    let table: &[(&str, &[&str])] = &[
        ("llama", ALL),
        ("llama-f16", &["ffn_"]),
        ("qwen2", &["attn_q", "attn_v"]),
        ("qwen3moe", &["blk."]),
        ("mixtral", &["exps", "gate_inp"]),
        ("qwen2moe", &["shexp.", "attn_"]),
        ("phi3-short", &["attn_qkv", "ffn_up", "attn_output"]),
        ("gemma3", &["blk."]),
        ("deepseek2", &["attn_", "shexp"]),
        ("deepseek2-legacy", &["blk."]),
    ];
    for (name, of) in table {
        let oracle = Oracle::read(name);
        let model = oracle.gguf(name);
        // qwen2moe's score of the shared expert is a vector in its file.
        let one = adapter(&model, of, 4, 8.0, DType::F32, 1);
        let two = adapter(&model, &of[..1], 3, 0.0, DType::F32, 2);
        assert!(one.tensors().len() >= 4, "{name}");
        let plain = logits(oracle.gguf(name), &[], &oracle);
        let with = |gguf: &Gguf, scale: f32| {
            let copy = Gguf::from_bytes(gguf.path(), gguf.map()).unwrap();
            Arc::new(Adapter::new(copy, scale).unwrap())
        };
        let got = logits(oracle.gguf(name), &[with(&one, 1.0)], &oracle);
        let want = logits(merged(&model, &[(&one, 1.0)]), &[], &oracle);
        let far = distance(&got, &want);
        assert!(far < TOLERANCE, "{name}: {far}");
        assert!(distance(&plain, &want) > 20.0 * TOLERANCE, "{name}: the adapter does something");
        // Two at once, scaled; and one that counts nothing.
        let got = logits(oracle.gguf(name), &[with(&one, -0.5), with(&two, 0.75)], &oracle);
        let want = logits(merged(&model, &[(&one, -0.5), (&two, 0.75)]), &[], &oracle);
        let far = distance(&got, &want);
        assert!(far < TOLERANCE, "{name}, two: {far}");
        let got = logits(oracle.gguf(name), &[with(&one, 0.0)], &oracle);
        assert!(distance(&got, &plain) < 1e-6, "{name}: a scale of 0");
    }
}

#[test]
fn quantised_weights_stay_as_they_are() {
    let oracle = Oracle::read("llama");
    let model = oracle.gguf("llama");
    let base = || oracle::quantized(&model, DType::Q8_0);
    let plain = logits(base(), &[], &oracle);
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let file = adapter(&model, &["blk."], 8, 16.0, dtype, 3);
        let want = logits(merged(&model, &[(&file, 1.0)]), &[], &oracle);
        let adapter = Arc::new(Adapter::new(file, 1.0).unwrap());
        let got = logits(base(), &[adapter], &oracle);
        assert!(distance(&got, &want) < 0.04, "{dtype}: {}", distance(&got, &want));
        assert!(distance(&plain, &want) > 0.1, "{dtype}");
    }
}

#[test]
fn slots_have_them_too_and_the_module_shows_them() {
    let oracle = Oracle::read("llama");
    let model = oracle.gguf("llama");
    let file = adapter(&model, &["attn_q", "ffn_down"], 4, 8.0, DType::F32, 4);
    let want = logits(merged(&model, &[(&file, 1.0)]), &[], &oracle);
    let adapters = vec![Arc::new(Adapter::new(file, 1.0).unwrap())];
    let options =
        LoadOptions { batch: 32, slots: 2, threads: 1, adapters, ..LoadOptions::default() };
    let model = Model::from_memory(model, &options).unwrap();
    let text = model.module_text();
    assert!(text.contains("@blk.0.attn_q.lora_a.0") && text.contains("adapter4.gguf"), "{text}");
    let mut slots = Slots::new(&model).unwrap();
    slots.run(&[Piece { slot: 1, tokens: &oracle.tokens, rows: 1, alone: false }]).unwrap();
    let last = &want[want.len() - oracle.logits[0].len()..];
    assert!(distance(slots.logits(0), last) < TOLERANCE);
    // The text alone is enough to run it again.
    let ir = aether_ir::parse_and_verify(&text).unwrap();
    let options = LoadOptions { ir: Some(ir), ..options };
    assert!(Model::from_memory(oracle.gguf("llama"), &options).is_ok());
}

#[test]
fn what_does_not_fit_is_named() {
    let model = Tiny::llama(FLOATS).gguf();
    let with = |change: &dyn Fn(&mut GgufWriter), tensors: &[(&str, &[u64])]| {
        let mut w = GgufWriter::new();
        w.string("general.type", "adapter");
        change(&mut w);
        for (name, shape) in tensors {
            let n = shape.iter().product::<u64>() as usize;
            w.tensor_from_f32((*name).to_owned(), DType::F32, shape, &vec![0.5; n]).unwrap();
        }
        let gguf = Gguf::from_bytes("adapter.gguf", &w.to_bytes()).unwrap();
        let adapters = vec![Arc::new(match Adapter::new(gguf, 1.0) {
            Ok(adapter) => adapter,
            Err(error) => return error.to_string(),
        })];
        let options = LoadOptions { adapters, ..LoadOptions::default() };
        match Model::build_ir(&model, &options) {
            Ok(_) => "fits".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    let lora = |w: &mut GgufWriter| {
        w.string("adapter.type", "lora").string("general.architecture", "llama");
    };
    const Q: &str = "blk.0.attn_q.weight.lora_a";
    const QB: &str = "blk.0.attn_q.weight.lora_b";
    assert_eq!(with(&lora, &[(Q, &[64, 2]), (QB, &[2, 64])]), "fits");
    type Case<'a> = (&'a [(&'a str, &'a [u64])], &'a str);
    let table: &[Case<'_>] = &[
        (&[(Q, &[64, 2])], "of blk.0.attn_q.weight.lora_a and .lora_b one is missing"),
        (&[(Q, &[64, 2]), (QB, &[3, 64])], "[64, 2] and [3, 64]"),
        (&[(Q, &[32, 2]), (QB, &[2, 64])], "[32, 2] and [2, 64]"),
        (&[(Q, &[64, 2, 2]), (QB, &[2, 64, 2])], "[64, 2, 2] and [2, 64, 2]"),
        (
            &[("token_embd.weight.lora_a", &[64, 2]), ("token_embd.weight.lora_b", &[2, 258])],
            "no weight for its tensor \"token_embd.weight.lora_a\"",
        ),
        (&[("blk.9.attn_q.weight.lora_a", &[64, 2])], "no weight for its tensor"),
        (&[("blk.0.attn_norm.weight", &[64])], "no weight for its tensor"),
    ];
    for (tensors, message) in table {
        let said = with(&lora, tensors);
        assert!(said.contains(message) && said.contains("adapter.gguf"), "{said}");
    }
    let other = |w: &mut GgufWriter| {
        w.string("adapter.type", "ia3");
    };
    let said = with(&other, &[]);
    assert!(said.contains("\"ia3\", but only \"lora\""), "{said}");
    let other = |w: &mut GgufWriter| {
        w.string("adapter.type", "lora").string("general.architecture", "qwen2");
    };
    assert!(with(&other, &[]).contains("made for \"qwen2\", but the model is \"llama\""));
    let activated = |w: &mut GgufWriter| {
        lora(w);
        w.values("adapter.alora.invocation_tokens", &[1u32, 2]);
    };
    assert!(with(&activated, &[]).contains("activated adapters"));
    let error = Adapter::new(Tiny::llama(FLOATS).gguf(), 1.0).unwrap_err().to_string();
    assert!(error.contains("it is a \"model\" (general.type), not an adapter"), "{error}");
}
