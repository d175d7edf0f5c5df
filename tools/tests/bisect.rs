//! `aether-opt --bisect` finds what was broken on purpose: a rule among sound ones, a pass without
//! rules, a pass that panics, a kernel. The broken passes and the broken device come in through
//! [`Env`], as any pass or device would; nothing of them is in the command.

use aether_ir::{Attrs, Inst, Module, Op, Tensor};
use aether_passes::{Pass, PassCtx, PassError, PassStats, Rule};
use aether_tools::opt::{self, Cli, CpuDevice, Device, Env, Output};
use clap::Parser;

/// Peepholes over single instructions, one of them wrong.
struct Peephole;

const RULES: &[Rule] = &[
    Rule { name: "neg-neg", doc: "-(-x) becomes x." },
    Rule { name: "sub-to-add", doc: "Wrong on purpose: x - y becomes x + y." },
    Rule { name: "mul-commute", doc: "x * y becomes y * x, once." },
];

impl Pass for Peephole {
    fn name(&self) -> &'static str {
        "peephole"
    }

    fn doc(&self) -> &'static str {
        "Three rules, one of them wrong."
    }

    fn rules(&self) -> &'static [Rule] {
        RULES
    }

    fn run(&self, module: &mut Module, ctx: &PassCtx) -> Result<PassStats, PassError> {
        let mut stats = PassStats::default();
        for func in module.funcs.values_mut() {
            let defs = func.definitions();
            for i in 0..func.body.len() {
                let inst = &func.body[i];
                let rule = match inst.op {
                    Op::Neg => "neg-neg",
                    Op::Sub => "sub-to-add",
                    Op::Mul if inst.operands[0].value > inst.operands[1].value => "mul-commute",
                    _ => continue,
                };
                let inner = inst.inputs().next().and_then(|v| defs[v.index()]);
                let inner: Option<Inst> = inner.map(|at| func.body[at].clone());
                if rule == "neg-neg" && inner.as_ref().is_none_or(|inst| inst.op != Op::Neg) {
                    continue;
                }
                if !ctx.enabled(rule) || !ctx.take_rewrite(rule) {
                    continue;
                }
                let inst = &mut func.body[i];
                match rule {
                    "neg-neg" => {
                        (inst.op, inst.operands) = (Op::Reshape, inner.unwrap().operands);
                        inst.attrs = Attrs::new();
                    }
                    "sub-to-add" => inst.op = Op::Add,
                    _ => inst.operands.swap(0, 1),
                }
                stats.count(rule, 1);
            }
        }
        Ok(stats)
    }
}

/// Without rules: rounds every `splat`.
struct Rounds;

impl Pass for Rounds {
    fn name(&self) -> &'static str {
        "rounds"
    }

    fn doc(&self) -> &'static str {
        "Wrong on purpose: rounds the value of splats."
    }

    fn run(&self, module: &mut Module, _: &PassCtx) -> Result<PassStats, PassError> {
        let mut stats = PassStats::default();
        for inst in module.funcs.values_mut().flat_map(|f| &mut f.body) {
            let value = inst.attrs.float("value", 0.0);
            if inst.op == Op::Splat && value != value.round() {
                inst.attrs = Attrs::new().with("value", value.round());
                stats.count("rounded", 1);
            }
        }
        Ok(stats)
    }
}

/// Panics at `tanh`.
struct Panics;

impl Pass for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn doc(&self) -> &'static str {
        "Panics at tanh."
    }

    fn run(&self, module: &mut Module, _: &PassCtx) -> Result<PassStats, PassError> {
        let mut ops = module.funcs.values().flat_map(|f| &f.body).map(|inst| inst.op);
        assert!(ops.all(|op| op != Op::Tanh), "tanh is not thought of");
        Ok(PassStats::default())
    }
}

/// The CPU with a `relu` that lets through what is above -0.5.
struct Leaky;

impl Device for Leaky {
    fn run(&self, module: &Module, func: &str, inputs: Vec<Tensor>) -> anyhow::Result<Vec<Tensor>> {
        let mut wrong = module.clone();
        for f in wrong.funcs.values_mut() {
            for inst in f.body.iter_mut().filter(|inst| inst.op == Op::Relu) {
                // No other kernel of the modules here is near to relu.
                inst.op = Op::Silu;
            }
        }
        CpuDevice { isa: aether_codegen_cpu::Isa::Scalar, threads: 1 }.run(&wrong, func, inputs)
    }
}

const MODULE: &str = "module @big {
  sym s in 1..=64
  func @layer(%x: tensor<[s]x48xf32>, %w: tensor<48x48xf32>) -> tensor<[s]x48xf32> {
    %0 = matmul %x, %w {transpose_b = true} : tensor<[s]x48xf32>
    %1 = relu %0 : tensor<[s]x48xf32>
    %2 = neg %1 : tensor<[s]x48xf32>
    %3 = neg %2 : tensor<[s]x48xf32>
    %4 = mul %3, %x : tensor<[s]x48xf32>
    %5 = exp %4 : tensor<[s]x48xf32>
    %6 = sub %5, %x : tensor<[s]x48xf32>
    %7 = mul %6, %3 : tensor<[s]x48xf32>
    return %7
  }
  func @main(%x: tensor<[s]x48xf32>, %w: tensor<48x48xf32>) -> (tensor<[s]xf32>, tensor<[s]x48xf32>) {
    %0 = call @layer %x, %w : tensor<[s]x48xf32>
    %1 = softmax %0 {axis = -1} : tensor<[s]x48xf32>
    %2 = call @layer %1, %w : tensor<[s]x48xf32>
    %3 = splat {value = 0.25} : tensor<[s]x48xf32>
    %4 = mul %2, %3 : tensor<[s]x48xf32>
    %5 = reduce_sum %4 {axes = [1]} : tensor<[s]xf32>
    %6 = tanh %1 : tensor<[s]x48xf32>
    return %5, %6
  }
}
";

fn run(source: &str, args: &[&str], device: Option<&dyn Device>) -> anyhow::Result<Output> {
    let usual = aether_passes::passes().iter().copied();
    let known: Vec<&'static dyn Pass> =
        usual.chain([&Peephole as &dyn Pass, &Rounds, &Panics]).collect();
    let cli = Cli::try_parse_from([&["aether-opt", "big.aet"], args].concat())?;
    opt::run(&cli, &Env { passes: &known, device, source: Some(source) })
}

/// Bisects, checks what is named and how small it became, and that the result alone gives the
/// same finding.
fn finds(
    pipeline: &str,
    device: Option<&dyn Device>,
    named: &[&str],
    op: &str,
    instructions: usize,
) {
    let args = ["--bisect", "--pipeline", pipeline, "--input", "random:3"];
    let found = run(MODULE, &args, device).unwrap();
    assert!(!found.ok, "nothing was found");
    for part in named {
        assert!(found.stderr.contains(part), "`{part}` is not in\n{}", found.stderr);
    }
    let small = aether_ir::parse_and_verify(&found.stdout).expect("what is written reads back");
    let ops: Vec<Op> = small.funcs.values().flat_map(|f| &f.body).map(|inst| inst.op).collect();
    assert!(ops.len() <= instructions, "not small:\n{}", found.stdout);
    assert!(ops.iter().any(|o| o.name() == op), "no {op} in\n{}", found.stdout);
    let numbers = small.funcs.values().flat_map(|f| &f.values);
    let elements: u64 = numbers.filter_map(|v| v.ty.shape.numel().as_const()).sum();
    assert!(elements <= 16, "large shapes in\n{}", found.stdout);

    let again = run(&found.stdout, &[], device).unwrap();
    assert!(!again.ok && again.stderr.contains(named[0]), "{}", again.stderr);
}

#[test]
fn a_wrong_rule_is_named_and_shrunk() {
    let named = [
        "pass `peephole`",
        "(step 3 of 4) is the first to go wrong",
        "rule `sub-to-add` does it in rewrite 3 of 4",
    ];
    finds("cse,fold,peephole,dce", None, &named, "sub", 1);
}

#[test]
fn a_wrong_pass_without_rules_is_named_and_shrunk() {
    finds("rounds,cse", None, &["pass `rounds`", "(step 1 of 2)"], "splat", 1);
}

#[test]
fn a_panic_is_a_finding() {
    let named = ["pass `panics`", "panicked: tanh is not thought of"];
    finds("cse,panics", None, &named, "tanh", 1);
}

#[test]
fn a_wrong_kernel_is_named_and_shrunk() {
    let named = ["kernel of `relu`", "@main, instruction 0, @layer, instruction 1"];
    finds("cse", Some(&Leaky), &named, "relu", 1);
}

#[test]
fn a_sound_pipeline_is_left_in_peace() {
    let output = run(MODULE, &["--bisect", "--pipeline", "default"], None).unwrap();
    assert!(output.ok && output.stdout.is_empty(), "{}", output.stderr);
    assert!(output.stderr.contains("no pass and no kernel"), "{}", output.stderr);
    let rules = ["--bisect", "--pipeline", "peephole", "--disable-rule", "sub-to-add"];
    assert!(run(MODULE, &rules, None).unwrap().ok);
}

#[test]
fn a_failing_pass_leaves_a_file_that_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let args = ["--pipeline", "cse,panics,dce", "--reproducer-dir", path];
    let error = format!("{:#}", run(MODULE, &args, None).unwrap_err());
    assert!(error.contains("pass `panics` panicked: tanh is not thought of"), "{error}");
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    let file = files.into_iter().next().expect("a reproducer").unwrap().path();
    assert!(error.contains(file.to_str().unwrap()), "{error}");

    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("// pass `panics` panicked"), "{text}");
    // Alone, as `aether-opt FILE` runs it: no flags but the file.
    let known: Vec<&'static dyn Pass> = vec![&Panics];
    let cli = Cli::try_parse_from(["aether-opt", file.to_str().unwrap()]).unwrap();
    let alone = opt::run(&cli, &Env { passes: &known, ..Env::default() }).unwrap_err();
    assert!(alone.to_string().contains("tanh is not thought of"), "{alone}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "it is one already");
}
