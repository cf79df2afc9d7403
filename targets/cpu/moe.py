"""Mixture of experts: rows sorted by expert, gate and up in one product, down with the weighted sum.

A slot is one (row, expert) pair. Slots are ordered by expert, then by row, so that an expert's rows are
multiplied together and its weights are read once. Shared experts come last in the stack and serve every row.
Threads share the columns, and each walks the experts that have rows: work is even whichever these are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, kernel, loop, store, symbols, when

from .emit import shared, workspace
from .features import Vectors
from .layout import LANES, blocks, inner, stored
from .linear import gated
from .methods import method_of
from .product import (
    Columns,
    Input,
    adjacent,
    by_columns,
    rows_of,
    stream,
)
from .vector import fma, splat


@cache
def moe_sort(experts: int, top_k: int, shared: int) -> PrimFunc:
    """Kernel for a counting sort of slots by expert.

    Args:
        experts: routed experts.
        top_k: experts of a row.
        shared: shared experts; their ids follow the routed ones, their weight is 1.

    Returns:
        (IDS i32[rows, top_k], WEIGHTS f32[rows, top_k], OFFSETS i32[experts + shared + 1],
        ROWS i32[rows, slots], SLOT_WEIGHTS f32[rows, slots]) with slots = top_k + shared; the last three are
        written. Expert e has the slots OFFSETS[e] up to OFFSETS[e + 1]; ROWS and SLOT_WEIGHTS are arrays over
        slots in the dress of matrices. Ids are not checked.
    """
    every, slots = experts + shared, top_k + shared
    with kernel("moe_sort", f"e{experts}", f"top{top_k}", f"shared{shared}") as f:
        (rows,) = symbols("rows")
        IDS = f.tensor("ids", "i32", rows, top_k)
        WEIGHTS = f.tensor("weights", "f32", rows, top_k)
        OFFSETS = f.tensor("offsets", "i32", every + 1)
        ROWS = f.tensor("slot_rows", "i32", rows, slots)
        SLOT_WEIGHTS = f.tensor("slot_weights", "f32", rows, slots)
        next_slot = workspace(every, dtype="int32")

        def put(slot: Expr, row: Expr, weight: Expr) -> None:
            store(ROWS, T.Cast("int32", row), *flat(slot, slots))
            store(SLOT_WEIGHTS, weight, *flat(slot, slots))

        with loop(every + 1) as e:
            store(OFFSETS, T.int32(0), e)
        with loop(rows) as row, loop(top_k) as j:
            following = T.bind(IDS[row, j] + 1)
            store(OFFSETS, OFFSETS[following] + 1, following)
        with loop(every + 1, experts + 1) as following:
            store(OFFSETS, T.Cast("int32", rows), following)
        with loop(every) as e:
            store(next_slot, OFFSETS[e], e)
            store(OFFSETS, OFFSETS[e] + OFFSETS[e + 1], e + 1)
        with loop(rows) as row:
            with loop(top_k) as j:
                e = T.bind(IDS[row, j])
                put(T.bind(next_slot[e]), row, WEIGHTS[row, j])
                store(next_slot, next_slot[e] + 1, e)
            with loop(every, experts) as e:
                put(OFFSETS[e] + row, row, T.float32(1))
    return f.function


@cache
def moe_gate_up(k: int, i: int, experts: int, slots: int, wdtype: str, *, vectors: Vectors) -> PrimFunc:
    """Kernel for silu(x gate^T) * (x up^T) of every slot.

    Args:
        k: inputs.
        i: outputs of an expert.
        experts: all experts in the stack.
        slots: slots of a row.
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
        vectors: registers of the CPU.

    Returns:
        (X f32[rows, k], OFFSETS, ROWS from `moe_sort`, W packed by `pack_gate_up`, A f32[rows, slots, i]). A is
        written, in the order of slots.
    """
    with kernel("moe_gate_up", f"k{k}", f"i{i}", f"e{experts}", f"slots{slots}", wdtype) as f:
        (rows,) = symbols("rows")
        X = f.tensor("x", "f32", rows, k)
        OFFSETS = f.tensor("offsets", "i32", experts + 1)
        ROWS = f.tensor("slot_rows", "i32", rows, slots)
        W = f.tensor("w", stored(wdtype), experts, blocks(i), 2, *inner(k, wdtype), LANES)
        A = f.tensor("a", "f32", rows, slots, i)

        def by_slot(read: Input) -> Input:
            return lambda slot: read(T.bind(T.Cast("int64", ROWS[flat(slot, slots)])))

        method = method_of(wdtype, vectors)
        if method.consecutive:
            x = method.encode(by_slot(rows_of(X)), rows * slots, k)
        else:
            x = by_slot(method.encode(rows_of(X), rows, k))

        def columns(e: Expr, taken: Sequence[Expr]) -> Columns:
            return Columns(W, [(e, block, T.int64(half)) for block in taken for half in range(2)], k, wdtype)

        def output(slot: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
            def write(column: Expr, value: Expr, _: int) -> None:
                store(A, value, *flat(slot, slots), column)

            by_columns(gated(*sums), block, i, write)

        count = max(method.tile[1] // 2, 1)
        parts = -(-blocks(i) // count)

        def one(e: Expr, slot: Expr) -> None:
            with shared(parts) as part, loop(T.min((part + 1) * count, blocks(i)), part * count) as block:
                output(slot, block, stream(columns(e, [block]), slot, x, method))

        def many(e: Expr, begin: Expr, end: Expr) -> None:
            with shared(parts) as part:
                taken, write = adjacent(T.bind(part * count), count, blocks(i), partial(columns, e), output, 2)
                method.rows(taken, begin, end, x, write)

        with method.threads():
            each_expert(OFFSETS, experts, one if method.alone else None, many)
    return f.function


@cache
def moe_down(i: int, h: int, experts: int, slots: int, wdtype: str, *, residual: bool, vectors: Vectors) -> PrimFunc:
    """Kernel for y = residual + weighted sum of a row's slots, each a down^T, in ascending order of experts.

    Args:
        i: inputs of an expert.
        h: outputs.
        experts: all experts in the stack.
        slots: slots of a row.
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
        residual: whether a matrix of y's shape is added.
        vectors: registers of the CPU.

    Returns:
        (A f32[rows, slots, i] from `moe_gate_up`, OFFSETS, ROWS, SLOT_WEIGHTS from `moe_sort`, W packed by
        `pack_columns`, residual f32[rows, h]?, Y f32[rows, h]); the last is written.
    """
    name = ["moe_down", f"i{i}", f"h{h}", f"e{experts}", f"slots{slots}", wdtype]
    with kernel(*name, *(["res"] if residual else [])) as f:
        (rows,) = symbols("rows")
        A = f.tensor("a", "f32", rows, slots, i)
        OFFSETS = f.tensor("offsets", "i32", experts + 1)
        ROWS = f.tensor("slot_rows", "i32", rows, slots)
        SLOT_WEIGHTS = f.tensor("slot_weights", "f32", rows, slots)
        W = f.tensor("w", stored(wdtype), experts, blocks(h), *inner(i, wdtype), LANES)
        RESIDUAL: Any = f.tensor("residual", "f32", rows, h) if residual else None
        Y = f.tensor("y", "f32", rows, h)

        method = method_of(wdtype, vectors)
        x = method.encode(lambda slot: lambda j: A[(*flat(slot, slots), j)], rows * slots, i)

        def output(slot: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
            row = T.bind(T.Cast("int64", ROWS[flat(slot, slots)]))
            weight = T.bind(SLOT_WEIGHTS[flat(slot, slots)])

            def write(column: Expr, value: Expr, lanes: int) -> None:
                store(Y, fma(splat(weight, lanes), value, Y[row, column], lanes), row, column)

            by_columns(sums[0], block, h, write)

        held = method.abreast
        count = -(-method.tile[1] // held) * held
        parts = -(-blocks(h) // count)

        def columns(e: Expr, taken: Sequence[Expr]) -> Columns:
            return Columns(W, [(e, block) for block in taken], i, wdtype)

        def one(e: Expr, slot: Expr) -> None:
            with shared(parts) as part, loop(T.min(count, blocks(h) - part * count + (held - 1)) // held) as some:
                taken, write = adjacent(
                    T.bind(part * count + some * held), held, blocks(h), partial(columns, e), output, 1
                )
                write(slot, stream(taken, slot, x, method))

        def many(e: Expr, begin: Expr, end: Expr) -> None:
            with shared(parts) as part:
                taken, write = adjacent(T.bind(part * count), count, blocks(h), partial(columns, e), output, 1)
                method.rows(taken, begin, end, x, write)

        with method.threads():
            # a thread has the same columns of all experts, so sums need no lock and have one order
            with shared(parts) as part:
                first, end = part * count * LANES, T.min((part + 1) * count * LANES, h)
                with loop(rows) as row, loop(end, first) as column:
                    store(Y, RESIDUAL[row, column] if residual else T.float32(0), row, column)
            each_expert(OFFSETS, experts, one if method.alone else None, many)
    return f.function


def each_expert(
    offsets: Buffer, experts: int, one: Callable[[Expr, Expr], None] | None, many: Callable[[Expr, Expr, Expr], None]
) -> None:
    """Emit one(expert, slot) for experts with one slot, many(expert, first slot, end) for those with more.

    Without `one`, one slot is many.
    """
    with loop(experts) as e:
        begin = T.bind(T.Cast("int64", offsets[e]))
        end = T.bind(T.Cast("int64", offsets[e + 1]))
        if one:
            with when(end == begin + 1):
                one(e, begin)
        with when(end > begin + (1 if one else 0)):
            many(e, begin, end)


def flat(slot: Expr, slots: int) -> tuple[Expr, Expr]:
    """Where a slot is in an array over slots that has the shape [rows, slots]."""
    return slot // slots, slot % slots
