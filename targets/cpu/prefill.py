"""Latent attention for many rows a sequence: keys and values of a head are expanded once and serve all rows.

The online-softmax form of attention (Dao et al., FlashAttention, 2022) over pages. A task is one head of one sequence.
For each page, in order of position:

    C  = its cache rows, widened                          [positions, cw]
    K  = [C_latent W_UK^T | C_key]                        [positions, nope + rope]
    V  = C_latent W_UV^T                                  [positions, v]
    for tiles of rows:  S = scale * Q K^T, masked by position; weights and running sums; out = out * decay + weights V

S, K, V and the outputs are products with packed columns: those of C and K are positions. Rows are told apart only by
their own sums, so a row's bits don't depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.ir.fp8 import FP8, SIDE
from deepzig.ir.quantize import FORMATS, GROUP, QUANTIZED
from deepzig.targets.emit import Buffer, Expr, extent, kernel, loop, store, symbols, when

from .cache import columns, pages, pair_order
from .emit import local, parallel, vector_of, view, workspace
from .features import Vectors
from .fp8 import LIFT, LOWER, STEP, widen_codes
from .layout import LANES, blocks, grouped, inner, padded, stored
from .norm import rotate
from .product import Columns, Elements, Output, by_columns, each_part, rows_by_tiles, rows_of, scale_of, tile
from .quant import widen_integers
from .softmax import MASKED, Softmax
from .vector import at, splat, widen


@cache
def mla_prefill(
    heads: int,
    nope: int,
    rope: int,
    kv_lora: int,
    v: int,
    page: int,
    cdtype: str,
    wdtype: str,
    scale: float,
    interleaved: bool,
    *,
    vectors: Vectors,
) -> PrimFunc:
    """Kernel of causal attention in head space, reading keys and values from the cache only.

    Rows of a sequence must be consecutive, in ascending order of position; they may start at any position.

    Returns:
        (q f32[n, heads * (nope + rope)], angles f32[n, rope], cache[pages, page, ...],
        w_uk packed [heads, N = kv_lora, K = nope], w_uv packed [heads, N = v, K = kv_lora], seq i32[n], pos i32[n],
        table i32[b, p], out f32[n, heads * v]).
    """
    depth, cw, width = nope + rope, padded(kv_lora + rope), padded(page)
    lines, held = vectors.tile
    multiply_rows = partial(rows_by_tiles, shape=vectors.tile, multiply=tile)
    name = ["mla_prefill", heads, nope, rope, kv_lora, v, page, cdtype, wdtype, scale, int(interleaved)]
    with kernel(*name) as f:
        n, b, p, number = symbols("n b p pages")
        Q = f.tensor("q", "f32", n, heads * depth)
        ANGLES = f.tensor("angles", "f32", n, rope)
        CACHE = pages(f, number, page, cdtype, kv_lora + rope)
        UK = f.tensor("w_uk", stored(wdtype), heads, blocks(kv_lora), *inner(nope, wdtype), LANES)
        UV = f.tensor("w_uv", stored(wdtype), heads, blocks(v), *inner(kv_lora, wdtype), LANES)
        SEQ, POS = f.tensor("seq", "i32", n), f.tensor("pos", "i32", n)
        TABLE = f.tensor("table", "i32", b, p)
        Y = f.tensor("out", "f32", n, heads * v)

        def attention(head: Expr, sequence: Expr, first: Expr, rows: Expr) -> None:
            """Emit the task of a head and of a sequence's rows."""
            # Sizes are n, not rows: TVM moves allocations to where the number of rows is not known yet.
            query, sums, softmax = workspace(n, depth), workspace(n, padded(v)), Softmax.of(n)
            up, latents = workspace(grouped(nope), padded(kv_lora)), workspace(width // LANES, cw, LANES)
            keys, values = workspace(width // LANES, depth, LANES), workspace(blocks(v), width, LANES)
            scores, decay = workspace(lines, width), workspace(lines)
            # codes are widened once; wider elements take as long to read from memory as they take to widen
            down: Any = workspace(blocks(v), grouped(kv_lora), LANES) if wdtype in FORMATS else None

            def prepare(row: Expr) -> None:
                with loop(nope) as i:
                    store(query, Q[first + row, head * depth + i] * T.float32(scale), row, i)
                rotate(
                    lambda i: Q[first + row, head * depth + nope + i],
                    lambda i: ANGLES[first + row, i],
                    rope,
                    interleaved,
                    lambda i, value, lanes: store(query, value * splat(scale, lanes), row, nope + i),
                )
                with loop(blocks(v)) as c:
                    store(sums, splat(0.0), row, at(c * LANES))
                softmax.clear(row)

            def expand() -> None:
                with each_part(width // LANES, held) as taken:
                    positions = Columns(latents, [(c,) for c in taken], kv_lora, "f32", ahead=0)
                    multiply_rows(positions, T.int64(0), T.int64(nope), rows_of(up), into(keys, taken))
                    for c in taken:
                        with loop(rope) as i:
                            store(keys, latents[c, kv_lora + i, at(0)], c, nope + i, at(0))

                def latent(t: Expr) -> Elements:
                    return lambda k: latents[t // LANES, k, t % LANES]

                with each_part(blocks(v), held) as taken:
                    if wdtype in FORMATS:
                        part = Columns(down, [(c,) for c in taken], kv_lora, "f32", ahead=0)
                    else:
                        part = Columns(UV, [(head, c) for c in taken], kv_lora, wdtype)
                    multiply_rows(part, T.int64(0), T.int64(width), latent, into(values, taken))

            def attend(begin: Expr, top: Expr) -> None:
                """The tile of rows from `top` on sees the page that starts at position `begin`."""
                taken = [T.bind(T.min(top + line, rows - 1)) for line in range(lines)]
                with when(POS[first + taken[-1]] >= begin):
                    seen = [T.bind(T.Cast("int32", T.min(POS[first + row] - begin, page - 1))) for row in taken]
                    with each_part(width // LANES, held) as positions:
                        part = Columns(keys, [(c,) for c in positions], depth, "f32", ahead=0)
                        for line, totals in enumerate(tile(part, taken, rows_of(query))):
                            for c, total in zip(positions, totals, strict=True):
                                visible = at(T.Cast("int32", c * LANES)) <= T.broadcast(seen[line], LANES)
                                score = T.Select(visible, total[at(0)], splat(MASKED))
                                store(scores, score, line, at(c * LANES))
                    with loop(T.min(lines, rows - top)) as line:
                        softmax.weigh(top + line, scores, line, width, decay)
                    with each_part(blocks(v), held) as part_columns:
                        part = Columns(values, [(c,) for c in part_columns], width, "f32", ahead=0)

                        def faded(line: int, block: tuple[Expr, ...]) -> Expr:
                            return sums[taken[line], at(block[0] * LANES)] * splat(decay[line])

                        for line, totals in enumerate(tile(part, range(lines), rows_of(scores), faded)):
                            with when(top + line < rows):
                                for c, total in zip(part_columns, totals, strict=True):
                                    store(sums, total[at(0)], taken[line], at(c * LANES))

            with loop(rows) as row:
                prepare(row)
            each_widened(UK, head, nope, wdtype, lambda c, k, value: store(up, value, k, at(c * LANES)))
            if wdtype in FORMATS:
                each_widened(UV, head, kv_lora, wdtype, lambda c, k, value: store(down, value, c, k, at(0)))
            last = T.bind(T.Cast("int64", POS[first + rows - 1]))
            with loop(last // page + 1) as block:
                begin = T.bind(block * page)
                # Positions without a row are masked; repeating the last one keeps them finite.
                limit = T.bind(T.min(page - 1, last - begin))
                cached = T.bind(T.Cast("int64", TABLE[sequence, block]))
                transpose(latents, CACHE, cached, limit, cdtype, kv_lora + rope)
                expand()
                with loop((rows + (lines - 1)) // lines) as t:
                    attend(begin, t * lines)
            with loop(rows) as row, loop(blocks(v)) as c:
                mean = vector_of(sums[row, at(c * LANES)] / splat(softmax.mass[row]))
                by_columns(mean, c, v, lambda i, value, _: store(Y, value, first + row, head * v + i))

        with parallel(heads * b) as task:
            sequence = T.bind(task % b)
            bounds = local(2, "int64")
            store(bounds, n, 0)
            store(bounds, T.int64(0), 1)
            with loop(n) as i, when(T.Cast("int64", SEQ[i]) == sequence):
                store(bounds, T.min(bounds[0], i), 0)
                store(bounds, i + 1, 1)
            with when(bounds[0] < bounds[1]):
                first = T.bind(bounds[0])
                attention(T.bind(task // b), sequence, first, T.bind(bounds[1] - first))
    return f.function


def into(packed: Buffer, taken: Sequence[Expr]) -> Output:
    """Rows of a product as vectors of packed[block, row]."""

    def write(row: Expr, sums: Sequence[Buffer]) -> None:
        for block, total in zip(taken, sums, strict=True):
            store(packed, total[at(0)], block, row, at(0))

    return write


def each_widened(weight: Buffer, head: Expr, size: int, wdtype: str, write: Callable[[Expr, Expr, Expr], None]) -> None:
    """Emit write(block, k, vector) for k < size and the blocks of a head of a packed weight, in f32.

    Of integers also for what fills the last group, which is zero.
    """
    with loop(weight.shape[1]) as block:
        if wdtype == "f32":
            with loop(size) as k:
                write(block, k, weight[head, block, k, at(0)])
            return
        if wdtype == FP8:
            with loop(size // SIDE) as g, loop(SIDE // STEP) as number:
                scale = T.bind(scale_of(weight, (head, block), g) * splat(LOWER))
                for i, value in enumerate(widen_codes(T.bind(weight[head, block, g, number, at(0)]))):
                    write(block, g * SIDE + number * STEP + i, value * splat(LIFT) * scale)
            return
        if wdtype in QUANTIZED:
            with loop(weight.shape[2]) as g, loop(weight.shape[3] - 1) as number:
                scale = T.bind(scale_of(weight, (head, block), g))
                word = T.bind(weight[head, block, g, number, at(0)])
                for i, code in widen_integers(word, wdtype):
                    write(block, g * GROUP + number * STEP + i, code * scale)
            return
        with loop(size // 2) as pair:
            word = T.bind(weight[head, block, pair, at(0)])
            for odd in range(2):
                write(block, pair * 2 + odd, widen(word, wdtype, bool(odd)))
        if size % 2:
            word = weight[head, block, size // 2, at(0)]
            write(block, extent(size - 1), widen(word, wdtype, False))


def transpose(packed: Buffer, cache: Buffer, number: Expr, limit: Expr, cdtype: str, of_row: int) -> None:
    """Emit packed[t // 16, column, t % 16] = cache[number, min(t, limit), column] for all columns, in f32."""
    positions, width, _ = map(int, packed.shape)
    flat = view(packed, positions * width * LANES)
    with loop(positions * LANES) as t, loop(width // LANES) as c:
        row = T.bind(columns(cache, (number, T.min(t, limit)), c, cdtype, of_row))
        target = (t // LANES * width + c * LANES) * LANES + t % LANES
        for half, index in zip((T.vectorlow, T.vectorhigh), pair_order(target, cdtype, LANES), strict=True):
            store(flat, half("float32x8", row), index)
