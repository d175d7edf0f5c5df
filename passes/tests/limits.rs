//! Rewrites limited in number, explained, repeated; cost figures.

use aether_ir::{Module, parse_and_verify, text::print};
use aether_passes::{DEFAULT_PIPELINE, GenericTarget, PassCtx, Pipeline, cost, simplify};

fn layer() -> Module {
    let text = include_str!("../../tests/ir/fuse_layer.aet");
    parse_and_verify(text.split("// expect:").next().unwrap()).unwrap()
}

/// The module after `fuse` with at most `max` rewrites, and the rules applied.
fn fused(max: Option<u64>) -> (String, Vec<&'static str>) {
    let mut module = layer();
    let mut ctx = PassCtx::new(&GenericTarget);
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
    let ctx = PassCtx::new(&GenericTarget);
    let twice = parse_and_verify(&text(
        "    %a = call @f %x : tensor<8xf32>\n    %b = call @f %a : tensor<8xf32>\n",
    ))
    .unwrap();
    let total = cost::of_module(&twice, &ctx);
    assert_eq!((total.bytes, total.launches), (2.0 * 64.0, 2.0));
    assert_eq!(cost::of_func(&twice, &ctx, "f").bytes, 64.0);
    assert_eq!(cost::of_func(&twice, &ctx, "nothing").bytes, 0.0);
}

fn file(text: &str) -> Module {
    parse_and_verify(text.split("// expect:").next().unwrap()).unwrap()
}

#[test]
fn a_limit_holds_for_the_whole_pipeline() {
    let module = file(include_str!("../../tests/ir/simplify_arithmetic.aet"));
    let run = |max: Option<u64>| {
        let mut module = module.clone();
        let mut ctx = PassCtx::new(&GenericTarget);
        ctx.max_rewrites = max;
        Pipeline::parse(DEFAULT_PIPELINE).unwrap().run(&mut module, &ctx, &mut ()).unwrap();
        (print(&module), ctx.rewrites())
    };
    let (_, all) = run(None);
    assert!(all.len() > 10, "{all:?}");
    for n in 0..=all.len() {
        let (_, applied) = run(Some(n as u64));
        assert_eq!(applied, all[..n]);
    }
}

fn explained(module: &Module, value: &str) -> String {
    let ctx = PassCtx::new(&GenericTarget);
    match simplify::explain(module, &ctx, "main", value) {
        Ok(steps) => steps.iter().map(|s| format!("{s}\n")).collect(),
        Err(e) => format!("{e}\n"),
    }
}

#[test]
fn rewrites_are_explained() {
    let movement = file(include_str!("../../tests/ir/simplify_movement.aet"));
    let norm = file(include_str!("../../tests/ir/simplify_norm.aet"));
    let mut out = String::new();
    for (module, values) in
        [(&movement, &["%a", "%b", "c", "%x", "%nothing"][..]), (&norm, &["%soft", "%rms"])]
    {
        for value in values {
            out += &format!("{value}\n{}\n", explained(module, value));
        }
    }
    insta::assert_snapshot!(out);
    assert!(out.contains("transpose-transpose") && out.contains("[softmax"));
}

/// Hash maps are seeded anew each time, so their order would show.
#[test]
fn output_is_the_same_every_time() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/ir");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    // Those about the command itself may hold several modules, or wrong ones.
    let about_passes =
        |p: &std::path::PathBuf| !p.file_name().unwrap().to_string_lossy().starts_with("opt_");
    for path in paths.filter(about_passes) {
        let module = file(&std::fs::read_to_string(path).unwrap());
        let run = || {
            let mut module = module.clone();
            let ctx = PassCtx::new(&GenericTarget);
            Pipeline::parse(DEFAULT_PIPELINE).unwrap().run(&mut module, &ctx, &mut ()).unwrap();
            print(&module)
        };
        let first = run();
        assert!((1..20).all(|_| run() == first));
    }
}
