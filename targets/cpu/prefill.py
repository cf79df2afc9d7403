"""Latent attention for many rows a sequence: keys and values of a head are expanded once and serve all rows.

The online-softmax form of attention (Dao et al., FlashAttention, 2022). A task is one head of one sequence. For each
block of positions, in order:

    K  = [C_latent W_UK^T | C_key]    of its cache rows C     [positions, nope + rope]
    V  = C_latent W_UV^T                                      [positions, v]
    for tiles of rows:  S = scale * Q K^T, masked by position; weights and running sums; out = out * decay + weights V

C, K, S, V and weights are made as products take them (`factors`): on a CPU with products of pairs of bf16, all of them
but S are rounded to bf16 where the cache is of bf16, and so are queries and the weights of the model. Sums are f32.

Blocks are cut at absolute positions, whatever the pages, and positions that a row must not see weigh exactly 0. Rows
are told apart only by their own sums. So a row's bits don't depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.ir.fp8 import FP8, SIDE
from deepzig.ir.quantize import GROUP, QUANTIZED
from deepzig.targets.emit import Buffer, Expr, extent, kernel, loop, store, symbols, when

from .cache import Place, pages
from .emit import local, parallel, vector_of, workspace
from .factors import LeftMatrix, RightMatrix, form_of
from .features import Vectors
from .fp8 import LIFT, LOWER, STEP, as_floats
from .layout import LANES, blocks, grouped, inner, padded, stored
from .norm import rotate
from .product import Columns, Elements, by_columns, each_part, rows_by_tiles, scale_of
from .quant import widen_integers
from .softmax import MASKED, Softmax
from .vector import at, splat, widen

SPAN = 256
"""Positions of a block, a multiple of a tile's. More would leave the cache of level 2; fewer scale the sums oftener."""


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
    depth, form = nope + rope, form_of(cdtype, vectors)
    lines, held = vectors.tile
    group = held * LANES
    multiply_rows = partial(rows_by_tiles, shape=vectors.tile, multiply=form.multiply)
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
        form.begin()

        def attention(head: Expr, sequence: Expr, first: Expr, rows: Expr) -> None:
            """Emit the task of a head and of a sequence's rows."""
            # Sizes are n, not rows: TVM moves allocations to where the number of rows is not known yet.
            query, sums, softmax = LeftMatrix.of(form, n, depth), workspace(n, padded(v)), Softmax.of(n)
            up = LeftMatrix.of(form, grouped(nope), kv_lora)
            latents = RightMatrix.of(form, group, padded(kv_lora + rope))
            keys, values = RightMatrix.of(form, SPAN, depth), RightMatrix.of(form, v, SPAN)
            scores, decay, weights = workspace(lines, SPAN), workspace(lines), LeftMatrix.of(form, lines, SPAN)
            # Codes are widened once; other elements take as long to read from memory as they take to widen.
            down = None if wdtype in form.weights else RightMatrix.of(form, v, grouped(kv_lora))

            def prepare(row: Expr) -> None:
                scaled = workspace(padded(depth))
                with loop(nope) as i:
                    store(scaled, Q[first + row, head * depth + i] * T.float32(scale), i)
                rotate(
                    lambda i: Q[first + row, head * depth + nope + i],
                    lambda i: ANGLES[first + row, i],
                    rope,
                    interleaved,
                    lambda i, value, lanes: store(scaled, value * splat(scale, lanes), nope + i),
                )
                with loop(padded(depth), depth) as i:
                    store(scaled, T.float32(0), i)
                with loop(blocks(depth)) as c:
                    query.put(row, c, scaled[at(c * LANES)])
                with loop(blocks(v)) as c:
                    store(sums, splat(0.0), row, at(c * LANES))
                softmax.clear(row)

            def place(position: Expr) -> Place:
                return T.bind(T.Cast("int64", TABLE[sequence, position // page])), T.bind(position % page)

            def expand(begin: Expr, part: Expr, last: Expr) -> None:
                """Keys and values of a group of the positions from `begin` on. The last one is repeated beyond it."""
                here = [T.int64(i) for i in range(held)]
                taken = [part * held + i for i in range(held)]
                for i, c in zip(here, taken, strict=True):
                    positions = [T.bind(T.min(begin + c * LANES + lane, last)) for lane in range(LANES)]
                    latents.put_cached(CACHE, [place(t) for t in positions], i, cdtype, kv_lora + rope)
                own = latents.columns(here, kv_lora)
                multiply_rows(own, T.int64(0), T.int64(nope), up.elements, keys.rows(taken))
                for i, c in zip(here, taken, strict=True):
                    with loop(rope) as k:
                        keys.put(c, nope + k, latents.get(i, kv_lora + k))

                def latent(t: Expr) -> Elements:
                    return latents.elements(t - part * group)

                with each_part(blocks(v), held) as columns:
                    if down:
                        weight = down.columns(columns, kv_lora)
                    else:
                        weight = Columns(UV, [(head, c) for c in columns], kv_lora, wdtype)
                    multiply_rows(weight, part * group, (part + 1) * group, latent, values.rows(columns))

            def attend(begin: Expr, top: Expr) -> None:
                """The tile of rows from `top` on sees the positions from `begin` on."""
                taken = [T.bind(T.min(top + line, rows - 1)) for line in range(lines)]
                with when(POS[first + taken[-1]] >= begin):
                    seen = [T.bind(T.Cast("int32", T.min(POS[first + row] - begin, SPAN - 1))) for row in taken]
                    parts = T.bind(T.Cast("int64", seen[-1]) // group + 1)
                    with loop(parts) as part:
                        positions = [part * held + i for i in range(held)]
                        products = form.multiply(keys.columns(positions), taken, query.elements)
                        for line, totals in enumerate(products):
                            for c, total in zip(positions, totals, strict=True):
                                visible = at(T.Cast("int32", c * LANES)) <= T.broadcast(seen[line], LANES)
                                score = T.Select(visible, total[at(0)], splat(MASKED))
                                store(scores, score, line, at(c * LANES))
                    with loop(T.min(lines, rows - top)) as line:
                        softmax.weigh(
                            top + line, scores, line, parts * group, decay, lambda c, some: weights.put(line, c, some)
                        )
                    with each_part(blocks(v), held) as columns:

                        def faded(line: int, block: tuple[Expr, ...]) -> Expr:
                            return sums[taken[line], at(block[0] * LANES)] * splat(decay[line])

                        of_seen = values.columns(columns, parts * group)
                        for line, totals in enumerate(form.multiply(of_seen, range(lines), weights.elements, faded)):
                            with when(top + line < rows):
                                for c, total in zip(columns, totals, strict=True):
                                    store(sums, total[at(0)], taken[line], at(c * LANES))

            with loop(rows) as row:
                prepare(row)
            each_widened(UK, head, nope, wdtype, lambda c, k, value: up.put(k, c, value))
            if down:
                each_widened(UV, head, kv_lora, wdtype, down.put)
            last = T.bind(T.Cast("int64", POS[first + rows - 1]))
            with loop(last // SPAN + 1) as span:
                begin = T.bind(span * SPAN)
                with loop(T.min(last - begin, SPAN - 1) // group + 1) as part:
                    expand(begin, part, last)
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
                for i, value in enumerate(as_floats(T.bind(weight[head, block, g, number, at(0)]))):
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
