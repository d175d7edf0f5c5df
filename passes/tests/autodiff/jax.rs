//! Values and gradients of whole functions against JAX, from `scripts/oracles/autodiff.py`.

use aether_ir::{Interpreter, Tensor, TensorType, parse_and_verify};
use aether_passes::autodiff;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    body: Vec<String>,
    params: Vec<Param>,
    value: Number,
    grads: Vec<Vec<Number>>,
}

#[derive(Deserialize)]
struct Param {
    name: String,
    #[serde(rename = "type")]
    ty: String,
    values: Vec<Number>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    /// `inf`, `-inf` or `nan`.
    Named(String),
}

impl Number {
    fn value(&self) -> f64 {
        match self {
            Number::Finite(v) => *v,
            Number::Named(name) => name.parse().unwrap(),
        }
    }
}

/// What both sides may differ by: the order of sums.
fn close(found: f64, want: f64) -> bool {
    found == want
        || (found.is_nan() && want.is_nan())
        || (found - want).abs() <= 1e-10 + 1e-9 * want.abs()
}

fn argument(ty: &TensorType, values: &[Number]) -> Tensor {
    let shape: Vec<usize> = ty.shape.as_const().unwrap().iter().map(|&d| d as usize).collect();
    let values: Vec<f64> = values.iter().map(Number::value).collect();
    Tensor::from_f64(ty.dtype, &shape, &values).unwrap()
}

#[test]
fn functions_have_the_values_and_gradients_of_jax() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../data/autodiff.json")).unwrap();
    assert!(cases.len() >= 50);
    for case in cases {
        let params: Vec<String> =
            case.params.iter().map(|p| format!("%{}: {}", p.name, p.ty)).collect();
        let text = format!(
            "module @m {{\n  func @f({}) -> tensor<f64> {{\n{}\n    return %out\n  }}\n}}\n",
            params.join(", "),
            case.body.join("\n")
        );
        let mut module = parse_and_verify(&text).unwrap_or_else(|d| {
            panic!("{}", aether_ir::diag::render(&d, &text, &case.name));
        });
        let wrt: Vec<&str> = case
            .params
            .iter()
            .filter(|p| p.ty.ends_with("f64>"))
            .map(|p| p.name.as_str())
            .collect();
        let name = autodiff::gradient(&mut module, "f", &wrt)
            .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        aether_ir::verify(&module)
            .unwrap_or_else(|d| panic!("{}", aether_ir::text::explain(&module, &d)));
        let func = &module.funcs[&name];
        let types = func.params.iter().map(|&p| func.ty(p));
        let args = types.zip(&case.params).map(|(ty, p)| argument(ty, &p.values)).collect();
        let results = Interpreter::new(&module).run(&name, args).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(results.len(), 1 + wrt.len(), "{}", case.name);
        let mut want = vec![vec![case.value]];
        want.extend(case.grads);
        for (i, (found, want)) in results.iter().zip(&want).enumerate() {
            let found = found.to_f64_vec().unwrap();
            let want: Vec<f64> = want.iter().map(Number::value).collect();
            let same =
                found.len() == want.len() && found.iter().zip(&want).all(|(f, w)| close(*f, *w));
            assert!(same, "{}, result {i}: {found:?}, expected {want:?}", case.name);
        }
    }
}
