//! What fusion gains: the same graph compiled with the pass `fuse` and without it.
//!
//! `cargo bench --bench fusion`

use std::hint::black_box;
use std::sync::Arc;

use aether::ir::{Attrs, DType, Func, FuncBuilder, Module, Op, TensorType, ValueId};
use aether::runtime::{
    AlignedBytes, Arg, ArgData, DEFAULT_PIPELINE, Executable, Files, Options, Session,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn op(f: &mut FuncBuilder, op: Op, operands: &[ValueId]) -> ValueId {
    f.op(op, operands, Attrs::new()).expect("the operands fit")
}

fn f32s(dims: &[u64]) -> TensorType {
    TensorType::new(DType::F32, dims.iter().copied())
}

/// Eight elementwise ops: `relu(sqrt(abs((1.5 x + 0.25)² - x)) x)`.
fn chain(n: u64) -> Func {
    let mut f = FuncBuilder::new("main");
    let x = f.param("x", f32s(&[n]));
    let mut splat = |value: f64| {
        let attrs = Attrs::new().with("value", value);
        f.op_to(Op::Splat, &[], attrs, f32s(&[])).expect("a scalar")
    };
    let (a, b) = (splat(1.5), splat(0.25));
    let y = op(&mut f, Op::Mul, &[x, a]);
    let y = op(&mut f, Op::Add, &[y, b]);
    let y = op(&mut f, Op::Mul, &[y, y]);
    let y = op(&mut f, Op::Sub, &[y, x]);
    let y = op(&mut f, Op::Abs, &[y]);
    let y = op(&mut f, Op::Sqrt, &[y]);
    let y = op(&mut f, Op::Mul, &[y, x]);
    let y = op(&mut f, Op::Relu, &[y]);
    f.finish(&[y])
}

/// The norm of a row, taken apart: two reductions that are read back.
fn normalise(rows: u64, n: u64) -> Func {
    let mut f = FuncBuilder::new("main");
    let x = f.param("x", f32s(&[rows, n]));
    let mean = Attrs::new().with("axes", vec![-1i64]).with("keepdims", true);
    let m = f.op(Op::ReduceMean, &[x], mean.clone()).expect("axes fit");
    let d = op(&mut f, Op::Sub, &[x, m]);
    let s = op(&mut f, Op::Mul, &[d, d]);
    let v = f.op(Op::ReduceMean, &[s], mean).expect("axes fit");
    let r = op(&mut f, Op::Rsqrt, &[v]);
    let y = op(&mut f, Op::Mul, &[d, r]);
    f.finish(&[y])
}

/// A product followed by an activation.
fn product(n: u64) -> Func {
    let mut f = FuncBuilder::new("main");
    let (x, w) = (f.param("x", f32s(&[n, n])), f.param("w", f32s(&[n, n])));
    let y = op(&mut f, Op::Matmul, &[x, w]);
    let y = op(&mut f, Op::Relu, &[y]);
    f.finish(&[y])
}

fn compare(c: &mut Criterion, name: &str, func: &Func, elements: u64) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(elements)).sample_size(20);
    let without = DEFAULT_PIPELINE.split(',').filter(|pass| !pass.starts_with("fuse"));
    let without = without.collect::<Vec<_>>().join(",");
    for (how, pipeline) in [("off", without.as_str()), ("on", DEFAULT_PIPELINE)] {
        let mut module = Module::new("bench");
        module.add_func(func.clone());
        let opts = Options { pipeline: Some(pipeline.to_owned()), ..Options::default() };
        let exe = Executable::compile(module, &Files::new(), &opts).expect("it compiles");
        let mut rng = fastrand::Rng::with_seed(1);
        let shapes: Vec<Vec<usize>> = func
            .params
            .iter()
            .filter_map(|&p| func.ty(p).shape.as_const())
            .map(|dims| dims.iter().map(|&d| d as usize).collect())
            .collect();
        let buffers: Vec<AlignedBytes> = shapes
            .iter()
            .map(|shape| {
                let mut bytes = AlignedBytes::zeroed(shape.iter().product::<usize>() * 4);
                for v in bytes.as_mut_slice().chunks_exact_mut(4) {
                    v.copy_from_slice(&(rng.f32() - 0.5).to_le_bytes());
                }
                bytes
            })
            .collect();
        let mut session = Session::new(Arc::new(exe)).expect("workers start");
        group.bench_function(format!("fusion {how}"), |b| {
            b.iter(|| {
                let mut args: Vec<Arg<'_>> = buffers
                    .iter()
                    .zip(&shapes)
                    .map(|(b, shape)| Arg { shape, data: ArgData::Read(b.as_slice()) })
                    .collect();
                session.run(black_box(&mut args)).expect("it runs");
            });
        });
    }
    group.finish();
}

fn fusion(c: &mut Criterion) {
    const MILLION: u64 = 1_000_000;
    compare(c, "chain of 8, 10 million", &chain(10 * MILLION), 10 * MILLION);
    compare(c, "norm 4096x1024", &normalise(4096, 1024), 4096 * 1024);
    compare(c, "matmul 1024, relu", &product(1024), 1024 * 1024);
}

criterion_group!(benches, fusion);
criterion_main!(benches);
