"""PyTorch on the cases of `cargo bench --bench gpu -- --json FILE`, beside them in one table.

    python3 benches/gpu_torch.py FILE

Times are of CUDA events around a graph of repetitions, each on the result of the last, the median
of several. "compiled" is torch.compile. Shares are of what the card was seen to do in the same
run: a copy for ops that memory bounds, PyTorch's product of 8192 of the same type for those that
arithmetic bounds.
"""

import json
import math
import statistics
import sys

import torch
import torch.nn.functional as F

torch.backends.cuda.matmul.allow_tf32 = False
TYPES = {"f32": torch.float32, "f16": torch.float16}


def rand(shape, dtype, scale=1.0):
    return (torch.rand(shape, device="cuda", dtype=torch.float32) - 0.5).mul_(2 * scale).to(dtype)


def seconds(step, x, repeats):
    """Of one step, in a graph of so many."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            step(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = x
            for _ in range(repeats):
                y = step(y)
        times = []
        for _ in range(30):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / repeats)
    return statistics.median(times[10:])


def chain(x):
    y = x * 1.5 + 0.25
    return torch.relu(torch.sqrt(torch.abs(y * y - x)) * x)


def case(op, dtype, sizes):
    """The step, its first operand, and repetitions."""
    dtype = TYPES[dtype]
    if op == "copy":
        return (lambda x: x.neg()), rand(sizes, dtype), 2
    if op == "chain of 8":
        return chain, rand(sizes, dtype), 2
    if op.startswith("matmul"):
        n = sizes[0]
        x, w = rand((n, n), dtype), rand((n, n), dtype, math.sqrt(3 / n))
        relu = "relu" in op
        step = (lambda x: torch.relu(x @ w)) if relu else (lambda x: x @ w)
        return step, x, max(2, 20480 // n)
    if op == "softmax":
        return (lambda x: torch.softmax(x, -1)), rand(sizes, dtype), 2
    if op == "layer_norm":
        w, b = rand(sizes[1:], dtype), rand(sizes[1:], dtype)
        return (lambda x: F.layer_norm(x, sizes[1:], w, b, 1e-5)), rand(sizes, dtype), 2
    if op.startswith("attention"):
        tokens, context, heads, kv, d = sizes
        q = rand((1, heads, tokens, d), dtype)
        k, v = (rand((1, kv, context, d), dtype) for _ in range(2))
        causal = tokens > 1
        assert not causal or tokens == context

        def step(q):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != kv)

        return step, q, 4
    raise SystemExit(f"{op}: not known")


def main():
    cases = [json.loads(line) for line in open(sys.argv[1])]
    x = rand((1 << 28,), torch.float32)
    out = torch.empty_like(x)
    copy = 2 * 4 * x.numel() / seconds(lambda x: out.copy_(x), x, 2)
    peaks = {}
    for dtype in TYPES:
        step, x, _ = case("matmul", dtype, [8192])
        peaks[dtype] = 2 * 8192**3 / seconds(step, x, 4)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}: copy {copy / 1e9:.0f} GB/s,", end="")
    print("".join(f" {d} product {p / 1e12:.0f} TFLOP/s" for d, p in peaks.items()))
    print("| op | type | sizes | Aether µs | PyTorch µs | compiled µs | PyTorch / Aether | share |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for c in cases:
        step, x, repeats = case(c["op"], c["dtype"], c["sizes"])
        eager = seconds(step, x, repeats)
        compiled = ""
        if "chain" in c["op"] or "relu" in c["op"]:
            fast = torch.compile(step)
            fast(x)
            compiled = f"{seconds(fast, x, repeats) * 1e6:.1f}"
        rates = {
            "copy": c["bytes"] / c["seconds"] / copy,
            "product": c["flops"] / c["seconds"] / peaks[c["dtype"]],
        }
        bound = max(rates, key=rates.get)
        print(
            f"| {c['op']} | {c['dtype']} | {' '.join(map(str, c['sizes']))} | {c['seconds'] * 1e6:.1f} "
            f"| {eager * 1e6:.1f} | {compiled} | {eager / c['seconds']:.2f} "
            f"| {100 * rates[bound]:.0f} % of the {bound} |"
        )


main()
