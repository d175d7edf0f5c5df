//! Gradients through calls: callees are differentiated once, checkpoints keep less, and all give
//! the same numbers.

use aether_ir::text::print;
use aether_ir::{Interpreter, Module, Op, Tensor, parse_and_verify};
use aether_passes::autodiff;

/// `layers` calls of one layer function.
fn model(layers: usize, attrs: &str) -> Module {
    let mut body = String::new();
    for i in 1..=layers {
        body += &format!("    %h{i} = call @layer %h{}, %w{attrs} : tensor<2x3xf64>\n", i - 1);
    }
    let text = format!(
        "module @m {{
  func @layer(%x: tensor<2x3xf64>, %w: tensor<3x3xf64>) -> tensor<2x3xf64> {{
    %p = matmul %x, %w : tensor<2x3xf64>
    %t = tanh %p : tensor<2x3xf64>
    %a = call @act %t : tensor<2x3xf64>
    %y = add %a, %x : tensor<2x3xf64>
    return %y
  }}
  func @act(%x: tensor<2x3xf64>) -> tensor<2x3xf64> {{
    %s = sin %x : tensor<2x3xf64>
    %y = mul %s, %s : tensor<2x3xf64>
    return %y
  }}
  func @main(%h0: tensor<2x3xf64>, %w: tensor<3x3xf64>) -> tensor<f64> {{
{body}    %out = reduce_sum %h{layers} {{axes = [0, 1]}} : tensor<f64>
    return %out
  }}
}}
"
    );
    parse_and_verify(&text)
        .unwrap_or_else(|d| panic!("{}", aether_ir::diag::render(&d, &text, "model")))
}

fn gradients(module: &Module, func: &str) -> Vec<Vec<f64>> {
    let values = |n: usize| -> Vec<f64> { (0..n).map(|i| 0.3 - 0.11 * i as f64).collect() };
    let args = vec![
        Tensor::from_f64(aether_ir::DType::F64, &[2, 3], &values(6)).unwrap(),
        Tensor::from_f64(aether_ir::DType::F64, &[3, 3], &values(9)).unwrap(),
    ];
    let results = Interpreter::new(module).run(func, args).unwrap_or_else(|e| panic!("{e}"));
    results.iter().map(|r| r.to_f64_vec().unwrap()).collect()
}

fn verified(module: &Module) {
    aether_ir::verify(module)
        .unwrap_or_else(|d| panic!("{}", aether_ir::text::explain(module, &d)));
}

/// The same model with every call written out.
fn flat(layers: usize) -> Module {
    let mut body = String::new();
    for i in 1..=layers {
        let x = i - 1;
        body += &format!(
            "    %p{i} = matmul %h{x}, %w : tensor<2x3xf64>
    %t{i} = tanh %p{i} : tensor<2x3xf64>
    %s{i} = sin %t{i} : tensor<2x3xf64>
    %a{i} = mul %s{i}, %s{i} : tensor<2x3xf64>
    %h{i} = add %a{i}, %h{x} : tensor<2x3xf64>\n"
        );
    }
    let text = format!(
        "module @m {{
  func @main(%h0: tensor<2x3xf64>, %w: tensor<3x3xf64>) -> tensor<f64> {{
{body}    %out = reduce_sum %h{layers} {{axes = [0, 1]}} : tensor<f64>
    return %out
  }}
}}
"
    );
    parse_and_verify(&text).unwrap()
}

#[test]
fn calls_checkpoints_and_flat_code_agree_to_order_two() {
    let mut found = Vec::new();
    for mut module in [flat(3), model(3, ""), model(3, " {checkpoint = true}")] {
        let first = autodiff::gradient(&mut module, "main", &["h0", "w"]).unwrap();
        verified(&module);
        let numbers = gradients(&module, &first);

        // The gradient of the sum of the gradient's squares.
        let mut f = module.funcs[&first].clone();
        f.name = "squares".into();
        let dw = f.returns[2];
        let mut b = aether_ir::FuncBuilder::resume(f);
        let square = b.op(Op::Mul, &[dw, dw], aether_ir::Attrs::new()).unwrap();
        let axes = aether_ir::Attrs::new().with("axes", vec![0, 1]);
        let sum = b.op(Op::ReduceSum, &[square], axes).unwrap();
        module.add_func(b.finish(&[sum]));
        let second = autodiff::gradient(&mut module, "squares", &["h0", "w"]).unwrap();
        verified(&module);
        found.push((numbers, gradients(&module, &second)));
    }
    for (other, about) in found[1..].iter().zip(["calls", "checkpoints"]) {
        let pairs = [(&other.0, &found[0].0), (&other.1, &found[0].1)];
        for (a, b) in
            pairs.into_iter().flat_map(|(a, b)| a.iter().flatten().zip(b.iter().flatten()))
        {
            assert!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "{about}: {a}, {b}");
        }
    }
}

#[test]
fn code_grows_by_two_calls_a_layer() {
    let size = |layers: usize, attrs: &str| {
        let mut module = model(layers, attrs);
        let name = autodiff::gradient(&mut module, "main", &["h0", "w"]).unwrap();
        let others = module.funcs.iter().filter(|(n, _)| **n != name && &***n != "main");
        let text = others.map(|(n, _)| n.to_string()).collect::<Vec<_>>().join(" ");
        let calls = module.funcs[&name].body.iter().filter(|i| i.op == Op::Call).count();
        (text, calls, print(&module).lines().count())
    };
    for attrs in ["", " {checkpoint = true}"] {
        let [two, four, eight] = [2, 4, 8].map(|n| size(n, attrs));
        assert_eq!(two.0, eight.0);
        assert_eq!([two.1, four.1, eight.1], [4, 8, 16]);
        assert_eq!(eight.2 - four.2, 2 * (four.2 - two.2));
    }
}

#[test]
fn functions_that_are_there_are_not_added_twice() {
    let mut module = model(2, "");
    let first = autodiff::gradient(&mut module, "main", &["w"]).unwrap();
    let before = print(&module);
    assert_eq!(autodiff::gradient(&mut module, "main", &["w"]).unwrap(), first);
    assert_eq!(print(&module), before);
    let other = autodiff::gradient(&mut module, "main", &["h0"]).unwrap();
    assert_eq!((&*first, &*other), ("main.grad", "main.grad.1"));
    verified(&module);
}

#[test]
fn values_keep_their_numbers_when_gradients_are_appended() {
    let mut module = model(2, "");
    let before = module.funcs["main"].clone();
    let mut func = before.clone();
    let output = func.returns[0];
    let between = func.body[0].results[0];
    let wrt = [func.params[1], between, output];
    let gradients = autodiff::append(&mut module, &mut func, output, &wrt).unwrap();
    assert_eq!(gradients.len(), 3);
    assert_eq!(func.values[..before.values.len()], before.values);
    for (old, new) in before.body.iter().zip(&func.body) {
        assert_eq!((old.op, &old.operands), (new.op, &new.operands));
        assert!(new.results.starts_with(&old.results));
    }
    func.returns.extend(&gradients);
    func.result_types.extend(gradients.iter().map(|&g| func.values[g.index()].ty.clone()));
    module.add_func(func);
    verified(&module);
}
