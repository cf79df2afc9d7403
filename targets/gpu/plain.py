"""Kernels of what passes left unfused: a thread for each element of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import s_tir, tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.ir import Attr, TensorType
from deepzig.targets.emit import Expr, kernel, store, symbols
from deepzig.targets.plain import compute, table

from .cache import as_words, pages, row_columns, widened, write_row
from .emit import barrier, launch, shared
from .norm import threads_for

BLOCKS, THREADS = 64, 256
"""Of each launch, whatever the number of elements, which may be 0."""


def plain(op: str, inputs: Sequence[TensorType], attrs: Mapping[str, Attr], output: TensorType) -> PrimFunc:
    """Kernel (inputs in their physical types, output), with a launch for each stage."""
    function = compute(op, inputs, attrs, output, _widen)
    name = str(function.attrs["global_symbol"])
    schedule: Any = s_tir.Schedule(function)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = list(zip(schedule.get_loops(block), schedule.get(block).iter_vars, strict=True))
        elements = [loop for loop, var in loops if var.iter_type == tirx.IterVar.DataPar]
        terms = [loop for loop, var in loops if var.iter_type != tirx.IterVar.DataPar]
        schedule.reorder(*elements, *terms)
        turn, block_loop, thread = schedule.split(schedule.fuse(*elements), factors=[None, BLOCKS, THREADS])
        schedule.reorder(block_loop, thread, turn)
        schedule.bind(block_loop, "blockIdx.x")
        schedule.bind(thread, "threadIdx.x")
    return schedule.mod["main"].with_attr("global_symbol", name)


def _widen(bits: Expr, dtype: str) -> Expr:
    word = T.Cast("uint32", bits)
    # tensor expressions have no place to bind the result of a device function in
    return T.call_pure_extern("float32", "dz_half", word) if dtype == "f16" else widened(word, dtype)


def cache_write(width: int, page: int, cdtype: str) -> PrimFunc:
    """Kernel (rows f32[n, width], seq, pos, table, cache[pages, page, ...]) that stores rows in place."""
    columns = row_columns(cdtype, width)
    with kernel("plain_cache_write", width, page, cdtype) as f:
        n, b, p, number = symbols("n b p pages")
        ROWS = f.tensor("rows", "f32", n, width)
        SEQ, POS = f.tensor("seq", "i32", n), f.tensor("pos", "i32", n)
        TABLE = f.tensor("table", "i32", b, p)
        CACHE = as_words(pages(f, number, page, cdtype, width), cdtype)
        with launch(threads_for(columns), n) as t:
            i = t.block[0]
            place = T.bind(T.Cast("int64", TABLE[SEQ[i], POS[i] // page])), T.bind(T.Cast("int64", POS[i] % page))
            row = shared(columns)
            with t.each(columns) as j:
                store(row, T.if_then_else(j < width, ROWS[i, T.min(j, T.int64(width - 1))], T.float32(0)), j)
            barrier()
            write_row(t, CACHE, place, row, cdtype, width)
    return f.function


PLAIN = table(plain, cache_write)
"""Every op that a traced model may still hold when no pass has run, but for those that have a kernel anyway."""
