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
from typing import Any

from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, loop, store, when

from .cache import pair
from .cached import tile_of
from .device import SUBGROUP, Gpu
from .emit import Threads, barrier, registers, shared, variable
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


@dataclass(frozen=True)
class Queries:
    """The parameters with the queries: absorbed f32[n, heads, latent_pitch], q f32[n, heads * (nope + rope)] and angles
    f32[n, rope].
    """

    absorbed: Buffer
    q: Buffer
    angles: Buffer


class Block:
    """What a block of threads does for its lines.

    Attributes:
        s: the sizes.
        tile: of the cache.
        matrices: of `tile.unit` below each other, which make the lines.
    """

    def __init__(self, gpu: Gpu, s: Sizes, matrices: int) -> None:
        """Decide; nothing is emitted."""
        self.s = s
        self.tile = tile_of(gpu, s.cdtype, s.width)
        self.matrices = matrices
        self.shared_bytes = gpu.shared_bytes
        self.unit: Unit = self.tile.unit
        self.lines = Lines.of(self.unit)
        self.steps = -(-(-(-s.width // self.tile.step)) // PARTS)
        self.last_step = -(-s.width // self.tile.step)
        self.spans = -(-s.kv_lora // (self.unit.columns * self.tile.span))
        self.own_spans = -(-self.spans // PARTS)
        self.sums_size = len(self.unit.sums(T.int64(0)))

    @property
    def count(self) -> int:
        """Lines of the block."""
        return self.matrices * self.unit.rows

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return PARTS * SUBGROUP

    @property
    def _pitch(self) -> int:
        """Scores from line to line: 8 more than a multiple of 16, so that 4 lines of 8 neighbours are in different
        banks; less where that is too much shared memory.
        """
        wide = -(-self.tile.positions // 16) * 16 + (8 if self.tile.positions > 8 else -8)
        tiles = self.tile.stages * self.tile.positions * self.tile.pitch
        fits = 4 * (tiles + PARTS * self.count * wide) <= self.shared_bytes
        return wide if fits else self.tile.positions + 4

    def begin(self, t: Threads, queries: Queries, line: Callable[[Expr], Line]) -> None:
        """Emit the shared memory, the registers, and the loading of the queries.

        Args:
            t: where the code is.
            queries: the parameters.
            line: the block's line 0 to count - 1.
        """
        s, unit = self.s, self.unit
        self.t, self.line, self.queries = t, line, queries
        self.rows = self.tile.shared()
        self.scores = shared(max(PARTS * self.count * self._pitch, self.count * s.rope if self.holds else 0))
        self.turned = self.scores if self.holds else shared(self.count * s.rope)
        self.softmax = Softmax(self.lines, self.matrices)
        self.sums = unit.zero(self.own_spans * self.tile.span * self.matrices)
        with t.each(self.count * s.rope) as i:
            row, head, there = line(i // s.rope)
            first = T.bind(head * (s.nope + s.rope) + s.nope)
            with when(there):
                value = turned(
                    i % s.rope, s.rope, s.interleaved, lambda j: queries.q[row, first + j],
                    lambda j: queries.angles[row, j],
                )  # fmt: skip
                store(self.turned, value * T.float32(s.scale), i)
        barrier()
        self.held = []
        if self.holds:
            self.held = [self._query(m, step) for m in range(self.matrices) for step in range(self.steps)]

    @property
    def holds(self) -> bool:
        """Whether queries stay in registers."""
        return self.matrices * self.steps * len(self.unit.a(T.int64(0))) <= HELD

    def _query(self, matrix: int, step: Any) -> Buffer:
        """Emit the loading of A: queries of a matrix, and the columns of a step of the thread's part."""
        s, unit = self.s, self.unit
        first = (self.t.subgroup * self.steps + step) * self.tile.step

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

        return unit.load_a(self.t.lane, read)

    def clear(self) -> None:
        """Emit the state before the first position."""
        self.unit.clear(self.sums)
        self.softmax.clear()

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
            first, stage = T.bind(begin + turn * positions), T.bind(turn % 2)
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

    def _limits(self, sees: Callable[[Expr], Expr] | None, end: Expr) -> Callable[[int, int], Expr]:
        """Matrix, line of it -> how many positions it sees, i32."""
        if sees is None:
            return lambda m, line: T.Cast("int32", end)
        limits = registers(self.matrices * self.softmax.count, dtype="int32")
        for m in range(self.matrices):
            for i in range(self.softmax.count):
                row = m * self.unit.rows + self.lines.row(self.t.lane, i)
                store(limits, T.Cast("int32", sees(row)), m * self.softmax.count + i)
        return lambda m, line: limits[m * self.softmax.count + line]

    def _multiply_keys(self, stage: Expr) -> None:
        unit, t = self.unit, self.t
        blocks = self.tile.positions // unit.columns
        sums = unit.zero(blocks * self.matrices)
        for step in range(self.steps) if self.holds else [None]:
            with loop(self.steps) if step is None else nullcontext(T.int64(step or 0)) as s:
                number = T.bind(t.subgroup * self.steps + s)
                with _within(number, self.last_step, PARTS * self.steps):
                    for block in range(blocks):
                        b = unit.load_b(
                            t.lane,
                            lambda i, w, block=block: self.tile.key(
                                self.rows, stage + block * unit.columns + i, number * unit.words + w
                            ),
                        )
                        for m in range(self.matrices):
                            a = self.held[m * self.steps + step] if step is not None else self._query(m, s)
                            unit.multiply(sums, a, b, block * self.matrices + m)
        places = unit.sums(t.lane)
        for block in range(blocks):
            for m in range(self.matrices):
                first = (block * self.matrices + m) * self.sums_size
                for i, (row, column) in enumerate(places):
                    line = t.subgroup * self.count + m * unit.rows + row
                    store(self.scores, sums[first + i], line * self._pitch + block * unit.columns + column)

    def _multiply_values(self, stage: Expr, first: Expr, limits: Callable[[int, int], Expr]) -> None:
        unit, t = self.unit, self.t
        chunks = self.tile.positions // self.tile.step
        weights = [self._weights(m, first, limits, chunks) for m in range(self.matrices)]
        for own in range(self.own_spans):
            number = T.bind(t.subgroup * self.own_spans + own)
            with _within(number, self.spans, PARTS * self.own_spans):
                for chunk in range(chunks):
                    values = self.tile.values(t.lane, self.rows, number * unit.columns, stage + chunk * self.tile.step)
                    for m in range(self.matrices):
                        for s, b in enumerate(values):
                            unit.multiply(self.sums, weights[m][chunk], b, self._matrix(own, s, m))

    def _matrix(self, own: int, s: int, m: int) -> int:
        """Which matrix of the sums: own span of columns, matrix s of it, matrix of lines."""
        return (own * self.tile.span + s) * self.matrices + m

    def _weights(self, m: int, begin: Expr, limits: Callable[[int, int], Expr], chunks: int) -> list[Buffer]:
        """Emit the softmax of a matrix of lines, and the fading of its sums: A for each chunk of positions."""
        unit, t, per_word = self.unit, self.t, self.unit.per_word
        places = unit.a(t.lane)
        scores = registers(chunks * len(places) * per_word)
        line_of = []
        for chunk in range(chunks):
            for i, (row, word) in enumerate(places):
                for e in range(per_word):
                    position = T.bind(chunk * self.tile.step + word * per_word + e)
                    total: Any = None
                    for part in range(PARTS):
                        line = part * self.count + m * unit.rows + row
                        score = self.scores[line * self._pitch + position]
                        total = score if total is None else total + score
                    line_i = self.lines.of_a[i]
                    seen = T.Cast("int32", begin + position) < limits(m, line_i)
                    value = T.Select(seen, T.bind(total), T.float32(MASKED))
                    store(scores, value, len(line_of))
                    line_of.append(line_i)
        decays = self.softmax.weigh(m, scores, line_of)
        with when(reduce(lambda a, b: a | b, (decay != T.float32(1) for decay in decays))):
            for own in range(self.own_spans):
                for s in range(self.tile.span):
                    for i, line in enumerate(self.lines.of_sums):
                        at = self._matrix(own, s, m) * self.sums_size + i
                        store(self.sums, self.sums[at] * decays[line], at)
        held = []
        for chunk in range(chunks):
            a = registers(len(places), dtype=unit.word)
            for i in range(len(places)):
                at = (chunk * len(places) + i) * per_word
                store(a, operand([scores[at + e] for e in range(per_word)], unit.element), i)
            held.append(a)
        return held

    def write(self, write: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
        """Emit write(line, column, sum, mass) for all latent columns of all lines of the block."""
        t = self.t
        for own in range(self.own_spans):
            number = T.bind(t.subgroup * self.own_spans + own)
            for s in range(self.tile.span):
                for m in range(self.matrices):
                    for i, (row, column) in enumerate(self.unit.sums(t.lane)):
                        c = T.bind(self.tile.column(number * self.unit.columns, column, s))
                        mass = self.softmax.mass[m * self.softmax.count + self.lines.of_sums[i]]
                        with when(c < self.s.kv_lora):
                            value = self.sums[self._matrix(own, s, m) * self.sums_size + i]
                            write(T.bind(m * self.unit.rows + row), c, value, mass)

    def each_line(self, write: Callable[[Expr, Expr, Expr], None]) -> None:
        """Emit write(line, peak, mass), by one part of the block."""
        with when(self.t.subgroup == 0):
            for m in range(self.matrices):
                for i in range(self.softmax.count):
                    at = m * self.softmax.count + i
                    line = T.bind(m * self.unit.rows + self.lines.row(self.t.lane, i))
                    write(line, self.softmax.peak[at], self.softmax.mass[at])


def operand(values: list[Expr], element: str) -> Expr:
    """The word of f32 values, as many as it has elements; what a half can't hold becomes its largest."""
    if element == "f32":
        return values[0]
    if element == "f16":
        values = [T.min(T.max(value, T.float32(-F16_MAX)), T.float32(F16_MAX)) for value in values]
    return pair(*values, element)


def _within(number: Expr, size: int, reached: int) -> Any:
    return when(number < size) if size < reached else nullcontext()
