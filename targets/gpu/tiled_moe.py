"""Kernels for many rows of a mixture of experts: rows sorted by expert, each expert's multiplied tile by tile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, kernel, loop, store, symbols, when

from .device import SUBGROUP, Gpu
from .emit import Threads, launch, subgroup_max, uniform, variable
from .layout import pitch, stored
from .product import gated
from .tiles import Multiplier, Source


@dataclass(frozen=True)
class Experts:
    """The products of a mixture.

    Attributes:
        k: inputs of an expert.
        n: outputs of an expert.
        wdtype: element type of the weight.
        experts: how many there are.
        slots: experts of a row.
        gathered: whether the rows are those of x, one for all of their slots; else slots have rows of their own.
        gated: whether each output has two rows of the weight, and is silu(x gate^T) * (x up^T).
        part: which experts the weight holds, from and to; None: all.
    """

    k: int
    n: int
    wdtype: str
    experts: int
    slots: int
    gathered: bool = False
    gated: bool = False
    part: tuple[int, int] | None = None

    @property
    def names(self) -> list[str]:
        """The parts of a kernel's name that tell it from others."""
        flags = [name for name, on in (("gathered", self.gathered), ("gated", self.gated)) if on]
        part = [f"from{self.part[0]}to{self.part[1]}"] if self.part else []
        return [f"k{self.k}", f"n{self.n}", f"e{self.experts}", f"slots{self.slots}", self.wdtype, *flags, *part]


@cache
def tiled_experts(gpu: Gpu, product: Experts) -> PrimFunc:
    """Kernel for the products of all slots with the weights of their experts.

    Returns:
        (PREPARED from `operands.prepare`: [rows, 1, pitch] if gathered, else [rows, slots, pitch] in their order,
        OFFSETS i32[experts + 1], ROWS i32[rows, slots]? if gathered, from `moe.moe_sort`,
        W [experts of the part, n or 2 n, pitch] packed by `layout.pack_rows`, Y f32[rows, slots, n]). Y is written, in
        the order of slots.
    """
    slots, halves = product.slots, 2 if product.gated else 1
    columns = product.n * halves
    begin, end = product.part or (0, product.experts)
    form = Multiplier.of(gpu, product.k, columns, product.wdtype, small=True)
    tile, encoding = form.tile, form.encoding
    with kernel("tiled_experts", *product.names) as f:
        (rows,) = symbols("rows")
        X = f.tensor("prepared", encoding.dtype, rows, 1 if product.gathered else slots, encoding.pitch)
        OFFSETS = f.tensor("offsets", "i32", product.experts + 1)
        ROWS: Any = f.tensor("slot_rows", "i32", rows, slots) if product.gathered else None
        W = f.tensor("w", stored(product.wdtype), end - begin, columns, pitch(product.k, product.wdtype))
        Y = f.tensor("y", "f32", rows, slots, product.n)
        tiles = rows * slots // tile.rows + (end - begin)
        with when(rows > 0), launch(tile.threads, tiles, -(-columns // tile.columns)) as t:
            e = expert_of(t, OFFSETS, begin, end, tile.rows)
            with when(e >= 0):
                before = T.bind(_offset(OFFSETS, begin + e))
                after = T.bind(_offset(OFFSETS, begin + e + 1))
                first = T.bind(before + (t.block[0] - _tile(OFFSETS, begin, e, tile.rows)) * tile.rows)
                with when(first < after):
                    column = t.block[1] * tile.columns

                    def slot_of(row: Expr) -> Expr:
                        slot = T.min(first + row, after - 1)
                        return T.Cast("int64", ROWS[flat(slot, slots)]) if product.gathered else slot

                    left = Source(X, slot_of, lambda row: (row, T.int64(0)) if product.gathered else flat(row, slots))
                    right = Source(W, lambda row: T.min(column + row, columns - 1), lambda row: (e, row))

                    def output(row: Expr, i: Expr, *sums: Expr) -> None:
                        slot, i = first + row, column // halves + i
                        with when(tirx.all(slot < after, i < product.n)):
                            store(Y, gated(*sums) if product.gated else sums[0], *flat(slot, slots), i)

                    form.multiply(t, after - first, left, right, output, halves)
    return f.function


def expert_of(t: Threads, offsets: Buffer, begin: int, end: int, size: int) -> Expr:
    """The expert, counted from `begin`, that a block of the first dimension of the grid has a tile of; -1 if none has.

    An expert's tiles are those from `_tile` of it to `_tile` of the next one: as many as it needs, or one more. So no
    block has to count the tiles of the experts before, and there are no more than slots // size + experts.
    """
    found = variable(T.int32(-1), "int32")
    with loop(-(-(end - begin) // SUBGROUP)) as turn:
        e = turn * SUBGROUP + t.lane
        with when(e < end - begin):
            first, last = (_tile(offsets, begin, other, size) for other in (e, e + 1))
            with when(tirx.all(first <= t.block[0], t.block[0] < last)):
                store(found, T.Cast("int32", e), 0)
    return T.bind(T.Cast("int64", uniform(subgroup_max(found[0]))))


def _tile(offsets: Buffer, begin: int, e: Expr, size: int) -> Expr:
    return (_offset(offsets, begin + e) - _offset(offsets, T.int64(begin))) // size + e


def _offset(offsets: Buffer, e: Expr) -> Expr:
    return T.Cast("int64", offsets[e])


def flat(slot: Expr, slots: int) -> tuple[Expr, Expr]:
    """Where a slot is in an array over slots that has the shape [rows, slots]."""
    return slot // slots, slot % slots
