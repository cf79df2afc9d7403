"""Latent attention for few rows a sequence (DeepSeek-V2 paper, section 2.1.2): queries move into latent space.

    latent_write    cache row = [norm(latent) | rope(key)]
    mla_absorb      query = [W_UK^T q_nope | rope(q_rot)]      the shape of a cache row
    mla_attend      softmax(scale * query . cache rows) applied to the latent part of the cache rows
    mla_lift        output = W_UV latent

Every sum has one order, fixed by the static sizes and the row's position: blocks of positions are whole pages, a
context is cut into sections of whole blocks by its length alone (`sections`), and no two tasks add to the same element.
So a row's bits depend neither on other rows, nor on threads, nor on page numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from deepzig.targets.emit import Buffer, Expr, kernel, loop, store, symbols

from .attend_pairs import WIDE, mla_attend_pairs
from .cache import columns, gather, new_row, pages, pair_order
from .emit import each_row, vector_of, vector_sum, workspace
from .features import Vectors
from .layout import LANES, blocks, inner, padded, stored
from .methods import method_of
from .norm import inverse_rms, normalize, rotate
from .product import Columns, GroupOutput, Groups, Input, accumulate, by_columns, products
from .sections import Found, Section, by_sections
from .softmax import MASKED, Softmax
from .vector import at, splat, tree_sum

HEADS_PER_TASK = 8


@cache
def latent_write(
    width: int, begin: int, kv_lora: int, rope: int, page: int, cdtype: str, eps: float, interleaved: bool
) -> PrimFunc:
    """Kernel that appends rows to the cache.

    Args:
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
        CACHE = pages(f, number, page, cdtype, kv_lora + rope)

        def one(row: Expr) -> None:
            place = T.bind(T.Cast("int64", TABLE[SEQ[row], POS[row] // page])), T.bind(POS[row] % page)
            with new_row(CACHE, place, cdtype, kv_lora + rope) as write:

                def key(i: Expr, value: Expr, lanes: int) -> None:
                    write(kv_lora + i, value, lanes)

                scale = inverse_rms(lambda i: X[row, begin + i], kv_lora, eps)
                normalize(lambda i: X[row, begin + i], scale, NORM.__getitem__, kv_lora, write)
                rotate(lambda i: X[row, begin + kv_lora + i], lambda i: ANGLES[row, i], rope, interleaved, key)

        each_row(n, one)
    return f.function


@cache
def mla_absorb(
    heads: int, nope: int, rope: int, kv_lora: int, wdtype: str, interleaved: bool, *, vectors: Vectors
) -> PrimFunc:
    """Kernel that moves queries into latent space.

    Returns:
        (q f32[n, heads * (nope + rope)], angles f32[n, rope], w_uk packed [heads, N = kv_lora, K = nope],
        absorbed f32[n, heads, cw]); columns beyond kv_lora + rope become zero.
    """
    cw, depth = padded(kv_lora + rope), nope + rope
    with kernel("mla_absorb", heads, nope, rope, kv_lora, wdtype, int(interleaved)) as f:
        (n,) = symbols("n")
        Q = f.tensor("q", "f32", n, heads * depth)
        ANGLES = f.tensor("angles", "f32", n, rope)
        W = f.tensor("w_uk", stored(wdtype), heads, blocks(kv_lora), *inner(nope, wdtype), LANES)
        Y = f.tensor("absorbed", "f32", n, heads, cw)

        method = method_of(wdtype, vectors)
        x = method.encoded(lambda i: lambda j: Q[i % n, i // n * depth + j], heads * n, nope)

        def factors(head: Expr) -> tuple[Groups, Input, GroupOutput]:
            def output(row: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
                by_columns(sums[0], block, kv_lora, lambda i, value, _: store(Y, value, row, head, i))

            return (
                lambda taken: Columns(W, [(head, block) for block in taken], nope, wdtype),
                lambda row: x(head * n + row),
                output,
            )

        def turn(head: Expr, row: Expr) -> None:
            rotate(
                lambda i: Q[row, head * depth + nope + i],
                lambda i: ANGLES[row, i],
                rope,
                interleaved,
                lambda i, value, _: store(Y, value, row, head, kv_lora + i),
            )
            with loop(cw, kv_lora + rope) as i:
                store(Y, T.float32(0), row, head, i)

        products(heads, n, blocks(kv_lora), factors, method, beside=turn)
    return f.function


@cache
def mla_attend(
    heads: int, kv_lora: int, rope: int, page: int, cdtype: str, scale: float, *, vectors: Vectors
) -> PrimFunc:
    """Kernel of causal attention in latent space: all heads share the cache rows as keys and as values.

    A task is one row, up to 8 heads, and a section of the context; each load of cached columns serves a tile of heads.

    Returns:
        (absorbed f32[n, heads, cw], cache[pages, page, ...], seq i32[n], pos i32[n], table i32[b, p],
        latent f32[n, heads, cl]); columns beyond kv_lora are not meaningful.
    """
    cw, cl = padded(kv_lora + rope), padded(kv_lora)
    if vectors.pairs and cdtype == "bf16" and cw >= WIDE:
        return mla_attend_pairs(heads, kv_lora, rope, page, scale)
    tile = min(HEADS_PER_TASK, vectors.registers * vectors.lanes // LANES // 2)
    tiles = -(-min(heads, HEADS_PER_TASK) // tile)
    group = tiles * tile
    groups = -(-heads // group)
    width = padded(page)
    with kernel("mla_attend", heads, kv_lora, rope, page, cdtype, scale) as f:
        n, b, p, number = symbols("n b p pages")
        Q = f.tensor("absorbed", "f32", n, heads, cw)
        CACHE = pages(f, number, page, cdtype, kv_lora + rope)
        SEQ, POS = f.tensor("seq", "i32", n), f.tensor("pos", "i32", n)
        TABLE = f.tensor("table", "i32", b, p)
        Y = f.tensor("latent", "f32", n, heads, cl)

        def attend(task: Section, found: Found) -> None:
            """Emit a task. Heads beyond the last repeat it."""
            row, place, first = task.row, task.place, T.bind(task.group * group)
            query, scores, decay = workspace(group, cw), workspace(group, width), workspace(group)
            softmax = Softmax.of(group)
            with loop(group) as g:
                softmax.clear(g)
                head = T.bind(T.min(first + g, heads - 1))
                with loop(cw // LANES) as c:
                    some = gather(lambda i: Q[row, head, i], c * LANES, cdtype)
                    store(query, some * splat(scale), g, at(c * LANES))
                with loop(cl // LANES) as c:
                    store(found.sums, splat(0.0), place, first + g, at(c * LANES))

            with loop(task.end, task.begin) as block:
                cached = T.bind(T.Cast("int64", TABLE[SEQ[row], block]))
                count = T.bind(T.min(page, T.Cast("int64", POS[row]) + 1 - block * page))
                with loop(tiles) as u, loop(count) as t:
                    lines = [u * tile + r for r in range(tile)]
                    dots = [vector_sum() for _ in lines]
                    with loop(cw // LANES) as c:
                        key = columns(CACHE, (cached, t), c, cdtype, kv_lora + rope)
                        accumulate(dots, [query[g, at(c * LANES)] for g in lines], key)
                    for g, dot in zip(lines, dots, strict=True):
                        store(scores, tree_sum(dot[at(0)]), g, t)
                with loop(group) as g:
                    with loop(width, count) as t:
                        store(scores, T.float32(MASKED), g, t)
                    softmax.weigh(g, scores, g, width, decay, lambda c, weight: store(scores, weight, g, at(c * LANES)))
                with loop(cl // LANES) as c, loop(tiles) as u:
                    lines = [u * tile + r for r in range(tile)]
                    means = [vector_of(found.sums[place, first + g, at(c * LANES)] * splat(decay[g])) for g in lines]
                    with loop(count) as t:
                        value = columns(CACHE, (cached, t), c, cdtype, kv_lora + rope)
                        accumulate(means, [splat(scores[g, t]) for g in lines], value)
                    for g, mean in zip(lines, means, strict=True):
                        store(found.sums, mean[at(0)], place, first + g, at(c * LANES))
            with loop(group) as g:
                store(found.peaks, softmax.peak[g], place, first + g)
                store(found.masses, softmax.mass[g], place, first + g)

        def write(row: Expr, head: Expr, c: Expr, means: Sequence[Expr]) -> None:
            for half, index in zip((T.vectorlow, T.vectorhigh), pair_order(c * LANES, cdtype), strict=True):
                store(Y, half("float32x8", means[0]), row, head, index)

        by_sections(POS, p, page, heads, groups, (groups * group, cl), attend, write)
    return f.function


@cache
def mla_lift(heads: int, kv_lora: int, v: int, wdtype: str, *, vectors: Vectors) -> PrimFunc:
    """Kernel that takes attended latents to the heads' outputs.

    Returns:
        (latent f32[n, heads, cl], w_uv packed [heads, N = v, K = kv_lora], out f32[n, heads * v]).
    """
    with kernel("mla_lift", heads, kv_lora, v, wdtype) as f:
        (n,) = symbols("n")
        X = f.tensor("latent", "f32", n, heads, padded(kv_lora))
        W = f.tensor("w_uv", stored(wdtype), heads, blocks(v), *inner(kv_lora, wdtype), LANES)
        Y = f.tensor("out", "f32", n, heads * v)

        method = method_of(wdtype, vectors)
        x = method.encoded(lambda i: lambda j: X[i % n, i // n, j], heads * n, kv_lora)

        def factors(head: Expr) -> tuple[Groups, Input, GroupOutput]:
            def output(row: Expr, block: Expr, sums: Sequence[Buffer]) -> None:
                by_columns(sums[0], block, v, lambda i, value, _: store(Y, value, row, head * v + i))

            return (
                lambda taken: Columns(W, [(head, block) for block in taken], kv_lora, wdtype),
                lambda row: x(head * n + row),
                output,
            )

        products(heads, n, blocks(v), factors, method)
    return f.function
