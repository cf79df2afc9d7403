"""Products of few rows, as in a decode step: a norm before, bias, residual or SwiGLU after in the same launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from math import prod

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Expr, kernel, store, symbols, when

from .device import Gpu
from .emit import launch, view
from .lanes import THREADS, Lanes, Memory, Weight, multiply
from .layout import pitch, stored
from .product import Product
from .source import Source

TILES = (1, 4, 8)
"""Rows that are multiplied together: the weight is read once for them."""

FEWER_TILES = TILES[:2]
"""The same where code is to be short."""

RESIDENT = {1: 2, 4: 2, 8: 1}
"""Tile -> blocks that a multiprocessor has registers for. With more of them, threads have fewer loads under way."""

BLOCKS = 256
"""For a GPU to be busy there should be about as many blocks."""


def lanes_for(k: int, n: int, wdtype: str, *, halves: int = 1, batch: int = 1, tile: int = 1) -> Lanes:
    """How threads share a product.

    Args:
        k: inputs.
        n: outputs.
        wdtype: element type of the weight.
        halves: rows of the weight of an output.
        batch: how many such products there are at once.
        tile: how many rows each has. For several, a thread has at least two rows of the weight: it reads the rows that
            are multiplied less often.
    """
    fewest = max(1, (2 if tile > 1 else 1) // halves)
    most = 4 // halves
    choices = [Lanes(k, n, wdtype, halves, columns) for columns in (most, most // 2, 1) if columns >= fewest]
    return next((lanes for lanes in choices if lanes.blocks * batch >= BLOCKS), choices[-1])


@contextmanager
def tile_of(count: Expr, tile: int, tiles: tuple[int, ...]) -> Iterator[None]:
    """What is emitted in this context runs if `tile` is the one of `tiles` for so many rows: the smallest for them."""
    below = max((other for other in tiles if other < tile), default=0)
    conditions = ([count > below] if below else []) + ([count <= tile] if tile != tiles[-1] else [])
    with when(tirx.all(*conditions)) if conditions else nullcontext():
        yield


def resident(wdtype: str, tile: int) -> int:
    """Blocks that a multiprocessor has registers for.

    One, where nvcc spilled registers for more: f32 has four times as many words, and several rows of fp8 have chains of
    a vector's products beside their sums, since these have scales.
    """
    return 1 if wdtype == "f32" or (wdtype == "fp8" and tile > 1) else RESIDENT[tile]


def aligned(*sizes: int) -> bool:
    """Whether places of f32 that are so many elements from each other are multiples of 16 bytes."""
    return all(size % 4 == 0 for size in sizes)


@cache
def few(gpu: Gpu, product: Product) -> PrimFunc:
    """Kernel for a product of a few rows; its parameters are `Product.operands`."""
    tiles = FEWER_TILES if gpu.compact else TILES
    with kernel("few", *product.names) as f:
        (rows,) = symbols("rows")
        operands = product.operands(f, rows)
        x_width = product.x_width or product.k
        source = Source(
            operands.x, product.k, product.begin, aligned(x_width, product.begin), operands.norm, product.norm_eps or 0
        )  # fmt: skip
        halves = product.halves
        weight = Weight(operands.w, lambda output, half: (output * halves + half,))
        for tile in tiles:
            lanes = lanes_for(product.k, product.n, product.wdtype, halves=halves, tile=tile)
            blocks = resident(product.wdtype, tile)
            with (
                tile_of(rows, tile, tiles),
                launch(THREADS, (rows + tile - 1) // tile, lanes.blocks, resident=blocks) as t,
            ):
                row_tile, block = t.block
                memory = Memory(gpu, lanes, tile, norm=product.norm_eps is not None)
                first = row_tile * tile

                def write(r: Expr, output: Expr, *sums: Expr, first: Expr = first) -> None:
                    operands.write(first + r, output, *sums)

                multiply(t, lanes, memory, source, clamped(first, rows, tile), weight, block, tile, rows - first, write)
    return f.function


def clamped(first: Expr, rows: Expr, tile: int) -> Callable[[Expr], Expr]:
    """Number of a row in a tile -> its index, or that of the last row if there are no so many."""
    return lambda r: first + r if tile == 1 else T.min(first + r, rows - 1)


@cache
def heads_product(
    gpu: Gpu, heads: int, k: int, n: int, wdtype: str, *, x_shape: tuple[int, ...], x_offset: int, x_stride: int,
    y_shape: tuple[int, ...], y_offset: int, y_stride: int, least: int = 1,
) -> PrimFunc:  # fmt: skip
    """Kernel for a product of each head h, of rows' elements from x_offset + h * x_stride on with w[h].

    Args:
        gpu: the device.
        heads: how many.
        k: inputs of a head.
        n: outputs of a head.
        wdtype: `f32`, `bf16`, `f16`, `q8`, `q4` or `fp8`.
        x_shape: dimensions of x after the first, taken as one.
        x_offset: first input of head 0.
        x_stride: from a head's first input to the next head's.
        y_shape: dimensions of y after the first, taken as one.
        y_offset: where the outputs of head 0 begin in a row of y.
        y_stride: from a head's first output to the next head's.
        least: for fewer rows it does nothing.

    Returns:
        (X f32[rows, *x_shape], W[heads, n, pitch] packed by `layout.pack_rows`, Y f32[rows, *y_shape]). What is
        not an output in Y is left as it is.
    """
    tiles = FEWER_TILES if gpu.compact else TILES
    shapes = ["by".join(map(str, shape)) for shape in (x_shape, y_shape)]
    places = [f"x{x_offset}s{x_stride}of{shapes[0]}", f"y{y_offset}s{y_stride}of{shapes[1]}"]
    places += [f"from{least}rows"] if least > 1 else []
    with kernel("few_heads", f"h{heads}", f"k{k}", f"n{n}", wdtype, *places) as f:
        (rows,) = symbols("rows")
        x = f.tensor("x", "f32", rows, *x_shape)
        W = f.tensor("w", stored(wdtype), heads, n, pitch(k, wdtype))
        y = f.tensor("y", "f32", rows, *y_shape)
        X, Y = view(x, rows, prod(x_shape)), view(y, rows, prod(y_shape))
        for tile in tiles[least - 1 :]:
            lanes = lanes_for(k, n, wdtype, batch=heads, tile=tile)
            with (
                tile_of(rows, tile, tiles),
                launch(THREADS, (rows + tile - 1) // tile, lanes.blocks, heads, resident=resident(wdtype, tile)) as t,
            ):
                row_tile, block, head = t.block
                first = row_tile * tile
                source = Source(X, k, x_offset + head * x_stride, aligned(prod(x_shape), x_offset, x_stride))

                def write(r: Expr, output: Expr, value: Expr, first: Expr = first, head: Expr = head) -> None:
                    store(Y, value, first + r, y_offset + head * y_stride + output)

                def place(output: Expr, _: Expr, head: Expr = head) -> tuple[Expr, ...]:
                    return head, output

                weight = Weight(W, place)
                row_of = clamped(first, rows, tile)
                memory = Memory(gpu, lanes, tile, norm=False)
                multiply(t, lanes, memory, source, row_of, weight, block, tile, rows - first, write)
    return f.function
