//! The commands as people run them, on the default model (pulled at first use) and on bad input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn aether(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aether")).args(args).output().expect("aether starts")
}

fn opt(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aether-opt")).args(args).output().expect("aether-opt starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The command must fail with one paragraph that holds all of `parts`.
fn refused(output: &Output, parts: &[&str]) {
    let stderr = text(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "`{part}` is not in: {stderr}");
    }
}

fn model_file() -> PathBuf {
    let output = aether(&["pull", "smollm2-135m"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    PathBuf::from(text(&output.stdout).trim())
}

#[test]
fn the_default_model_speaks_through_text_and_edited_ir() {
    let model = model_file();
    let model = model.to_str().unwrap();
    let run = |extra: &[&str]| {
        let mut args = vec!["run", "-m", model, "-p", "The capital of France is"];
        args.extend(["-n", "3", "--temp", "0", "-c", "64", "--json", "--logprobs", "2"]);
        args.extend(extra);
        let output = aether(&args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let ir = folder.path().join("model.aet");
    let ir = ir.to_str().unwrap();
    let plain = run(&["--emit-ir", ir]);
    assert!(plain["text"].as_str().unwrap().starts_with(" Paris"), "{plain}");
    assert_eq!(plain["logprobs"].as_array().unwrap().len(), 3);
    assert_eq!(plain["logprobs"][0][0][0], plain["tokens"][0]);

    let unchanged = run(&["--ir", ir]);
    assert_eq!(unchanged["tokens"], plain["tokens"]);
    assert_eq!(unchanged["logprobs"], plain["logprobs"]);

    // Other eps in every norm: the numbers move.
    let source = std::fs::read_to_string(ir).unwrap();
    assert!(source.contains("eps = "), "the layer has norms");
    let edited = source.replacen("eps = ", "eps = 1", 1);
    std::fs::write(ir, edited).unwrap();
    assert_ne!(run(&["--ir", ir])["logprobs"], plain["logprobs"]);
}

#[test]
fn tokens_of_the_default_model() {
    let model = model_file();
    let output = aether(&["tokenize", "-m", model.to_str().unwrap(), "The capital of France is"]);
    assert_eq!(text(&output.stdout).trim(), "[504,3575,282,4649,314]");
}

#[test]
fn bad_input_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let run = |model: &str, extra: &[&str]| {
        let mut args = vec!["run", "-m", model, "-p", "x", "-n", "1"];
        args.extend(extra);
        aether(&args)
    };
    refused(&run("no-such-model", &[]), &["error:", "no-such-model", "smollm2-135m"]);
    refused(&run(&file("empty.gguf", b""), &[]), &["empty.gguf"]);
    refused(&run(&file("text.gguf", b"hello world, this is no model"), &[]), &["text.gguf"]);

    let model = model_file();
    let whole = std::fs::read(&model).unwrap();
    let cut = file("cut.gguf", &whole[..whole.len() / 2]);
    refused(&run(&cut, &[]), &["cut.gguf", "tensor"]);
    let model = model.to_str().unwrap();
    let long = "word ".repeat(200);
    refused(&aether(&["run", "-m", model, "-p", &long, "-c", "64"]), &["64", "201"]);
    let bad = file(
        "bad.aet",
        b"module @m {\n  func @main(%x: tensor<2xf32>) -> tensor<3xf32> {\n    return %x\n  }\n}\n",
    );
    refused(&run(model, &["--ir", &bad]), &["bad.aet", ":3:", "tensor<3xf32>"]);
    refused(&opt(&[&bad]), &["bad.aet", ":3:"]);
    let syntax = file("syntax.aet", b"module @m {\n  func @main( {\n}\n");
    refused(&opt(&[&syntax]), &["syntax.aet", ":2:"]);
    refused(&opt(&["--pipeline", "cse,nope", &syntax]), &["nope"]);
    refused(&aether(&["run", "-p", "x", "--temp=-1"]), &["temp"]);
}

/// A plan that is compiled once runs without the passes, and on nothing but what it was made for.
#[test]
fn plans_are_saved_and_run() {
    let aetherc = |args: &[&str]| {
        let command = Command::new(env!("CARGO_BIN_EXE_aetherc")).args(args).output();
        command.expect("aetherc starts")
    };
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("model.aeplan");
    let plan = plan.to_str().unwrap();
    let model = model_file();
    let compiled = aetherc(&["compile", model.to_str().unwrap(), "-o", plan]);
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));
    let input = ["--input", "tokens=[504,3575,282,4649,314]", "--input", "rows=[4]"];
    let logits = folder.path().join("logits.npy");
    let output = format!("0={}", logits.display());
    let run = ["run", plan, "--input", "0", "--output", &output];
    let ran = aetherc(&[&run[..], &input[..]].concat());
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    // The token after "The capital of France is" is " Paris".
    let logits = aether_tools::npy::read(&logits).unwrap().to_f32_vec().unwrap();
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    assert_eq!(best, 7042);

    refused(
        &aetherc(&["run", plan, "-t", "3", "--input", "0"]),
        &["number of threads", "--recompile"],
    );
    let bytes = std::fs::read(plan).unwrap();
    std::fs::write(plan, &bytes[..bytes.len() / 2]).unwrap();
    refused(&aetherc(&["run", plan, "--input", "0"]), &["model.aeplan", "damaged"]);
}

#[test]
fn passes_clean_up_a_module() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/redundant.aet");
    let output = opt(&["--pipeline", "cse,dce", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let expected = "module @redundant {\n  func @main(%x: tensor<2x2xf32>) -> tensor<2x2xf32> {\n    \
                    %a = exp %x : tensor<2x2xf32>\n    %c = add %a, %a : tensor<2x2xf32>\n    \
                    return %c\n  }\n}\n";
    assert_eq!(text(&output.stdout), expected);
    // A filetest is run as its header says.
    let filetest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/ir/opt_run.aet");
    let output = opt(&[filetest.to_str().unwrap()]);
    assert_eq!(text(&output.stdout), "tensor<2xf32> [1, 5]\ntensor<2x2xbool> [0, 0, 1, 1]\n");
    let passes = opt(&["--list-passes"]);
    for pass in ["cse", "fold", "dce", "layout", "fuse", "plan"] {
        assert!(text(&passes.stdout).contains(pass), "{pass}");
    }
}

#[test]
fn a_chat_goes_on_after_mistakes() {
    let model = model_file();
    let mut child = Command::new(env!("CARGO_BIN_EXE_aether"))
        .args(["chat", "-m", model.to_str().unwrap(), "-c", "256", "-n", "6", "--temp", "0"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("aether starts");
    let long = "word ".repeat(400);
    let input =
        format!("/system Be brief.\nSay hello.\n/regen\n/bogus\n{long}\nSay hello.\n/exit\n");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    let answers: Vec<&str> = out.lines().filter(|line| !line.is_empty()).collect();
    assert!(answers.len() >= 3, "{out}");
    assert_eq!(answers[0], answers[1], "at temperature 0 the same again");
    assert!(err.contains("/bogus is not known"), "{err}");
    assert!(err.contains("holds 256"), "what does not fit is said: {err}");
}

#[test]
fn shells_get_scripts_and_load_gets_a_table() {
    for (shell, part) in [
        ("bash", "complete -F _aether"),
        ("zsh", "#compdef aether"),
        ("fish", "complete -c aether"),
    ] {
        let output = aether(&["completions", shell]);
        let script = text(&output.stdout);
        assert!(output.status.success() && script.contains(part), "{shell}");
        assert!(script.contains("perplexity") && script.contains("max-concurrency"), "{shell}");
    }
    let model = model_file();
    let args = ["bench", "-m", model.to_str().unwrap(), "--parallel", "1,3", "-p", "8", "-n", "4"];
    let output = aether(&[&args[..], &["-r", "2", "-o", "json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&rows[0]["requests"], &rows[1]["requests"]), (&2.into(), &6.into()));
    assert!(rows[1]["tokens_per_second"].as_f64().unwrap() > 0.0);
    refused(&aether(&[&args[..4], &["1,0"]].concat()), &["from 1 to 256"]);
}

#[test]
fn drafts_leave_the_text_as_it_is() {
    let model = model_file();
    let model = model.to_str().unwrap();
    let prompt = "one two three four, one two three four, one two";
    let run = |more: &[&str]| {
        let args = ["run", "-m", model, "-p", prompt, "-n", "24", "-c", "256", "--seed", "5"];
        let output = aether(&[&args, more].concat());
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let (_, want, _) = run(&[]);
    for more in [
        &["--speculative", "ngram"][..],
        &["--spec-type", "ngram", "--draft", "5"],
        &["-md", model, "--draft-max", "6", "--draft-p-min", "0.2"],
    ] {
        let (ok, got, notes) = run(more);
        assert!(ok && got == want, "{more:?}: {got} {notes}");
        assert!(notes.contains("drafted") && notes.contains("accepted"), "{notes}");
    }
    for (more, says) in [
        (&["--speculative", "draft"][..], "--draft-model"),
        (&["--draft-tokens", "4"], "--speculative ngram"),
        (&["--speculative", "ngram", "--draft-tokens", "65"], "65"),
        (&["-md", "no such model"], "no such model"),
    ] {
        let (ok, _, notes) = run(more);
        assert!(!ok && notes.contains(says), "{more:?}: {notes}");
    }
}
