//! Every operation of the library API against NumPy.
//!
//! Cases and expected values are made by scripts/oracles/graph_api.py; here is the expression for
//! each name. Moved elements and whole numbers must be equal, computed floats within 2e-5.

use std::collections::BTreeSet;

use aether_ir::DType;
use aether_runtime::graph::*;
use serde_json::Value;

type Expression = fn(&Graph, &[Tensor]) -> Vec<Tensor>;

const TOLERANCE: f64 = 2e-5;

fn one(t: Tensor) -> Vec<Tensor> {
    vec![t]
}

fn two((a, b): (Tensor, Tensor)) -> Vec<Tensor> {
    vec![a, b]
}

#[rustfmt::skip]
const EXPRESSIONS: &[(&str, Expression)] = &[
    ("neg", |_, x| one(-&x[0])),
    ("abs", |_, x| one(x[0].abs())),
    ("sign", |_, x| one(x[0].sign())),
    ("exp", |_, x| one(x[0].exp())),
    ("sin", |_, x| one(x[0].sin())),
    ("cos", |_, x| one(x[0].cos())),
    ("tanh", |_, x| one(x[0].tanh())),
    ("sigmoid", |_, x| one(x[0].sigmoid())),
    ("relu", |_, x| one(x[0].relu())),
    ("gelu", |_, x| one(x[0].gelu())),
    ("gelu_tanh", |_, x| one(x[0].gelu_tanh())),
    ("silu", |_, x| one(x[0].silu())),
    ("erf", |_, x| one(x[0].erf())),
    ("floor", |_, x| one(x[0].floor())),
    ("ceil", |_, x| one(x[0].ceil())),
    ("round", |_, x| one(x[0].round())),
    ("square", |_, x| one(x[0].square())),
    ("log", |_, x| one(x[0].log())),
    ("sqrt", |_, x| one(x[0].sqrt())),
    ("rsqrt", |_, x| one(x[0].rsqrt())),
    ("recip", |_, x| one(x[0].recip())),
    ("pow_number", |_, x| one(x[0].pow(1.5))),
    ("clamp", |_, x| one(x[0].clamp(-1.0, 2.0))),
    ("add", |_, x| one(&x[0] + &x[1])),
    ("sub", |_, x| one(&x[0] - &x[1])),
    ("mul", |_, x| one(&x[0] * &x[1])),
    ("div", |_, x| one(&x[0] / &x[1])),
    ("maximum", |_, x| one(x[0].maximum(&x[1]))),
    ("minimum", |_, x| one(x[0].minimum(&x[1]))),
    ("pow", |_, x| one(x[0].pow(&x[1]))),
    ("eq", |_, x| one(x[0].eq(&x[1]))),
    ("ne", |_, x| one(x[0].ne(&x[1]))),
    ("lt", |_, x| one(x[0].lt(&x[1]))),
    ("le", |_, x| one(x[0].le(&x[1]))),
    ("gt", |_, x| one(x[0].gt(&x[1]))),
    ("ge", |_, x| one(x[0].ge(&x[1]))),
    ("and", |_, x| one(x[0].and(&x[1]))),
    ("or", |_, x| one(x[0].or(&x[1]))),
    ("not", |_, x| one(!&x[0])),
    ("select", |_, x| one(x[0].select(&x[1], &x[2]))),
    ("select_number", |_, x| one(x[0].select(&x[1], 7.0))),
    ("int_div", |_, x| one(&x[0] / &x[1])),
    ("cast_int", |_, x| one(x[0].cast(DType::I32))),
    ("cast_bool", |_, x| one(x[0].cast(DType::Bool))),
    ("sum_last", |_, x| one(x[0].sum(-1))),
    ("sum_two_kept", |_, x| one(x[0].sum(keepdims([0, 2])))),
    ("sum_all", |_, x| one(x[0].sum_all())),
    ("mean_last", |_, x| one(x[0].mean(-1))),
    ("mean_two_kept", |_, x| one(x[0].mean(keepdims([0, 2])))),
    ("mean_all", |_, x| one(x[0].mean_all())),
    ("max_last", |_, x| one(x[0].max(-1))),
    ("max_two_kept", |_, x| one(x[0].max(keepdims([0, 2])))),
    ("max_all", |_, x| one(x[0].max(..))),
    ("min_last", |_, x| one(x[0].min(-1))),
    ("min_two_kept", |_, x| one(x[0].min(keepdims([0, 2])))),
    ("min_all", |_, x| one(x[0].min(..))),
    ("prod_last", |_, x| one(x[0].prod(-1))),
    ("prod_two_kept", |_, x| one(x[0].prod(keepdims([0, 2])))),
    ("prod_all", |_, x| one(x[0].prod(..))),
    ("var", |_, x| one(x[0].var([1, 2], 0.0))),
    ("var_unbiased", |_, x| one(x[0].var(keepdims(0), 1.0))),
    ("logsumexp", |_, x| one(x[0].logsumexp(1))),
    ("logsumexp_far", |_, x| one(x[0].logsumexp(-1))),
    ("argmax", |_, x| one(x[0].argmax(1))),
    ("argmin", |_, x| one(x[0].argmin(2))),
    ("argmin_int", |_, x| one(x[0].argmin(1))),
    ("argmin_u8", |_, x| one(x[0].argmin(1))),
    ("sum_int", |_, x| one(x[0].sum(0))),
    ("sum_empty", |_, x| one(x[0].sum(0))),
    ("cumsum", |_, x| one(x[0].cumsum(0))),
    ("sort", |_, x| two(x[0].sort(1, false))),
    ("sort_down", |_, x| two(x[0].sort(-1, true))),
    ("top_k", |_, x| two(x[0].top_k(2, -1))),
    ("top_k_first_axis", |_, x| two(x[0].top_k(1, 0))),
    ("matmul", |_, x| one(x[0].matmul(&x[1]))),
    ("matmul_batch", |_, x| one(x[0].matmul(&x[1]))),
    ("matmul_vector_right", |_, x| one(x[0].matmul(&x[1]))),
    ("matmul_vector_left", |_, x| one(x[0].matmul(&x[1]))),
    ("matmul_dot", |_, x| one(x[0].matmul(&x[1]))),
    ("linear", |_, x| one(x[0].linear(&x[1]) + &x[2])),
    ("conv1d", |_, x| {
        let conv = Conv { stride: [2], padding: [(1, 2)], dilation: [2], groups: 2 };
        one(x[0].conv1d(&x[1], conv))
    }),
    ("conv2d", |_, x| one(x[0].conv2d(&x[1], Conv::default()))),
    ("conv2d_options", |_, x| {
        let conv = Conv { stride: [2, 1], padding: [(1, 1), (0, 1)], dilation: [1, 2], groups: 1 };
        one(x[0].conv2d(&x[1], conv))
    }),
    ("conv2d_depthwise", |_, x| one(x[0].conv2d(&x[1], Conv { groups: 4, ..Conv::padded(1) }))),
    ("max_pool2d", |_, x| {
        let pool = Pool { window: [2, 3], stride: [2, 1], padding: [(0, 1), (1, 1)] };
        one(x[0].max_pool2d(pool))
    }),
    ("avg_pool2d", |_, x| {
        one(x[0].avg_pool2d(Pool { padding: [(0, 0), (1, 0)], ..Pool::tiles([2, 2]) }))
    }),
    ("max_pool1d", |_, x| one(x[0].max_pool1d(Pool::tiles([2])))),
    ("avg_pool1d", |_, x| {
        one(x[0].avg_pool1d(Pool { window: [3], stride: [1], padding: [(1, 1)] }))
    }),
    ("softmax", |_, x| one(x[0].softmax())),
    ("softmax_along", |_, x| one(x[0].softmax_along(1))),
    ("log_softmax", |_, x| one(x[0].log_softmax())),
    ("log_softmax_along", |_, x| one(x[0].log_softmax_along(0))),
    ("layer_norm", |_, x| one(x[0].layer_norm(&x[1], &x[2], 1e-5))),
    ("rms_norm", |_, x| one(x[0].rms_norm(&x[1], 1e-6))),
    ("group_norm", |_, x| one(x[0].group_norm(3, &x[1], &x[2], 1e-5))),
    ("cross_entropy", |_, x| one(x[0].cross_entropy(&x[1]))),
    ("reshape", |_, x| one(x[0].reshape([4, -1]))),
    ("flatten", |_, x| one(x[0].flatten())),
    ("transpose", |_, x| one(x[0].transpose(0, 2))),
    ("permute", |_, x| one(x[0].permute([2, 0, 1]))),
    ("slice", |_, x| one(x[0].slice(1, 1..))),
    ("slice_negative", |_, x| one(x[0].slice(-1, -3..-1))),
    ("slice_beyond", |_, x| one(x[0].slice(2, 2..99))),
    ("slice_step", |_, x| one(x[0].slice_step(-1, 1.., 2))),
    ("slice_back", |_, x| one(x[0].slice_step(-1, .., -2))),
    ("index", |_, x| one(x[0].index(1, -1))),
    ("concat", |_, x| one(Tensor::concat(&[&x[0], &x[1], &x[2]], 1))),
    ("stack", |_, x| one(Tensor::stack(&[&x[0], &x[1]], -1))),
    ("split", |_, x| x[0].split(-1, [1, 3])),
    ("pad", |_, x| one(x[0].pad([(0, 0), (1, 0), (0, 2)], 1.5))),
    ("squeeze", |_, x| one(x[0].squeeze(1))),
    ("squeeze_all", |_, x| one(x[0].squeeze(..))),
    ("unsqueeze", |_, x| one(x[0].unsqueeze(2))),
    ("expand", |_, x| one(x[0].expand([3, -1, 5, 4]))),
    ("flip", |_, x| one(x[0].flip([0, 2]))),
    ("tril", |_, x| one(x[0].tril(1))),
    ("triu", |_, x| one(x[0].triu(-1))),
    ("iota", |g, _| one(g.iota(DType::I32, [3, 2], 0))),
    ("take", |_, x| one(x[0].take(&x[1], 0))),
    ("index_select", |_, x| one(x[0].index_select(1, &x[1]))),
    ("gather", |_, x| one(x[0].gather(1, &x[1]))),
    ("scatter_add", |_, x| one(x[0].scatter_add(1, &x[1], &x[2]))),
    ("index_add", |_, x| one(x[0].index_add(0, &x[1], &x[2]))),
    ("one_hot", |_, x| one(x[0].one_hot(3, DType::F32))),
    ("attention", |_, x| one(x[0].attention(&x[1], &x[2], Attention::default()))),
    ("attention_causal", |_, x| {
        one(x[0].attention(&x[1], &x[2], Attention { causal: true, ..Attention::default() }))
    }),
    ("attention_cap", |_, x| {
        let options = Attention { scale: Some(1.5), soft_cap: Some(2.0), causal: false };
        one(x[0].attention(&x[1], &x[2], options))
    }),
    ("rope_halves", |_, x| one(x[0].rope(&x[1], 100.0, RopePairs::Halves))),
    ("rope_neighbours", |_, x| one(x[0].rope(&x[1], 100.0, RopePairs::Neighbours))),
    ("rope_batch", |_, x| one(x[0].rope(&x[1], 10.0, RopePairs::Halves))),
    ("split_heads", |_, x| one(x[0].split_heads(2))),
    ("merge_heads", |_, x| one(x[0].merge_heads())),
];

fn number(v: &Value) -> f64 {
    match v {
        Value::Bool(b) => f64::from(u8::from(*b)),
        Value::String(s) => s.parse().unwrap(),
        v => v.as_f64().unwrap(),
    }
}

/// A tensor of the data file.
fn array(t: &Value) -> Array {
    let shape: Vec<usize> =
        t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    let data: Vec<f64> = t["data"].as_array().unwrap().iter().map(number).collect();
    macro_rules! of {
        ($t:ty) => {
            Array::new(&data.iter().map(|&v| v as $t).collect::<Vec<_>>(), shape).unwrap()
        };
    }
    match t["dtype"].as_str().unwrap() {
        "f32" => of!(f32),
        "i32" => of!(i32),
        "i64" => of!(i64),
        "i8" => of!(i8),
        "u8" => of!(u8),
        "bool" => Array::new(&data.iter().map(|&v| v != 0.0).collect::<Vec<_>>(), shape).unwrap(),
        other => panic!("{other}"),
    }
}

fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("data/graph_api.json")).unwrap()
}

fn values(a: &Array) -> Vec<f64> {
    a.as_tensor().to_f64_vec().unwrap()
}

#[test]
fn every_case_has_an_expression_and_every_expression_a_case() {
    let cases = cases();
    let with_case: BTreeSet<&str> = cases.iter().map(|c| c["name"].as_str().unwrap()).collect();
    let with_expression: BTreeSet<&str> = EXPRESSIONS.iter().map(|(name, _)| *name).collect();
    assert_eq!(with_case, with_expression);
    assert_eq!(EXPRESSIONS.len(), cases.len());
}

#[test]
fn operations_give_what_numpy_gives() {
    let mut wrong = Vec::new();
    for case in cases() {
        let name = case["name"].as_str().unwrap();
        let (_, expression) = EXPRESSIONS.iter().find(|(n, _)| *n == name).unwrap();
        let g = Graph::new();
        let inputs: Vec<Tensor> =
            case["inputs"].as_array().unwrap().iter().map(|t| g.array(&array(t))).collect();
        let outputs = expression(&g, &inputs);
        let want: Vec<Array> = case["outputs"].as_array().unwrap().iter().map(array).collect();
        let compiled = g.compile(&outputs.iter().collect::<Vec<_>>(), Device::Cpu);
        let found = match compiled.and_then(|mut c| c.run(&[])) {
            Ok(found) => found,
            Err(e) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        };
        assert_eq!(found.len(), want.len(), "{name}");
        for (f, w) in found.iter().zip(&want) {
            let same = |(f, w): (&f64, &f64)| {
                f == w
                    || (f.is_nan() && w.is_nan())
                    || (f.is_finite() && (f - w).abs() <= TOLERANCE * w.abs().max(1.0))
            };
            let fits = f.ty() == w.ty() && values(f).iter().zip(&values(w)).all(same);
            if !fits {
                wrong.push(format!("{name}: found {f:?}, expected {w:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
