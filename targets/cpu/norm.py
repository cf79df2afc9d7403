"""Kernels that touch each row once: norm, embedding, row selection, rotary angles."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Expr, kernel, loop, store, symbols

from .cache import widened
from .emit import each_row, each_vector, variable, vector_sum
from .layout import LANES
from .product import Elements, Write, accumulate, rows_of
from .vector import at, fma, splat, tree_sum


def inverse_rms(x: Elements, size: int, eps: float, chains: int = 1, add: Callable[[Expr], Expr] = tree_sum) -> Expr:
    """Emit 1 / sqrt(mean(x^2) + eps). Squares are summed in chains of vectors, these are added, then the remainder.

    Args:
        x: elements.
        size: how many.
        eps: epsilon.
        chains: 1, 2 or 4 independent sums.
        add: what sums the lanes of a vector.
    """
    sums = [vector_sum() for _ in range(chains)]
    whole = size // LANES

    def square(chain: int, vector: Expr) -> None:
        value = T.bind(x(at(vector * LANES)))
        accumulate([sums[chain]], [value], value)

    with loop(whole // chains) as c:
        for i in range(chains):
            square(i, c * chains + i)
    for i in range(whole % chains):
        square(i, T.int64(whole // chains * chains + i))
    lanes = [chain[at(0)] for chain in sums]
    while len(lanes) > 1:
        lanes = [a + b for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
    squares = variable(add(lanes[0]))
    with loop(size, whole * LANES) as i:
        value = T.bind(x(i))
        store(squares, fma(value, value, squares[0], lanes=1), 0)
    return T.bind(T.float32(1) / T.sqrt(squares[0] / T.float32(size) + T.float32(eps)))


def normalize(x: Elements, scale: Expr, weight: Elements, size: int, write: Write) -> None:
    """Emit the writing of x * scale * weight."""
    each_vector(size, lambda i, lanes: write(i, x(i) * splat(scale, lanes) * weight(i), lanes))


def rotate(x: Elements, angles: Elements, width: int, interleaved: bool, write: Write) -> None:
    """Emit the RoPE of one head (Su et al., 2021), written as [real | imaginary] parts.

    Pairs are (2i, 2i + 1) if interleaved, else (i, i + width / 2). Angles are [cos | sin].
    """
    half = width // 2

    def pairs(i: Expr, lanes: int) -> None:
        both = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        real, imaginary, cos, sin = map(T.bind, (*map(x, both), angles(i), angles(i + half)))
        write(i, fma(real, cos, -(imaginary * sin), lanes), lanes)
        write(i + half, fma(imaginary, cos, real * sin, lanes), lanes)

    each_vector(half, pairs)


@cache
def rms_norm(hidden: int, eps: float) -> PrimFunc:
    """Kernel (x f32[n, hidden], weight f32[hidden], y f32[n, hidden]): y = x / rms(x) * weight."""
    with kernel("rms_norm", hidden, eps) as f:
        (n,) = symbols("n")
        X = f.tensor("x", "f32", n, hidden)
        WEIGHT = f.tensor("weight", "f32", hidden)
        Y = f.tensor("y", "f32", n, hidden)

        def one(row: Expr) -> None:
            x = rows_of(X)(row)
            scale = inverse_rms(x, hidden, eps)
            normalize(x, scale, WEIGHT.__getitem__, hidden, lambda i, value, lanes: store(Y, value, row, i))

        each_row(n, one)
    return f.function


@cache
def embed(vocab: int, hidden: int, dtype: str) -> PrimFunc:
    """Kernel (tokens i32[n], table [vocab, hidden], y f32[n, hidden]): rows of the table, widened.

    The table is f32, or the uint16 bits of bf16 or f16. Ids are not checked.
    """
    with kernel("embed", vocab, hidden, dtype) as f:
        (n,) = symbols("n")
        TOKENS = f.tensor("tokens", "i32", n)
        TABLE = f.tensor("table", dtype, vocab, hidden)
        Y = f.tensor("y", "f32", n, hidden)

        def one(row: Expr) -> None:
            token = T.bind(T.Cast("int64", TOKENS[row]))
            each_vector(hidden, lambda i, lanes: store(Y, widened(TABLE[token, i], dtype, lanes), row, i))

        each_row(n, one)
    return f.function


@cache
def take_rows(width: int) -> PrimFunc:
    """Kernel (x f32[n, width], rows i32[r], y f32[r, width]): y = x[rows]. Row numbers are not checked."""
    with kernel("take_rows", width) as f:
        n, r = symbols("n r")
        X = f.tensor("x", "f32", n, width)
        ROWS = f.tensor("rows", "i32", r)
        Y = f.tensor("y", "f32", r, width)

        def one(row: Expr) -> None:
            taken = T.bind(T.Cast("int64", ROWS[row]))
            each_vector(width, lambda i, lanes: store(Y, X[taken, i], row, i))

        each_row(r, one)
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

        def one(row: Expr) -> None:
            with loop(half) as i:
                angle = T.bind(T.Cast("float32", POS[row]) * INV_FREQ[i])
                store(ANGLES, T.cos(angle) * T.float32(scale), row, i)
                store(ANGLES, T.sin(angle) * T.float32(scale), row, half + i)

        each_row(n, one)
    return f.function
