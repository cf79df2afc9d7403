"""Vectors of 16 bytes, what a thread reads at once, and what the words in them stand for."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from deepzig.ir.fp8 import FP8
from deepzig.targets.emit import Buffer, Expr

from .emit import device
from .layout import BITS

WORDS = 4
"""Words of a vector."""

SHRUNK = {FP8: 2.0**-8}
"""Element type -> what `widen` makes of 1, where that is not 1."""


def per_vector(dtype: str) -> int:
    """Elements of a weight in a vector."""
    return WORDS * 32 // BITS[dtype]


def load(buffer: Buffer, *index: Expr) -> Expr:
    """The four elements of a buffer from an index on."""
    *lead, first = index
    return T.bind(buffer[(*lead, T.ramp(first, 1, WORDS))])


def split(vector: Expr) -> list[Expr]:
    """The elements of a vector."""
    return [T.Shuffle([vector], [i]) for i in range(WORDS)]


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c, rounded once on every device: what it is added up of in an expression does not change its bits."""
    return T.call_extern("float32", "dz_fma", a, b, c)


def widen(vector: Expr, dtype: str, number: int) -> list[Expr]:
    """The `number`-th four elements of a vector of a weight of floats as f32, times SHRUNK."""
    words = WORDS * WORDS // per_vector(dtype)
    return [element for word in split(vector)[number * words :][:words] for element in WIDEN[dtype](word)]


def _bf16(word: Expr) -> list[Expr]:
    return [float_of(T.shift_left(word, T.uint32(16))), float_of(T.bitwise_and(word, T.uint32(0xFFFF0000)))]


def _f16(word: Expr) -> list[Expr]:
    return [device("half", half, returns="float32") for half in (word, T.shift_right(word, T.uint32(16)))]


def _fp8(word: Expr) -> list[Expr]:
    # In the high byte of 16 bits, and moved down by one with its sign kept in place, an e4m3 number is an f16 whose
    # exponent is 8 too small; subnormal numbers as well.
    def moved(word: Expr) -> Expr:
        sign = T.bitwise_and(word, T.uint32(0x80008000))
        return T.bind(T.bitwise_or(sign, T.shift_right(T.bitwise_and(word, T.uint32(0x7F007F00)), T.uint32(1))))

    even, odd = (_f16(moved(pair)) for pair in (T.bind(T.shift_left(word, T.uint32(8))), word))
    return [even[0], odd[0], even[1], odd[1]]


WIDEN: dict[str, Any] = {
    "f32": lambda word: [word],
    "bf16": _bf16,
    "f16": _f16,
    FP8: _fp8,
}
"""Element type -> the function from a word to its elements."""


def float_of(word: Expr) -> Expr:
    """The f32 whose bits a word holds."""
    return T.reinterpret("float32", word)


PARTS = {"q8": 1, "q4": 2}
"""Element type of a weight of integers -> vectors of bytes in one of its vectors."""


def codes(vector: Expr, dtype: str, part: int) -> list[Expr]:
    """The words of four signed bytes in a part of a vector of a weight of integers.

    Of q4 the low halves of its bytes are a part, then the high halves, all with 8 added.
    """
    words = split(vector)
    if dtype == "q4":
        moved = [T.shift_right(word, T.uint32(4)) for word in words] if part else words
        words = [T.bitwise_and(word, T.uint32(0x0F0F0F0F)) for word in moved]
    return bytes_of(words)


def bytes_of(words: list[Expr]) -> list[Expr]:
    """Words as four signed bytes each."""
    return [T.reinterpret("int32", word) for word in words]
