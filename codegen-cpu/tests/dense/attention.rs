//! Attention, and the rows of its cache.

use aether_codegen_cpu::kernels::attention::{self, Attention, AttentionError};
use aether_codegen_cpu::kernels::isa::Isa;
use half::{bf16, f16};

use crate::support::{Element, assert_close, random, sizes};

pub fn attention_f64(s: &Attention, q: &[f32], k: &[f64], v: &[f64]) -> Vec<f64> {
    let group = s.heads / s.kv_heads;
    let mut out = Vec::new();
    for t in 0..s.tokens {
        for h in 0..s.heads {
            let position = s.past + t;
            let low = s.window.map_or(0, |w| (position + 1).saturating_sub(w));
            let high = if s.causal { position } else { s.past + s.tokens - 1 };
            let scores: Vec<f64> = (low..=high)
                .map(|j| {
                    let q = &q[(t * s.heads + h) * s.head_dim..][..s.head_dim];
                    let k = &k[(j * s.kv_heads + h / group) * s.head_dim..][..s.head_dim];
                    let dot: f64 = q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum();
                    let x = dot * f64::from(s.scale);
                    s.soft_cap.map_or(x, |c| f64::from(c) * (x / f64::from(c)).tanh())
                })
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
            for c in 0..s.v_dim {
                let at = |j: usize| v[((low + j) * s.kv_heads + h / group) * s.v_dim + c];
                let total: f64 =
                    scores.iter().enumerate().map(|(j, x)| (x - top).exp() * at(j)).sum();
                out.push(total / sum);
            }
        }
    }
    out
}

fn check_attention<E: Element + attention::CacheElement>(isa: Isa, s: &Attention) {
    let mut rng = fastrand::Rng::with_seed((s.tokens * 131 + s.past * 7 + s.head_dim) as u64);
    let context = s.past + s.tokens + 2;
    let q = random(&mut rng, s.tokens * s.heads * s.head_dim, 2.0);
    let make = |n: usize, rng: &mut fastrand::Rng| -> Vec<E> {
        let mut x: Vec<E> = random(rng, n, 2.0).into_iter().map(E::make).collect();
        // What lies beyond the tokens must not matter.
        let row = n / context;
        x[(context - 2) * row..].fill(E::make(f32::NAN));
        x
    };
    let k = make(context * s.kv_heads * s.head_dim, &mut rng);
    let v = make(context * s.kv_heads * s.v_dim, &mut rng);
    s.validate(context).unwrap();
    let wide = |x: &[E]| x.iter().map(|x| x.value()).collect::<Vec<_>>();
    let want = attention_f64(s, &q, &wide(&k), &wide(&v));
    let mut out = vec![f32::NAN; want.len()];
    let mut scratch = vec![f32::NAN; s.scratch_len(isa)];
    for unit in 0..s.units() {
        // SAFETY: `out` has the shape's size and one thread uses it.
        unsafe {
            attention::attention(isa, s, (&q, &k, &v), out.as_mut_ptr(), unit, &mut scratch);
        }
    }
    assert_close(&out, &want, 1e-5, &format!("{s:?} {isa}"));
    if s.tokens == 1 {
        // The same in parts, one of them empty.
        let keys = s.decode_keys();
        let (a, b) = (keys.start + keys.len() / 3, keys.start + keys.len() / 2);
        let group = s.heads / s.kv_heads;
        out.fill(f32::NAN);
        for h in 0..s.kv_heads {
            let mut partials = vec![f32::NAN; 4 * s.partial_len()];
            for (part, keys) in partials.chunks_exact_mut(s.partial_len()).zip([
                keys.start..a,
                a..a,
                a..b,
                b..keys.end,
            ]) {
                attention::decode_part(isa, s, (&q, &k, &v), h, keys, part, &mut scratch);
            }
            let heads = &mut out[h * group * s.v_dim..(h + 1) * group * s.v_dim];
            attention::decode_merge(isa, s, &mut partials, 4, heads);
        }
        assert_close(&out, &want, 1e-5, &format!("in parts: {s:?} {isa}"));
    }
}

#[test]
fn attention_of_many_shapes() {
    let base = Attention {
        tokens: 1,
        past: 0,
        causal: true,
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
        v_dim: 16,
        scale: 0.25,
        window: None,
        soft_cap: None,
    };
    let heads =
        |heads, kv_heads, head_dim, v_dim| Attention { heads, kv_heads, head_dim, v_dim, ..base };
    let shapes = [
        base,
        heads(9, 3, 64, 64),
        heads(14, 2, 64, 64),
        heads(4, 1, 256, 256),
        heads(1, 1, 1, 1),
        heads(5, 5, 80, 80),
        heads(8, 4, 96, 96),
        heads(2, 2, 13, 7),
        heads(2, 1, 24, 16),
        heads(100, 1, 8, 8),
        Attention { soft_cap: Some(5.0), ..base },
        Attention { causal: false, ..base },
    ];
    let sizes = sizes();
    for isa in Isa::available() {
        for s in shapes {
            for &(tokens, past) in sizes.spans {
                for &window in sizes.windows {
                    let s = Attention { tokens, past, window, ..s };
                    check_attention::<f16>(isa, &s);
                    if window.is_none() {
                        check_attention::<f32>(isa, &s);
                    }
                }
            }
        }
        let long = heads(3, 1, 64, 64);
        check_attention::<f16>(isa, &Attention { past: sizes.long.0, ..long });
        check_attention::<f16>(isa, &Attention { past: sizes.long.1, tokens: 37, ..long });
        check_attention::<bf16>(isa, &Attention { past: 100, tokens: 3, ..long });
    }
}

#[test]
fn attention_keeps_nan_and_survives_large_scores() {
    let s = Attention {
        tokens: 3,
        past: 70,
        causal: true,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        v_dim: 8,
        scale: 1.0,
        window: None,
        soft_cap: None,
    };
    for isa in Isa::available() {
        for tokens in [1, 3] {
            let s = Attention { tokens, ..s };
            let n = (s.past + s.tokens) * 8;
            let mut scratch = vec![0.0; s.scratch_len(isa)];
            let mut out = vec![0.0; s.tokens * 16];
            let mut run = |q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]| {
                for unit in 0..s.units() {
                    // SAFETY: `out` has the shape's size and one thread uses it.
                    unsafe {
                        attention::attention(
                            isa,
                            &s,
                            (q, k, v),
                            out.as_mut_ptr(),
                            unit,
                            &mut scratch,
                        );
                    }
                }
            };
            // Scores of ±8e10: one key takes it all.
            let q = vec![1e5; s.tokens * 16];
            let mut k = vec![-1e5; n];
            let v: Vec<f32> = (0..n).map(|i| (i / 8) as f32).collect();
            k[5 * 8..6 * 8].fill(1e5);
            run(&q, &k, &v, &mut out);
            assert!(out.iter().all(|&o| o == 5.0), "{isa}: {out:?}");
            k[30] = f32::NAN;
            run(&q, &k, &v, &mut out);
            assert!(out.iter().all(|o| o.is_nan()), "{isa}: {out:?}");
        }
    }
}

#[test]
fn attention_refuses_what_makes_no_sense() {
    let good = Attention {
        tokens: 2,
        past: 3,
        causal: true,
        heads: 6,
        kv_heads: 2,
        head_dim: 8,
        v_dim: 8,
        scale: 1.0,
        window: Some(4),
        soft_cap: Some(1.0),
    };
    assert_eq!(good.validate(5), Ok(()));
    let context = AttentionError::Context { past: 3, tokens: 2, context: 4 };
    assert_eq!(good.validate(4), Err(context));
    for (bad, want) in [
        (Attention { kv_heads: 4, ..good }, AttentionError::Heads { heads: 6, kv_heads: 4 }),
        (Attention { kv_heads: 0, ..good }, AttentionError::Heads { heads: 6, kv_heads: 0 }),
        (Attention { heads: 0, ..good }, AttentionError::Heads { heads: 0, kv_heads: 2 }),
        (Attention { window: Some(0), ..good }, AttentionError::Zero),
        (Attention { v_dim: 0, ..good }, AttentionError::Zero),
        (Attention { soft_cap: Some(0.0), ..good }, AttentionError::SoftCap(0.0)),
    ] {
        assert_eq!(bad.validate(5), Err(want));
    }
    let past = Attention { past: usize::MAX, ..good };
    assert!(matches!(past.validate(5), Err(AttentionError::Context { .. })));
}

#[test]
fn cache_rows_are_stored_where_they_belong() {
    let mut rng = fastrand::Rng::with_seed(11);
    let rows = random(&mut rng, 3 * 21, 4.0);
    for isa in Isa::available() {
        let mut cache = vec![f16::NEG_ONE; 8 * 21];
        attention::store_rows(isa, &rows, 21, &mut cache, 5);
        assert!(cache[..5 * 21].iter().all(|&x| x == f16::NEG_ONE));
        assert!(cache[5 * 21..].iter().zip(&rows).all(|(c, r)| *c == f16::from_f32(*r)));
    }
    let overrun = std::panic::catch_unwind(|| {
        attention::store_rows(Isa::Scalar, &[0.0; 42], 21, &mut [f16::ZERO; 42], 1);
    });
    assert!(overrun.is_err());
}
