"""Tiles of cache rows in shared memory, read by a matrix unit as keys and as values.

A tile is a number of positions of one sequence, brought from global memory once. Two-byte elements lie in it as they
are stored, those of q8 are widened to the elements of the unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from deepzig.ir.quantize import GROUP
from deepzig.targets.emit import Buffer, Expr, store, when

from .cache import PER_WORD, half, pair, row_columns, row_words, scale_word, word_type
from .device import Gpu
from .emit import Threads, barrier, registers, shared
from .units import UNITS, Unit

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
    """

    unit: Unit
    cdtype: str
    width: int
    positions: int

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
        """Shared memory for the tile."""
        return shared(self.positions, self.pitch, dtype=word_type(self.held))

    def stage(
        self, t: Threads, tile: Buffer, cache: Buffer, table: Buffer, seq: Expr, begin: Expr, end: Expr, page: int
    ) -> None:
        """Emit the bringing of the rows from position `begin` on; rows from `end` on become zero.

        All threads wait: before they overwrite the tile, and until it is there.
        """
        vectors = row_words(self.cdtype, self.width) // VECTOR if self.cdtype != "q8" else scale_word(self.width) // VECTOR
        turns = -(-self.positions * vectors // t.count)
        held = [registers(VECTOR, dtype=word_type(self.cdtype)) for _ in range(turns)]
        scales = [registers(1) for _ in range(turns)] if self.cdtype == "q8" else []
        at = T.ramp(T.int64(0), 1, VECTOR)
        places = [(i // vectors, i % vectors) for i in (turn * t.count + t.thread for turn in range(turns))]
        zero = T.broadcast(T.float32(0) if self.cdtype == "f32" else T.uint32(0), VECTOR)
        for turn, (row, vector) in enumerate(places):
            store(held[turn], zero, at)
            if self.cdtype == "q8":
                store(scales[turn], T.float32(0), 0)
            with when((row < self.positions) & (begin + row < end)):
                position = T.bind(begin + row)
                place = T.bind(table[seq, position // page]), T.bind(position % page)
                store(held[turn], cache[(*place, T.ramp(vector * VECTOR, 1, VECTOR))], at)
                if self.cdtype == "q8":
                    word = cache[(*place, scale_word(self.width) + vector // (GROUP // 16))]
                    store(scales[turn], T.reinterpret("float32", word), 0)
        barrier()
        for turn, (row, vector) in enumerate(places):
            with when(row < self.positions):
                if self.cdtype == "q8":
                    self._widen(tile, row, vector, held[turn], scales[turn][0])
                else:
                    store(tile, held[turn][at], row, T.ramp(vector * VECTOR, 1, VECTOR))
        barrier()

    def _widen(self, tile: Buffer, row: Expr, vector: Expr, codes: Buffer, scale: Expr) -> None:
        values = []
        for i in range(16):
            word = T.reinterpret("int32", codes[i // 4])
            code = (word << T.int32(24 - i % 4 * 8)) >> T.int32(24)
            values.append(T.bind(T.Cast("float32", code) * scale))
        if self.span == 2:
            values = [pair(low, high, self.held) for low, high in zip(values[::2], values[1::2], strict=True)]
        for i, value in enumerate(values):
            store(tile, value, row, vector * len(values) + i)

    def key(self, tile: Buffer, position: Expr, word: Expr) -> Expr:
        """Word of the unit's elements along the columns of a position."""
        if self.unit.per_word == self.span:
            return tile[position, word]
        bits = T.bind(tile[position, word // 2])
        return half(T.bind(bits >> T.Cast("uint32", word % 2 * 16)), self.held, odd=False)

    def values(self, lane: Expr, tile: Buffer, first: Expr, begin: int) -> list[Buffer]:
        """Registers of `span` matrices B of values: [columns, positions from `begin` on].

        Column i of matrix s is `column(first, i, s)` of the rows.
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
                even, odd_ = words
                store(held[0], (even & T.uint32(0xFFFF)) | (odd_ << T.uint32(16)), i)
                store(held[1], (even >> T.uint32(16)) | (odd_ & T.uint32(0xFFFF0000)), i)
        return held

    def column(self, first: Expr, i: Expr, s: int) -> Expr:
        """Which column of the cache rows column i of matrix s of `values` is."""
        return (first + i) * self.span + s


def tile_of(gpu: Gpu, cdtype: str, width: int) -> Tile:
    """The tile for a kind of GPUs."""
    unit = UNITS[gpu.unit("bf16" if cdtype == "q8" else cdtype)]
    wide = Tile(unit, cdtype, width, 16)
    # keys are a unit's columns, values its inner dimension: 8 at least
    small = unit.words * unit.per_word <= 8 and wide.positions * wide.pitch * 4 > gpu.shared_bytes * 3 // 4
    return Tile(unit, cdtype, width, 8) if small else wide


