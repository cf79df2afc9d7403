"""Matrix products on packed weights: functions that emit code.

Each output is one chain of fused multiply-adds over the inner dimension, in order, whatever the tile it falls
into. So its bits depend neither on the number of rows nor on the thread that computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, either, loop, store, when

from .emit import each_row, parallel, shared, together, vector_of, vector_sum, view
from .layout import LANES
from .vector import ONCE, SOON, at, dtype, fma, prefetch, splat, widen

AHEAD = 128
"""Vectors to prefetch ahead, in all blocks of a tile together: 8 KiB. At 75 GB/s a thread that has one block waits with
less; four blocks that are so far ahead each push out of the first cache what several rows read again."""


@dataclass(frozen=True)
class Columns:
    """Some blocks of 16 columns of a packed weight, multiplied together.

    Attributes:
        weight: the packed weight.
        blocks: for each block, the leading indices of its vectors.
        size: elements along the inner dimension; known only at run time for f32 or pairs of bf16.
        wdtype: element type of the weight before it was packed.
        streamed: whether it comes from memory and is prefetched; False for what is in the cache already.
        once: whether it is for a single row, so that it need not stay in a cache. What the program needs between two
            steps does then.
        jump: (end, further): a thread goes on elsewhere: what would lie at element `end` of the weight, or behind it,
            lies so many elements further. None: it reads on.
    """

    weight: Buffer
    blocks: Sequence[tuple[Expr, ...]]
    size: int | Expr
    wdtype: str
    streamed: bool = True
    once: bool = False
    jump: tuple[Expr, Expr] | None = None

    def coming(self, block: tuple[Expr, ...], vector: Expr, group: int = 1) -> Expr:
        """Emit where what lies `ahead` of a vector of a block is: the number of its first element.

        With `group` it is for so many vectors at once, and lies as many whole groups ahead as that takes.
        """
        ahead = -(-self.ahead // group) * group
        place = T.bind(first_element(self.weight, block) + (vector + ahead) * LANES)
        if self.jump is None:
            return place
        end, further = self.jump
        return T.bind(place + T.Select(place < end, T.int64(0), further))

    def fetch(self, place: Expr, vector: int | Expr = 0) -> None:
        """Emit the prefetching of a vector after such a place."""
        flat = view(self.weight, math.prod(map(int, self.weight.shape)))
        prefetch(flat[place + vector * LANES], ONCE if self.once else SOON)

    @property
    def ahead(self) -> int:
        """Vectors to prefetch ahead in each block."""
        return AHEAD // len(self.blocks) if self.streamed else 0


Elements = Callable[[Expr], Expr]
"""Index -> element, or index vector -> elements."""
Input = Callable[[Expr], Any]
"""Row of the left matrix -> its elements, or what else a method encodes them as."""
Output = Callable[[Expr, Sequence[Buffer]], None]
"""(row, sums of the tile's blocks) -> emits the stores."""
Start = Callable[[Expr, tuple[Expr, ...]], Expr]
"""(row, block) -> what the products are added to."""

Write = Callable[[Expr, Expr, int], None]
"""(index or vector of indices, value, lanes) -> emits the store."""
Groups = Callable[[Sequence[Expr]], Columns]
"""Indices of groups of blocks, one or more blocks each -> the blocks."""
GroupOutput = Callable[[Expr, Expr, Sequence[Buffer]], None]
"""(row, group, sums of its blocks) -> emits the stores."""

Rows = Callable[[Columns, Expr, Expr, Input, Output], None]
"""(columns, first row, end, x, output) -> emits the products of these rows."""
Multiply = Callable[[Columns, Sequence[Expr], Input], list[list[Buffer]]]
"""(columns, rows, x) -> emits the sums over k of x(row)(k) * weight[k], all in registers: of each row, for each block,
a local vector."""


@dataclass(frozen=True)
class Encoding:
    """What becomes of the rows of a left matrix before they are multiplied.

    Attributes:
        read: reads from where they have been written.
        write: emits what is to be done for a row first; None: nothing.
    """

    read: Input
    write: Callable[[Expr], None] | None = None


@dataclass(frozen=True)
class Method:
    """How products with the weights of one element type are computed.

    Attributes:
        tile: rows and blocks of columns that are multiplied together.
        rows: emits products of rows that an expert or a thread has.
        alone: multiplies a single row, for `stream`; None: `rows` does.
        encode: (x, rows, size) -> what becomes of rows first.
        abreast: blocks of columns that are multiplied together for a single row.
        panel: blocks of columns that a thread takes together where a tile doesn't hold all rows; 0: those of a tile.
        consecutive: whether rows must lie in memory as they are multiplied.
        threads: what products must be in: all threads at once, prepared for them.
    """

    tile: tuple[int, int]
    rows: Rows
    alone: Multiply | None
    encode: Callable[[Input, Expr, int], Encoding] = lambda x, rows, size: Encoding(x)
    abreast: int = 1
    panel: int = 0
    consecutive: bool = False
    threads: Callable[[], AbstractContextManager[None]] = together

    @classmethod
    def by_tiles(cls, tile: tuple[int, int], multiply: Multiply, **rest: Any) -> Method:
        """The method that multiplies tiles of rows, or one row, in registers."""
        return cls(tile, partial(rows_by_tiles, shape=tile, multiply=multiply), multiply, **rest)

    def encoded(self, x: Input, rows: Expr, size: int) -> Input:
        """Emit the encoding of all rows, and read from there."""
        encoding = self.encode(x, rows, size)
        if encoding.write:
            each_row(rows, encoding.write)
        return encoding.read

    @contextmanager
    def tasks(self, size: int) -> Iterator[Expr]:
        """A loop of products that the threads share."""
        if self.threads is together:
            with parallel(size) as task:
                yield task
            return
        with self.threads(), shared(size) as task:
            yield task


TASKS = 32
"""How many tasks should be there at least: they don't divide evenly among threads."""


def first_element(weight: Buffer, block: tuple[Expr, ...]) -> Expr:
    """The number of the first element of a block in a packed weight."""
    place: Expr = T.int64(0)
    for index, size in zip(block, weight.shape, strict=False):
        place = place * size + index
    return place * math.prod(map(int, weight.shape[len(block) :]))


def rows_of(matrix: Buffer, begin: int = 0) -> Input:
    """A matrix's columns from `begin` on."""
    return lambda row: lambda i: matrix[row, begin + i]


def tile(columns: Columns, rows: Sequence[Expr], x: Input, start: Start | None = None) -> list[list[Buffer]]:
    """Sums by fused multiply-adds over k of x(row)(k) * weight[k] for each row and block, all in registers.

    Args:
        columns: right matrix, of floats of 2 or 4 bytes.
        rows: row of each line of the tile.
        x: left matrix.
        start: what the sums are added to, if not zero.

    Returns:
        Of each row, for each block, a local vector.
    """
    elements = [x(row) for row in rows]
    sums = [[vector_of(start(line, block)) if start else vector_sum() for block in columns.blocks] for line in rows]

    def step(column: int, weight: Expr, k: Expr) -> None:
        accumulate([line[column] for line in sums], [splat(element(k)) for element in elements], weight)

    def load(block: tuple[Expr, ...], index: Expr) -> Expr:
        if columns.ahead:
            columns.fetch(columns.coming(block, index))
        return T.bind(columns.weight[(*block, index, at(0))])

    if columns.wdtype == "f32":
        with loop(columns.size) as k:
            for column, block in enumerate(columns.blocks):
                step(column, load(block, k), k)
        return sums
    with loop(columns.size // 2) as pair:
        words = [load(block, pair) for block in columns.blocks]
        for odd in range(2):
            for column, word in enumerate(words):
                step(column, widen(word, columns.wdtype, bool(odd)), pair * 2 + odd)
    if columns.size % 2:
        last = columns.size // 2
        for column, block in enumerate(columns.blocks):
            word = columns.weight[(*block, T.int64(last), at(0))]
            step(column, widen(word, columns.wdtype, False), T.int64(2 * last))
    return sums


def scale_of(weight: Buffer, block: tuple[Expr, ...], g: Expr) -> Expr:
    """The scales of a group of a quantised weight, one for each column."""
    return T.reinterpret(dtype("float32"), weight[(*block, g, T.int64(int(weight.shape[-2]) - 1), at(0))])


def stream(columns: Columns, row: Expr, x: Input, method: Method) -> list[Buffer]:
    """The sums of a single row, `method.abreast` blocks at a time.

    A row has little to gain from a tile of blocks: memory is read fastest in one long stream, and streams that lie a
    power of two apart push each other out of the cache. Two of them do not yet, and hide the latency of a chain.
    """
    assert method.alone is not None
    blocks, held = columns.blocks, method.abreast
    parts = [replace(columns, blocks=blocks[i : i + held], once=True) for i in range(0, len(blocks), held)]
    return [total for part in parts for total in method.alone(part, [row], x)[0]]


def accumulate(sums: Sequence[Buffer], factors: Sequence[Expr], vector: Expr) -> None:
    """Emit sums[i] += factors[i] * vector for some local vectors."""
    vector = T.bind(vector)
    for total, factor in zip(sums, factors, strict=True):
        store(total, fma(factor, vector, total[at(0)]), at(0))


def rows_by_tiles(
    columns: Columns, begin: Expr, end: Expr, x: Input, output: Output, shape: tuple[int, int], multiply: Multiply
) -> None:
    """Rows begin..end-1 of the product, tile by tile.

    The last tile may reach beyond the end: its lines there repeat the last row, without output.
    """
    lines, held = shape
    blocks = columns.blocks
    parts = [replace(columns, blocks=blocks[i : i + held]) for i in range(0, len(blocks), held)]
    with loop((end - begin + (lines - 1)) // lines) as t:
        first = T.bind(begin + t * lines)
        rows = [T.bind(T.min(first + i, end - 1)) for i in range(lines)]
        tiles = [multiply(part, rows, x) for part in parts]
        for i, row in enumerate(rows):
            with when(first + i < end):
                output(row, [total for sums in tiles for total in sums[i]])


def product(
    rows: Expr,
    groups: int,
    columns: Groups,
    x: Input,
    output: GroupOutput,
    method: Method,
    width: int = 1,
) -> None:
    """All rows of a product. The threads share the columns, and if these are few, the rows too.

    Args:
        rows: how many rows.
        groups: how many groups of `width` blocks the weight has; a group's sums are output together.
        columns: indices of groups -> their blocks.
        x: left matrix.
        output: (row, group, sums of its blocks) -> emits the stores.
        method: how they are computed.
        width: blocks in a group.
    """
    products(1, rows, groups, lambda _: (columns, x, output), method, width)


def products(
    number: int,
    rows: Expr,
    groups: int,
    factors: Callable[[Expr], tuple[Groups, Input, GroupOutput]],
    method: Method,
    width: int = 1,
    beside: Callable[[Expr, Expr], None] = lambda product, row: None,
) -> None:
    """Several products of the same shape, such as one for each head.

    Args:
        number: how many products.
        rows: rows of each.
        groups: as in `product`.
        factors: index of a product -> its columns, x and output as in `product`.
        method: how they are computed.
        width: blocks in a group.
        beside: (index of a product, row) -> emits what else is to be done for it, by the same threads.
    """

    def alone() -> None:
        count = min(max(method.abreast // width, 1), groups)
        parts = -(-groups // count)
        with method.tasks(number * parts) as task:
            which, first = T.bind(task // parts), T.bind(task % parts * count)
            columns, x, output = factors(which)
            part, write = adjacent(first, count, groups, columns, output, width)
            write(T.int64(0), stream(part, T.int64(0), x, method))
            with when(first == 0):
                beside(which, T.int64(0))

    def by_tiles(held: int) -> None:
        lines = method.tile[0]
        count = min(max(held // width, 1), groups)
        parts = -(-groups // count)
        shares = max(TASKS * count // (number * groups), 1)
        share = T.bind((rows + (shares * lines - 1)) // (shares * lines) * lines)
        with method.tasks(number * parts * shares) as task:
            which, first = T.bind(task // (parts * shares)), T.bind(task // shares % parts * count)
            columns, x, output = factors(which)
            part, write = adjacent(first, count, groups, columns, output, width)
            begin = T.bind(task % shares * share)
            end = T.bind(T.min(begin + share, rows))
            method.rows(part, begin, end, x, write)
            with when(first == 0), loop(end, begin) as row:
                beside(which, row)

    # There may be no rows at all.
    with either(rows == 1 if method.alone else rows <= method.tile[0]) as (few, many):
        with few:
            alone() if method.alone else by_tiles(method.tile[1])
        with many:
            by_tiles(method.panel or method.tile[1])


def adjacent(
    first: Expr, count: int, groups: int, columns: Groups, output: GroupOutput, width: int
) -> tuple[Columns, Output]:
    """`count` groups from `first` on. Those beyond the last group repeat it, without output."""
    uneven = groups % count != 0
    taken = [T.bind(T.min(first + i, groups - 1) if uneven else first + i) for i in range(count)]

    def write(row: Expr, sums: Sequence[Buffer]) -> None:
        for i, group in enumerate(taken):
            with when(first + i < groups) if uneven else nullcontext():
                output(row, group, sums[i * width : (i + 1) * width])

    return columns(taken), write


@contextmanager
def each_part(groups: int, count: int) -> Iterator[list[Expr]]:
    """A loop over `groups` in parts of `count`. The last part may repeat the last group."""
    count = min(count, groups)
    with loop(-(-groups // count)) as part:
        yield [T.bind(T.min(part * count + i, groups - 1)) for i in range(count)]


def by_columns(sums: Buffer, block: Expr, size: int, write: Write) -> None:
    """Emit write(column index, value, lanes) for the columns of a block that are below `size`."""
    first = block * LANES
    if size % LANES == 0:
        write(at(first), sums[at(0)], LANES)
        return
    with either(first + LANES <= size) as (whole, cut):
        with whole:
            write(at(first), sums[at(0)], LANES)
        with cut:
            copy = vector_of(sums[at(0)])
            with loop(size % LANES) as lane:
                write(first + lane, copy[lane], 1)
