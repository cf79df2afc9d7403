"""The rows that a product multiplies: read, normed, and rounded to 8 bits where the weight has integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from deepzig.ir.quantize import GROUP
from deepzig.targets.emit import Buffer, Expr, loop, store, when

from .device import SUBGROUP, Gpu
from .emit import (
    Threads,
    barrier,
    device,
    registers,
    settled,
    shared,
    shuffle_xor,
    subgroup_max,
    subgroup_sum,
    variable,
)
from .layout import groups
from .vector import WORDS, bytes_of, fma, load, split

CAPACITY = 12288
"""Codes of rows that are in shared memory at once, if they take no more than half of it; with their scales, 15 KiB."""

ENCODERS = 8
"""Threads that round a group together."""

EACH = GROUP // ENCODERS
"""Elements that each of them rounds."""


@dataclass(frozen=True)
class Source:
    """Rows of f32.

    Attributes:
        x: the buffer.
        k: elements of a row that are multiplied.
        begin: where they begin in a row of the buffer.
        aligned: whether that, and the pitch of the rows, are multiples of 16 bytes.
        norm: the weight of an RMSNorm; None: there is no norm.
        eps: its epsilon.
    """

    x: Buffer
    k: int
    begin: int | Expr = 0
    aligned: bool = False
    norm: Any = None
    eps: float = 0.0

    def four(self, row: Expr, first: Expr, *, whole: bool) -> list[Expr]:
        """Four elements of a row from `first` on, a multiple of 4: not normed.

        Args:
            row: of the buffer.
            first: index of the first of k elements.
            whole: whether the four are known to be below k; else zeros follow it.
        """
        return self._read(lambda i: (row, self.begin + i), self.x, first, whole)

    def factors(self, first: Expr, *, whole: bool) -> list[Expr]:
        """Four elements of the norm's weight."""
        return self._read(lambda i: (i,), self.norm, first, whole)

    def _read(self, place: Callable[[Expr], tuple[Expr, ...]], x: Buffer, first: Expr, whole: bool) -> list[Expr]:
        if self.aligned and self.k % WORDS == 0:
            if whole:
                return split(load(x, *place(first)))
            # an address that is always good, and a choice after it: no branch
            value = split(load(x, *place(T.min(first, self.k - WORDS))))
            return [T.Select(first < self.k, element, T.float32(0)) for element in value]
        if whole:
            return [T.bind(x[place(first + i)]) for i in range(WORDS)]
        value = [T.bind(x[place(T.min(first + i, self.k - 1))]) for i in range(WORDS)]
        return [T.Select(first + i < self.k, element, T.float32(0)) for i, element in enumerate(value)]


class Norms:
    """Shared memory for the scales of an RMSNorm of a few rows."""

    def __init__(self, tile: int, threads: int) -> None:
        self._tile = tile
        self._parts = shared(tile * (threads // SUBGROUP))
        self.scales = shared(tile)

    def measure(self, t: Threads, source: Source, rows: list[Expr]) -> None:
        """Emit the scales of rows, 1 / sqrt(mean of squares + eps); all threads have to come here.

        Sums have one order, whatever the number of rows.
        """
        sums = registers(len(rows))
        for r in range(len(rows)):
            store(sums, T.float32(0), r)

        def add(first: Expr, whole: bool) -> None:
            for r, row in enumerate(rows):
                for element in source.four(row, first, whole=whole):
                    store(sums, fma(element, element, sums[r]), r)

        step = t.count * WORDS
        with loop(source.k // step) as turn:
            add(settled(turn * step + t.thread * WORDS), True)
        if source.k % step:
            first = settled(source.k // step * step + t.thread * WORDS)
            with when(first < source.k):
                add(first, source.k % WORDS == 0)
        parts = t.count // SUBGROUP
        totals = [subgroup_sum(sums[r]) for r in range(len(rows))]
        barrier()  # the scales of other rows have been read
        with when(t.lane == 0):
            for r, total in enumerate(totals):
                store(self._parts, total, r * parts + t.subgroup)
        barrier()
        with when(t.thread < len(rows)):
            total = self._parts[t.thread * parts]
            for i in range(1, parts):
                total = total + self._parts[t.thread * parts + i]
            mean = total / T.float32(source.k)
            store(self.scales, T.float32(1) / T.sqrt(mean + T.float32(source.eps)), t.thread)
        barrier()


class Codes:
    """Shared memory for a few rows rounded to integers (`deepzig.ir.quantize`), as much of each as there is room for.

    Of q8, words of four codes in order. Of q4, the first and the second 32 codes of all groups lie apart, so that
    threads whose vectors of the weight are neighbours read neighbours here as well.

    Attributes:
        capacity: of how many elements.
    """

    def __init__(self, gpu: Gpu, wdtype: str, tile: int, k: int) -> None:
        self._nibbles = wdtype == "q4"
        self.capacity = min(CAPACITY, gpu.shared_bytes // 2, tile * groups(k, wdtype) * GROUP)
        self._words = shared(self.capacity // WORDS, dtype="uint32")  # TVM narrows vectors of int32 to one element
        self._scales = shared(self.capacity // GROUP)
        self._offsets = shared(self.capacity // GROUP * 2, dtype="int32") if self._nibbles else None

    def words(self, r: int, size: int, vector: Expr, part: int) -> list[Expr]:
        """The words of row r's codes that a part of a vector of the weight is multiplied by; see `vector.codes`.

        Args:
            r: number of the row.
            size: elements of a row that are here.
            vector: number of the vector of the weight, counted from the first element that is here.
            part: which part.
        """
        parts = 2 if self._nibbles else 1
        return bytes_of(split(load(self._words, (r * parts + part) * (size // WORDS // parts) + vector * WORDS)))

    def scale(self, r: int, size: int, g: Expr) -> Expr:
        """The scale of a group."""
        return self._scales[r * (size // GROUP) + g]

    def offset(self, r: int, size: int, vector: Expr) -> Expr:
        """What the sum of products of a vector begins with: what makes up for the 8 that is added to q4."""
        return T.int32(0) if self._offsets is None else self._offsets[r * (size // GROUP * 2) + vector]

    def encode(
        self, t: Threads, source: Source, row_of: Callable[[Expr], Expr], tile: int, norms: Any, begin: Expr, size: int,
        *, whole: bool,
    ) -> None:  # fmt: skip
        """Emit the rounding of a part of rows; all threads have to come here.

        Args:
            t: the threads.
            source: the rows.
            row_of: number of a row -> its index in the source.
            tile: how many rows.
            norms: their scales, if they are normed.
            begin: first element of the part.
            size: elements of the part, whole groups.
            whole: whether all of them are below k.
        """
        count, groups_at_once = size // GROUP, t.count // ENCODERS
        total = tile * count
        place = settled(t.thread % ENCODERS)
        with loop(-(-total // groups_at_once)) as turn:
            item = settled(turn * groups_at_once + t.thread // ENCODERS)
            valid = item < total
            # threads without a group repeat the last one: all come to the exchanges
            clamped = settled(T.min(item, total - 1)) if total % groups_at_once else item
            r, g = settled(clamped // count), settled(clamped % count)
            row = settled(row_of(r)) if tile > 1 else row_of(T.int64(0))
            first = settled(begin + g * GROUP + place * EACH)
            values = [x for i in range(0, EACH, WORDS) for x in source.four(row, first + i, whole=whole)]
            if source.norm is not None:
                factors = [x for i in range(0, EACH, WORDS) for x in source.factors(first + i, whole=whole)]
                scale = T.bind(norms.scales[r])
                values = [x * scale * factor for x, factor in zip(values, factors, strict=True)]
            # in arrays, since TVM puts what is bound where it is used, over and over
            held, most, inverse = registers(EACH), variable(T.float32(0)), variable(T.float32(0))
            for i, x in enumerate(values):
                store(held, x, i)
                store(most, T.max(most[0], T.max(held[i], -held[i])), 0)
            store(most, subgroup_max(most[0], ENCODERS), 0)
            with when(most[0] > T.float32(0)):
                store(inverse, T.float32(127) / most[0], 0)
            integers = [device("round", held[i] * inverse[0], returns="int32") for i in range(EACH)]
            offset = self._half_offset(integers) if self._nibbles else None
            with when(valid):
                for i in range(0, EACH, WORDS):
                    word = self._word(r, g, place, i // WORDS, size)
                    store(self._words, T.reinterpret("uint32", packed(integers[i : i + WORDS])), word)
                with when(place == 0):
                    store(self._scales, most[0] / T.float32(127), r * count + g)
                if self._offsets is not None:
                    # of threads 0, 1, 4, 5 the first half's elements, 0 to 15 and 32 to 47
                    with when(T.bitwise_and(place, T.int64(5)) == 0):
                        store(self._offsets, offset, (r * count + g) * 2 + place // 2)

    def _word(self, r: Expr, g: Expr, place: Expr, i: int, size: int) -> Expr:
        if not self._nibbles:
            return r * (size // WORDS) + g * (GROUP // WORDS) + place * (EACH // WORDS) + i
        half = size // WORDS // 2
        per_half = GROUP // WORDS // 2
        return (r * 2 + place // 4) * half + g * per_half + place % 4 * (EACH // WORDS) + i

    def _half_offset(self, integers: list[Expr]) -> Expr:
        total = integers[0]
        for x in integers[1:]:
            total = total + x
        total = settled(total)
        for mask in (1, 4):
            total = settled(total + shuffle_xor(total, mask))
        return total * -8


def packed(integers: list[Expr]) -> Expr:
    """A word of four signed bytes."""
    word = T.bitwise_and(integers[0], T.int32(255))
    for i, x in enumerate(integers[1:], 1):
        word = T.bitwise_or(word, T.shift_left(T.bitwise_and(x, T.int32(255)), T.int32(8 * i)))
    return word
