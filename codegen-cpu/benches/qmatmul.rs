//! Quantised products: decode (one token) in bytes of weights per second, and prefill in
//! multiply-adds per second, with one thread and with two.
//!
//!     cargo bench -p aether-codegen-cpu --bench qmatmul
//!
//! Decode cycles through copies of the matrix that together exceed the caches, as the layers of a
//! model do.

use std::hint::black_box;

use aether_codegen_cpu::kernels::act_quant::{QActs, QActsMut, Scaling, act_bytes};
use aether_codegen_cpu::kernels::isa::Isa;
use aether_codegen_cpu::kernels::packed::{PackedMatrix, pack_rows, packed_bytes};
use aether_codegen_cpu::kernels::qmatmul::{Epilogue, OutPtr, qmatmul, scaling};
use aether_ir::DType;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Bytes of weights that decode cycles through.
const WORKING_SET: usize = 192 << 20;

fn random_packed(dtype: DType, rows: usize, cols: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(1);
    let src: Vec<u8> =
        (0..dtype.row_bytes(cols).unwrap() * rows).map(|_| rng.u8(..) & 0xb7).collect();
    let mut packed = vec![0; packed_bytes(dtype, rows, cols).unwrap()];
    pack_rows(dtype, rows, cols, &src, 0..rows.div_ceil(16), &mut packed).unwrap();
    packed
}

fn quantized(tokens: usize, k: usize, scaling: Scaling) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(2);
    let mut data = vec![0; act_bytes(tokens, k).unwrap()];
    let mut acts = QActsMut::new(&mut data, tokens, k, scaling).unwrap();
    for t in 0..tokens {
        let row: Vec<f32> = (0..k).map(|_| rng.f32() - 0.5).collect();
        acts.quantize_row(t, &row);
    }
    data
}

/// One product, its groups split evenly over `threads`.
fn product(isa: Isa, w: &PackedMatrix, acts: &QActs, out: &mut [f32], threads: usize) {
    let groups = w.groups();
    let base = out.as_mut_ptr() as usize;
    let part = |i: usize| {
        let range = groups * i / threads..groups * (i + 1) / threads;
        let out = OutPtr { ptr: base as *mut f32, stride: w.rows() };
        // SAFETY: `out` holds all tokens and rows, and the ranges are disjoint.
        unsafe { qmatmul(isa, w, acts, range, out, &Epilogue::default()) }.unwrap();
    };
    std::thread::scope(|scope| {
        for i in 1..threads {
            let part = &part;
            scope.spawn(move || part(i));
        }
        part(0);
    });
}

fn levels() -> Vec<Isa> {
    Isa::available().into_iter().filter(|&i| i != Isa::Scalar).collect()
}

fn decode(c: &mut Criterion) {
    let mut bench = c.benchmark_group("decode");
    for (dtype, rows, cols) in [
        (DType::Q4K, 8960, 1536),
        (DType::Q6K, 8960, 1536),
        (DType::Q4K, 1536, 8960),
        (DType::Q4_1, 1536, 576),
        (DType::Q5_0, 4864, 896),
        (DType::Q8_0, 49152, 576),
    ] {
        let packed = random_packed(dtype, rows, cols);
        let copies: Vec<Vec<u8>> =
            (0..WORKING_SET.div_ceil(packed.len())).map(|_| packed.clone()).collect();
        let all = copies.len() * packed.len();
        bench.throughput(Throughput::BytesDecimal(all as u64));
        bench.sample_size(10);
        for isa in levels() {
            for (threads, tokens) in [(1, 1), (2, 1), (2, 4)] {
                let data = quantized(tokens, cols, scaling(dtype));
                let acts = QActs::new(&data, tokens, cols, scaling(dtype)).unwrap();
                let mut out = vec![0.0; tokens * rows];
                let name = format!("{dtype} {rows}x{cols} {isa} x{threads}");
                bench.bench_function(BenchmarkId::new(name, tokens), |b| {
                    b.iter(|| {
                        // A thread takes its share of every matrix; spawned once per cycle.
                        std::thread::scope(|scope| {
                            let groups = rows.div_ceil(16);
                            let base = out.as_mut_ptr() as usize;
                            let (copies, acts) = (&copies, &acts);
                            let part = move |i: usize| {
                                for copy in copies {
                                    let w = PackedMatrix::new(dtype, rows, cols, copy).unwrap();
                                    let range = groups * i / threads..groups * (i + 1) / threads;
                                    let out = OutPtr { ptr: base as *mut f32, stride: rows };
                                    // SAFETY: as in `product`.
                                    unsafe {
                                        qmatmul(isa, &w, acts, range, out, &Epilogue::default())
                                    }
                                    .unwrap();
                                }
                            };
                            for i in 1..threads {
                                scope.spawn(move || part(i));
                            }
                            part(0);
                        });
                        black_box(&out);
                    });
                });
            }
        }
    }
}

fn prefill(c: &mut Criterion) {
    let mut bench = c.benchmark_group("prefill");
    let tokens = 512;
    for (dtype, rows, cols) in [
        (DType::Q4_1, 1536, 576),
        (DType::Q8_0, 1536, 576),
        (DType::Q5_0, 4864, 896),
        (DType::Q4K, 8960, 1536),
        (DType::Q4K, 1536, 8960),
        (DType::Q6K, 1536, 8960),
    ] {
        let packed = random_packed(dtype, rows, cols);
        let w = PackedMatrix::new(dtype, rows, cols, &packed).unwrap();
        let data = quantized(tokens, cols, scaling(dtype));
        let acts = QActs::new(&data, tokens, cols, scaling(dtype)).unwrap();
        let mut out = vec![0.0; tokens * rows];
        bench.throughput(Throughput::Elements((tokens * rows * cols) as u64));
        bench.sample_size(10);
        for isa in levels() {
            for threads in [1, 2] {
                let name = format!("{dtype} {rows}x{cols} {isa} x{threads}");
                bench.bench_function(BenchmarkId::new(name, tokens), |b| {
                    b.iter(|| {
                        product(isa, &w, &acts, &mut out, threads);
                        black_box(&out);
                    });
                });
            }
        }
    }
}

criterion_group!(benches, decode, prefill);
criterion_main!(benches);
