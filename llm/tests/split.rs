//! Models in several files: those that the `gguf` package wrote, every way in which they do not
//! belong together, and that a split model computes what the whole one does.

#[path = "common/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};

use aether_llm::engine::{Context, LoadOptions, Model};
use aether_llm::gguf::{Gguf, GgufWriter, inspect};
use tiny::{FLOATS, QUANTIZED, Tiny};

/// Written by scripts/oracles/gguf_split.py.
const WRITTEN: &str = "tests/data/gguf/split-00001-of-00003.gguf";

#[test]
fn files_of_the_python_package_are_one_model() {
    for i in 1..=3 {
        for detached in [false, true] {
            let path = WRITTEN.replace("00001-", &format!("0000{i}-"));
            let gguf = if detached { Gguf::open_detached(&path) } else { Gguf::open(&path) };
            let gguf = gguf.unwrap();
            assert_eq!(gguf.path(), Path::new(WRITTEN));
            assert_eq!(gguf.parts().len(), 3);
            assert_eq!(gguf.get_str("general.name").unwrap(), "Split");
            let names: Vec<&str> = gguf.tensors().iter().map(|t| &*t.name).collect();
            assert_eq!(names, ["a.weight", "b.weight", "c.weight", "d.weight", "e.weight"]);
            let parts: Vec<usize> = gguf.tensors().iter().map(|t| t.part).collect();
            assert_eq!(parts, [0, 0, 1, 1, 2]);
            for (n, tensor) in gguf.tensors().iter().enumerate() {
                let floats = gguf.data(tensor).chunks_exact(4);
                let floats: Vec<f32> =
                    floats.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                let want: Vec<f32> = (0..4 * (n + 1)).map(|i| (i + 100 * n) as f32).collect();
                assert_eq!(floats, if detached { Vec::new() } else { want }, "{}", tensor.name);
            }
        }
    }
    let gguf = Gguf::open(WRITTEN).unwrap();
    let text = inspect::text(&gguf);
    assert!(text.contains("in 3 files, up to tests/data/gguf/split-00003-of-00003.gguf"), "{text}");
    let json = inspect::json(&gguf);
    assert_eq!(json["parts"].as_array().unwrap().len(), 3);
    assert_eq!(json["tensors"][4]["part"], 2);
}

/// The tiny model in so many files.
fn split(tiny: &Tiny, folder: &Path, count: usize) -> PathBuf {
    let whole = tiny.gguf();
    let all = whole.tensors();
    let each = all.len().div_ceil(count);
    for (i, tensors) in all.chunks(each).enumerate() {
        let mut w = if i == 0 { tiny.metadata() } else { GgufWriter::new() };
        w.value("split.no", i as u16)
            .value("split.count", count as u16)
            .value("split.tensors.count", all.len() as i32);
        for t in tensors {
            w.tensor(t.name.clone(), t.dtype, &t.shape, whole.data(t).to_vec()).unwrap();
        }
        w.write(folder.join(format!("tiny-{:05}-of-{count:05}.gguf", i + 1))).unwrap();
    }
    folder.join(format!("tiny-00001-of-{count:05}.gguf"))
}

#[test]
fn a_split_model_computes_what_the_whole_one_does() {
    for tiny in [Tiny::llama(FLOATS), Tiny::qwen2(QUANTIZED)] {
        let folder = tempfile::tempdir().unwrap();
        let first = split(&tiny, folder.path(), 4);
        let options = LoadOptions { threads: 1, ..LoadOptions::default() };
        let whole = Model::from_memory(tiny.gguf(), &options).unwrap();
        let logits = |model| {
            let mut rows: Vec<f32> = Vec::new();
            let mut context = Context::new(&model).unwrap();
            context
                .logits_rows(&[72, 5, 9, 200], &[1, 3], |_, row| rows.extend_from_slice(row))
                .unwrap();
            rows
        };
        let want = logits(whole);
        for (path, detached) in
            [(first.clone(), false), (folder.path().join("tiny-00003-of-00004.gguf"), true)]
        {
            let options = LoadOptions { detached, ..options.clone() };
            let model = Model::load(&path, &options).unwrap();
            assert_eq!(logits(model.clone()), want);
            // Its module names each file, and runs when it was printed and read again.
            let text = model.module_text();
            for i in 1..=4 {
                assert!(text.contains(&format!("tiny-0000{i}-of-00004.gguf")));
            }
            let ir = aether_ir::parse_and_verify(&text).unwrap();
            let options = LoadOptions { ir: Some(ir), ..options };
            assert_eq!(logits(Model::load(&path, &options).unwrap()), want);
        }
    }
}

#[test]
fn parts_that_do_not_belong_together_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let part = |number: u16, count: u16, tensors: i32, name: &str, file: &str| {
        let mut w = GgufWriter::new();
        w.value("split.no", number).value("split.count", count);
        w.value("split.tensors.count", tensors);
        w.tensor_from_f32(name.to_owned(), aether_ir::DType::F32, &[4], &[0.0; 4]).unwrap();
        w.write(at(file)).unwrap();
    };
    let refused = |file: &str, message: &str| {
        let error = Gguf::open(at(file)).unwrap_err().to_string();
        assert!(error.contains(message), "{file}: {error}");
    };
    part(0, 2, 2, "a", "m-00001-of-00002.gguf");
    let other = at("m-00002-of-00002.gguf");
    refused("m-00001-of-00002.gguf", "part 2 of 2 is missing: there is no ");
    refused("m-00001-of-00002.gguf", &other.display().to_string());
    part(1, 2, 2, "b", "m-00002-of-00002.gguf");
    assert!(Gguf::open(at("m-00001-of-00002.gguf")).is_ok());
    std::fs::remove_file(at("m-00001-of-00002.gguf")).unwrap();
    refused("m-00002-of-00002.gguf", "part 1 of 2 is missing");
    part(0, 2, 2, "b", "m-00001-of-00002.gguf");
    refused("m-00001-of-00002.gguf", "another part has a tensor \"b\" too");
    part(0, 2, 3, "a", "m-00001-of-00002.gguf");
    refused("m-00001-of-00002.gguf", "it is not part 2 of 2 of the same model");
    part(1, 2, 3, "b", "m-00002-of-00002.gguf");
    refused("m-00001-of-00002.gguf", "its 2 parts have 2 of the model's 3 tensors");
    part(0, 3, 2, "a", "m-00001-of-00002.gguf");
    refused("m-00001-of-00002.gguf", "part 1 of 3, its name 1 of 2");
    part(1, 3, 2, "a", "renamed.gguf");
    refused("renamed.gguf", "should be called NAME-00002-of-00003.gguf");
    part(u16::MAX, u16::MAX, i32::MAX, "a", "renamed.gguf");
    refused("renamed.gguf", "part 65536 of 65535");
    std::fs::write(at("m-00002-of-00002.gguf"), b"GGUF").unwrap();
    part(0, 2, 2, "a", "m-00001-of-00002.gguf");
    refused("m-00001-of-00002.gguf", "m-00002-of-00002.gguf: version");
    // Keys that are no counts, or not there.
    let mut w = GgufWriter::new();
    w.value("split.count", 2u16).write(at("odd.gguf")).unwrap();
    refused("odd.gguf", "without the key split.no");
    let mut w = GgufWriter::new();
    w.string("split.count", "two").write(at("odd.gguf")).unwrap();
    refused("odd.gguf", "split.count should be a count");
    let mut w = GgufWriter::new();
    w.value("split.count", 1u16).write(at("one.gguf")).unwrap();
    assert!(Gguf::open(at("one.gguf")).is_ok());
}
