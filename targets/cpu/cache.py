"""Cache pages and the element types stored in them.

A page is [page_size, cw] with cw the latent and rope width padded to 16 columns. 2-byte types are read two columns a
32-bit lane, low half first, which costs one instruction a register and leaves 16 columns in pair order: the even ones,
then the odd ones. Sums over columns don't mind when both factors are in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from .layout import LANES
from .vector import dtype, splat, widen, widen_high, words

HALF = LANES // 2


def columns(stored: Any, cdtype: str) -> Any:
    """16 stored columns as float32x16, in pair order if the type has 2 bytes."""
    if cdtype == "f32":
        return stored
    pairs = T.reinterpret(dtype("uint32", HALF), stored)
    low, high = (widen(pairs, cdtype, odd, HALF) for odd in (False, True))
    return T.vectorcombine(dtype("float32"), low, high)


def pair_order(begin: Any, cdtype: str, pitch: int = 1) -> tuple[Any, Any]:
    """Indices of the two halves of what `columns` returns for 16 columns from `begin`, `pitch` elements apart."""
    if cdtype == "f32":
        return T.ramp(begin, pitch, HALF), T.ramp(begin + HALF * pitch, pitch, HALF)
    return T.ramp(begin, 2 * pitch, HALF), T.ramp(begin + pitch, 2 * pitch, HALF)


def gather(load: Callable[[Any], Any], begin: Any, cdtype: str) -> Any:
    """16 float32 values from `begin`, in the order of `columns`."""
    first, second = pair_order(begin, cdtype)
    return T.vectorcombine(dtype("float32"), load(first), load(second))


def widened(stored: Any, cdtype: str, lanes: int) -> Any:
    """The exact f32 values of f32 numbers or of the bits of bf16 or finite f16 ones."""
    if cdtype == "f32":
        return stored
    return widen_high(T.shift_left(T.Cast(dtype("uint32", lanes), stored), words(16, lanes)), cdtype, lanes)


def narrow(x: Any, cdtype: str, lanes: int) -> Any:
    """f32 lanes rounded to nearest even, as stored. Not for NaN; halves beyond the range become infinite."""
    if cdtype == "f32":
        return x
    bits = T.reinterpret(dtype("uint32", lanes), x)
    if cdtype == "bf16":
        odd = T.bitwise_and(T.shift_right(bits, words(16, lanes)), words(1, lanes))
        return T.Cast(dtype("uint16", lanes), T.shift_right(bits + odd + words(0x7FFF, lanes), words(16, lanes)))
    magnitude = T.bitwise_and(bits, words(0x7FFFFFFF, lanes))
    odd = T.bitwise_and(T.shift_right(magnitude, words(13, lanes)), words(1, lanes))
    normal = T.min(
        T.shift_right(magnitude - words(112 << 23, lanes) + odd + words(0xFFF, lanes), words(13, lanes)),
        words(0x7C00, lanes),
    )
    # Below 2^-14 halves are multiples of 2^-24, the unit in the last place of floats from 0.5.
    sum_with_half = T.reinterpret(dtype("float32", lanes), magnitude) + splat(0.5, lanes)
    subnormal = T.reinterpret(dtype("uint32", lanes), sum_with_half) - words(0x3F000000, lanes)
    rounded = T.Select(magnitude < words(113 << 23, lanes), subnormal, normal)
    sign = T.shift_right(T.bitwise_and(bits, words(0x80000000, lanes)), words(16, lanes))
    return T.Cast(dtype("uint16", lanes), T.bitwise_or(rounded, sign))
