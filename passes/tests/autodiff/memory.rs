//! What a gradient keeps alive: the memory plan of a twelve-layer network.

use aether_ir::{Module, parse_and_verify};
use aether_passes::{GenericTarget, PassCtx, Pipeline, autodiff, plan, plan_check};

/// Residual layers x + gelu(x · u) · d with 64 rows of 256, widened to 1024.
fn network(layers: usize, attrs: &str) -> Module {
    let mut body = String::new();
    for i in 1..=layers {
        let x = i - 1;
        body += &format!("    %h{i} = call @layer %h{x}, %u, %d{attrs} : tensor<64x256xf32>\n");
    }
    let text = format!(
        "module @m {{
  func @layer(%x: tensor<64x256xf32>, %u: tensor<256x1024xf32>, %d: tensor<1024x256xf32>) -> tensor<64x256xf32> {{
    %a = matmul %x, %u : tensor<64x1024xf32>
    %g = gelu %a : tensor<64x1024xf32>
    %b = matmul %g, %d : tensor<64x256xf32>
    %y = add %x, %b : tensor<64x256xf32>
    return %y
  }}
  func @main(%h0: tensor<64x256xf32>, %u: tensor<256x1024xf32>, %d: tensor<1024x256xf32>) -> tensor<f32> {{
{body}    %q = mul %h{layers}, %h{layers} : tensor<64x256xf32>
    %out = reduce_mean %q {{axes = [0, 1]}} : tensor<f32>
    return %out
  }}
}}
"
    );
    parse_and_verify(&text).unwrap()
}

/// Frame of the gradient in bytes, and its lower bound.
fn peak(layers: usize, attrs: &str) -> (u64, u64) {
    let mut module = network(layers, attrs);
    autodiff::gradient(&mut module, "main", &["u", "d"]).unwrap();
    let pipeline = Pipeline::parse("cse,fold,dce").unwrap();
    pipeline.run(&mut module, &PassCtx::new(&GenericTarget), &mut ()).unwrap();
    let made = plan(&module, &GenericTarget).unwrap();
    plan_check::check(&module, &made, &GenericTarget).unwrap();
    let plan = &made.funcs["main.grad"];
    (plan.frame_bytes, plan.lower_bound)
}

#[test]
fn checkpoints_keep_the_operands_of_layers_only() {
    let row = 64 * 256 * 4;
    let [plain, kept] = ["", " {checkpoint = true}"].map(|attrs| {
        let [(six, _), (twelve, bound)] = [6, 12].map(|n| peak(n, attrs));
        assert!(twelve as f64 <= 1.10 * bound as f64, "{twelve} bytes, at least {bound}");
        (twelve, (twelve - six) / 6)
    });
    // A layer keeps its input and the four times wider values before and after the activation.
    assert_eq!(plain.1, 9 * row);
    assert_eq!(kept.1, row);
    assert!(kept.0 * 2 < plain.0, "{} bytes with checkpoints, {} without", kept.0, plain.0);
}
