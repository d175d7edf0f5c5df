//! Kernels of single ops against the oracle's cases and, on random shapes, strides, paddings and
//! groups, against the reference interpreter: every instruction set of this machine, one thread
//! and several.

#[path = "../ir/tests/oracle/mod.rs"]
mod oracle;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use aether_codegen_cpu::Isa;
use aether_ir::tensor::ConcreteType;
use aether_ir::{
    Attrs, DType, FuncBuilder, Interpreter, Layout, Module, Op, Tensor, TensorType, ValueId,
    eval_inst,
};
use aether_runtime::{Executable, Files, Options, run_executable};

/// `@main` with one parameter for each operand and nothing but the op.
fn module(op: Op, attrs: &Attrs, operands: &[Tensor], declared: &[TensorType]) -> Module {
    let mut f = FuncBuilder::new("main");
    let params: Vec<ValueId> = operands
        .iter()
        .enumerate()
        .map(|(i, x)| f.param(&format!("p{i}"), x.ty().to_type()))
        .collect();
    let results = f.op_multi(op, &params, attrs.clone(), declared);
    let results = results.unwrap_or_else(|e| panic!("{op} {attrs:?}: {e}"));
    let mut module = Module::new("m");
    module.add_func(f.finish(&results));
    module
}

/// Runs it, by a kernel.
fn run(module: &Module, operands: &[Tensor], isa: Isa, threads: usize) -> Vec<Tensor> {
    let opts = Options {
        threads,
        isa: Some(isa),
        pipeline: Some(pipeline(operands).to_owned()),
        verify: true,
        ..Options::default()
    };
    let exe = Executable::compile(module.clone(), &Files::new(), &opts);
    let exe = exe.unwrap_or_else(|e| panic!("{e}"));
    assert!(exe.by_reference().is_empty(), "{:?}", exe.by_reference());
    run_executable(&Arc::new(exe), operands.to_vec()).unwrap_or_else(|e| panic!("{e}"))
}

/// The distance allowed, relative to the greatest magnitude: sums in another order, and one
/// rounding in the last place.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::Bf16 => 2f64.powi(-7),
        DType::F32 => 2e-6,
        _ => 1e-12,
    }
}

#[track_caller]
fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.ty(), want.ty(), "{what}");
    if !want.dtype().is_float() {
        assert_eq!(got.bytes(), want.bytes(), "{what}");
        return;
    }
    let (got_values, want_values) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let finite = want_values.iter().filter(|v| v.is_finite());
    let scale = finite.fold(1.0, |m: f64, v| m.max(v.abs()));
    for (i, (g, w)) in got_values.iter().zip(&want_values).enumerate() {
        let same = g == w || (g.is_nan() && w.is_nan());
        let close = (g - w).abs() <= tolerance(want.dtype()) * scale;
        assert!(same || close, "{what}: element {i} is {g:e}, expected {w:e}");
    }
}

fn check(op: Op, attrs: &Attrs, operands: &[Tensor], declared: &[TensorType]) {
    let module = module(op, attrs, operands, declared);
    let want = Interpreter::new(&module).run("main", operands.to_vec()).unwrap();
    let types: Vec<ConcreteType> = operands.iter().map(Tensor::ty).collect();
    for isa in Isa::available() {
        for threads in [1, 3] {
            let got = run(&module, operands, isa, threads);
            for (got, want) in got.iter().zip(&want) {
                assert_close(got, want, &format!("{op} {attrs:?} of {types:?}, {isa}, {threads}"));
            }
        }
    }
}

/// The ops whose every case of a plain type has a kernel here.
const ORACLE: [&str; 33] = [
    "conv",
    "expert_matmul",
    "window_sum",
    "window_max",
    "sort",
    "top_k",
    "argmax",
    "cumsum",
    "scatter_add",
    "gather",
    "pad",
    "flip",
    "slice",
    "concat",
    "transpose",
    "broadcast",
    "reshape",
    "splat",
    "rng_bits",
    "quantize",
    "stop_gradient",
    "barrier",
    "transfer",
    "reduce_sum",
    "reduce_mean",
    "reduce_prod",
    "reduce_max",
    "reduce_min",
    "matmul",
    "softmax",
    "log_softmax",
    "rms_norm",
    "layer_norm",
];

/// Whether a case has no kernel and is left to the reference.
fn left_out(op: Op, operands: &[Tensor]) -> bool {
    let wide = |x: &Tensor| x.dtype() == DType::F64;
    let blocks = |x: &Tensor| x.dtype().is_quantized();
    match op {
        Op::Conv => operands.iter().any(wide) || operands[0].shape().len() > 4,
        Op::Softmax | Op::LogSoftmax | Op::RmsNorm | Op::LayerNorm => wide(&operands[0]),
        Op::Matmul => operands.iter().any(|x| wide(x) || blocks(x)),
        Op::ExpertMatmul => operands[0].dtype() != DType::F32 || blocks(&operands[1]),
        _ => false,
    }
}

/// What gives every op here a kernel: f16 and bf16 are computed in f32 where f32 alone has one.
fn pipeline(operands: &[Tensor]) -> &'static str {
    let narrow = |x: &Tensor| matches!(x.dtype(), DType::F16 | DType::Bf16);
    if operands.iter().any(narrow) { "simplify" } else { "" }
}

#[test]
fn kernels_equal_the_oracle() {
    let mut seen = BTreeSet::new();
    for case in oracle::cases(Path::new(env!("CARGO_MANIFEST_DIR"))) {
        let oracle::Case { op, mut attrs, operands, results: want, what } = case;
        let packed = operands.iter().chain(&want).any(|t| t.ty().layout != Layout::RowMajor);
        if packed || !ORACLE.contains(&op.name()) || left_out(op, &operands) {
            continue;
        }
        if let (Op::Slice, Some(limits)) = (op, attrs.ints("limits")) {
            // A whole axis is written so when its length is a symbol; here it is a number.
            let whole = |(&limit, &n): (&i64, &usize)| if limit == -1 { n as i64 } else { limit };
            let limits = limits.iter().zip(operands[0].shape()).map(whole).collect::<Vec<_>>();
            attrs = attrs.with("limits", limits);
        }
        let declared: Vec<TensorType> = want.iter().map(|t| t.ty().to_type()).collect();
        let module = module(op, &attrs, &operands, &declared);
        let got = run(&module, &operands, Isa::detect(), 2);
        for (got, want) in got.iter().zip(&want) {
            assert_close(got, want, &what);
        }
        seen.insert(op.name());
    }
    assert_eq!(seen, BTreeSet::from(ORACLE));
}

fn random(rng: &mut fastrand::Rng, dtype: DType, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    // Some values repeat, so that ties occur.
    let values: Vec<f64> = (0..n)
        .map(|_| if rng.u8(0..4) == 0 { f64::from(rng.i8(-2..3)) } else { rng.f64() * 6.0 - 3.0 })
        .collect();
    Tensor::from_f64(dtype, shape, &values).unwrap()
}

fn dims(rng: &mut fastrand::Rng, rank: usize, most: usize) -> Vec<usize> {
    (0..rank).map(|_| rng.usize(1..=most)).collect()
}

const NUMBERS: [DType; 10] = [
    DType::F32,
    DType::F64,
    DType::F16,
    DType::Bf16,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::U8,
    DType::U32,
];

fn number(rng: &mut fastrand::Rng) -> DType {
    *rng.choice(&NUMBERS).unwrap()
}

#[test]
fn convolutions_of_random_shapes() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut tried = 0;
    while tried < 40 {
        let axes = rng.usize(1..3);
        let list = |rng: &mut fastrand::Rng, low: i64, high: i64, n: usize| -> Vec<i64> {
            (0..n).map(|_| rng.i64(low..high)).collect()
        };
        // Now and then large enough for several blocks of positions.
        let size = if tried % 8 == 0 { 40 } else { 9 };
        let (groups, images) = (rng.usize(1..4), rng.usize(1..3));
        let (c_in, c_out) = (rng.usize(1..5), rng.usize(1..9));
        let plane = dims(&mut rng, axes, size);
        let kernel = dims(&mut rng, axes, 4);
        let attrs = Attrs::new()
            .with("stride", list(&mut rng, 1, 4, axes))
            .with("padding", list(&mut rng, -1, 4, 2 * axes))
            .with("dilation", list(&mut rng, 1, 3, axes))
            .with("lhs_dilation", list(&mut rng, 1, 3, axes))
            .with("groups", groups as i64);
        let shape = |head: [usize; 2], tail: &[usize]| [&head[..], tail].concat();
        let x = random(&mut rng, DType::F32, &shape([images, groups * c_in], &plane));
        let w = random(&mut rng, DType::F32, &shape([groups * c_out, c_in], &kernel));
        let mut f = FuncBuilder::new("f");
        let params = [f.param("x", x.ty().to_type()), f.param("w", w.ty().to_type())];
        // Kernels that do not fit are refused by the type rule.
        if f.op(Op::Conv, &params, attrs.clone()).is_err() {
            continue;
        }
        tried += 1;
        check(Op::Conv, &attrs, &[x, w], &[]);
    }
}

/// Deep products, and few positions with many channels, which are split by channels.
#[test]
fn convolutions_of_many_channels() {
    let mut rng = fastrand::Rng::with_seed(2);
    for (channels, plane, out, kernel) in [(70, 3, 90, 3), (300, 9, 40, 1), (2, 40, 33, 5)] {
        let x = random(&mut rng, DType::F32, &[1, channels, plane, plane]);
        let w = random(&mut rng, DType::F32, &[out, channels, kernel, kernel]);
        let pad = kernel as i64 / 2;
        let attrs = Attrs::new().with("padding", vec![pad; 4]);
        check(Op::Conv, &attrs, &[x, w], &[]);
    }
}

#[test]
fn stacked_products_of_random_shapes() {
    let mut rng = fastrand::Rng::with_seed(3);
    for round in 0..40 {
        let big = if round % 10 == 0 { 150 } else { 20 };
        let (m, k, n) = (rng.usize(0..big), rng.usize(1..big), rng.usize(1..big));
        let lead = (0..3).map(|_| rng.usize(1..4)).collect::<Vec<_>>();
        let thin = |rng: &mut fastrand::Rng| -> Vec<usize> {
            let lead: Vec<usize> =
                lead.iter().map(|&d| if rng.u8(0..3) == 0 { 1 } else { d }).collect();
            lead[rng.usize(0..3)..].to_vec()
        };
        let (a, b) = (thin(&mut rng), thin(&mut rng));
        let transpose_b = rng.bool();
        let right = if transpose_b { [n, k] } else { [k, n] };
        let mut dtype = || *rng.choice(&[DType::F32, DType::F32, DType::F16, DType::Bf16]).unwrap();
        let (left_type, right_type) = (dtype(), dtype());
        let x = random(&mut rng, left_type, &[&a[..], &[m, k]].concat());
        let w = random(&mut rng, right_type, &[&b[..], &right].concat());
        let attrs = Attrs::new().with("transpose_b", transpose_b);
        check(Op::Matmul, &attrs, &[x, w], &[]);
    }
}

#[test]
fn reductions_of_random_axes() {
    let mut rng = fastrand::Rng::with_seed(4);
    let ops = [Op::ReduceSum, Op::ReduceMean, Op::ReduceProd, Op::ReduceMax, Op::ReduceMin];
    for round in 0..60 {
        let rank = rng.usize(0..5);
        let shape = dims(&mut rng, rank, 7);
        let axes: Vec<i64> = (0..rank as i64).filter(|_| rng.bool()).collect();
        let op = ops[round % ops.len()];
        let float = op == Op::ReduceMean;
        let dtype = if float { NUMBERS[rng.usize(0..4)] } else { number(&mut rng) };
        let attrs = Attrs::new().with("axes", axes).with("keepdims", rng.bool());
        check(op, &attrs, &[random(&mut rng, dtype, &shape)], &[]);
    }
    // Long ones with few results, which are made in parts, and long columns.
    for (shape, axes) in [
        (vec![200_000], vec![0]),
        (vec![3, 50_000], vec![1]),
        (vec![9000, 9], vec![0]),
        (vec![40, 2, 1000], vec![0, 2]),
        (vec![300, 700], vec![0]),
        (vec![70, 3, 300], vec![0, 1]),
    ] {
        for op in [Op::ReduceSum, Op::ReduceMax] {
            let x = random(&mut rng, DType::F32, &shape);
            check(op, &Attrs::new().with("axes", axes.clone()), &[x], &[]);
        }
    }
}

/// Sums do not depend on the number of threads, to the last bit.
#[test]
fn sums_are_the_same_on_any_number_of_threads() {
    let mut rng = fastrand::Rng::with_seed(5);
    let x = random(&mut rng, DType::F32, &[300_001]);
    let attrs = Attrs::new().with("axes", vec![0i64]);
    let module = module(Op::ReduceSum, &attrs, std::slice::from_ref(&x), &[]);
    let one = run(&module, std::slice::from_ref(&x), Isa::detect(), 1);
    for threads in 2..5 {
        assert_eq!(run(&module, std::slice::from_ref(&x), Isa::detect(), threads), one);
    }
}

#[test]
fn movements_of_random_shapes() {
    let mut rng = fastrand::Rng::with_seed(6);
    for round in 0..60 {
        let rank = rng.usize(1..5);
        let most = if round % 10 == 0 && rank < 4 { 45 } else { 6 };
        let shape = dims(&mut rng, rank, most);
        let dtype = if rng.u8(0..8) == 0 { DType::Bool } else { number(&mut rng) };
        let x = random(&mut rng, dtype, &shape);
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        rng.shuffle(&mut perm);
        check(Op::Transpose, &Attrs::new().with("perm", perm), std::slice::from_ref(&x), &[]);
        let some: Vec<i64> = (0..rank as i64).filter(|_| rng.bool()).collect();
        check(Op::Flip, &Attrs::new().with("axes", some), std::slice::from_ref(&x), &[]);
        let starts: Vec<i64> = shape.iter().map(|&d| rng.i64(0..=d as i64)).collect();
        let limits: Vec<i64> =
            starts.iter().zip(&shape).map(|(&s, &d)| rng.i64(s..=d as i64)).collect();
        let steps: Vec<i64> = (0..rank).map(|_| rng.i64(1..4)).collect();
        let attrs = Attrs::new().with("starts", starts).with("limits", limits).with("steps", steps);
        check(Op::Slice, &attrs, std::slice::from_ref(&x), &[]);
        let mut amount = || -> Vec<i64> { (0..rank).map(|_| rng.i64(0..4)).collect() };
        let attrs = Attrs::new().with("low", amount()).with("high", amount()).with("value", 1i64);
        check(Op::Pad, &attrs, std::slice::from_ref(&x), &[]);
        let axis = rng.usize(0..rank);
        let parts: Vec<Tensor> = (0..rng.usize(1..4))
            .map(|_| {
                let mut part = shape.clone();
                part[axis] = rng.usize(0..5);
                random(&mut rng, dtype, &part)
            })
            .collect();
        check(Op::Concat, &Attrs::new().with("axis", axis as i64), &parts, &[]);
        let more = rng.usize(0..3);
        let mut wide = dims(&mut rng, more, 3);
        let thin: Vec<usize> = shape.iter().map(|&d| if rng.bool() { 1 } else { d }).collect();
        wide.extend_from_slice(&shape);
        let to = TensorType::new(dtype, wide);
        check(Op::Broadcast, &Attrs::new(), &[random(&mut rng, dtype, &thin)], &[to]);
    }
}

#[test]
fn lanes_of_random_shapes() {
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..60 {
        let rank = rng.usize(1..4);
        let shape = dims(&mut rng, rank, if round % 10 == 0 { 60 } else { 8 });
        let dtype = number(&mut rng);
        let x = random(&mut rng, dtype, &shape);
        let x = std::slice::from_ref(&x);
        let axis = Attrs::new().with("axis", rng.i64(0..rank as i64));
        check(Op::Argmax, &axis, x, &[]);
        check(Op::Sort, &axis.clone().with("descending", rng.bool()), x, &[]);
        let attrs = axis.with("exclusive", rng.bool()).with("reverse", rng.bool());
        check(Op::Cumsum, &attrs, x, &[]);
        let k = rng.i64(1..=shape[rank - 1] as i64);
        check(Op::TopK, &Attrs::new().with("k", k), x, &[]);
    }
    // NaN is greatest, for the vector kernels too.
    let mut values: Vec<f32> = (0..200).map(|i| (i * 37 % 101) as f32).collect();
    (values[50], values[120]) = (f32::NAN, -f32::NAN);
    let x = [Tensor::from_f32(&[2, 100], &values).unwrap()];
    check(Op::Argmax, &Attrs::new().with("axis", 1i64), &x, &[]);
    check(Op::TopK, &Attrs::new().with("k", 3i64), &x, &[]);
    check(Op::Sort, &Attrs::new().with("axis", 1i64), &x, &[]);
}

#[test]
fn softmax_of_random_axes() {
    let mut rng = fastrand::Rng::with_seed(10);
    for round in 0..20 {
        let rank = rng.usize(1..4);
        let shape = dims(&mut rng, rank, if round % 5 == 0 { 90 } else { 9 });
        let x = [random(&mut rng, DType::F32, &shape)];
        let axis = Attrs::new().with("axis", rng.i64(0..rank as i64));
        check(Op::Softmax, &axis, &x, &[]);
        check(Op::LogSoftmax, &axis, &x, &[]);
    }
}

#[test]
fn indices_of_random_shapes() {
    let mut rng = fastrand::Rng::with_seed(8);
    for _ in 0..60 {
        let rank = rng.usize(1..4);
        let shape = dims(&mut rng, rank, 7);
        let dtype = number(&mut rng);
        let axis = rng.usize(0..rank);
        let attrs = Attrs::new().with("axis", axis as i64);
        let axes = rng.usize(0..3);
        let count = dims(&mut rng, axes, 5);
        let indices: Vec<i64> =
            (0..count.iter().product::<usize>()).map(|_| rng.i64(0..shape[axis] as i64)).collect();
        let wide = if rng.bool() { DType::I64 } else { DType::I32 };
        let i = Tensor::from_i64(wide, &count, &indices).unwrap();
        let x = random(&mut rng, dtype, &shape);
        let picked = [&shape[..axis], &count[..], &shape[axis + 1..]].concat();
        check(Op::Gather, &attrs, &[x.clone(), i.clone()], &[]);
        let updates = random(&mut rng, dtype, &picked);
        check(Op::ScatterAdd, &attrs, &[x, i, updates], &[]);
    }
}

#[test]
fn planes_are_gathered_from_quantised_stacks() {
    let mut rng = fastrand::Rng::with_seed(10);
    for dtype in [DType::Q8_0, DType::Q4_0] {
        let x = random(&mut rng, DType::F32, &[5, 3, 64]);
        let ty = ConcreteType::new(dtype, [5, 3, 64]);
        let stack = eval_inst(Op::Quantize, &Attrs::new(), &[&x], &[ty]).unwrap().remove(0);
        let i = Tensor::from_i32(&[2, 2], &[4, 0, 4, 2]).unwrap();
        check(Op::Gather, &Attrs::new().with("axis", 0i64), &[stack, i], &[]);
    }
}

#[test]
fn indices_out_of_range_fail() {
    let x = Tensor::from_f32(&[2, 2], &[1.0; 4]).unwrap();
    let attrs = Attrs::new().with("axis", 1i64);
    for bad in [2, -1] {
        let i = Tensor::from_i32(&[1], &[bad]).unwrap();
        let u = Tensor::from_f32(&[2, 1], &[1.0; 2]).unwrap();
        for (op, operands) in
            [(Op::Gather, vec![x.clone(), i.clone()]), (Op::ScatterAdd, vec![x.clone(), i, u])]
        {
            let module = module(op, &attrs, &operands, &[]);
            let exe = Executable::compile(module, &Files::new(), &Options::default()).unwrap();
            let e = run_executable(&Arc::new(exe), operands).unwrap_err().to_string();
            assert!(e.contains(&format!("index {bad} is outside 0..2")), "{e}");
        }
    }
}

/// Random pieces of up to three sequences out of four, in any order of slots.
fn places(rng: &mut fastrand::Rng, context: usize) -> (Tensor, Tensor) {
    let mut slots = [0, 1, 2, 3];
    rng.shuffle(&mut slots);
    let (mut positions, mut ids) = (Vec::new(), Vec::new());
    for &slot in &slots[..rng.usize(1..4)] {
        let tokens = if rng.bool() { 1 } else { rng.usize(2..9) };
        let past = rng.usize(0..=context - tokens);
        positions.extend((past..past + tokens).map(|p| p as i32));
        ids.extend(std::iter::repeat_n(slot, tokens));
    }
    let ints = |v: &[i32]| Tensor::from_i32(&[v.len()], v).unwrap();
    (ints(&positions), ints(&ids))
}

#[test]
fn sequences_in_slots() {
    let mut rng = fastrand::Rng::with_seed(21);
    let context = 12;
    for round in 0..20 {
        let (positions, slots) = places(&mut rng, context);
        let tokens = positions.shape()[0];
        let cache_type = if round % 2 == 0 { DType::F16 } else { DType::F32 };
        let (heads, kv, d, dv) = (4, 2, 8, 16);
        let q = random(&mut rng, DType::F32, &[tokens, heads, d]);
        let k = random(&mut rng, cache_type, &[4, context, kv, d]);
        let v = random(&mut rng, cache_type, &[4, context, kv, dv]);
        let rows = random(&mut rng, DType::F32, &[tokens, kv, d]);
        let attrs = Attrs::new().with("scale", 0.3).with("window", i64::from(round % 3 == 0) * 3);
        let places = [positions, slots];
        let operands = [&[k.clone(), rows][..], &places].concat();
        check(Op::KvAppend, &Attrs::new(), &operands, &[]);
        check(Op::Attention, &attrs, &[&[q, k, v][..], &places].concat(), &[]);
    }
}

#[test]
fn misplaced_sequences_fail() {
    let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape).unwrap();
    let ints = |v: [i32; 3]| Tensor::from_i32(&[3], &v).unwrap();
    let cache = zeros(&[2, 4, 1, 2]);
    let scale = Attrs::new().with("scale", 1.0);
    let table = [
        ([0, 1, 0], [0, 1, 0], "tokens 0 and 2 both stand at position 0 of slot 0"),
        ([0, 0, 0], [0, 1, 1], "tokens 1 and 2 both stand at position 0 of slot 1"),
        ([0, 1, 2], [0, 0, 2], "names slot 2, but there are 2"),
        ([0, 1, 2], [0, 0, -1], "names slot -1"),
        ([2, 3, 4], [0, 0, 0], "more than the context of 4"),
        ([-1, 0, 1], [0, 0, 0], "-1 of token 0 is negative"),
    ];
    for (positions, slots, message) in table {
        let (positions, slots) = (ints(positions), ints(slots));
        let rows = zeros(&[3, 1, 2]);
        let append = vec![cache.clone(), rows.clone(), positions.clone(), slots.clone()];
        let attend = vec![rows, cache.clone(), cache.clone(), positions, slots];
        for (op, attrs, operands) in
            [(Op::KvAppend, &Attrs::new(), append), (Op::Attention, &scale, attend)]
        {
            let module = module(op, attrs, &operands, &[]);
            let exe = Executable::compile(module, &Files::new(), &Options::default()).unwrap();
            let e = run_executable(&Arc::new(exe), operands).unwrap_err().to_string();
            assert!(e.contains(message), "{e}, not {message}");
        }
    }
}

#[test]
fn pools_of_random_shapes() {
    let mut rng = fastrand::Rng::with_seed(9);
    let mut tried = 0;
    while tried < 60 {
        let axes = rng.usize(1..3);
        let more = rng.usize(0..3);
        let shape = dims(&mut rng, axes + more, 9);
        let dtype = number(&mut rng);
        let x = random(&mut rng, dtype, &shape);
        let list = |rng: &mut fastrand::Rng, low: i64, high: i64, n: usize| -> Vec<i64> {
            (0..n).map(|_| rng.i64(low..high)).collect()
        };
        let window = list(&mut rng, 1, 4, axes);
        let stride = list(&mut rng, 1, 4, axes);
        let both = Attrs::new().with("window", window.clone()).with("stride", stride);
        let sum = both
            .clone()
            .with("padding", list(&mut rng, -1, 3, 2 * axes))
            .with("dilation", list(&mut rng, 1, 3, axes))
            .with("lhs_dilation", list(&mut rng, 1, 3, axes));
        let most: Vec<i64> = window.iter().flat_map(|&w| [w, w]).collect();
        let padding: Vec<i64> = most.iter().map(|&w| rng.i64(0..w)).collect();
        let max = both.with("padding", padding);
        for (op, attrs) in [(Op::WindowSum, sum), (Op::WindowMax, max)] {
            let mut f = FuncBuilder::new("f");
            let param = f.param("x", x.ty().to_type());
            let declared: &[TensorType] = &[];
            if f.op_multi(op, &[param], attrs.clone(), declared).is_ok() {
                check(op, &attrs, std::slice::from_ref(&x), &[]);
                tried += 1;
            }
        }
    }
}
