//! Random bits as a function of an explicit state: the cipher Threefry-2x32 with 20 rounds of
//! Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), applied
//! to a counter. The same cipher is behind `jax.random`.
//!
//! The state is u32 [4]: the two words of the key, then the counter, high word first. Block i of
//! the bits is the cipher of counter + i (modulo 2^64), as its two words; the new state has the
//! counter behind the last block used.

use super::InferCtx;
use crate::dtype::DType;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor, reserve};
use crate::types::TensorType;

type Types = Result<Vec<TensorType>, String>;

/// The declared u32 tensor, and the new state.
pub fn infer_rng_bits(ctx: &InferCtx) -> Types {
    let (state, bits) = (ctx.operands[0], ctx.target()?);
    let want = TensorType::new(DType::U32, [4u64]);
    if *state != want {
        return Err(format!("expected a state of {want}, found {state}"));
    }
    if bits.dtype != DType::U32 {
        return Err(format!("random bits are u32, not {bits}"));
    }
    Ok(vec![TensorType::with_shape(DType::U32, bits.shape.clone()), want])
}

/// Threefry-2x32 with 20 rounds: the cipher of two words of counter under two of key.
pub fn threefry2x32(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let mut a = counter[0].wrapping_add(keys[0]);
    let mut b = counter[1].wrapping_add(keys[1]);
    for group in 0..5 {
        for r in ROTATIONS[group % 2] {
            a = a.wrapping_add(b);
            b = b.rotate_left(r) ^ a;
        }
        a = a.wrapping_add(keys[(group + 1) % 3]);
        b = b.wrapping_add(keys[(group + 2) % 3]).wrapping_add(group as u32 + 1);
    }
    [a, b]
}

/// The bits and the new state.
pub fn eval_rng_bits(ctx: &EvalCtx) -> Evaluated {
    let (state, ty) = (ctx.operands[0], &ctx.results[0]);
    let words: Vec<u32> = state.to_i64_vec()?.iter().map(|&v| v as u32).collect();
    let &[k0, k1, high, low] = &words[..] else {
        return Err(EvalError(format!("expected a state of four words, found {}", state.ty())));
    };
    let counter = u64::from(high) << 32 | u64::from(low);
    let numel = ty.numel().unwrap_or(usize::MAX);
    let size = numel.saturating_mul(4);
    let mut bytes: Vec<u8> =
        reserve(size).ok_or_else(|| EvalError(format!("no memory for {ty}")))?;
    let blocks = numel.div_ceil(2) as u64;
    for i in 0..blocks {
        let at = counter.wrapping_add(i);
        let block = threefry2x32([k0, k1], [(at >> 32) as u32, at as u32]);
        for word in block.into_iter().take((size - bytes.len()) / 4) {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    let next = counter.wrapping_add(blocks);
    let next = [k0, k1, (next >> 32) as u32, next as u32].map(i64::from);
    Ok(vec![Tensor::new(ty.clone(), bytes)?, Tensor::from_i64(DType::U32, &[4], &next)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with the authors' Random123 library.
    #[test]
    fn known_answers() {
        let table = [
            ([0, 0], [0, 0], [0x6b20_0159, 0x99ba_4efe]),
            ([u32::MAX; 2], [u32::MAX; 2], [0x1cb9_96fc, 0xbb00_2be7]),
            ([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3], [0xc492_3a9c, 0x483d_f7a0]),
        ];
        for (key, counter, want) in table {
            assert_eq!(threefry2x32(key, counter), want);
        }
    }
}
