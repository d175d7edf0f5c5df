#!/usr/bin/env python3
"""A small file written by the `safetensors` Python package.

Writes runtime/tests/data/sample.safetensors, from the repository root; the test
runtime/tests/graph_safetensors.rs knows what is in it.

Made with safetensors 0.8.0, numpy and ml_dtypes:  python3 scripts/oracles/safetensors_sample.py
"""

import pathlib

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "runtime/tests/data/sample.safetensors"
OUT.parent.mkdir(parents=True, exist_ok=True)
save_file({
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
    "f64": np.array([1e300, -0.0]),
    "f16": np.array([1.5, -2.0, 65504.0], np.float16),
    "bf16": np.array([1.0, -3.5], ml_dtypes.bfloat16),
    "i8": np.array([-128, 127], np.int8),
    "i16": np.array([-30000], np.int16),
    "i32": np.array([[2**30], [-7]], np.int32),
    "i64": np.array(2**40, np.int64),
    "u8": np.array([0, 255], np.uint8),
    "u32": np.array([2**32 - 1], np.uint32),
    "bool": np.array([True, False, True]),
    "empty": np.zeros((0, 4), np.float32),
}, OUT)
