"""Matrix units: what multiplies small matrices with the threads of one subgroup, each of which holds a part of them.

A unit multiplies A [rows, words] and B [columns, words], both row by row in 32-bit words along the inner dimension, and
adds to sums [rows, columns]. Which elements a thread holds is a table: kernels need to know no more of a unit.

    mma_*      `mma.sync` of CUDA's tensor cores (PTX ISA, section "Matrix Fragments for mma"), from sm_80 on
    simd_f32   `simdgroup_matrix` of Metal (Metal Shading Language Specification, section 6.7)
    fma        plain multiply-adds, for devices and types that have neither
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from deepzig.targets.emit import Buffer, Expr, store

from .emit import device, registers

Map = Callable[[Expr], list[tuple[Expr, Expr]]]
"""Lane -> of each register of the thread the row, or column, and the word, or for sums the row and the column."""


@dataclass(frozen=True)
class Unit:
    """A matrix unit.

    Attributes:
        name: of its device function; empty for plain code.
        rows: of A and of the sums.
        columns: rows of B, and columns of the sums.
        words: along the inner dimension.
        element: what the words are: `f32`, or several of `bf16`, `f16` or `s8`.
        a: which words of A a thread holds.
        b: which of B.
        sums: which sums.
    """

    name: str
    rows: int
    columns: int
    words: int
    element: str
    a: Map
    b: Map
    sums: Map

    @property
    def per_word(self) -> int:
        """Elements in a word."""
        return {"f32": 1, "bf16": 2, "f16": 2, "s8": 4}[self.element]

    @property
    def word(self) -> str:
        """TVM's type of a word."""
        return "float32" if self.element == "f32" else "uint32"

    @property
    def sum(self) -> str:
        """TVM's type of a sum: sums of integers are exact. Integers as f32 are, too, below 2^24."""
        return "int32" if self.element == "s8" else "float32"

    def zero(self, count: int = 1) -> Buffer:
        """Registers for `count` matrices of sums, zero."""
        sums = registers(count * len(self.sums(T.int64(0))), dtype=self.sum)
        self.clear(sums)
        return sums

    def clear(self, sums: Buffer) -> None:
        """Emit the zeroing of registers of sums."""
        zero = T.int32(0) if self.sum == "int32" else T.float32(0)
        for i in range(int(sums.shape[0])):
            store(sums, zero, i)

    def load_a(self, lane: Expr, read: Callable[[Expr, Expr], Expr]) -> Buffer:
        """Registers with A, whose words are read(row, word)."""
        return self._load(self.a(lane), read)

    def load_b(self, lane: Expr, read: Callable[[Expr, Expr], Expr]) -> Buffer:
        """Registers with B, whose words are read(column, word)."""
        return self._load(self.b(lane), read)

    def _load(self, places: list[tuple[Expr, Expr]], read: Callable[[Expr, Expr], Expr]) -> Buffer:
        held = registers(len(places), dtype=self.word)
        for i, place in enumerate(places):
            store(held, read(*place), i)
        return held

    def multiply(self, sums: Buffer, a: Buffer, b: Buffer, index: int = 0) -> None:
        """Emit the adding of A B^T to matrix `index` of the sums; all threads of the subgroup have to come here."""
        size = len(self.sums(T.int64(0)))
        if self.name:
            device(self.name, *(T.address_of(r) for r in (sums[index * size], a[0], b[0])))
            return
        columns = int(b.shape[0]) // self.words
        for i in range(size):
            row, column = divmod(i, columns)
            for word in range(self.words):
                product = a[row * self.words + word] * b[column * self.words + word]
                store(sums, sums[index * size + i] + product, index * size + i)


def _mma(name: str, element: str) -> Unit:
    def a(lane: Expr) -> list[tuple[Expr, Expr]]:
        group, place = lane // 4, lane % 4
        return [(group, place), (group + 8, place), (group, place + 4), (group + 8, place + 4)]

    def b(lane: Expr) -> list[tuple[Expr, Expr]]:
        return [(lane // 4, lane % 4), (lane // 4, lane % 4 + 4)]

    return Unit(name, 16, 8, 8, element, a, b, _sums)


def _sums(lane: Expr) -> list[tuple[Expr, Expr]]:
    return [(lane // 4 + row, lane % 4 * 2 + column) for row in (0, 8) for column in (0, 1)]


def _simdgroup() -> Unit:
    def place(lane: Expr) -> tuple[Expr, Expr]:
        return lane // 16 * 4 + lane // 2 % 4, lane // 8 % 2 * 4 + lane % 2 * 2

    def across(lane: Expr) -> list[tuple[Expr, Expr]]:
        row, column = place(lane)
        return [(row, column), (row, column + 1)]

    def down(lane: Expr) -> list[tuple[Expr, Expr]]:
        return [(column, row) for row, column in across(lane)]

    return Unit("simd_mma_f32", 8, 8, 8, "f32", across, down, across)


def _fma(columns: int) -> Unit:
    """Of a thread's own sums, two rows and `columns` columns."""
    words = 4

    def a(lane: Expr) -> list[tuple[Expr, Expr]]:
        return [(lane // 4 + row, T.int64(word)) for row in (0, 8) for word in range(words)]

    def b(lane: Expr) -> list[tuple[Expr, Expr]]:
        return [(lane % 4 * columns + column, T.int64(word)) for column in range(columns) for word in range(words)]

    def sums(lane: Expr) -> list[tuple[Expr, Expr]]:
        return [(lane // 4 + row, lane % 4 * columns + column) for row in (0, 8) for column in range(columns)]

    return Unit("", 16, 4 * columns, words, "f32", a, b, sums)


UNITS = {
    "mma_bf16": _mma("mma_bf16", "bf16"),
    "mma_f16": _mma("mma_f16", "f16"),
    "mma_s8": _mma("mma_s8", "s8"),
    "simd_f32": _simdgroup(),
    "fma": _fma(2),
    "fma_narrow": _fma(1),
}
"""Names of `device.Gpu.units` -> units."""

NARROW = {"fma": "fma_narrow"}
"""Unit -> one with fewer columns."""
