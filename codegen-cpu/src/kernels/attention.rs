//! Scaled dot product attention over a key/value cache, without the matrix of all scores.
//!
//! Softmax is *online* (Milakov and Gimelshein; Dao et al., FlashAttention): keys come in
//! blocks, a running maximum and sum per query row rescale what was gathered before. Query rows
//! of all heads that share a key/value head go together, so that keys and values are read once.
//! One token takes the [`decode_part`] road (dot products straight from the cache), several
//! tokens the prefill road: the queries of a unit lie transposed, one query row per vector lane,
//! so that scores, softmax and the weighted sum of values are all vertical vector operations
//! and both products run in the register tiles of the dense product.
//!
//! A score of NaN or +∞ makes its query row NaN; NaN among the values of a block reaches every
//! query row that works on that block.

use std::ops::Range;

use half::f16;

use super::convert;
use super::isa::Isa;
use super::simd;

mod cache;
mod decode;
mod prefill;

pub use cache::{BLOCK, BlockQ4, BlockQ8, CacheElement, quantize_q4, quantize_q8};
use prefill::CacheRows;

/// Query rows that a prefill unit aims for: a multiple of the tile width of every instruction
/// set.
const UNIT_ROWS: usize = 96;

/// The numbers of one attention call, in elements. Arrays are row-major: q `[tokens, heads, head_dim]`,
/// k `[context, kv_heads, head_dim]`, v `[context, kv_heads, v_dim]`,
/// out `[tokens, heads, v_dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query tokens of this call.
    pub tokens: usize,
    /// Tokens in the cache before them: query i stands at position `past + i`. The keys of the
    /// call's own tokens must be in the cache already.
    pub past: usize,
    /// Whether a query sees the keys up to and including its own only.
    pub causal: bool,
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Size of a head's values; mostly `head_dim`.
    pub v_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// A query at position p sees the keys above `p − window` only.
    pub window: Option<usize>,
    /// Scores become `cap · tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

/// What is wrong with an [`Attention`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AttentionError {
    #[error("{heads} query heads cannot share {kv_heads} key/value heads evenly")]
    Heads { heads: usize, kv_heads: usize },
    #[error("head_dim, v_dim and window must be at least 1")]
    Zero,
    #[error("the soft cap {0} is not above zero")]
    SoftCap(f32),
    #[error("{past} past and {tokens} new tokens do not fit a cache of {context}")]
    Context { past: usize, tokens: usize, context: usize },
}

impl Attention {
    /// Checks the numbers against a cache of `context` rows.
    pub fn validate(&self, context: usize) -> Result<(), AttentionError> {
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(AttentionError::Heads { heads, kv_heads });
        }
        if self.head_dim == 0 || self.v_dim == 0 || self.window == Some(0) {
            return Err(AttentionError::Zero);
        }
        if let Some(cap) = self.soft_cap
            && (cap <= 0.0 || cap.is_nan())
        {
            return Err(AttentionError::SoftCap(cap));
        }
        if self.past.checked_add(self.tokens).is_none_or(|n| n > context) {
            let (past, tokens) = (self.past, self.tokens);
            return Err(AttentionError::Context { past, tokens, context });
        }
        Ok(())
    }

    /// Query heads per key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Tokens of a prefill unit.
    fn unit_tokens(&self) -> usize {
        (UNIT_ROWS / self.group()).clamp(1, self.tokens.max(1))
    }

    /// The keys that the last of the tokens before `end` (relative to `past`) and the first
    /// from `start` on see together.
    fn keys(&self, start: usize, end: usize) -> Range<usize> {
        let first = self.past + start + 1;
        let low = self.window.map_or(0, |w| first.saturating_sub(w));
        low..self.past + if self.causal { end } else { self.tokens }
    }

    /// The keys a single token sees, for [`decode_part`].
    pub fn decode_keys(&self) -> Range<usize> {
        self.keys(0, 1)
    }

    /// Independent pieces of work of this call, for [`attention`].
    pub fn units(&self) -> usize {
        self.kv_heads * self.tokens.div_ceil(self.unit_tokens())
    }

    /// f32 elements of scratch each worker needs, for every number of tokens up to `tokens`.
    pub fn scratch_len(&self, isa: Isa) -> usize {
        let one = decode::scratch_len(self) + self.partial_len();
        one.max(prefill::scratch_len(self, simd::geometry(isa)))
    }

    /// f32 elements of the partial result of one [`decode_part`].
    pub fn partial_len(&self) -> usize {
        self.group() * (2 + self.v_dim)
    }

    fn check<K: CacheElement, V: CacheElement>(
        &self,
        q: &[f32],
        (k, v): (&[K], &[V]),
        scratch: usize,
        isa: Isa,
    ) {
        let seen = self.past + self.tokens;
        let kv = seen * self.kv_heads;
        assert!(self.validate(seen).is_ok(), "attention of an invalid shape: {self:?}");
        assert!(q.len() >= self.tokens * self.heads * self.head_dim, "q is too short");
        let whole = self.head_dim.is_multiple_of(K::LEN) && self.v_dim.is_multiple_of(V::LEN);
        assert!(whole, "heads of a cache are whole blocks");
        let (k_len, v_len) = (kv * self.head_dim / K::LEN, kv * self.v_dim / V::LEN);
        assert!(k.len() >= k_len && v.len() >= v_len, "cache is too short");
        assert!(scratch >= self.scratch_len(isa), "attention scratch is too short");
    }
}

/// Computes unit `unit` of `shape.units()`; all units together fill `out`, each its own part.
/// The units that take longest come first. Caches are of floats, or of blocks that are read as they are.
///
/// # Safety
/// `out` covers `tokens · heads · v_dim` elements; no other thread runs the same unit on it.
///
/// # Panics
/// When the shape is invalid ([`Attention::validate`]) or a slice is shorter than it says.
pub unsafe fn attention<K: CacheElement, V: CacheElement>(
    isa: Isa,
    shape: &Attention,
    (q, k, v): (&[f32], &[K], &[V]),
    out: *mut f32,
    unit: usize,
    scratch: &mut [f32],
) {
    shape.check(q, (k, v), scratch.len(), isa);
    let units = shape.units();
    assert!(unit < units, "attention unit {unit} of {units}");
    if shape.tokens == 1 {
        let (partial, rest) = scratch.split_at_mut(shape.partial_len());
        // SAFETY: checked above; the unit's heads in `out` are this call's alone.
        unsafe {
            let (q, k, v) = (q.as_ptr(), k.as_ptr(), v.as_ptr());
            let (p, s) = (partial.as_mut_ptr(), rest.as_mut_ptr());
            decode::part::<K, V>(isa, shape, (q, k, v), unit, shape.decode_keys(), p, s);
            let out = out.add(unit * shape.group() * shape.v_dim);
            decode::merge(isa, shape, p, 0, 1, out);
        }
        return;
    }
    let block = units / shape.kv_heads - 1 - unit / shape.kv_heads;
    let start = block * shape.unit_tokens();
    let end = (start + shape.unit_tokens()).min(shape.tokens);
    let kv_head = unit % shape.kv_heads;
    // SAFETY: checked above; the unit's tokens and heads in `out` are this call's alone.
    unsafe {
        let k = CacheRows::new(isa, k.as_ptr(), shape.kv_heads, shape.head_dim);
        let v = CacheRows::new(isa, v.as_ptr(), shape.kv_heads, shape.v_dim);
        let (q, scratch) = (q.as_ptr(), scratch.as_mut_ptr());
        prefill::unit(isa, shape, (q, k, v), kv_head, (start, end), out, scratch);
    }
}

/// For one token: gathers the keys in `keys` (of [`Attention::decode_keys`]) for the heads of
/// one key/value head into `partial` ([`Attention::partial_len`] elements). So a long context
/// is spread over more threads than there are key/value heads; [`decode_merge`] puts the parts
/// together.
///
/// # Panics
/// When the shape is invalid or not of one token, or a slice is shorter than it says.
pub fn decode_part<K: CacheElement, V: CacheElement>(
    isa: Isa,
    shape: &Attention,
    (q, k, v): (&[f32], &[K], &[V]),
    kv_head: usize,
    keys: Range<usize>,
    partial: &mut [f32],
    scratch: &mut [f32],
) {
    shape.check(q, (k, v), scratch.len(), isa);
    assert!(shape.tokens == 1 && kv_head < shape.kv_heads && keys.end <= shape.past + 1);
    assert!(partial.len() >= shape.partial_len(), "attention partial is too short");
    // SAFETY: checked above.
    unsafe {
        let (q, k, v) = (q.as_ptr(), k.as_ptr(), v.as_ptr());
        let (p, s) = (partial.as_mut_ptr(), scratch.as_mut_ptr());
        decode::part::<K, V>(isa, shape, (q, k, v), kv_head, keys, p, s);
    }
}

/// Merges `parts` partial results of one key/value head, which lie one after another in
/// `partials`, into `out`: the heads of that key/value head, `[heads / kv_heads, v_dim]`.
///
/// # Panics
/// When a slice is shorter than the shape says.
pub fn decode_merge(
    isa: Isa,
    shape: &Attention,
    partials: &mut [f32],
    parts: usize,
    out: &mut [f32],
) {
    assert!(partials.len() >= parts * shape.partial_len(), "attention partials are too short");
    assert!(out.len() >= shape.group() * shape.v_dim, "attention output is too short");
    // SAFETY: checked above.
    unsafe {
        let p = partials.as_mut_ptr();
        decode::merge(isa, shape, p, shape.partial_len(), parts, out.as_mut_ptr());
    }
}

/// Writes `rows` (whole rows of `row_len` f32) into a cache in f16, from row `at` on.
///
/// # Panics
/// When `rows` is not whole rows or the cache ends before them.
pub fn store_rows(isa: Isa, rows: &[f32], row_len: usize, cache: &mut [f16], at: usize) {
    assert!(row_len > 0 && rows.len().is_multiple_of(row_len), "cache rows are not whole");
    let start = at.checked_mul(row_len).filter(|&s| s <= cache.len());
    let free = start.map_or(0, |s| cache.len() - s);
    assert!(rows.len() <= free, "{} rows at {at} overrun the cache", rows.len() / row_len);
    let start = cache.len() - free;
    convert::f32_to_f16(isa, rows, &mut cache[start..start + rows.len()]);
}
