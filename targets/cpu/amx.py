"""Products of bf16 on the tiles of AMX (Intel's Software Developer's Manual, volume 1, chapter 18).

A tile is 16 rows of 64 bytes. Weights are packed as tiles already: 16 pairs along the inner dimension times 16 columns.
Rows of the left matrix are rounded to bf16 once, to nearest even; sums are f32. `tdpbf16ps` adds, for 32 elements at a
time, the sum of the even products to that of the odd ones, and that to the tile. So a result has one order of sums
whatever the number of rows, and its bits do not depend on it: tiles are whole even for a single row, since it is memory
that takes the time then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, either, loop, store

from .cache import narrow
from .emit import local, together, vector_of, workspace
from .layout import LANES
from .product import Columns, Encoding, Input, Output, rows_of
from .vector import at, prefetch, splat, words

TILES, ROWS, BYTES = 8, 16, 64
"""Tiles, and the size of each."""
STEP = 32
"""Elements of bf16 in a row of a tile."""
AHEAD = 4
"""Tiles to prefetch ahead in each block: 4 KiB."""
LEFT, RIGHT = 4, 6
"""First of the two tiles of the left matrix, and of the weight; the first four are sums."""
TILE = (2 * ROWS, 2)
"""Rows and blocks of columns that are multiplied together: two by two tiles of sums take one load for a product."""
PANEL, DEPTH, PASS = 16, 32, 8
"""Blocks of columns, and steps along the inner dimension, that up to 8 times 32 rows pass by: 512 KiB of weights and
256 KiB of sums, which stay in the second cache meanwhile, and the 64 KiB of 32 rows serve all of the columns."""


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


def rounded(x: Input, rows: Expr, size: int) -> Encoding:
    """The rounding of rows to bf16 into a workspace, zero beyond `size`, from where its bits are read.

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

    return Encoding(rows_of(bits), one)


def rows_by_tiles(columns: Columns, begin: Expr, end: Expr, x: Input, output: Output) -> None:
    """Rows begin..end-1 of the product.

    Args:
        columns: right matrix, bf16.
        begin: first row.
        end: what follows the last row.
        x: left matrix, from `rounded`; its rows must follow each other in memory.
        output: (row, sums of the blocks) -> emits the stores.
    """
    if len(columns.blocks) > TILE[1]:
        _panel(columns, begin, end, x, output)
        return
    product = _Product.of(columns, x)
    sums = workspace(2, len(columns.blocks), ROWS, LANES)
    with loop((end - begin + (TILE[0] - 1)) // TILE[0]) as t:
        first = T.bind(begin + t * TILE[0])
        count = T.bind(T.min(end - first, TILE[0]))
        with either(count <= ROWS) as (few, many):
            for context, height in ((few, 1), (many, 2)):
                with context:
                    product.each_sum(height, lambda tile, *_: operate("tilezero", T.int8(tile)))
                    product.steps(first, height, T.int64(0), T.int64(product.whole))
                    product.last_step(first, height)
                    product.each_sum(height, lambda tile, r, b: keep(tile, sums[r, b, 0, 0]))
        with loop(count) as i:
            output(first + i, [vector_of(sums[i // ROWS, b, i % ROWS, at(0)]) for b in range(len(columns.blocks))])


def _panel(columns: Columns, begin: Expr, end: Expr, x: Input, output: Output) -> None:
    """Many rows with more blocks than a tile has, a part of the inner dimension at a time.

    Sums are kept in memory meanwhile. They are f32 there as well, so their bits are those of one pass.
    """
    height, held = TILE
    pairs = [columns.blocks[i : i + held] for i in range(0, len(columns.blocks), held)]
    products = [_Product.of(replace(columns, blocks=pair), x) for pair in pairs]
    whole = products[0].whole
    sums = workspace(PASS, 2, len(columns.blocks), ROWS, LANES)
    with loop((end - begin + (PASS * height - 1)) // (PASS * height)) as turn:
        start = T.bind(begin + turn * (PASS * height))
        count = T.bind(T.min(end - start, PASS * height))
        tiles = T.bind((count + (height - 1)) // height)

        def go_on(work: Callable[[_Product, Expr], None]) -> None:
            """Add to all sums."""
            with loop(tiles) as t:

                def move(emit: Callable[[int, Expr], None], p: int, tile: int, r: int, b: int) -> None:
                    emit(tile, sums[t, r, p * held + b, 0, 0])

                for p, product in enumerate(products):
                    product.each_sum(2, partial(move, load, p))
                    work(product, start + t * height)
                    product.each_sum(2, partial(move, keep, p))

        with loop(tiles) as t, loop(2) as r, loop(len(columns.blocks)) as b, loop(ROWS) as i:
            store(sums, splat(0.0), t, r, b, i, at(0))
        with loop(-(-whole // DEPTH)) as part:
            steps = T.bind(part * DEPTH), T.bind(T.min((part + 1) * DEPTH, whole))
            go_on(lambda product, first: product.steps(first, 2, *steps))
        if products[0].rest is not None:
            go_on(lambda product, first: product.last_step(first, 2))
        with loop(count) as i:
            t, r, line = i // height, i % height // ROWS, i % ROWS
            output(start + i, [vector_of(sums[t, r, b, line, at(0)]) for b in range(len(columns.blocks))])


@dataclass(frozen=True)
class _Product:
    """Up to two tiles of rows times up to two blocks.

    Attributes:
        columns: the blocks.
        x: left matrix.
        whole: how many tiles a block has that are full.
        rest: the last tile of each block, if the weight ends within it.
    """

    columns: Columns
    x: Input
    whole: int
    rest: Buffer | None

    @classmethod
    def of(cls, columns: Columns, x: Input) -> _Product:
        return cls(columns, x, columns.size // STEP, _rest(columns))

    def each_sum(self, height: int, body: Callable[[int, int, int], None]) -> None:
        """Emit body(tile, tile of rows, block) for the tiles of sums."""
        for r in range(height):
            for b in range(len(self.columns.blocks)):
                body(_sum(r, b), r, b)

    def steps(self, first: Expr, height: int, begin: Expr, end: Expr) -> None:
        """Emit steps begin..end-1 along the inner dimension, for rows from `first` on."""
        weight, blocks = self.columns.weight, self.columns.blocks
        with loop(end, begin) as k:
            for block in blocks:
                for line in range(ROWS if self.columns.streamed else 0):
                    prefetch(weight[(*block, (k + AHEAD) * ROWS + line, 0)])
            self._step(first, height, k, [weight[(*block, k * ROWS, 0)] for block in blocks])

    def last_step(self, first: Expr, height: int) -> None:
        """Emit the step that is not whole, if there is one."""
        if self.rest is not None:
            tiles = [self.rest[b, 0, 0] for b in range(len(self.columns.blocks))]
            self._step(first, height, T.int64(self.whole), tiles)

    def _step(self, first: Expr, height: int, k: Expr, weights: Sequence[Expr]) -> None:
        for b, weight in enumerate(weights):
            load(RIGHT + b, weight)
            for r in range(height):
                if b == 0:
                    load(LEFT + r, self.x(first + r * ROWS)(k * STEP), 2 * width(self.columns.size))
                operate("tdpbf16ps", T.int8(_sum(r, b)), T.int8(LEFT + r), T.int8(RIGHT + b))


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


def _sum(r: int, b: int) -> int:
    """The tile of sums of a tile of rows and a block."""
    return 2 * r + b
