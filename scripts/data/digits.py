#!/usr/bin/env python3
"""Makes examples/data/digits.bin out of a wheel of scikit-learn:

    python3 -m pip download --no-deps --only-binary=:all: scikit-learn
    python3 scripts/data/digits.py scikit_learn-*.whl

The file holds 1,797 records of 65 bytes: 64 pixels of an 8x8 image, row by row, each 0 to 16, and
the digit. Nothing of the package is executed. Made from scikit-learn 1.9.1.
"""

import gzip
import pathlib
import sys
import zipfile

OUT = pathlib.Path(__file__).resolve().parents[2] / "examples/data/digits.bin"

with zipfile.ZipFile(sys.argv[1]) as wheel:
    text = gzip.decompress(wheel.read("sklearn/datasets/data/digits.csv.gz")).decode()
records = [[int(float(field)) for field in line.split(",")] for line in text.split()]
assert len(records) == 1797
assert all(len(r) == 65 and max(r[:64]) <= 16 and r[64] <= 9 for r in records)
OUT.parent.mkdir(parents=True, exist_ok=True)
OUT.write_bytes(b"".join(bytes(r) for r in records))
print(f"{OUT}: {OUT.stat().st_size} bytes")
