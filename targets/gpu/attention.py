"""Latent attention (DeepSeek-V2 paper, section 2.1.2) on a matrix unit: queries in latent space against cache rows.

All heads share the cache rows as keys and as values, so a tile of them, read once, serves all lines of a block: lines
are pairs of a row and a head. For each tile of positions, in order (Dao et al., FlashAttention, 2022):

    S = Q C^T            each part of the block's subgroups multiplies its part of the columns; the parts are added
    P = e^(S - peak)     in registers, by every part alike
    O = O * decay + P C  each part its part of the latent columns

Q stays in registers, where they hold it. Every sum has one order, fixed by the static sizes and by the position of the
line itself, so its bits depend neither on other lines nor on page numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add, or_
from typing import Any

from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, loop, store, when

from .cache import pair
from .cached import Tile, tile_of
from .device import SUBGROUP, Gpu
from .emit import Threads, barrier, registers, settled, shared, turns, variable
from .latent import turned
from .softmax import MASKED, Lines, Softmax
from .units import Unit

PARTS = 4
"""Subgroups of a block; each has a part of the columns."""
HELD = 96
"""The most registers of a thread for queries; with more they are read anew for every tile."""
F16_MAX = 65504.0


@dataclass(frozen=True)
class Sizes:
    """What an attention is.

    Attributes:
        heads: how many.
        nope: columns of a head's query before those that are turned.
        rope: columns that are turned.
        kv_lora: width of the latent.
        page: positions a page.
        cdtype: element type of the cache.
        scale: of the scores.
        interleaved: whether RoPE pairs neighbours.
    """

    heads: int
    nope: int
    rope: int
    kv_lora: int
    page: int
    cdtype: str
    scale: float
    interleaved: bool

    @property
    def width(self) -> int:
        """Columns of a cache row."""
        return self.kv_lora + self.rope

    @property
    def latent_pitch(self) -> int:
        """Elements from head to head of queries in latent space, and of attended latents."""
        return -(-self.kv_lora // 4) * 4

    @property
    def names(self) -> list[object]:
        """The parts of a kernel's name."""
        sizes = [self.heads, self.nope, self.rope, self.kv_lora, self.page, self.cdtype, self.scale]
        return [*sizes, int(self.interleaved)]


Line = tuple[Expr, Expr, Expr]
"""Row, head, and whether there is one."""

Limits = Callable[[int, int], Expr]
"""Matrix, line of it -> how many positions it sees, i32."""


@dataclass(frozen=True)
class Queries:
    """The parameters with the queries.

    Attributes:
        absorbed: f32[n, heads, latent_pitch], in latent space.
        q: f32[n, heads * (nope + rope)].
        angles: f32[n, rope].
    """

    absorbed: Buffer
    q: Buffer
    angles: Buffer


@dataclass(frozen=True)
class Block:
    """How a block of threads attends.

    Attributes:
        s: the sizes.
        tile: of the cache.
        matrices: of the tile's unit below each other, which make the lines.
        gpu: the device.
    """

    s: Sizes
    tile: Tile
    matrices: int
    gpu: Gpu

    @classmethod
    def of(cls, gpu: Gpu, s: Sizes, lines: int | None = None) -> Block:
        """For at most so many lines; None: as many as a block can have.

        Two matrices halve what is read of shared memory, but only where registers hold their queries.
        """
        one, two = (cls(s, tile_of(gpu, s.cdtype, s.width), matrices, gpu) for matrices in (1, 2))
        return two if two.holds and (lines is None or lines > one.count) else one

    @property
    def unit(self) -> Unit:
        """What multiplies."""
        return self.tile.unit

    @property
    def count(self) -> int:
        """Lines of the block."""
        return self.matrices * self.unit.rows

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return PARTS * SUBGROUP

    @property
    def steps(self) -> tuple[int, int]:
        """Steps of the unit along the columns of a row: of all, and of a part."""
        steps = -(-self.s.width // self.tile.step)
        return steps, -(-steps // PARTS)

    @property
    def spans(self) -> tuple[int, int]:
        """Spans of the unit's columns across the latent columns: of all, and of a part."""
        spans = -(-self.s.kv_lora // (self.unit.columns * self.tile.span))
        return spans, -(-spans // PARTS)

    @property
    def holds(self) -> bool:
        """Whether queries stay in registers; where code is to be short, they do not."""
        return not self.gpu.compact and self.matrices * self.steps[1] * len(self.unit.a(T.int64(0))) <= HELD

    @property
    def pitch(self) -> int:
        """Scores from line to line.

        8 more than a multiple of 16, so that 4 lines of 8 neighbours are in different banks; less where that is too
        much shared memory.
        """
        positions = self.tile.positions
        wide = positions + 8 if positions % 16 == 0 else positions
        tiles = self.tile.stages * positions * self.tile.pitch
        fits = 4 * (tiles + PARTS * self.count * wide) <= self.gpu.shared_bytes
        return wide if fits else positions + 4


class Attending:
    """The code of a block of threads: each method emits some of it."""

    def __init__(self, block: Block, t: Threads, queries: Queries, line: Callable[[Expr], Line]) -> None:
        """Emit the shared memory, the registers, and the loading of the queries.

        Args:
            block: how.
            t: where the code is.
            queries: the parameters.
            line: of a line of the block, from 0 to count - 1, what it is.
        """
        s, self.block, self.unit, self.tile, self.t = block.s, block, block.unit, block.tile, t
        self.s, self.line, self.queries, self.matrices = s, line, queries, block.matrices
        self.named = (
            settled if block.gpu.compact else T.bind
        )  # a bound expression is written out, but costs no register
        self.lane, self.part = self.named(t.lane), self.named(t.subgroup)
        self.lines = Lines.of(self.unit)
        self.rows = self.tile.shared()
        turned_size = block.count * s.rope
        self.scores = shared(max(PARTS * block.count * block.pitch, turned_size if block.holds else 0))
        # queries that are held are read before there are scores
        self.turned = self.scores if block.holds else shared(turned_size)
        self.softmax = Softmax(self.lines, self.matrices)
        self.sums_size = len(self.unit.sums(T.int64(0)))
        self.sums = self.unit.zero(block.spans[1] * self.tile.span * self.matrices)
        with t.each(turned_size) as i:
            row, head, there = line(i // s.rope)
            first = T.bind(head * (s.nope + s.rope) + s.nope)
            with when(there):
                value = turned(
                    i % s.rope, s.rope, s.interleaved, lambda j: queries.q[row, first + j],
                    lambda j: queries.angles[row, j],
                )  # fmt: skip
                store(self.turned, value * T.float32(s.scale), i)
        barrier()
        steps = range(block.steps[1]) if block.holds else ()
        self.held = [[self._query(m, T.int64(step)) for m in range(self.matrices)] for step in steps]

    def _query(self, matrix: int, step: Expr) -> Buffer:
        """Emit the loading of A: queries of a matrix, and the columns of a step of the thread's part."""
        s, unit = self.s, self.unit
        first = (self.part * self.block.steps[1] + step) * self.tile.step

        def element(r: Expr, column: Expr) -> Expr:
            row, head, there = self.line(r)
            latent = variable(T.float32(0))
            with when(there):
                with when(column < s.kv_lora):
                    store(latent, self.queries.absorbed[row, head, column] * T.float32(s.scale), 0)
                with when((column >= s.kv_lora) & (column < s.width)):
                    store(latent, self.turned[r * s.rope + column - s.kv_lora], 0)
            return T.bind(latent[0])

        def read(r: Expr, word: Expr) -> Expr:
            place = T.bind(matrix * unit.rows + r)
            columns = [T.bind(first + word * unit.per_word + e) for e in range(unit.per_word)]
            values = [element(place, column) for column in columns]
            return operand(values, unit.element)

        return unit.load_a(self.lane, read)

    def attend(
        self, cache: Buffer, table: Buffer, seq: Expr, begin: Expr, end: Expr,
        sees: Callable[[Expr], Expr] | None = None,
    ) -> None:  # fmt: skip
        """Emit attention to positions begin to end - 1 of a sequence; begin is a multiple of the tile's positions.

        Args:
            cache: the cache's words.
            table: pages of the sequences.
            seq: the sequence.
            begin: the first position.
            end: after the last position.
            sees: of a line of the block, how many positions it sees, from position 0 on; None: all lines see all.
        """
        limits = self._limits(sees, end)
        positions, tile = self.tile.positions, self.tile
        turns = T.bind((end - begin + (positions - 1)) // positions)
        given = cache, table, seq
        if tile.stages == 2:
            barrier()
            tile.copy(self.t, self.rows, T.int64(0), *given, begin, end, self.s.page)
        with loop(turns) as turn:
            first, stage = self.named(begin + turn * positions), T.bind(turn % 2)
            if tile.stages == 2:
                tile.arrived()
                with when(turn + 1 < turns):
                    tile.copy(self.t, self.rows, 1 - stage, *given, first + positions, end, self.s.page)
            else:
                stage = T.int64(0)
                tile.stage(self.t, self.rows, *given, first, end, self.s.page)
            self._multiply_keys(stage * positions)
            barrier()
            self._multiply_values(stage * positions, first, limits)

    def _limits(self, sees: Callable[[Expr], Expr] | None, end: Expr) -> Limits:
        if sees is None:
            return lambda m, line: T.Cast("int32", end)
        limits = registers(self.matrices * self.softmax.count, dtype="int32")
        for m in range(self.matrices):
            for i in range(self.softmax.count):
                row = m * self.unit.rows + self.lines.row(self.lane, i)
                store(limits, T.Cast("int32", sees(row)), m * self.softmax.count + i)
        return lambda m, line: limits[m * self.softmax.count + line]

    def _multiply_keys(self, stage: Expr) -> None:
        """Emit a part's scores of the tile whose rows begin at `stage`, into shared memory."""
        unit, (steps, own) = self.unit, self.block.steps
        across = self.tile.positions // unit.columns
        sums = unit.zero(across * self.matrices)

        def multiply(step: Expr, queries: Callable[[int], Buffer]) -> None:
            number = T.bind(self.part * own + step)
            with _within(number, steps, own):
                for i in range(across):

                    def key(column: Expr, word: Expr, i: int = i) -> Expr:
                        return self.tile.key(self.rows, stage + i * unit.columns + column, number * unit.words + word)

                    b = unit.load_b(self.lane, key)
                    for m in range(self.matrices):
                        unit.multiply(sums, queries(m), b, i * self.matrices + m)

        for step, held in enumerate(self.held):
            multiply(T.int64(step), held.__getitem__)
        if not self.block.holds:
            with loop(own) as each:
                multiply(each, lambda m: self._query(m, each))
        for i in range(across):
            for m in range(self.matrices):
                for register, (row, column) in enumerate(unit.sums(self.lane)):
                    at = (self.part * self.block.count + m * unit.rows + row) * self.block.pitch
                    value = sums[(i * self.matrices + m) * self.sums_size + register]
                    store(self.scores, value, at + i * unit.columns + column)

    def _multiply_values(self, stage: Expr, first: Expr, limits: Limits) -> None:
        """Emit the weights of the tile at position `first`, and what they add to a part's sums."""
        chunks = self.tile.positions // self.tile.step
        weights = [self._weights(m, first, limits, chunks) for m in range(self.matrices)]
        spans, own = self.block.spans
        for span in turns(own, compact=self.block.gpu.compact):
            number = T.bind(self.part * own + span)
            with _within(number, spans, own):
                for chunk in range(chunks):
                    begin = stage + chunk * self.tile.step
                    values = self.tile.values(self.lane, self.rows, number * self.unit.columns, begin)
                    for m in range(self.matrices):
                        for s, b in enumerate(values):
                            self.unit.multiply(self.sums, weights[m][chunk], b, self._matrix(span, s, m))

    def _matrix(self, own: int | Expr, s: int, m: int) -> int | Expr:
        """Which matrix of the sums: the part's span of columns, matrix s of it, matrix of lines."""
        return (own * self.tile.span + s) * self.matrices + m

    def _weights(self, m: int, begin: Expr, limits: Limits, chunks: int) -> list[Buffer]:
        """Emit the softmax of a matrix of lines, and the fading of its sums: A for each chunk of positions."""
        unit, per_word, block = self.unit, self.unit.per_word, self.block
        places = unit.a(self.lane)
        scores = registers(chunks * len(places) * per_word)
        line_of: list[int] = []
        for chunk in range(chunks):
            for (row, word), line in zip(places, self.lines.of_a, strict=True):
                for e in range(per_word):
                    position = T.bind(chunk * self.tile.step + word * per_word + e)
                    at = [((part * block.count + m * unit.rows) + row) * block.pitch for part in range(PARTS)]
                    score = T.bind(reduce(add, (self.scores[i + position] for i in at)))
                    seen = T.Cast("int32", begin + position) < limits(m, line)
                    store(scores, T.Select(seen, score, T.float32(MASKED)), len(line_of))
                    line_of.append(line)
        decays = self.softmax.weigh(m, scores, line_of)
        with when(reduce(or_, (decay != T.float32(1) for decay in decays))):
            for span in turns(block.spans[1], compact=block.gpu.compact):
                for s in range(self.tile.span):
                    for i, line in enumerate(self.lines.of_sums):
                        register = self._matrix(span, s, m) * self.sums_size + i
                        store(self.sums, self.sums[register] * decays[line], register)
        held = []
        for chunk in range(chunks):
            a = registers(len(places), dtype=unit.word)
            for i in range(len(places)):
                first = (chunk * len(places) + i) * per_word
                store(a, operand([scores[first + e] for e in range(per_word)], unit.element), i)
            held.append(a)
        return held

    def write(self, write: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
        """Emit `write` of line, column, sum and mass, for all latent columns of all lines of the block."""
        own = self.block.spans[1]
        for span in turns(own, compact=self.block.gpu.compact):
            number = T.bind(self.part * own + span)
            for s in range(self.tile.span):
                for m in range(self.matrices):
                    for i, (row, column) in enumerate(self.unit.sums(self.lane)):
                        c = T.bind(self.tile.column(number * self.unit.columns, column, s))
                        mass = self.softmax.mass[m * self.softmax.count + self.lines.of_sums[i]]
                        with when(c < self.s.kv_lora):
                            value = self.sums[self._matrix(span, s, m) * self.sums_size + i]
                            write(T.bind(m * self.unit.rows + row), c, value, mass)

    def each_line(self, write: Callable[[Expr, Expr, Expr], None]) -> None:
        """Emit `write` of line, peak and mass, by one part of the block."""
        with when(self.part == 0):
            for m in range(self.matrices):
                for i in range(self.softmax.count):
                    at = m * self.softmax.count + i
                    line = T.bind(m * self.unit.rows + self.lines.row(self.lane, i))
                    write(line, self.softmax.peak[at], self.softmax.mass[at])


def operand(values: list[Expr], element: str) -> Expr:
    """The word of f32 values, as many as it has elements; what a half can't hold becomes its largest."""
    if element == "f32":
        return values[0]
    if element == "f16":
        values = [T.min(T.max(value, T.float32(-F16_MAX)), T.float32(F16_MAX)) for value in values]
    low, high = values
    return pair(low, high, element)


def _within(number: Expr, size: int, own: int) -> Any:
    """For what a part has no more of where the parts are not alike."""
    return when(number < size) if size < PARTS * own else nullcontext()
