//! `--device` on a machine without a GPU, and limits that are too small.

use std::process::{Command, Output};

/// A run of the smallest model; without any Vulkan driver when `bare`.
fn bench(bare: bool, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aether"));
    command
        .args(["bench", "--synthetic", "llama-tiny", "-p", "4", "-n", "2", "-r", "1"])
        .args(args);
    if bare {
        command.env("VK_DRIVER_FILES", "/nowhere.json").env("VK_ICD_FILENAMES", "/nowhere.json");
    }
    command.output().expect("aether starts")
}

#[test]
fn without_a_gpu_auto_and_hybrid_say_so_once_and_use_the_cpu() {
    for device in ["auto", "hybrid"] {
        let output = bench(true, &["--device", device]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{device}: {stderr}");
        let lines: Vec<&str> =
            stderr.lines().filter(|line| line.contains("using the CPU")).collect();
        assert!(lines.len() == 1 && lines[0].contains("no GPU"), "{device}: {stderr}");
    }
}

#[test]
fn without_a_gpu_asking_for_one_is_an_error() {
    let output = bench(true, &["--device", "gpu"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !stderr.contains("panicked"), "{stderr}");
    assert!(stderr.contains("there is no GPU with a Vulkan driver"), "{stderr}");
}

#[test]
fn a_limit_is_of_a_gpu() {
    for args in [&["--gpu-memory", "1GiB"][..], &["--device", "gpu", "--gpu-memory", "many"]] {
        let output = bench(true, args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains("--gpu-memory"), "{stderr}");
    }
}

#[test]
fn placements_are_told_with_their_times() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/layer.aet");
    let output = Command::new(env!("CARGO_BIN_EXE_aether-opt"))
        .args([file, "--placements", "--gpu-memory", "2KiB"])
        .output()
        .expect("aether-opt starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines[0], "placements of @main:", "{stderr}");
    // A few kilobytes are not worth the way.
    assert!(lines[1].starts_with("  all on the CPU: "), "{stderr}");
    let one = lines.iter().find(|line| line.contains("the last 1 of 2 calls on the GPU"));
    assert!(one.is_some_and(|line| line.contains("MiB pass through")), "{stderr}");
}

#[test]
fn the_server_takes_one_device() {
    let output = Command::new(env!("CARGO_BIN_EXE_aether-server"))
        .args(["--model", "none.gguf", "--port", "0", "--cpu-only", "--device", "gpu"])
        .output()
        .expect("aether-server starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(stderr.contains("--cpu-only") && stderr.contains("--device"), "{stderr}");
}
