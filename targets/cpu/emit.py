"""Kernels written with TVM's IR builder: plain Python functions that emit loops and stores.

This is for kernels whose code depends on their parameters; a fixed one reads better in TVMScript.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as builder
from tvm.tirx import PrimFunc

from .kernel import named
from .layout import LANES
from .vector import Expr, at, splat

Buffer = Any
TVM_NAMES = {"f32": "float32", "u32": "uint32", "i32": "int32"}


class Kernel:
    """A kernel under construction; `function` once it is finished."""

    function: PrimFunc

    def tensor(self, name: str, dtype: str, *shape: int | Expr) -> Buffer:
        """The next parameter."""
        return builder.arg(name, T.Buffer(tuple(map(extent, shape)), TVM_NAMES[dtype]))


@contextmanager
def kernel(*parts: object) -> Iterator[Kernel]:
    """What is emitted in this context becomes a function named for its op and static parameters."""
    unfinished = Kernel()
    with IRBuilder() as ir:
        with builder.prim_func(s_tir=True):
            builder.func_name("kernel")
            yield unfinished
        unfinished.function = named(ir.get(), *parts)


def extent(size: int | Expr) -> Expr:
    """Sizes and indices have 64 bits: stacked experts have more than 2^31 elements."""
    return T.int64(size) if isinstance(size, int) else size


def loop(size: int | Expr, begin: int | Expr = 0) -> Any:
    """A serial loop from `begin` to `size`."""
    return builder.serial(extent(begin), extent(size))


def parallel(size: int | Expr) -> Any:
    """A loop whose iterations the threads share, each a contiguous part."""
    return builder.parallel(T.int64(0), extent(size))


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """What is emitted in this context runs if the condition holds."""
    with builder.If(condition), builder.Then():
        yield


@contextmanager
def either(condition: Expr) -> Iterator[Any]:
    """Two contexts, to be entered in this order: one for if the condition holds, one for if not."""
    with builder.If(condition):
        yield builder.Then(), builder.Else()


def store(buffer: Buffer, value: Expr, *index: int | Expr) -> None:
    """Emit `buffer[index] = value`."""
    builder.buffer_store(buffer, value, [extent(i) if isinstance(i, int) else i for i in index])


def local(size: int = LANES, dtype: str = "float32") -> Buffer:
    """A small array that LLVM keeps in registers where its indices are known.

    TVM's scope for that is `global`, below 1024 bytes: `local` would be a heap allocation.
    """
    return builder.alloc_buffer((size,), dtype, scope="global")


def workspace(*shape: int | Expr, dtype: str = "float32") -> Buffer:
    """An array from the thread's heap workspace, unless it is small."""
    return builder.alloc_buffer(tuple(map(extent, shape)), dtype, scope="global")


def vector_sum() -> Buffer:
    """A local vector, zero."""
    buffer = local()
    store(buffer, splat(0.0), at(0))
    return buffer
