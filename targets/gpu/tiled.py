"""Kernels for many rows: products of prepared rows with weights, tile by tile."""

from __future__ import annotations

from functools import cache

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Expr, kernel, symbols, when

from .device import Gpu
from .emit import launch
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
    form = Multiplier.of(gpu, product.k, product.wdtype)
    tile, halves = form.tile, product.halves
    columns, y_width = product.n * halves, product.y_width or product.n
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
