//! Gradients on the CPU: functions written as text, differentiated, optimised, compiled and run in
//! f32, against the values that JAX gives in f64 (`scripts/oracles/autodiff.py`).

use std::sync::Arc;

use aether_ir::{Module, Tensor, parse_and_verify};
use aether_passes::autodiff;
use aether_runtime::{Executable, Files, Options, run_executable};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    body: Vec<String>,
    params: Vec<Param>,
    value: serde_json::Value,
    grads: Vec<Vec<serde_json::Value>>,
}

#[derive(Deserialize)]
struct Param {
    name: String,
    #[serde(rename = "type")]
    ty: String,
    values: Vec<serde_json::Value>,
}

/// A number, or the name of one that JSON does not have.
fn number(v: &serde_json::Value) -> f64 {
    v.as_f64().unwrap_or_else(|| v.as_str().unwrap().parse().unwrap())
}

fn numbers(values: &[serde_json::Value]) -> Vec<f64> {
    values.iter().map(number).collect()
}

/// The case in f32, with the gradient with respect to every float parameter.
fn module(case: &Case) -> (Module, Arc<str>) {
    let params: Vec<String> =
        case.params.iter().map(|p| format!("%{}: {}", p.name, p.ty)).collect();
    let text = format!(
        "module @m {{\n  func @f({}) -> tensor<f64> {{\n{}\n    return %out\n  }}\n}}\n",
        params.join(", "),
        case.body.join("\n")
    );
    let mut module = parse_and_verify(&text.replace("f64>", "f32>"))
        .unwrap_or_else(|d| panic!("{}", aether_ir::diag::render(&d, &text, &case.name)));
    let floats = case.params.iter().filter(|p| p.ty.ends_with("f64>"));
    let wrt: Vec<&str> = floats.map(|p| p.name.as_str()).collect();
    let name = autodiff::gradient(&mut module, "f", &wrt).unwrap_or_else(|e| panic!("{e}"));
    (module, name)
}

#[test]
fn compiled_gradients_have_the_values_of_jax() {
    let data = include_str!("../passes/tests/data/autodiff.json");
    let cases: Vec<Case> = serde_json::from_str(data).unwrap();
    for case in cases {
        let (module, name) = module(&case);
        let func = &module.funcs[&name];
        let args = func.params.iter().zip(&case.params).map(|(&p, param)| {
            let ty = func.ty(p);
            let shape: Vec<usize> =
                ty.shape.as_const().unwrap().iter().map(|&d| d as usize).collect();
            Tensor::from_f64(ty.dtype, &shape, &numbers(&param.values)).unwrap()
        });
        let args: Vec<Tensor> = args.collect();
        let options =
            Options { entry: name.to_string(), threads: 2, verify: true, ..Options::default() };
        let exe = Executable::compile(module.clone(), &Files::new(), &options)
            .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let found =
            run_executable(&Arc::new(exe), args).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let mut want = vec![vec![number(&case.value)]];
        want.extend(case.grads.iter().map(|g| numbers(g)));
        assert_eq!(found.len(), want.len(), "{}", case.name);
        for (i, (found, want)) in found.iter().zip(&want).enumerate() {
            let found = found.to_f64_vec().unwrap();
            let finite = want.iter().filter(|v| v.is_finite());
            // The order of sums and the last places of transcendental functions in f32.
            let limit = 1e-6 + 2e-5 * finite.fold(0.0f64, |m, v| m.max(v.abs()));
            let close = |f: f64, w: f64| f == w || (f - w).abs() <= limit;
            let same =
                found.len() == want.len() && found.iter().zip(want).all(|(f, w)| close(*f, *w));
            assert!(same, "{}, result {i}: {found:?}, expected {want:?}", case.name);
        }
    }
}
