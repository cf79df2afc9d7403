"""Rows as matrix units multiply them: prepared once, for all columns.

A prepared row is words of a unit's elements, filled up with zeros to whole groups of the weight's type. Beside weights
of integers it is rounded to 8 bits (`deepzig.ir.quantize`), and the f32 scales of its groups follow its codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.ir.fp8 import FP8
from deepzig.ir.quantize import GROUP, QUANTIZED
from deepzig.targets.emit import Buffer, Expr, either, kernel, loop, store, symbols, when

from .cache import pair
from .device import Gpu
from .emit import block_sum, device, launch, registers, subgroup_max, variable, view
from .layout import group, groups
from .units import UNITS, Unit

QUAD = 4
"""Elements that a thread prepares at a time: 16 bytes of f32."""
THREADS = 128
"""Of a row."""
HALF_MAX = 65504.0
"""The largest f16 number."""


@dataclass(frozen=True)
class Encoding:
    """How rows lie that a unit multiplies with weights of a type.

    Attributes:
        k: elements of a row.
        wdtype: of the weight.
        unit: what multiplies.
    """

    k: int
    wdtype: str
    unit: Unit

    @classmethod
    def of(cls, gpu: Gpu, k: int, wdtype: str) -> Encoding:
        """For the unit that a device has for weights of the type."""
        return cls(k, wdtype, UNITS[gpu.unit(wdtype)])

    @property
    def size(self) -> int:
        """Elements with those that fill up groups."""
        return groups(self.k, self.wdtype) * group(self.wdtype)

    @property
    def words(self) -> int:
        """Words of a row without scales; where there are some, the index of the first."""
        return self.size // self.unit.per_word

    @property
    def coded(self) -> bool:
        """Whether rows are rounded to integers, with scales."""
        return self.wdtype in QUANTIZED

    @property
    def crossed(self) -> bool:
        """Whether of every 8 words the even ones come first, then the odd ones.

        A thread of an mma unit multiplies words i and i + 4 of 8. In this order these are neighbours in the row, and so
        in a row of weights of 8 bits a thread's four elements are one word.
        """
        return self.wdtype == FP8 and self.unit.element == "bf16"

    @property
    def pitch(self) -> int:
        """Words from one row to the next: whole 16 bytes."""
        scales = groups(self.k, self.wdtype) if self.coded else 0
        return -(-(self.words + scales) // QUAD) * QUAD

    @property
    def dtype(self) -> str:
        """Element type of the buffer."""
        return "f32" if self.unit.element == "f32" else "u32"

    @property
    def names(self) -> list[str]:
        """The parts of a kernel's name that tell it from others."""
        return [f"k{self.k}", self.wdtype, self.unit.element]


@cache
def prepare(
    encoding: Encoding, *, x_shape: tuple[int, ...], begin: int = 0, parts: int = 1, stride: int = 0,
    norm_eps: float | None = None,
) -> PrimFunc:  # fmt: skip
    """Kernel for rows as a unit multiplies them.

    Args:
        encoding: of the results.
        x_shape: dimensions of x after the first, taken as one.
        begin: the first column.
        parts: how many rows, of k elements each, are cut out of one of x.
        stride: columns from one part to the next.
        norm_eps: epsilon of the RMSNorm, over the k elements; None: they aren't normed.

    Returns:
        (X f32[rows, *x_shape], norm f32[k]?, PREPARED [rows, parts, pitch]); the last is written.
    """
    k, quads, x_width = encoding.k, encoding.size // QUAD, math.prod(x_shape)
    extras = [f"from{begin}of" + "by".join(map(str, x_shape))] if x_shape != (k,) else []
    extras += [f"parts{parts}by{stride}"] if parts > 1 else []
    extras += [f"norm{norm_eps}"] if norm_eps is not None else []
    with kernel("prepare", *encoding.names, *extras) as f:
        (rows,) = symbols("rows")
        x = f.tensor("x", "f32", rows, *x_shape)
        NORM: Any = f.tensor("norm", "f32", k) if norm_eps is not None else None
        Y = f.tensor("prepared", encoding.dtype, rows, parts, encoding.pitch)
        X = view(x, rows, x_width)
        with launch(THREADS, rows, parts) as t:
            row, part = t.block
            aligned = all(size % QUAD == 0 for size in (x_width, begin, stride, k))

            def quad(q: Expr) -> Buffer:
                """Elements of x, zero beyond the row."""
                return _quad(lambda i: X[row, begin + part * stride + i], q, k, aligned)

            scale: Any = None
            if norm_eps is not None:
                squares = variable(T.float32(0))
                with loop(-(-quads // THREADS)) as turn:
                    v = quad(turn * THREADS + t.thread)
                    store(squares, squares[0] + ((v[0] * v[0] + v[1] * v[1]) + (v[2] * v[2] + v[3] * v[3])), 0)
                mean = block_sum(t, squares[0]) / T.float32(k)
                scale = T.bind(T.float32(1) / T.sqrt(mean + T.float32(norm_eps)))
            # all threads take every turn: those of a group tell each other its largest element
            with loop(-(-quads // THREADS)) as turn:
                q = turn * THREADS + t.thread
                values = quad(q)
                if norm_eps is not None:
                    weight = _quad(lambda i: NORM[i], q, k, k % QUAD == 0)
                    for i in range(QUAD):
                        store(values, values[i] * scale * weight[i], i)
                _write(
                    encoding, [values[i] for i in range(QUAD)], q, lambda word, value: store(Y, value, row, part, word)
                )
    return f.function


def _quad(read: Callable[[Expr], Expr], q: Expr, k: int, aligned: bool) -> Buffer:
    """Registers with elements 4 q to 4 q + 3 of a row of k; zero beyond it."""
    held, first = registers(QUAD), q * QUAD
    if not aligned:
        for i in range(QUAD):
            store(held, T.if_then_else(first + i < k, read(first + i), T.float32(0)), i)
        return held
    with either(first < k) as (inside, beyond):
        with inside:
            store(held, read(T.ramp(first, 1, QUAD)), T.ramp(T.int64(0), 1, QUAD))
        with beyond:
            store(held, T.broadcast(T.float32(0), QUAD), T.ramp(T.int64(0), 1, QUAD))
    return held


def _write(encoding: Encoding, x: list[Expr], q: Expr, write: Callable[[Expr, Expr], None]) -> None:
    """Emit write(word, value) for what becomes of elements 4 q to 4 q + 3."""
    element, inside = encoding.unit.element, q < encoding.size // QUAD
    if encoding.coded:
        codes, scale = _coded(x)
        with when(inside):
            with when(q % (GROUP // QUAD) == 0):
                bits = scale if element == "f32" else T.reinterpret("uint32", scale)
                write(encoding.words + q // (GROUP // QUAD), bits)
            if element == "s8":
                a, b, c, d = (T.bitwise_and(T.Cast("uint32", code), T.uint32(0xFF)) for code in codes)
                write(q, a | b << T.uint32(8) | c << T.uint32(16) | d << T.uint32(24))
            else:
                for i, code in enumerate(codes):
                    write(q * QUAD + i, T.Cast("float32", code))
        return
    with when(inside):
        if element == "f32":
            for i, value in enumerate(x):
                write(q * QUAD + i, value)
            return
        for i in range(2):
            word = q // 4 * 8 + q % 4 + 4 * i if encoding.crossed else q * 2 + i
            write(word, _rounded(x[2 * i], x[2 * i + 1], element))


def _coded(x: list[Expr]) -> tuple[list[Expr], Expr]:
    """Four elements as integers, and the scale of their group, which 16 threads have."""
    sizes = [T.abs(value) for value in x]
    largest = subgroup_max(T.max(T.max(sizes[0], sizes[1]), T.max(sizes[2], sizes[3])), GROUP // QUAD)
    inverse = T.bind(T.if_then_else(largest > T.float32(0), T.float32(127) / largest, T.float32(0)))
    codes = [device("round", value * inverse, returns="int32") for value in x]
    return codes, T.bind(largest / T.float32(127))


def _rounded(low: Expr, high: Expr, element: str) -> Expr:
    """A word of two numbers; beyond f16's range its largest."""
    if element == "f16":
        low, high = (T.max(T.min(value, T.float32(HALF_MAX)), T.float32(-HALF_MAX)) for value in (low, high))
    return pair(low, high, element)
