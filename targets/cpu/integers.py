"""Sums of products of bytes, with each family of instructions.

Weights are words of four codes: bytes with a sign in `q8`; in `q4` halves of bytes without, to which 8 was added. Where
instructions want a factor without a sign, 128 is added to weights of 8 bits. What was added comes off where sums start:
at minus so many times the sum of the other factor. Sums are exact, so all of these give the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar

from tvm.script import tirx as T

from deepzig.ir.quantize import GROUP
from deepzig.targets.emit import Buffer, Expr, store

from .emit import local
from .layout import LANES
from .vector import at, dtype, words

STEP = 4
"""Codes in a word of 32 bits."""
FLUSH = 4
"""Words of 4-bit codes after which sums of 16 bits could overflow: each adds at most 4 * 15 * 127."""
NIBBLES = ((0, 0), (4, GROUP // STEP // 2))
"""By how many bits a word of 4-bit codes is moved for four of them, and how many words later of the row these are."""


@dataclass(frozen=True)
class Codes:
    """A row of the left matrix, rounded to 8 bits.

    Attributes:
        code: index -> code.
        word: (group, number of a word in it) -> four codes.
        scale: group -> its scale.
        total: group -> the sum of its codes.
    """

    code: Callable[[Expr], Expr]
    word: Callable[[Expr, Expr], Expr]
    scale: Callable[[Expr], Expr]
    total: Callable[[Expr], Expr]


Load = Callable[[Expr], Expr]
"""Indices of words -> these words of a weight."""


@dataclass
class Dots(ABC):
    """A family of instructions, at work on one tile.

    Attributes:
        rows: rows of the tile.
        blocks: its blocks of columns.
        parts: of each row, for each block, the sums of one group: 16 of 32 bits.
        offset: element type -> what is added to weights.
    """

    rows: Sequence[Codes]
    blocks: Sequence[tuple[Expr, ...]]
    parts: Sequence[Sequence[Buffer]]
    offset: ClassVar[Mapping[str, int]] = MappingProxyType({"q8": 0, "q4": 8})

    def begin(self) -> None:
        """Emit what precedes FLUSH words; nothing, for most."""
        return

    def end(self, wdtype: str) -> None:
        """Emit what follows them; nothing, for most."""
        return

    @abstractmethod
    def add_q8(self, column: int, load: Load, g: Expr, word: Expr) -> None:
        """Emit the products of a word with that of each row."""

    @abstractmethod
    def add_q4(self, column: int, load: Load, g: Expr, word: Expr) -> None:
        """Emit the products of a word of twice as many codes."""


class _Portable(Dots):
    """Byte by byte in 32 bits, in whatever instructions the CPU has."""

    def add_q8(self, column: int, load: Load, g: Expr, word: Expr) -> None:
        packed = T.bind(T.reinterpret(dtype("int32"), load(at(0))))
        self._add(column, [signed_byte(packed, i, LANES) for i in range(STEP)], g, word)

    def add_q4(self, column: int, load: Load, g: Expr, word: Expr) -> None:
        packed = T.bind(load(at(0)))
        for shift, first in NIBBLES:
            self._add(column, [nibble(packed, 8 * i + shift) for i in range(STEP)], g, word + first)

    def _add(self, column: int, bytes_: Sequence[Expr], g: Expr, word: Expr) -> None:
        values = [T.bind(b) for b in bytes_]
        for codes, line in zip(self.rows, self.parts, strict=True):
            x = T.bind(codes.word(g, word))
            total = line[column][at(0)]
            for i, value in enumerate(values):
                total = total + value * T.broadcast(signed_byte(x, i, 1), LANES)
            store(line[column], total, at(0))


def nibble(packed: Expr, shift: int) -> Expr:
    """Four bits of words, as 32 bits."""
    return T.reinterpret(dtype("int32"), T.bitwise_and(T.shift_right(packed, words(shift)), words(15)))


def signed_byte(word: Expr, number: int, lanes: int) -> Expr:
    """A signed byte of words, as 32 bits."""
    left, right = T.int32(24 - 8 * number), T.int32(24)
    if lanes > 1:
        left, right = T.broadcast(left, lanes), T.broadcast(right, lanes)
    return T.shift_right(T.shift_left(word, left), right)


class _Avx2(Dots):
    """vpmaddubsw takes unsigned by signed bytes: the sign of a weight goes to the other factor."""

    lanes: ClassVar[int] = 8
    pairs: ClassVar[tuple[str, str]] = "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"

    def begin(self) -> None:
        """Sums of 16 bits, for 4-bit codes."""
        shorts, several = 2 * self.lanes, range(LANES // self.lanes)
        self._short = [[[local(shorts, "int16") for _ in several] for _ in self.blocks] for _ in self.rows]
        for buffer in (b for line in self._short for column in line for b in column):
            store(buffer, T.broadcast(T.int16(0), shorts), at(0, shorts))

    def end(self, wdtype: str) -> None:
        if wdtype == "q4":
            for line, short in zip(self.parts, self._short, strict=True):
                for part, buffers in zip(line, short, strict=True):
                    for number, buffer in enumerate(buffers):
                        self._add_pairs(part, number, buffer[at(0, 2 * self.lanes)])

    def add_q8(self, column: int, load: Load, g: Expr, word: Expr) -> None:
        weights = [T.bind(self._bytes(load(at(first, self.lanes)))) for first in range(0, LANES, self.lanes)]
        sizes = [T.bind(T.max(w, self._zero() - w)) for w in weights]
        for codes, line in zip(self.rows, self.parts, strict=True):
            x = T.bind(self._bytes(T.broadcast(codes.word(g, word), self.lanes)))
            for number, (weight, size) in enumerate(zip(weights, sizes, strict=True)):
                self._add_pairs(line[column], number, self._products(size, self._signed(x, weight)))

    def add_q4(self, column: int, load: Load, g: Expr, word: Expr) -> None:
        for number, start in enumerate(range(0, LANES, self.lanes)):
            packed = T.bind(load(at(start, self.lanes)))
            for shift, further in NIBBLES:
                values = T.bind(self._bytes(nibbles(packed, shift, self.lanes)))
                for codes, short in zip(self.rows, self._short, strict=True):
                    x = self._bytes(T.broadcast(codes.word(g, word + further), self.lanes))
                    buffer, every = short[column][number], at(0, 2 * self.lanes)
                    store(buffer, buffer[every] + self._products(values, x), every)

    def _bytes(self, words_: Expr) -> Expr:
        return T.reinterpret(dtype("int8", STEP * self.lanes), words_)

    def _zero(self) -> Expr:
        return T.broadcast(T.int8(0), STEP * self.lanes)

    def _signed(self, x: Expr, weight: Expr) -> Expr:
        """x, times the sign of a weight; anything where that is zero."""
        return T.call_llvm_pure_intrin("int8x32", "llvm.x86.avx2.psign.b", x, weight)

    def _products(self, unsigned: Expr, signed: Expr) -> Expr:
        """Sums of pairs of products."""
        return T.call_llvm_pure_intrin(dtype("int16", 2 * self.lanes), self.pairs[0], unsigned, signed)

    def _add_pairs(self, part: Buffer, number: int, short: Expr) -> None:
        """Add sums of pairs of 16-bit numbers."""
        ones, lanes = T.broadcast(T.int16(1), 2 * self.lanes), at(T.int64(number * self.lanes), self.lanes)
        sums = T.call_llvm_pure_intrin(dtype("int32", self.lanes), self.pairs[1], short, ones)
        store(part, part[lanes] + sums, lanes)


class _Avx512(_Avx2):
    """The same in registers of 512 bits (AVX512BW), where a mask has the signs."""

    lanes = LANES
    pairs = "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"

    def _signed(self, x: Expr, weight: Expr) -> Expr:
        return T.Select(weight < self._zero(), self._zero() - x, x)


def nibbles(packed: Expr, shift: int, lanes: int) -> Expr:
    """The low or the high halves of bytes."""
    moved = T.shift_right(packed, words(shift, lanes)) if shift else packed
    return T.bitwise_and(moved, words(0x0F0F0F0F, lanes))


class _Fused(Dots):
    """Instructions that add the products of four bytes with four bytes to a sum of 32 bits."""

    name: ClassVar[str]
    lanes: ClassVar[int]
    weights: ClassVar[str]

    def add_q8(self, column: int, load: Load, g: Expr, word: Expr) -> None:
        for first in range(0, LANES, self.lanes):
            codes = load(at(first, self.lanes))
            if self.offset["q8"]:
                codes = T.bitwise_xor(codes, words(0x80808080, self.lanes))
            self._add(column, first, codes, g, word)

    def add_q4(self, column: int, load: Load, g: Expr, word: Expr) -> None:
        for first in range(0, LANES, self.lanes):
            packed = T.bind(load(at(first, self.lanes)))
            for shift, further in NIBBLES:
                self._add(column, first, nibbles(packed, shift, self.lanes), g, word + further)

    def _add(self, column: int, first: int, codes: Expr, g: Expr, word: Expr) -> None:
        bytes_, lanes = self.lanes * STEP, at(T.int64(first), self.lanes)
        weights = T.bind(T.reinterpret(dtype(self.weights, bytes_), codes))
        for row, line in zip(self.rows, self.parts, strict=True):
            x = T.reinterpret(dtype("int8", bytes_), T.broadcast(row.word(g, word), self.lanes))
            dot = partial(T.call_llvm_pure_intrin, dtype("int32", self.lanes), self.name)
            store(line[column], dot(line[column][lanes], weights, x), lanes)


class _Vnni(_Fused):
    """vpdpbusd (AVX512-VNNI): weights without a sign."""

    name, lanes, weights = "llvm.x86.avx512.vpdpbusd.512", 16, "uint8"
    offset = MappingProxyType({"q8": 128, "q4": 8})


class _Sdot(_Fused):
    """sdot (Arm's FEAT_DotProd)."""

    name, lanes, weights = "llvm.aarch64.neon.sdot", 4, "int8"


class _Simd128(Dots):
    """i32x4.dot_i16x8_s adds the products of two numbers of 16 bits to each other: here those of even and odd bytes."""

    lanes: ClassVar[int] = 4

    def add_q8(self, column: int, load: Load, g: Expr, word: Expr) -> None:
        factors = [self._halves(self._shorts(codes, g, word)) for codes in self.rows]
        for first in range(0, LANES, self.lanes):
            weights = self._halves(T.bind(T.reinterpret("int16x8", load(at(first, self.lanes)))))
            self._add(column, first, weights, factors)

    def add_q4(self, column: int, load: Load, g: Expr, word: Expr) -> None:
        for shift, further in NIBBLES:
            factors = [self._halves(self._shorts(codes, g, word + further)) for codes in self.rows]
            for first in range(0, LANES, self.lanes):
                packed = T.bind(load(at(first, self.lanes)))
                both = [T.shift_right(packed, words(shift + by, self.lanes)) for by in (0, 8)]
                low = [T.bitwise_and(half, words(0x000F000F, self.lanes)) for half in both]
                self._add(column, first, [T.bind(T.reinterpret("int16x8", half)) for half in low], factors)

    def _shorts(self, codes: Codes, g: Expr, word: Expr) -> Expr:
        return T.bind(T.reinterpret("int16x8", T.broadcast(codes.word(g, word), self.lanes)))

    def _halves(self, shorts: Expr) -> list[Expr]:
        """Even and odd bytes, with their signs, as numbers of 16 bits."""
        by = T.broadcast(T.int16(8), 2 * self.lanes)
        return [T.bind(T.shift_right(half, by)) for half in (T.shift_left(shorts, by), shorts)]

    def _add(self, column: int, first: int, weights: Sequence[Expr], factors: Sequence[Sequence[Expr]]) -> None:
        lanes = at(T.int64(first), self.lanes)
        for line, halves in zip(self.parts, factors, strict=True):
            for weight, factor in zip(weights, halves, strict=True):
                dot = T.call_llvm_pure_intrin("int32x4", "llvm.wasm.dot", weight, factor)
                store(line[column], line[column][lanes] + dot, lanes)


DOTS: Mapping[str, type[Dots]] = MappingProxyType(
    {"": _Portable, "avx2": _Avx2, "avx512": _Avx512, "vnni": _Vnni, "dotprod": _Sdot, "simd128": _Simd128}
)
"""`Vectors.integers` -> what works with it."""
