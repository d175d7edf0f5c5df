//! Attention over caches of blocks, and their rows.

use aether_codegen_cpu::kernels::attention::{
    self, Attention, BLOCK, BlockQ4, BlockQ8, CacheElement, quantize_q4, quantize_q8,
};
use aether_codegen_cpu::kernels::isa::Isa;
use aether_ir::DType;
use aether_ir::quant::{dequantize, quantize};
use half::f16;

use crate::attention::attention_f64;
use crate::support::{assert_close, random, sizes};

/// A type of caches, made by the reference encoder.
trait Made: CacheElement {
    const DTYPE: DType;
    fn read(bytes: &[u8]) -> Self;
}

impl Made for f16 {
    const DTYPE: DType = DType::F16;
    fn read(bytes: &[u8]) -> f16 {
        f16::from_le_bytes([bytes[0], bytes[1]])
    }
}

impl Made for BlockQ8 {
    const DTYPE: DType = DType::Q8_0;
    fn read(bytes: &[u8]) -> BlockQ8 {
        let codes = std::array::from_fn(|i| bytes[2 + i] as i8);
        BlockQ8 { scale: u16::from_le_bytes([bytes[0], bytes[1]]), codes }
    }
}

impl Made for BlockQ4 {
    const DTYPE: DType = DType::Q4_0;
    fn read(bytes: &[u8]) -> BlockQ4 {
        let codes = std::array::from_fn(|i| bytes[2 + i]);
        BlockQ4 { scale: u16::from_le_bytes([bytes[0], bytes[1]]), codes }
    }
}

/// The values in the type, and what they stand for.
fn made<E: Made>(x: &[f32]) -> (Vec<E>, Vec<f64>) {
    let size = E::DTYPE.block_bytes();
    let mut bytes = vec![0; x.len() / E::LEN * size];
    quantize(E::DTYPE, x, &mut bytes).unwrap();
    let mut values = vec![0.0; x.len()];
    dequantize(E::DTYPE, &bytes, &mut values).unwrap();
    (bytes.chunks(size).map(E::read).collect(), values.into_iter().map(f64::from).collect())
}

fn check<K: Made, V: Made>(isa: Isa, s: &Attention) {
    let mut rng = fastrand::Rng::with_seed((s.tokens * 131 + s.past * 7 + s.head_dim) as u64);
    let context = s.past + s.tokens + 2;
    let q = random(&mut rng, s.tokens * s.heads * s.head_dim, 2.0);
    let (k, k_values) = made::<K>(&random(&mut rng, context * s.kv_heads * s.head_dim, 2.0));
    let (v, v_values) = made::<V>(&random(&mut rng, context * s.kv_heads * s.v_dim, 2.0));
    let want = attention_f64(s, &q, &k_values, &v_values);
    let mut out = vec![f32::NAN; want.len()];
    let mut scratch = vec![f32::NAN; s.scratch_len(isa)];
    for unit in 0..s.units() {
        // SAFETY: `out` has the shape's size and one thread uses it.
        unsafe {
            attention::attention(isa, s, (&q, &k, &v), out.as_mut_ptr(), unit, &mut scratch);
        }
    }
    assert_close(&out, &want, 1e-5, &format!("{} {}: {s:?} {isa}", K::DTYPE, V::DTYPE));
}

#[test]
fn blocks_are_read_as_what_they_stand_for() {
    let base = Attention {
        tokens: 1,
        past: 0,
        causal: true,
        heads: 6,
        kv_heads: 2,
        head_dim: 64,
        v_dim: 64,
        scale: 0.125,
        window: None,
        soft_cap: None,
    };
    let heads =
        |heads, kv_heads, head_dim, v_dim| Attention { heads, kv_heads, head_dim, v_dim, ..base };
    let shapes = [
        base,
        heads(14, 2, 64, 64),
        heads(1, 1, 32, 96),
        heads(4, 1, 256, 32),
        Attention { soft_cap: Some(5.0), ..base },
    ];
    for isa in Isa::available() {
        for s in shapes {
            for &(tokens, past) in sizes().spans {
                let s = Attention { tokens, past, ..s };
                check::<BlockQ8, BlockQ8>(isa, &s);
                check::<BlockQ4, BlockQ4>(isa, &s);
                check::<BlockQ8, BlockQ4>(isa, &Attention { window: Some(20), ..s });
                check::<f16, BlockQ4>(isa, &s);
                check::<BlockQ8, f16>(isa, &s);
            }
        }
    }
}

#[test]
fn rows_become_the_blocks_of_the_reference() {
    let mut rng = fastrand::Rng::with_seed(9);
    let mut x = random(&mut rng, 64 * BLOCK, 3.0);
    let edges = [
        // Codes that lie halfway, both ways; zeros; signs of the extreme; what is no number.
        (0..BLOCK).map(|i| i as f32 - 15.5).collect::<Vec<_>>(),
        (0..BLOCK).map(|i| if i == 3 { 127.0 } else { i as f32 + 0.5 }).collect(),
        (0..BLOCK).map(|i| if i == 3 { -127.0 } else { -(i as f32) - 0.5 }).collect(),
        vec![0.0; BLOCK],
        vec![-0.0; BLOCK],
        (0..BLOCK).map(|i| if i % 2 == 0 { 8.0 } else { -8.0 }).collect(),
        (0..BLOCK).map(|i| if i == 7 { f32::NAN } else { i as f32 }).collect(),
        vec![1e-30; BLOCK],
        vec![1e-42; BLOCK],
        vec![3e38; BLOCK],
    ];
    edges.into_iter().for_each(|edge| x.extend(edge));
    let (q8, q4) = (made::<BlockQ8>(&x).0, made::<BlockQ4>(&x).0);
    for isa in Isa::available() {
        let mut got = vec![BlockQ8 { scale: 1, codes: [1; BLOCK] }; q8.len()];
        quantize_q8(isa, &x, &mut got);
        assert!(got == q8, "q8_0 on {isa}");
        let mut got = vec![BlockQ4 { scale: 1, codes: [1; BLOCK / 2] }; q4.len()];
        quantize_q4(isa, &x, &mut got);
        assert!(got == q4, "q4_0 on {isa}");
    }
}
