"""Words of a matrix unit made of the stored words of a weight, while they are read from shared memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm.script import tirx as T

from deepzig.ir.fp8 import FP8
from deepzig.ir.quantize import GROUP
from deepzig.targets.emit import Expr

from .cache import widened
from .emit import device
from .layout import BITS
from .units import Unit

Read = Callable[[Expr, Expr], Expr]
"""(column, word) -> the word of the column's row."""

NIBBLES = {("q4", "s8"): 1 / 16}
"""Type of a weight, and element of a unit -> what products are to be multiplied by: a code of 4 bits is a byte's high
half, which leaves its sign where it belongs."""


def factor(wdtype: str, unit: Unit) -> float:
    """What sums of products of the words are to be multiplied by, beside the scales."""
    return NIBBLES.get((wdtype, unit.element), 1.0)


def fragment(wdtype: str, unit: Unit, step: int | Expr, chunk: int, number: Expr, raw: Read) -> Read:
    """The words of B that a unit multiplies in a step.

    Args:
        wdtype: type of the weight.
        unit: what multiplies.
        step: which of the chunk.
        chunk: elements of a chunk.
        number: of the chunk, in its row.
        raw: stored words of the chunk.
    """
    first = step * unit.words
    if unit.per_word * BITS[wdtype] == 32:
        return lambda column, word: raw(column, first + word)
    if unit.element == "s8":
        return lambda column, word: _nibbles(raw(column, word), high=step > 0)
    if unit.element == "bf16":
        # rows lie crossed (`operands.Encoding`)
        return lambda column, word: _bf16(raw(column, step * 4 + word % 4), word // 4)
    half = number * chunk % GROUP // (GROUP // 2)
    return lambda column, word: _element(wdtype, raw, column, first + word, half)


def _nibbles(word: Expr, *, high: bool) -> Expr:
    """Four codes of 4 bits, 16 times as large, as bytes."""
    word = word if high else word << T.uint32(4)
    return T.bitwise_and(T.bitwise_xor(word, T.uint32(0x88888888)), T.uint32(0xF0F0F0F0))


def _bf16(word: Expr, pair: Expr) -> Expr:
    """The numbers of codes 2 pair and 2 pair + 1 of a word of e4m3."""
    return device("bf16_of_e4m3", word, T.Cast("int32", pair), returns="uint32")


def _element(wdtype: str, raw: Read, column: Expr, i: Expr, half: Expr) -> Expr:
    """Element i of a chunk as f32, without its scale; in q4, of a half of a group."""
    if wdtype == "q4":
        byte = raw(column, i // 4) >> _bits(8 * (i % 4) + 4 * half)
        return T.Cast("float32", T.Cast("int32", T.bitwise_and(byte, T.uint32(15))) - T.int32(8))
    per_word = 32 // BITS[wdtype]
    bits = raw(column, i // per_word) >> _bits(i % per_word * BITS[wdtype])
    return WIDEN[wdtype](bits)


def _bits(count: Expr) -> Expr:
    return T.Cast("uint32", count)


def _from_byte(bits: Expr) -> Expr:
    return T.Cast(
        "float32", T.Cast("int32", T.bitwise_xor(T.bitwise_and(bits, T.uint32(0xFF)), T.uint32(0x80))) - T.int32(128)
    )


def _from_e4m3(bits: Expr) -> Expr:
    # in the place of an f16 number a code is 2^-8 times as large
    sign, rest = T.bitwise_and(bits, T.uint32(0x80)), T.bitwise_and(bits, T.uint32(0x7F))
    return device("half", sign << T.uint32(8) | rest << T.uint32(7), returns="float32") * T.float32(256)


WIDEN: dict[str, Callable[[Expr], Expr]] = {
    **{dtype: partial(widened, cdtype=dtype) for dtype in ("bf16", "f16")},
    "q8": _from_byte,
    FP8: _from_e4m3,
}
"""Type of a weight -> f32 of the low bits of a word."""
