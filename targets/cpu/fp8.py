"""Products with weights of 8-bit floats: codes are widened in registers, and the sum of a block is scaled.

Widening is exact. Each 128 elements of the inner dimension have a sum of their own, one chain of fused multiply-adds
in order; the sums, times their scales, are added in order. So the bits of a result do not depend on the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script import tirx as T

from deepzig.ir.fp8 import SIDE

from .emit import Buffer, each_vector, local, loop, store, vector_sum
from .layout import LANES
from .vector import Expr, at, dtype, fma, prefetch, splat, words

STEP = 4
"""Codes in a word of 32 bits."""
LIFT, LOWER = 2.0**64, 2.0**56
"""What a row is multiplied by before, and its sums after: widened codes are 2^-120 times as large, and their products
with a row, as it is, would leave the normal range."""


def fp8_tile(
    weight: Buffer, blocks: Sequence[tuple[Expr, ...]], size: int, rows: Sequence[Callable[[Expr], Expr]], ahead: int
) -> list[list[Buffer]]:
    """Sums over k of x(row)(k) * weight[k] for each row and block.

    Args:
        weight: packed by `pack_quantized`.
        blocks: for each block, the leading indices of its vectors.
        size: elements along the inner dimension.
        rows: the rows of the tile: index -> element, or index vector -> elements.
        ahead: vectors to prefetch ahead in each block; 0 for none.

    Returns:
        Of each row, for each block, a local vector of f32.
    """
    sums = [[vector_sum() for _ in blocks] for _ in rows]
    parts = [[local() for _ in blocks] for _ in rows]
    lifted = [local(SIDE) for _ in rows]

    def word(g: Expr, number: Expr, count: int) -> None:
        """`count` elements of each column."""
        factors = [[splat(T.bind(x[number * STEP + i])) for x in lifted] for i in range(count)]
        for column, block in enumerate(blocks):
            if ahead:
                prefetch(weight[(*block, g, number + ahead, 0)])
            codes = T.bind(weight[(*block, g, number, at(0))])
            for value, lines in zip(widen_codes(codes), factors, strict=False):
                for part, factor in zip(parts, lines, strict=True):
                    store(part[column], fma(factor, value, part[column][at(0)]), at(0))

    def group(g: Expr, count: int) -> None:
        for x, lifts in zip(rows, lifted, strict=True):
            lift(x, g * SIDE, count, lifts)
        for part in (p for line in parts for p in line):
            store(part, splat(0.0), at(0))
        with loop(count // STEP) as number:
            word(g, number, STEP)
        if count % STEP:
            word(g, T.int64(count // STEP), count % STEP)
        for column, block in enumerate(blocks):
            scale = T.bind(T.reinterpret(dtype("float32"), weight[(*block, g, T.int64(SIDE // STEP), at(0))]))
            for total, part in zip(sums, parts, strict=True):
                exact = part[column][at(0)] * splat(LOWER)
                store(total[column], fma(exact, scale, total[column][at(0)]), at(0))

    with loop(size // SIDE) as g:
        group(g, SIDE)
    if size % SIDE:
        group(T.int64(size // SIDE), size % SIDE)
    return sums


def lift(x: Callable[[Expr], Expr], begin: Expr, count: int, lifted: Buffer) -> None:
    """Emit lifted[i] = x(begin + i) * LIFT for i < count."""
    each_vector(count, lambda i, lanes: store(lifted, x(begin + i) * splat(LIFT, lanes), i))


def widen_codes(codes: Expr) -> list[Expr]:
    """The four e4m3 numbers of each u32 word, the lowest byte's first, as f32 and 2^-120 times as large.

    In the high byte of 16 bits, and moved down by 4 bits with its sign kept in place, an e4m3 number is the upper half
    of an f32 whose exponent is 120 too small, subnormal numbers among them. None is NaN.
    """
    pairs = T.bind(T.reinterpret(dtype("int16", 2 * LANES), codes))
    halves = []
    for high in (T.shift_left(pairs, T.broadcast(T.int16(8), 2 * LANES)), pairs):
        moved = T.shift_right(high, T.broadcast(T.int16(4), 2 * LANES))
        bits = T.bitwise_and(moved, T.broadcast(T.int16(0x87F0 - 0x10000), 2 * LANES))
        halves.append(T.bind(T.reinterpret(dtype("uint32"), bits)))
    low = [T.shift_left(half, words(16)) for half in halves]
    high = [T.bitwise_and(half, words(0xFFFF0000)) for half in halves]
    return [T.bind(T.reinterpret(dtype("float32"), value)) for value in (*low, *high)]
