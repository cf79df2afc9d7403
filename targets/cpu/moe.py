"""Mixture of experts: rows sorted by expert, gate and up in one product, down with the weighted sum.

A slot is one (row, expert) pair. Slots are ordered by expert, then by row, so that an expert's rows are multiplied
together and its weights are read once. Shared experts come last in the stack and serve every row.

Threads start once. They share the columns, and each walks the experts that have rows: work is even whichever these are.
A row alone is bound by memory. So that threads always know what they read next, and ask for it early, they walk its
experts with a few columns, then again with the next few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, Kernel, either, kernel, loop, store, symbols, when

from .emit import EVENLY, phase, shared, together, workspace
from .features import Vectors
from .layout import LANES, blocks, inner, stored
from .linear import gated
from .methods import method_of
from .product import (
    Columns,
    GroupOutput,
    Input,
    Method,
    adjacent,
    by_columns,
    first_element,
    rows_of,
    stream,
)
from .vector import fma, splat

RUN = 1024
"""Vectors of an expert, 64 KiB at most, that a thread reads for a single row before it goes on to the next expert."""


@cache
def moe(
    hidden: int,
    width: int,
    experts: int,
    top_k: int,
    shared_experts: int,
    gate_dtype: str,
    down_dtype: str,
    *,
    residual: bool,
    vectors: Vectors,
) -> PrimFunc:
    """Kernel for y = residual + weighted sum of experts, each down (silu(gate x) * (up x)), in their order.

    Args:
        hidden: inputs and outputs.
        width: of an expert.
        experts: routed experts.
        top_k: experts of a row.
        shared_experts: experts of all rows; they follow the routed ones, their weight is 1.
        gate_dtype: of gate and up: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
        down_dtype: of down, one of these too.
        residual: whether a matrix of y's shape is added.
        vectors: registers of the CPU.

    Returns:
        (X f32[rows, hidden], IDS i32[rows, top_k], WEIGHTS f32[rows, top_k], gate and up packed by `pack_gate_up`, down
        packed by `pack_columns`, residual f32[rows, hidden]?, Y f32[rows, hidden]). Y is written. Ids are not checked.
    """
    every = experts + shared_experts
    name = ["moe", f"h{hidden}", f"i{width}", f"e{experts}", f"top{top_k}", f"shared{shared_experts}"]
    with kernel(*name, *dict.fromkeys((gate_dtype, down_dtype)), *(["res"] if residual else [])) as f:
        (rows,) = symbols("rows")
        X = f.tensor("x", "f32", rows, hidden)
        IDS = f.tensor("ids", "i32", rows, top_k)
        WEIGHTS = f.tensor("weights", "f32", rows, top_k)
        opening = Stack.of(f, "gate_up", (every, width, 2), hidden, gate_dtype, vectors)
        closing = Stack.of(f, "down", (every, hidden), width, down_dtype, vectors)
        RESIDUAL: Any = f.tensor("residual", "f32", rows, hidden) if residual else None
        Y = f.tensor("y", "f32", rows, hidden)

        slots = sort(IDS, WEIGHTS, rows, experts, shared_experts)
        x = slots.encoded(rows_of(X), hidden, opening.method)
        A = workspace(slots.count, width)
        a = closing.method.encode(rows_of(A), slots.count, width)
        with all_threads(opening.method, closing.method):
            with phase():
                gate_up(slots, opening, x, A)
            if a.write:
                with phase(), shared(slots.count) as slot:
                    a.write(slot)
            down(slots, closing, a.read, RESIDUAL, Y)
    return f.function


@dataclass(frozen=True)
class Stack:
    """A packed matrix of every expert, or gate and up, whose blocks of columns alternate.

    Attributes:
        weight: the buffer.
        inputs: inner dimension.
        outputs: columns; of gate as many as of up.
        dtype: element type before it was packed.
        method: how it is multiplied.
    """

    weight: Buffer
    inputs: int
    outputs: int
    dtype: str
    method: Method

    @classmethod
    def of(cls, f: Kernel, name: str, shape: tuple[int, ...], inputs: int, dtype: str, vectors: Vectors) -> Stack:
        """The next parameter of a kernel. Its shape is experts, outputs, and matrices if these are several."""
        experts, outputs, *matrices = shape
        weight = f.tensor(name, stored(dtype), experts, blocks(outputs), *matrices, *inner(inputs, dtype), LANES)
        return cls(weight, inputs, outputs, dtype, method_of(dtype, vectors))

    def columns(self, leading: Sequence[tuple[Expr, ...]]) -> Columns:
        """Blocks of columns, by what precedes their vectors in the buffer's shape."""
        return Columns(self.weight, leading, self.inputs, self.dtype)


@dataclass(frozen=True)
class Slots:
    """The slots of all rows, in order.

    Attributes:
        rows: how many rows there are.
        each: slots of a row.
        count: slots of all.
        experts: how many experts, the shared ones too.
        offsets: i32[experts + 1]; expert e has the slots offsets[e] up to offsets[e + 1].
        expert: i32[count]; of each slot its expert.
        row: i32[count]; of each slot its row.
        weight: f32[count]; of each slot what its expert's result is multiplied by.
    """

    rows: Expr
    each: int
    count: Expr
    experts: int
    offsets: Buffer
    expert: Buffer
    row: Buffer
    weight: Buffer

    def row_of(self, slot: Expr) -> Expr:
        """The row of a slot."""
        return T.bind(T.Cast("int64", self.row[slot]))

    def encoded(self, x: Input, size: int, method: Method) -> Input:
        """Emit the encoding of rows, and read those of slots."""

        def by_slot(read: Input) -> Input:
            return lambda slot: read(self.row_of(slot))

        if method.consecutive:
            return method.encoded(by_slot(x), self.count, size)
        return by_slot(method.encoded(x, self.rows, size))

    def by_rows(self, method: Method, single: Callable[[], None], several: Callable[[], None]) -> None:
        """Emit `single` for a single row and `several` for more; without a way to multiply one alone, `several`."""
        if not method.alone:
            several()
            return
        with either(self.rows == 1) as (one, more):
            with one:
                single()
            with more:
                several()

    def each_expert(self, one: Callable[[Expr, Expr], None] | None, many: Callable[[Expr, Expr, Expr], None]) -> None:
        """Emit one(expert, slot) for experts with one slot, many(expert, first slot, end) for those with more.

        Without `one`, one slot is many.
        """
        with loop(self.experts) as e:
            begin = T.bind(T.Cast("int64", self.offsets[e]))
            end = T.bind(T.Cast("int64", self.offsets[e + 1]))
            if one:
                with when(end == begin + 1):
                    one(e, begin)
            with when(end > begin + (1 if one else 0)):
                many(e, begin, end)


def sort(ids: Buffer, weights: Buffer, rows: Expr, experts: int, shared_experts: int) -> Slots:
    """Emit a counting sort of slots by expert.

    Args:
        ids: i32[rows, top_k], routed experts.
        weights: f32[rows, top_k], theirs.
        rows: how many rows.
        experts: routed experts.
        shared_experts: what follows them in `Slots`.
    """
    every, top_k = experts + shared_experts, int(ids.shape[1])
    each = top_k + shared_experts
    count = rows * each
    offsets, following = workspace(every + 1, dtype="int32"), workspace(every, dtype="int32")
    of_slots = (workspace(count, dtype=dtype) for dtype in ("int32", "int32", "float32"))
    slots = Slots(rows, each, count, every, offsets, *of_slots)

    def put(slot: Expr, expert: Expr, row: Expr, weight: Expr) -> None:
        store(slots.expert, T.Cast("int32", expert), slot)
        store(slots.row, T.Cast("int32", row), slot)
        store(slots.weight, weight, slot)

    with loop(every + 1) as e:
        store(offsets, T.int32(0), e)
    with loop(rows) as row, loop(top_k) as j:
        after = T.bind(ids[row, j] + 1)
        store(offsets, offsets[after] + 1, after)
    with loop(every + 1, experts + 1) as after:
        store(offsets, T.Cast("int32", rows), after)
    with loop(every) as e:
        store(following, offsets[e], e)
        store(offsets, offsets[e] + offsets[e + 1], e + 1)
    with loop(rows) as row:
        with loop(top_k) as j:
            e = T.bind(ids[row, j])
            put(T.bind(following[e]), e, row, weights[row, j])
            store(following, following[e] + 1, e)
        with loop(every, experts) as e:
            put(offsets[e] + row, e, row, T.float32(1))
    return slots


def all_threads(*methods: Method) -> AbstractContextManager[None]:
    """All threads at once, prepared for the products of all of these methods."""
    return next((method.threads for method in methods if method.threads is not together), together)()


def single_row(
    slots: Slots, stack: Stack, x: Input, columns: Callable[[Expr, Sequence[Expr]], Columns], output: GroupOutput,
    width: int, begin: Callable[[Expr, Expr], None] = lambda first, end: None,
) -> None:  # fmt: skip
    """Emit the products of the slots of a single row.

    Args:
        slots: the slots.
        stack: the experts' matrices.
        x: slot -> its row, encoded.
        columns: (expert, groups of blocks) -> the blocks.
        output: (slot, group, sums of its blocks) -> emits the stores.
        width: blocks in a group.
        begin: (first group, end) -> emits what comes before all products of these groups.
    """
    weight, groups, method = stack.weight, blocks(stack.outputs), stack.method
    held = max(method.abreast // width, 1)
    units = -(-groups // held)
    runs = -(-units * held * math.prod(map(int, weight.shape[2:-1])) // RUN)
    parts = min(-(-runs // EVENLY) * EVENLY, units)

    def element(slot: Expr, group: Expr) -> Expr:
        return first_element(weight, (T.Cast("int64", slots.expert[slot]), group))

    with shared(parts) as part:
        first, end = (T.bind(T.min(i * units // parts * held, groups)) for i in (part, part + 1))
        begin(first, end)
        with loop(slots.each) as slot:
            last = slot + 1 == slots.each
            following = element(T.Select(last, T.int64(0), slot + 1), T.Select(last, end, first))
            here = T.bind(element(slot, end))
            jump = here, T.bind(following - here)
            with loop((end - first + (held - 1)) // held) as some:
                of_expert = partial(columns, T.bind(T.Cast("int64", slots.expert[slot])))
                taken, write = adjacent(T.bind(first + some * held), held, groups, of_expert, output, width)
                write(slot, stream(replace(taken, jump=jump), slot, x, method))


def gate_up(slots: Slots, gates: Stack, x: Input, a: Buffer) -> None:
    """Emit a = silu(x gate^T) * (x up^T).

    Args:
        slots: the slots.
        gates: gate and up.
        x: slot -> its row, encoded.
        a: f32[slots, outputs], written.
    """
    method, groups = gates.method, blocks(gates.outputs)
    count = max(method.tile[1] // 2, 1)
    parts = -(-groups // count)

    def columns(e: Expr, taken: Sequence[Expr]) -> Columns:
        return gates.columns([(e, block, T.int64(half)) for block in taken for half in range(2)])

    def output(slot: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
        by_columns(gated(*sums), block, gates.outputs, lambda column, value, _: store(a, value, slot, column))

    def one(e: Expr, slot: Expr) -> None:
        with shared(parts) as part, loop(T.min((part + 1) * count, groups), part * count) as block:
            output(slot, block, stream(columns(e, [block]), slot, x, method))

    def many(e: Expr, begin: Expr, end: Expr) -> None:
        with shared(parts) as part:
            taken, write = adjacent(T.bind(part * count), count, groups, partial(columns, e), output, 2)
            method.rows(taken, begin, end, x, write)

    slots.by_rows(
        method,
        lambda: single_row(slots, gates, x, columns, output, 2),
        lambda: slots.each_expert(one if method.alone else None, many),
    )


def down(slots: Slots, downs: Stack, a: Input, residual: Buffer | None, y: Buffer) -> None:
    """Emit y = residual + the weighted sum of a down^T over a row's slots, in their order.

    Args:
        slots: the slots.
        downs: down.
        a: slot -> its hidden values, encoded.
        residual: f32[rows, outputs]; None: zero.
        y: the same shape, written.
    """
    method, groups = downs.method, blocks(downs.outputs)
    held = method.abreast
    count = -(-method.tile[1] // held) * held
    parts = -(-groups // count)

    def columns(e: Expr, taken: Sequence[Expr]) -> Columns:
        return downs.columns([(e, block) for block in taken])

    def output(slot: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
        row, weight = slots.row_of(slot), T.bind(slots.weight[slot])

        def write(column: Expr, value: Expr, lanes: int) -> None:
            store(y, fma(splat(weight, lanes), value, y[row, column], lanes), row, column)

        by_columns(sums[0], block, downs.outputs, write)

    def one(e: Expr, slot: Expr) -> None:
        with shared(parts) as part, loop(T.min(count, groups - part * count + (held - 1)) // held) as some:
            taken, write = adjacent(T.bind(part * count + some * held), held, groups, partial(columns, e), output, 1)
            write(slot, stream(taken, slot, a, method))

    def many(e: Expr, begin: Expr, end: Expr) -> None:
        with shared(parts) as part:
            taken, write = adjacent(T.bind(part * count), count, groups, partial(columns, e), output, 1)
            method.rows(taken, begin, end, a, write)

    def begin(first: Expr, end: Expr) -> None:
        with loop(slots.rows) as row, loop(T.min(end * LANES, downs.outputs), first * LANES) as column:
            store(y, T.float32(0) if residual is None else residual[row, column], row, column)

    def walk() -> None:
        # a thread has the same columns of all experts, so sums need no lock and have one order
        with shared(parts) as part:
            begin(part * count, (part + 1) * count)
        slots.each_expert(one if method.alone else None, many)

    slots.by_rows(method, lambda: single_row(slots, downs, a, columns, output, 1, begin), walk)
