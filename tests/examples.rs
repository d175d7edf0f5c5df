//! The examples learn: short runs of the programs under examples/.

use std::process::Command;

/// What an example prints. `cargo test` builds the examples beside the tests.
fn run(name: &str, args: &[&str]) -> String {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    let program = path.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let output = Command::new(&program).args(args).output();
    let output = output.unwrap_or_else(|e| {
        panic!("{}: {e}; `cargo build --examples` makes it", program.display())
    });
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), output.stderr);
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&err));
    out
}

/// The numbers at both ends of the loss curve.
fn losses(out: &str) -> (f32, f32) {
    let line = out.lines().find_map(|l| l.strip_prefix("loss ")).unwrap();
    let mut words = line.split(' ');
    let (first, last) = (words.next().unwrap(), words.next_back().unwrap());
    (first.parse().unwrap(), last.parse().unwrap())
}

#[test]
fn digits_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("digits.safetensors");
    let out = run("digits", &["--epochs", "4", "--save", file.to_str().unwrap()]);
    let (first, last) = losses(&out);
    assert!(first > 1.5 && last < 0.7, "{out}");
    let right: f32 =
        out.split("held out: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(right > 85.0, "{out}");
    let saved = aether::runtime::graph::load_safetensors(file).unwrap();
    assert_eq!(saved["conv2.weight"].shape(), [32, 16, 3, 3]);
}

#[test]
fn characters_are_learned() {
    let out = run("chars", &["--steps", "40", "--sample", "8"]);
    let (first, last) = losses(&out);
    assert!(first > 3.5 && last < 3.0, "{out}");
    assert!(out.contains("Shall I compare thee"), "{out}");
}
