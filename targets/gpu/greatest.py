"""Which element is the greatest: floats in an order without exceptions, the first of equals, over groups of threads."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from deepzig.targets.emit import Expr, store, when

from .device import SUBGROUP
from .emit import Threads, barrier, settled, shared, shuffle_xor

INFINITE = 0x7F800000
"""The bits of the infinite f32, its place in the order, and what only NaN is above."""
NEVER = -(2**31) + 1
"""Below the place of any number."""


def place(x: Expr) -> Expr:
    """Emit an i32 that orders as the f32 x does: both zeros are equal.

    Code may be compiled with the promise that there are no NaN and no infinities: compare these instead. A NaN's is
    above INFINITE.
    """
    bits = T.bind(T.reinterpret("int32", x))
    magnitude = T.bind(T.bitwise_and(bits, T.int32(0x7FFFFFFF)))
    negative = tirx.all(bits < T.int32(0), magnitude <= T.int32(INFINITE))
    return settled(T.Select(negative, T.int32(0) - magnitude, magnitude))


def ranked(x: Expr) -> Expr:
    """`place`, with NaN below all numbers."""
    found = place(x)
    return T.bind(T.Select(found > T.int32(INFINITE), T.int32(NEVER), found))


def subgroup_first(value: Expr, index: Expr, lanes: int = SUBGROUP) -> tuple[Expr, Expr]:
    """The greatest i32 value of `lanes` consecutive threads, and of those that have it the least index, in all."""
    value, index = T.bind(value), T.bind(index)
    while lanes > 1:
        lanes //= 2
        other, where = shuffle_xor(value, lanes), shuffle_xor(index, lanes)
        better = tirx.any(other > value, tirx.all(other == value, where < index))
        index = settled(T.Select(better, where, index))
        value = settled(T.max(value, other))
    return value, index


def block_first(t: Threads, value: Expr, index: Expr) -> tuple[Expr, Expr]:
    """`subgroup_first` of all threads of the block, at most SUBGROUP subgroups; all have to come here."""
    value, index = subgroup_first(value, index)
    parts = t.count // SUBGROUP
    if parts == 1:
        return value, index
    values, indices = shared(SUBGROUP, dtype="int32"), shared(SUBGROUP, dtype="int32")
    barrier()
    with when(t.lane == 0):
        store(values, value, t.subgroup)
        store(indices, index, t.subgroup)
    barrier()
    part = T.min(t.lane, parts - 1)
    return subgroup_first(values[part], indices[part])
