#!/usr/bin/env python3
"""Greedy continuations by llama.cpp, and how far its numbers are from exact.

    python3 scripts/oracles/greedy.py BIN_DIR MODEL.gguf NAME [--prompts N] [--tokens N]

Writes tests/data/greedy/NAME.json, which tests/greedy.rs replays. BIN_DIR holds a llama-server of
llama.cpp. For every prompt the file has the ids of the prompt, and for every step of the greedy
continuation (temperature 0) llama.cpp's two best ids with their natural log probabilities, and
the log probabilities of the same two ids computed exactly.

"Exact" is the same model file with every weight decoded to f32 (by the `gguf` package), caches of
f32, and no flash attention: what is left of rounding is that of f32 sums. Quantised weights lose
nothing by this; what disappears is the rounding of activations to 8 bits.

Two kinds of numbers are measured over all steps and written with the data. The margin of a step is
the log probability of the best token less that of the second.

- `settings`: for llama.cpp's settings that should not matter (repacked weights or not, flash
  attention or not, the text as one batch instead of token by token) the greatest change of the
  margin against the default setting. The largest of them is the bound of the test: where the
  margin is smaller, llama.cpp may differ from itself.
- `error` and `rms_error`: the greatest and the root mean square distance of the margin from the
  exact one.

Needs gguf 0.19.0 and numpy; the numbers in the repository are by llama.cpp as vendored in
llama-cpp-python 0.3.36.
"""

import argparse
import hashlib
import json
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.request

import gguf
import numpy as np

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/data/greedy"

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Water boils at a temperature of",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8, 13,",
    "<|im_start|>user\nName three primary colours.<|im_end|>\n<|im_start|>assistant\n",
    "The theory of evolution was first described by",
    "La tour Eiffel se trouve à",
    "Q: Why is the sky blue?\nA:",
    "for (int i = 0; i < n; i++) {",
    "Ingredients:\n- 2 eggs\n- 100 g of flour\n-",
    "In 1969, the first human being walked on",
    "SELECT name, age FROM users WHERE",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "Photosynthesis is the process by which plants",
]

# Flags; and of how many steps one is measured, without reuse of the cache if not all: then every
# step computes the whole text again.
SETTINGS = {
    "default": ([], 1),
    "no-repack": (["--no-repack"], 1),
    "flash-attention": (["-fa", "on"], 1),
    "no-flash-attention": (["-fa", "off"], 1),
    "one-batch": ([], 12),
}
EXACT = ["-fa", "off", "-ctk", "f32", "-ctv", "f32"]


class Server:
    """A llama-server on a free port of this machine."""

    def __init__(self, bin_dir, model, flags):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        command = [bin_dir / "llama-server", "-m", model, "--port", port, "-t", 2, "-c", 1024]
        command += ["-np", 1, "--no-webui", *flags]
        self.process = subprocess.Popen(
            [str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def __enter__(self):
        for _ in range(1200):
            try:
                urllib.request.urlopen(self.base + "/health", timeout=5).read()
                return self
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit("llama-server ended at start") from None
                time.sleep(0.25)
        raise SystemExit("llama-server does not answer")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def post(self, path, body):
        request = urllib.request.Request(
            self.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request, timeout=600))

    def tokenize(self, text):
        body = {"content": text, "add_special": True, "parse_special": True}
        return self.post("/tokenize", body)["tokens"]

    def best(self, ids, n, reuse):
        """The n most probable next tokens and their log probabilities."""
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": n, "cache_prompt": reuse}
        step = self.post("/completion", body)["completion_probabilities"][0]
        return [(t["id"], t["logprob"]) for t in step["top_logprobs"]]


def decoded(model, to):
    """Copies a GGUF file with all quantised tensors as f32."""
    reader = gguf.GGUFReader(model)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(to, arch)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(server, prompts, every):
    """For one in `every` steps the log probabilities of the step's two ids; NaN for the others."""
    out = []
    for prompt in prompts:
        ids = list(prompt["prompt"])
        for i, (first, _, second, _) in enumerate(prompt["steps"], 1):
            pair = (np.nan, np.nan)
            if i % every == 0:
                # In another setting the two can be further down; never seen below the tenth.
                found = dict(server.best(ids, 40, every == 1))
                pair = (found[first], found[second])
            out.append(pair)
            ids.append(first)
    return np.array(out)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bin_dir", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("name")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()

    prompts = []
    measured = {}
    for setting, (flags, every) in SETTINGS.items():
        with Server(args.bin_dir, args.model, flags) as server:
            if setting == "default":
                for text in PROMPTS[: args.prompts]:
                    ids = server.tokenize(text)
                    prompt = {"text": text, "prompt": list(ids), "steps": []}
                    for _ in range(args.tokens):
                        (a, p), (b, q) = server.best(ids, 2, True)
                        prompt["steps"].append([a, round(p, 5), b, round(q, 5)])
                        ids.append(a)
                    prompts.append(prompt)
                    print(len(prompts), repr(text), flush=True)
            else:
                measured[setting] = measure(server, prompts, every)
                print(setting, flush=True)
    base = np.array([[s[1], s[3]] for p in prompts for s in p["steps"]])

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "f32.gguf"
        decoded(args.model, path)
        with Server(args.bin_dir, path, EXACT) as server:
            exact = measure(server, prompts, 1)

    margin = lambda pair: pair[:, 0] - pair[:, 1]
    settings = {k: float(np.nanmax(np.abs(margin(v) - margin(base)))) for k, v in measured.items()}
    off = np.abs(margin(base) - margin(exact))
    steps = iter(exact)
    for prompt in prompts:
        for step in prompt["steps"]:
            step += [round(float(v), 5) for v in next(steps)]
    head = {
        "model": args.name,
        "sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "settings": {k: round(v, 5) for k, v in settings.items()},
        "error": round(float(off.max()), 5),
        "rms_error": round(float(np.sqrt((off**2).mean())), 5),
    }
    print(head)
    # One line for each prompt, so that changes can be reviewed.
    lines = ",\n".join(json.dumps(p, ensure_ascii=False) for p in prompts)
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(head, indent=1)[:-2] + f',\n "prompts": [\n{lines}\n]}}\n'
    (OUT / f"{args.name}.json").write_text(text)


if __name__ == "__main__":
    main()
