"""Mixture of experts for one row, where each launch costs time: nothing is sorted, and the last product adds up.

A slot is a choice of the row, or a shared expert after them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, Kernel, kernel, loop, store, symbols, when

from .device import Gpu
from .emit import launch, view
from .few import aligned, lanes_for, resident
from .lanes import THREADS, Memory, Weight, multiply
from .layout import pitch, stored
from .product import gated
from .source import Source


class _Slots:
    """What the slots of the first row are, by the parameters that say it."""

    def __init__(self, f: Kernel, rows: Expr, experts: int, top_k: int, shared: int) -> None:
        self.top_k, self.first_shared = top_k, experts - shared
        self._ids = f.tensor("ids", "i32", rows, top_k)

    def expert(self, j: Expr) -> Expr:
        """The expert of a slot."""
        chosen = T.Cast("int64", self._ids[0, T.min(j, T.int64(self.top_k - 1))])
        return T.bind(T.Select(j < self.top_k, chosen, j - self.top_k + self.first_shared))

    def weight(self, weights: Buffer, j: Expr) -> Expr:
        """The weight of a slot."""
        return T.bind(T.Select(j < self.top_k, weights[0, T.min(j, T.int64(self.top_k - 1))], T.float32(1)))


@cache
def one_gate_up(gpu: Gpu, k: int, i: int, experts: int, top_k: int, shared: int, wdtype: str) -> PrimFunc:
    """Kernel for silu(x gate^T) * (x up^T) of every slot, which does nothing unless there is one row.

    Args:
        gpu: the device.
        k: inputs.
        i: outputs of an expert.
        experts: all experts in the stack.
        top_k: experts of a row.
        shared: how many of the experts serve every row.
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.

    Returns:
        (X f32[rows, k], IDS i32[rows, top_k], W[experts, 2 * i, pitch] as of `moe.moe_gate_up`,
        A f32[rows, slots, i]). A is written.
    """
    slots = top_k + shared
    with kernel("one_gate_up", f"k{k}", f"i{i}", f"e{experts}", f"top{top_k}", f"shared{shared}", wdtype) as f:
        (rows,) = symbols("rows")
        X = f.tensor("x", "f32", rows, k)
        of = _Slots(f, rows, experts, top_k, shared)
        W = f.tensor("w", stored(wdtype), experts, 2 * i, pitch(k, wdtype))
        A = f.tensor("a", "f32", rows, slots, i)
        lanes = lanes_for(k, i, wdtype, halves=2, batch=slots)
        with when(rows == 1), launch(THREADS, lanes.blocks, slots, resident=resident(wdtype, 1)) as t:
            block, j = t.block
            e = of.expert(j)

            def write(r: Expr, column: Expr, *sums: Expr) -> None:
                store(A, gated(*sums), 0, j, column)

            weight = Weight(W, lambda output, half: (e, output * 2 + half))
            memory = Memory(gpu, lanes, 1, norm=False)
            multiply(
                t, lanes, memory, Source(X, k, 0, aligned(k)), lambda r: r, weight, block, 1, T.int64(1), write
            )  # fmt: skip
    return f.function


@cache
def one_down(
    gpu: Gpu, i: int, h: int, experts: int, top_k: int, shared: int, wdtype: str, *, residual: bool
) -> PrimFunc:
    """Kernel for y = residual + weighted sum of a down^T over the slots, which does nothing unless there is one row.

    Args:
        gpu: the device.
        i: inputs of an expert.
        h: outputs.
        experts: all experts in the stack.
        top_k: experts of a row.
        shared: how many of the experts serve every row.
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
        residual: whether a matrix of y's shape is added.

    Returns:
        (A f32[rows, slots, i] from `one_gate_up`, IDS i32[rows, top_k], WEIGHTS f32[rows, top_k], W[experts, h, pitch]
        as of `moe.moe_down`, residual f32[rows, h]?, Y f32[rows, h]). Y is written.
    """
    slots, added = top_k + shared, ["res"] if residual else []
    with kernel("one_down", f"i{i}", f"h{h}", f"e{experts}", f"top{top_k}", f"shared{shared}", wdtype, *added) as f:
        (rows,) = symbols("rows")
        A = f.tensor("a", "f32", rows, slots, i)
        of = _Slots(f, rows, experts, top_k, shared)
        WEIGHTS = f.tensor("weights", "f32", rows, top_k)
        W = f.tensor("w", stored(wdtype), experts, h, pitch(i, wdtype))
        RESIDUAL: Any = f.tensor("residual", "f32", rows, h) if residual else None
        Y = f.tensor("y", "f32", rows, h)
        source = Source(view(A, rows * slots, i), i, 0, aligned(i))
        lanes = lanes_for(i, h, wdtype)
        with when(rows == 1), launch(THREADS, lanes.blocks, resident=resident(wdtype, 1)) as t:
            memory = Memory(gpu, lanes, 1, norm=False)
            with loop(slots) as j:
                e, factor = of.expert(j), of.weight(WEIGHTS, j)

                def write(r: Expr, column: Expr, value: Expr) -> None:
                    begun = T.float32(0) if RESIDUAL is None else RESIDUAL[0, column]
                    store(Y, T.Select(j == 0, begun, Y[0, column]) + factor * value, 0, column)

                weight = Weight(W, lambda output, half: (e, output))
                multiply(t, lanes, memory, source, lambda r: r + j, weight, t.block[0], 1, T.int64(1), write)
    return f.function
