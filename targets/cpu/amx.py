"""Products of bf16 on the tiles of AMX (Intel's Software Developer's Manual, volume 1, chapter 18).

A tile is 16 rows of 64 bytes. Weights are packed as tiles already: 16 pairs along the inner dimension times 16 columns.
Rows of the left matrix are rounded to bf16 once, to nearest even; sums are f32. `tdpbf16ps` adds, for 32 elements at a
time, the sum of the even products to that of the odd ones, and that to the tile. So a result has one order of sums
whatever the number of rows, and its bits do not depend on it: tiles are whole even for a single row, since it is memory
that takes the time then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm.script import tirx as T

from .cache import narrow
from .emit import Buffer, each_row, either, local, loop, store, together, vector_of, workspace
from .layout import LANES
from .product import Columns, Input, Output, rows_of
from .vector import Expr, at, prefetch, words

TILES, ROWS, BYTES = 8, 16, 64
"""Tiles, and the size of each."""
STEP = 32
"""Elements of bf16 in a row of a tile."""
AHEAD = 4
"""Tiles to prefetch ahead in each block: 4 KiB."""
LEFT, RIGHT = 4, 6
"""First of the two tiles of the left matrix, and of the weight; the first four are sums."""
TILE = (2 * ROWS, 2)
"""Rows and blocks of columns that are multiplied together: two by two tiles of sums take two loads for two products."""


@contextmanager
def threads() -> Iterator[None]:
    """`together`, where tiles may be used: a thread configures its own, and must not keep them."""
    # Before the threads start: what lies outside of their loops is one for all of them.
    sizes = local(BYTES, "uint8")
    for i in range(0, BYTES, LANES):
        store(sizes, T.broadcast(T.uint8(0), LANES), at(T.int64(i)))
    store(sizes, T.uint8(1), 0)  # the palette; then, from 16 on, bytes of a row as u16, and from 48 on, rows
    for tile in range(TILES):
        store(sizes, T.uint8(BYTES), 16 + 2 * tile)
        store(sizes, T.uint8(ROWS), 48 + tile)
    with together():
        operate("ldtilecfg", T.address_of(sizes[0]))
        yield
        operate("tilerelease")


def operate(name: str, *operands: Expr) -> None:
    """Emit an instruction of AMX."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *operands))


def load(tile: int, element: Expr, stride: int = BYTES) -> None:
    """Emit the load of a tile whose rows are `stride` bytes apart, from an element of a buffer on."""
    operate("tileloadd64", T.int8(tile), T.address_of(element), T.int64(stride))


def keep(tile: int, element: Expr) -> None:
    """Emit the store of a whole tile, from an element of a buffer on."""
    operate("tilestored64", T.int8(tile), T.address_of(element), T.int64(BYTES))


def width(size: int) -> int:
    """Elements between rows: whole lines of the cache, an odd number of them, so that 16 rows go to 16 of its sets."""
    return (-(-size // STEP) | 1) * STEP


def rounded(x: Input, rows: Expr, size: int) -> Input:
    """Emit the rounding of all rows to bf16 into a workspace, zero beyond `size`, and read its bits from there.

    There is memory for as many rows more as a tile may have beyond the last one. What they hold is never used.
    """
    bits = workspace(rows + (TILE[0] - 1), width(size), dtype="uint16")

    def one(row: Expr) -> None:
        elements = x(row)
        with loop(size // LANES) as c:
            store(bits, narrow(T.bind(elements(at(c * LANES))), "bf16", LANES), row, at(c * LANES))
        with loop(size, size // LANES * LANES) as i:
            store(bits, narrow(T.bind(elements(i)), "bf16", 1), row, i)
        with loop(-(-size // STEP) * STEP, size) as i:
            store(bits, T.uint16(0), row, i)

    each_row(rows, one)
    return rows_of(bits)


def rows_by_tiles(columns: Columns, begin: Expr, end: Expr, x: Input, output: Output) -> None:
    """Rows begin..end-1 of the product, with at most two blocks.

    Args:
        columns: right matrix, bf16.
        begin: first row.
        end: what follows the last row.
        x: left matrix, from `rounded`; its rows must follow each other in memory.
        output: (row, sums of the blocks) -> emits the stores.
    """
    rest = _rest(columns)
    sums = workspace(2, len(columns.blocks), ROWS, LANES)
    with loop((end - begin + (TILE[0] - 1)) // TILE[0]) as t:
        first = T.bind(begin + t * TILE[0])
        count = T.bind(T.min(end - first, TILE[0]))
        with either(count <= ROWS) as (few, many):
            with few:
                _product(columns, first, 1, x, rest, sums)
            with many:
                _product(columns, first, 2, x, rest, sums)
        with loop(count) as i:
            output(first + i, [vector_of(sums[i // ROWS, b, i % ROWS, at(0)]) for b in range(len(columns.blocks))])


def _rest(columns: Columns) -> Buffer | None:
    """The last tile of each block, if the weight ends within it, filled up with zeros: nothing beyond may be read."""
    pairs = -(-columns.size // 2)
    whole = columns.size // STEP * ROWS
    if pairs == whole:
        return None
    rest = workspace(len(columns.blocks), ROWS, LANES, dtype="uint32")
    for b, block in enumerate(columns.blocks):
        with loop(pairs - whole) as i:
            store(rest, columns.weight[(*block, whole + i, at(0))], b, i, at(0))
        with loop(ROWS, pairs - whole) as i:
            store(rest, words(0), b, i, at(0))
    return rest


def _product(columns: Columns, first: Expr, height: int, x: Input, rest: Buffer | None, sums: Buffer) -> None:
    """Sums for `height` tiles of rows, stored."""
    indices = [(r, b) for r in range(height) for b in range(len(columns.blocks))]
    stride = 2 * width(columns.size)

    def step(k: Expr, weights: Sequence[Expr]) -> None:
        for b, weight in enumerate(weights):
            load(RIGHT + b, weight)
            for r in range(height):
                if b == 0:
                    load(LEFT + r, x(first + r * ROWS)(k * STEP), stride)
                operate("tdpbf16ps", T.int8(_sum(r, b)), T.int8(LEFT + r), T.int8(RIGHT + b))

    for r, b in indices:
        operate("tilezero", T.int8(_sum(r, b)))
    with loop(columns.size // STEP) as k:
        for block in columns.blocks:
            for line in range(ROWS if columns.ahead else 0):
                prefetch(columns.weight[(*block, (k + AHEAD) * ROWS + line, 0)])
        step(k, [columns.weight[(*block, k * ROWS, 0)] for block in columns.blocks])
    if rest is not None:
        step(T.int64(columns.size // STEP), [rest[b, 0, 0] for b in range(len(columns.blocks))])
    for r, b in indices:
        keep(_sum(r, b), sums[r, b, 0, 0])


def _sum(r: int, b: int) -> int:
    """The tile of sums of a tile of rows and a block."""
    return 2 * r + b
