"""Products with quantised weights: exact sums of integers in groups, each scaled and added in f32.

Rows are rounded to 8 bits first (`deepzig.ir.quantize`). A sum of integers has one value however it is computed, and
the groups are added in order, so the bits of a result depend neither on the instructions nor on the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tvm.script import tirx as T

from deepzig.ir.quantize import GROUP

from .emit import Buffer, each_row, local, loop, store, vector_sum, workspace
from .layout import LANES
from .vector import Expr, at, dtype, fma, prefetch, splat, tree_max

STEP = 4
"""Codes in a word of 32 bits."""
HALF = 8
"""Words in a register of 256 bits."""
OFFSET = 8
"""What is added to codes of 4 bits."""
FLUSH = 4
"""Words of 4-bit codes after which sums of 16 bits could overflow: each adds at most 4 * 15 * 127."""


@dataclass(frozen=True)
class Codes:
    """A row of the left matrix, rounded to 8 bits.

    Attributes:
        word: (group, number of a word in it) -> four codes.
        scale: group -> its scale.
        total: group -> the sum of its codes.
    """

    word: Callable[[Expr, Expr], Expr]
    scale: Callable[[Expr], Expr]
    total: Callable[[Expr], Expr]


def coded(x: Callable[[Expr], Callable[[Expr], Expr]], rows: Expr, size: int) -> Callable[[Expr], Codes]:
    """Emit the rounding of all rows into workspaces, and read from there.

    Args:
        x: row -> index -> element, or index vector -> elements.
        rows: how many rows.
        size: elements of a row.
    """
    groups = -(-size // GROUP)
    codes = workspace(rows, groups * GROUP, dtype="int8")
    scales, totals = workspace(rows, groups), workspace(rows, groups, dtype="int32")

    def one(row: Expr) -> None:
        elements = x(row)

        def group(g: Expr, count: int) -> None:
            values = [vector_sum() for _ in range(GROUP // LANES)]
            for i, vector in enumerate(values):
                first = g * GROUP + i * LANES
                if (i + 1) * LANES <= count:
                    store(vector, elements(at(first)), at(0))
                else:
                    with loop(max(count - i * LANES, 0)) as lane:
                        store(vector, elements(first + lane), lane)
            sizes = [T.max(v[at(0)], -v[at(0)]) for v in values]
            largest = T.bind(tree_max(T.bind(T.max(T.max(sizes[0], sizes[1]), T.max(sizes[2], sizes[3])))))
            inverse = T.bind(T.Select(largest > T.float32(0), T.float32(127) / largest, T.float32(0)))
            integers = []
            for i, vector in enumerate(values):
                near = T.call_llvm_pure_intrin(dtype("float32"), "llvm.rint", vector[at(0)] * splat(inverse))
                integers.append(T.bind(T.Cast(dtype("int32"), near)))
                store(codes, T.Cast(dtype("int8"), integers[-1]), row, at(g * GROUP + i * LANES))
            both = (integers[0] + integers[1]) + (integers[2] + integers[3])
            store(totals, T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", both), row, g)
            store(scales, largest / T.float32(127), row, g)

        with loop(size // GROUP) as g:
            group(g, GROUP)
        if size % GROUP:
            group(T.int64(size // GROUP), size % GROUP)

    each_row(rows, one)

    def row_codes(row: Expr) -> Codes:
        return Codes(
            lambda g, word: T.reinterpret("int32", codes[row, T.ramp(g * GROUP + word * STEP, 1, STEP)]),
            lambda g: scales[row, g],
            lambda g: totals[row, g],
        )

    return row_codes


def coded_tile(
    weight: Buffer, blocks: Sequence[tuple[Expr, ...]], size: int, wdtype: str, rows: Sequence[Codes], integers: str,
    ahead: int,
) -> list[list[Buffer]]:  # fmt: skip
    """Sums over k of x(row)(k) * weight[k] for each row and block.

    Args:
        weight: packed by `pack_quantized`.
        blocks: for each block, the leading indices of its vectors.
        size: elements along the inner dimension.
        wdtype: `q8` or `q4`.
        rows: the rows of the tile.
        integers: the instructions to use; see `Vectors`.
        ahead: groups to prefetch ahead; 0 for none.

    Returns:
        Of each row, for each block, a local vector of f32.
    """
    groups = -(-size // GROUP)
    words = GROUP // STEP if wdtype == "q8" else GROUP // STEP // 2
    sums = [[vector_sum() for _ in blocks] for _ in rows]
    parts = [[local(LANES, "int32") for _ in blocks] for _ in rows]
    dots = _Avx2(rows, blocks, parts) if integers == "avx2" else _Portable(rows, blocks, parts)
    with loop(groups) as g:
        for line in parts:
            for part in line:
                store(part, T.broadcast(T.int32(0), LANES), at(0))
        with loop(words // FLUSH) as outer:
            dots.begin()
            for step in range(FLUSH):
                word = T.bind(outer * FLUSH + step)
                for column, block in enumerate(blocks):
                    if ahead:
                        prefetch(weight[(*block, g + ahead, word, 0)])
                    add = dots.add_q8 if wdtype == "q8" else dots.add_q4
                    add(column, partial(_lanes, weight, (*block, g, word)), g, word)
            dots.end(wdtype)
        for column, block in enumerate(blocks):
            scale = T.bind(T.reinterpret(dtype("float32"), weight[(*block, g, T.int64(words), at(0))]))
            for codes, line, part in zip(rows, sums, parts, strict=True):
                exact = part[column][at(0)]
                if wdtype == "q4":
                    exact = exact - T.broadcast(codes.total(g) * OFFSET, LANES)
                value = T.Cast(dtype("float32"), exact)
                total = line[column]
                store(total, fma(value, scale * splat(codes.scale(g)), total[at(0)]), at(0))
    return sums


def _lanes(weight: Buffer, index: tuple[Expr, ...], lanes: Expr) -> Expr:
    return weight[(*index, lanes)]


@dataclass
class _Portable:
    """Byte by byte in 32 bits, in whatever instructions the CPU has."""

    rows: Sequence[Codes]
    blocks: Sequence[tuple[Expr, ...]]
    parts: Sequence[Sequence[Buffer]]

    def begin(self) -> None:
        pass

    def end(self, wdtype: str) -> None:
        pass

    def add_q8(self, column: int, load: Callable[[Expr], Expr], g: Expr, word: Expr) -> None:
        packed = T.bind(T.reinterpret(dtype("int32"), load(at(0))))
        self._add(column, [_byte(packed, i, LANES) for i in range(STEP)], g, word)

    def add_q4(self, column: int, load: Callable[[Expr], Expr], g: Expr, word: Expr) -> None:
        packed = T.bind(load(at(0)))
        for shift, first in ((0, 0), (4, GROUP // STEP // 2)):
            nibbles = [
                T.reinterpret(
                    dtype("int32"),
                    T.bitwise_and(
                        T.shift_right(packed, T.broadcast(T.uint32(8 * i + shift), LANES)),
                        T.broadcast(T.uint32(15), LANES),
                    ),
                )
                for i in range(STEP)
            ]
            self._add(column, nibbles, g, word + first)

    def _add(self, column: int, bytes_: Sequence[Expr], g: Expr, word: Expr) -> None:
        values = [T.bind(b) for b in bytes_]
        for codes, line in zip(self.rows, self.parts, strict=True):
            x = T.bind(codes.word(g, word))
            total = line[column][at(0)]
            for i, value in enumerate(values):
                total = total + value * T.broadcast(_byte(x, i, 1), LANES)
            store(line[column], total, at(0))


def _byte(word: Expr, number: int, lanes: int) -> Expr:
    """A signed byte of words, as 32 bits."""
    left, right = T.int32(24 - 8 * number), T.int32(24)
    if lanes > 1:
        left, right = T.broadcast(left, lanes), T.broadcast(right, lanes)
    return T.shift_right(T.shift_left(word, left), right)


@dataclass
class _Avx2:
    """32 products at once. vpmaddubsw takes unsigned by signed bytes: the sign of a weight goes to the other factor."""

    rows: Sequence[Codes]
    blocks: Sequence[tuple[Expr, ...]]
    parts: Sequence[Sequence[Buffer]]

    def begin(self) -> None:
        """Sums of 16 bits, for 4-bit codes."""
        zero = T.broadcast(T.int16(0), 2 * HALF)
        self._short = [[[local(2 * HALF, "int16") for _ in range(2)] for _ in self.blocks] for _ in self.rows]
        for buffer in (b for line in self._short for column in line for b in column):
            store(buffer, zero, at(0, 2 * HALF))

    def end(self, wdtype: str) -> None:
        if wdtype == "q4":
            for line, short in zip(self.parts, self._short, strict=True):
                for part, halves in zip(line, short, strict=True):
                    for half, buffer in enumerate(halves):
                        _add_pairs(part, half, buffer[at(0, 2 * HALF)])

    def add_q8(self, column: int, load: Callable[[Expr], Expr], g: Expr, word: Expr) -> None:
        weights = [T.bind(T.reinterpret("int8x32", load(at(half * HALF, HALF)))) for half in range(2)]
        sizes = [T.bind(T.max(w, T.broadcast(T.int8(0), 32) - w)) for w in weights]
        for codes, line in zip(self.rows, self.parts, strict=True):
            x = T.bind(T.reinterpret("int8x32", T.broadcast(codes.word(g, word), HALF)))
            for half in range(2):
                signed = T.call_llvm_pure_intrin("int8x32", "llvm.x86.avx2.psign.b", x, weights[half])
                _add_pairs(line[column], half, _pairs(sizes[half], signed))

    def add_q4(self, column: int, load: Callable[[Expr], Expr], g: Expr, word: Expr) -> None:
        mask = T.broadcast(T.uint32(0x0F0F0F0F), HALF)
        for half in range(2):
            packed = T.bind(load(at(half * HALF, HALF)))
            high = T.shift_right(packed, T.broadcast(T.uint32(4), HALF))
            for nibbles, first in ((packed, 0), (high, GROUP // STEP // 2)):
                values = T.bind(T.reinterpret("int8x32", T.bitwise_and(nibbles, mask)))
                for codes, short in zip(self.rows, self._short, strict=True):
                    x = T.reinterpret("int8x32", T.broadcast(codes.word(g, word + first), HALF))
                    buffer = short[column][half]
                    store(buffer, buffer[at(0, 2 * HALF)] + _pairs(values, x), at(0, 2 * HALF))


def _pairs(unsigned: Expr, signed: Expr) -> Expr:
    return T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", unsigned, signed)


def _add_pairs(part: Buffer, half: int, short: Expr) -> None:
    """Add sums of pairs of 16-bit numbers."""
    ones = T.broadcast(T.int16(1), 2 * HALF)
    lanes = at(T.int64(half * HALF), HALF)
    store(part, part[lanes] + T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", short, ones), lanes)
