"""Tiles of cache rows in shared memory, read by a matrix unit as keys and as values.

A tile is a number of positions of one sequence, brought from global memory once. Two-byte elements lie in it as they
are stored, those of q8 are widened to the elements of the unit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from tvm.script import tirx as T

from deepzig.ir.quantize import GROUP
from deepzig.targets.emit import Buffer, Expr, either, store, when

from .cache import PER_WORD, half, pair, row_columns, scale_word, word_type
from .device import Gpu
from .emit import Threads, barrier, device, registers, shared, variable
from .units import NARROW, UNITS, Unit

VECTOR = 4
"""Words that a thread reads from global memory at once."""


@dataclass(frozen=True)
class Tile:
    """What a tile is.

    Attributes:
        unit: what multiplies by it.
        cdtype: element type of the cache.
        width: columns of a row that count.
        positions: how many rows.
        stages: how many tiles there is shared memory for: with two, one is read while the other is brought.
    """

    unit: Unit
    cdtype: str
    width: int
    positions: int
    stages: int

    @property
    def held(self) -> str:
        """Element type in shared memory."""
        return self.unit.element if self.cdtype == "q8" else self.cdtype

    @property
    def words(self) -> int:
        """Words of a row in shared memory, without what is left free after it."""
        return row_columns(self.cdtype, self.width) // PER_WORD[self.held]

    @property
    def pitch(self) -> int:
        """Words from row to row: 4 more than a multiple of 8, so that 8 rows are in different banks."""
        return self.words + (4 if self.words % 8 == 0 else 0)

    @property
    def step(self) -> int:
        """Elements along the inner dimension that the unit multiplies at once."""
        return self.unit.words * self.unit.per_word

    @property
    def span(self) -> int:
        """Matrices of values that one read of words makes: those of even and of odd columns."""
        return PER_WORD[self.held]

    def shared(self) -> Buffer:
        """Shared memory for the stages, one below the other."""
        return shared(self.stages * self.positions, self.pitch, dtype=word_type(self.held))

    def _share(self, t: Threads, words: int) -> tuple[Expr, list[tuple[Expr, bool]]]:
        """The row of which a thread brings a part, and of its vectors where each begins, and if all rows have it.

        Neighbours bring neighbouring vectors, and a thread those of one row: that takes one address.
        """
        beside, vectors = t.count // self.positions, words // VECTOR
        turns = -(-vectors // beside)
        firsts = [(turn * beside + t.thread % beside, (turn + 1) * beside <= vectors) for turn in range(turns)]
        return T.bind(t.thread // beside), [(vector * VECTOR, whole) for vector, whole in firsts]

    def _place(self, table: Buffer, seq: Expr, begin: Expr, page: int) -> Callable[[Expr], tuple[Expr, Expr]]:
        """Row of the tile that starts at position `begin` -> page, and position in it."""
        if page % self.positions == 0:
            number, first = T.bind(table[seq, begin // page]), begin % page
            return lambda row: (number, first + row)

        def place(row: Expr) -> tuple[Expr, Expr]:
            # from memory, since TVM (0.27) errs when it simplifies (x // 12 + y) // 5
            position = variable(T.Cast("int32", begin + row), "int32")[0]
            return T.bind(table[seq, position // page]), T.bind(position % page)

        return place

    def copy(
        self, t: Threads, tile: Buffer, stage: Expr, cache: Buffer, table: Buffer, seq: Expr, begin: Expr, end: Expr,
        page: int,
    ) -> None:  # fmt: skip
        """Emit the start of bringing the rows from position `begin` on into a stage; rows from `end` on become zero.

        They are there after `arrived`.
        """
        row, vectors = self._share(t, self.words)
        place, here = self._place(table, seq, begin, page), T.bind(stage * self.positions + row)
        zero = T.broadcast(T.float32(0) if self.cdtype == "f32" else T.uint32(0), VECTOR)
        with either(begin + row < end) as (inside, outside):
            with inside:
                there = place(row)
                for first, whole in vectors:
                    with nullcontext() if whole else when(first < self.words):
                        addresses = T.address_of(tile[here, first]), T.address_of(cache[(*there, first)])
                        device("cp_async_16", *addresses)
            with outside:
                for first, whole in vectors:
                    with nullcontext() if whole else when(first < self.words):
                        store(tile, zero, here, T.ramp(first, 1, VECTOR))
        device("cp_async_commit")

    def arrived(self) -> None:
        """Emit the wait for what `copy` brings; all threads wait, so that they are also done with the other stage."""
        device("cp_async_wait", T.int32(0))
        barrier()

    def stage(
        self, t: Threads, tile: Buffer, cache: Buffer, table: Buffer, seq: Expr, begin: Expr, end: Expr, page: int
    ) -> None:
        """Emit the bringing of the rows from position `begin` on; rows from `end` on become zero.

        All threads wait: before they overwrite the tile, and until it is there.
        """
        words = scale_word(self.width) if self.cdtype == "q8" else self.words
        (row, vectors), place = self._share(t, words), self._place(table, seq, begin, page)
        held = [registers(VECTOR, dtype=word_type(self.cdtype)) for _ in vectors]
        scales = [variable(T.float32(0)) for _ in vectors] if self.cdtype == "q8" else []
        at = T.ramp(T.int64(0), 1, VECTOR)
        zero = T.broadcast(T.float32(0) if self.cdtype == "f32" else T.uint32(0), VECTOR)
        for values in held:
            store(values, zero, at)
        with when(begin + row < end):
            there = place(row)
            for turn, (first, whole) in enumerate(vectors):
                with nullcontext() if whole else when(first < words):
                    store(held[turn], cache[(*there, T.ramp(first, 1, VECTOR))], at)
                    if self.cdtype == "q8":
                        word = cache[(*there, scale_word(self.width) + first // (GROUP // 4))]
                        store(scales[turn], T.reinterpret("float32", word), 0)
        barrier()
        for turn, (first, whole) in enumerate(vectors):
            with nullcontext() if whole else when(first < words):
                if self.cdtype == "q8":
                    self._widen(tile, row, first * 4 // self.span, held[turn], scales[turn][0])
                else:
                    store(tile, held[turn][at], row, T.ramp(first, 1, VECTOR))
        barrier()

    def _widen(self, tile: Buffer, row: Expr, first: Expr, codes: Buffer, scale: Expr) -> None:
        values = []
        for i in range(16):
            word = T.reinterpret("int32", codes[i // 4])
            code = (word << T.int32(24 - i % 4 * 8)) >> T.int32(24)
            values.append(T.bind(T.Cast("float32", code) * scale))
        if self.span == 2:
            values = [pair(low, high, self.held) for low, high in zip(values[::2], values[1::2], strict=True)]
        for i, value in enumerate(values):
            store(tile, value, row, first + i)

    def key(self, tile: Buffer, position: Expr, word: Expr) -> Expr:
        """Word of the unit's elements along the columns of a position."""
        if self.unit.per_word == self.span:
            return tile[position, word]
        bits = T.bind(tile[position, word // 2])
        return half(T.bind(bits >> T.Cast("uint32", word % 2 * 16)), self.held, odd=False)

    def values(self, lane: Expr, tile: Buffer, first: Expr, begin: Expr) -> list[Buffer]:
        """Registers of `span` matrices B of values: [columns, positions].

        Args:
            lane: the thread.
            tile: shared memory.
            first: of the columns, counted in words; column i of matrix s is `column(first, i, s)` of the rows.
            begin: of the positions, counted in rows of the shared memory.
        """
        unit = self.unit
        places = unit.b(lane)
        held = [registers(len(places), dtype=unit.word) for _ in range(self.span)]
        for i, (column, word) in enumerate(places):
            rows = [begin + word * unit.per_word + e for e in range(unit.per_word)]
            words = [T.bind(tile[row, first + column]) for row in rows]
            if self.span == 1:
                store(held[0], words[0], i)
            elif unit.per_word == 1:
                for odd in (False, True):
                    store(held[odd], half(words[0], self.held, odd), i)
            else:
                one, next_one = words
                store(held[0], one & T.uint32(0xFFFF) | next_one << T.uint32(16), i)
                store(held[1], one >> T.uint32(16) | next_one & T.uint32(0xFFFF0000), i)
        return held

    def column(self, first: Expr, i: Expr, s: int) -> Expr:
        """Which column of the cache rows column i of matrix s of `values` is."""
        return (first + i) * self.span + s


def tile_of(gpu: Gpu, cdtype: str, width: int) -> Tile:
    """The tile for a kind of GPUs: the first of these whose shared memory leaves enough for the rest.

    It has 16 positions; or 8, where the unit multiplies no more at once; or 4, where there is a unit for so few.
    """
    name = gpu.unit("bf16" if cdtype == "q8" else cdtype)
    stages = 2 if gpu.asynchronous and cdtype != "q8" else 1
    units = {16: name, 8: name, 4: NARROW.get(name, name)}
    tiles = [Tile(UNITS[unit], cdtype, width, positions, stages) for positions, unit in units.items()]
    able = [tile for tile in tiles if max(tile.step, tile.unit.columns) <= tile.positions]
    fitting = (t for t in able if t.stages * t.positions * t.pitch * 4 <= gpu.shared_bytes * 5 // 6)
    return next(fitting, able[-1])
