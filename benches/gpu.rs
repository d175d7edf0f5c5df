//! Single ops on a GPU: times by the device's timestamps, as a table and as JSON for
//! `benches/gpu_torch.py`, which measures PyTorch on the same cases.
//!
//! `cargo bench --bench gpu -- [--json FILE] [--small] [WORD]…` (cases with all the words)
//!
//! A case is a module in which the op is repeated, each on the result of the last, after products
//! that bring the clocks up again: a card that waits for the host slows down within milliseconds.
//! A time is that of one repetition, the median of several runs. The results of products are
//! compared with sums in f64 at some places before they are timed.

use std::io::Write as _;
use std::sync::Arc;

use aether::ir::{Attrs, DType, Func, FuncBuilder, Module, Op, Tensor, TensorType, ValueId};
use aether::runtime::gpu::{Gpu, GpuOptions};
use aether::runtime::trace::Lane;
use aether::runtime::{
    Arg, ArgData, DEFAULT_PIPELINE, Executable, Files, Options, Session, run_executable,
};

/// What is measured.
struct Case {
    name: &'static str,
    dtype: DType,
    /// As the peer's script reads it.
    sizes: Vec<u64>,
    /// Operations and bytes of one repetition.
    flops: f64,
    bytes: f64,
    repeats: usize,
    fused: bool,
    func: Box<dyn Fn(&mut FuncBuilder) -> ValueId>,
    /// Whether it is a product, which is checked.
    product: bool,
}

fn op(f: &mut FuncBuilder, op: Op, operands: &[ValueId]) -> ValueId {
    f.op(op, operands, Attrs::new()).expect("the operands fit")
}

fn ty(dtype: DType, dims: &[u64]) -> TensorType {
    TensorType::new(dtype, dims.iter().copied())
}

/// Products before the op, on `[n, n]` of f32.
#[derive(Clone, Copy)]
struct Warmth {
    n: u64,
    products: usize,
}

/// A function that warms up and then goes on; `body` gives the value from its parameters.
fn warmed(warmth: Warmth, body: impl FnOnce(&mut FuncBuilder) -> ValueId) -> Func {
    let mut f = FuncBuilder::new("main");
    let [mut x, w] = ["warm", "warm_w"].map(|name| f.param(name, ty(DType::F32, &[warmth.n; 2])));
    for _ in 0..warmth.products {
        x = op(&mut f, Op::Matmul, &[x, w]);
    }
    let y = body(&mut f);
    f.finish(&[x, y])
}

/// `relu(sqrt(abs((1.5 x + 0.25)² - x)) x)`.
fn chain(n: u64) -> Case {
    let func = move |f: &mut FuncBuilder| {
        let x = f.param("x", ty(DType::F32, &[n]));
        let mut splat = |value: f64| {
            let attrs = Attrs::new().with("value", value);
            f.op_to(Op::Splat, &[], attrs, ty(DType::F32, &[])).expect("a scalar")
        };
        let (a, b) = (splat(1.5), splat(0.25));
        let y = op(f, Op::Mul, &[x, a]);
        let y = op(f, Op::Add, &[y, b]);
        let y = op(f, Op::Mul, &[y, y]);
        let y = op(f, Op::Sub, &[y, x]);
        let y = op(f, Op::Abs, &[y]);
        let y = op(f, Op::Sqrt, &[y]);
        let y = op(f, Op::Mul, &[y, x]);
        op(f, Op::Relu, &[y])
    };
    Case {
        name: "chain of 8",
        dtype: DType::F32,
        sizes: vec![n],
        flops: 8.0 * n as f64,
        bytes: 8.0 * n as f64,
        repeats: 1,
        fused: true,
        func: Box::new(func),
        product: false,
    }
}

/// A value read and written: what memory can do.
fn copy(n: u64) -> Case {
    let func = move |f: &mut FuncBuilder| {
        let x = f.param("x", ty(DType::F32, &[n]));
        op(f, Op::Neg, &[x])
    };
    let (name, dtype, sizes) = ("copy", DType::F32, vec![n]);
    let (flops, bytes) = (n as f64, 8.0 * n as f64);
    let func = Box::new(func);
    Case { name, dtype, sizes, flops, bytes, repeats: 1, fused: true, func, product: false }
}

fn matmul(dtype: DType, n: u64, relu: bool, fused: bool, repeats: usize) -> Case {
    let func = move |f: &mut FuncBuilder| {
        let (mut x, w) = (f.param("x", ty(dtype, &[n, n])), f.param("w", ty(dtype, &[n, n])));
        for _ in 0..repeats {
            x = op(f, Op::Matmul, &[x, w]);
            x = if relu { op(f, Op::Relu, &[x]) } else { x };
        }
        x
    };
    let size = n as f64;
    Case {
        name: match (relu, fused) {
            (false, _) => "matmul",
            (true, true) => "matmul, relu",
            (true, false) => "matmul, relu (not fused)",
        },
        dtype,
        sizes: vec![n],
        flops: 2.0 * size * size * size,
        bytes: 3.0 * size * size * dtype.block_bytes() as f64,
        repeats,
        fused,
        func: Box::new(func),
        product: !relu,
    }
}

fn rows(name: &'static str, dtype: DType, rows: u64, n: u64, repeats: usize) -> Case {
    let func = move |f: &mut FuncBuilder| {
        let mut x = f.param("x", ty(dtype, &[rows, n]));
        let norm =
            (name == "layer_norm").then(|| ["w", "b"].map(|name| f.param(name, ty(dtype, &[n]))));
        for _ in 0..repeats {
            x = match norm {
                None => f.op(Op::Softmax, &[x], Attrs::new().with("axis", -1i64)),
                Some([w, b]) => f.op(Op::LayerNorm, &[x, w, b], Attrs::new().with("eps", 1e-5)),
            }
            .expect("the operands fit");
        }
        x
    };
    let all = (rows * n) as f64;
    Case {
        name,
        dtype,
        sizes: vec![rows, n],
        flops: 5.0 * all,
        bytes: 2.0 * all * dtype.block_bytes() as f64,
        repeats,
        fused: true,
        func: Box::new(func),
        product: false,
    }
}

/// Causal attention of some last tokens over a cache of f16 that they fill.
fn attention(tokens: u64, context: u64, heads: u64, kv_heads: u64, repeats: usize) -> Case {
    let d = 128;
    let func = move |f: &mut FuncBuilder| {
        let mut q = f.param("q", ty(DType::F32, &[tokens, heads, d]));
        let [k, v] = ["k", "v"].map(|name| f.param(name, ty(DType::F16, &[context, kv_heads, d])));
        let past = f.param("past", ty(DType::I32, &[]));
        let attrs = Attrs::new().with("scale", (d as f64).powf(-0.5));
        for _ in 0..repeats {
            q = f.op(Op::Attention, &[q, k, v, past], attrs.clone()).expect("the operands fit");
        }
        q
    };
    let pairs = tokens as f64 * (context as f64 - (tokens as f64 - 1.0) / 2.0);
    Case {
        name: if tokens == 1 { "attention, decode" } else { "attention, prompt" },
        dtype: DType::F16,
        sizes: vec![tokens, context, heads, kv_heads, d],
        flops: 4.0 * pairs * (heads * d) as f64,
        bytes: (2 * context * kv_heads * d * 2 + 2 * tokens * heads * d * 4) as f64,
        repeats,
        fused: true,
        func: Box::new(func),
        product: false,
    }
}

/// All cases; `small` ones are for trying the benchmark itself out.
fn cases(small: bool) -> Vec<Case> {
    if small {
        return vec![
            copy(1 << 16),
            chain(1 << 16),
            matmul(DType::F32, 128, false, true, 2),
            matmul(DType::F16, 128, false, true, 2),
            matmul(DType::F32, 128, true, true, 2),
            matmul(DType::F32, 128, true, false, 2),
            rows("softmax", DType::F32, 64, 256, 2),
            rows("layer_norm", DType::F32, 64, 256, 2),
            attention(64, 64, 4, 2, 2),
            attention(1, 256, 4, 2, 2),
        ];
    }
    let mut all = vec![copy(1 << 27), chain(1 << 27)];
    for dtype in [DType::F32, DType::F16] {
        for (n, repeats) in [(1024, 50), (2048, 20), (4096, 10), (8192, 4)] {
            all.push(matmul(dtype, n, false, true, repeats));
        }
        all.push(matmul(dtype, 1024, true, true, 50));
        all.push(matmul(dtype, 1024, true, false, 50));
    }
    all.push(rows("softmax", DType::F32, 16384, 4096, 2));
    all.push(rows("softmax", DType::F32, 1024, 32000, 2));
    all.push(rows("layer_norm", DType::F32, 16384, 4096, 2));
    all.push(rows("layer_norm", DType::F16, 16384, 4096, 2));
    all.push(attention(512, 512, 32, 8, 10));
    all.push(attention(4096, 4096, 32, 8, 2));
    all.push(attention(1, 4096, 32, 8, 20));
    all
}

/// Numbers around zero; the right operand of a product keeps the size of a row.
fn argument(ty: &TensorType, rng: &mut fastrand::Rng) -> Tensor {
    let dims: Vec<usize> =
        ty.shape.as_const().expect("sizes are known").iter().map(|&d| d as usize).collect();
    let n: usize = dims.iter().product();
    // Uniform numbers in ±√3 have a variance of 1.
    let scale = 2.0 * (3.0 / *dims.first().unwrap_or(&1) as f32).sqrt();
    let square = dims.len() == 2 && dims[0] == dims[1];
    let scale = if square { scale } else { 2.0 };
    if !ty.dtype.is_float() {
        return Tensor::from_i64(ty.dtype, &dims, &vec![0; n]).expect("the sizes are right");
    }
    let values: Vec<f64> = (0..n).map(|_| f64::from((rng.f32() - 0.5) * scale)).collect();
    Tensor::from_f64(ty.dtype, &dims, &values).expect("the sizes are right")
}

fn compile(case: &Case, gpu: &Arc<Gpu>, func: Func) -> Arc<Executable> {
    let without = DEFAULT_PIPELINE.split(',').filter(|pass| !pass.starts_with("fuse"));
    let pipeline = (!case.fused).then(|| without.collect::<Vec<_>>().join(","));
    let mut module = Module::new("bench");
    module.add_func(func);
    let opts = Options { pipeline, gpu: Some(gpu.clone()), ..Options::default() };
    Arc::new(Executable::compile(module, &Files::new(), &opts).expect("it compiles"))
}

/// The greatest distance of a product from f64 sums at some places, in units of the greatest.
fn check(case: &Case, gpu: &Arc<Gpu>, args: &[Tensor], rng: &mut fastrand::Rng) {
    let one = matmul(case.dtype, case.sizes[0], false, true, 1);
    let mut f = FuncBuilder::new("main");
    let y = (one.func)(&mut f);
    let exe = compile(&one, gpu, f.finish(&[y]));
    let out = run_executable(&exe, args.to_vec()).expect("it runs");
    let n = case.sizes[0] as usize;
    let out = out[0].to_f64_vec().expect("floats");
    let [x, w] = [0, 1].map(|i| args[i].to_f64_vec().expect("floats"));
    for _ in 0..500 {
        let (i, j) = (rng.usize(0..n), rng.usize(0..n));
        let want: f64 = (0..n).map(|k| x[i * n + k] * w[k * n + j]).sum();
        let got = out[i * n + j];
        let allowed = if case.dtype == DType::F16 { 4e-3 } else { 1e-4 };
        assert!(
            (got - want).abs() <= allowed * want.abs().max(1.0),
            "{} {:?}: [{i}, {j}] is {got}, expected {want}",
            case.dtype.name(),
            case.sizes
        );
    }
}

/// Seconds of a repetition.
fn measure(case: &Case, gpu: &Arc<Gpu>, warmth: Warmth) -> f64 {
    let mut rng = fastrand::Rng::with_seed(7);
    let func = warmed(warmth, &case.func);
    let types: Vec<TensorType> = func.params.iter().map(|&p| func.ty(p).clone()).collect();
    let mut args: Vec<Tensor> = types.iter().map(|ty| argument(ty, &mut rng)).collect();
    if case.name.starts_with("attention") {
        let past = case.sizes[1] as i32 - case.sizes[0] as i32;
        args[5] = Tensor::scalar_i32(past);
    }
    if case.product {
        check(case, gpu, &args[2..], &mut rng);
    }
    let mut session = Session::new(compile(case, gpu, func)).expect("there is memory");
    let ends = [warmth.products - 1, usize::MAX];
    session.profile_stretches(&ends).expect("the device has timestamps");
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let mut args: Vec<Arg<'_>> = args
                .iter()
                .map(|x| Arg { shape: x.shape(), data: ArgData::Read(x.bytes()) })
                .collect();
            session.run(&mut args).expect("it runs");
            let mut spans = session.take_spans();
            // Bytes that come and go have spans too.
            spans.retain(|span| span.lane == Lane::Ops && span.bytes == 0);
            assert_eq!(spans.len(), 2);
            spans[1].duration.as_secs_f64() / case.repeats as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut json, mut small, mut names) = (None, false, Vec::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = args.next(),
            "--small" | "--test" => small = true,
            _ => names.push(arg),
        }
    }
    let gpu = match Gpu::open(&GpuOptions::default()) {
        Ok(gpu) if gpu.has_timestamps() => gpu,
        Ok(gpu) => return eprintln!("{} has no timestamps: nothing is measured", gpu.name()),
        Err(e) => return eprintln!("{e}: nothing is measured"),
    };
    println!("{}", gpu.name());
    println!(
        "{:24} {:5} {:>26} {:>12} {:>10} {:>10}",
        "op", "type", "sizes", "µs", "GB/s", "TFLOP/s"
    );
    let mut lines = Vec::new();
    let chosen = |case: &&Case| {
        let text = format!("{} {} {:?}", case.name, case.dtype.name(), case.sizes);
        names.iter().all(|word| text.contains(word.as_str()))
    };
    let warmth = match small {
        true => Warmth { n: 64, products: 1 },
        false => Warmth { n: 4096, products: 20 },
    };
    for case in cases(small).iter().filter(chosen) {
        let time = measure(case, &gpu, warmth);
        let sizes = case.sizes.iter().map(u64::to_string).collect::<Vec<_>>();
        println!(
            "{:24} {:5} {:>26} {:12.2} {:10.1} {:10.2}",
            case.name,
            case.dtype.name(),
            sizes.join(" "),
            time * 1e6,
            case.bytes / time / 1e9,
            case.flops / time / 1e12
        );
        lines.push(format!(
            "{{\"op\": {:?}, \"dtype\": {:?}, \"sizes\": [{}], \"seconds\": {time:e}, \"bytes\": {}, \"flops\": {}}}\n",
            case.name,
            case.dtype.name(),
            sizes.join(", "),
            case.bytes,
            case.flops
        ));
    }
    if let Some(file) = json {
        let write = || std::fs::File::create(&file)?.write_all(lines.concat().as_bytes());
        write().unwrap_or_else(|e| panic!("{file}: {e}"));
    }
}
