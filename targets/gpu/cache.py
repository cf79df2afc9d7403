"""Rows of the cache as 32-bit words: how they are read, rounded and written.

The words of a row of `layout.cache_row`:

    f32         word k is column k, as float32
    bf16, f16   columns 2k and 2k + 1, the even one in the low half
    q8          the codes of columns 4k to 4k + 3, the first in the lowest byte; after the codes of all groups of 64
                columns their scales, the bits of f32
"""

from __future__ import annotations

import tvm
from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as builder

from deepzig.ir.quantize import GROUP
from deepzig.targets.cpu.cache import half_bits
from deepzig.targets.emit import Buffer, Expr, Kernel, extent, loop, store, when

from .emit import Threads, device, subgroup_max
from .layout import cache_row, word_row

PER_WORD = {"f32": 1, "bf16": 2, "f16": 2, "q8": 4}
"""Element type of a cache -> columns of a word."""
LANES = 16
"""Threads that round a group of 64 columns together, four each."""


def word_type(cdtype: str) -> str:
    """TVM's type of a word."""
    return "float32" if cdtype == "f32" else "uint32"


def row_words(cdtype: str, width: int) -> int:
    """Words of a row of `width` columns, a multiple of 4."""
    return word_row(cdtype, width)[1]


def scale_word(width: int) -> int:
    """Of a row of q8 the word with the scale of the first group."""
    return -(-width // GROUP) * GROUP // 4


def pages(f: Kernel, number: Expr, page: int, cdtype: str, width: int, *, words: bool = False) -> Buffer:
    """The parameter that is a cache with rows of `width` columns, which `as_words` reads and writes.

    Its elements are those of `cache_row`, or words.
    """
    stored, size = word_row(cdtype, width) if words else cache_row(cdtype, width)
    return f.tensor("cache", stored, number, page, size)


def as_words(cache: Buffer, cdtype: str) -> Buffer:
    """The words of a cache: [pages, page, row_words]. To be called after the last parameter of the kernel."""
    if cache.dtype == word_type(cdtype):
        return cache
    number, page, size = cache.shape
    words = T.int64(int(size) * tvm.DataType(cache.dtype).bits // 32)
    return builder.decl_buffer((number, page, words), word_type(cdtype), data=cache.data, scope="global")


def widened(bits: Expr, cdtype: str) -> Expr:
    """The f32 value of the bits of a bf16 or f16 in the low half of a word; the high half is not looked at."""
    if cdtype == "bf16":
        return T.reinterpret("float32", bits << T.uint32(16))
    return device("half", bits, returns="float32")


def half(word: Expr, cdtype: str, odd: bool) -> Expr:
    """The f32 value of one half of a word of two bf16 or f16."""
    if cdtype == "bf16" and odd:
        return T.reinterpret("float32", word & T.uint32(0xFFFF0000))
    return widened(word >> T.uint32(16) if odd else word, cdtype)


def pair(low: Expr, high: Expr, cdtype: str) -> Expr:
    """The word of two f32 values, rounded to nearest even; halves beyond the range become infinite."""
    bits = [half_bits(T.bind(value), cdtype, 1) for value in (low, high)]
    return bits[0] | bits[1] << T.uint32(16)


def row_columns(cdtype: str, width: int) -> int:
    """How many columns `write_row` reads: whole groups of q8, else as many as a row has room for."""
    stored, size = cache_row(cdtype, width)
    return -(-width // GROUP) * GROUP if stored == "i8" else size


def write_row(t: Threads, cache: Buffer, place: tuple[Expr, Expr], row: Buffer, cdtype: str, width: int) -> None:
    """Emit the rounding and storing of a row by the threads of a block.

    Args:
        t: where the code is.
        cache: the words.
        place: page, and position in it.
        row: f32[row_columns] in shared memory, zero beyond `width`.
        cdtype: element type of the cache.
        width: columns of a row.
    """
    words = row_words(cdtype, width)
    if cdtype == "q8":
        _write_codes(t, cache, place, row, width)
        return
    with t.each(words) as w:
        value = row[w] if cdtype == "f32" else pair(row[w * 2], row[w * 2 + 1], cdtype)
        store(cache, value, *place, w)


def _write_codes(t: Threads, cache: Buffer, place: tuple[Expr, Expr], row: Buffer, width: int) -> None:
    groups, scales, words = -(-width // GROUP), scale_word(width), row_words("q8", width)
    at_once = t.count // LANES
    with loop(-(-groups // at_once)) as turn:
        g = T.bind(turn * at_once + t.thread // LANES)
        first = T.bind(T.min(g, extent(groups - 1)) * GROUP + t.thread % LANES * 4)
        values = [T.bind(row[first + i]) for i in range(4)]
        sizes = [T.max(value, -value) for value in values]
        largest = subgroup_max(T.max(T.max(sizes[0], sizes[1]), T.max(sizes[2], sizes[3])), LANES)
        inverse = T.bind(T.if_then_else(largest > T.float32(0), T.float32(127) / largest, T.float32(0)))
        codes = [device("round", value * inverse, returns="int32") for value in values]
        bytes_ = [(T.Cast("uint32", code) & T.uint32(255)) << T.uint32(8 * i) for i, code in enumerate(codes)]
        with when(g < groups):
            store(cache, bytes_[0] | bytes_[1] | bytes_[2] | bytes_[3], *place, g * LANES + t.thread % LANES)
            with when(t.thread % LANES == 0):
                store(cache, T.reinterpret("uint32", largest / T.float32(127)), *place, scales + g)
    with t.each(words - scales - groups) as i:
        store(cache, T.uint32(0), *place, scales + groups + i)
