//! Every op, on the oracle's cases and on random operands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aether_ir::tensor::ConcreteType;
use aether_ir::{Attr, Attrs, DType, Op, Tensor, TensorType};
use serde_json::Value;

use super::support::check;

fn float(v: &Value) -> f64 {
    match v.as_str() {
        Some(special) => special.parse().unwrap(),
        None => v.as_f64().unwrap(),
    }
}

fn tensor(v: &Value) -> Tensor {
    let shape = v["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize);
    let shape: Vec<usize> = shape.collect();
    let dtype: DType = v["dtype"].as_str().unwrap().parse().unwrap();
    if let Some(hex) = v["hex"].as_str() {
        let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        return Tensor::new(ConcreteType::new(dtype, shape), bytes).unwrap();
    }
    let values = v["values"].as_array().unwrap();
    if dtype.is_float() {
        let values: Vec<f64> = values.iter().map(float).collect();
        Tensor::from_f64(dtype, &shape, &values).unwrap()
    } else {
        let values: Vec<i64> = values.iter().map(|v| v.as_i64().unwrap()).collect();
        Tensor::from_i64(dtype, &shape, &values).unwrap()
    }
}

fn attrs(v: &Value) -> Attrs {
    v.as_object().unwrap().iter().fold(Attrs::new(), |attrs, (name, value)| {
        let attr = match value {
            Value::Bool(b) => Attr::Bool(*b),
            Value::Number(n) => n.as_i64().map_or_else(|| n.as_f64().unwrap().into(), Attr::Int),
            Value::String(s) => s.as_str().into(),
            list => {
                let list = list.as_array().unwrap().iter();
                Attr::Ints(list.map(|i| i.as_i64().unwrap()).collect())
            }
        };
        attrs.with(name, attr)
    })
}

/// Whether WGSL has no numbers of a type.
fn foreign(t: &Tensor) -> bool {
    matches!(t.dtype(), DType::F64 | DType::I64) || t.dtype().is_quantized()
}

#[test]
fn ops_agree_with_the_oracles_cases() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ir/tests/data/ops.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut seen: BTreeMap<Op, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut refused = BTreeSet::new();
    for case in &cases {
        let list = |name: &str| case[name].as_array().unwrap().iter();
        let packed = list("operands").chain(list("results")).any(|t| t["layout"].is_string());
        let (op, mut attrs): (Op, Attrs) =
            (case["op"].as_str().unwrap().parse().unwrap(), attrs(&case["attrs"]));
        let operands: Vec<Tensor> = list("operands").map(tensor).collect();
        let want: Vec<Tensor> = list("results").map(tensor).collect();
        if packed {
            continue;
        }
        if let (Op::Slice, Some(limits)) = (op, attrs.ints("limits")) {
            // A whole axis is written so when its length is a symbol; here it is a number.
            let whole = |(&limit, &n): (&i64, &usize)| if limit == -1 { n as i64 } else { limit };
            let limits = limits.iter().zip(operands[0].shape()).map(whole).collect::<Vec<_>>();
            attrs = attrs.with("limits", limits);
        }
        let declared: Vec<TensorType> = want.iter().map(|t| t.ty().to_type()).collect();
        match check(op, &attrs, &operands, &declared) {
            Ok(None) => *seen.entry(op).or_default() += 1,
            Ok(Some(why)) => {
                let types: Vec<ConcreteType> = operands.iter().map(Tensor::ty).collect();
                wrong.push(format!("{op} {attrs:?} of {types:?}: {why}"));
            }
            Err(e) => {
                let may = operands.iter().chain(&want).any(foreign);
                if may {
                    refused.insert(op);
                } else {
                    wrong.push(format!("{op}: {e}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen.len() > 50, "{seen:?}, refused {refused:?}");
}
