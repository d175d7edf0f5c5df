#!/usr/bin/env python3
"""Two small GGUF files written by the `gguf` Python package, version 3 and version 2.

Writes llm/tests/data/gguf/sample-v3.gguf and sample-v2.gguf, from the repository root; the test
llm/tests/gguf.rs knows what is in them. The versions differ in the version number alone.

Made with gguf 0.19.0 and numpy; needs nothing else:  python3 scripts/oracles/gguf_sample.py
"""

import pathlib
import struct

import gguf
import numpy as np

OUT = pathlib.Path(__file__).resolve().parents[2] / "llm/tests/data/gguf"
T = gguf.GGMLQuantizationType


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "sample-v3.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_custom_alignment(64)
    w.add_uint8("t.u8", 200)
    w.add_int8("t.i8", -100)
    w.add_uint16("t.u16", 60000)
    w.add_int16("t.i16", -30000)
    w.add_uint32("t.u32", 4000000000)
    w.add_int32("t.i32", -2000000000)
    w.add_float32("t.f32", 0.1)
    w.add_bool("t.true", True)
    w.add_bool("t.false", False)
    w.add_string("t.str", "Grüße, \u4e16\u754c")
    w.add_string("t.control", "a\x1b[2Jb\nc")
    w.add_uint64("t.u64", 2**63 + 5)
    w.add_int64("t.i64", -(2**62))
    w.add_float64("t.f64", 1e-300)
    w.add_array("t.strings", ["one", "", "drei\u00df", "four", "five"])
    w.add_array("t.ints", [-1, 0, 70000])
    w.add_array("t.floats", [0.5, -1.25, 3.0])
    w.add_array("t.bools", [True, False, True])
    w.add_string("t.long", "abcdefghij" * 20)

    f32 = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    w.add_tensor("plain.f32", f32)
    w.add_tensor("plain.f16", np.array([1.5, -2.0, 0.25], np.float16))
    w.add_tensor("plain.i32", np.array([[[[7, -8]]]], np.int32))
    w.add_tensor("plain.i64", np.array([2**40], np.int64))
    ramp = (np.arange(128, dtype=np.float32) - 64).reshape(2, 64) / 8
    for kind in (T.Q8_0, T.Q4_1):
        w.add_tensor(f"blocks.{kind.name.lower()}", gguf.quants.quantize(ramp, kind), raw_dtype=kind)
    k = np.arange(210, dtype=np.uint8).reshape(1, 210)
    w.add_tensor("blocks.q6_k", k, raw_dtype=T.Q6_K)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()

    data = bytearray(path.read_bytes())
    assert data[:8] == b"GGUF" + struct.pack("<I", 3)
    data[4:8] = struct.pack("<I", 2)
    (OUT / "sample-v2.gguf").write_bytes(data)


if __name__ == "__main__":
    main()
