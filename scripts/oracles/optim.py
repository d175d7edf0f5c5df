#!/usr/bin/env python3
"""Expected parameters of some training steps, out of optax.

Writes runtime/tests/data/optim.json, from the repository root: for each optimiser the five
parameters (three of x, two of y) after each of eight steps, computed in f64; the test
runtime/tests/graph_optim.rs trains the same function.

Made with optax 0.2.8 and jax 0.10.2:  python3 scripts/oracles/optim.py
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import optax

jax.config.update("jax_enable_x64", True)
OUT = pathlib.Path(__file__).resolve().parents[2] / "runtime/tests/data/optim.json"


def loss(p):
    x, y = p["x"], p["y"]
    a, b = jnp.array([1.0, 0.5, 2.0]), jnp.array([0.5, -1.0, 3.0])
    return (((a * x - b) ** 2).sum() + jnp.sin(x).sum() + (y**2 * jnp.array([1.0, 3.0])).sum()
            + x[0] * y[0])


warm = optax.join_schedules(
    [optax.linear_schedule(0.0, 0.2, 3), optax.exponential_decay(0.2, 2, 0.5, staircase=True)], [3])
CASES = {
    "sgd": optax.sgd(0.1),
    "sgd_momentum": optax.sgd(0.05, momentum=0.9),
    "sgd_nesterov_decay": optax.chain(
        optax.add_decayed_weights(0.01), optax.sgd(0.05, momentum=0.9, nesterov=True)),
    "adam": optax.adam(0.1),
    "adamw_cosine": optax.adamw(optax.cosine_decay_schedule(0.1, 6, alpha=0.1), weight_decay=0.05),
    "adam_warmup_step": optax.adam(warm),
    "clip_norm": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
    "clip_value": optax.chain(optax.clip(0.3), optax.sgd(0.1)),
}

result = {}
for name, optimizer in CASES.items():
    params = {"x": jnp.array([1.5, -2.0, 0.5]), "y": jnp.array([0.3, -0.7])}
    state = optimizer.init(params)
    rows = []
    for _ in range(8):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        rows.append([float(f"{v:.9g}") for v in [*params["x"].tolist(), *params["y"].tolist()]])
    result[name] = rows
OUT.parent.mkdir(parents=True, exist_ok=True)
OUT.write_text(json.dumps(result, indent=1) + "\n")
