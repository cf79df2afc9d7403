"""Products with quantised weights: exact sums of integers in groups, each scaled and added in f32.

Rows are rounded to 8 bits first (`deepzig.ir.quantize`). A sum of integers has one value however it is computed, and
the groups are added in order, so the bits of a result depend neither on the instructions nor on the tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tvm.script import tirx as T

from deepzig.ir.quantize import GROUP
from deepzig.targets.emit import Buffer, Expr, loop, store

from .emit import local, vector_sum, workspace
from .integers import DOTS, FLUSH, NIBBLES, STEP, Codes, nibble, signed_byte
from .layout import LANES
from .product import Columns, Encoding, Input, scale_of
from .vector import at, dtype, fma, splat, tree_max

TURNS = 2
"""Sums of integers that a row alone has."""


def width(size: int) -> int:
    """Codes between rows: whole lines of the cache, an odd number of them, so that rows go to different sets of it."""
    return (-(-size // GROUP) | 1) * GROUP


def coded(x: Input, rows: Expr, size: int, spare: int = 0) -> Encoding:
    """The rounding of rows to 8 bits into workspaces, from where `Codes` are read.

    Args:
        x: row -> index -> element, or index vector -> elements.
        rows: how many rows.
        size: elements of a row.
        spare: for how many rows more there is to be memory; what they hold is not meaningful.
    """
    groups = -(-size // GROUP)
    codes = workspace(rows + spare, width(size), dtype="int8")
    scales, totals = workspace(rows + spare, groups), workspace(rows + spare, groups, dtype="int32")

    def one(row: Expr) -> None:
        elements = x(row)

        def group(g: Expr, count: int) -> None:
            values = [vector_sum() for _ in range(GROUP // LANES)]
            for i, vector in enumerate(values):
                first = g * GROUP + i * LANES
                if (i + 1) * LANES <= count:
                    store(vector, elements(at(first)), at(0))
                else:
                    with loop(max(count - i * LANES, 0)) as lane:
                        store(vector, elements(first + lane), lane)
            integers, scale = round_group(values)
            for i, integer in enumerate(integers):
                store(codes, T.Cast(dtype("int8"), integer), row, at(g * GROUP + i * LANES))
            both = (integers[0] + integers[1]) + (integers[2] + integers[3])
            store(totals, T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", both), row, g)
            store(scales, scale, row, g)

        with loop(size // GROUP) as g:
            group(g, GROUP)
        if size % GROUP:
            group(T.int64(size // GROUP), size % GROUP)

    def row_codes(row: Expr) -> Codes:
        return Codes(
            lambda i: codes[row, i],
            lambda g, word: T.reinterpret("int32", codes[row, T.ramp(g * GROUP + word * STEP, 1, STEP)]),
            lambda g: scales[row, g],
            lambda g: totals[row, g],
        )

    return Encoding(row_codes, one)


def round_group(values: Sequence[Buffer]) -> tuple[list[Expr], Expr]:
    """Emit the rounding of 64 numbers, in local vectors, to 8 bits: the integers, i32 vectors, and the scale."""
    sizes = [T.max(v[at(0)], -v[at(0)]) for v in values]
    largest = T.bind(tree_max(T.bind(T.max(T.max(sizes[0], sizes[1]), T.max(sizes[2], sizes[3])))))
    inverse = T.bind(T.Select(largest > T.float32(0), T.float32(127) / largest, T.float32(0)))
    integers = []
    for vector in values:
        near = T.call_llvm_pure_intrin(dtype("float32"), "llvm.rint", vector[at(0)] * splat(inverse))
        integers.append(T.bind(T.Cast(dtype("int32"), near)))
    return integers, largest / T.float32(127)


def coded_tile(columns: Columns, rows: Sequence[Expr], x: Input, integers: str) -> list[list[Buffer]]:
    """Sums over k of x(row)(k) * weight[k] for each row and block.

    Args:
        columns: right matrix, packed by `pack_quantized`.
        rows: the rows of the tile.
        x: left matrix, from `coded`.
        integers: the instructions to use; see `Vectors`.

    Returns:
        Of each row, for each block, a local vector of f32.
    """
    weight, blocks, wdtype = columns.weight, columns.blocks, columns.wdtype
    lines = [x(row) for row in rows]
    groups = -(-columns.size // GROUP)
    words = GROUP // STEP if wdtype == "q8" else GROUP // STEP // 2
    alone = len(rows) * len(blocks) == 1
    sums = [[vector_sum() for _ in blocks] for _ in rows]
    # sums of integers are exact: words may take turns with several, so that one need not wait for another
    turns = [[[local(LANES, "int32") for _ in blocks] for _ in rows] for _ in range(TURNS if alone else 1)]
    dots = [DOTS[integers](lines, blocks, parts) for parts in turns]
    with loop(groups) as g:
        for number, parts in enumerate(turns):
            added = 0 if number else dots[0].offset[wdtype]
            for codes, line in zip(lines, parts, strict=True):
                first = T.broadcast(codes.total(g) * -added if added else T.int32(0), LANES)
                for part in line:
                    store(part, first, at(0))
        coming = [columns.coming(block, g * (words + 1), words + 1) for block in blocks if columns.ahead]
        with loop(words // FLUSH) as outer:
            for dot in dots:
                dot.begin()
            for step in range(FLUSH):
                word = T.bind(outer * FLUSH + step)
                for column, block in enumerate(blocks):
                    if coming:
                        columns.fetch(coming[column], word)
                    dot = dots[step % len(dots)]
                    add = dot.add_q8 if wdtype == "q8" else dot.add_q4
                    add(column, partial(_lanes, weight, (*block, g, word)), g, word)
            for dot in dots:
                dot.end(wdtype)
        for column, block in enumerate(blocks):
            if coming:
                columns.fetch(coming[column], words)
            scale = T.bind(scale_of(weight, block, g))
            for codes, line, *parts in zip(lines, sums, *turns, strict=True):
                exact = sum((part[column][at(0)] for part in parts[1:]), parts[0][column][at(0)])
                value = T.Cast(dtype("float32"), exact)
                total = line[column]
                store(total, fma(value, scale * splat(codes.scale(g)), total[at(0)]), at(0))
    return sums


def widen_integers(words: Expr, wdtype: str) -> list[tuple[int, Expr]]:
    """The codes in a word of each column as f32, and how many elements after the word's first each is."""
    if wdtype == "q8":
        signed = T.bind(T.reinterpret(dtype("int32"), words))
        return [(i, T.Cast(dtype("float32"), signed_byte(signed, i, LANES))) for i in range(STEP)]
    places = [(8 * i + shift, STEP * first + i) for shift, first in NIBBLES for i in range(STEP)]
    return [(place, T.Cast(dtype("float32"), nibble(words, shift)) - splat(8.0)) for shift, place in places]


def _lanes(weight: Buffer, index: tuple[Expr, ...], lanes: Expr) -> Expr:
    return weight[(*index, lanes)]
