"""Kernels are written with TVM's IR builder: plain Python functions that emit loops and stores.

A Python loop is an unrolled one; what is known when the kernel is built, such as a flag or a size, is decided there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as builder
from tvm.sym import Analyzer
from tvm.tirx import PrimFunc

from .layout import LANES
from .vector import Expr, at, splat

Buffer = Any
STORAGE = {"f32": "float32", "bf16": "uint16", "f16": "uint16", "i32": "int32", "u32": "uint32", "i8": "int8"}
"""Element type -> TVM dtype of the buffer that holds it: two-byte floats are their bits."""
SHARED_ROWS = 4
"""From how many rows on the threads share what is quickly done for a row: for fewer, waking them costs more."""


class Kernel:
    """A kernel under construction; `function` once it is finished."""

    function: PrimFunc

    def tensor(self, name: str, dtype: str, *shape: int | Expr) -> Buffer:
        """The next parameter."""
        return builder.arg(name, T.Buffer(tuple(map(extent, shape)), STORAGE[dtype]))


@contextmanager
def kernel(*parts: object) -> Iterator[Kernel]:
    """What is emitted in this context becomes a function named for its op and static parameters."""
    unfinished = Kernel()
    with IRBuilder() as ir:
        with builder.prim_func(s_tir=True):
            builder.func_name("kernel")
            yield unfinished
        unfinished.function = named(ir.get(), *parts)


def named(function: Any, *parts: object) -> Any:
    """The PrimFunc under a symbol made of its op and static parameters, and opaque (8) to TVM's fusion."""
    text = "_".join(str(part) for part in parts)
    symbol = text.translate({ord("."): "p", ord("-"): "m", ord("+"): None})
    return function.with_attr({"global_symbol": symbol, "op_pattern": 8})


def symbols(names: str) -> list[Expr]:
    """Sizes that are known when the kernel runs."""
    return [tirx.Var(name, "int64") for name in names.split()]


def extent(size: int | Expr) -> Expr:
    """Sizes and indices have 64 bits: stacked experts have more than 2^31 elements."""
    return T.int64(size) if isinstance(size, int) else size


def loop(size: int | Expr, begin: int | Expr = 0) -> Any:
    """A serial loop from `begin` to `size`."""
    return builder.serial(extent(begin), extent(size))


def parallel(size: int | Expr) -> Any:
    """A loop whose iterations the threads share, each a contiguous part."""
    return builder.parallel(T.int64(0), extent(size))


def repeat(condition: Expr) -> Any:
    """A loop that goes on while the condition holds."""
    return builder.While(condition)


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
def when(condition: Expr) -> Iterator[None]:
    """What is emitted in this context runs if the condition holds."""
    with builder.If(condition), builder.Then():
        yield


@contextmanager
def together() -> Iterator[None]:
    """What is emitted in this context is run by all threads at once, each with its own part of every `shared` loop.

    No thread waits for another before the end of the context.
    """
    with builder.attr(T.int32(0), "pragma_parallel_launch_point", T.int32(1)):
        yield


@contextmanager
def shared(size: int) -> Iterator[Expr]:
    """A loop in `together`. Which thread does what depends on the size only: loops of the same size agree in it."""
    # a loop of one iteration would be dissolved, and done by every thread
    with parallel(max(size, 2)) as i, when(i < size) if size < 2 else nullcontext():
        yield i


@contextmanager
def either(condition: Expr) -> Iterator[Any]:
    """Two contexts, to be entered in this order: one for if the condition holds, one for if not."""
    with builder.If(condition):
        yield builder.Then(), builder.Else()


def store(buffer: Buffer, value: Expr, *index: int | Expr) -> None:
    """Emit `buffer[index] = value`."""
    # TVM's bounds of workspaces are lost on the sum of a vector of indices and a number, unless it is one ramp again.
    places = [Analyzer().simplify(i) if isinstance(i, tirx.Add) else extent(i) for i in index]
    builder.buffer_store(buffer, value, places)


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
