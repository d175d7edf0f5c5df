#!/usr/bin/env python3
"""Expected values of the block formats, out of the `gguf` Python package.

Writes ir/tests/data/dequant/, from the repository root:
  NAME.decode  u32 number of blocks, the blocks, their values as f32
  NAME.encode  u32 number of blocks, values as f32, the blocks
Everything is little-endian. q8_1 and q8_k, which the package does not decode, are scale * value.

Made with gguf 0.19.0 and numpy; needs nothing else:  python3 scripts/oracles/dequant.py
"""

import pathlib
import struct

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

OUT = pathlib.Path(__file__).resolve().parents[2] / "ir/tests/data/dequant"
T = gguf.GGMLQuantizationType

# f16 bits: zeros, subnormals, smallest normal, one, largest, infinities, NaN quiet and signalling.
HALVES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01]
SINGLES = [0, 0x80000000, 1, 0x807FFFFF, 0x00800000, 0x3F800000, 0x7F7FFFFF, 0xFF7FFFFF,
           0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001]

# name: (type, blocks, byte offsets of the f16 scales)
DECODE = {
    "f16": (T.F16, 512, []),
    "bf16": (T.BF16, 512, []),
    "q4_0": (T.Q4_0, 48, [0]),
    "q4_1": (T.Q4_1, 48, [0, 2]),
    "q5_0": (T.Q5_0, 48, [0]),
    "q5_1": (T.Q5_1, 48, [0, 2]),
    "q8_0": (T.Q8_0, 48, [0]),
    "q8_1": (T.Q8_1, 48, [0, 2]),
    "q2_k": (T.Q2_K, 20, [80, 82]),
    "q3_k": (T.Q3_K, 20, [108]),
    "q4_k": (T.Q4_K, 20, [0, 2]),
    "q5_k": (T.Q5_K, 20, [0, 2]),
    "q6_k": (T.Q6_K, 20, [208]),
    "q8_k": (T.Q8_K, 20, []),
}
# The package still gives q8_1 two f32 scales; ggml has long stored two f16.
SIZES = {**GGML_QUANT_SIZES, T.Q8_1: (32, 36)}
ENCODE = ["f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]


def decode(kind, blocks):
    if kind == T.Q8_1:
        d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        return d * blocks[:, 4:].view(np.int8).astype(np.float32)
    if kind == T.Q8_K:
        d = blocks[:, :4].copy().view(np.float32)
        return d * blocks[:, 4:260].view(np.int8).astype(np.float32)
    return dequantize(blocks, kind)


def main():
    rng = np.random.default_rng(20250211)
    np.seterr(all="ignore")
    OUT.mkdir(parents=True, exist_ok=True)
    for name, (kind, n, scales) in DECODE.items():
        length, size = SIZES[kind]
        blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
        if length == 1:
            blocks[: len(HALVES)] = np.array(HALVES, "<u2").view(np.uint8).reshape(-1, 2)
        if kind == T.Q8_K:
            blocks[: len(SINGLES), :4] = np.array(SINGLES, "<u4").view(np.uint8).reshape(-1, 4)
        for k, at in enumerate(scales):
            for i in range(len(HALVES)):
                half = HALVES[(i + 5 * k) % len(HALVES)]
                blocks[i, at : at + 2] = list(struct.pack("<H", half))
        values = np.ascontiguousarray(decode(kind, blocks), dtype="<f4")
        assert values.size == n * length
        (OUT / f"{name}.decode").write_bytes(struct.pack("<I", n) + blocks.tobytes() + values.tobytes())

    for name in ENCODE:
        kind = DECODE[name][0]
        length, size = SIZES[kind]
        n = 12 if length > 1 else 512
        values = rng.standard_normal((n, length)).astype("<f4")
        values *= np.exp2(rng.integers(-20, 14, (n, 1))).astype("<f4")
        if length > 1:
            values[0] = 0.0
            values[1] = 0.75
            values[2, :] = np.arange(length) - 16  # ties and exact steps
            values[3] = np.abs(values[3])
            values[4] = -np.abs(values[4])
            values[5, 3], values[5, 9] = 7.5, -7.5  # equal magnitudes: the first wins
        else:
            values[:4, 0] = [0.0, -0.0, 1e30, 1e-30]
        blocks = quantize(values, kind)
        assert blocks.nbytes == n * size
        (OUT / f"{name}.encode").write_bytes(struct.pack("<I", n) + values.tobytes() + blocks.tobytes())


if __name__ == "__main__":
    main()
