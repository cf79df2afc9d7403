"""Products with quantised weights on the tiles of AMX.

A group of 64 codes of 16 columns is one tile, as it was packed if they have 8 bits; those of 4 are widened to it. A
tile of sums is exact. It is scaled and added as everywhere (`quant.coded_tile`), so the bits are those of a single row,
for which instructions for vectors do.
"""

from __future__ import annotations

from tvm.script import tirx as T

from deepzig.ir.quantize import GROUP
from deepzig.targets.emit import Buffer, Expr, loop, store

from .amx import ROWS, keep, load, operate
from .emit import vector_of, vector_sum, workspace
from .integers import NIBBLES, STEP, Codes, nibbles
from .layout import LANES
from .product import Columns, Input, Output, scale_of
from .quant import width
from .vector import at, dtype, fma, prefetch, splat

AHEAD = 2
"""Groups to prefetch ahead."""
SUMS, LEFT, RIGHT = 0, 1, 2
"""Tiles."""
TILE = (ROWS, 2)
"""Rows that are multiplied together, and blocks of columns that a thread takes at once, one after the other."""


def rows_by_tiles(columns: Columns, begin: Expr, end: Expr, x: Input, output: Output) -> None:
    """Rows begin..end-1 of the product.

    Args:
        columns: right matrix, `q8` or `q4`.
        begin: first row.
        end: what follows the last row.
        x: left matrix, from `quant.coded` with memory for a tile's rows beyond the last; rows follow each other in it.
        output: (row, sums of the blocks) -> emits the stores.
    """
    sums = workspace(len(columns.blocks), ROWS, LANES)
    exact, widened = workspace(ROWS, LANES, dtype="int32"), workspace(ROWS, LANES, dtype="uint32")
    with loop((end - begin + (ROWS - 1)) // ROWS) as t:
        first = T.bind(begin + t * ROWS)
        for b, block in enumerate(columns.blocks):
            _sums(columns, block, [x(first + i) for i in range(ROWS)], exact, widened, sums, b)
        with loop(T.min(end - first, ROWS)) as i:
            output(first + i, [vector_of(sums[b, i, at(0)]) for b in range(len(columns.blocks))])


def _sums(
    columns: Columns, block: tuple[Expr, ...], rows: list[Codes], exact: Buffer, widened: Buffer, sums: Buffer, b: int
) -> None:  # fmt: skip
    """The sums of a tile of rows with one block: in registers, then stored."""
    words = int(columns.weight.shape[-2]) - 1
    totals = [vector_sum() for _ in rows]
    with loop(-(-columns.size // GROUP)) as g:
        for word in range(words if columns.streamed else 0):
            prefetch(columns.weight[(*block, g + AHEAD, word, 0)])
        operate("tilezero", T.int8(SUMS))
        load(LEFT, rows[0].code(g * GROUP), width(columns.size))
        if columns.wdtype == "q8":
            load(RIGHT, columns.weight[(*block, g, 0, 0)])
        else:
            _widen(columns.weight, (*block, g), words, widened)
            load(RIGHT, widened[0, 0])
        operate("tdpbssd", T.int8(SUMS), T.int8(LEFT), T.int8(RIGHT))
        keep(SUMS, exact[0, 0])
        scale = T.bind(scale_of(columns.weight, block, g))
        for i, (row, total) in enumerate(zip(rows, totals, strict=True)):
            value = T.Cast(dtype("float32"), exact[i, at(0)])
            store(total, fma(value, scale * splat(row.scale(g)), total[at(0)]), at(0))
    for i, total in enumerate(totals):
        store(sums, total[at(0)], b, i, at(0))


def _widen(weight: Buffer, group: tuple[Expr, ...], words: int, widened: Buffer) -> None:
    """Emit the codes of 4 bits of a group as bytes, less the 8 that was added to them."""
    for word in range(words):
        packed = T.bind(weight[(*group, word, at(0))])
        for shift, further in NIBBLES:
            bytes_ = T.reinterpret(dtype("int8", STEP * LANES), nibbles(packed, shift, LANES))
            signed = T.reinterpret(dtype("uint32"), bytes_ - T.broadcast(T.int8(8), STEP * LANES))
            store(widened, signed, word + further, at(0))
