"""Kernels that touch each row once: norm, embedding, row selection, rotary angles."""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as builder
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, kernel, store, symbols, when

from .cache import widened
from .device import SUBGROUP
from .emit import block_sum, device, launch, variable
from .layout import pitch, stored

THREADS = 256


def threads_for(size: int, most: int = THREADS) -> int:
    """Threads of a block that shares `size` elements."""
    return min(most, -(-size // SUBGROUP) * SUBGROUP)


@cache
def rms_norm(shape: tuple[int, ...], eps: float) -> PrimFunc:
    """Kernel (x f32[n, *shape], weight f32[shape[-1]], y f32[n, *shape]): y = x / rms(x) * weight.

    Each row's squares are summed by threads in strides, then over the threads of the block in pairs.
    """
    *inner, hidden = shape
    with kernel("rms_norm", *shape, eps) as f:
        (n,) = symbols("n")
        X = f.tensor("x", "f32", n, *shape)
        WEIGHT = f.tensor("weight", "f32", hidden)
        Y = f.tensor("y", "f32", n, *shape)
        with launch(threads_for(hidden), *reversed(inner), n) as t:
            row = tuple(reversed(t.block))
            squares = variable(T.float32(0))
            with t.each(hidden) as i:
                store(squares, squares[0] + X[(*row, i)] * X[(*row, i)], 0)
            mean = block_sum(t, squares[0]) / T.float32(hidden)
            scale = T.bind(T.float32(1) / T.sqrt(mean + T.float32(eps)))
            with t.each(hidden) as i:
                store(Y, X[(*row, i)] * scale * WEIGHT[i], *row, i)
    return f.function


@cache
def embed(rows: int, hidden: int, dtype: str, begin: int | None = None) -> PrimFunc:
    """Kernel (tokens i32[n], table packed by `pack_rows`, y f32[n, hidden]): rows of the table, widened.

    Args:
        rows: of the table, or of the shard of it.
        hidden: elements of a row.
        dtype: `f32`, `bf16` or `f16`.
        begin: the first token of the shard, whose tokens alone are written; None for a whole table, whose ids are not
            checked.
    """
    shard = [] if begin is None else [f"from{begin}"]
    with kernel("embed", rows, hidden, dtype, *shard) as f:
        (n,) = symbols("n")
        TOKENS = f.tensor("tokens", "i32", n)
        TABLE = f.tensor("table", stored(dtype), rows, pitch(hidden, dtype))
        Y = f.tensor("y", "f32", n, hidden)
        with launch(threads_for(hidden), n) as t:
            row = t.block[0]
            token = T.bind(T.Cast("int64", TOKENS[row]) - (begin or 0))
            if begin is None:
                _widen(TABLE, token, dtype, hidden, t.each(hidden), Y, row)
            else:
                inside = T.bind(T.And(token >= 0, token < rows))
                with when(inside):
                    _widen(TABLE, token, dtype, hidden, t.each(hidden), Y, row)
    return f.function


def _widen(table: Buffer, token: Expr, dtype: str, hidden: int, each: Any, y: Buffer, row: Expr) -> None:
    with each as i:
        if dtype == "f32":
            store(y, table[token, i], row, i)
            return
        word = T.bind(table[token, i // 2])
        bits = T.bind(T.shift_right(word, T.Cast("uint32", i % 2 * 16)))
        store(y, widened(bits, dtype), row, i)


@cache
def take_rows(width: int) -> PrimFunc:
    """Kernel (x f32[n, width], rows i32[r], y f32[r, width]): y = x[rows]. Row numbers are not checked."""
    with kernel("take_rows", width) as f:
        n, r = symbols("n r")
        X = f.tensor("x", "f32", n, width)
        ROWS = f.tensor("rows", "i32", r)
        Y = f.tensor("y", "f32", r, width)
        with launch(threads_for(width), r) as t:
            row = t.block[0]
            taken = T.bind(T.Cast("int64", ROWS[row]))
            with t.each(width) as i:
                store(Y, X[taken, i], row, i)
    return f.function


@cache
def rope_angles(width: int, scale: float) -> PrimFunc:
    """Kernel (pos i32[n], inv_freq f32[width / 2], angles f32[n, width]): scale * [cos | sin](pos * inv_freq)."""
    half = width // 2
    with kernel("rope_angles", width, scale) as f:
        (n,) = symbols("n")
        POS = f.tensor("pos", "i32", n)
        INV_FREQ = f.tensor("inv_freq", "f32", half)
        ANGLES = f.tensor("angles", "f32", n, width)
        with launch(threads_for(half), n) as t:
            row = t.block[0]
            with t.each(half) as i:
                angle = T.bind(T.Cast("float32", POS[row]) * INV_FREQ[i])
                for part, name in enumerate(("cos", "sin")):
                    turned = device(name, angle, returns="float32")
                    builder.buffer_store(ANGLES, turned * T.float32(scale), [row, part * half + i])
    return f.function
