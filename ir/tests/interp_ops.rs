//! The reference meanings against values made by `scripts/oracles/ops.py` with NumPy, and
//! properties that hold for any values.

mod oracle;

use std::collections::BTreeSet;
use std::path::Path;

use aether_ir::tensor::ConcreteType;
use aether_ir::{Attr, Attrs, DType, Op, Tensor, eval_inst};

fn cases() -> Vec<oracle::Case> {
    oracle::cases(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
}

/// One unit in the last place, relative to the value.
fn ulp(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::Bf16 => 2f64.powi(-7),
        DType::F32 => 2f64.powi(-23),
        _ => 0.0,
    }
}

/// Nothing is computed but what f64 computes exactly or rounds as IEEE says.
const EXACT: [&str; 39] = [
    "neg",
    "abs",
    "sign",
    "sqrt",
    "relu",
    "floor",
    "ceil",
    "round",
    "add",
    "sub",
    "mul",
    "div",
    "max",
    "min",
    "select",
    "cast",
    "splat",
    "iota",
    "reshape",
    "broadcast",
    "transpose",
    "slice",
    "concat",
    "gather",
    "pad",
    "flip",
    "rng_bits",
    "quantize",
    "stop_gradient",
    "barrier",
    "transfer",
    "reduce_max",
    "reduce_min",
    "top_k",
    "sort",
    "window_max",
    "pack",
    "kv_append",
    "not",
];

#[test]
fn meanings_equal_the_oracle() {
    for case in cases() {
        let oracle::Case { op, what, .. } = &case;
        let operands: Vec<&Tensor> = case.operands.iter().collect();
        let types: Vec<ConcreteType> = case.results.iter().map(Tensor::ty).collect();
        let results = eval_inst(*op, &case.attrs, &operands, &types)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        for (got, want) in results.iter().zip(&case.results) {
            if !got.dtype().is_float() {
                assert_eq!(got.bytes(), want.bytes(), "{what}");
                continue;
            }
            let (got_values, want_values) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
            let finite = want_values.iter().filter(|v| v.is_finite());
            let magnitude = finite.fold(1.0, |m: f64, v| m.max(v.abs()));
            for (i, (g, w)) in got_values.iter().zip(&want_values).enumerate() {
                let same = g == w || (g.is_nan() && w.is_nan());
                let close = (g - w).abs() <= ulp(got.dtype()) * w.abs() + 1e-13 * magnitude;
                let fits = same || (close && !EXACT.contains(&op.name()));
                assert!(fits, "{what}: result {i} is {g:e}, expected {w:e}");
            }
        }
    }
}

#[test]
fn every_op_has_a_case() {
    let covered: BTreeSet<&str> = cases().iter().map(|case| case.op.name()).collect();
    for op in Op::all().filter(|op| op.info().eval.is_some()) {
        assert!(covered.contains(op.name()), "{op} has no case in scripts/oracles/ops.py");
    }
    assert!(EXACT.iter().all(|name| covered.contains(*name)));
}

fn random(rng: &mut fastrand::Rng, dtype: DType, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    let values: Vec<f64> = (0..n).map(|_| rng.f64() * 6.0 - 3.0).collect();
    Tensor::from_f64(dtype, shape, &values).unwrap()
}

fn one(op: Op, attrs: &Attrs, operands: &[&Tensor], dtype: DType, shape: &[usize]) -> Tensor {
    eval_inst(op, attrs, operands, &[ConcreteType::new(dtype, shape)]).unwrap().remove(0)
}

#[test]
fn softmax_sums_to_one_and_agrees_with_its_logarithm() {
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..20 {
        let shape = [rng.usize(1..4), rng.usize(1..9)];
        let x = random(&mut rng, DType::F64, &shape);
        let attrs = Attrs::new().with("axis", 1i64);
        let p = one(Op::Softmax, &attrs, &[&x], DType::F64, &shape).to_array_f64().unwrap();
        let log = one(Op::LogSoftmax, &attrs, &[&x], DType::F64, &shape).to_array_f64().unwrap();
        for row in p.rows() {
            assert!((row.sum() - 1.0).abs() < 1e-12);
        }
        assert!(p.iter().zip(&log).all(|(p, l)| (p.ln() - l).abs() < 1e-12));
    }
}

/// The strides of both broadcasts fall towards the front, so an order that follows memory would be
/// another than row-major.
#[test]
fn broadcasts_of_both_operands_keep_their_order() {
    let x = Tensor::from_f32(&[2, 1, 1], &[1.0, 2.0]).unwrap();
    let y = Tensor::from_f32(&[3, 1], &[10.0, 20.0, 30.0]).unwrap();
    let sum = one(Op::Add, &Attrs::new(), &[&x, &y], DType::F32, &[2, 3, 1]);
    assert_eq!(sum.to_f64_vec().unwrap(), [11.0, 21.0, 31.0, 12.0, 22.0, 32.0]);
}

#[test]
fn transposing_back_is_the_identity() {
    let mut rng = fastrand::Rng::with_seed(2);
    for _ in 0..50 {
        let dtype = *rng.choice(&[DType::F32, DType::F16, DType::I64, DType::U8]).unwrap();
        let mut perm = [0i64, 1, 2, 3];
        rng.shuffle(&mut perm);
        let shape: Vec<usize> = (0..4).map(|_| rng.usize(0..4)).collect();
        let x = random(&mut rng, dtype, &shape);
        let there: Vec<usize> = perm.iter().map(|&p| shape[p as usize]).collect();
        let back: Vec<i64> =
            (0..4).map(|i| perm.iter().position(|&p| p == i).unwrap() as i64).collect();
        let y = one(Op::Transpose, &Attrs::new().with("perm", perm.to_vec()), &[&x], dtype, &there);
        assert_eq!(one(Op::Transpose, &Attrs::new().with("perm", back), &[&y], dtype, &shape), x);
    }
}

/// A sequence taken in two parts through the cache equals the whole at once.
#[test]
fn appending_then_attending_equals_attending_over_all() {
    let mut rng = fastrand::Rng::with_seed(3);
    for round in 0..20 {
        let (tokens, heads, d, context) = (rng.usize(2..7), 4, 3, 8);
        let split = rng.usize(1..tokens);
        let attrs = Attrs::new()
            .with("scale", 0.4)
            .with("window", if round % 2 == 0 { 0i64 } else { 3 })
            .with("softcap", if round % 3 == 0 { 2.0 } else { 0.0 });
        let q = random(&mut rng, DType::F32, &[tokens, heads, d]);
        let rows = [(); 2].map(|()| random(&mut rng, DType::F32, &[tokens, 2, d]));
        let part = |x: &Tensor, from: usize, to: usize| {
            let starts = Attr::Ints(vec![from as i64, 0, 0]);
            let limits = Attr::Ints(vec![to as i64, x.shape()[1] as i64, d as i64]);
            let attrs = Attrs::new().with("starts", starts).with("limits", limits);
            one(Op::Slice, &attrs, &[x], DType::F32, &[to - from, x.shape()[1], d])
        };
        let append = |cache: &Tensor, rows: &Tensor, past: usize| {
            let past = Tensor::scalar_i32(past as i32);
            let operands = [cache, rows, &past];
            one(Op::KvAppend, &Attrs::new(), &operands, DType::F16, &[context, 2, d])
        };
        let attend = |q: &Tensor, caches: &[Tensor; 2], past: usize| {
            let past = Tensor::scalar_i32(past as i32);
            let operands = [q, &caches[0], &caches[1], &past];
            one(Op::Attention, &attrs, &operands, DType::F32, q.shape())
        };
        let empty = Tensor::splat(DType::F16, &[context, 2, d], f64::NAN).unwrap();
        let caches = [&rows[0], &rows[1]].map(|r| append(&empty, r, 0));
        let whole = attend(&q, &caches, 0);

        let caches = [&rows[0], &rows[1]].map(|r| append(&empty, &part(r, 0, split), 0));
        let first = attend(&part(&q, 0, split), &caches, 0);
        let i = [0, 1];
        let caches = i.map(|i| append(&caches[i], &part(&rows[i], split, tokens), split));
        let second = attend(&part(&q, split, tokens), &caches, split);
        let joined = one(
            Op::Concat,
            &Attrs::new().with("axis", 0i64),
            &[&first, &second],
            DType::F32,
            whole.shape(),
        );
        assert_eq!(joined, whole);
    }
}

/// Sequences in slots give what each gives alone.
#[test]
fn slots_keep_sequences_apart() {
    let mut rng = fastrand::Rng::with_seed(8);
    let (heads, d, context) = (4, 3, 6);
    let attrs = Attrs::new().with("scale", 0.4).with("window", 4i64);
    // Slot, position, tokens.
    let pieces = [(2, 1, 3), (0, 5, 1), (1, 0, 2)];
    let ints = |v: Vec<i32>| Tensor::from_i32(&[v.len()], &v).unwrap();
    let place = |f: fn(&(i32, i32, i32), i32) -> i32| {
        ints(pieces.iter().flat_map(|p| (0..p.2).map(move |i| f(p, i))).collect())
    };
    let (positions, slots) = (place(|p, i| p.1 + i), place(|p, _| p.0));
    let q = random(&mut rng, DType::F32, &[6, heads, d]);
    let rows = random(&mut rng, DType::F32, &[6, 2, d]);
    let cache = random(&mut rng, DType::F16, &[3, context, 2, d]);
    let ty = |x: &Tensor| (x.dtype(), x.shape().to_vec());
    let none = Attrs::new();
    let (dtype, shape) = ty(&cache);
    let grown = one(Op::KvAppend, &none, &[&cache, &rows, &positions, &slots], dtype, &shape);
    let operands = [&q, &grown, &grown, &positions, &slots];
    let all = one(Op::Attention, &attrs, &operands, DType::F32, q.shape());

    let slice = |x: &Tensor, from: i32, to: i32| {
        let mut limits: Vec<i64> = x.shape().iter().map(|&d| d as i64).collect();
        let mut starts = vec![0; limits.len()];
        (starts[0], limits[0]) = (i64::from(from), i64::from(to));
        let mut shape = x.shape().to_vec();
        shape[0] = (to - from) as usize;
        let attrs = Attrs::new().with("starts", starts).with("limits", limits);
        one(Op::Slice, &attrs, &[x], x.dtype(), &shape)
    };
    let of_slot = |x: &Tensor, slot: i32| {
        let part = slice(x, slot, slot + 1);
        one(Op::Reshape, &Attrs::new(), &[&part], x.dtype(), &x.shape()[1..])
    };
    let mut first = 0;
    for (slot, past, tokens) in pieces {
        let part = |x: &Tensor| slice(x, first, first + tokens);
        let past = Tensor::scalar_i32(past);
        let own = of_slot(&cache, slot);
        let own = one(Op::KvAppend, &none, &[&own, &part(&rows), &past], dtype, own.shape());
        assert_eq!(of_slot(&grown, slot), own);
        let q = part(&q);
        let alone = one(Op::Attention, &attrs, &[&q, &own, &own, &past], DType::F32, q.shape());
        assert_eq!(part(&all), alone);
        first += tokens;
    }
}

/// Rotation keeps lengths, and products depend on the distance only.
#[test]
fn rope_depends_on_distance() {
    let mut rng = fastrand::Rng::with_seed(4);
    for mode in ["norm", "neox"] {
        let attrs = Attrs::new().with("mode", mode).with("theta", 10_000.0).with("n_dims", 6i64);
        let (a, b) =
            (random(&mut rng, DType::F64, &[1, 1, 6]), random(&mut rng, DType::F64, &[1, 1, 6]));
        let product = |p: i32, q: i32| {
            let turn = |x: &Tensor, at: i32| {
                let at = Tensor::scalar_i32(at);
                one(Op::Rope, &attrs, &[x, &at], DType::F64, &[1, 1, 6]).to_f64_vec().unwrap()
            };
            turn(&a, p).iter().zip(turn(&b, q)).map(|(x, y)| x * y).sum::<f64>()
        };
        assert!((product(3, 10) - product(103, 110)).abs() < 1e-11);
        assert!((product(3, 10) - product(3, 11)).abs() > 1e-3);
    }
}

/// What the type rule accepts but the values make impossible, and what it refuses.
#[test]
fn impossible_values_are_errors() {
    let f = |shape: &[usize]| Tensor::zeros(DType::F32, shape).unwrap();
    let i = Tensor::scalar_i32;
    let none = Attrs::new();
    let axis = Attrs::new().with("axis", 0i64);
    let scale = Attrs::new().with("scale", 1.0);
    let wide = Attrs::new().with("low", vec![1i64 << 40]).with("high", vec![0i64]);
    let cache = f(&[4, 1, 2]);
    let f32_of = |shape: &[usize]| ConcreteType::new(DType::F32, shape);
    let table: Vec<(Op, &Attrs, Vec<Tensor>, ConcreteType, &str)> = vec![
        (Op::Gather, &axis, vec![f(&[3]), i(3)], f32_of(&[]), "index 3 is out of range"),
        (Op::Gather, &axis, vec![f(&[3]), i(-1)], f32_of(&[]), "index -1 is out of range"),
        (Op::Div, &none, vec![i(1), i(0)], ConcreteType::new(DType::I32, []), "by zero"),
        (Op::KvAppend, &none, vec![cache.clone(), f(&[2, 1, 2]), i(3)], cache.ty(), "context of 4"),
        (Op::KvAppend, &none, vec![cache.clone(), f(&[2, 1, 2]), i(-1)], cache.ty(), "negative"),
        (
            Op::Attention,
            &scale,
            vec![f(&[1, 1, 2]), cache.clone(), cache.clone(), i(i32::MAX)],
            f32_of(&[1, 1, 2]),
            "context of 4",
        ),
        (
            Op::ScatterAdd,
            &axis,
            vec![f(&[3]), i(3), f(&[])],
            f32_of(&[3]),
            "index 3 is out of range for axis 0 of tensor<3xf32>",
        ),
        (
            Op::ScatterAdd,
            &axis,
            vec![f(&[3]), i(-1), f(&[])],
            f32_of(&[3]),
            "index -1 is out of range",
        ),
        (Op::ScatterAdd, &axis, vec![f(&[3]), i(1), f(&[1])], f32_of(&[3]), "expected updates of"),
        (Op::Conv, &none, vec![f(&[1, 1, 2]), f(&[1, 1, 3])], f32_of(&[1, 1, 1]), "does not fit"),
        (Op::Pad, &wide, vec![f(&[1])], f32_of(&[(1 << 40) + 1]), "more than 268435456"),
        (Op::RngBits, &none, vec![f(&[4])], ConcreteType::new(DType::U32, [2]), "expected a state"),
        (Op::Argmax, &axis, vec![f(&[0])], ConcreteType::new(DType::I32, []), "is empty"),
        (Op::Softmax, &none, vec![f(&[2])], f32_of(&[2]), "`axis` is missing"),
        (Op::Add, &none, vec![f(&[2]), f(&[3])], f32_of(&[3]), "do not broadcast"),
        (Op::Add, &none, vec![f(&[2]), f(&[2])], f32_of(&[3]), "expected tensor<2xf32>"),
        (Op::Add, &none, vec![f(&[2])], f32_of(&[2]), "does not take 1 operands"),
        (Op::Broadcast, &none, vec![f(&[])], f32_of(&[1 << 20, 1 << 20]), "more than 268435456"),
        (Op::Broadcast, &none, vec![f(&[])], f32_of(&[usize::MAX >> 1, 8]), "more than 268435456"),
        (Op::Call, &none, vec![], f32_of(&[]), "needs a module"),
        (Op::Fused, &none, vec![f(&[])], f32_of(&[]), "needs a module"),
    ];
    for (op, attrs, operands, result, message) in table {
        let operands: Vec<&Tensor> = operands.iter().collect();
        let e = eval_inst(op, attrs, &operands, &[result]).unwrap_err().to_string();
        assert!(e.contains(message), "{op}: {e}");
    }
}

/// The gradients of convolution that `op/conv.rs` describes are its transposes: products with them
/// are equal, whatever the strides, paddings, dilations and groups.
#[test]
fn gradients_of_convolution_are_convolutions() {
    let mut rng = fastrand::Rng::with_seed(6);
    let mut tried = 0;
    while tried < 60 {
        let axes = rng.usize(1..3);
        let pick = |rng: &mut fastrand::Rng, low: i64, high: i64| -> Vec<i64> {
            (0..axes).map(|_| rng.i64(low..high)).collect()
        };
        let (n, groups, c_in, c_out) = (rng.i64(1..3), rng.i64(1..3), rng.i64(1..3), rng.i64(1..3));
        let (size, kernel) = (pick(&mut rng, 1, 7), pick(&mut rng, 1, 4));
        let (stride, dilation) = (pick(&mut rng, 1, 4), pick(&mut rng, 1, 3));
        let lhs_dilation = pick(&mut rng, 1, 3);
        let (lo, hi) = (pick(&mut rng, -1, 4), pick(&mut rng, -1, 4));
        let i = 0..axes;
        let spread: Vec<i64> = i.clone().map(|i| (size[i] - 1) * lhs_dilation[i] + 1).collect();
        let reach: Vec<i64> = i.clone().map(|i| (kernel[i] - 1) * dilation[i] + 1).collect();
        let room: Vec<i64> = i.clone().map(|i| spread[i] + lo[i] + hi[i] - reach[i]).collect();
        if room.iter().any(|r| *r < 0) {
            continue;
        }
        tried += 1;
        let out: Vec<i64> = i.clone().map(|i| room[i] / stride[i] + 1).collect();
        let spread_out: Vec<i64> = i.clone().map(|i| (out[i] - 1) * stride[i] + 1).collect();

        let shape = |head: &[i64], tail: &[i64]| -> Vec<usize> {
            head.iter().chain(tail).map(|&d| d as usize).collect()
        };
        let x = random(&mut rng, DType::F64, &shape(&[n, groups * c_in], &size));
        let w = random(&mut rng, DType::F64, &shape(&[groups * c_out, c_in], &kernel));
        let g = random(&mut rng, DType::F64, &shape(&[n, groups * c_out], &out));
        let conv = |x: &Tensor, w: &Tensor, attrs: [&[i64]; 5], to: &[usize]| {
            let names = ["stride", "padding", "dilation", "lhs_dilation"];
            let attrs = names
                .iter()
                .zip(attrs)
                .fold(Attrs::new().with("groups", groups), |all, (name, list)| {
                    all.with(name, list.to_vec())
                });
            one(Op::Conv, &attrs, &[x, w], DType::F64, to)
        };
        let pairs = |lo: &[i64], hi: &[i64]| -> Vec<i64> {
            lo.iter().zip(hi).flat_map(|(lo, hi)| [*lo, *hi]).collect()
        };
        // [a, b·c, …] to [a, b, c, …], axes exchanged, and two joined again.
        let exchange = |x: &Tensor, split: Vec<usize>, perm: [i64; 3], joined: &[usize]| {
            let perm: Vec<i64> =
                perm.into_iter().chain((3..split.len() as i64).collect::<Vec<_>>()).collect();
            let to: Vec<usize> = perm.iter().map(|&p| split[p as usize]).collect();
            let x = x.with_shape(&split).unwrap();
            one(Op::Transpose, &Attrs::new().with("perm", perm), &[&x], DType::F64, &to)
                .with_shape(joined)
                .unwrap()
        };
        let product = |a: &Tensor, b: &Tensor| -> f64 {
            a.to_f64_vec().unwrap().iter().zip(b.to_f64_vec().unwrap()).map(|(a, b)| a * b).sum()
        };
        let y = conv(&x, &w, [&stride, &pairs(&lo, &hi), &dilation, &lhs_dilation, &[]], g.shape());

        let flipped = one(
            Op::Flip,
            &Attrs::new().with("axes", (2..2 + axes as i64).collect::<Vec<_>>()),
            &[&w],
            DType::F64,
            w.shape(),
        );
        let back = exchange(
            &flipped,
            shape(&[groups, c_out, c_in], &kernel),
            [0, 2, 1],
            &shape(&[groups * c_in, c_out], &kernel),
        );
        let low: Vec<i64> = i.clone().map(|i| reach[i] - 1 - lo[i]).collect();
        let high: Vec<i64> =
            i.clone().map(|i| spread[i] + reach[i] - 1 - spread_out[i] - low[i]).collect();
        let attrs: [&[i64]; 5] = [&lhs_dilation, &pairs(&low, &high), &dilation, &stride, &[]];
        let dx = conv(&g, &back, attrs, x.shape());

        let image = exchange(
            &x,
            shape(&[n, groups, c_in], &size),
            [2, 1, 0],
            &shape(&[c_in, groups * n], &size),
        );
        let by = exchange(
            &g,
            shape(&[1, n, groups * c_out], &out),
            [0, 2, 1],
            &shape(&[groups * c_out, n], &out),
        );
        let high: Vec<i64> = i.map(|i| reach[i] + spread_out[i] - 1 - spread[i] - lo[i]).collect();
        let attrs: [&[i64]; 5] = [&dilation, &pairs(&lo, &high), &stride, &lhs_dilation, &[]];
        let dw = conv(&image, &by, attrs, &shape(&[c_in, groups * c_out], &kernel));
        let dw = exchange(
            &dw,
            shape(&[1, c_in, groups * c_out], &kernel),
            [0, 2, 1],
            &shape(&[groups * c_out, c_in], &kernel),
        );

        let want = product(&y, &g);
        for (name, got) in [("x", product(&x, &dx)), ("w", product(&w, &dw))] {
            let close = (got - want).abs() < 1e-9 * (1.0 + want.abs());
            assert!(close, "{name}: {got} {want}, {size:?} {kernel:?} {stride:?} {lo:?} {hi:?}");
        }
    }
}

/// Gradients by composition: what `scatter_add` adds is what `gather` reads, and windows sum what
/// their transpose spreads.
#[test]
fn gather_and_window_sum_have_transposes() {
    let mut rng = fastrand::Rng::with_seed(7);
    let product = |a: &Tensor, b: &Tensor| -> f64 {
        a.to_f64_vec().unwrap().iter().zip(b.to_f64_vec().unwrap()).map(|(a, b)| a * b).sum()
    };
    for _ in 0..30 {
        let (n, m) = (rng.usize(1..6), rng.usize(0..7));
        let x = random(&mut rng, DType::F64, &[2, n, 3]);
        let g = random(&mut rng, DType::F64, &[2, m, 3]);
        let indices: Vec<i32> = (0..m).map(|_| rng.i32(0..n as i32)).collect();
        let indices = Tensor::from_i32(&[m], &indices).unwrap();
        let axis = Attrs::new().with("axis", 1i64);
        let y = one(Op::Gather, &axis, &[&x, &indices], DType::F64, g.shape());
        let zeros = Tensor::zeros(DType::F64, x.shape()).unwrap();
        let dx = one(Op::ScatterAdd, &axis, &[&zeros, &indices, &g], DType::F64, x.shape());
        assert!((product(&y, &g) - product(&x, &dx)).abs() < 1e-9);
    }
    for _ in 0..60 {
        let (n, k) = (rng.i64(1..9), rng.i64(1..4));
        let (t, d, e) = (rng.i64(1..4), rng.i64(1..3), rng.i64(1..3));
        let (lo, hi) = (rng.i64(-1..4), rng.i64(-1..4));
        let (spread, reach) = ((n - 1) * e + 1, (k - 1) * d + 1);
        let room = spread + lo + hi - reach;
        if room < 0 {
            continue;
        }
        let out = room / t + 1;
        let attrs = |t: i64, e: i64, lo: i64, hi: i64| {
            Attrs::new()
                .with("window", vec![k])
                .with("stride", vec![t])
                .with("padding", vec![lo, hi])
                .with("dilation", vec![d])
                .with("lhs_dilation", vec![e])
        };
        let x = random(&mut rng, DType::F64, &[2, n as usize]);
        let g = random(&mut rng, DType::F64, &[2, out as usize]);
        let y = one(Op::WindowSum, &attrs(t, e, lo, hi), &[&x], DType::F64, g.shape());
        let low = reach - 1 - lo;
        let high = spread + reach - 1 - ((out - 1) * t + 1) - low;
        let dx = one(Op::WindowSum, &attrs(e, t, low, high), &[&g], DType::F64, x.shape());
        assert!((product(&y, &g) - product(&x, &dx)).abs() < 1e-9, "{n} {k} {t} {d} {e} {lo} {hi}");
    }
}
