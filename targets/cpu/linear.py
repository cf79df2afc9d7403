"""Linear projections, with an RMSNorm before, bias and residual after, and the gated (SwiGLU) form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .emit import Buffer, either, kernel, local, loop, parallel, store, vector_sum, workspace
from .features import Vectors
from .layout import LANES, blocks, inner, stored
from .product import Columns, Elements, Input, by_columns, product
from .vector import Expr, at, fma, silu, splat, total

SHARED_ROWS = 4
"""From how many rows on the threads share the norm: for fewer, waking them costs more."""


@cache
def proj(
    k: int,
    n: int,
    wdtype: str,
    *,
    x_width: int,
    begin: int,
    norm_eps: float | None,
    bias: bool,
    residual: bool,
    vectors: Vectors,
) -> PrimFunc:
    """Kernel for y = norm(x[:, begin:begin+k]) w^T + bias + residual; all but the product are optional.

    Args:
        k: inputs.
        n: outputs.
        wdtype: `f32`, `bf16` or `f16`.
        x_width: columns of x.
        begin: first column of x that is multiplied.
        norm_eps: epsilon of the RMSNorm; None: x isn't normed.
        bias: whether a bias is added.
        residual: whether a matrix of y's shape is added.
        vectors: registers of the CPU.

    Returns:
        (X[rows, x_width], W packed by `pack_columns`, norm[k]?, bias[n]?, residual[rows, n]?, Y[rows, n]), all
        f32 but W. Y is written.
    """
    flags = [name for name, on in (("norm", norm_eps is not None), ("bias", bias), ("res", residual)) if on]
    part = [] if (x_width, begin) == (k, 0) else [f"from{begin}of{x_width}"]
    with kernel("proj", f"k{k}", f"n{n}", wdtype, *part, *flags) as f:
        rows = tirx.Var("rows", "int64")
        X = f.tensor("x", "f32", rows, x_width)
        W = f.tensor("w", stored(wdtype), blocks(n), inner(k, wdtype), LANES)
        NORM: Any = f.tensor("norm", "f32", k) if norm_eps is not None else None
        BIAS: Any = f.tensor("bias", "f32", n) if bias else None
        RESIDUAL: Any = f.tensor("residual", "f32", rows, n) if residual else None
        Y = f.tensor("y", "f32", rows, n)
        x = rows_of(X, begin)
        if norm_eps is not None:
            x = normed(x, rows, k, NORM, norm_eps)

        def output(row: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
            def write(column: Expr, value: Expr, lanes: int) -> None:
                value = value + BIAS[column] if bias else value
                value = value + RESIDUAL[row, column] if residual else value
                store(Y, value, row, column)

            by_columns(sums[0], block, n, write)

        product(rows, blocks(n), lambda js: Columns(W, [(j,) for j in js], k, wdtype), x, output, vectors)
    return f.function


@cache
def gated_proj(k: int, i: int, wdtype: str, *, norm_eps: float | None, vectors: Vectors) -> PrimFunc:
    """Kernel for y = silu(h gate^T) * (h up^T), h = norm(x) or x: SwiGLU (Shazeer, 2020).

    Args:
        k: inputs.
        i: outputs.
        wdtype: `f32`, `bf16` or `f16`.
        norm_eps: epsilon of the RMSNorm; None: x isn't normed.
        vectors: registers of the CPU.

    Returns:
        (X[rows, k], W packed by `pack_gate_up`, norm[k]?, Y[rows, i]), all f32 but W. Y is written.
    """
    with kernel("gated_proj", f"k{k}", f"i{i}", wdtype, *(["norm"] if norm_eps is not None else [])) as f:
        rows = tirx.Var("rows", "int64")
        X = f.tensor("x", "f32", rows, k)
        W = f.tensor("w", stored(wdtype), blocks(i), 2, inner(k, wdtype), LANES)
        NORM: Any = f.tensor("norm", "f32", k) if norm_eps is not None else None
        Y = f.tensor("y", "f32", rows, i)
        x = rows_of(X)
        if norm_eps is not None:
            x = normed(x, rows, k, NORM, norm_eps)

        def output(row: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
            by_columns(gated(*sums), block, i, lambda column, value, _: store(Y, value, row, column))

        def columns(groups: Sequence[Expr]) -> Columns:
            return Columns(W, [(j, T.int64(half)) for j in groups for half in range(2)], k, wdtype)

        product(rows, blocks(i), columns, x, output, vectors, width=2)
    return f.function


def rows_of(matrix: Buffer, begin: int = 0) -> Input:
    """A matrix's columns from `begin` on."""
    return lambda row: lambda i: matrix[row, begin + i]


def gated(gate: Buffer, up: Buffer) -> Buffer:
    """silu(gate) * up of two local vectors."""
    result = local()
    store(result, silu(T.bind(gate[at(0)])) * up[at(0)], at(0))
    return result


def normed(x: Input, rows: Expr, size: int, weight: Buffer, eps: float) -> Input:
    """Emit the RMSNorm of all rows (Zhang and Sennrich, 2019) into a workspace, and read from there."""
    scratch = workspace(rows, size)

    def one(row: Expr) -> None:
        elements = x(row)
        scale = T.bind(inverse_rms(elements, size, eps))

        def write(index: Expr, lanes: int) -> None:
            store(scratch, elements(index) * splat(scale, lanes) * weight[index], row, index)

        with loop(size // LANES) as c:
            write(at(c * LANES), LANES)
        with loop(size, size // LANES * LANES) as c:
            write(c, 1)

    with either(rows < SHARED_ROWS) as (few, many):
        with few, loop(rows) as row:
            one(row)
        with many, parallel(rows) as row:
            one(row)
    return rows_of(scratch)


def inverse_rms(x: Elements, size: int, eps: float) -> Expr:
    """1 / sqrt(mean(x^2) + eps). Squares are summed in 64 chains, these are added, then the remainder."""
    chains = [vector_sum() for _ in range(4)]

    def add(chain: Buffer, vector: Expr) -> None:
        value = T.bind(x(at(vector * LANES)))
        store(chain, fma(value, value, chain[at(0)]), at(0))

    whole = size // LANES
    with loop(whole // len(chains)) as c:
        for i, chain in enumerate(chains):
            add(chain, c * len(chains) + i)
    for i in range(whole % len(chains)):
        add(chains[i], T.int64(whole // len(chains) * len(chains) + i))
    a, b, c, d = (chain[at(0)] for chain in chains)
    squares = local(1)
    store(squares, total((a + b) + (c + d)), 0)
    with loop(size, whole * LANES) as i:
        value = T.bind(x(i))
        store(squares, fma(value, value, squares[0], lanes=1), 0)
    return T.float32(1) / T.sqrt(squares[0] / T.float32(size) + T.float32(eps))
