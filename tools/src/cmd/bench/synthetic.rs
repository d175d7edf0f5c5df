//! Models made of random numbers, for measuring shapes without a file to carry.

use std::path::PathBuf;

use aether_ir::DType;
use aether_ir::quant;
use aether_llm::gguf::GgufWriter;
use anyhow::{Context, bail};
use clap::ValueEnum;
use tempfile::TempDir;

/// Shapes of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// 32 layers, width 4096, feed-forward 14336, 32 heads, 8 KV heads, vocabulary 32000
    #[value(name = "llama-7b")]
    Llama7b,
    /// 16 layers, width 2048, feed-forward 8192, 32 heads, 8 KV heads, vocabulary 32000
    #[value(name = "llama-1b")]
    Llama1b,
    /// 4 layers, width 512, feed-forward 1024, 8 heads, 2 KV heads, vocabulary 1024
    #[value(name = "llama-tiny")]
    LlamaTiny,
}

struct Sizes {
    layers: u64,
    width: u64,
    ff: u64,
    heads: u64,
    kv_heads: u64,
    vocab: u64,
}

impl Shape {
    fn sizes(self) -> Sizes {
        let sizes = |[layers, width, ff, heads, kv_heads, vocab]: [u64; 6]| Sizes {
            layers,
            width,
            ff,
            heads,
            kv_heads,
            vocab,
        };
        sizes(match self {
            Shape::Llama7b => [32, 4096, 14336, 32, 8, 32000],
            Shape::Llama1b => [16, 2048, 8192, 32, 8, 32000],
            Shape::LlamaTiny => [4, 512, 1024, 8, 2, 1024],
        })
    }
}

/// A model's file, removed when this is dropped.
pub struct Synthetic {
    pub path: PathBuf,
    _folder: TempDir,
}

/// Elements of random weights that tensors repeat.
const POOL: usize = 1 << 20;

/// Writes a model of a shape whose matrices have this type.
///
/// # Errors
/// When the type is none for weights, or the file cannot be written.
pub fn write(shape: Shape, quant: &str) -> anyhow::Result<Synthetic> {
    let dtype: DType = quant.parse().with_context(|| format!("--quant {quant}"))?;
    if !(dtype.is_quantized() || dtype.is_float()) || matches!(dtype, DType::Q8_1 | DType::Q8K) {
        bail!("--quant {quant}: no type of weights");
    }
    let s = shape.sizes();
    let mut w = GgufWriter::new();
    w.string("general.architecture", "llama").string("general.name", "Synthetic");
    w.value("llama.block_count", s.layers as u32)
        .value("llama.context_length", 8192u32)
        .value("llama.embedding_length", s.width as u32)
        .value("llama.feed_forward_length", s.ff as u32)
        .value("llama.attention.head_count", s.heads as u32)
        .value("llama.attention.head_count_kv", s.kv_heads as u32)
        .value("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
        .value("llama.rope.freq_base", 10_000f32);
    tokenizer(&mut w, s.vocab as usize);
    let mut rng = fastrand::Rng::with_seed(7);
    let values: Vec<f32> = (0..POOL).map(|_| 2.0 * rng.f32() - 1.0).collect();
    let mut matrix = |w: &mut GgufWriter, name: String, shape: [u64; 2]| -> anyhow::Result<()> {
        let scale = 1.7 / (shape[0] as f32).sqrt();
        let scaled: Vec<f32> = values.iter().map(|v| v * scale).collect();
        let size = POOL / dtype.block_len() * dtype.block_bytes();
        let mut pool = vec![0; size];
        quant::quantize(dtype, &scaled, &mut pool).map_err(|e| anyhow::anyhow!("{e}"))?;
        let bytes = dtype
            .row_bytes(shape[0] as usize)
            .and_then(|row| row.checked_mul(shape[1] as usize))
            .with_context(|| format!("{quant} does not fit rows of {}", shape[0]))?;
        let mut data = Vec::with_capacity(bytes);
        // Each tensor begins elsewhere in the pool.
        let mut at = rng.usize(..size / dtype.block_bytes()) * dtype.block_bytes();
        while data.len() < bytes {
            let n = (size - at).min(bytes - data.len());
            data.extend_from_slice(&pool[at..at + n]);
            at = 0;
        }
        w.tensor(name, dtype, &shape, data).map_err(|e| anyhow::anyhow!("{e}"))?;
        Ok(())
    };
    let kv = s.width / s.heads * s.kv_heads;
    let ones = vec![1.0f32; s.width as usize];
    matrix(&mut w, "token_embd.weight".to_owned(), [s.width, s.vocab])?;
    for i in 0..s.layers {
        for (name, shape) in [
            ("attn_q", [s.width, s.width]),
            ("attn_k", [s.width, kv]),
            ("attn_v", [s.width, kv]),
            ("attn_output", [s.width, s.width]),
            ("ffn_gate", [s.width, s.ff]),
            ("ffn_up", [s.width, s.ff]),
            ("ffn_down", [s.ff, s.width]),
        ] {
            matrix(&mut w, format!("blk.{i}.{name}.weight"), shape)?;
        }
        for name in ["attn_norm", "ffn_norm"] {
            let name = format!("blk.{i}.{name}.weight");
            w.tensor_from_f32(name, DType::F32, &[s.width], &ones)?;
        }
    }
    w.tensor_from_f32("output_norm.weight", DType::F32, &[s.width], &ones)?;
    matrix(&mut w, "output.weight".to_owned(), [s.width, s.vocab])?;
    let folder = tempfile::tempdir().context("no folder for the model")?;
    let path = folder.path().join(format!("synthetic-{quant}.gguf"));
    w.write(&path)?;
    Ok(Synthetic { path, _folder: folder })
}

/// A vocabulary of bytes and numbered words.
fn tokenizer(w: &mut GgufWriter, vocab: usize) {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend((tokens.len()..vocab).map(|i| format!("\u{2581}w{i}")));
    tokens.truncate(vocab);
    let types: Vec<i32> = (0..tokens.len())
        .map(|i| match i {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        })
        .collect();
    let scores: Vec<f32> = (0..tokens.len()).map(|i| -(i as f32)).collect();
    w.string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .values("tokenizer.ggml.scores", &scores)
        .values("tokenizer.ggml.token_type", &types)
        .value("tokenizer.ggml.bos_token_id", 1u32)
        .value("tokenizer.ggml.eos_token_id", 2u32);
}
