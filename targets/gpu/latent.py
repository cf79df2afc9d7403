"""The projected latent and key of a token become a row of the cache, and queries are turned to their positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Expr, extent, kernel, store, symbols

from .cache import as_words, pages, row_columns, write_row
from .device import Gpu
from .emit import barrier, block_sum, launch, shared, variable

THREADS = 128


def turned(i: Expr, size: int, interleaved: bool, x: Callable[[Expr], Expr], angles: Callable[[Expr], Expr]) -> Expr:
    """Element i of the RoPE of x (Su et al., 2021), which has the real parts first, then the imaginary ones.

    Pairs are (2j, 2j + 1) if interleaved, else (j, j + size / 2). Angles are [cos | sin].
    """
    middle = size // 2
    real = i < middle
    j = T.bind(T.if_then_else(real, i, i - middle))
    a, b = (x(2 * j), x(2 * j + 1)) if interleaved else (x(j), x(j + middle))
    a, b, cos, sin = T.bind(a), T.bind(b), T.bind(angles(j)), T.bind(angles(j + middle))
    return T.if_then_else(real, a * cos - b * sin, b * cos + a * sin)


@cache
def latent_write(
    gpu: Gpu, width: int, begin: int, kv_lora: int, rope: int, page: int, cdtype: str, eps: float, interleaved: bool
) -> PrimFunc:
    """Kernel that appends rows to the cache: a block for each.

    Args:
        gpu: the device.
        width: columns of the projected rows.
        begin: where the latent starts in them; the key follows it.
        kv_lora: width of the latent.
        rope: width of the rotated key.
        page: positions a page.
        cdtype: element type of the cache.
        eps: of the latent's norm.
        interleaved: whether RoPE pairs neighbours; they are stored apart either way.

    Returns:
        (x f32[n, width], norm f32[kv_lora], angles f32[n, rope], seq i32[n], pos i32[n], table i32[b, p],
        cache[pages, page, ...]); the cache is written in place.
    """
    with kernel("latent_write", width, begin, kv_lora, rope, page, cdtype, eps, int(interleaved)) as f:
        n, b, p, number = symbols("n b p pages")
        X = f.tensor("x", "f32", n, width)
        NORM = f.tensor("norm", "f32", kv_lora)
        ANGLES = f.tensor("angles", "f32", n, rope)
        SEQ, POS = f.tensor("seq", "i32", n), f.tensor("pos", "i32", n)
        TABLE = f.tensor("table", "i32", b, p)
        CACHE = as_words(pages(f, number, page, cdtype, kv_lora + rope, words=gpu.words_only), cdtype)
        columns = row_columns(cdtype, kv_lora + rope)
        with launch(THREADS, n) as t:
            row = t.block[0]
            held = shared(columns)
            squares = variable(T.float32(0))
            with t.each(kv_lora) as i:
                value = T.bind(X[row, begin + i])
                store(held, value, i)
                store(squares, squares[0] + value * value, 0)
            mean = block_sum(t, squares[0]) / T.float32(kv_lora)
            scale = T.bind(T.float32(1) / T.sqrt(mean + T.float32(eps)))
            with t.each(kv_lora) as i:
                store(held, held[i] * scale * NORM[i], i)
            with t.each(rope) as i:
                key = turned(i, rope, interleaved, lambda j: X[row, begin + kv_lora + j], lambda j: ANGLES[row, j])
                store(held, key, kv_lora + i)
            with t.each(columns - kv_lora - rope) as i:
                store(held, T.float32(0), kv_lora + rope + i)
            barrier()
            position = T.bind(extent(0) + POS[row])
            place = T.bind(TABLE[SEQ[row], position // page]), T.bind(position % page)
            write_row(t, CACHE, place, held, cdtype, kv_lora + rope)
    return f.function
