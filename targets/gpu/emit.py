"""What kernels for GPUs are written with, beside `deepzig.targets.emit`: blocks of threads and what they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as builder

from deepzig.targets.emit import Buffer, Expr, extent, loop, store, when

from .device import SUBGROUP

AXES = "xyz"
SHORT = {"float32": "f32", "int32": "i32", "uint32": "u32"}
"""TVM's type -> how names of device functions end, which are written in languages without overloads, too."""


@dataclass(frozen=True)
class Threads:
    """Where the code of a launch is.

    Attributes:
        block: indices of the block in the grid.
        thread: index of the thread in its block.
        count: threads of a block, a multiple of SUBGROUP.
    """

    block: tuple[Expr, ...]
    thread: Expr
    count: int

    @property
    def lane(self) -> Expr:
        """The thread's place in its subgroup."""
        return self.thread % SUBGROUP

    @property
    def subgroup(self) -> Expr:
        """The number of the subgroup in its block."""
        return self.thread // SUBGROUP

    @contextmanager
    def each(self, size: int | Expr) -> Iterator[Expr]:
        """A loop that the threads of the block share: i = thread, thread + count, ... below `size`."""
        if isinstance(size, int) and size % self.count == 0:
            with loop(size // self.count) as turn:
                yield turn * self.count + self.thread
            return
        with loop((size + self.count - 1) // self.count) as turn:
            i = turn * self.count + self.thread
            with when(i < size):
                yield i


@contextmanager
def launch(threads: int, *grid: int | Expr, resident: int = 0) -> Iterator[Threads]:
    """What is emitted in this context is run by `threads` threads for each point of a grid of 1 to 3 dimensions.

    The second and third are one dimension of the device, since WebGPU leaves no third: one of them has to be a number.

    A function may launch several times; launches follow each other. A grid with a dimension of 0 is not launched.
    `resident` blocks at least are to be on a multiprocessor at once, if it is not 0. CUDA's compiler takes as many
    registers as leave room for these; if it is not told, it makes room for all the threads that there can be, and has
    no registers for loads to wait in.
    """
    sizes = [size for size in grid if not isinstance(size, int)]
    frames: list[Any] = [when(tirx.all(*(size > 0 for size in sizes)))] if sizes else []
    axes = grid if len(grid) < 3 else (grid[0], grid[1] * grid[2])
    frames += [builder.launch_thread(f"blockIdx.{AXES[i]}", extent(size)) for i, size in enumerate(axes)]
    with _entered(frames) as entered, builder.launch_thread("threadIdx.x", T.int64(threads)) as thread:
        bounds = builder.attr(T.int32(0), "tirx.launch_bounds_min_blocks_per_sm", T.int32(resident))
        with bounds if resident else nullcontext():
            first, *rest = entered[-len(axes) :]
            yield Threads((first, *(_apart(rest[0], *grid[1:]) if len(grid) == 3 else rest)), thread, threads)


def _apart(index: Expr, first: int | Expr, second: int | Expr) -> tuple[Expr, Expr]:
    """Indices in two dimensions from the index in both; neighbours are those of the first, if that is a number."""
    if isinstance(first, int):
        return T.bind(index % first), T.bind(index // first)
    return T.bind(index // second), T.bind(index % second)


@contextmanager
def _entered(frames: list[Any]) -> Iterator[list[Expr]]:
    if not frames:
        yield []
        return
    with frames[0] as first, _entered(frames[1:]) as rest:
        yield [first, *rest]


def turns(count: int, *, compact: bool) -> Iterator[Any]:
    """0 to count - 1: each in code of its own; or all as one variable of a loop, where code is to be short."""
    if not compact:
        yield from range(count)
        return
    with loop(count) as turn:
        yield turn


def shared(*shape: int, dtype: str = "float32") -> Buffer:
    """An array that the threads of a block share.

    Metal's arrays follow each other: all are multiples of 16 bytes, so that all begin at one, as vectors have to.
    """
    first, *rest = shape
    while first * prod(rest) * np.dtype(dtype).itemsize % 16:
        first += 1
    return builder.alloc_buffer(tuple(map(T.int64, (first, *rest))), dtype, scope="shared")


def registers(*shape: int, dtype: str = "float32") -> Buffer:
    """An array of each thread, in registers where its indices are known: unroll what indexes it."""
    return builder.alloc_buffer(tuple(map(T.int64, shape)), dtype, scope="local")


def variable(value: Expr, dtype: str = "float32") -> Buffer:
    """A local array of one element, with its first value."""
    buffer = registers(1, dtype=dtype)
    store(buffer, value, 0)
    return buffer


def view(buffer: Buffer, *shape: int | Expr) -> Buffer:
    """The elements of a parameter in another shape."""
    return builder.decl_buffer(tuple(map(extent, shape)), buffer.dtype, data=buffer.data, scope="global")


def settled(value: Expr) -> Expr:
    """The value, computed here and once: TVM writes a bound expression out again wherever it is used."""
    if str(value.ty) != "int64":
        return T.bind(variable(value, str(value.ty))[0])
    return T.Cast("int64", variable(T.Cast("int32", value), "int32")[0])  # arrays of indices cannot be narrowed


def barrier() -> None:
    """Emit a wait until all threads of the block are here, and what they wrote to shared memory can be read."""
    builder.evaluate(T.tvm_storage_sync("shared"))


def device(name: str, *args: Any, returns: str = "void") -> Any:
    """A call of a device function of the preludes, `dz_` and `name`; emitted at once if it returns nothing."""
    call = T.call_extern(returns, f"dz_{name}", *args)
    return builder.evaluate(call) if returns == "void" else T.bind(call)


def shuffle_xor(value: Expr, mask: int) -> Expr:
    """The value, of 32 bits, of the thread of the subgroup whose lane differs in the bits of `mask`.

    All threads of the block come here together: WebGPU has no subgroups of a known size, and exchanges through memory.
    """
    dtype = str(value.ty)
    if dtype == "int32":
        return device("shuffle_xor", value, T.int32(mask), returns=dtype)
    other = device("shuffle_xor", T.reinterpret("int32", T.bind(value)), T.int32(mask), returns="int32")
    return T.bind(T.reinterpret(dtype, other))


def uniform(value: Expr) -> Expr:
    """The i32 value, the same in all threads of the block, as one that WebGPU lets barriers depend on."""
    return device("uniform", value, returns="int32")


def subgroup_sum(value: Expr, lanes: int = SUBGROUP) -> Expr:
    """The sum, of f32 or u32, over each `lanes` consecutive threads of the subgroup, the same bits in all of them."""
    return _fold("sum", value, lanes)


def subgroup_max(value: Expr, lanes: int = SUBGROUP) -> Expr:
    """The greatest f32 or i32 over each `lanes` consecutive threads of the subgroup."""
    return _fold("max", value, lanes)


def _fold(name: str, value: Expr, lanes: int) -> Expr:
    dtype = str(value.ty)
    return device(f"{name}_{SHORT[dtype]}", value, T.int32(lanes), returns=dtype) if lanes > 1 else T.bind(value)


def block_sum(t: Threads, value: Expr) -> Expr:
    """The sum over all threads of the block, the same bits in all of them; all have to come here."""
    return _block_fold(t, value, subgroup_sum, lambda a, b: a + b)


def block_max(t: Threads, value: Expr) -> Expr:
    """The greatest over all threads of the block; all have to come here."""
    return _block_fold(t, value, subgroup_max, T.max)


def _block_fold(t: Threads, value: Expr, fold: Any, combine: Any) -> Expr:
    parts = t.count // SUBGROUP
    value = fold(value)
    if parts == 1:
        return value
    scratch = shared(parts)
    barrier()  # the scratch of an earlier call may be the same memory
    with when(t.lane == 0):
        store(scratch, value, t.subgroup)
    barrier()
    result = scratch[0]
    for i in range(1, parts):
        result = combine(result, scratch[i])
    return T.bind(result)
