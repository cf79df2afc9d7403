"""Linear projections, with an RMSNorm before, bias and residual after, and the gated (SwiGLU) form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, kernel, store, symbols

from .emit import each_row, vector_of, workspace
from .features import Vectors
from .layout import LANES, blocks, inner, stored
from .methods import method_of
from .norm import inverse_rms, normalize
from .product import Columns, Input, by_columns, product, rows_of
from .vector import at, silu, total


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
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
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
    extras = ((f"norm{norm_eps}", norm_eps is not None), ("bias", bias), ("res", residual))
    flags = [name for name, on in extras if on]
    part = [] if (x_width, begin) == (k, 0) else [f"from{begin}of{x_width}"]
    with kernel("proj", f"k{k}", f"n{n}", wdtype, *part, *flags) as f:
        (rows,) = symbols("rows")
        X = f.tensor("x", "f32", rows, x_width)
        W = f.tensor("w", stored(wdtype), blocks(n), *inner(k, wdtype), LANES)
        NORM: Any = f.tensor("norm", "f32", k) if norm_eps is not None else None
        BIAS: Any = f.tensor("bias", "f32", n) if bias else None
        RESIDUAL: Any = f.tensor("residual", "f32", rows, n) if residual else None
        Y = f.tensor("y", "f32", rows, n)
        x = rows_of(X, begin)
        if norm_eps is not None:
            x = normed(x, rows, k, NORM, norm_eps)
        method = method_of(wdtype, vectors)
        x = method.encoded(x, rows, k)

        def output(row: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
            def write(column: Expr, value: Expr, lanes: int) -> None:
                value = value + BIAS[column] if bias else value
                value = value + RESIDUAL[row, column] if residual else value
                store(Y, value, row, column)

            by_columns(sums[0], block, n, write)

        def columns(js: Sequence[Expr]) -> Columns:
            return Columns(W, [(j,) for j in js], k, wdtype)

        product(rows, blocks(n), columns, x, output, method)
    return f.function


@cache
def gated_proj(k: int, i: int, wdtype: str, *, norm_eps: float | None, vectors: Vectors) -> PrimFunc:
    """Kernel for y = silu(h gate^T) * (h up^T), h = norm(x) or x: SwiGLU (Shazeer, 2020).

    Args:
        k: inputs.
        i: outputs.
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
        norm_eps: epsilon of the RMSNorm; None: x isn't normed.
        vectors: registers of the CPU.

    Returns:
        (X[rows, k], W packed by `pack_gate_up`, norm[k]?, Y[rows, i]), all f32 but W. Y is written.
    """
    with kernel("gated_proj", f"k{k}", f"i{i}", wdtype, *([f"norm{norm_eps}"] if norm_eps is not None else [])) as f:
        (rows,) = symbols("rows")
        X = f.tensor("x", "f32", rows, k)
        W = f.tensor("w", stored(wdtype), blocks(i), 2, *inner(k, wdtype), LANES)
        NORM: Any = f.tensor("norm", "f32", k) if norm_eps is not None else None
        Y = f.tensor("y", "f32", rows, i)
        x = rows_of(X)
        if norm_eps is not None:
            x = normed(x, rows, k, NORM, norm_eps)
        method = method_of(wdtype, vectors)
        x = method.encoded(x, rows, k)

        def output(row: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
            by_columns(gated(*sums), block, i, lambda column, value, _: store(Y, value, row, column))

        def columns(groups: Sequence[Expr]) -> Columns:
            taken = [(j, T.int64(half)) for j in groups for half in range(2)]
            return Columns(W, taken, k, wdtype)

        product(rows, blocks(i), columns, x, output, method, width=2)
    return f.function


def gated(gate: Buffer, up: Buffer) -> Buffer:
    """silu(gate) * up of two local vectors."""
    return vector_of(silu(T.bind(gate[at(0)])) * up[at(0)])


def normed(x: Input, rows: Expr, size: int, weight: Buffer, eps: float) -> Input:
    """Emit the RMSNorm of all rows (Zhang and Sennrich, 2019) into a workspace, and read from there."""
    scratch = workspace(rows, size)

    def one(row: Expr) -> None:
        scale = inverse_rms(x(row), size, eps, chains=4, add=total)
        normalize(x(row), scale, weight.__getitem__, size, lambda i, value, lanes: store(scratch, value, row, i))

    each_row(rows, one)
    return rows_of(scratch)
