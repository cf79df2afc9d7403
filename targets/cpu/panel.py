"""The inner loop of products with packed weights, for one block of 16 columns and a tile of rows, in TVMScript."""

from __future__ import annotations

from tvm.script import tirx as T

from deepzig.ir import TensorType

from .layout import LANES, packed_type
from .vector import at, fma, splat, widen


def packed_buffer(shape: tuple[int, ...], wdtype: str) -> tuple[tuple[int, ...], str]:
    """Shape and TVM dtype of the buffer that holds a packed weight [..., N, K]."""
    stored = packed_type(TensorType(wdtype, shape))
    return tuple(int(d) for d in stored.shape), {"f32": "float32", "u32": "uint32"}[stored.dtype]


@T.inline
def clear(acc, rows):  # type: ignore[no-untyped-def]
    """Zero the accumulators of a tile."""
    for r in T.unroll(rows):
        acc[at(r * LANES)] = splat(0.0)


@T.inline
def accumulate(acc, rows, size, x, block, wdtype):  # type: ignore[no-untyped-def]
    """acc[row] += sum over k < size of x(row, k) * weights(k): one fused multiply-add after the other, in order of k.

    block(k) is the k-th vector of a packed block: 16 weights, or 16 pairs of 2-byte weights.
    """
    if wdtype == "f32":
        for k in T.serial(size):
            for r in T.unroll(rows):
                acc[at(r * LANES)] = fma(splat(x(r, k)), block(k), acc[at(r * LANES)])
    else:
        for k in T.serial(size // 2):
            pairs: T.let = block(k)
            for r in T.unroll(rows):
                acc[at(r * LANES)] = fma(splat(x(r, 2 * k)), widen(pairs, wdtype, False), acc[at(r * LANES)])
            for r in T.unroll(rows):
                acc[at(r * LANES)] = fma(splat(x(r, 2 * k + 1)), widen(pairs, wdtype, True), acc[at(r * LANES)])
        if size % 2 == 1:
            last: T.let = block(size // 2)
            for r in T.unroll(rows):
                acc[at(r * LANES)] = fma(splat(x(r, size - 1)), widen(last, wdtype, False), acc[at(r * LANES)])


@T.inline
def store(out, value, begin, width):  # type: ignore[no-untyped-def]
    """out(index, value) for the columns of a vector from `begin` that lie below `width`."""
    if width % LANES == 0:
        out(at(begin), value)
    else:
        lanes = T.alloc_buffer((LANES,), "float32", scope="global")
        lanes[at(0)] = value
        for j in T.serial(T.min(LANES, width - begin)):
            out(begin + j, lanes[j])
