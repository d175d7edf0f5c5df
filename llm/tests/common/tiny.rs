//! A small random LLaMA or Qwen2 as a GGUF file, with weights of many types.

#![allow(dead_code)] // each program that includes this file uses a part of it

use aether_ir::DType;
use aether_llm::gguf::{Gguf, GgufWriter};

/// Sizes and types of the model.
#[derive(Clone)]
pub struct Tiny {
    pub arch: &'static str,
    pub n_layers: usize,
    pub n_embd: u64,
    pub n_heads: u64,
    pub n_kv_heads: u64,
    pub n_ff: u64,
    pub context: u32,
    pub biases: bool,
    /// No `output.weight`: the embedding serves.
    pub tied: bool,
    /// `rope_freqs.weight` is there.
    pub freqs: bool,
    pub embd: DType,
    /// Of attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down, by layer in turn.
    pub types: &'static [[DType; 7]],
    /// Further float keys.
    pub keys: &'static [(&'static str, f32)],
    /// A further string key.
    pub text: Option<(&'static str, &'static str)>,
}

/// Plain floats only: the CPU differs from the interpreter by rounding alone.
pub const FLOATS: &[[DType; 7]] =
    &[[DType::F32, DType::F32, DType::F16, DType::F32, DType::F16, DType::Bf16, DType::F32]];

/// Two kinds of layers, of quantised types.
pub const QUANTIZED: &[[DType; 7]] = &[
    [DType::Q4_0, DType::Q8_0, DType::F16, DType::Q5_1, DType::Q4_1, DType::Q5_0, DType::Q4K],
    [DType::Q4_0, DType::Q4_1, DType::Q8_0, DType::F32, DType::Q4_0, DType::Q4_0, DType::Q6K],
];

/// Quantised types in blocks of 32: their products give a row the same bits in any company. Those
/// of 256 sum in another order when eight tokens or more share a tile.
pub const SMALL_BLOCKS: &[[DType; 7]] =
    &[[DType::Q4_0, DType::Q8_0, DType::F16, DType::Q5_1, DType::Q4_1, DType::Q5_0, DType::Q8_0]];

/// Ids of the byte tokens are the bytes; then come the beginning and the end of a text.
pub const BOS: u32 = 256;
pub const EOS: u32 = 257;
pub const VOCAB: u64 = 258;

impl Tiny {
    /// A llama of three layers with these types.
    pub fn llama(types: &'static [[DType; 7]]) -> Tiny {
        Tiny {
            arch: "llama",
            n_layers: 3,
            n_embd: 64,
            n_heads: 4,
            n_kv_heads: 2,
            n_ff: 256,
            context: 96,
            biases: false,
            tied: false,
            freqs: false,
            embd: if types[0][0] == DType::F32 { DType::F32 } else { DType::Q8_0 },
            types,
            keys: &[],
            text: None,
        }
    }

    /// A qwen2 with these types, its head tied.
    pub fn qwen2(types: &'static [[DType; 7]]) -> Tiny {
        Tiny { arch: "qwen2", biases: true, tied: true, ..Tiny::llama(types) }
    }

    /// The tensors: name, type, shape (row length first).
    pub fn tensors(&self) -> Vec<(String, DType, Vec<u64>)> {
        let head = self.n_embd / self.n_heads;
        let kv = self.n_kv_heads * head;
        let (e, ff) = (self.n_embd, self.n_ff);
        let mut all = vec![("token_embd.weight".to_owned(), self.embd, vec![e, VOCAB])];
        for i in 0..self.n_layers {
            let types = self.types[i % self.types.len()];
            let shapes = [
                ("attn_q", vec![e, e]),
                ("attn_k", vec![e, kv]),
                ("attn_v", vec![e, kv]),
                ("attn_output", vec![e, e]),
                ("ffn_gate", vec![e, ff]),
                ("ffn_up", vec![e, ff]),
                ("ffn_down", vec![ff, e]),
            ];
            for ((name, shape), dtype) in shapes.into_iter().zip(types) {
                all.push((format!("blk.{i}.{name}.weight"), dtype, shape));
            }
            for (name, n) in [("attn_norm.weight", e), ("ffn_norm.weight", e)] {
                all.push((format!("blk.{i}.{name}"), DType::F32, vec![n]));
            }
            if self.biases {
                for (name, n) in [("attn_q.bias", e), ("attn_k.bias", kv), ("attn_v.bias", kv)] {
                    all.push((format!("blk.{i}.{name}"), DType::F32, vec![n]));
                }
            }
        }
        if self.freqs {
            all.push(("rope_freqs.weight".to_owned(), DType::F32, vec![head / 2]));
        }
        all.push(("output_norm.weight".to_owned(), DType::F32, vec![e]));
        if !self.tied {
            all.push(("output.weight".to_owned(), self.embd, vec![e, VOCAB]));
        }
        all
    }

    /// A writer with the metadata.
    pub fn metadata(&self) -> GgufWriter {
        let mut w = GgufWriter::new();
        let key = |name: &str| format!("{}.{name}", self.arch);
        w.string("general.architecture", self.arch).string("general.name", "Tiny");
        w.value(key("block_count"), self.n_layers as u32)
            .value(key("context_length"), self.context)
            .value(key("embedding_length"), self.n_embd as u32)
            .value(key("feed_forward_length"), self.n_ff as u32)
            .value(key("attention.head_count"), self.n_heads as u32)
            .value(key("attention.head_count_kv"), self.n_kv_heads as u32)
            .value(key("attention.layer_norm_rms_epsilon"), 1e-5f32)
            .value(key("rope.freq_base"), 10_000f32);
        for (name, value) in self.keys {
            w.value(key(name), *value);
        }
        if let Some((name, value)) = self.text {
            w.string(key(name), value);
        }
        let mut tokens: Vec<String> = alphabet().map(String::from).collect();
        tokens.extend(["<|start|>".to_owned(), "<|end|>".to_owned()]);
        let types: Vec<i32> = (0..VOCAB).map(|i| if i < 256 { 1 } else { 3 }).collect();
        w.string("tokenizer.ggml.model", "gpt2")
            .string("tokenizer.ggml.pre", "gpt-2")
            .strings("tokenizer.ggml.tokens", &tokens)
            .values("tokenizer.ggml.token_type", &types)
            .strings("tokenizer.ggml.merges", &["Ġ t"; 0])
            .value("tokenizer.ggml.bos_token_id", BOS)
            .value("tokenizer.ggml.eos_token_id", EOS);
        w
    }

    /// The file, with random weights that keep activations near one.
    pub fn gguf(&self) -> Gguf {
        let mut w = self.metadata();
        let mut rng = fastrand::Rng::with_seed(42);
        for (name, dtype, shape) in self.tensors() {
            let n: u64 = shape.iter().product();
            let scale = match name.as_str() {
                "token_embd.weight" => 1.0,
                _ => 1.7 / (shape[0] as f32).sqrt(),
            };
            let values: Vec<f32> = (0..n)
                .map(|_| match () {
                    _ if name.ends_with("norm.weight") || name.starts_with("rope") => {
                        0.8 + 0.4 * rng.f32()
                    }
                    _ => (2.0 * rng.f32() - 1.0) * scale,
                })
                .collect();
            w.tensor_from_f32(name, dtype, &shape, &values).unwrap();
        }
        Gguf::from_bytes("tiny.gguf", &w.to_bytes()).unwrap()
    }
}

/// The characters that stand for bytes in GPT-2's scheme.
fn alphabet() -> impl Iterator<Item = char> {
    let plain = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    (0..256).map(move |b| {
        let code = if plain(b) {
            b
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap()
    })
}
