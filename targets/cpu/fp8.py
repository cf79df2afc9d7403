"""Products with weights of 8-bit floats: codes are widened in registers, and the sum of a block is scaled.

Widening is exact. Each 128 elements along the inner dimension are four chains of fused multiply-adds: every fourth word
of four elements is of the same. Their sums are added in order, and so are those of all groups, times their scales. So
the bits of a result do not depend on the tile. A row alone has its chains side by side, so as not to wait for one.
Several rows have one chain after the other, for which registers suffice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script import tirx as T

from deepzig.ir.fp8 import SIDE
from deepzig.targets.emit import Buffer, Expr, loop, store

from .emit import each_vector, local, vector_sum
from .layout import LANES
from .product import Columns, Input, scale_of
from .vector import at, dtype, fma, prefetch, splat, words

STEP = 4
"""Codes in a word of 32 bits."""
CHAINS = 4
"""Of one, a row alone would wait for the latency of a multiply-add."""
AHEAD = 64
"""Words to prefetch ahead: CPUs don't see by themselves, so long are the chains between two loads, that a block is one
stream. Without it a Zen 5 reads 21 GB/s a thread instead of 40."""
LIFT, LOWER = 2.0**64, 2.0**56
"""What a row is multiplied by before, and its sums after: widened codes are 2^-120 times as large, and their products
with a row, as it is, would leave the normal range."""


def fp8_tile(columns: Columns, lines: Sequence[Expr], x: Input) -> list[list[Buffer]]:
    """Sums over k of x(line)(k) * weight[k] for each line and block.

    Args:
        columns: right matrix, packed by `pack_quantized`.
        lines: rows of the tile.
        x: left matrix.

    Returns:
        Of each row, for each block, a local vector of f32.
    """
    weight, blocks, size = columns.weight, columns.blocks, columns.size
    rows = [x(line) for line in lines]
    lifted = [local(SIDE) for _ in rows]
    cells = [(x, column) for x in lifted for column in range(len(blocks))]
    sums = [vector_sum() for _ in cells]

    def word(g: Expr, number: Expr, count: int, chains: Sequence[Buffer]) -> None:
        """`count` elements of each column, each added to the chain of its cell."""
        for block in blocks if columns.streamed else ():
            prefetch(weight[(*block, g, number + AHEAD, 0)])
        values = [widen_codes(T.bind(weight[(*block, g, number, at(0))])) for block in blocks]
        for i in range(count):
            factors = {x: splat(T.bind(x[number * STEP + i])) for x in lifted}
            for (x, column), chain in zip(cells, chains, strict=True):
                store(chain, fma(factors[x], values[column][i], chain[at(0)]), at(0))

    def group(g: Expr, count: int) -> None:
        for x, buffer in zip(rows, lifted, strict=True):
            lift(x, g * SIDE, count, buffer)
        parts = [vector_sum() for _ in cells]
        full, rest = divmod(count, STEP)
        if len(cells) == 1:
            chains = [[vector_sum()] for _ in range(CHAINS)]
            with loop(full // CHAINS) as i:
                for c, chain in enumerate(chains):
                    word(g, i * CHAINS + c, STEP, chain)
            for number in range(full // CHAINS * CHAINS, full):
                word(g, T.int64(number), STEP, chains[number % CHAINS])
            if rest:
                word(g, T.int64(full), rest, chains[full % CHAINS])
            for chain in chains:
                add(parts, chain)
        for c in range(CHAINS if len(cells) > 1 else 0):
            chain = [vector_sum() for _ in cells]
            with loop((full - c + CHAINS - 1) // CHAINS) as i:
                word(g, i * CHAINS + c, STEP, chain)
            if rest and full % CHAINS == c:
                word(g, T.int64(full), rest, chain)
            add(parts, chain)
        for (_, column), total, part in zip(cells, sums, parts, strict=True):
            scale = scale_of(weight, blocks[column], g)
            store(total, fma(part[at(0)] * splat(LOWER), scale, total[at(0)]), at(0))

    with loop(size // SIDE) as g:
        group(g, SIDE)
    if size % SIDE:
        group(T.int64(size // SIDE), size % SIDE)
    return [sums[i : i + len(blocks)] for i in range(0, len(sums), len(blocks))]


def add(sums: Sequence[Buffer], more: Sequence[Buffer]) -> None:
    """Emit sums[i] += more[i] for local vectors."""
    for total, part in zip(sums, more, strict=True):
        store(total, total[at(0)] + part[at(0)], at(0))


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
