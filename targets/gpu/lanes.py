"""How a block multiplies few rows: a subgroup, or part of it, has rows of the weight, its lanes the inner dimension.

A lane reads the weight 16 bytes at a time, next to its neighbours'. Which elements of a row it multiplies, and in which
order sums are added, depends on the sizes only: so do the bits of a result. Products of floats are f32's; rows for
weights of integers are rounded to 8 bits in shared memory, and a lane scales the exact sum of each 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from deepzig.ir.quantize import GROUP, QUANTIZED
from deepzig.targets.emit import Buffer, Expr, loop, store, when

from .device import SUBGROUP, Gpu
from .emit import Threads, barrier, device, registers, settled, shuffle_xor, subgroup_sum
from .layout import group, has_scales, row_words
from .source import Codes, Norms, Source
from .vector import PARTS, SHRUNK, WORDS, codes, float_of, fma, load, per_vector, widen

THREADS = 256
"""Of a block."""

AHEAD = 4
"""Vectors of the weight that a thread asks for at once."""


@dataclass(frozen=True)
class Lanes:
    """How the threads of a block share a product.

    Attributes:
        k: inputs.
        n: outputs.
        wdtype: element type of the weight.
        halves: rows of the weight of an output.
        columns: outputs that a thread sums.
    """

    k: int
    n: int
    wdtype: str
    halves: int = 1
    columns: int = 1

    @property
    def vectors(self) -> int:
        """Vectors of a row of the weight, without its scales."""
        return row_words(self.k, self.wdtype) // WORDS

    @property
    def lanes(self) -> int:
        """Threads that sum an output together."""
        return min(SUBGROUP, 1 << (self.vectors - 1).bit_length())

    @property
    def per_block(self) -> int:
        """Outputs of a block."""
        return THREADS // self.lanes * self.columns

    @property
    def blocks(self) -> int:
        """Blocks for all outputs."""
        return -(-self.n // self.per_block)


@dataclass(frozen=True)
class Weight:
    """Rows of a weight.

    Attributes:
        buffer: packed by `layout.pack_rows`.
        row: output, half -> leading indices.
    """

    buffer: Buffer
    row: Callable[[Expr, int], tuple[Expr, ...]]


class Memory:
    """The shared memory of a kernel, for tiles of up to `tile` rows."""

    def __init__(self, gpu: Gpu, lanes: Lanes, tile: int, norm: bool) -> None:
        self.norms = Norms(tile, THREADS) if norm else None
        self.codes = Codes(gpu, lanes.wdtype, tile, lanes.k) if lanes.wdtype in QUANTIZED else None


Write = Callable[..., None]
"""Number of a row in the tile, output, and the sum of each half -> emitted code that stores the result."""


def multiply(
    t: Threads, lanes: Lanes, memory: Memory, source: Source, row_of: Callable[[Expr], Expr], weight: Weight,
    block: Expr, tile: int, count: Expr, write: Write,
) -> None:  # fmt: skip
    """Emit the products of `count` rows, at most `tile`, with the outputs of a block; all threads have to come here.

    Args:
        t: THREADS threads.
        lanes: how they share the work.
        memory: the kernel's.
        source: the rows that are multiplied.
        row_of: number of a row in the tile, below `tile` -> its index in the source, always a good one.
        weight: the weight.
        block: which of `lanes.blocks`.
        tile: for how many rows there are sums.
        count: how many of them are wanted.
        write: what to do with the sums.
    """
    first = settled((block * (THREADS // lanes.lanes) + t.thread // lanes.lanes) * lanes.columns)
    outputs = [settled(T.min(first + c, lanes.n - 1)) for c in range(lanes.columns)]
    leads = [weight.row(output, half) for output in outputs for half in range(lanes.halves)]
    rows = [settled(row_of(T.int64(r))) for r in range(tile)]
    if memory.norms is not None:
        memory.norms.measure(t, source, rows)
    sums = registers(len(leads) * tile)
    for i in range(len(leads) * tile):
        store(sums, T.float32(0), i)
    lane = settled(t.thread % lanes.lanes)
    if memory.codes is None:
        _floats(lanes, lane, source, rows, weight.buffer, leads, sums)
    else:
        _integers(t, lanes, lane, memory, source, row_of, weight.buffer, leads, sums, tile)
    _finish(lanes, lane, sums, tile, count, first, write, memory)


def _finish(
    lanes: Lanes, lane: Expr, sums: Buffer, tile: int, count: Expr, first: Expr, write: Write, memory: Memory
) -> None:  # fmt: skip
    """Emit the adding up of all lanes' sums, and the writing of the results, which the lanes share."""
    each, halves = lanes.columns * tile, lanes.halves
    parts = [
        _added([sums[(c * halves + half) * tile + r] for c in range(lanes.columns) for r in range(tile)], lane, lanes)
        for half in range(halves)
    ]
    factor = T.float32(1 / SHRUNK.get(lanes.wdtype, 1.0))
    for i, values in enumerate(map(list, zip(*parts, strict=True))):
        number = settled(lane * each // lanes.lanes + i)
        c, r = number // tile, number % tile
        conditions = [r < count, first + c < lanes.n]
        if each < lanes.lanes:
            conditions.append(lane % (lanes.lanes // each) == 0)
        with when(tirx.all(*conditions)):
            if memory.codes is None and memory.norms is not None:
                values = [value * memory.norms.scales[r] for value in values]
            write(r, first + c, *(settled(value * factor) for value in values))


def _added(values: list[Expr], lane: Expr, lanes: Lanes) -> list[Expr]:
    """The sums over all lanes, each in the lanes that are to write it: in order, as many in each lane.

    Lanes that have half of the values left to add up exchange the other half for it. A sum has the same order, and
    bits, as if it were added up alone.
    """
    mask = lanes.lanes // 2
    while mask and len(values) > 1:
        upper, half = T.bitwise_and(lane, T.int64(mask)) != 0, len(values) // 2
        pairs = list(zip(values[:half], values[half:], strict=True))
        values = [settled(T.Select(upper, b, a) + shuffle_xor(T.Select(upper, a, b), mask)) for a, b in pairs]
        mask //= 2
    return [subgroup_sum(value, 2 * mask) if mask else value for value in values]


def _each(lanes: int, vectors: int, lane: Expr, step: int, body: Callable[[Sequence[Expr], bool], None]) -> None:
    """Emit body(numbers of vectors, whether these are the last) for all vectors of a lane, `step` at once."""
    turns = vectors // lanes
    with loop(turns // step) as turn:
        body([settled((turn * step + i) * lanes + lane) for i in range(step)], False)
    for i in range(turns // step * step, turns):
        body([settled(lane + i * lanes)], False)
    if vectors % lanes:
        number = settled(lane + turns * lanes)
        with when(number < vectors):
            body([number], True)


def _floats(
    lanes: Lanes, lane: Expr, source: Source, rows: Sequence[Expr], weight: Buffer, leads: Sequence[tuple[Expr, ...]],
    sums: Buffer,
) -> None:  # fmt: skip
    """Emit sums[i * rows + r] += row r times the lane's part of row i of the weight."""
    size, tile = per_vector(lanes.wdtype), len(rows)

    def add(numbers: Sequence[Expr], whole: bool) -> None:
        vectors = [[load(weight, *lead, number * WORDS) for lead in leads] for number in numbers]
        for number, held in zip(numbers, vectors, strict=True):
            chains = [T.float32(0) if has_scales(lanes.wdtype) else sums[i] for i in range(len(leads) * tile)]
            for four in range(size // WORDS):
                first = number * size + four * WORDS
                values = [[T.bind(v) for v in widen(vector, lanes.wdtype, four)] for vector in held]
                factors = source.factors(first, whole=whole) if source.norm is not None else []
                for r, row in enumerate(rows):
                    x = source.four(row, first, whole=whole)
                    x = [T.bind(a * b) for a, b in zip(x, factors, strict=True)] if factors else x
                    for i, column in enumerate(values):
                        for a, b in zip(x, column, strict=True):
                            chains[i * tile + r] = T.bind(fma(a, b, chains[i * tile + r]))
            for i, chain in enumerate(chains):
                scale = scale_of(leads[i // tile], number)
                store(sums, chain if scale is None else fma(chain, scale, sums[i]), i)

    def scale_of(lead: tuple[Expr, ...], number: Expr) -> Any:
        if not has_scales(lanes.wdtype):
            return None
        words = row_words(lanes.k, lanes.wdtype)
        return float_of(weight[(*lead, words + number // (group(lanes.wdtype) // size))])

    clean = lanes.k // size
    turns = clean // lanes.lanes  # of all lanes, with vectors that have k's elements only
    ahead = AHEAD // 2 if size > 8 and source.norm is not None else AHEAD  # x and the norm's weight take registers, too
    step = max(1, ahead // len(leads)) if tile == 1 else 1
    _each(lanes.lanes, turns * lanes.lanes, lane, step, lambda numbers, _: add(numbers, True))
    if lanes.vectors > turns * lanes.lanes:
        number = settled(lane + turns * lanes.lanes)
        with when(number < lanes.vectors):
            add([number], lanes.k % size == 0 and clean == lanes.vectors)


def _integers(
    t: Threads, lanes: Lanes, lane: Expr, memory: Memory, source: Source, row_of: Callable[[Expr], Expr],
    weight: Buffer, leads: Sequence[tuple[Expr, ...]], sums: Buffer, tile: int,
) -> None:  # fmt: skip
    """As `_floats`, of rows that are rounded part by part."""
    assert memory.codes is not None
    held, size = memory.codes, per_vector(lanes.wdtype)
    padded, unit = lanes.vectors * size, lanes.lanes * size
    most = padded if tile * padded <= held.capacity else held.capacity // tile // unit * unit
    scales = row_words(lanes.k, lanes.wdtype)

    def section(begin: Expr, length: int, whole: bool) -> None:
        barrier()  # codes of other elements, or rows, have been read
        held.encode(t, source, row_of, tile, memory.norms, begin, length, whole=whole)
        barrier()

        def add(numbers: Sequence[Expr], _: bool) -> None:
            origin = begin // size
            vectors = [[load(weight, *lead, (origin + number) * WORDS) for lead in leads] for number in numbers]
            factors = [
                [float_of(weight[(*lead, scales + (origin + number) * size // GROUP)]) for lead in leads]
                for number in numbers
            ]
            for i, number in enumerate(numbers):
                g = T.bind(number * size // GROUP)
                scale = [T.bind(factor) for factor in factors[i]]
                dots = [held.offset(r, length, number) for _ in leads for r in range(tile)]
                for half in range(PARTS[lanes.wdtype]):
                    unpacked = [[T.bind(word) for word in codes(v, lanes.wdtype, half)] for v in vectors[i]]
                    for r in range(tile):
                        words = held.words(r, length, number, half)
                        for j, column in enumerate(unpacked):
                            for a, b in zip(column, words, strict=True):
                                dots[j * tile + r] = device("dot4", a, b, dots[j * tile + r], returns="int32")
                for r in range(tile):
                    x_scale = T.bind(held.scale(r, length, g))
                    for j in range(len(leads)):
                        index = j * tile + r
                        scaled = T.bind(scale[j] * x_scale)
                        store(sums, fma(T.Cast("float32", dots[index]), scaled, sums[index]), index)

        _each(lanes.lanes, length // size, lane, max(1, AHEAD // len(leads)) if tile == 1 else 1, add)

    whole = padded // most if lanes.k % most == 0 else lanes.k // most
    if whole > 1:
        with loop(whole) as i:
            section(T.bind(i * most), most, True)
    elif whole:
        section(T.int64(0), most, True)
    if padded > whole * most:
        section(T.int64(whole * most), padded - whole * most, False)
