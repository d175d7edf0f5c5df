//! The cases of single ops that `scripts/oracles/ops.py` made with NumPy, read from
//! `ir/tests/data/ops.json`. Tests of the reference meanings and of the kernels share them.

use std::path::Path;

use aether_ir::tensor::ConcreteType;
use aether_ir::{Attr, Attrs, DType, Layout, Op, Tensor};
use serde_json::Value;

/// One op with its operands and what it must give.
pub struct Case {
    pub op: Op,
    pub attrs: Attrs,
    pub operands: Vec<Tensor>,
    pub results: Vec<Tensor>,
    /// What to call it in a message.
    pub what: String,
}

/// Every case; `repository` is the folder of the whole project.
pub fn cases(repository: &Path) -> Vec<Case> {
    let text = std::fs::read(repository.join("ir/tests/data/ops.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
    let tensors = |v: &Value| v.as_array().unwrap().iter().map(tensor).collect();
    let case = |case: &Value| Case {
        op: case["op"].as_str().unwrap().parse().unwrap(),
        attrs: attrs(&case["attrs"]),
        operands: tensors(&case["operands"]),
        results: tensors(&case["results"]),
        what: format!("{} {} {}", case["op"], case["note"], case["attrs"]),
    };
    cases.iter().map(case).collect()
}

fn float(v: &Value) -> f64 {
    match v.as_str() {
        Some(special) => special.parse().unwrap(),
        None => v.as_f64().unwrap(),
    }
}

fn ty(v: &Value) -> ConcreteType {
    let shape = v["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize);
    let layout = v["layout"].as_str().map_or(Layout::RowMajor, |l| Layout::from_name(l).unwrap());
    let dtype: DType = v["dtype"].as_str().unwrap().parse().unwrap();
    ConcreteType { dtype, shape: shape.collect(), layout }
}

fn tensor(v: &Value) -> Tensor {
    let ty = ty(v);
    if let Some(hex) = v["hex"].as_str() {
        let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        return Tensor::new(ty, bytes).unwrap();
    }
    let values = v["values"].as_array().unwrap();
    if ty.dtype.is_float() {
        let values: Vec<f64> = values.iter().map(float).collect();
        Tensor::from_f64(ty.dtype, &ty.shape, &values).unwrap()
    } else {
        let values: Vec<i64> = values.iter().map(|v| v.as_i64().unwrap()).collect();
        Tensor::from_i64(ty.dtype, &ty.shape, &values).unwrap()
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
