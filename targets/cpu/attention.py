"""Latent attention for few rows a sequence (DeepSeek-V2 paper, section 2.1.2): queries move into latent space.

    latent_write    cache row = [norm(latent) | rope(key)]
    mla_absorb      query = [W_UK^T q_nope | rope(q_rot)]      the shape of a cache row
    mla_attend      softmax(scale * query . cache rows) applied to the latent part of the cache rows
    mla_lift        output = W_UV latent

Every sum has one order, fixed by the static sizes: blocks of positions are whole pages, counted from position 0, and no
two tasks add to the same element. So a row's bits depend neither on other rows, nor on threads, nor on page numbers.
"""

from __future__ import annotations

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .cache import STORAGE, columns, gather, narrow, padded, pair_order
from .features import VECTORS, Vectors
from .kernel import named
from .layout import LANES
from .norm import inverse_rms, rotate
from .panel import accumulate, clear, packed_buffer, store
from .softmax import MASKED, tree_sum, weigh
from .vector import at, fma, splat

AVX2 = VECTORS["avx2"]
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
        cache[pages, page, cw]); the cache is written in place.
    """
    cw = padded(kv_lora + rope)

    @T.prim_func(s_tir=True)
    def kernel(  # type: ignore[no-untyped-def]
        x: T.handle, norm: T.handle, angles: T.handle, seq: T.handle, pos: T.handle, table: T.handle, cache: T.handle
    ):
        n = T.int64()
        b = T.int64()
        p = T.int64()
        pages = T.int64()
        X = T.match_buffer(x, (n, width), "float32")
        NORM = T.match_buffer(norm, (kv_lora,), "float32")
        ANGLES = T.match_buffer(angles, (n, rope), "float32")
        SEQ = T.match_buffer(seq, (n,), "int32")
        POS = T.match_buffer(pos, (n,), "int32")
        TABLE = T.match_buffer(table, (b, p), "int32")
        CACHE = T.match_buffer(cache, (pages, page, cw), STORAGE[cdtype])
        for i in T.parallel(n):
            number: T.let = T.Cast("int64", TABLE[SEQ[i], POS[i] // page])
            slot: T.let = POS[i] % page
            inverse = T.alloc_buffer((1,), "float32", scope="global")

            @T.inline
            def normed(j, lanes):  # type: ignore[no-untyped-def]
                value: T.let = X[i, at(begin + j, lanes)] * splat(inverse[0], lanes) * NORM[at(j, lanes)]
                CACHE[number, slot, at(j, lanes)] = narrow(value, cdtype, lanes)

            @T.inline
            def rotated(j, lanes, value):  # type: ignore[no-untyped-def]
                CACHE[number, slot, at(kv_lora + j, lanes)] = narrow(value, cdtype, lanes)

            inverse_rms(lambda j: X[i, begin + j], kv_lora, eps, inverse)
            for c in T.serial(kv_lora // LANES):
                normed(c * LANES, LANES)
            for j in T.serial(kv_lora // LANES * LANES, kv_lora):
                normed(j, 1)
            rotate(lambda j: X[i, begin + kv_lora + j], lambda j: ANGLES[i, j], rotated, rope, interleaved)
            for j in T.serial(kv_lora + rope, cw):
                CACHE[number, slot, j] = T.Cast(STORAGE[cdtype], 0)

    return named(kernel, "latent_write", width, begin, kv_lora, rope, page, cdtype, eps, int(interleaved))


@cache
def mla_absorb(
    heads: int, nope: int, rope: int, kv_lora: int, wdtype: str, interleaved: bool, *, vectors: Vectors = AVX2
) -> PrimFunc:
    """Kernel that moves queries into latent space.

    Returns:
        (q f32[n, heads * (nope + rope)], angles f32[n, rope], w_uk packed [heads, N = kv_lora, K = nope],
        absorbed f32[n, heads, cw]); columns beyond kv_lora + rope become zero.
    """
    cw = padded(kv_lora + rope)
    blocks = padded(kv_lora) // LANES
    tile = vectors.tile[0]
    shape, storage = packed_buffer((heads, kv_lora, nope), wdtype)

    @T.prim_func(s_tir=True)
    def kernel(q: T.handle, angles: T.handle, w_uk: T.handle, absorbed: T.handle):  # type: ignore[no-untyped-def]
        n = T.int64()
        Q = T.match_buffer(q, (n, heads * (nope + rope)), "float32")
        ANGLES = T.match_buffer(angles, (n, rope), "float32")
        W = T.match_buffer(w_uk, shape, storage)
        Y = T.match_buffer(absorbed, (n, heads, cw), "float32")

        @T.inline
        def rows(first, count, h, c):  # type: ignore[no-untyped-def]
            acc = T.alloc_buffer((count * LANES,), "float32", scope="global")
            clear(acc, count)
            accumulate(
                acc, count, nope, lambda r, k: Q[first + r, h * (nope + rope) + k], lambda k: W[h, c, k, at(0)], wdtype
            )
            for r in T.unroll(count):
                store(
                    lambda j, value: T.buffer_store(Y, value, [first + r, h, j]),
                    acc[at(r * LANES)],
                    c * LANES,
                    kv_lora,
                )

        for task in T.parallel(heads * blocks):
            h: T.let = task // blocks
            c: T.let = task % blocks
            for t in T.serial(n // tile):
                rows(t * tile, tile, h, c)
            for t in T.serial(n % tile):
                rows(n // tile * tile + t, 1, h, c)
            if c == 0:
                for i in T.serial(n):
                    rotate(
                        lambda j: Q[i, h * (nope + rope) + nope + j],
                        lambda j: ANGLES[i, j],
                        lambda j, lanes, value: T.buffer_store(Y, value, [i, h, at(kv_lora + j, lanes)]),
                        rope,
                        interleaved,
                    )
                    for j in T.serial(kv_lora + rope, cw):
                        Y[i, h, j] = T.float32(0)

    return named(kernel, "mla_absorb", heads, nope, rope, kv_lora, wdtype, int(interleaved))


@cache
def mla_attend(
    heads: int, kv_lora: int, rope: int, page: int, cdtype: str, scale: float, *, vectors: Vectors = AVX2
) -> PrimFunc:
    """Kernel of causal attention in latent space: all heads share the cache rows as keys and as values.

    A task is one row and up to 8 heads; each load of cached columns serves a tile of them.

    Returns:
        (absorbed f32[n, heads, cw], cache[pages, page, cw], seq i32[n], pos i32[n], table i32[b, p],
        latent f32[n, heads, cl]); columns beyond kv_lora are not meaningful.
    """
    cw, cl = padded(kv_lora + rope), padded(kv_lora)
    tile = min(HEADS_PER_TASK, vectors.registers * vectors.lanes // LANES // 2)
    tiles = -(-min(heads, HEADS_PER_TASK) // tile)
    group = tiles * tile
    groups = -(-heads // group)
    width = padded(page)

    @T.prim_func(s_tir=True)
    def kernel(  # type: ignore[no-untyped-def]
        absorbed: T.handle, cache: T.handle, seq: T.handle, pos: T.handle, table: T.handle, latent: T.handle
    ):
        n = T.int64()
        b = T.int64()
        p = T.int64()
        pages = T.int64()
        Q = T.match_buffer(absorbed, (n, heads, cw), "float32")
        CACHE = T.match_buffer(cache, (pages, page, cw), STORAGE[cdtype])
        SEQ = T.match_buffer(seq, (n,), "int32")
        POS = T.match_buffer(pos, (n,), "int32")
        TABLE = T.match_buffer(table, (b, p), "int32")
        Y = T.match_buffer(latent, (n, heads, cl), "float32")
        for task in T.parallel(n * groups):
            i: T.let = task // groups
            head: T.let = task % groups * group
            query = T.alloc_buffer((group, cw), "float32", scope="global")
            out = T.alloc_buffer((group, cl), "float32", scope="global")
            scores = T.alloc_buffer((group, width), "float32", scope="global")
            peak = T.alloc_buffer((group,), "float32", scope="global")
            mass = T.alloc_buffer((group,), "float32", scope="global")
            decay = T.alloc_buffer((group,), "float32", scope="global")
            for g in T.serial(group):
                peak[g] = T.float32(MASKED)
                mass[g] = T.float32(0)
                # Heads beyond the last repeat it and are not stored.
                h: T.let = T.min(head + g, heads - 1)
                for c in T.serial(cw // LANES):
                    query[g, at(c * LANES)] = gather(lambda j: Q[i, h, j], c * LANES, cdtype) * splat(scale)
                for c in T.serial(cl // LANES):
                    out[g, at(c * LANES)] = splat(0.0)

            for block in T.serial(POS[i] // page + 1):
                number: T.let = T.Cast("int64", TABLE[SEQ[i], block])
                count: T.let = T.min(page, POS[i] + 1 - block * page)
                for t in T.serial(count):
                    for u in T.serial(tiles):
                        dot = T.alloc_buffer((tile * LANES,), "float32", scope="global")
                        clear(dot, tile)
                        for c in T.serial(cw // LANES):
                            key: T.let = columns(CACHE[number, t, at(c * LANES)], cdtype)
                            for r in T.unroll(tile):
                                dot[at(r * LANES)] = fma(query[u * tile + r, at(c * LANES)], key, dot[at(r * LANES)])
                        for r in T.unroll(tile):
                            scores[u * tile + r, t] = tree_sum(dot[at(r * LANES)])
                for g in T.serial(group):
                    for t in T.serial(count, width):
                        scores[g, t] = T.float32(MASKED)
                    weigh(scores, g, width, peak, mass, g, decay)
                for c in T.serial(cl // LANES):
                    for u in T.serial(tiles):
                        acc = T.alloc_buffer((tile * LANES,), "float32", scope="global")
                        for r in T.unroll(tile):
                            acc[at(r * LANES)] = out[u * tile + r, at(c * LANES)] * splat(decay[u * tile + r])
                        for t in T.serial(count):
                            value: T.let = columns(CACHE[number, t, at(c * LANES)], cdtype)
                            for r in T.unroll(tile):
                                acc[at(r * LANES)] = fma(splat(scores[u * tile + r, t]), value, acc[at(r * LANES)])
                        for r in T.unroll(tile):
                            out[u * tile + r, at(c * LANES)] = acc[at(r * LANES)]

            for g in T.serial(T.min(group, heads - head)):
                for c in T.serial(cl // LANES):
                    mean: T.let = out[g, at(c * LANES)] / splat(mass[g])
                    Y[i, head + g, pair_order(c * LANES, cdtype)[0]] = T.vectorlow("float32x8", mean)
                    Y[i, head + g, pair_order(c * LANES, cdtype)[1]] = T.vectorhigh("float32x8", mean)

    return named(kernel, "mla_attend", heads, kv_lora, rope, page, cdtype, scale)


@cache
def mla_lift(heads: int, kv_lora: int, v: int, wdtype: str, *, vectors: Vectors = AVX2) -> PrimFunc:
    """Kernel that takes attended latents to the heads' outputs.

    Returns:
        (latent f32[n, heads, cl], w_uv packed [heads, N = v, K = kv_lora], out f32[n, heads * v]).
    """
    blocks = padded(v) // LANES
    tile = vectors.tile[0]
    shape, storage = packed_buffer((heads, v, kv_lora), wdtype)

    @T.prim_func(s_tir=True)
    def kernel(latent: T.handle, w_uv: T.handle, out: T.handle):  # type: ignore[no-untyped-def]
        n = T.int64()
        X = T.match_buffer(latent, (n, heads, padded(kv_lora)), "float32")
        W = T.match_buffer(w_uv, shape, storage)
        Y = T.match_buffer(out, (n, heads * v), "float32")

        @T.inline
        def rows(first, count, h, c):  # type: ignore[no-untyped-def]
            acc = T.alloc_buffer((count * LANES,), "float32", scope="global")
            clear(acc, count)
            accumulate(acc, count, kv_lora, lambda r, k: X[first + r, h, k], lambda k: W[h, c, k, at(0)], wdtype)
            for r in T.unroll(count):
                store(
                    lambda j, value: T.buffer_store(Y, value, [first + r, h * v + j]),
                    acc[at(r * LANES)],
                    c * LANES,
                    v,
                )

        for task in T.parallel(heads * blocks):
            h: T.let = task // blocks
            c: T.let = task % blocks
            for t in T.serial(n // tile):
                rows(t * tile, tile, h, c)
            for t in T.serial(n % tile):
                rows(n // tile * tile + t, 1, h, c)

    return named(kernel, "mla_lift", heads, kv_lora, v, wdtype)
