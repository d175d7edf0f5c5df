//! Passes on text: each file of `tests/filetests` holds a pipeline, a module and the module that
//! is expected. `AETHER_BLESS=1` writes the expectations anew.
//!
//! Every file is also run twice to show that the pipeline is idempotent, and the statistics must
//! say truly whether anything changed.

mod common;

use std::path::Path;

use aether_ir::{Module, parse_and_verify, text::print};
use aether_passes::{PassCtx, Pipeline};

const EXPECT: &str = "// expect:\n";

fn parse(path: &Path, text: &str) -> Module {
    parse_and_verify(text).unwrap_or_else(|diagnostics| {
        let shown = aether_ir::diag::render(&diagnostics, text, &path.display().to_string());
        panic!("{shown}")
    })
}

/// Runs the pipeline pass by pass, and checks that each says whether it changed the module.
fn run(pipeline: &Pipeline, module: &mut Module) {
    struct Watch {
        before: String,
    }
    impl aether_passes::Observer for Watch {
        fn before(&mut self, _: usize, _: &'static str, module: &Module) {
            self.before = print(module);
        }
        fn after(&mut self, _: usize, report: &aether_passes::StepReport, module: &Module) {
            let changed = print(module) != self.before;
            assert_eq!(report.stats.changed, changed, "pass {}", report.pass);
        }
    }
    let mut watch = Watch { before: String::new() };
    if let Err(e) = pipeline.run(module, &PassCtx::new(&common::TestTarget), &mut watch) {
        panic!("{e}");
    }
}

fn check(path: &Path, bless: bool) {
    let text = std::fs::read_to_string(path).unwrap();
    let (input, expected) = text.split_once(EXPECT).unwrap_or((&text, ""));
    let header = input.lines().find_map(|line| line.strip_prefix("// pipeline: "));
    let header = header.unwrap_or_else(|| panic!("{}: no `// pipeline:`", path.display()));
    let pipeline = Pipeline::parse(header).unwrap_or_else(|e| panic!("{}: {e}", path.display()));

    let mut module = parse(path, input);
    run(&pipeline, &mut module);
    let found = print(&module);
    if bless {
        std::fs::write(path, format!("{}\n\n{EXPECT}{found}", input.trim_end())).unwrap();
    } else {
        let difference = similar(expected.trim(), found.trim());
        assert!(difference.is_empty(), "{}:\n{difference}", path.display());
    }

    let mut again = parse(path, &found);
    run(&pipeline, &mut again);
    assert_eq!(print(&again), found, "{} is not idempotent", path.display());
}

/// The first line that differs, in both texts.
fn similar(expected: &str, found: &str) -> String {
    let mut lines = expected.lines();
    for (i, line) in found.lines().enumerate() {
        match lines.next() {
            Some(want) if want == line => {}
            want => {
                let want = want.unwrap_or("nothing more");
                return format!("line {}: expected\n{want}\nfound\n{line}\nin\n{found}", i + 1);
            }
        }
    }
    lines.next().map_or(String::new(), |want| format!("expected further {want}"))
}

#[test]
fn files_give_what_they_expect() {
    let bless = std::env::var_os("AETHER_BLESS").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "aet"));
    paths.sort();
    assert!(paths.len() >= 15, "filetests are missing");
    for path in paths {
        check(&path, bless);
    }
}
