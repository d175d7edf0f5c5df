#!/usr/bin/env python3
"""Expected values of every op, computed in f64 with NumPy (convolution, windows and random bits with
JAX) and rounded once to the result's type.

Writes ir/tests/data/ops.json, a list of cases: op, note, attrs, operands, results. A tensor has
dtype, shape and values (row-major; f64, NaN and infinities as strings), or hex with the bytes of a
quantised type; a packed one has a layout.

Made with gguf 0.19.0, numpy 2.4 and jax 0.10.2:  python3 scripts/oracles/ops.py
"""

import json
import math
import pathlib

import gguf
import jax
import numpy as np
from gguf.quants import dequantize, quantize
from jax import lax
from jax.extend.random import threefry2x32_p

OUT = pathlib.Path(__file__).resolve().parents[2] / "ir/tests/data/ops.json"
np.seterr(all="ignore")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")
rng = np.random.default_rng(20240607)
NAN, INF = math.nan, math.inf
INTS = {"i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "u8": np.uint8, "u32": np.uint32}
FLOATS = {"f32": np.float32, "f16": np.float16, "f64": np.float64}


def bf16(x):
    """f64 values rounded to nearest even with 8 significant bits (normal numbers only)."""
    x = np.asarray(x, np.float64)
    mantissa, exponent = np.frexp(x)
    return np.where(np.isfinite(x), np.ldexp(np.rint(mantissa * 256), exponent - 8), x)


class T:
    """A tensor: its values after rounding (as f64, or as the integer type)."""

    def __init__(self, dtype, data, hexed=None, layout=None):
        self.dtype, self.hexed, self.layout = dtype, hexed, layout
        if dtype in INTS:
            self.a = np.asarray(data).astype(INTS[dtype])
        elif dtype == "bool":
            self.a = np.asarray(data).astype(bool)
        elif dtype == "bf16":
            self.a = bf16(data)
        elif dtype in FLOATS:
            self.a = np.asarray(data).astype(FLOATS[dtype]).astype(np.float64)
        else:
            self.a = np.asarray(data, np.float64)

    def json(self):
        out = {"dtype": self.dtype, "shape": list(self.a.shape)}
        if self.layout:
            out["layout"] = self.layout
        if self.hexed is not None:
            out["hex"] = self.hexed
        else:
            values = self.a.ravel()
            # Fewest digits that give the same f32 back.
            short = (float(str(np.float32(v))) for v in values) if self.dtype == "f32" else values.tolist()
            out["values"] = [number(v) for v in short]
            if self.dtype == "f64":  # not every JSON reader rounds correctly
                out["values"] = [str(v) for v in out["values"]]
        return out


def number(v):
    if isinstance(v, float) and not math.isfinite(v):
        return "nan" if math.isnan(v) else ("inf" if v > 0 else "-inf")
    return int(v) if isinstance(v, bool) else v


def quantised(kind, rows, cols):
    t = gguf.GGMLQuantizationType[kind.upper()]
    raw = quantize(rng.normal(size=(rows, cols)).astype(np.float32), t)
    return T(kind, dequantize(raw, t), raw.tobytes().hex())


def normal(*shape, dtype="f32", scale=1.0):
    return T(dtype, rng.normal(size=shape) * scale)


CASES = []


def case(op, operands, results, note="", **attrs):
    CASES.append({"op": op, "note": note, "attrs": attrs,
                  "operands": [t.json() for t in operands], "results": [t.json() for t in results]})


# Elementwise, one operand -----------------------------------------------------------------------

def vec(f):
    return np.vectorize(f, otypes=[np.float64])


def sigmoid(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def gelu(x):
    return np.where(x == -INF, 0.0, x * 0.5 * vec(lambda v: math.erfc(-v / math.sqrt(2)))(x))


def gelu_tanh(x):
    return np.where(x == -INF, 0.0, 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def silu(x):
    return np.where(x == -INF, 0.0, x * sigmoid(x))


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.75, 88.0, -88.0, INF, -INF, NAN, 1e-30]
UNARY = {
    "neg": np.negative, "abs": np.abs, "sign": np.sign, "exp": np.exp, "log": np.log,
    "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "cos": np.cos,
    "tanh": np.tanh, "sigmoid": sigmoid, "relu": lambda x: np.maximum(x, 0), "gelu": gelu,
    "gelu_tanh": gelu_tanh, "silu": silu, "erf": vec(math.erf), "floor": np.floor,
    "ceil": np.ceil, "round": np.rint,
}
for op, f in UNARY.items():
    x = T("f32", SPECIAL)
    case(op, [x], [T("f32", f(x.a))], "special values")
    for dtype in ["f32", "f16", "bf16", "f64"]:
        x = T(dtype, np.abs(rng.normal(size=(2, 5))) * 2 if op in ("log", "sqrt", "rsqrt") else rng.normal(size=(2, 5)) * 2)
        if op == "gelu_tanh":  # the textbook form above cancels far on the negative side
            x = T(dtype, np.clip(x.a, -2.5, None))
        case(op, [x], [T(dtype, f(x.a))], dtype)
for op in ["neg", "abs", "sign", "relu"]:
    for dtype in ["i8", "i32", "i64", "u8"]:
        info = np.iinfo(INTS[dtype])
        x = T(dtype, np.array([0, 1, 2, info.min, info.max], dtype=INTS[dtype]))
        case(op, [x], [T(dtype, UNARY[op](x.a))], f"{dtype} with both ends")
case("not", [T("bool", [True, False])], [T("bool", [False, True])])

# Elementwise, two operands ----------------------------------------------------------------------
BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power,
          "max": np.maximum, "min": np.minimum}
COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
           "ge": np.greater_equal}
SHAPES = [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1, 3), (4, 1)), ((), (2, 2)), ((2, 3), ()), ((0, 3), (1,))]
for op, f in {**BINARY, **COMPARE}.items():
    out = "bool" if op in COMPARE else None
    for sa, sb in SHAPES:
        a, b = normal(*sa), normal(*sb)
        if op == "pow":
            a = T("f32", np.abs(a.a))
        case(op, [a, b], [T(out or "f32", f(a.a, b.a))], f"{sa} with {sb}")
    a = T("f32", [NAN, 1, INF, -INF, 0, 2, 0])
    b = T("f32", [1, NAN, INF, INF, 0, 2, -1])
    case(op, [a, b], [T(out or "f32", f(a.a, b.a))], "special values")
    for dtype in ["f16", "bf16", "f64"]:
        a, b = T(dtype, np.abs(rng.normal(size=(3,)))), normal(3, dtype=dtype)
        case(op, [a, b], [T(out or dtype, f(a.a, b.a))], dtype)
    if op == "pow":
        continue
    for dtype, x, y in [("i8", [100, -128, 7, -7], [100, -1, -2, 2]), ("u8", [200, 0, 9], [100, 1, 2]),
                        ("i32", [2**31 - 1, -5, 7], [2, 3, -2]), ("u32", [2**32 - 1, 0, 5], [2, 1, 3]),
                        ("i64", [2**62, -(2**63), 2**53 + 1], [2, 3, 2**53]), ("i16", [300, -7], [200, 2])]:
        a, b = T(dtype, np.array(x, INTS[dtype])), T(dtype, np.array(y, INTS[dtype]))
        if op == "div":  # towards zero; NumPy's // goes down
            wide = [abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1) for p, q in zip(x, y)]
            bits = np.iinfo(INTS[dtype]).bits
            want = np.array([w % 2**bits for w in wide], np.uint64).astype(INTS[dtype])
        else:
            want = f(a.a, b.a)
        case(op, [a, b], [T(out or dtype, want)], f"{dtype}, wrapping")
p, q = T("bool", [[True], [False]]), T("bool", [True, False])
case("and", [p, q], [T("bool", p.a & q.a)], "broadcast")
case("or", [p, q], [T("bool", p.a | q.a)], "broadcast")
case("eq", [p, q], [T("bool", p.a == q.a)], "bool")
case("lt", [p, q], [T("bool", p.a < q.a)], "bool")
for dtype in ["f32", "f16", "i64", "bool"]:
    a, b = T(dtype, rng.integers(0, 2, (2, 3))), T(dtype, rng.integers(0, 2, (1,)))
    case("select", [p, a, b], [T(dtype, np.where(p.a, a.a, b.a))], f"{dtype}, all broadcast")
a, b = T("f32", [NAN, 1.0]), T("f32", [2.0, INF])
case("select", [q, a, b], [T("f32", [NAN, INF])], "what is not picked does not matter")

# Casts ------------------------------------------------------------------------------------------
x = [0.0, -0.0, 1.9, -1.9, 127.5, 128.0, -129.0, 255.9, 300.0, 1e10, -1e10, 1e20, -1e20, INF, -INF, NAN]
for dtype, kind in INTS.items():
    info = np.iinfo(kind)
    want = [0 if math.isnan(v) else info.max if v >= info.max else info.min if v <= info.min else math.trunc(v) for v in x]
    src = T("f64", x)
    case("cast", [src], [T(dtype, np.array(want, kind))], "truncates and saturates")
case("cast", [T("f64", x)], [T("bool", [v != 0 for v in x])], "to bool")
for dtype in ["f32", "f16", "bf16"]:
    tie = [1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-45, 1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-45, 1 + 2.0**-24, 1 + 2.0**-24 + 2.0**-50, 3.0e4, 1 / 3]
    case("cast", [T("f64", tie)], [T(dtype, tie)], "rounds once")
case("cast", [T("i32", [0, 1, -1, 300, -129, 2**31 - 1])], [T("i8", [0, 1, -1, 44, 127, -1])], "integers wrap")
case("cast", [T("i32", [0, 5, -1])], [T("u32", np.array([0, 5, 2**32 - 1]))], "integers wrap")
case("cast", [T("i64", [2**24 + 1, -(2**40) - 1])], [T("f32", [2.0**24, -(2.0**40)])], "integers round")
case("cast", [T("bool", [True, False])], [T("f32", [1, 0])], "bool")
for kind in ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]:
    w = quantised(kind, 2, 64)
    case("cast", [w], [T("f32", w.a)], "dequantises")
    case("cast", [w], [T("f16", w.a)], "dequantises")

# Making and moving ------------------------------------------------------------------------------
case("splat", [], [T("f32", np.full((2, 3), 0.1))], value=0.1)
case("splat", [], [T("i64", np.full(2, 2**60 + 1))], "an integer beyond f64", value=2**60 + 1)
case("splat", [], [T("bf16", np.full((), 1.5))], "scalar", value=1.5)
case("splat", [], [T("bool", np.full((1, 2), True))], value=1)
case("iota", [], [T("i32", np.arange(6).reshape(1, 6).repeat(2, 0))], axis=-1)
case("iota", [], [T("f16", np.arange(3).reshape(3, 1).repeat(2, 1))], axis=0)
case("iota", [], [T("u8", np.arange(300) % 256)], "wraps", axis=0)
x = normal(2, 6)
case("reshape", [x], [T("f32", x.a.reshape(3, 4))])
case("reshape", [T("i8", [7])], [T("i8", np.array(7))], "to a scalar")
case("reshape", [T("f32", np.zeros((0, 4)))], [T("f32", np.zeros((2, 0)))], "empty")
x = normal(2, 1)
case("broadcast", [x], [T("f32", np.broadcast_to(x.a, (3, 2, 4)))])
case("broadcast", [T("i64", np.array(2**62 + 1))], [T("i64", np.full((2,), 2**62 + 1))], "scalar")
x = normal(2, 3, 4)
for perm in [(0, 1, 2), (2, 0, 1), (1, 0, 2)]:
    case("transpose", [x], [T("f32", x.a.transpose(perm))], perm=list(perm))
x = T("f16", [[NAN, 1, 2], [3, 4, 5]])
case("transpose", [x], [T("f16", x.a.T)], "keeps NaN", perm=[1, 0])
x = T("i32", np.arange(30).reshape(5, 6))
case("slice", [x], [T("i32", x.a[1:4, ::2])], starts=[1, 0], limits=[4, 6], steps=[1, 2])
case("slice", [x], [T("i32", x.a[1:4, 5:6])], "no steps", starts=[1, 5], limits=[4, 6])
case("slice", [x], [T("i32", x.a[:, 1:6:4])], "whole axis, uneven step", starts=[0, 1], limits=[-1, 6], steps=[1, 4])
case("slice", [x], [T("i32", x.a[2:2, :1])], "empty, step beyond the axis", starts=[2, 0], limits=[2, 6], steps=[1, 9])
a, b, c = normal(2, 3), normal(2, 1), normal(2, 0)
case("concat", [a, b, c], [T("f32", np.concatenate([a.a, b.a], 1))], axis=-1)
case("concat", [a, a], [T("f32", np.concatenate([a.a, a.a], 0))], axis=0)
case("concat", [b], [b], "one operand", axis=1)
x = normal(4, 3, 2)
i = T("i32", [[3, 0], [1, 1]])
for axis in [0, 1, -1]:
    j = i if axis == 0 else T("i64", [1, 0, 1])
    case("gather", [x, j], [T("f32", np.take(x.a, j.a, axis))], axis=axis)
case("gather", [x, T("i32", np.array(2))], [T("f32", x.a[2])], "scalar index", axis=0)
for kind in ["q4_1", "q8_0", "q5_0"]:
    w = quantised(kind, 5, 32)
    case("gather", [w, T("i32", [4, 0, 4])], [T("f32", w.a[[4, 0, 4]])], "quantised rows", axis=0)

# Reductions -------------------------------------------------------------------------------------
REDUCE = {"reduce_sum": np.sum, "reduce_mean": np.mean, "reduce_prod": np.prod, "reduce_max": np.max, "reduce_min": np.min}
for op, f in REDUCE.items():
    x = normal(2, 3, 4)
    for axes in [[0], [1, -1], [0, 1, 2], [], [-2]]:
        keep = len(axes) == 1
        case(op, [x], [T("f32", f(x.a, axis=tuple(axes), keepdims=keep))], axes=axes, keepdims=keep)
    x = normal(3, 7, dtype="f16")
    case(op, [x], [T("f16", f(x.a, axis=1))], "f16", axes=[1])
    x = T("f32", [[1, NAN, 3], [NAN, 2, 1], [INF, 1, 2]])
    case(op, [x], [T("f32", f(x.a, axis=1))], "special values", axes=[1])
    if op != "reduce_mean":
        x = T("i8", [[100, 100, -128], [3, -5, 7]])
        want = f(x.a, axis=1, dtype=np.int8) if op in ("reduce_sum", "reduce_prod") else f(x.a, axis=1)
        case(op, [x], [T("i8", want)], "i8, wrapping", axes=[1])
EMPTY = T("f32", np.zeros((2, 0)))
for op, v in [("reduce_sum", 0), ("reduce_prod", 1), ("reduce_mean", NAN), ("reduce_max", -INF), ("reduce_min", INF)]:
    case(op, [EMPTY], [T("f32", np.full(2, v))], "of nothing", axes=[1])
case("reduce_max", [T("i16", np.zeros((1, 0)))], [T("i16", [-32768])], "of nothing", axes=[1])
case("reduce_min", [T("u32", np.zeros((1, 0)))], [T("u32", np.array([2**32 - 1]))], "of nothing", axes=[1])
x = normal(3, 4, 2)
for axis in [0, 1, -1]:
    case("argmax", [x], [T("i32", np.argmax(x.a, axis))], axis=axis)
case("argmax", [T("f32", [[1, 3, 3], [INF, NAN, NAN], [-0.0, 0.0, -1]])], [T("i32", [1, 1, 0])], "ties and NaN", axis=1)
case("argmax", [T("i64", [2**53, 2**53 + 1])], [T("i32", np.array(1))], "beyond f64", axis=0)
x = normal(2, 9)
order = np.argsort(-x.a, axis=1, kind="stable")[:, :4]
case("top_k", [x], [T("f32", np.take_along_axis(x.a, order, 1)), T("i32", order)], k=4)
case("top_k", [T("f32", [1, NAN, 5, 5, INF])], [T("f32", [NAN, INF, 5, 5]), T("i32", [1, 4, 2, 3])], "ties and NaN", k=4)
case("top_k", [T("i32", [[3, 3, 1]])], [T("i32", [[3, 3, 1]]), T("i32", [[0, 1, 2]])], "integers", k=3)

# Products ---------------------------------------------------------------------------------------
for sa, sb, tr in [((2, 3), (3, 4), False), ((2, 3), (4, 3), True), ((5, 2, 3), (3, 4), False), ((5, 2, 3), (4, 3), True),
                   ((1, 2, 3), (5, 3, 4), False), ((2, 1, 2, 19), (3, 4, 19), True), ((2, 0), (0, 3), False), ((0, 3), (2, 3), True)]:
    a, b = normal(*sa), normal(*sb)
    case("matmul", [a, b], [T("f32", a.a @ (np.swapaxes(b.a, -1, -2) if tr else b.a))], f"{sa} {sb}", transpose_b=tr)
for da, db in [("f16", "f16"), ("bf16", "f32"), ("f64", "f64"), ("f32", "f16"), ("f32", "bf16")]:
    a, b = normal(2, 33, dtype=da), normal(33, 3, dtype=db)
    case("matmul", [a, b], [T(da, a.a @ b.a)], f"{da} {db}")
for kind in ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]:
    w, x = quantised(kind, 3, 64), normal(2, 64)
    case("matmul", [x, w], [T("f32", x.a @ w.a.T)], f"{kind} weights", transpose_b=True)
w, x, r, b = quantised("q4_1", 6, 32), normal(3, 32), normal(3, 6), normal(6)
v, u = normal(6, 32), normal(4, 32, dtype="f16")
packed = T("q4_1", w.a, w.hexed, "r16")
case("pack", [w], [packed])
case("matmul", [x, packed], [T("f32", x.a @ w.a.T)], "packed weights", transpose_b=True)
case("matmul_add", [x, w, r], [T("f32", x.a @ w.a.T + r.a)], "whole addend")
case("matmul_add", [x, packed, b], [T("f32", x.a @ w.a.T + b.a)], "row, packed")
case("matmul_act", [x, w, b], [T("f32", np.maximum(x.a @ w.a.T + b.a, 0))], transpose_b=True, act="relu")
case("matmul_act", [x, T("f32", x.a.T)], [T("f32", np.tanh(x.a @ x.a.T))], "plain, no addend", act="tanh")
case("matmul_act", [x, w, r], [T("f32", silu(x.a @ w.a.T + r.a))], "whole addend", transpose_b=True, act="silu")
for act, f in [("silu", silu), ("gelu", gelu), ("gelu_tanh", gelu_tanh)]:
    case("matmul_gated", [x, w, v], [T("f32", f(x.a @ w.a.T) * (x.a @ v.a.T))], act=act)
case("matmul_multi", [x, w, u, v], [T("f32", x.a @ y.a.T) for y in (w, u, v)], weights=3)
c = normal(4)
case("matmul_multi", [x, w, u, v, c, b], [T("f32", x.a @ w.a.T + b.a), T("f32", x.a @ u.a.T + c.a), T("f32", x.a @ v.a.T)],
     "biases out of order", weights=3, biases=[1, 0])

# Softmax and norms ------------------------------------------------------------------------------

def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x, axis=-1):
    d = x - x.max(axis, keepdims=True)
    return d - np.log(np.exp(d).sum(axis, keepdims=True))


for op, f in [("softmax", softmax), ("log_softmax", log_softmax)]:
    x = normal(2, 3, 4, scale=3)
    for axis in [0, 1, -1]:
        case(op, [x], [T("f32", f(x.a, axis))], axis=axis)
    x = T("f32", [[1000, 999, -1000], [-INF, 0, 1], [NAN, 0, 1], [-INF, -INF, -INF]])
    case(op, [x], [T("f32", f(x.a))], "special values", axis=1)
    x = normal(2, 5, dtype="bf16")
    case(op, [x], [T("bf16", f(x.a))], "bf16", axis=-1)
for dtype in ["f32", "f16", "f64"]:
    x, w, b = normal(2, 3, 8, dtype=dtype), normal(8), normal(8)
    y = x.a / np.sqrt((x.a**2).mean(-1, keepdims=True) + 1e-5)
    case("rms_norm", [x, w], [T(dtype, y * w.a)], dtype, eps=1e-5)
    y = (x.a - x.a.mean(-1, keepdims=True)) / np.sqrt(x.a.var(-1, keepdims=True) + 1e-5)
    case("layer_norm", [x, w, b], [T(dtype, y * w.a + b.a)], dtype, eps=1e-5)
case("rms_norm", [T("f32", np.zeros((1, 4))), T("f32", np.ones(4))], [T("f32", np.zeros((1, 4)))], "zeros", eps=1e-6)


# Rotary embedding: complex numbers, YaRN as in the paper with ggml's bounds ----------------------

def rope(x, positions, mode, theta, n_dims, freq_scale=1.0, ext_factor=0.0, attn_factor=1.0, beta_fast=32.0,
         beta_slow=1.0, n_ctx_orig=0, factors=None):
    tokens, heads, dim = x.shape
    half = n_dims // 2
    i = np.arange(half)
    freq = theta ** (-2.0 * i / n_dims) / (1.0 if factors is None else factors)
    mag = attn_factor
    if ext_factor:
        bound = [n_dims * math.log(n_ctx_orig / (2 * math.pi * beta)) / (2 * math.log(theta)) for beta in (beta_fast, beta_slow)]
        low, high = max(0, math.floor(bound[0])), min(n_dims - 1, math.ceil(bound[1]))
        keep = (1 - np.clip((i - low) / max(0.001, high - low), 0, 1)) * ext_factor
        freq = freq * freq_scale * (1 - keep) + freq * keep
        mag *= 1 + 0.1 * math.log(1 / freq_scale)
    else:
        freq = freq * freq_scale
    turn = mag * np.exp(1j * np.asarray(positions)[:, None] * freq[None])[:, None, :]
    first, second = (np.s_[0:n_dims:2], np.s_[1:n_dims:2]) if mode == "norm" else (np.s_[:half], np.s_[half:n_dims])
    z = (x[..., first] + 1j * x[..., second]) * turn
    out = x.copy()
    out[..., first], out[..., second] = z.real, z.imag
    return out


x = normal(3, 2, 8)
start, given = T("i32", np.array(5)), T("i32", [7, 0, 4000])
YARN = dict(freq_scale=0.25, ext_factor=1.0, n_ctx_orig=2048)
VARIANTS = [
    ("plain", {}), ("scaled", dict(freq_scale=0.5)), ("magnitude", dict(attn_factor=1.3)), ("yarn", YARN),
    ("yarn, half extrapolated", dict(freq_scale=0.125, ext_factor=0.5, attn_factor=0.9, beta_fast=16.0, beta_slow=2.0, n_ctx_orig=4096)),
]
for mode in ["norm", "neox"]:
    for note, extra in VARIANTS:
        for n_dims in [8, 4]:
            attrs = dict(mode=mode, theta=10000.0, n_dims=n_dims, **extra)
            case("rope", [x, start], [T("f32", rope(x.a, [5, 6, 7], **attrs))], f"{note}, {n_dims} of 8", **attrs)
            case("rope", [x, given], [T("f32", rope(x.a, given.a, **attrs))], f"{note}, positions given", **attrs)
    factors = T("f32", [1.0, 1.5, 8.0, 32.0])
    for note, extra in VARIANTS[:1] + VARIANTS[3:4]:
        attrs = dict(mode=mode, theta=500000.0, n_dims=8, **extra)
        case("rope", [x, start, factors], [T("f32", rope(x.a, [5, 6, 7], factors=factors.a, **attrs))], f"{note}, factors", **attrs)
wide = normal(2, 1, 64, dtype="f16")
attrs = dict(mode="neox", theta=1e6, n_dims=64, **YARN)
case("rope", [wide, start], [T("f16", rope(wide.a, [5, 6], **attrs))], "yarn with a real ramp", **attrs)


# Attention --------------------------------------------------------------------------------------

def attention(q, k, v, past, scale, causal=True, window=0, softcap=0.0):
    tokens, heads, _ = q.shape
    k, v = (np.repeat(t[: past + tokens], heads // t.shape[1], axis=1) for t in (k, v))
    s = np.einsum("ihd,jhd->hij", q, k) * scale
    if softcap:
        s = softcap * np.tanh(s / softcap)
    back = (past + np.arange(tokens))[:, None] - np.arange(past + tokens)[None]
    hidden = np.zeros_like(back, bool)
    if causal:
        hidden |= back < 0
    if window:
        hidden |= back >= window
    return np.einsum("hij,jhd->ihd", softmax(np.where(hidden, -INF, s)), v)


for note, tokens, past, heads, kv_heads, extra in [
    ("plain", 3, 0, 2, 2, {}), ("one token", 1, 6, 2, 2, {}), ("grouped", 2, 3, 6, 2, {}), ("one kv head", 2, 1, 4, 1, {}),
    ("not causal", 3, 2, 2, 1, dict(causal=False)), ("window", 4, 3, 2, 2, dict(window=3)), ("window of one", 2, 2, 1, 1, dict(window=1)),
    ("window, not causal", 3, 2, 2, 2, dict(window=2, causal=False)), ("soft cap", 3, 1, 2, 1, dict(softcap=1.5)),
    ("all at once", 3, 4, 4, 2, dict(window=4, softcap=5.0)), ("whole context", 2, 6, 2, 2, {}),
]:
    for dtype, cache in [("f32", "f32"), ("f32", "f16")]:
        q = normal(tokens, heads, 4, dtype=dtype, scale=2)
        k, v = normal(8, kv_heads, 4, dtype=cache), normal(8, kv_heads, 3, dtype=cache)
        y = attention(q.a, k.a, v.a, past, 0.5, **extra)
        # Rows that are not valid yet must not matter.
        k.a[past + tokens:], v.a[past + tokens:] = NAN, INF
        case("attention", [q, k, v, T("i32", np.array(past))], [T(dtype, y)], f"{note}, {cache} cache", scale=0.5, **extra)
for dtype, past, tokens in [("f16", 0, 2), ("bf16", 3, 2), ("f32", 2, 1), ("f16", 5, 0)]:
    cache, rows = normal(5, 2, 3, dtype=dtype), normal(tokens, 2, 3)
    want = cache.a.copy()
    want[past:past + tokens] = rows.a
    case("kv_append", [cache, rows, T("i32", np.array(past))], [T(dtype, want)], f"{dtype} at {past}")

# Convolution and windows ------------------------------------------------------------------------

def pairs(padding):
    return list(zip(padding[::2], padding[1::2]))


def conv(x, w, stride=None, padding=None, dilation=None, lhs_dilation=None, groups=1):
    axes = x.ndim - 2
    ones = [1] * axes
    return np.asarray(lax.conv_general_dilated(
        x, w, stride or ones, pairs(padding or [0, 0] * axes), lhs_dilation or ones, dilation or ones,
        feature_group_count=groups, precision="highest"))


for note, sx, sw, attrs in [
    ("1-d", (2, 3, 7), (4, 3, 3), {}),
    ("1-d, all", (1, 4, 9), (6, 2, 3), dict(stride=[2], padding=[3, 1], dilation=[2], lhs_dilation=[3], groups=2)),
    ("2-d", (2, 3, 5, 6), (4, 3, 3, 2), {}),
    ("same size", (1, 2, 5, 5), (3, 2, 3, 3), dict(padding=[1, 1, 1, 1])),
    ("strides", (2, 2, 7, 8), (3, 2, 3, 3), dict(stride=[2, 3], padding=[1, 0, 0, 2])),
    ("dilation", (1, 2, 7, 8), (3, 2, 3, 2), dict(dilation=[2, 3], padding=[2, 2, 0, 1])),
    ("lhs_dilation", (1, 2, 3, 4), (3, 2, 3, 3), dict(lhs_dilation=[2, 3], padding=[2, 3, 1, 1])),
    ("groups", (2, 6, 4, 4), (4, 3, 2, 2), dict(groups=2)),
    ("depthwise", (1, 3, 5, 5), (6, 1, 3, 3), dict(groups=3, padding=[1, 1, 1, 1], stride=[2, 2])),
    ("crops", (1, 2, 6, 6), (2, 2, 2, 2), dict(padding=[-1, 0, 1, -2])),
    ("crops between", (1, 1, 4, 4), (1, 1, 2, 2), dict(padding=[-1, -2, 1, -1], lhs_dilation=[2, 2])),
    ("wide padding", (1, 1, 2, 2), (1, 1, 2, 2), dict(padding=[4, 3, 2, 5], stride=[3, 2])),
    ("3-d", (1, 2, 3, 4, 3), (2, 2, 2, 2, 3), dict(padding=[0, 1, 1, 0, 1, 1])),
    ("all", (2, 4, 5, 6), (6, 2, 3, 2), dict(stride=[2, 1], padding=[2, 1, -1, 3], dilation=[1, 2], lhs_dilation=[2, 2], groups=2)),
    ("no image", (0, 2, 4, 4), (3, 2, 2, 2), {}),
]:
    x, w = normal(*sx), normal(*sw)
    case("conv", [x, w], [T("f32", conv(x.a, w.a, **attrs))], note, **attrs)
for da, db in [("f16", "f16"), ("bf16", "f32"), ("f64", "f64"), ("f32", "f16")]:
    x, w = normal(1, 2, 5, 4, dtype=da), normal(3, 2, 2, 2, dtype=db)
    case("conv", [x, w], [T(da, conv(x.a, w.a))], f"{da} {db}")


def wide(x, attrs):
    """The attributes of a window over the trailing axes as lists over all axes."""
    lead = x.ndim - len(attrs["window"])
    full = lambda name: [1] * lead + list(attrs.get(name, [1] * len(attrs["window"])))
    return full("window"), full("stride"), [(0, 0)] * lead + pairs(attrs.get("padding", [0, 0] * len(attrs["window"]))), full


def window_sum(x, **attrs):
    window, stride, padding, full = wide(x, attrs)
    return np.asarray(lax.reduce_window(x, x.dtype.type(0), lax.add, window, stride, padding, full("lhs_dilation"), full("dilation")))


def window_max(x, **attrs):
    """Value and place by looking at each window in turn."""
    axes = len(attrs["window"])
    stride, padding = attrs.get("stride", [1] * axes), pairs(attrs.get("padding", [0, 0] * axes))
    plane = x.shape[x.ndim - axes:]
    counts = [(n + lo + hi - k) // s + 1 for n, k, s, (lo, hi) in zip(plane, attrs["window"], stride, padding)]
    flat = x.reshape(-1, *plane)
    values, places = np.zeros((len(flat), *counts), x.dtype), np.zeros((len(flat), *counts), np.int32)
    for i, image in enumerate(flat):
        for at in np.ndindex(*counts):
            first = [a * s - lo for a, s, (lo, _) in zip(at, stride, padding)]
            part = tuple(slice(max(f, 0), max(f + k, 0)) for f, k in zip(first, attrs["window"]))
            held = image[part]
            best = np.unravel_index(np.argmax(held), held.shape)
            values[i, *at] = held[best]
            places[i, *at] = np.ravel_multi_index([max(f, 0) + b for f, b in zip(first, best)], plane)
    shape = x.shape[:x.ndim - axes] + tuple(counts)
    window, full_stride, full_padding, _ = wide(x, attrs)
    if x.dtype == np.float64 and np.isfinite(x).all():
        peer = lax.reduce_window(x, -np.inf, lax.max, window, full_stride, full_padding)
        assert np.array_equal(values.reshape(shape), peer)
    return values.reshape(shape), places.reshape(shape)


for note, shape, attrs in [
    ("1-d", (2, 3, 7), dict(window=[3])),
    ("2-d", (2, 5, 6), dict(window=[2, 3], stride=[2, 2])),
    ("padding", (1, 2, 5, 6), dict(window=[3, 3], stride=[2, 2], padding=[1, 1, 0, 2])),
    ("all axes", (4, 4), dict(window=[2, 2])),
    ("one big window", (2, 3, 4), dict(window=[3, 4])),
]:
    x = normal(*shape)
    case("window_sum", [x], [T("f32", window_sum(x.a, **attrs))], note, **attrs)
    y, i = window_max(x.a, **attrs)
    case("window_max", [x], [T("f32", y), T("i32", i)], note, **attrs)
for note, shape, attrs in [
    ("dilation", (2, 9), dict(window=[3], dilation=[3], padding=[2, 0])),
    ("lhs_dilation", (2, 3, 4), dict(window=[3, 2], lhs_dilation=[2, 3], padding=[2, 2, 1, 1])),
    ("crops", (2, 6, 5), dict(window=[2, 2], padding=[-1, 0, -2, 1])),
    ("all", (7, 6), dict(window=[3, 2], stride=[2, 1], padding=[3, -1, 0, 4], dilation=[2, 2], lhs_dilation=[1, 3])),
]:
    x = normal(*shape)
    case("window_sum", [x], [T("f32", window_sum(x.a, **attrs))], note, **attrs)
x = T("i8", [[100, 100, -128, 3]])
case("window_sum", [x], [T("i8", window_sum(x.a, window=[2]))], "i8, wrapping", window=[2])
case("window_max", [x], [T("i8", [[100, 100, 3]]), T("i32", [[0, 1, 3]])], "i8", window=[2])
x = T("f32", [[1, 1, NAN, 0], [-INF, -INF, -0.0, 0.0]])
case("window_max", [x], [T("f32", [[1, 1, NAN, NAN, 0], [-INF, -INF, -0.0, -0.0, 0.0]]), T("i32", [[0, 0, 2, 2, 3], [0, 0, 2, 2, 3]])],
     "ties, NaN, padding is never picked", window=[2], padding=[1, 1])
x = T("i64", [2**53, 2**53 + 1])
case("window_max", [x], [T("i64", np.array([2**53 + 1])), T("i32", [1])], "beyond f64", window=[2])
for dtype in ["f16", "f64"]:
    x = normal(3, 5, dtype=dtype)
    case("window_sum", [x], [T(dtype, window_sum(x.a, window=[3]))], dtype, window=[3])

# Order, running sums, indices -------------------------------------------------------------------
x = normal(3, 4, 2)
for axis in [0, 1, -1]:
    for descending in [False, True]:
        order = np.argsort(-x.a if descending else x.a, axis, kind="stable")
        case("sort", [x], [T("f32", np.take_along_axis(x.a, order, axis)), T("i32", order)], axis=axis, descending=descending)
x = T("f32", [2, NAN, -0.0, 0.0, -INF, INF, 2])
case("sort", [x], [T("f32", [-INF, -0.0, 0.0, 2, 2, INF, NAN]), T("i32", [4, 2, 3, 0, 6, 5, 1])], "ties and NaN", axis=0)
case("sort", [x], [T("f32", [NAN, INF, 2, 2, -0.0, 0.0, -INF]), T("i32", [1, 5, 0, 6, 2, 3, 4])], "ties and NaN", axis=0, descending=True)
case("sort", [T("i64", [2**53 + 1, 2**53, -5])], [T("i64", np.array([-5, 2**53, 2**53 + 1])), T("i32", [2, 1, 0])], "beyond f64", axis=0)
case("sort", [T("u8", [[3, 3, 1]])], [T("u8", [[1, 3, 3]]), T("i32", [[2, 0, 1]])], "integers", axis=1)
case("sort", [T("f16", np.zeros((2, 0)))], [T("f16", np.zeros((2, 0))), T("i32", np.zeros((2, 0)))], "empty", axis=1)
x = normal(3, 4, 2)
for axis in [0, 1, -1]:
    for exclusive in [False, True]:
        for reverse in [False, True]:
            y = np.flip(x.a, axis) if reverse else x.a
            y = np.cumsum(y, axis) - (y if exclusive else 0)
            y = np.flip(y, axis) if reverse else y
            case("cumsum", [x], [T("f32", y)], axis=axis, exclusive=exclusive, reverse=reverse)
case("cumsum", [T("i8", [100, 100, 1])], [T("i8", [100, -56, -55])], "i8, wrapping", axis=0)
case("cumsum", [T("f32", [1, INF, 2, NAN, 3])], [T("f32", [1, INF, INF, NAN, NAN])], "special values", axis=0)
x = normal(2, 5, dtype="bf16")
case("cumsum", [x], [T("bf16", np.cumsum(x.a, 1))], "bf16", axis=1)


def scatter_add(x, indices, updates, axis):
    axis %= x.ndim
    out, rows = x.copy(), np.moveaxis(updates.reshape(x.shape[:axis] + (-1,) + x.shape[axis + 1:]), axis, 0)
    np.add.at(np.moveaxis(out, axis, 0), indices.ravel(), rows)
    return out


x = normal(4, 3, 2)
for axis, indices in [(0, [[3, 0], [1, 1]]), (1, [1, 0, 1]), (-1, [1, 1, 1, 0]), (0, [])]:
    i = T("i32" if axis == 0 else "i64", indices)
    u = T("f32", rng.normal(size=np.take(x.a, i.a.astype(int), axis).shape))
    case("scatter_add", [x, i, u], [T("f32", scatter_add(x.a, i.a.astype(int), u.a, axis))], axis=axis)
u = normal(3, 2)
case("scatter_add", [x, T("i32", np.array(2)), u], [T("f32", scatter_add(x.a, np.array([2]), u.a[None], 0))], "scalar index", axis=0)
case("scatter_add", [T("i8", [100, 1]), T("i32", [0, 0, 1]), T("i8", [100, 1, 2])], [T("i8", [-55, 3])], "i8, wrapping", axis=0)
x = T("f16", [1, 2048])
case("scatter_add", [x, T("i64", [1, 1, 1]), T("f16", [1, 1, 1])], [T("f16", [1, 2051])], "rounds once", axis=0)

# Padding, turning, blocks, bits, identities ------------------------------------------------------
for dtype in ["f32", "f16", "i8", "bool"]:
    x = T(dtype, rng.integers(0, 2, (2, 3)))
    case("pad", [x], [T(dtype, np.pad(x.a, ((1, 0), (2, 1))))], dtype, low=[1, 2], high=[0, 1])
case("pad", [normal(0, 2)], [T("f32", np.full((2, 3), -1.5))], "around nothing", low=[1, 0], high=[1, 1], value=-1.5)
x = T("i64", [1])
case("pad", [x], [T("i64", np.array([2**60 + 1, 1]))], "an integer beyond f64", low=[1], high=[0], value=2**60 + 1)
x = normal(2, 3, 4)
for axes in [[0], [1, -1], [0, 1, 2], []]:
    case("flip", [x], [T("f32", np.flip(x.a, tuple(axes)))], axes=axes)
x = T("f16", [NAN, 1, 2])
case("flip", [x], [T("f16", x.a[::-1])], "keeps NaN", axes=[0])
for kind in ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]:
    t = gguf.GGMLQuantizationType[kind.upper()]
    x = normal(2, 64)
    raw = quantize(x.a.astype(np.float32), t)
    case("quantize", [x], [T(kind, dequantize(raw, t), raw.tobytes().hex())], kind)
    x = T("f32", np.zeros((1, 32)))
    raw = quantize(x.a.astype(np.float32), t)
    case("quantize", [x], [T(kind, dequantize(raw, t), raw.tobytes().hex())], f"{kind}, zeros")


def rng_bits(state, shape):
    """The cipher as JAX has it, over counters high and low."""
    k0, k1, high, low = (int(v) for v in state)
    n = math.prod(shape)
    at = [((high << 32 | low) + i) % 2**64 for i in range((n + 1) // 2)]
    words = lambda shift: np.array([a >> shift & 0xFFFFFFFF for a in at], np.uint32)
    key = [np.full(len(at), k, np.uint32) for k in (k0, k1)]
    out = threefry2x32_p.bind(*key, words(32), words(0)) if at else (words(0), words(0))
    bits = np.stack([np.asarray(o) for o in out], 1).ravel()[:n].reshape(shape)
    after = ((high << 32 | low) + len(at)) % 2**64
    return T("u32", bits), T("u32", np.array([k0, k1, after >> 32, after & 0xFFFFFFFF]))


for note, state, shape in [
    ("from zero", [0, 0, 0, 0], (4,)), ("odd number", [1, 2, 0, 5], (3, 3)), ("scalar", [42, 7, 0, 0], ()),
    ("carries", [2**32 - 1, 5, 3, 2**32 - 2], (2, 4)), ("wraps", [9, 8, 2**32 - 1, 2**32 - 1], (5,)), ("none", [1, 1, 1, 1], (0, 2)),
]:
    case("rng_bits", [T("u32", np.array(state))], list(rng_bits(state, shape)), note)
x, i, w = normal(2, 2), T("i32", [1, 2]), quantised("q8_0", 1, 32)
case("stop_gradient", [x], [x])
case("stop_gradient", [w], [w], "quantised")
case("transfer", [x], [x], to="gpu")
case("transfer", [w], [w], "quantised", to="cpu")
case("barrier", [x], [x])
case("barrier", [x, i, x, w], [x, i, x, w], "several")

# What fusion makes for one kernel -------------------------------------------------------------------

x, g, w, u, v, b = normal(2, 8), normal(8), normal(4, 8), normal(3, 8), normal(4, 8), normal(4)
y = np.float64(np.float32(x.a / np.sqrt((x.a**2).mean(-1, keepdims=True) + 1e-5) * g.a))
case("norm_matmul_multi", [x, g, w], [T("f32", y @ w.a.T)], "one", eps=1e-5, weights=1)
case("norm_matmul_multi", [x, g, u, w, b], [T("f32", y @ u.a.T), T("f32", y @ w.a.T + b.a)], "bias", eps=1e-5, weights=2, biases=[1])
case("norm_matmul_gated", [x, g, w, v], [T("f32", silu(y @ w.a.T) * (y @ v.a.T))], eps=1e-5, act="silu")
q, k, v = normal(2, 4, 8), normal(2, 2, 8), normal(2, 2, 6)
for dtype in ["f32", "f16"]:
    k_cache, v_cache = normal(5, 2, 8, dtype=dtype), normal(5, 2, 6, dtype=dtype)
    for mode, n_dims in [("norm", 8), ("neox", 4)]:
        attrs = dict(mode=mode, theta=10000.0, n_dims=n_dims)
        k_all, v_all = k_cache.a.copy(), v_cache.a.copy()
        k_all[2:4], v_all[2:4] = np.float64(np.float32(rope(k.a, [2, 3], **attrs))), v.a
        results = [T("f32", rope(q.a, [2, 3], **attrs)), T(dtype, k_all), T(dtype, v_all)]
        case("rope_append", [q, k, v, k_cache, v_cache, T("i32", np.array(2))], results, f"{dtype}, {mode}", **attrs)

# Experts ----------------------------------------------------------------------------------------

def expert_matmul(x, w, ids, experts):
    w = w.reshape(experts, -1, w.shape[1])[ids]
    return np.einsum("tpk,tpnk->tpn", np.broadcast_to(x, (*ids.shape, x.shape[-1])), w)


for note, x, w, ids, experts in [
    ("a row for every pick", normal(3, 2, 5), normal(12, 5), [[0, 3], [3, 1], [1, 1]], 4),
    ("one row for all picks", normal(2, 1, 5), normal(6, 5, dtype="f16"), [[2, 0, 1], [0, 2, 2]], 3),
    ("bf16, one expert", normal(2, 1, 33, dtype="bf16"), normal(4, 33), [[0], [0]], 1),
    ("quantised", normal(3, 2, 32), quantised("q4_1", 6, 32), [[1, 0], [0, 0], [1, 1]], 2),
    ("no picks", normal(2, 1, 3), normal(4, 3), np.zeros((2, 0)), 2),
]:
    ids = T("i32", np.array(ids))
    case("expert_matmul", [x, w, ids], [T(x.dtype, expert_matmul(x.a, w.a, ids.a, experts))], note, experts=experts)

OUT.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES) + "\n]\n")
print(len(CASES), "cases,", OUT.stat().st_size, "bytes")
