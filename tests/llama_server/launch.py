#!/usr/bin/env python3
"""Stands where llama.cpp's tests expect `llama-server`: translates its flags and becomes our server.

A flag without a counterpart ends the start with its name, so that the test that wants it fails for
that reason. With LLAMA_SERVER_REFERENCE the flags go to that binary, llama.cpp's own server, with
the same models in place of those that would have to be downloaded.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Flags with a value: ours, or None for one that says nothing here.
VALUES = {
    "--port": "--port",
    "--temp": "--temp",
    "--seed": "--seed",
    "--threads": "--threads",
    "--alias": "--alias",
    "--tags": "--tags",
    "--api-key": "--api-key",
    "--chat-template": "--chat-template",
    "--chat-template-file": "--chat-template-file",
    "--batch-size": "--batch",
    "--n-predict": "--default-tokens",
    "--reasoning": "--reasoning",
    # A part of a batch, which is not divided here.
    "--ubatch-size": None,
    "--n-gpu-layers": None,
}
# Flags without a value.
SWITCHES = {
    "--verbose": ["--verbose"],
    "--context-shift": ["--context-shift"],
    "--no-ui": ["--no-ui"],
    # What is always so.
    "--offline": [],
    "--cont-batching": [],
    "--embedding": [],
    "--jinja": [],
    "--no-jinja": [],
}
MODEL_FLAGS = {"--model", "--hf-repo", "--hf-file", "--model-url"}


def model(values: dict[str, str]) -> str:
    """The model in place of the one that is asked for."""
    wanted = " ".join(values.values())
    folder = os.environ["LLAMA_SERVER_MODELS"]
    for part, name in [("infill", "qwen2.5-coder-0.5b"), ("tinygemma3", "gemma3-270m")]:
        if part in wanted:
            return f"{folder}/{name}.gguf"
    downloads = ["split", "MOE", "reranker", "bartowski", "Qwen2.5"]
    if missing := [part for part in downloads if part in wanted]:
        sys.exit(f"launch: no model in place of {wanted} ({missing[0]})")
    return f"{folder}/smollm2-135m.gguf"


def main() -> None:
    args = sys.argv[1:]
    models: dict[str, str] = {}
    reference = os.environ.get("LLAMA_SERVER_REFERENCE")
    out: list[str] = []
    seen: dict[str, str] = {}
    while args:
        flag = args.pop(0)
        if flag in MODEL_FLAGS:
            models[flag] = args.pop(0)
        elif reference:
            out.append(flag)
        elif flag in SWITCHES:
            out += SWITCHES[flag]
        elif flag in VALUES:
            value = args.pop(0)
            # There it means that models think that can.
            value = "on" if (flag, value) == ("--reasoning", "auto") else value
            # As many as there may be, which is what there is without the flag.
            unlimited = flag == "--n-predict" and value == "-1"
            out += [VALUES[flag], value] if VALUES[flag] and not unlimited else []
        elif flag in ("--slots", "--no-slots", "--metrics", "--kv-unified"):
            seen[flag] = ""
        elif flag in ("--ctx-size", "--parallel", "--host", "--cors-origins", "--pooling", "-fa"):
            seen[flag] = args.pop(0)
        else:
            sys.exit(f"launch: {flag} has no counterpart")
    path = model(models)
    if reference:
        os.execv(reference, [reference, "--model", path, *[a for a in out if a != "--offline"]])
    if seen.get("--pooling", "last") != "last":
        sys.exit("launch: --pooling has no counterpart but last")
    slots = int(seen.get("--parallel", "4"))
    context = int(seen.get("--ctx-size", "4096"))
    # llama-server's context is that of all slots together, unless they share it.
    each = context if "--kv-unified" in seen else context // slots
    out += ["--max-concurrency", str(slots), "-c", str(each)]
    out += [f"--host={host}" for host in seen.get("--host", "127.0.0.1").split(",")]
    out += ["--cors", seen.get("--cors-origins", "*")]
    out += [] if "--slots" in seen else ["--no-slots"]
    out += [] if "--metrics" in seen else ["--no-metrics"]
    binary = os.environ.get("AETHER_SERVER", f"{ROOT}/target/debug/aether-server")
    os.execv(binary, [binary, "--cpu-only", "--model", path, *out])


main()
