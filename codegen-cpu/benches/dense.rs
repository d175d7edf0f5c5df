//! Speed of the dense kernels on one thread, and of the worker pool's barrier.
//!
//! `cargo bench -p aether-codegen-cpu --bench dense`. Products and attention report multiply-adds
//! as elements: Gelem/s is billions of f32 multiply-adds a second.

use std::hint::black_box;
use std::time::Instant;

use aether_codegen_cpu::kernels::attention::{self, Attention};
use aether_codegen_cpu::kernels::elementwise::{self, Gate, Unary};
use aether_codegen_cpu::kernels::gemm::{self, Weights};
use aether_codegen_cpu::kernels::isa::Isa;
use aether_codegen_cpu::kernels::{Load, norm, softmax};
use aether_codegen_cpu::pool::Pool;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::f16;

fn random(n: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(n as u64);
    (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

fn matmul(c: &mut Criterion) {
    const N: usize = 1024;
    let (a, b) = (random(N * N), random(N * N));
    let mut group = c.benchmark_group("matmul_1024");
    group.throughput(Throughput::Elements((N * N * N) as u64)).sample_size(10);
    for isa in Isa::available() {
        let mut packed = vec![0.0; gemm::packed_len(isa, N, N)];
        let mut scratch = vec![0.0; gemm::scratch_len(isa, N)];
        let mut out = vec![0.0; N * N];
        group.bench_function(isa.name(), |bench| {
            bench.iter(|| {
                let a = Weights { data: &a, rows: N, k: N };
                // SAFETY: the buffers have the sizes that the functions ask for.
                unsafe {
                    for p in 0..gemm::panels(isa, N) {
                        gemm::pack_columns(isa, &b, N, N, p, packed.as_mut_ptr());
                    }
                    let c = (out.as_mut_ptr(), N);
                    gemm::matmul(isa, a, 0..N, (&packed, N), c, &mut scratch);
                }
            });
        });
    }
}

/// A layer of 1536 to 2048 on a prompt of 512 and on one token.
fn linear<E: Load>(c: &mut Criterion, name: &str, make: fn(f32) -> E) {
    const K: usize = 1536;
    const ROWS: usize = 2048;
    let isa = Isa::detect();
    let w: Vec<E> = random(K * ROWS).into_iter().map(make).collect();
    let weights = Weights { data: &w, rows: ROWS, k: K };
    let mut group = c.benchmark_group("linear_1536x2048");
    for tokens in [512, 16, 4, 1] {
        let x = random(tokens * K);
        let mut out = vec![0.0; tokens * ROWS];
        let mut packed = vec![0.0; gemm::packed_len(isa, tokens, K)];
        let mut scratch = vec![0.0; gemm::scratch_len(isa, tokens)];
        group.throughput(Throughput::Elements((K * ROWS * tokens) as u64)).sample_size(10);
        group.bench_function(format!("{name}_tokens_{tokens}"), |bench| {
            bench.iter(|| {
                let o = (out.as_mut_ptr(), ROWS);
                // SAFETY: the buffers have the sizes that the functions ask for.
                unsafe {
                    if gemm::wants_panels(isa, tokens) {
                        for p in 0..gemm::panels(isa, tokens) {
                            gemm::pack_rows(isa, &x, tokens, K, p, packed.as_mut_ptr());
                        }
                        gemm::linear(isa, weights, 0..ROWS, (&packed, tokens), o, &mut scratch);
                    } else {
                        gemm::gemv(isa, weights, 0..ROWS, (&x, tokens), o);
                    }
                }
            });
        });
    }
}

fn linears(c: &mut Criterion) {
    linear::<f32>(c, "f32", |x| x);
    linear::<f16>(c, "f16", f16::from_f32);
}

fn attentions(c: &mut Criterion) {
    let isa = Isa::detect();
    let mut group = c.benchmark_group("attention");
    group.sample_size(10);
    for (name, tokens, past, heads, kv_heads, head_dim) in [
        ("prefill_512_9x64", 512, 0, 9, 3, 64),
        ("prefill_512_past_2048_12x128", 512, 2048, 12, 2, 128),
        ("decode_256_9x64", 1, 255, 9, 3, 64),
        ("decode_4096_9x64", 1, 4095, 9, 3, 64),
        ("decode_4096_12x128", 1, 4095, 12, 2, 128),
    ] {
        let shape = Attention {
            tokens,
            past,
            causal: true,
            heads,
            kv_heads,
            head_dim,
            v_dim: head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
            soft_cap: None,
        };
        let q = random(tokens * heads * head_dim);
        let n = (past + tokens) * kv_heads * head_dim;
        let k: Vec<f16> = random(n).into_iter().map(f16::from_f32).collect();
        let v: Vec<f16> = random(n + 1)[1..].iter().map(|&x| f16::from_f32(x)).collect();
        let mut out = vec![0.0; q.len()];
        let mut scratch = vec![0.0; shape.scratch_len(isa)];
        // Pairs of query and key that see each other, times both products.
        let pairs = tokens * past + tokens * (tokens + 1) / 2;
        group.throughput(Throughput::Elements((pairs * heads * head_dim * 2) as u64));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                for unit in 0..shape.units() {
                    // SAFETY: `out` has the shape's size.
                    unsafe {
                        let o = out.as_mut_ptr();
                        attention::attention(isa, &shape, (&q, &k, &v), o, unit, &mut scratch);
                    }
                }
            });
        });
    }
}

fn rows(c: &mut Criterion) {
    let isa = Isa::detect();
    let mut group = c.benchmark_group("row");
    for n in [576, 1536] {
        let (x, w) = (random(n), random(n));
        let mut out = vec![0.0; n];
        group.bench_function(format!("rms_norm_{n}"), |bench| {
            bench.iter(|| norm::rms_norm(isa, black_box(&x), Some(&w), 1e-5, &mut out));
        });
        group.bench_function(format!("silu_gate_{n}"), |bench| {
            bench.iter(|| elementwise::gated(isa, Gate::Silu, black_box(&x), &w, &mut out));
        });
        group.bench_function(format!("exp_{n}"), |bench| {
            bench.iter(|| elementwise::unary(isa, Unary::Exp, black_box(&x), &mut out));
        });
    }
    let logits = random(151_936);
    group.bench_function("argmax_151936", |bench| {
        bench.iter(|| softmax::argmax(isa, black_box(&logits)));
    });
    let mut best = [0; 40];
    group.bench_function("top_40_of_151936", |bench| {
        bench.iter(|| softmax::top_k(isa, black_box(&logits), &mut best));
    });
}

fn pool(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool");
    for threads in [1, 2] {
        let pool = Pool::new(threads).expect("a small pool");
        group.bench_function(format!("barrier_{threads}"), |bench| {
            bench.iter_custom(|iters| {
                let start = Instant::now();
                pool.run(&|w| (0..iters).for_each(|_| w.barrier())).expect("no panics");
                start.elapsed()
            });
        });
        group.bench_function(format!("run_{threads}"), |bench| {
            bench.iter(|| {
                pool.run(&|w| {
                    black_box(w.index());
                })
            });
        });
    }
}

criterion_group!(benches, matmul, linears, attentions, rows, pool);
criterion_main!(benches);
