#!/usr/bin/env python3
"""Writes rotary_values.h: angles in 400-bit arithmetic (needs mpmath).

    python3 make_rotary_values.py > rotary_values.h
"""

import random
import struct

from mpmath import floor, mp, mpf

mp.prec = 400

POSITIONS = [0, 1, 255, 256, 257, 4096, 25000, 262144, 1000000, 16000000, 2**24 + 1, 2**31 - 1]
ALL_PAIRS = (1000000, 128)  # the table in docs/rotary.md needs every pair
SOME_PAIRS = [(10000, 2), (10000, 32), (10000, 64), (10000, 128), (10000, 1024), (500000, 64),
              (500000, 128), (1000000, 64), (1000000, 96), (1000000, 256)]
INV_FREQ = [1, 0.8058422, 0.1, 0.0031622776, 5.4e-7, 1e-30, 3.4e38, 1234.5678, 7, -0.3]


def f32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def fraction(radians):
    turns = radians / (2 * mp.pi)
    return int(floor((turns - floor(turns)) * 2**64 + mpf(0.5))) % 2**64


def row(theta, dim, pair, inv_freq, frequency):
    values = [f"0x{fraction(frequency * p):016x}" for p in POSITIONS]
    lines = [", ".join(values[i:i + 4]) for i in range(0, len(values), 4)]
    print(f"    {{{theta}, {dim}, {pair}, {inv_freq},")
    print("     {" + ",\n      ".join(lines) + "}},")


def main():
    chosen = random.Random(2)
    POSITIONS.extend(sorted(chosen.randrange(2**31) for _ in range(4)))
    print("/* Written by make_rotary_values.py. */\n/* clang-format off */")
    print("static const int64_t rotary_positions[] = {")
    print("    " + ", ".join(str(p) for p in POSITIONS[:10]) + ",")
    print("    " + ", ".join(str(p) for p in POSITIONS[10:]) + "};\n")
    print("/* turns[k]: the angle at position k, modulo one turn, in 2^-64 turns. */")
    print("static const struct {\n    double theta; /* 0: inv_freq counts */\n"
          "    int64_t dim, pair;\n    float inv_freq;\n"
          f"    uint64_t turns[{len(POSITIONS)}];\n}} rotary_values[] = {{")
    for theta, dim in [ALL_PAIRS] + SOME_PAIRS:
        half = dim // 2
        pairs = range(half)
        if (theta, dim) != ALL_PAIRS:
            pairs = sorted({0, 1, 2, half // 4, half // 2, half - 1} & set(pairs))
        for pair in pairs:
            row(theta, dim, pair, 0, mpf(theta) ** (-mpf(2 * pair) / dim))
    for inv_freq in INV_FREQ:
        row(0, 2, 0, f32(inv_freq).hex() + "f", mpf(f32(inv_freq)))
    print("};")


if __name__ == "__main__":
    main()
