"""What kernels for CPUs are written with, beside `deepzig.targets.emit`: threads, vectors and workspaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as builder

from deepzig.targets.emit import Buffer, Expr, either, extent, loop, store, when

from .layout import LANES
from .vector import at, splat

SHARED_ROWS = 4
"""From how many rows on the threads share what is quickly done for a row: for fewer, waking them costs more."""
EVENLY = 2
"""Parts that threads share are a multiple of so many, where there is enough for as many."""


def parallel(size: int | Expr) -> Any:
    """A loop whose iterations the threads share, each a contiguous part."""
    return builder.parallel(T.int64(0), extent(size))


def each_row(rows: Expr, body: Callable[[Expr], None]) -> None:
    """Emit body(row) for every row, for bodies that are quickly done."""
    with either(rows < SHARED_ROWS) as (few, many):
        with few, loop(rows) as row:
            body(row)
        with many, parallel(rows) as row:
            body(row)


def each_vector(size: int, body: Callable[[Expr, int], None]) -> None:
    """Emit body(indices, lanes) for `size` elements: whole vectors, then single elements."""
    with loop(size // LANES) as c:
        body(at(c * LANES), LANES)
    with loop(size, size // LANES * LANES) as i:
        body(i, 1)


@contextmanager
def together() -> Iterator[None]:
    """What is emitted in this context is run by all threads at once, each with its own part of every `shared` loop.

    No thread waits for another before the end of the context, or of a `phase` in it.
    """
    with builder.attr(T.int32(0), "pragma_parallel_launch_point", T.int32(1)):
        yield


def phase() -> Any:
    """A context in `together`: what follows it needs what all threads do in it, so each waits there for the others."""
    return builder.attr(T.int32(0), "pragma_parallel_barrier_when_finish", T.int32(1))


@contextmanager
def shared(size: int | Expr) -> Iterator[Expr]:
    """A loop in `together`. Which thread does what depends on the size only: loops of the same size agree in it."""
    # a loop of one iteration would be dissolved, and done by every thread
    single = isinstance(size, int) and size < 2
    with parallel(2 if single else size) as i, when(i < size) if single else nullcontext():
        yield i


def local(size: int = LANES, dtype: str = "float32") -> Buffer:
    """A small array that LLVM keeps in registers where its indices are known.

    TVM's scope for that is `global`, below 1024 bytes: `local` would be a heap allocation.
    """
    return builder.alloc_buffer((size,), dtype, scope="global")


def variable(value: Expr, dtype: str = "float32") -> Buffer:
    """A local array of one element, with its first value."""
    buffer = local(1, dtype)
    store(buffer, value, 0)
    return buffer


def workspace(*shape: int | Expr, dtype: str = "float32") -> Buffer:
    """An array from the thread's heap workspace, unless it is small."""
    return builder.alloc_buffer(tuple(map(extent, shape)), dtype, scope="global")


def view(buffer: Buffer, *shape: int | Expr) -> Buffer:
    """The elements of an array in another shape."""
    return builder.decl_buffer(tuple(map(extent, shape)), buffer.dtype, data=buffer.data, scope="global")


def vector_of(value: Expr) -> Buffer:
    """A local vector with its first value."""
    buffer = local()
    store(buffer, value, at(0))
    return buffer


def vector_sum() -> Buffer:
    """A local vector, zero."""
    return vector_of(splat(0.0))
