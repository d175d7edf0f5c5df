//! Rewrites limited in number, and cost figures.

mod common;

use aether_ir::{Module, parse_and_verify, text::print};
use aether_passes::{PassCtx, Pipeline, cost};
use common::TestTarget;

fn layer() -> Module {
    let text = include_str!("filetests/fuse_layer.aet");
    parse_and_verify(text.split("// expect:").next().unwrap()).unwrap()
}

/// The module after `fuse` with at most `max` rewrites, and the rules applied.
fn fused(max: Option<u64>) -> (String, Vec<&'static str>) {
    let mut module = layer();
    let mut ctx = PassCtx::new(&TestTarget);
    ctx.max_rewrites = max;
    Pipeline::parse("fuse,fuse").unwrap().run(&mut module, &ctx, &mut ()).unwrap();
    (print(&module), ctx.rewrites())
}

#[test]
fn a_limit_applies_the_first_rewrites_and_no_more() {
    let (all, rules) = fused(None);
    assert!(rules.len() > 3, "{rules:?}");
    assert_eq!(fused(Some(0)), (print(&layer()), vec![]));
    let mut texts = std::collections::BTreeSet::new();
    for n in 0..=rules.len() {
        let (text, applied) = fused(Some(n as u64));
        assert_eq!(applied, rules[..n]);
        texts.insert(text);
    }
    assert_eq!(texts.len(), rules.len() + 1, "a rewrite changed nothing");
    assert_eq!(fused(Some(1000)).0, all);
}

#[test]
fn calls_cost_what_their_callees_cost() {
    let text = |main: &str| {
        format!(
            "module @m {{\n  func @f(%x: tensor<8xf32>) -> tensor<8xf32> {{\n    \
             %y = exp %x : tensor<8xf32>\n    return %y\n  }}\n  \
             func @main(%x: tensor<8xf32>) -> tensor<8xf32> {{\n{main}    return %b\n  }}\n}}\n"
        )
    };
    let ctx = PassCtx::new(&TestTarget);
    let twice = parse_and_verify(&text(
        "    %a = call @f %x : tensor<8xf32>\n    %b = call @f %a : tensor<8xf32>\n",
    ))
    .unwrap();
    let total = cost::of_module(&twice, &ctx);
    assert_eq!((total.bytes, total.launches), (2.0 * 64.0, 2.0));
    assert_eq!(cost::of_func(&twice, &ctx, "f").bytes, 64.0);
    assert_eq!(cost::of_func(&twice, &ctx, "nothing").bytes, 0.0);
}
