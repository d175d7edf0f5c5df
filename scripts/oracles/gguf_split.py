#!/usr/bin/env python3
"""A small model in three files, written by the `gguf` package: its tensors are split, its first file has the metadata.

    python3 scripts/oracles/gguf_split.py

Writes llm/tests/data/gguf/split-0000N-of-00003.gguf. Values are i + 100 * (number of the tensor).
Needs gguf 0.19.0 and numpy.
"""

import pathlib

import gguf
import numpy as np

OUT = pathlib.Path(__file__).resolve().parents[2] / "llm/tests/data/gguf"


def main():
    w = gguf.GGUFWriter(OUT / "split.gguf", "llama", split_max_tensors=2)
    w.add_name("Split")
    w.add_block_count(1)
    for n, name in enumerate(["a.weight", "b.weight", "c.weight", "d.weight", "e.weight"]):
        w.add_tensor(name, np.arange(4 * (n + 1), dtype=np.float32).reshape(n + 1, 4) + 100 * n)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main()
