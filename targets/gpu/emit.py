"""What kernels for GPUs are written with, beside `deepzig.targets.emit`: blocks of threads and what they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as builder

from deepzig.targets.emit import Buffer, Expr, extent, loop, store, when

from .device import SUBGROUP

AXES = "xyz"


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
def launch(threads: int, *grid: int | Expr) -> Iterator[Threads]:
    """What is emitted in this context is run by `threads` threads for each point of a grid of 1 to 3 dimensions.

    A function may launch several times; launches follow each other. A grid with a dimension of 0 is not launched.
    """
    sizes = [size for size in grid if not isinstance(size, int)]
    frames: list[Any] = [when(tirx.all(*(size > 0 for size in sizes)))] if sizes else []
    frames += [builder.launch_thread(f"blockIdx.{AXES[i]}", extent(size)) for i, size in enumerate(grid)]
    with _entered(frames) as entered, builder.launch_thread("threadIdx.x", T.int64(threads)) as thread:
        yield Threads(tuple(entered[-len(grid) :]), thread, threads)


@contextmanager
def _entered(frames: list[Any]) -> Iterator[list[Expr]]:
    if not frames:
        yield []
        return
    with frames[0] as first, _entered(frames[1:]) as rest:
        yield [first, *rest]


def shared(*shape: int, dtype: str = "float32") -> Buffer:
    """An array that the threads of a block share."""
    return builder.alloc_buffer(tuple(map(T.int64, shape)), dtype, scope="shared")


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
    """The value, f32 or i32, of the thread of the subgroup whose lane differs in the bits of `mask`."""
    return device("shuffle_xor", value, T.int32(mask), returns=str(value.ty))


def subgroup_sum(value: Expr, lanes: int = SUBGROUP) -> Expr:
    """The sum over each `lanes` consecutive threads of the subgroup, the same bits in all of them."""
    return _fold(value, lanes, lambda a, b: a + b)


def subgroup_max(value: Expr, lanes: int = SUBGROUP) -> Expr:
    """The greatest over each `lanes` consecutive threads of the subgroup."""
    return _fold(value, lanes, T.max)


def _fold(value: Expr, lanes: int, combine: Any) -> Expr:
    # a + b and b + a have the same bits: each pair of threads agrees
    value = settled(value)
    while lanes > 1:
        lanes //= 2
        value = settled(combine(value, shuffle_xor(value, lanes)))
    return value


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
