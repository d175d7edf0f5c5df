//! Every rule of the verifier and every kind of error of the text, with the message as it is shown.
//!
//! `tests/verify` and `tests/parse` hold one bad text a file; behind the line `// shown:` stands
//! what the reader sees. `AETHER_BLESS=1 cargo test -p aether-ir --test verify` rewrites that part.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use aether_ir::diag::render;
use aether_ir::text::{explain, parse_and_verify, parse_module};
use aether_ir::{
    Attrs, Const, ConstData, DType, Diagnostic, Func, Inst, Module, Op, TensorType, ValueId, verify,
};

const MARK: &str = "// shown:\n";

fn check_folder(folder: &str, check: fn(&str) -> Result<Module, Vec<Diagnostic>>) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let bless = std::env::var_os("AETHER_BLESS").is_some();
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let (mut all, mut wrong) = (String::new(), Vec::new());
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let (source, expected) = text.split_once(MARK).unwrap_or((&text, ""));
        let Err(diagnostics) = check(source) else {
            wrong.push(format!("{name}: accepted"));
            continue;
        };
        let shown = render(&diagnostics, source, name);
        let commented: String =
            shown.lines().map(|l| format!("// {l}").trim_end().to_owned() + "\n").collect();
        if bless {
            fs::write(&path, format!("{source}{MARK}{commented}")).unwrap();
        } else if expected != commented {
            wrong.push(format!("{name}: expected\n{expected}found\n{commented}"));
        }
        // A rule's file is about that rule and no other.
        if let Some(code) = name.split('-').next().filter(|c| c.starts_with('V')) {
            let about = diagnostics.iter().all(|d| d.code == Some(code));
            if !about {
                wrong.push(format!("{name}: {shown}"));
            }
        }
        all.push_str(&shown);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    all
}

#[test]
fn broken_texts_are_shown_where_they_break() {
    check_folder("parse", parse_module);
}

fn f32s(dims: &[u64]) -> TensorType {
    TensorType::new(DType::F32, dims.iter().copied())
}

fn inst(op: Op, operands: &[u32], results: &[u32]) -> Inst {
    Inst {
        op,
        operands: operands.iter().map(|&v| ValueId(v).into()).collect(),
        attrs: Attrs::new(),
        symbol: None,
        results: results.iter().map(|&v| ValueId(v)).collect(),
        span: 0..0,
    }
}

/// `func @f(%x: tensor<2xf32>) -> tensor<2xf32>` with a body of its own.
fn with_body(values: usize, body: Vec<Inst>, returns: &[u32]) -> Module {
    let mut func = Func::new("f");
    for i in 0..values {
        func.add_value(f32s(&[2]), (i == 0).then(|| "x".into()));
    }
    func.params = vec![ValueId(0)];
    func.result_types = vec![f32s(&[2])];
    func.body = body;
    func.returns = returns.iter().map(|&v| ValueId(v)).collect();
    let mut module = Module::new("m");
    module.add_func(func);
    module
}

/// Modules that no text describes: they come from passes or from serde.
fn unwritable() -> Vec<(&'static str, Module)> {
    let mut renamed = with_body(1, vec![], &[0]);
    renamed.funcs[0].name = "g".into();
    let mut nameless = with_body(1, vec![], &[0]);
    let data = ConstData::Dense(vec![0; 8].into());
    nameless.consts.insert("".into(), Const { ty: f32s(&[2]), data, span: 0..0 });
    let mut keyword = with_body(1, vec![], &[0]);
    keyword.declare_symbol("in", 1, 2);
    let mut orphan = with_body(2, vec![], &[0]);
    orphan.funcs[0].values[1].ty = f32s(&[1; 9]);
    let add = |a, b, r| inst(Op::Add, &[a, b], &[r]);
    vec![
        ("V12", renamed),
        ("V12", nameless),
        ("V01", keyword),
        ("V03", orphan),
        ("V13", with_body(2, vec![add(0, 7, 1)], &[1])),
        ("V13", with_body(1, vec![add(0, 0, 9)], &[0])),
        ("V13", with_body(1, vec![], &[u32::MAX])),
        ("V14", with_body(2, vec![add(0, 0, 1), add(1, 1, 1)], &[1])),
        ("V14", with_body(1, vec![add(0, 0, 0)], &[0])),
        ("V15", with_body(3, vec![add(0, 2, 1)], &[1])),
    ]
}

#[test]
fn every_rule_is_broken_once() {
    let mut shown = check_folder("verify", parse_and_verify);
    let mut snapshot = String::new();
    for (code, module) in unwritable() {
        let diagnostics = verify(&module).unwrap_err();
        assert!(diagnostics.iter().all(|d| d.code == Some(code)), "{code}: {diagnostics:?}");
        snapshot.push_str(&explain(&module, &diagnostics));
        snapshot.push('\n');
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/unwritable.txt");
    if std::env::var_os("AETHER_BLESS").is_some() {
        fs::write(&path, &snapshot).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), snapshot);
    shown.push_str(&snapshot);

    // The header of the verifier lists the rules.
    let header: BTreeSet<&str> = include_str!("../src/verify.rs")
        .lines()
        .filter_map(|l| l.strip_prefix("//! - "))
        .filter_map(|l| l.split(':').next())
        .collect();
    assert!(header.len() > 30);
    let tested: BTreeSet<&str> =
        shown.lines().filter_map(|l| l.strip_prefix("error[")?.split(']').next()).collect();
    assert_eq!(header, tested);
}

#[test]
fn calls_are_limited() {
    // Every function calls the next one twice: 2^n instructions would run.
    let chain = |n: usize, calls: usize| {
        let mut src = "module @m {\n".to_owned();
        for i in 0..n {
            src.push_str(&format!("  func @f{i}() -> () {{\n"));
            for _ in 0..calls {
                src.push_str(&format!("    call @f{}\n", i + 1));
            }
            src.push_str("    return\n  }\n");
        }
        src + &format!("  func @f{n}() -> () {{\n    return\n  }}\n}}\n")
    };
    parse_and_verify(&chain(63, 1)).unwrap();
    parse_and_verify(&chain(20, 2)).unwrap();
    for (n, calls, code) in [(64, 1, "V31"), (22, 2, "V32"), (5000, 1, "V31"), (60, 2, "V32")] {
        let diagnostics = parse_and_verify(&chain(n, calls)).unwrap_err();
        assert!(diagnostics.iter().all(|d| d.code == Some(code)), "{n}: {:?}", diagnostics[0]);
    }
}

#[test]
fn large_modules_are_verified_in_linear_time() {
    let n = 100_000;
    // Many wrong names, many constants, many donations, calls with too few arguments.
    let mut src = "module @m {\n".to_owned();
    for i in 0..n / 4 {
        src.push_str(&format!("  const @c{i} : tensor<1xi8> = dense<[1]>\n"));
    }
    src.push_str("  func @wide(%x: tensor<i8>");
    for i in 0..n / 4 {
        src.push_str(&format!(", %p{i}: tensor<i8>"));
    }
    src.push_str(") -> () {\n    return\n  }\n  func @f(%x: tensor<i8>) -> () {\n");
    for i in 0..n / 4 {
        src.push_str(&format!("    %a{i} = constant @c{i} : tensor<1xi8>\n    call @wide %x\n"));
    }
    src.push_str("    call @wide donate %x");
    src.push_str(&", donate %x".repeat(n));
    src.push_str("\n    return\n  }\n}\n");
    let started = std::time::Instant::now();
    let diagnostics = parse_and_verify(&src).unwrap_err();
    assert_eq!(diagnostics[0].code, Some("V23"));
    // Quadratic work would take minutes.
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}
