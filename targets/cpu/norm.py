"""Kernels that touch each row once: norm, embedding, row selection, rotary angles."""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .cache import STORAGE, widen_high
from .kernel import named
from .layout import LANES
from .softmax import tree_sum
from .vector import at, fma, splat


def _every_second(begin: Any, lanes: int) -> Any:
    return begin if lanes == 1 else T.ramp(begin, 2, lanes)


@T.inline
def inverse_rms(load, size, eps, out):  # type: ignore[no-untyped-def]
    """out[0] = 1 / sqrt(mean of load(index)^2 + eps), summed over 16 lanes, then the lanes, then the remainder."""
    squares = T.alloc_buffer((LANES,), "float32", scope="global")
    squares[at(0)] = splat(0.0)
    for c in T.serial(size // LANES):
        squares[at(0)] = fma(load(at(c * LANES)), load(at(c * LANES)), squares[at(0)])
    out[0] = tree_sum(squares[at(0)])
    for j in T.serial(size // LANES * LANES, size):
        out[0] = fma(load(j), load(j), out[0], 1)
    out[0] = T.float32(1) / T.sqrt(out[0] / T.float32(size) + T.float32(eps))


@T.inline
def rotate(load, angle, store, width, interleaved):  # type: ignore[no-untyped-def]
    """RoPE of one head: store(first index, lanes, values) of [real | imaginary] parts.

    Pairs are (2i, 2i + 1) if interleaved, else (i, i + width / 2); angle(i) is cos, angle(width / 2 + i) is sin.
    """

    @T.inline
    def pairs(i, lanes):  # type: ignore[no-untyped-def]
        real: T.let = load(_every_second(2 * i, lanes) if interleaved else at(i, lanes))
        imaginary: T.let = load(_every_second(2 * i + 1, lanes) if interleaved else at(width // 2 + i, lanes))
        cos: T.let = angle(at(i, lanes))
        sin: T.let = angle(at(width // 2 + i, lanes))
        store(i, lanes, fma(real, cos, -(imaginary * sin), lanes))
        store(width // 2 + i, lanes, fma(imaginary, cos, real * sin, lanes))

    for c in T.serial(width // 2 // LANES):
        pairs(c * LANES, LANES)
    for i in T.serial(width // 2 // LANES * LANES, width // 2):
        pairs(i, 1)


@cache
def rms_norm(hidden: int, eps: float) -> PrimFunc:
    """Kernel (x f32[n, hidden], weight f32[hidden], y f32[n, hidden]): y = x / rms(x) * weight."""

    @T.prim_func(s_tir=True)
    def kernel(x: T.handle, weight: T.handle, y: T.handle):  # type: ignore[no-untyped-def]
        n = T.int64()
        X = T.match_buffer(x, (n, hidden), "float32")
        W = T.match_buffer(weight, (hidden,), "float32")
        Y = T.match_buffer(y, (n, hidden), "float32")
        for i in T.parallel(n):
            inverse = T.alloc_buffer((1,), "float32", scope="global")
            inverse_rms(lambda j: X[i, j], hidden, eps, inverse)
            for j in T.serial(hidden):
                Y[i, j] = X[i, j] * inverse[0] * W[j]

    return named(kernel, "rms_norm", hidden, eps)


@cache
def embed(vocab: int, hidden: int, dtype: str) -> PrimFunc:
    """Kernel (tokens i32[n], table [vocab, hidden], y f32[n, hidden]): rows of the table, widened.

    The table is f32, or the uint16 bits of bf16 or f16. Ids are not checked.
    """

    def value(stored: Any) -> Any:
        return stored if dtype == "f32" else widen_high(T.shift_left(T.Cast("uint32", stored), T.uint32(16)), dtype, 1)

    @T.prim_func(s_tir=True)
    def kernel(tokens: T.handle, table: T.handle, y: T.handle):  # type: ignore[no-untyped-def]
        n = T.int64()
        TOKENS = T.match_buffer(tokens, (n,), "int32")
        E = T.match_buffer(table, (vocab, hidden), STORAGE[dtype])
        Y = T.match_buffer(y, (n, hidden), "float32")
        for i in T.parallel(n):
            for j in T.serial(hidden):
                Y[i, j] = value(E[T.Cast("int64", TOKENS[i]), j])

    return named(kernel, "embed", vocab, hidden, dtype)


@cache
def take_rows(width: int) -> PrimFunc:
    """Kernel (x f32[n, width], rows i32[r], y f32[r, width]): y = x[rows]. Row numbers are not checked."""

    @T.prim_func(s_tir=True)
    def kernel(x: T.handle, rows: T.handle, y: T.handle):  # type: ignore[no-untyped-def]
        n = T.int64()
        r = T.int64()
        X = T.match_buffer(x, (n, width), "float32")
        ROWS = T.match_buffer(rows, (r,), "int32")
        Y = T.match_buffer(y, (r, width), "float32")
        for i in T.parallel(r):
            for j in T.serial(width):
                Y[i, j] = X[ROWS[i], j]

    return named(kernel, "take_rows", width)


@cache
def rope_angles(width: int, scale: float) -> PrimFunc:
    """Kernel (pos i32[n], inv_freq f32[width / 2], angles f32[n, width]): scale * [cos | sin](pos * inv_freq)."""
    half = width // 2

    @T.prim_func(s_tir=True)
    def kernel(pos: T.handle, inv_freq: T.handle, angles: T.handle):  # type: ignore[no-untyped-def]
        n = T.int64()
        POS = T.match_buffer(pos, (n,), "int32")
        INV_FREQ = T.match_buffer(inv_freq, (half,), "float32")
        ANGLES = T.match_buffer(angles, (n, width), "float32")
        for i in T.parallel(n):
            for j in T.serial(half):
                angle: T.let = T.Cast("float32", POS[i]) * INV_FREQ[j]
                ANGLES[i, j] = T.cos(angle) * T.float32(scale)
                ANGLES[i, half + j] = T.sin(angle) * T.float32(scale)

    return named(kernel, "rope_angles", width, scale)
