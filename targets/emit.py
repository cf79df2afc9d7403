"""Kernels are written with TVM's IR builder: plain Python functions that emit loops and stores.

A Python loop is an unrolled one; what is known when the kernel is built, such as a flag or a size, is decided there.
What is here serves every family of machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as builder
from tvm.sym import Analyzer
from tvm.tirx import PrimFunc

Expr = Any
"""A TIR expression; TVM is untyped."""

Buffer = Any
STORAGE = {"f32": "float32", "bf16": "uint16", "f16": "uint16", "i32": "int32", "u32": "uint32", "i8": "int8"}
"""Element type -> TVM dtype of the buffer that holds it: two-byte floats are their bits."""


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


def repeat(condition: Expr) -> Any:
    """A loop that goes on while the condition holds."""
    return builder.While(condition)


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
    # TVM's bounds of workspaces are lost on the sum of a vector of indices and a number, unless it is one ramp again.
    places = [Analyzer().simplify(i) if isinstance(i, tirx.Add) else extent(i) for i in index]
    builder.buffer_store(buffer, value, places)
