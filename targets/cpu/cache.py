"""Cache pages and the element types stored in them.

A page is [page_size, size] with rows as `layout.cache_row` has them. 2-byte types are read two columns a 32-bit lane,
low half first, which costs one instruction a register and leaves 16 columns in pair order: the even ones, then the odd
ones. Sums over columns don't mind when both factors are in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script import tirx as T

from deepzig.ir.quantize import GROUP
from deepzig.targets.emit import Buffer, Expr, Kernel, extent, loop, store

from .emit import vector_of, workspace
from .layout import LANES, cache_row
from .quant import round_group
from .vector import at, dtype, splat, widen, widen_high, words

HALF = LANES // 2
IN_ORDER = ("f32", "q8")
"""Types whose columns are read in their own order."""

Place = tuple[Expr, Expr]
"""Page, and position in it."""


def pages(f: Kernel, number: Expr, page: int, cdtype: str, width: int) -> Buffer:
    """The parameter that is a cache with rows of `width` columns."""
    stored, size = cache_row(cdtype, width)
    return f.tensor("cache", stored, number, page, size)


def columns(cache: Buffer, place: Place, block: Expr, cdtype: str, width: int) -> Any:
    """The 16 columns from 16 * block on as float32x16, in pair order if the type has 2 bytes.

    Args:
        cache: the pages.
        place: of the row.
        block: which columns.
        cdtype: element type of the cache.
        width: columns of a row.
    """
    stored = cache[(*place, at(block * LANES))]
    if cdtype == "f32":
        return stored
    if cdtype == "q8":
        scale = T.reinterpret("float32", cache[(*place, at(_scale(width, block * LANES // GROUP), 4))])
        return T.Cast(dtype("float32"), stored) * splat(T.bind(scale))
    pairs = T.reinterpret(dtype("uint32", HALF), stored)
    low, high = (widen(pairs, cdtype, odd, HALF) for odd in (False, True))
    return T.vectorcombine(dtype("float32"), low, high)


def pair_order(begin: Any, cdtype: str, pitch: int = 1) -> tuple[Any, Any]:
    """Indices of the two halves of what `columns` returns for 16 columns from `begin`, `pitch` elements apart."""
    if cdtype in IN_ORDER:
        return T.ramp(begin, pitch, HALF), T.ramp(begin + HALF * pitch, pitch, HALF)
    return T.ramp(begin, 2 * pitch, HALF), T.ramp(begin + pitch, 2 * pitch, HALF)


def gather(load: Callable[[Any], Any], begin: Any, cdtype: str) -> Any:
    """16 float32 values from `begin`, in the order of `columns`."""
    first, second = pair_order(begin, cdtype)
    return T.vectorcombine(dtype("float32"), load(first), load(second))


def _scale(width: int, group: Expr) -> Expr:
    """Where the scale of a group is in a row of q8."""
    return -(-width // GROUP) * GROUP + group * 4


@contextmanager
def new_row(cache: Buffer, place: Place, cdtype: str, width: int) -> Iterator[Callable[[Expr, Expr, int], None]]:
    """In this context write(index or vector of indices, value, lanes) rounds and stores each column of a row."""
    _, size = cache_row(cdtype, width)
    if cdtype != "q8":
        yield lambda i, value, lanes: store(cache, narrow(T.bind(value), cdtype, lanes), *place, i)
        with loop(size, width) as i:
            store(cache, narrow(T.float32(0), cdtype, 1), *place, i)
        return
    groups = -(-width // GROUP)
    row = workspace(groups * GROUP)
    yield lambda i, value, _: store(row, value, i)
    with loop(groups * GROUP, width) as i:
        store(row, T.float32(0), i)
    with loop(groups) as g:
        first = g * GROUP
        integers, scale = round_group([vector_of(row[at(first + i)]) for i in range(0, GROUP, LANES)])
        for i, integer in enumerate(integers):
            store(cache, T.Cast(dtype("int8"), integer), *place, at(first + i * LANES))
        store(cache, T.reinterpret(dtype("int8", 4), scale), *place, at(_scale(width, g), 4))
    with loop(size, _scale(width, extent(groups))) as i:
        store(cache, T.int8(0), *place, i)


def widened(stored: Any, cdtype: str, lanes: int) -> Any:
    """The exact f32 values of f32 numbers or of the bits of bf16 or finite f16 ones."""
    if cdtype == "f32":
        return stored
    return widen_high(T.shift_left(T.Cast(dtype("uint32", lanes), stored), words(16, lanes)), cdtype, lanes)


def narrow(x: Any, cdtype: str, lanes: int) -> Any:
    """f32 lanes rounded to nearest even, as stored. Not for NaN; halves beyond the range become infinite."""
    return x if cdtype == "f32" else T.Cast(dtype("uint16", lanes), half_bits(x, cdtype, lanes))


def half_bits(x: Any, cdtype: str, lanes: int) -> Any:
    """The same for bf16 and f16, as u32 lanes of their bits."""
    bits = T.reinterpret(dtype("uint32", lanes), x)
    if cdtype == "bf16":
        odd = T.bitwise_and(T.shift_right(bits, words(16, lanes)), words(1, lanes))
        return T.shift_right(bits + odd + words(0x7FFF, lanes), words(16, lanes))
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
    return T.bitwise_or(rounded, sign)
