"""Kernels for many rows: products of prepared rows with weights, tile by tile."""

from __future__ import annotations

from functools import cache
from math import prod

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Expr, kernel, store, symbols, when

from .device import Gpu
from .emit import launch, view
from .layout import pitch, stored
from .product import Operands, Product
from .tiles import Multiplier, Source


@cache
def tiled(gpu: Gpu, product: Product) -> PrimFunc:
    """Kernel for a product of many rows.

    Returns:
        (PREPARED [rows, 1, pitch] from `operands.prepare`, then W, bias?, residual? and Y of `Product.operands`); the
        last is written.
    """
    halves, y_width = product.halves, product.y_width or product.n
    columns = product.n * halves
    form = Multiplier.of(gpu, product.k, columns, product.wdtype)
    tile = form.tile
    with kernel("tiled", *product.names) as f:
        (rows,) = symbols("rows")
        X = f.tensor("prepared", form.encoding.dtype, rows, 1, form.encoding.pitch)
        operands = Operands(
            product,
            x=X,
            w=f.tensor("w", stored(product.wdtype), columns, pitch(product.k, product.wdtype)),
            norm=None,
            bias=f.tensor("bias", "f32", y_width) if product.bias else None,
            residual=f.tensor("residual", "f32", rows, y_width) if product.residual else None,
            y=f.tensor("y", "f32", rows, y_width),
        )
        # blocks that follow each other have the same columns: a weight is read from memory once
        with launch(tile.threads, (rows + (tile.rows - 1)) // tile.rows, -(-columns // tile.columns)) as t:
            first, column = t.block[0] * tile.rows, t.block[1] * tile.columns
            left = Source(X, lambda row: T.min(first + row, rows - 1), lambda row: (row, T.int64(0)))
            right = Source(operands.w, lambda row: T.min(column + row, columns - 1))

            def output(row: Expr, i: Expr, *sums: Expr) -> None:
                i = column // halves + i
                with when(tirx.all(first + row < rows, i < product.n)):
                    operands.write(first + row, i, *sums)

            form.multiply(t, rows - first, left, right, output, halves)
    return f.function


@cache
def tiled_heads(
    gpu: Gpu, heads: int, k: int, n: int, wdtype: str, *, y_shape: tuple[int, ...], y_offset: int, y_stride: int
) -> PrimFunc:  # fmt: skip
    """Kernel for a product of many rows in each head: y[row, y_offset + h y_stride + j] = x[row, h] . w[h, j].

    Args:
        gpu: the device.
        heads: how many.
        k: inputs of a head.
        n: outputs of a head.
        wdtype: type of the weight.
        y_shape: dimensions of y after the first, taken as one.
        y_offset: first output of head 0.
        y_stride: from a head's first output to the next head's.

    Returns:
        (PREPARED [rows, heads, pitch] from `operands.prepare`, W [heads, n, pitch] packed by `layout.pack_rows`,
        Y f32[rows, *y_shape]). Only the outputs of Y are written.
    """
    form = Multiplier.of(gpu, k, heads * n, wdtype)
    tile = form.tile
    place = [f"y{y_offset}s{y_stride}of" + "by".join(map(str, y_shape))]
    with kernel("tiled_heads", f"h{heads}", f"k{k}", f"n{n}", wdtype, *place) as f:
        (rows,) = symbols("rows")
        X = f.tensor("prepared", form.encoding.dtype, rows, heads, form.encoding.pitch)
        W = f.tensor("w", stored(wdtype), heads, n, pitch(k, wdtype))
        Y = view(f.tensor("y", "f32", rows, *y_shape), rows, prod(y_shape))
        with launch(tile.threads, (rows + (tile.rows - 1)) // tile.rows, -(-n // tile.columns), heads) as t:
            first, column, head = t.block[0] * tile.rows, t.block[1] * tile.columns, t.block[2]
            left = Source(X, lambda row: T.min(first + row, rows - 1), lambda row: (row, head))
            right = Source(W, lambda row: T.min(column + row, n - 1), lambda row: (head, row))

            def output(row: Expr, i: Expr, value: Expr) -> None:
                row, i = first + row, column + i
                with when(tirx.all(row < rows, i < n)):
                    store(Y, value, row, y_offset + head * y_stride + i)

            form.multiply(t, rows - first, left, right, output)
    return f.function
