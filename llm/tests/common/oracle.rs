//! The tiny models of `scripts/oracles/architectures.py`, and what llama.cpp says of them.
//!
//! A file of the repository ends where its tensors' data begin. The data are computed here as they
//! were there: a value depends on the tensor's name and its place alone.

#![allow(dead_code)] // each program that includes this file uses a part of it

use std::path::PathBuf;

use aether_ir::DType;
use aether_llm::gguf::{Gguf, GgufWriter, TensorInfo, Value, ValueType};
use serde::Deserialize;

/// A model's expectations.
#[derive(Deserialize)]
pub struct Oracle {
    /// Length of the whole file.
    bytes: usize,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Positions in it.
    pub rows: Vec<u32>,
    /// The logits at each of them.
    pub logits: Vec<Vec<f32>>,
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/arch").join(name)
}

impl Oracle {
    /// Reads the expectations of a model.
    pub fn read(name: &str) -> Oracle {
        serde_json::from_slice(&std::fs::read(path(&format!("{name}.json"))).unwrap()).unwrap()
    }

    /// The model.
    pub fn gguf(&self, name: &str) -> Gguf {
        let mut bytes = std::fs::read(path(&format!("{name}.head"))).unwrap();
        bytes.resize(self.bytes, 0);
        let empty = Gguf::from_bytes(format!("{name}.gguf"), &bytes).unwrap();
        for tensor in empty.tensors() {
            let of = weights(&tensor.name, &tensor.shape);
            let data = &mut bytes[tensor.offset as usize..(tensor.offset + tensor.bytes) as usize];
            match tensor.dtype {
                DType::F32 => put(data, of.map(f32::to_le_bytes)),
                DType::F16 => put(data, of.map(|v| half::f16::from_f32(v).to_le_bytes())),
                other => panic!("{}: {other}", tensor.name),
            }
        }
        Gguf::from_bytes(format!("{name}.gguf"), &bytes).unwrap()
    }
}

/// The same model with its matrices quantised, where whole blocks and whole groups of rows fit, but
/// for the routers: files have those in f32.
pub fn quantized(gguf: &Gguf, dtype: DType) -> Gguf {
    changed(gguf, |tensor, _| {
        let blocks = match tensor.shape[..] {
            [k, n] => k % 32 == 0 && n > 1 && !tensor.name.contains("gate_inp"),
            [k, n, _] => k % 32 == 0 && n % 16 == 0,
            _ => false,
        };
        if blocks { dtype } else { tensor.dtype }
    })
}

/// The same model with other values in its tensors, and of other types.
pub fn changed(gguf: &Gguf, mut change: impl FnMut(&TensorInfo, &mut [f32]) -> DType) -> Gguf {
    let mut w = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        match value {
            Value::U32(v) => w.value(key, v),
            Value::I32(v) => w.value(key, v),
            Value::F32(v) => w.value(key, v),
            Value::Bool(v) => w.value(key, v),
            Value::Str(v) => w.string(key, v),
            Value::Array(a) if a.elem_type() == ValueType::Str => {
                w.strings(key, &gguf.get_strings(key).unwrap().collect::<Vec<_>>())
            }
            Value::Array(a) if a.elem_type() == ValueType::F32 => {
                w.values(key, &gguf.get_f32s(key).unwrap())
            }
            Value::Array(_) => w.values(key, &gguf.get_i32s(key).unwrap()),
            other => panic!("{key}: {other:?}"),
        };
    }
    for tensor in gguf.tensors() {
        let mut values: Vec<f32> = weights(&tensor.name, &tensor.shape).collect();
        let dtype = change(tensor, &mut values);
        w.tensor_from_f32(tensor.name.clone(), dtype, &tensor.shape, &values).unwrap();
    }
    Gguf::from_bytes(gguf.path(), &w.to_bytes()).unwrap()
}

fn put<const N: usize>(data: &mut [u8], values: impl Iterator<Item = [u8; N]>) {
    data.chunks_exact_mut(N).zip(values).for_each(|(to, v)| to.copy_from_slice(&v));
}

/// A tensor's values; the shape has the row length first.
fn weights(name: &str, shape: &[u64]) -> impl Iterator<Item = f32> + use<> {
    let (offset, scale) = match name {
        _ if name.contains("norm") => (1.0, 0.25),
        _ if name.starts_with("rope") => (2.5, 1.5),
        _ if name.ends_with("bias") => (0.0, 0.5),
        _ if name.starts_with("token_embd") => (0.0, 1.0),
        _ => (0.0, 1.5 / (shape[0] as f32).sqrt()),
    };
    values(name).take(shape.iter().product::<u64>() as usize).map(move |v| offset + scale * v)
}

/// Uniform in [-1, 1): splitmix64 of the place, begun at FNV-1a of the name.
fn values(name: &str) -> impl Iterator<Item = f32> + use<> {
    let hash = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    (1u64..).map(move |i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        (z >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    })
}
