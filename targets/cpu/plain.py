"""Kernels of what passes left unfused: scalar loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.ir import Attr, TensorType
from deepzig.targets.emit import kernel, loop, symbols
from deepzig.targets.plain import compute, table

from .cache import new_row, pages, widened


def plain(op: str, inputs: Sequence[TensorType], attrs: Mapping[str, Attr], output: TensorType) -> PrimFunc:
    """Kernel (inputs in their physical types, output)."""
    return compute(op, inputs, attrs, output, lambda bits, dtype: widened(bits, dtype, 1))


def cache_write(width: int, page: int, cdtype: str) -> PrimFunc:
    """Kernel (rows f32[n, width], seq, pos, table, cache[pages, page, ...]) that stores rows in place."""
    with kernel("plain_cache_write", width, page, cdtype) as f:
        n, b, p, number = symbols("n b p pages")
        ROWS = f.tensor("rows", "f32", n, width)
        SEQ, POS = f.tensor("seq", "i32", n), f.tensor("pos", "i32", n)
        TABLE = f.tensor("table", "i32", b, p)
        CACHE = pages(f, number, page, cdtype, width)
        with loop(n) as i:
            place = T.bind(T.Cast("int64", TABLE[SEQ[i], POS[i] // page])), T.bind(POS[i] % page)
            with new_row(CACHE, place, cdtype, width) as write, loop(width) as j:
                write(j, ROWS[i, j], 1)
    return f.function


PLAIN = table(plain, cache_write)
"""Every op that a traced model may still hold when no pass has run, but for those that have a kernel anyway."""
