"""Mixture of experts for few rows: slots sorted by expert, gate and up in one product, down, then the weighted sum.

A slot is one (row, expert) pair. Slots are ordered by expert, then by row, so that an expert's rows are multiplied
together and its weights are read once. Shared experts come last in the stack and serve every row. Weights of many
experts may be cut into shards of some experts each: each is a launch, which leaves the slots of others alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, either, kernel, loop, store, symbols, when

from .device import Gpu
from .emit import barrier, launch, shared, variable, view
from .few import aligned, lanes_for, resident, tile_of
from .lanes import THREADS, Memory, Weight, multiply
from .layout import pitch, stored
from .product import gated
from .source import Source

TILES = (1, 4)
"""Rows of an expert that are multiplied together. Most experts have one row of a decode step: sums of more rows would
leave registers to fewer blocks."""

IDS_AT_ONCE = 1024
"""Ids in shared memory while slots are sorted."""


@cache
def moe_sort(experts: int, top_k: int, shared_experts: int, *, least: int = 1) -> PrimFunc:
    """Kernel for a counting sort of slots by expert.

    Args:
        experts: routed experts.
        top_k: experts of a row.
        shared_experts: their ids follow the routed ones, their weight is 1.
        least: fewer rows are left to `moe_one`.

    Returns:
        (IDS i32[rows, top_k], WEIGHTS f32[rows, top_k], OFFSETS i32[experts + shared_experts + 1],
        ROWS i32[rows, slots], SLOT_WEIGHTS f32[rows, slots], SLOT_EXPERTS i32[rows, slots], PLACES i32[rows, slots])
        with slots = top_k + shared_experts; the last five are written. Expert e has the slots OFFSETS[e] up to
        OFFSETS[e + 1]; the row, weight and expert of a slot are in arrays over slots in the dress of matrices. PLACES
        has the slot of each of a row's choices, then those of the shared experts. Ids are not checked.
    """
    every, slots = experts + shared_experts, top_k + shared_experts
    with kernel("gpu_moe_sort", f"e{experts}", f"top{top_k}", f"shared{shared_experts}", *_least(least)) as f:
        (rows,) = symbols("rows")
        IDS = f.tensor("ids", "i32", rows, top_k)
        WEIGHTS = f.tensor("weights", "f32", rows, top_k)
        OFFSETS = f.tensor("offsets", "i32", every + 1)
        ROWS = f.tensor("slot_rows", "i32", rows, slots)
        SLOT_WEIGHTS = f.tensor("slot_weights", "f32", rows, slots)
        SLOT_EXPERTS = f.tensor("slot_experts", "i32", rows, slots)
        PLACES = f.tensor("places", "i32", rows, slots)
        with when(rows >= least) if least > 1 else nullcontext(), launch(THREADS, 1) as t:
            ids, next_slot = shared(IDS_AT_ONCE, dtype="int32"), shared(experts + 1, dtype="int32")
            total = rows * top_k

            def put(slot: Expr, row: Expr, j: Expr, e: Expr, weight: Expr) -> None:
                store(ROWS, T.Cast("int32", row), *flat(slot, slots))
                store(SLOT_WEIGHTS, weight, *flat(slot, slots))
                store(SLOT_EXPERTS, T.Cast("int32", e), *flat(slot, slots))
                store(PLACES, T.Cast("int32", slot), row, j)

            def each_id(body: Callable[[Expr, Expr, Expr], None]) -> None:
                """Emit body(expert, id, its place among all ids), a thread for each expert and one more."""
                with loop((total + IDS_AT_ONCE - 1) // IDS_AT_ONCE) as part:
                    first = T.bind(part * IDS_AT_ONCE)
                    count = T.bind(T.min(total - first, IDS_AT_ONCE))
                    barrier()
                    with t.each(count) as i:
                        store(ids, IDS[flat(first + i, top_k)], i)
                    barrier()
                    with t.each(experts + 1) as e, loop(count) as i:
                        body(e, ids[i], first + i)

            # an expert's slots begin where there are as many ids below it
            with t.each(experts + 1) as e:
                store(next_slot, T.int32(0), e)
            each_id(lambda e, chosen, _: _count(next_slot, e, chosen))
            with t.each(experts + 1) as e:
                store(OFFSETS, next_slot[e], e)

            def place(e: Expr, chosen: Expr, i: Expr) -> None:
                with when(T.Cast("int64", chosen) == e):
                    slot = T.bind(next_slot[e])
                    row, j = flat(i, top_k)
                    put(T.Cast("int64", slot), row, j, e, WEIGHTS[row, j])
                    store(next_slot, slot + 1, e)

            each_id(place)
            for s in range(shared_experts):
                first = total + rows * s
                with when(t.thread == 0):
                    store(OFFSETS, T.Cast("int32", first + rows), experts + s + 1)
                with t.each(rows) as row:
                    put(first + row, row, T.int64(top_k + s), T.int64(experts + s), T.float32(1))
    return f.function


def _count(below: Buffer, e: Expr, chosen: Expr) -> None:
    with when(T.Cast("int64", chosen) < e):
        store(below, below[e] + 1, e)


@cache
def moe_gate_up(
    gpu: Gpu, k: int, i: int, experts: int, slots: int, wdtype: str, part: tuple[int, int] | None = None, *,
    least: int = 1,
) -> PrimFunc:  # fmt: skip
    """Kernel for silu(x gate^T) * (x up^T) of every slot.

    Args:
        gpu: the device.
        k: inputs.
        i: outputs of an expert.
        experts: all experts in the stack.
        slots: slots of a row.
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
        part: the experts of the shard, from and to; None: all.
        least: fewer rows are left to `moe_one`.

    Returns:
        (X f32[rows, k], OFFSETS, ROWS, SLOT_EXPERTS from `moe_sort`, W[experts of the shard, 2 * i, pitch] packed by
        `layout.pack_rows`, gate and up rows in turns, A f32[rows, slots, i]). A is written, in the order of slots.
    """
    with kernel(
        "few_gate_up", f"k{k}", f"i{i}", f"e{experts}", f"slots{slots}", wdtype, *_part(part), *_least(least)
    ) as f:
        (rows,) = symbols("rows")
        X = f.tensor("x", "f32", rows, k)
        OFFSETS = f.tensor("offsets", "i32", experts + 1)
        ROWS = f.tensor("slot_rows", "i32", rows, slots)
        SLOT_EXPERTS = f.tensor("slot_experts", "i32", rows, slots)
        begin, end = part or (0, experts)
        W = f.tensor("w", stored(wdtype), end - begin, 2 * i, pitch(k, wdtype))
        A = f.tensor("a", "f32", rows, slots, i)

        def write(slot: Expr, column: Expr, *sums: Expr) -> None:
            store(A, gated(*sums), *flat(slot, slots), column)

        def row_of(slot: Expr) -> Expr:
            return T.Cast("int64", ROWS[flat(slot, slots)])

        source = Source(X, k, 0, aligned(k))
        _by_expert(
            gpu, OFFSETS, SLOT_EXPERTS, rows, experts, slots, (begin, end), source, row_of, W, i, wdtype, 2, write,
            least,
        )  # fmt: skip
    return f.function


@cache
def moe_down(
    gpu: Gpu, i: int, h: int, experts: int, slots: int, wdtype: str, part: tuple[int, int] | None = None, *,
    least: int = 1,
) -> PrimFunc:  # fmt: skip
    """Kernel for a down^T of every slot.

    Args:
        gpu: the device.
        i: inputs of an expert.
        h: outputs.
        experts: all experts in the stack.
        slots: slots of a row.
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
        part: the experts of the shard, from and to; None: all.
        least: fewer rows are left to `moe_one`.

    Returns:
        (A f32[rows, slots, i] from `moe_gate_up`, OFFSETS, SLOT_EXPERTS from `moe_sort`, W[experts of the shard, h,
        pitch] packed by `layout.pack_rows`, D f32[rows, slots, h]). D is written, in the order of slots.
    """
    with kernel(
        "few_down", f"i{i}", f"h{h}", f"e{experts}", f"slots{slots}", wdtype, *_part(part), *_least(least)
    ) as f:
        (rows,) = symbols("rows")
        A = f.tensor("a", "f32", rows, slots, i)
        OFFSETS = f.tensor("offsets", "i32", experts + 1)
        SLOT_EXPERTS = f.tensor("slot_experts", "i32", rows, slots)
        begin, end = part or (0, experts)
        W = f.tensor("w", stored(wdtype), end - begin, h, pitch(i, wdtype))
        D = f.tensor("d", "f32", rows, slots, h)

        def write(slot: Expr, column: Expr, value: Expr) -> None:
            store(D, value, *flat(slot, slots), column)

        source = Source(view(A, rows * slots, i), i, 0, aligned(i))
        _by_expert(
            gpu, OFFSETS, SLOT_EXPERTS, rows, experts, slots, (begin, end), source, lambda slot: slot, W, h, wdtype, 1,
            write, least,
        )  # fmt: skip
    return f.function


def _by_expert(
    gpu: Gpu, offsets: Buffer, slot_experts: Buffer, rows: Expr, experts: int, slots: int, part: tuple[int, int],
    source: Source, row_of: Callable[[Expr], Expr], weight: Buffer, n: int, wdtype: str, halves: int,
    write: Callable[..., None], least: int,
) -> None:  # fmt: skip
    """Emit the products of all slots with the weights of their experts.

    There is a block for each part of the outputs and each expert or, where these are fewer, each slot: that of the
    first slot of an expert has the expert's slots.
    """
    for alone in (True, False)[least - 1 :]:
        tiles = TILES[:1] if alone else TILES
        lanes = lanes_for(source.k, n, wdtype, halves=halves, batch=slots, tile=tiles[-1])
        several = T.min(rows * slots, T.int64(experts))
        grid, blocks = (lanes.blocks, slots if alone else several), resident(wdtype, tiles[-1])
        with when(rows == 1 if alone else rows > 1), launch(THREADS, *grid, resident=blocks) as t:
            block, which = t.block
            memory = Memory(gpu, lanes, tiles[-1], norm=False)
            begin, end, expert = (variable(T.int32(0), "int32") for _ in range(3))

            def found(e: Expr, begin: Buffer = begin, end: Buffer = end, expert: Buffer = expert) -> None:
                store(expert, T.Cast("int32", e), 0)
                store(begin, offsets[e], 0)
                store(end, offsets[e + 1], 0)

            with either(rows * slots <= experts) as (by_slot, by_expert):
                with by_slot:
                    found(T.Cast("int64", slot_experts[flat(which, slots)]))
                    with when(T.Cast("int64", begin[0]) != which):
                        store(end, begin[0], 0)
                with by_expert:
                    found(which)
            if part != (0, experts):
                with when(T.Or(expert[0] < part[0], expert[0] >= part[1])):
                    store(end, begin[0], 0)
            e = T.bind(T.Cast("int64", expert[0]) - part[0])

            def place(output: Expr, half: Expr, e: Expr = e) -> tuple[Expr, ...]:
                return e, output * halves + half

            matrix = Weight(weight, place)
            size = tiles[-1]
            with loop((T.Cast("int64", end[0]) - T.Cast("int64", begin[0]) + size - 1) // size) as turn:
                first = T.bind(T.Cast("int64", begin[0]) + turn * size)
                count = T.bind(T.Cast("int64", end[0]) - first)
                for tile in tiles:
                    with tile_of(count, tile, tiles):

                        def taken(r: Expr, tile: int = tile, first: Expr = first, count: Expr = count) -> Expr:
                            return row_of(first + (r if tile == 1 else T.min(r, count - 1)))

                        def put(r: Expr, output: Expr, *sums: Expr, first: Expr = first) -> None:
                            write(first + r, output, *sums)

                        multiply(t, lanes, memory, source, taken, matrix, block, tile, count, put)


@cache
def moe_combine(h: int, slots: int, *, residual: bool, least: int = 1) -> PrimFunc:
    """Kernel for y = residual + weighted sum of a row's slots, in the order in which it chose them.

    Args:
        h: outputs.
        slots: slots of a row.
        residual: whether a matrix of y's shape is added.
        least: fewer rows are left to `moe_one`.

    Returns:
        (D f32[rows, slots, h] in the order of slots, SLOT_WEIGHTS, PLACES from `moe_sort`, residual f32[rows, h]?,
        Y f32[rows, h]). Y is written.
    """
    with kernel("gpu_moe_combine", f"h{h}", f"slots{slots}", *(["res"] if residual else []), *_least(least)) as f:
        (rows,) = symbols("rows")
        D = f.tensor("d", "f32", rows, slots, h)
        SLOT_WEIGHTS = f.tensor("slot_weights", "f32", rows, slots)
        PLACES = f.tensor("places", "i32", rows, slots)
        RESIDUAL = f.tensor("residual", "f32", rows, h) if residual else None
        Y = f.tensor("y", "f32", rows, h)
        with when(rows >= least) if least > 1 else nullcontext(), launch(THREADS, rows, -(-h // THREADS)) as t:
            row, part = t.block
            column = T.bind(part * THREADS + t.thread)
            with when(column < h):
                total = variable(T.float32(0) if RESIDUAL is None else RESIDUAL[row, column])
                for j in range(slots):
                    slot = T.bind(T.Cast("int64", PLACES[row, j]))
                    value = D[(*flat(slot, slots), column)]
                    store(total, total[0] + SLOT_WEIGHTS[flat(slot, slots)] * value, 0)
                store(Y, total[0], row, column)
    return f.function


def flat(slot: Expr, slots: int) -> tuple[Expr, Expr]:
    """Where a slot is in an array over slots that has the shape [rows, slots]."""
    return slot // slots, slot % slots


def _part(part: tuple[int, int] | None) -> list[str]:
    return [] if part is None else [f"from{part[0]}to{part[1]}"]


def _least(least: int) -> list[str]:
    return [f"from{least}rows"] if least > 1 else []
