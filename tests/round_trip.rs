//! Every module that the project builds survives being written down: text parses to the same
//! module and prints the same again, and so does the serde form.

#[path = "../llm/tests/common/mod.rs"]
mod common;
#[path = "../llm/tests/common/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};

use aether_codegen_cpu::{CpuTarget, Isa};
use aether_ir::text::strip_spans;
use aether_ir::{Module, diag, parse_and_verify, parse_module, print_module};
use aether_llm::engine::{LoadOptions, Model};
use aether_llm::gguf::Gguf;
use aether_passes::{DEFAULT_PIPELINE, Observer, PassCtx, Pipeline, StepReport};
use tiny::{FLOATS, QUANTIZED, Tiny};

/// Writes and reads a module in both forms. Values may be numbered anew by the parser, so modules
/// are compared by their text, which names everything that has a meaning.
#[track_caller]
fn survives(what: &str, module: &Module) {
    let text = print_module(module);
    let parsed = parse_module(&text).unwrap_or_else(|found| {
        panic!("{what} does not parse again:\n{}", diag::render(&found, &text, what))
    });
    same(what, &text, &print_module(&parsed));

    let json = serde_json::to_string(module).unwrap();
    let read: Module = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{what}: {e}"));
    // Places in a source text are no part of the serde form.
    let mut placeless = module.clone();
    strip_spans(&mut placeless);
    assert!(read == placeless, "{what} is another module after its serde form");
    same(what, &text, &print_module(&read));
}

/// Texts are equal, or the first line that differs is shown: the texts are long.
#[track_caller]
fn same(what: &str, want: &str, got: &str) {
    if want == got {
        return;
    }
    let differs = want.lines().zip(got.lines()).enumerate().find(|(_, (w, g))| w != g);
    panic!("{what} changes its text: (line, (before, after)) = {differs:?}");
}

/// A model's module as built and after each pass of the default pipeline.
fn model_survives(what: &str, gguf: &Gguf) {
    struct EachPass<'a>(&'a str);
    impl Observer for EachPass<'_> {
        fn after(&mut self, _: usize, report: &StepReport, module: &Module) {
            survives(&format!("{} after {}", self.0, report.pass), module);
        }
    }
    let mut module = Model::build_ir(gguf, &LoadOptions::default()).unwrap().module;
    survives(what, &module);
    let target = CpuTarget { isa: Isa::Scalar, threads: 2 };
    let pipeline = Pipeline::parse(DEFAULT_PIPELINE).unwrap();
    pipeline.run(&mut module, &PassCtx::new(&target), &mut EachPass(what)).unwrap();
}

#[test]
fn small_models() {
    for (what, tiny) in [
        ("llama, floats", Tiny::llama(FLOATS)),
        ("llama, quantised", Tiny::llama(QUANTIZED)),
        ("llama, frequencies", Tiny { freqs: true, ..Tiny::llama(FLOATS) }),
        ("qwen2, floats", Tiny::qwen2(FLOATS)),
        ("qwen2, quantised", Tiny::qwen2(QUANTIZED)),
    ] {
        model_survives(what, &tiny.gguf());
    }
}

#[test]
fn the_default_model() {
    model_survives("smollm2-135m", &Gguf::open(common::default_model()).unwrap());
}

/// All files of a folder and the folders in it that end in `.aet`, in order.
fn texts(folder: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            texts(&path, out);
        } else if path.extension().is_some_and(|e| e == "aet") {
            out.push(path);
        }
    }
}

/// A filetest holds modules and what is expected of them, which may be a module or an error: each
/// part that is a valid module is tried.
#[test]
fn filetests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for folder in ["tests", "ir/tests", "passes/tests", "codegen-cpu/tests", "runtime/tests"] {
        texts(&root.join(folder), &mut paths);
    }
    let mut tried = 0;
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        for part in text.split_inclusive("\n}\n") {
            if let Ok(module) = parse_and_verify(part) {
                survives(&path.display().to_string(), &module);
                tried += 1;
            }
        }
    }
    assert!(tried >= 30, "only {tried} modules in filetests");
}
