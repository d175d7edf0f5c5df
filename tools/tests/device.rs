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
