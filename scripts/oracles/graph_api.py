#!/usr/bin/env python3
"""Expected values of the library API's operations, out of NumPy.

Writes runtime/tests/data/graph_api.json, from the repository root: a list of cases with a name,
inputs and outputs; the test runtime/tests/graph_ops.rs has an expression for each name. Numbers
are computed in f64 from f32 inputs; infinities and NaN stand as strings.

Made with numpy 2.4; needs nothing else:  python3 scripts/oracles/graph_api.py
"""

import itertools
import json
import math
import pathlib

import numpy as np

OUT = pathlib.Path(__file__).resolve().parents[2] / "runtime/tests/data/graph_api.json"
NAMES = {np.float32: "f32", np.float64: "f64", np.int32: "i32", np.int64: "i64", np.uint8: "u8",
         np.uint32: "u32", np.bool_: "bool", np.int8: "i8"}
rng = np.random.default_rng(3)
cases = []


def number(v):
    if isinstance(v, (bool, np.bool_)):
        return bool(v)
    if isinstance(v, (int, np.integer)):
        return int(v)
    return float(v) if math.isfinite(v) else {math.inf: "inf", -math.inf: "-inf"}.get(v, "nan")


def tensor(a):
    a = np.asarray(a)
    flat = a.reshape(-1)
    if a.dtype == np.float64:  # what was computed: printed short, compared within a tolerance
        flat = [float(f"{v:.9g}") for v in flat]
        dtype = "f32"
    else:
        dtype = NAMES[a.dtype.type]
        flat = [v.item() for v in flat]
        if dtype == "f32":
            flat = [float(f"{v:.9g}") for v in flat]
    return {"dtype": dtype, "shape": list(a.shape), "data": [number(v) for v in flat]}


def case(name, inputs, *outputs):
    cases.append({"name": name, "inputs": [tensor(i) for i in inputs],
                  "outputs": [tensor(o) for o in outputs]})


def f(*shape):
    return rng.normal(size=shape).astype(np.float32)


def wide(a):
    return a.astype(np.float64)


erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def unary():
    x = np.array([-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 3.75], np.float32)
    p = np.array([0.25, 0.5, 1.0, 2.0, 9.0], np.float32)
    w = wide(x)
    for name, y in {
        "neg": -w, "abs": np.abs(w), "sign": np.sign(w), "exp": np.exp(w), "sin": np.sin(w),
        "cos": np.cos(w), "tanh": np.tanh(w), "sigmoid": sigmoid(w), "relu": np.maximum(w, 0),
        "gelu": 0.5 * w * (1 + erf(w / math.sqrt(2))),
        "gelu_tanh": 0.5 * w * (1 + np.tanh(math.sqrt(2 / math.pi) * (w + 0.044715 * w**3))),
        "silu": w * sigmoid(w), "erf": erf(w), "floor": np.floor(w), "ceil": np.ceil(w),
        "round": np.round(w), "square": w * w,
    }.items():
        case(name, [x], y)
    for name, y in {"log": np.log(wide(p)), "sqrt": np.sqrt(wide(p)), "rsqrt": wide(p) ** -0.5,
                    "recip": 1 / wide(p), "pow_number": wide(p) ** 1.5}.items():
        case(name, [p], y)
    case("clamp", [x], np.clip(w, -1, 2))


def binary():
    a, b = f(2, 1, 3), f(4, 1)
    for name, fn in {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
                     "maximum": np.maximum, "minimum": np.minimum}.items():
        case(name, [a, b], fn(wide(a), wide(b)))
    base = np.abs(f(3)) + np.float32(0.5)
    e = f(2, 3)
    case("pow", [base, e], wide(base) ** wide(e))
    i, j = np.array([[1, 2, 3]], np.int32), np.array([[2], [3]], np.int32)
    for name, fn in {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
                     "gt": np.greater, "ge": np.greater_equal}.items():
        case(name, [i, j], fn(i, j))
    s, t = np.array([True, True, False, False]), np.array([[True], [False]])
    case("and", [s, t], s & t)
    case("or", [s, t], s | t)
    case("not", [s], ~s)
    c, x, y = np.array([[True], [False]]), f(2, 3), f(3)
    case("select", [c, x, y], np.where(c, x, y))
    case("select_number", [c, x], np.where(c, x, np.float32(7)))
    case("int_div", [np.array([7, -7, 9], np.int32), np.array([2, 2, -4], np.int32)],
         np.array([3, -3, -2], np.int32))
    case("cast_int", [np.array([1.9, -1.9, 300.0, np.nan], np.float32)],
         np.array([1, -1, 300, 0], np.int32))
    case("cast_bool", [np.array([0, 3, -1], np.int64)], np.array([False, True, True]))


def reductions():
    x = f(2, 3, 4)
    w = wide(x)
    for name, fn in {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min,
                     "prod": np.prod}.items():
        case(f"{name}_last", [x], fn(w, axis=-1))
        case(f"{name}_two_kept", [x], fn(w, axis=(0, 2), keepdims=True))
        case(f"{name}_all", [x], fn(w))
    case("var", [x], w.var(axis=(1, 2)))
    case("var_unbiased", [x], w.var(axis=0, ddof=1, keepdims=True))
    case("logsumexp", [x], np.log(np.exp(w).sum(axis=1)))
    big = np.array([[1000.0, 999.0], [-np.inf, -np.inf], [np.inf, 0.0]], np.float32)
    case("logsumexp_far", [big], np.array([1000 + math.log(1 + math.exp(-1)), -np.inf, np.inf]))
    case("argmax", [x], x.argmax(1).astype(np.int32))
    case("argmin", [x], x.argmin(2).astype(np.int32))
    ints = np.array([[3, -128, 5], [-128, 127, -128]], np.int8)
    case("argmin_int", [ints], ints.argmin(1).astype(np.int32))
    bytes_ = np.array([[3, 0, 0], [255, 254, 255]], np.uint8)
    case("argmin_u8", [bytes_], bytes_.argmin(1).astype(np.int32))
    whole = np.array([[1, 2], [3, 4]], np.int64)
    case("sum_int", [whole], whole.sum(0))
    case("sum_empty", [np.zeros((0, 3), np.float32)], np.zeros(3))


def order():
    x = np.array([[3, 1, 2, 1], [0, -1, 5, 4]], np.float32)
    up, down = np.argsort(x, 1, kind="stable"), np.argsort(-x, 1, kind="stable")
    case("cumsum", [x], wide(x).cumsum(0))
    case("sort", [x], np.take_along_axis(x, up, 1), up.astype(np.int32))
    case("sort_down", [x], np.take_along_axis(x, down, 1), down.astype(np.int32))
    case("top_k", [x], np.take_along_axis(x, down, 1)[:, :2], down[:, :2].astype(np.int32))
    by0 = np.argsort(-x, 0, kind="stable")
    case("top_k_first_axis", [x], np.take_along_axis(x, by0, 0)[:1], by0[:1].astype(np.int32))


def products():
    for name, a, b in [
        ("matmul", (2, 3), (3, 4)), ("matmul_batch", (2, 1, 2, 3), (5, 3, 4)),
        ("matmul_vector_right", (2, 2, 3), (3,)), ("matmul_vector_left", (3,), (2, 3, 4)),
        ("matmul_dot", (3,), (3,)),
    ]:
        x, y = f(*a), f(*b)
        case(name, [x, y], wide(x) @ wide(y))
    x, w, b = f(2, 3), f(4, 3), f(4)
    case("linear", [x, w, b], wide(x) @ wide(w).T + wide(b))


def conv(x, w, stride, padding, dilation, groups):
    n, c_in, *size = x.shape
    c_out, per, *kernel = w.shape
    x = np.pad(wide(x), [(0, 0), (0, 0)] + padding)
    out = [(x.shape[2 + i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1
           for i in range(len(kernel))]
    y = np.zeros((n, c_out, *out))
    for o in range(c_out):
        first = o // (c_out // groups) * per
        for at in itertools.product(*map(range, out)):
            for k in itertools.product(*map(range, kernel)):
                place = tuple(a * s + j * d for a, s, j, d in zip(at, stride, k, dilation))
                y[(slice(None), o, *at)] += (
                    x[(slice(None), slice(first, first + per), *place)] @ wide(w)[(o, slice(None), *k)])
    return y


def pools(x, window, stride, padding, fn, fill):
    x = np.pad(wide(x), [(0, 0), (0, 0)] + padding, constant_values=fill)
    out = [(x.shape[2 + i] - window[i]) // stride[i] + 1 for i in range(len(window))]
    y = np.zeros((*x.shape[:2], *out))
    for at in itertools.product(*map(range, out)):
        part = x[(slice(None), slice(None), *(slice(a * s, a * s + k) for a, s, k in zip(at, stride, window)))]
        y[(slice(None), slice(None), *at)] = fn(part, axis=tuple(range(2, part.ndim)))
    return y


def windows():
    x, w = f(2, 4, 9), f(6, 2, 3)
    case("conv1d", [x, w], conv(x, w, [2], [(1, 2)], [2], 2))
    x, w = f(2, 3, 6, 5), f(4, 3, 3, 2)
    case("conv2d", [x, w], conv(x, w, [1, 1], [(0, 0), (0, 0)], [1, 1], 1))
    case("conv2d_options", [x, w], conv(x, w, [2, 1], [(1, 1), (0, 1)], [1, 2], 1))
    x, w = f(1, 4, 5, 5), f(4, 1, 3, 3)
    case("conv2d_depthwise", [x, w], conv(x, w, [1, 1], [(1, 1), (1, 1)], [1, 1], 4))
    x = f(2, 2, 6, 5)
    case("max_pool2d", [x], pools(x, [2, 3], [2, 1], [(0, 1), (1, 1)], np.max, -np.inf))
    case("avg_pool2d", [x], pools(x, [2, 2], [2, 2], [(0, 0), (1, 0)], np.mean, 0))
    x = f(2, 3, 8)
    case("max_pool1d", [x], pools(x, [2], [2], [(0, 0)], np.max, -np.inf))
    case("avg_pool1d", [x], pools(x, [3], [1], [(1, 1)], np.mean, 0))


def norms():
    x = f(2, 3, 4)
    w = wide(x)
    case("softmax", [x], softmax(w))
    case("softmax_along", [x], softmax(w, 1))
    case("log_softmax", [x], np.log(softmax(w)))
    case("log_softmax_along", [x], np.log(softmax(w, 0)))
    g, b = f(4), f(4)
    centred = w - w.mean(-1, keepdims=True)
    case("layer_norm", [x, g, b],
         centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * wide(g) + wide(b))
    case("rms_norm", [x, g], w / np.sqrt((w**2).mean(-1, keepdims=True) + 1e-6) * wide(g))
    x, g, b = f(2, 6, 2, 2), f(6), f(6)
    grouped = wide(x).reshape(2, 3, -1)
    grouped = grouped - grouped.mean(-1, keepdims=True)
    grouped /= np.sqrt((grouped**2).mean(-1, keepdims=True) + 1e-5)
    case("group_norm", [x, g, b], grouped.reshape(x.shape) * wide(g).reshape(6, 1, 1)
         + wide(b).reshape(6, 1, 1))
    logits, target = f(3, 5), np.array([4, 0, 2], np.int32)
    case("cross_entropy", [logits, target],
         -np.log(softmax(wide(logits)))[np.arange(3), target])


def shapes():
    x = f(2, 3, 4)
    case("reshape", [x], x.reshape(4, -1))
    case("flatten", [x], x.reshape(-1))
    case("transpose", [x], x.swapaxes(0, 2))
    case("permute", [x], x.transpose(2, 0, 1))
    case("slice", [x], x[:, 1:])
    case("slice_negative", [x], x[..., -3:-1])
    case("slice_beyond", [x], x[:, :, 2:99])
    case("slice_step", [x], x[..., 1::2])
    case("slice_back", [x], x[..., ::-1][..., ::2])
    case("index", [x], x[:, -1])
    y, z = f(2, 1, 4), f(2, 2, 4)
    case("concat", [x, y, z], np.concatenate([x, y, z], 1))
    case("stack", [x[0], x[1]], np.stack([x[0], x[1]], -1))
    case("split", [x], x[..., :1], x[..., 1:])
    case("pad", [x], np.pad(x, [(0, 0), (1, 0), (0, 2)], constant_values=1.5))
    case("squeeze", [y], y[:, 0])
    case("squeeze_all", [y[:1]], y[0, 0])
    case("unsqueeze", [x], x[:, :, None])
    case("expand", [y], np.broadcast_to(y, (3, 2, 5, 4)))
    case("flip", [x], x[::-1, :, ::-1])
    case("tril", [x], np.tril(x, 1))
    case("triu", [x], np.triu(x, -1))
    case("iota", [], np.broadcast_to(np.arange(3, dtype=np.int32)[:, None], (3, 2)))


def indices():
    x = f(3, 4)
    rows = np.array([[2, 0], [1, 1]], np.int32)
    case("take", [x, rows], x[rows])
    case("index_select", [x, np.array([3, 0, 3], np.int64)], x[:, [3, 0, 3]])
    along = np.array([[3, 0], [1, 1]], np.int32)
    case("gather", [x, along], np.take_along_axis(x[:2], along, 1))
    added, y = f(2, 2), wide(x).copy()
    np.add.at(y, (np.array([[0, 0], [1, 1]]), along), wide(added))
    case("scatter_add", [x, along, added], y)
    source, y = f(3, 4), wide(x).copy()
    np.add.at(y, np.array([2, 2, 0]), wide(source))
    case("index_add", [x, np.array([2, 2, 0], np.int32), source], y)
    case("one_hot", [np.array([[1, 0], [2, -1]], np.int32)],
         np.array([[[0, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, 0]]], np.float32))


def rotate(x, theta, halves):
    t, h, d = x.shape
    y, n = wide(x).copy(), d // 2
    for p in range(t):
        for i in range(n):
            a, b = (i, i + n) if halves else (2 * i, 2 * i + 1)
            angle = (p + 3) * theta ** (-2 * i / d)
            c, s = math.cos(angle), math.sin(angle)
            y[p, :, a], y[p, :, b] = (wide(x)[p, :, a] * c - wide(x)[p, :, b] * s,
                                      wide(x)[p, :, a] * s + wide(x)[p, :, b] * c)
    return y


def attention():
    q, k, v = f(2, 3, 4), f(2, 5, 4), f(2, 5, 6)
    scores = wide(q) @ wide(k).swapaxes(-1, -2) / 2
    case("attention", [q, k, v], softmax(scores) @ wide(v))
    seen = np.arange(5) <= np.arange(3)[:, None] + 2
    case("attention_causal", [q, k, v], softmax(np.where(seen, scores, -np.inf)) @ wide(v))
    case("attention_cap", [q, k, v], softmax(2 * np.tanh(scores * 3 / 2)) @ wide(v))
    x = f(3, 2, 6)
    case("rope_halves", [x, np.int32(3)], rotate(x, 100.0, True))
    case("rope_neighbours", [x, np.arange(3, 6, dtype=np.int32)], rotate(x, 100.0, False))
    batch = f(2, 3, 2, 4)
    case("rope_batch", [batch, np.arange(3, 6, dtype=np.int32)],
         np.stack([rotate(b, 10.0, True) for b in batch]))
    heads = f(2, 3, 8)
    case("split_heads", [heads], heads.reshape(2, 3, 2, 4).swapaxes(1, 2))
    case("merge_heads", [heads.reshape(2, 3, 4, 2)],
         heads.reshape(2, 3, 4, 2).swapaxes(1, 2).reshape(2, 4, 6))


for make in (unary, binary, reductions, order, products, windows, norms, shapes, indices, attention):
    make()
OUT.parent.mkdir(parents=True, exist_ok=True)
OUT.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
print(f"{len(cases)} cases, {OUT.stat().st_size} bytes")
