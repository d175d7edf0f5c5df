#!/usr/bin/env python3
"""Values and gradients of composite functions, computed by JAX in f64.

Writes passes/tests/data/autodiff.json, a list of cases: name, the body of the function in the text
form of the IR, parameters (name, type, values), the value and the gradients in parameter order. The
same function is written twice here, once for JAX and once for the IR.

The cases named `at …` sit where a function has no derivative, or where only one of several
possible conventions gives what is expected.

Made with jax 0.10.2 on the CPU:  python3 scripts/oracles/autodiff.py
"""

import json
import pathlib

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp  # noqa: E402
from jax import lax, nn  # noqa: E402

OUT = pathlib.Path(__file__).resolve().parents[2] / "passes/tests/data/autodiff.json"
rng = np.random.default_rng(7)
CASES = []


def normal(*shape):
    """Three decimals are enough, and keep the data small."""
    return np.round(rng.normal(size=shape), 3)


def positive(*shape):
    return np.round(0.3 + rng.random(size=shape) * 1.5, 3)


def number(v):
    """Infinities and NaN as strings: JSON has no numbers for them."""
    return float(v) if np.isfinite(v) else str(float(v))


def tensor(a):
    a = np.asarray(a)
    dtype = {"f": "f64", "i": "i32"}[a.dtype.kind]
    dims = "".join(f"{d}x" for d in a.shape)
    return f"tensor<{dims}{dtype}>", [number(v) for v in a.ravel()] if dtype == "f64" else a.ravel().tolist()


def case(name, f, params, body):
    """`params` in order; integers are not differentiated. The IR's last value is the result."""
    values = {k: np.asarray(v, np.int32 if np.asarray(v).dtype.kind == "i" else np.float64) for k, v in params.items()}
    wrt = [i for i, v in enumerate(values.values()) if v.dtype.kind == "f"]
    value, grads = jax.value_and_grad(f, argnums=wrt)(*[jnp.asarray(v) for v in values.values()])
    lines = [line.strip() for line in body.strip().splitlines()]
    CASES.append({
        "name": name,
        "body": lines,
        "params": [{"name": k, "type": tensor(v)[0], "values": tensor(v)[1]} for k, v in values.items()],
        "value": number(value),
        "grads": [[number(v) for v in np.asarray(g).ravel()] for g in grads],
    })


def total(expr, shape):
    """The last line: the sum of everything."""
    axes = list(range(len(shape)))
    return f"%out = reduce_sum {expr} {{axes = {axes}}} : tensor<f64>"


# --- elementwise chains
case("polynomial", lambda x: jnp.sum(3 * x**3 - x * x + 2 * x), {"x": normal(4)}, """
    %n3 = splat {value = 3} : tensor<f64>
    %n2 = splat {value = 2} : tensor<f64>
    %x3 = pow %x, %n3 : tensor<4xf64>
    %a = mul %n3, %x3 : tensor<4xf64>
    %b = mul %x, %x : tensor<4xf64>
    %c = mul %n2, %x : tensor<4xf64>
    %d = sub %a, %b : tensor<4xf64>
    %e = add %d, %c : tensor<4xf64>
    """ + total("%e", (4,)))
case("sine of a product", lambda x, y: jnp.sum(jnp.sin(x * y) / (1 + y * y)), {"x": normal(3), "y": normal(3)}, """
    %one = splat {value = 1} : tensor<f64>
    %p = mul %x, %y : tensor<3xf64>
    %s = sin %p : tensor<3xf64>
    %q = mul %y, %y : tensor<3xf64>
    %d = add %one, %q : tensor<3xf64>
    %r = div %s, %d : tensor<3xf64>
    """ + total("%r", (3,)))
case("sigmoid of tanh", lambda x: jnp.mean(nn.sigmoid(jnp.tanh(x) * 2)), {"x": normal(2, 3)}, """
    %two = splat {value = 2} : tensor<f64>
    %t = tanh %x : tensor<2x3xf64>
    %m = mul %t, %two : tensor<2x3xf64>
    %s = sigmoid %m : tensor<2x3xf64>
    %out = reduce_mean %s {axes = [0, 1]} : tensor<f64>""")
for act, f in {
    "silu": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "erf": lax.erf,
    "relu": nn.relu,
}.items():
    case(f"{act} over a wide range", lambda x, f=f: jnp.sum(f(x) * jnp.arange(9.0)),
         {"x": np.array([-30.0, -6.0, -2.5, -0.1, 0.1, 0.7, 3.0, 8.0, 40.0])}, f"""
    %y = {act} %x : tensor<9xf64>
    %i = iota {{axis = 0}} : tensor<9xf64>
    %z = mul %y, %i : tensor<9xf64>
    """ + total("%z", (9,)))
case("log of a sum of exponentials", lambda x: jnp.sum(nn.logsumexp(x, axis=1)), {"x": 5 * normal(2, 4)}, """
    %m = reduce_max %x {axes = [1], keepdims = true} : tensor<2x1xf64>
    %c = sub %x, %m : tensor<2x4xf64>
    %e = exp %c : tensor<2x4xf64>
    %s = reduce_sum %e {axes = [1], keepdims = true} : tensor<2x1xf64>
    %l = log %s : tensor<2x1xf64>
    %y = add %l, %m : tensor<2x1xf64>
    """ + total("%y", (2, 1)))
case("square root of a square", lambda x: jnp.sum(jnp.sqrt(x * x + 1e-3)), {"x": normal(5)}, """
    %e = splat {value = 0.001} : tensor<f64>
    %q = mul %x, %x : tensor<5xf64>
    %p = add %q, %e : tensor<5xf64>
    %r = sqrt %p : tensor<5xf64>
    """ + total("%r", (5,)))
case("power with both varied", lambda a, b: jnp.sum(a**b), {"a": positive(2, 3), "b": normal(3)}, """
    %p = pow %a, %b : tensor<2x3xf64>
    """ + total("%p", (2, 3)))
case("clamp", lambda x: jnp.sum(jnp.clip(x, -0.5, 0.5) ** 2), {"x": normal(8)}, """
    %lo = splat {value = -0.5} : tensor<f64>
    %hi = splat {value = 0.5} : tensor<f64>
    %a = max %x, %lo : tensor<8xf64>
    %b = min %a, %hi : tensor<8xf64>
    %c = mul %b, %b : tensor<8xf64>
    """ + total("%c", (8,)))
case("huber loss", lambda x, y: jnp.mean(jnp.where(jnp.abs(x - y) < 1, 0.5 * (x - y) ** 2, jnp.abs(x - y) - 0.5)),
     {"x": 2 * normal(6), "y": normal(6)}, """
    %half = splat {value = 0.5} : tensor<f64>
    %one = splat {value = 1} : tensor<f64>
    %d = sub %x, %y : tensor<6xf64>
    %m = abs %d : tensor<6xf64>
    %near = lt %m, %one : tensor<6xbool>
    %sq = mul %d, %d : tensor<6xf64>
    %q = mul %half, %sq : tensor<6xf64>
    %l = sub %m, %half : tensor<6xf64>
    %s = select %near, %q, %l : tensor<6xf64>
    %out = reduce_mean %s {axes = [0]} : tensor<f64>""")
case("rounding stops the gradient", lambda x: jnp.sum(x * jnp.floor(x) + jnp.round(x) + jnp.sign(x) * x), {"x": 3 * normal(5)}, """
    %f = floor %x : tensor<5xf64>
    %r = round %x : tensor<5xf64>
    %s = sign %x : tensor<5xf64>
    %a = mul %x, %f : tensor<5xf64>
    %b = mul %s, %x : tensor<5xf64>
    %c = add %a, %r : tensor<5xf64>
    %d = add %c, %b : tensor<5xf64>
    """ + total("%d", (5,)))

# --- broadcasting and shapes
case("outer product by broadcasting", lambda a, b: jnp.sum(jnp.exp(a[:, None] * b[None, :])), {"a": normal(3), "b": normal(2)}, """
    %c = reshape %a : tensor<3x1xf64>
    %p = mul %c, %b : tensor<3x2xf64>
    %e = exp %p : tensor<3x2xf64>
    """ + total("%e", (3, 2)))
case("bias over every axis but one", lambda x, b: jnp.sum(jnp.tanh(x + b[:, None]) ** 2), {"x": normal(2, 3, 2), "b": normal(3)}, """
    %c = reshape %b : tensor<3x1xf64>
    %s = add %x, %c : tensor<2x3x2xf64>
    %t = tanh %s : tensor<2x3x2xf64>
    %q = mul %t, %t : tensor<2x3x2xf64>
    """ + total("%q", (2, 3, 2)))
case("transposes and reshapes", lambda x, y: jnp.sum(jnp.transpose(x, (2, 0, 1)).reshape(4, 3) * y), {"x": normal(3, 2, 2), "y": normal(4, 3)}, """
    %t = transpose %x {perm = [2, 0, 1]} : tensor<2x3x2xf64>
    %r = reshape %t : tensor<4x3xf64>
    %p = mul %r, %y : tensor<4x3xf64>
    """ + total("%p", (4, 3)))
case("concatenation of a value with itself", lambda x: jnp.sum(jnp.cumsum(jnp.concatenate([x, 2 * x, x * x]))[-1]), {"x": normal(3)}, """
    %two = splat {value = 2} : tensor<f64>
    %d = mul %two, %x : tensor<3xf64>
    %q = mul %x, %x : tensor<3xf64>
    %c = concat %x, %d, %q {axis = 0} : tensor<9xf64>
    """ + total("%c", (9,)))
case("strided slices", lambda x: jnp.sum(x[1:7:3, ::2] ** 3 * jnp.array([[1.0, 2], [3, 4]])), {"x": normal(8, 3)}, """
    %s = slice %x {starts = [1, 0], limits = [7, 3], steps = [3, 2]} : tensor<2x2xf64>
    %q = mul %s, %s : tensor<2x2xf64>
    %c = mul %q, %s : tensor<2x2xf64>
    %i = iota {axis = 1} : tensor<2x2xf64>
    %j = iota {axis = 0} : tensor<2x2xf64>
    %k = add %j, %j : tensor<2x2xf64>
    %one = splat {value = 1} : tensor<f64>
    %m = add %i, %k : tensor<2x2xf64>
    %n = add %m, %one : tensor<2x2xf64>
    %w = mul %c, %n : tensor<2x2xf64>
    """ + total("%w", (2, 2)))
case("finite differences of a signal", lambda x: jnp.sum(jnp.diff(x) ** 2), {"x": normal(6)}, """
    %a = slice %x {starts = [1], limits = [6]} : tensor<5xf64>
    %b = slice %x {starts = [0], limits = [5]} : tensor<5xf64>
    %d = sub %a, %b : tensor<5xf64>
    %q = mul %d, %d : tensor<5xf64>
    """ + total("%q", (5,)))
case("embedding with repeated rows", lambda t, i: jnp.sum(jnp.tanh(t[i]) * jnp.arange(8.0).reshape(4, 2)),
     {"t": normal(3, 2), "i": np.array([2, 0, 2, 2])}, """
    %e = gather %t, %i {axis = 0} : tensor<4x2xf64>
    %h = tanh %e : tensor<4x2xf64>
    %n = iota {axis = 0} : tensor<8xf64>
    %w = reshape %n : tensor<4x2xf64>
    %p = mul %h, %w : tensor<4x2xf64>
    """ + total("%p", (4, 2)))
case("gather along the last axis", lambda x, i: jnp.sum(x[:, i] ** 2), {"x": normal(2, 4), "i": np.array([[3, 0], [1, 3]])}, """
    %g = gather %x, %i {axis = 1} : tensor<2x2x2xf64>
    %q = mul %g, %g : tensor<2x2x2xf64>
    """ + total("%q", (2, 2, 2)))

# --- reductions
case("variance", lambda x: jnp.sum(jnp.var(x, axis=1)), {"x": normal(2, 4)}, """
    %m = reduce_mean %x {axes = [1], keepdims = true} : tensor<2x1xf64>
    %c = sub %x, %m : tensor<2x4xf64>
    %q = mul %c, %c : tensor<2x4xf64>
    %v = reduce_mean %q {axes = [1]} : tensor<2xf64>
    """ + total("%v", (2,)))
case("norm of each column", lambda x: jnp.sum(jnp.sqrt(jnp.sum(x * x, axis=0))), {"x": normal(3, 4)}, """
    %q = mul %x, %x : tensor<3x4xf64>
    %s = reduce_sum %q {axes = [0]} : tensor<4xf64>
    %r = sqrt %s : tensor<4xf64>
    """ + total("%r", (4,)))
case("greatest less smallest", lambda x: jnp.sum(jnp.max(x, axis=1) ** 2 - jnp.min(x, axis=1)), {"x": normal(3, 4)}, """
    %a = reduce_max %x {axes = [1]} : tensor<3xf64>
    %b = reduce_min %x {axes = [1]} : tensor<3xf64>
    %q = mul %a, %a : tensor<3xf64>
    %d = sub %q, %b : tensor<3xf64>
    """ + total("%d", (3,)))
case("product over two axes", lambda x: jnp.sum(jnp.prod(x, axis=(0, 2))), {"x": normal(2, 2, 3)}, """
    %p = reduce_prod %x {axes = [0, 2]} : tensor<2xf64>
    """ + total("%p", (2,)))
case("product of seven", lambda x: jnp.prod(jnp.exp(x)), {"x": normal(7)}, """
    %e = exp %x : tensor<7xf64>
    %out = reduce_prod %e {axes = [0]} : tensor<f64>""")
case("sum of the three greatest", lambda x: jnp.sum(lax.top_k(x, 3)[0] ** 2), {"x": normal(2, 5)}, """
    %v, %i = top_k %x {k = 3} : tensor<2x3xf64>, tensor<2x3xi32>
    %q = mul %v, %v : tensor<2x3xf64>
    """ + total("%q", (2, 3)))

# --- products and networks
case("quadratic form", lambda x, a: x @ a @ x, {"x": normal(3), "a": normal(3, 3)}, """
    %r = reshape %x : tensor<1x3xf64>
    %p = matmul %r, %a : tensor<1x3xf64>
    %q = matmul %p, %r {transpose_b = true} : tensor<1x1xf64>
    %out = reshape %q : tensor<f64>""")
case("least squares", lambda x, w, y: jnp.mean((x @ w - y) ** 2), {"x": normal(4, 3), "w": normal(3, 2), "y": normal(4, 2)}, """
    %p = matmul %x, %w : tensor<4x2xf64>
    %d = sub %p, %y : tensor<4x2xf64>
    %q = mul %d, %d : tensor<4x2xf64>
    %out = reduce_mean %q {axes = [0, 1]} : tensor<f64>""")
case("the example of the readme", lambda x, w: jnp.sum(nn.softmax(x @ w)), {"x": np.array([[1.0, 2], [3, 4]]), "w": np.array([[2.0, 0], [0, 2]])}, """
    %p = matmul %x, %w : tensor<2x2xf64>
    %s = softmax %p {axis = -1} : tensor<2x2xf64>
    """ + total("%s", (2, 2)))
case("batched product, weight stored transposed", lambda x, w: jnp.sum(jnp.sin(x @ w.T)), {"x": normal(2, 2, 3), "w": normal(4, 3)}, """
    %p = matmul %x, %w {transpose_b = true} : tensor<2x2x4xf64>
    %s = sin %p : tensor<2x2x4xf64>
    """ + total("%s", (2, 2, 4)))
case("batch broadcast on both sides", lambda x, w: jnp.sum(jnp.matmul(x, w) ** 2), {"x": normal(2, 1, 2, 3), "w": normal(3, 3, 1)}, """
    %p = matmul %x, %w : tensor<2x3x2x1xf64>
    %q = mul %p, %p : tensor<2x3x2x1xf64>
    """ + total("%q", (2, 3, 2, 1)))


def mlp(x, w1, b1, w2, b2, y):
    h = nn.relu(x @ w1 + b1)
    return -jnp.mean(jnp.sum(nn.log_softmax(h @ w2 + b2) * y, axis=1))


case("classifier with cross entropy", mlp,
     {"x": normal(3, 4), "w1": normal(4, 5), "b1": normal(5), "w2": normal(5, 3), "b2": normal(3), "y": np.eye(3)[[0, 2, 1]]}, """
    %a = matmul %x, %w1 : tensor<3x5xf64>
    %b = add %a, %b1 : tensor<3x5xf64>
    %h = relu %b : tensor<3x5xf64>
    %c = matmul %h, %w2 : tensor<3x3xf64>
    %d = add %c, %b2 : tensor<3x3xf64>
    %l = log_softmax %d {axis = 1} : tensor<3x3xf64>
    %p = mul %l, %y : tensor<3x3xf64>
    %s = reduce_sum %p {axes = [1]} : tensor<3xf64>
    %m = reduce_mean %s {axes = [0]} : tensor<f64>
    %out = neg %m : tensor<f64>""")
case("gated feed-forward", lambda x, g, u, d: jnp.sum(((nn.silu(x @ g.T) * (x @ u.T)) @ d.T) ** 2),
     {"x": normal(2, 3), "g": normal(4, 3), "u": normal(4, 3), "d": normal(3, 4)}, """
    %a = matmul %x, %g {transpose_b = true} : tensor<2x4xf64>
    %s = silu %a : tensor<2x4xf64>
    %b = matmul %x, %u {transpose_b = true} : tensor<2x4xf64>
    %h = mul %s, %b : tensor<2x4xf64>
    %y = matmul %h, %d {transpose_b = true} : tensor<2x3xf64>
    %q = mul %y, %y : tensor<2x3xf64>
    """ + total("%q", (2, 3)))


def attend(q, k, v):
    scores = q @ k.T / np.sqrt(3.0)
    mask = jnp.tril(jnp.ones(scores.shape, bool))
    return jnp.sum(nn.softmax(jnp.where(mask, scores, -jnp.inf)) @ v * jnp.arange(8.0).reshape(4, 2))


case("causal attention of one head", attend, {"q": normal(4, 3), "k": normal(4, 3), "v": normal(4, 2)}, f"""
    %scale = splat {{value = {float(np.sqrt(3.0))!r}}} : tensor<f64>
    %inf = splat {{value = -inf}} : tensor<f64>
    %p = matmul %q, %k {{transpose_b = true}} : tensor<4x4xf64>
    %s = div %p, %scale : tensor<4x4xf64>
    %i = iota {{axis = 0}} : tensor<4x4xi32>
    %j = iota {{axis = 1}} : tensor<4x4xi32>
    %seen = ge %i, %j : tensor<4x4xbool>
    %m = select %seen, %s, %inf : tensor<4x4xf64>
    %w = softmax %m {{axis = 1}} : tensor<4x4xf64>
    %o = matmul %w, %v : tensor<4x2xf64>
    %n = iota {{axis = 0}} : tensor<8xf64>
    %r = reshape %n : tensor<4x2xf64>
    %z = mul %o, %r : tensor<4x2xf64>
    """ + total("%z", (4, 2)))


def fused_attention(q, k, v):
    """Two query heads over one kv head; two tokens after one of the past."""
    qh = jnp.transpose(q, (1, 0, 2))
    scores = 3.0 * jnp.tanh(0.5 * jnp.einsum("htd,cd->htc", qh, k[:, 0]) / 3.0)
    seen = jnp.arange(4)[None, :] <= jnp.arange(2)[:, None] + 1
    weights = nn.softmax(jnp.where(seen, scores, -jnp.inf))
    out = jnp.einsum("htc,ce->the", weights, v[:, 0])
    return jnp.sum(out * out)


case("attention over a cache", fused_attention, {"q": normal(2, 2, 3), "k": normal(4, 1, 3), "v": normal(4, 1, 2)}, """
    %past = splat {value = 1} : tensor<i32>
    %o = attention %q, %k, %v, %past {scale = 0.5, softcap = 3.0} : tensor<2x2x2xf64>
    %z = mul %o, %o : tensor<2x2x2xf64>
    """ + total("%z", (2, 2, 2)))


def rms(x, w, eps=1e-5):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * w


def layer(x, w, b, eps=1e-5):
    c = x - jnp.mean(x, -1, keepdims=True)
    return c * lax.rsqrt(jnp.mean(c * c, -1, keepdims=True) + eps) * w + b


case("rms norm", lambda x, w: jnp.sum(rms(x, w) * jnp.arange(4.0)), {"x": normal(3, 4), "w": normal(4)}, """
    %n = rms_norm %x, %w {eps = 1e-05} : tensor<3x4xf64>
    %i = iota {axis = 0} : tensor<4xf64>
    %z = mul %n, %i : tensor<3x4xf64>
    """ + total("%z", (3, 4)))
case("layer norm", lambda x, w, b: jnp.sum(jnp.tanh(layer(x, w, b))), {"x": normal(3, 4), "w": normal(4), "b": normal(4)}, """
    %n = layer_norm %x, %w, %b {eps = 1e-05} : tensor<3x4xf64>
    %z = tanh %n : tensor<3x4xf64>
    """ + total("%z", (3, 4)))


def block(x, n, wq, wk, wv, wo):
    h = rms(x, n)
    q, k, v = h @ wq, h @ wk, h @ wv
    mixed = nn.softmax(q @ k.T) @ v
    return jnp.sum((x + mixed @ wo) ** 2)


case("residual attention block", block,
     {"x": normal(3, 2), "n": normal(2), "wq": normal(2, 2), "wk": normal(2, 2), "wv": normal(2, 2), "wo": normal(2, 2)}, """
    %h = rms_norm %x, %n {eps = 1e-05} : tensor<3x2xf64>
    %q = matmul %h, %wq : tensor<3x2xf64>
    %k = matmul %h, %wk : tensor<3x2xf64>
    %v = matmul %h, %wv : tensor<3x2xf64>
    %s = matmul %q, %k {transpose_b = true} : tensor<3x3xf64>
    %p = softmax %s {axis = -1} : tensor<3x3xf64>
    %m = matmul %p, %v : tensor<3x2xf64>
    %o = matmul %m, %wo : tensor<3x2xf64>
    %r = add %x, %o : tensor<3x2xf64>
    %z = mul %r, %r : tensor<3x2xf64>
    """ + total("%z", (3, 2)))


def rotated(x, theta=10.0):
    """Pairs (i, i + 2) of a head of four, at positions 5 and 6."""
    angle = (5.0 + jnp.arange(2.0))[:, None] * theta ** (-jnp.arange(2.0) / 2)[None, :]
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :2], x[..., 2:]
    y = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
    return jnp.sum(jnp.tanh(y))


case("rotary embedding", rotated, {"x": normal(2, 1, 4)}, """
    %p = splat {value = 5} : tensor<i32>
    %y = rope %x, %p {mode = "neox", theta = 10, n_dims = 4} : tensor<2x1x4xf64>
    %z = tanh %y : tensor<2x1x4xf64>
    """ + total("%z", (2, 1, 4)))


def recurrent(x, h, w, u):
    for t in range(3):
        h = jnp.tanh(x[t] @ w + h @ u)
    return jnp.sum(h * h)


case("three steps of a recurrent network", recurrent, {"x": normal(3, 1, 2), "h": normal(1, 2), "w": normal(2, 2), "u": normal(2, 2)},
     "\n".join(f"""
    %s{t} = slice %x {{starts = [{t}, 0, 0], limits = [{t + 1}, 1, 2]}} : tensor<1x1x2xf64>
    %x{t} = reshape %s{t} : tensor<1x2xf64>
    %a{t} = matmul %x{t}, %w : tensor<1x2xf64>
    %b{t} = matmul {"%h" if t == 0 else f"%h{t - 1}"}, %u : tensor<1x2xf64>
    %c{t} = add %a{t}, %b{t} : tensor<1x2xf64>
    %h{t} = tanh %c{t} : tensor<1x2xf64>""".strip() for t in range(3)) + """
    %z = mul %h2, %h2 : tensor<1x2xf64>
    """ + total("%z", (1, 2)))


# --- where there is no derivative
case("at relu of zero", lambda x: jnp.sum(nn.relu(x)), {"x": np.array([-1.0, 0, 2, -0.0])}, """
    %y = relu %x : tensor<4xf64>
    """ + total("%y", (4,)))
# Where both sides have a slope, abs takes their mean; JAX takes the right one.
case("at abs of zero", lambda x: jnp.sum(x * lax.stop_gradient(jnp.sign(x))), {"x": np.array([-1.0, 0, 2])}, """
    %y = abs %x : tensor<3xf64>
    """ + total("%y", (3,)))
case("at equal operands of max and min", lambda a, b: jnp.sum(3 * jnp.maximum(a, b) + jnp.minimum(a, b)),
     {"a": np.array([1.0, 2, 3]), "b": np.array([1.0, 3, 2])}, """
    %three = splat {value = 3} : tensor<f64>
    %p = max %a, %b : tensor<3xf64>
    %q = min %a, %b : tensor<3xf64>
    %r = mul %three, %p : tensor<3xf64>
    %s = add %r, %q : tensor<3xf64>
    """ + total("%s", (3,)))
case("at ties of the greatest", lambda x: jnp.sum(jnp.max(x, axis=1) * jnp.array([1.0, 2])), {"x": np.array([[3.0, 1, 3], [2, 2, 2]])}, """
    %m = reduce_max %x {axes = [1]} : tensor<2xf64>
    %one = splat {value = 1} : tensor<f64>
    %i = iota {axis = 0} : tensor<2xf64>
    %w = add %i, %one : tensor<2xf64>
    %z = mul %m, %w : tensor<2xf64>
    """ + total("%z", (2,)))
case("at ties of the smallest", lambda x: jnp.min(x), {"x": np.array([[0.0, 1], [0, -0.0]])}, """
    %out = reduce_min %x {axes = [0, 1]} : tensor<f64>""")
case("at zeros in a product", lambda x: jnp.sum(jnp.prod(x, axis=1)), {"x": np.array([[2.0, 3, 4], [2, 0, 4], [0, 0, 4]])}, """
    %p = reduce_prod %x {axes = [1]} : tensor<3xf64>
    """ + total("%p", (3,)))
case("at powers of zero", lambda a, b: jnp.sum(a**b), {"a": np.array([0.0, 0, 2, 3]), "b": np.array([2.0, 1, 0, 1])}, """
    %p = pow %a, %b : tensor<4xf64>
    """ + total("%p", (4,)))
case("at the root of zero", lambda x: jnp.sum(jnp.sqrt(x)), {"x": np.array([0.0, 4])}, """
    %p = sqrt %x : tensor<2xf64>
    """ + total("%p", (2,)))
case("at repeated greatest of top_k", lambda x: jnp.sum(lax.top_k(x, 2)[0] * jnp.array([1.0, 3])), {"x": np.array([2.0, 5, 5, 5])}, """
    %v, %i = top_k %x {k = 2} : tensor<2xf64>, tensor<2xi32>
    %two = splat {value = 2} : tensor<f64>
    %one = splat {value = 1} : tensor<f64>
    %n = iota {axis = 0} : tensor<2xf64>
    %d = mul %two, %n : tensor<2xf64>
    %w = add %d, %one : tensor<2xf64>
    %z = mul %v, %w : tensor<2xf64>
    """ + total("%z", (2,)))

OUT.write_text("[\n" + ",\n".join(json.dumps(c) for c in CASES) + "\n]\n")
print(len(CASES), "cases,", OUT.stat().st_size, "bytes")
