"""The product of many rows with a weight: tiles of both in shared memory, multiplied by matrix units.

A block computes a tile of rows times a tile of columns. It walks the inner dimension chunk by chunk: while its
subgroups multiply one, the next ones are on their way. Words lie in shared memory four together, as in global memory,
and the fours of a row are turned against those of other rows, so that what the threads of a subgroup read for a unit
lies in all banks.

Where a weight has scales, the sums of a group are scaled and added to totals, in the order of groups. No result depends
on what other rows its tile has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from deepzig.ir.quantize import GROUP
from deepzig.targets.emit import STORAGE, Buffer, Expr, loop, store, when

from .device import SUBGROUP, Gpu
from .emit import Threads, barrier, device, registers, settled, shared, turns
from .fragments import factor, fragment
from .layout import BITS, group, has_scales, row_words, stored
from .operands import Encoding
from .units import Unit

FOUR = 4
"""Words that are copied together: 16 bytes."""
BANKS = 32
"""Of shared memory, each a word wide."""
STAGES = 3
"""Chunks in shared memory, where there is room for so many."""

ROUND, ROUND_BITS = 1.5 * 2.0**23, 0x4B400000
"""An f32 number, and its bits: an integer of up to 22 bits added to these is that integer added to the number."""

Place = Callable[[Expr], tuple[Expr, ...]]
"""Number of a row -> its leading indices in a buffer."""


@dataclass(frozen=True)
class Tile:
    """What a block computes.

    Attributes:
        rows: of the left matrix.
        columns: of the result, which are rows of the weight.
        across: among how many subgroups the rows, and the columns, are divided.
        chunk: elements of the inner dimension that lie in shared memory together.
    """

    rows: int
    columns: int
    across: tuple[int, int]
    chunk: int

    @property
    def threads(self) -> int:
        """Of the block."""
        return self.across[0] * self.across[1] * SUBGROUP


TILES = {
    ("mma_bf16", False): Tile(128, 128, (2, 2), 32),
    ("mma_f16", False): Tile(128, 128, (2, 2), 32),
    ("mma_bf16", True): Tile(128, 128, (2, 4), 32),
    ("mma_s8", True): Tile(128, 128, (2, 4), 64),
    ("simd_f32", False): Tile(64, 64, (2, 2), 32),
    ("simd_f32", True): Tile(64, 64, (2, 2), 32),
    ("fma", False): Tile(64, 64, (2, 2), 16),
    ("fma", True): Tile(64, 64, (2, 2), 16),
}
"""Unit, and whether the weight has scales, so that a thread has totals beside its sums -> tile for many rows."""

SMALL_TILES = {
    ("mma_bf16", False): Tile(64, 128, (2, 2), 32),
    ("mma_f16", False): Tile(64, 128, (2, 2), 32),
    ("mma_bf16", True): Tile(64, 128, (2, 4), 32),
    ("mma_s8", True): Tile(64, 128, (2, 4), 64),
    ("simd_f32", False): Tile(32, 64, (2, 2), 32),
    ("simd_f32", True): Tile(32, 64, (2, 2), 32),
    ("fma", False): Tile(32, 64, (1, 4), 16),
    ("fma", True): Tile(32, 64, (1, 4), 16),
}
"""The same for fewer rows, such as those of an expert, or fewer columns."""

NARROW = 1024
"""Columns that are few."""


@dataclass(frozen=True)
class Source:
    """A matrix that tiles are cut out of.

    Attributes:
        buffer: its words.
        row: number in the tile -> number of the row, which there must be even for those beyond the last one.
        place: number of a row -> its leading indices in the buffer.
    """

    buffer: Buffer
    row: Callable[[Expr], Expr]
    place: Place = lambda row: (row,)


Output = Callable[..., None]
"""(row in the tile, column in the tile, sums) -> emits their stores."""


@dataclass(frozen=True)
class Multiplier:
    """Multiplies tiles.

    Attributes:
        gpu: the device.
        encoding: of the left matrix.
        tile: what a block computes.
    """

    gpu: Gpu
    encoding: Encoding
    tile: Tile

    @classmethod
    def of(cls, gpu: Gpu, k: int, columns: int, wdtype: str, *, small: bool = False) -> Multiplier:
        """For rows of k elements, and a weight of so many rows.

        Tiles are small for few rows, or few columns: else there were too few tiles for all of the device. They are
        small as well where its shared memory can't have two large ones.
        """
        key, encoding = (gpu.unit(wdtype), has_scales(wdtype)), Encoding.of(gpu, k, wdtype)
        large = cls(gpu, encoding, TILES[key])
        if small or columns <= NARROW or 2 * large.stage_bytes > gpu.shared_bytes:
            return cls(gpu, encoding, SMALL_TILES[key])
        return large

    @property
    def unit(self) -> Unit:
        """What multiplies."""
        return self.encoding.unit

    @property
    def units(self) -> tuple[int, int]:
        """Units along the rows, and the columns, of a subgroup."""
        rows, columns = (size // n for size, n in zip(self._size, self.tile.across, strict=True))
        return rows // self.unit.rows, columns // self.unit.columns

    @property
    def _size(self) -> tuple[int, int]:
        return self.tile.rows, self.tile.columns

    @property
    def scaled(self) -> bool:
        """Whether the weight has scales."""
        return has_scales(self.encoding.wdtype)

    @property
    def chunk_words(self) -> tuple[int, int]:
        """Words of a chunk of a row of the left matrix, and of one of the weight."""
        # of a half of a group of q4 only one half of the bits is read
        bits = 2 * BITS["q4"] if self._halved else BITS[self.encoding.wdtype]
        return self.tile.chunk // self.unit.per_word, self.tile.chunk * bits // 32

    def weight_word(self, chunk: Expr) -> Expr:
        """The first word of a chunk in a row of the weight."""
        _, words = self.chunk_words
        if not self._halved:
            return chunk * words
        per_half = GROUP // 2 // self.tile.chunk
        return (chunk // (2 * per_half) * per_half + chunk % per_half) * words

    @property
    def _halved(self) -> bool:
        return self.encoding.wdtype == "q4" and self.tile.chunk < GROUP

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a chunk."""
        words = sum(size * count for size, count in zip(self._size, self.chunk_words, strict=True))
        return 4 * (words + (sum(self._size) if self.scaled else 0))

    @property
    def stages(self) -> int:
        """Chunks in shared memory."""
        stages = min(STAGES, self.gpu.shared_bytes // self.stage_bytes)
        assert stages > 1
        return stages

    def multiply(self, t: Threads, count: Expr, left: Source, right: Source, output: Output, halves: int = 1) -> None:
        """Emit the product of a tile; all threads of the block have to come here.

        Args:
            t: the block, of `tile.threads` threads.
            count: rows of the tile that are wanted; others may not be multiplied.
            left: rows, from `operands.prepare`.
            right: the weight, packed by `layout.pack_rows`.
            output: (row, column // halves, sums of `halves` columns) -> emits the stores; there are some beyond the
                matrix.
            halves: how many columns, side by side, are handed over together.
        """
        _Block(self, t, left, right).multiply(count, output, halves)


class _Block:
    """A block at work, with its arrays."""

    def __init__(self, form: Multiplier, t: Threads, left: Source, right: Source) -> None:
        self.form, self.t = form, t
        self.unit, self.tile = form.unit, form.tile
        self.m, self.n = form.units
        self.first_row = t.subgroup // self.tile.across[1] * (self.m * self.unit.rows)
        self.first_column = t.subgroup % self.tile.across[1] * (self.n * self.unit.columns)
        wdtype, stages, encoding = form.encoding.wdtype, form.stages, form.encoding
        self.chunks = encoding.size // self.tile.chunk
        self.per_group = group(wdtype) // self.tile.chunk if form.scaled else 1
        a_words, b_words = form.chunk_words
        a_scales = encoding.words if encoding.coded else None
        b_scales = row_words(encoding.k, wdtype) if form.scaled else None
        self.a = _Staged(form.gpu, t, left, self.tile.rows, a_words, encoding.dtype, stages, a_scales)
        self.b = _Staged(form.gpu, t, right, self.tile.columns, b_words, stored(wdtype), stages, b_scales)
        self.sums = self.unit.zero(self.m * self.n)
        self.totals: Any = registers(int(self.sums.shape[0])) if form.scaled else None

    def multiply(self, count: Expr, output: Output, halves: int) -> None:
        stages, needed = self.form.stages, self.first_row < count
        self._clear()
        for i in range(int(self.totals.shape[0]) if self.form.scaled else 0):
            store(self.totals, T.float32(0), i)
        for ahead in range(stages - 1):
            if ahead < self.chunks:
                self._bring(T.int64(ahead), T.int64(ahead))
            self._asynchronous("cp_async_commit")
        with loop(self.chunks) as chunk:
            self._asynchronous("cp_async_wait", T.int32(stages - 2))
            barrier()  # this chunk is here, and nobody reads the one before it any more
            following = chunk + (stages - 1)
            with when(following < self.chunks):
                self._bring(following, following % stages)
            self._asynchronous("cp_async_commit")
            with when(needed):
                self._step(chunk, chunk % stages)
        with when(needed):
            self._end(output, halves)

    def _asynchronous(self, name: str, *args: Expr) -> None:
        if self.form.gpu.asynchronous:
            device(name, *args)

    def _bring(self, chunk: Expr, stage: Expr) -> None:
        """Start the copies of a chunk, and behind the last one of a group those of its scales."""
        self.a.bring(stage, chunk * self.form.chunk_words[0])
        self.b.bring(stage, self.form.weight_word(chunk))
        if not self.form.scaled:
            return
        with when(chunk % self.per_group == self.per_group - 1):
            for staged in (self.a, self.b):
                staged.bring_scales(stage, chunk // self.per_group)

    def _step(self, chunk: Expr, stage: Expr) -> None:
        """Multiply a chunk, and scale the sums of a group that ends with it."""
        for step in turns(self.form.chunk_words[0] // self.unit.words, compact=self.form.gpu.compact):
            first = step * self.unit.words
            left = [
                self.unit.load_a(self.t.lane, self.a.reader(stage, self.first_row + m * self.unit.rows, first))
                for m in range(self.m)
            ]
            for n in range(self.n):
                raw = self.b.reader(stage, self.first_column + n * self.unit.columns, 0)
                words = fragment(self.form.encoding.wdtype, self.unit, step, self.tile.chunk, chunk, raw)
                right = self.unit.load_b(self.t.lane, words)
                for m in range(self.m):
                    self.unit.multiply(self.sums, left[m], right, m * self.n + n)
        if self.form.scaled:
            with when(chunk % self.per_group == self.per_group - 1):
                self._scale(stage)
                self._clear()

    def _clear(self) -> None:
        """Sums of integers begin with ROUND's bits, so that they need no conversion, which is slow."""
        if self.unit.sum != "int32":
            self.unit.clear(self.sums)
            return
        for i in range(int(self.sums.shape[0])):
            store(self.sums, T.int32(ROUND_BITS), i)

    def _scale(self, stage: Expr) -> None:
        places = self.unit.sums(self.t.lane)
        factor_ = factor(self.form.encoding.wdtype, self.unit)
        columns = [[self._column_scale(stage, n, column, factor_) for _, column in places] for n in range(self.n)]
        for m in range(self.m):
            rows = [self.a.scale(stage, self.first_row + m * self.unit.rows + row) for row, _ in places]
            for n in range(self.n):
                for i in range(len(places)):
                    index = (m * self.n + n) * len(places) + i
                    scale = columns[n][i] if rows[i] is None else columns[n][i] * rows[i]
                    store(self.totals, self.totals[index] + self._value(index) * scale, index)

    def _column_scale(self, stage: Expr, n: int, column: Expr, factor_: float) -> Expr:
        scale = self.b.scale(stage, self.first_column + n * self.unit.columns + column)
        return scale if factor_ == 1 else T.bind(scale * T.float32(factor_))

    def _value(self, index: int) -> Expr:
        if self.unit.sum != "int32":
            return self.sums[index]
        return T.reinterpret("float32", self.sums[index]) - T.float32(ROUND)

    def _end(self, output: Output, halves: int) -> None:
        results = self.totals if self.form.scaled else self.sums
        places = self.unit.sums(self.t.lane)
        for m in range(self.m):
            for n in range(self.n):
                first = (m * self.n + n) * len(places)
                for i in range(0, len(places), halves):
                    row, column = places[i]
                    row = self.first_row + m * self.unit.rows + row
                    column = self.first_column + n * self.unit.columns + column
                    output(row, column // halves, *(results[first + i + half] for half in range(halves)))


class _Staged:
    """Chunks of a tile of a matrix in shared memory.

    Row by row; four words of a row are together, and where they are in it depends on the row.
    """

    def __init__(
        self, gpu: Gpu, t: Threads, source: Source, rows: int, words: int, dtype: str, stages: int, scales: int | None
    ) -> None:  # fmt: skip
        self.gpu, self.t, self.source, self.rows, self.words, self.scales = gpu, t, source, rows, words, scales
        self.array = shared(stages, rows, words, dtype=STORAGE[dtype])
        self.fours = [self._held(i // (words // FOUR)) for i in self._shares(rows * words // FOUR)]
        if scales is not None:
            self.scale_array = shared(stages, rows, dtype=STORAGE[dtype])
            self.singles = [self._held(i) for i in self._shares(rows)]

    def _shares(self, size: int) -> list[Expr]:
        """What a thread has to do of `size` things."""
        assert size % self.t.count == 0 or size < self.t.count
        return [i * self.t.count + self.t.thread for i in range(-(-size // self.t.count))]

    def _held(self, row: Expr) -> Buffer:
        """The number of a row in the matrix, in a register."""
        held = registers(1, dtype="int32")
        store(held, T.Cast("int32", self.source.row(T.min(row, self.rows - 1))), 0)
        return held

    def bring(self, stage: Expr, word: Expr) -> None:
        """Start the copy of a chunk that begins with a word of the rows."""
        fours = self.words // FOUR
        size = self.rows * fours
        for share, held in zip(self._shares(size), self.fours, strict=True):
            row, four = share // fours, share % fours
            if size < self.t.count:
                with when(share < size):
                    self._copy(stage, row, four, held, word)
            else:
                self._copy(stage, row, four, held, word)

    def _copy(self, stage: Expr, row: Expr, four: Expr, held: Buffer, word: Expr) -> None:
        source = self.source.place(T.Cast("int64", held[0]))
        first, begin = turned(row, four, self.words), word + four * FOUR
        if self.gpu.asynchronous:
            here, there = self.array[stage, row, first], self.source.buffer[(*source, begin)]
            device("cp_async_16", T.address_of(here), T.address_of(there))
            return
        value = self.source.buffer[(*source, T.ramp(begin, 1, FOUR))]
        store(self.array, value, stage, row, T.ramp(first, 1, FOUR))

    def bring_scales(self, stage: Expr, number: Expr) -> None:
        """Start the copy of a scale of each row."""
        if self.scales is None:
            return
        for share, held in zip(self._shares(self.rows), self.singles, strict=True):
            with when(share < self.rows):
                there = self.source.buffer[(*self.source.place(T.Cast("int64", held[0])), self.scales + number)]
                if self.gpu.asynchronous:
                    device("cp_async_4", T.address_of(self.scale_array[stage, share]), T.address_of(there))
                else:
                    store(self.scale_array, there, stage, share)

    def reader(self, stage: Expr, first_row: Expr, first_word: int) -> Callable[[Expr, Expr], Expr]:
        """(row, word) -> a word, counted from first ones on."""

        def read(row: Expr, word: Expr) -> Expr:
            row, word = first_row + row, first_word + word
            if self.words == FOUR:
                row = settled(row)  # TVM (0.27) errs for WebGPU where it knows multiples of more than the four words
            return T.bind(self.array[stage, row, turned(row, word // FOUR, self.words) + word % FOUR])

        return read

    def scale(self, stage: Expr, row: Expr) -> Any:
        """The scale of a row as f32; None if the matrix has none."""
        if self.scales is None:
            return None
        value = self.scale_array[stage, row]
        return T.bind(value if self.scale_array.dtype == "float32" else T.reinterpret("float32", value))


def turned(row: Expr, four: Expr, words: int) -> Expr:
    """The first of the words in which four words of a row lie, in an array of rows of so many words."""
    per_bank_row = max(1, BANKS // words)
    places = min(words, BANKS) // FOUR
    return T.bitwise_xor(four, row // per_bank_row % places) * FOUR
