#!/usr/bin/env python3
"""Makes blocks.bin: random blocks of every weight format, and the values that another program reads from them.

    python3 make_blocks.py blocks.bin        # gguf 0.19.0, numpy 2.4.6

The values are `gguf.quants.dequantize` of the `gguf` package from PyPI. The seed is fixed: the same versions make the
same file. It is a sequence of records, all little-endian:

    u32 GGUF type id, u32 byte count B, u32 value count V, B bytes of blocks, V f32 values

Codes and packed scales are random bytes. The f16 scales are random finite numbers, zeros of both signs, the smallest
subnormal and the largest finite one; the first block of each format is all ones in its codes, the second all zeros.
"""

import struct
import sys

import gguf
import numpy as np
from gguf.quants import dequantize

T = gguf.GGMLQuantizationType
VALUES = 768

# Where a block keeps its f16 numbers, in bytes from its start.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.TQ1_0: [52], T.TQ2_0: [64],
}
CORNERS = [0x7BFF, 0xFBFF, 0x0001, 0x0000, 0x8000, 0x3C00]  # max, -max, smallest subnormal, 0, -0, 1


def finite_halves(rng, count):
    """Random f16 bit patterns that are neither infinite nor NaN."""
    bits = rng.integers(0, 1 << 16, size=count, dtype=np.uint16)
    return np.where((bits & 0x7C00) == 0x7C00, bits & 0xBBFF, bits)


def blocks_of(rng, kind):
    if kind == T.F32:
        values = rng.standard_normal(VALUES).astype("<f4")
        values[:4] = [0.0, -0.0, np.inf, np.float32(1e-45)]
        return values.view(np.uint8)
    if kind == T.F16:
        halves = finite_halves(rng, VALUES)
        halves[: len(CORNERS)] = CORNERS
        halves[len(CORNERS)] = 0xFC00  # -inf
        return halves.view(np.uint8)
    if kind == T.BF16:
        bits = rng.integers(0, 1 << 16, size=VALUES, dtype=np.uint16)
        bits = np.where((bits & 0x7F80) == 0x7F80, bits & 0xBFFF, bits)
        bits[:2] = [0x7F80, 0x8001]  # inf, a negative subnormal
        return bits.view(np.uint8)
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    count = VALUES // block_len
    blocks = rng.integers(0, 256, size=(count, block_bytes), dtype=np.uint8)
    blocks[0] = 0xFF
    blocks[1] = 0x00
    for at in HALVES[kind]:
        halves = finite_halves(rng, count)
        corners = min(count, len(CORNERS))
        halves[:corners] = np.roll(CORNERS, -at // 2)[:corners]
        blocks[:, at : at + 2] = halves.reshape(-1, 1).view(np.uint8)
    return blocks.reshape(-1)


def main():
    rng = np.random.default_rng(20240607)
    with open(sys.argv[1], "wb") as out:
        for kind in [T.F32, T.F16, T.BF16, *HALVES]:
            blocks = np.ascontiguousarray(blocks_of(rng, kind))
            # The package reads F32 and F16 by element type, the others as bytes.
            typed = blocks.view({T.F32: "<f4", T.F16: "<f2"}.get(kind, np.uint8))
            values = np.ascontiguousarray(dequantize(typed, kind), dtype="<f4").reshape(-1)
            assert values.size == VALUES and not np.isnan(values).any(), kind.name
            out.write(struct.pack("<III", int(kind), blocks.size, values.size))
            out.write(blocks.tobytes())
            out.write(values.tobytes())


main()
