"""Latent attention for many rows a sequence: keys and values of a head are expanded once and serve all rows.

The online-softmax form of attention (Dao et al., FlashAttention, 2022) over pages. A task is one head of one sequence.
For each page, in order of position:

    C  = its cache rows, widened and transposed           [cw, positions]
    K  = [W_UK C_latent ; C_key]                          [nope + rope, positions]
    V  = C_latent^T W_UV^T                                [positions, v]
    for tiles of rows:  S = scale * Q K, masked by position; weights and running sums; out = out * decay + weights V

Rows are told apart only by their own sums, so a row's bits don't depend on the others.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .attention import AVX2
from .cache import STORAGE, columns, padded, pair_order
from .features import Vectors
from .kernel import named
from .layout import LANES
from .norm import rotate
from .panel import accumulate, clear, packed_buffer, store
from .softmax import MASKED, weigh
from .vector import at, dtype, fma, splat, widen


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
    vectors: Vectors = AVX2,
) -> PrimFunc:
    """Kernel of causal attention in head space, reading keys and values from the cache only.

    Rows of a sequence must be consecutive, in ascending order of position; they may start at any position.

    Returns:
        (q f32[n, heads * (nope + rope)], angles f32[n, rope], cache[pages, page, cw],
        w_uk packed [heads, N = kv_lora, K = nope], w_uv packed [heads, N = v, K = kv_lora], seq i32[n], pos i32[n],
        table i32[b, p], out f32[n, heads * v]).
    """
    cw, cl = padded(kv_lora + rope), padded(kv_lora)
    depth = nope + rope
    width = padded(page)
    value_blocks = padded(v) // LANES
    tile = vectors.tile[0]
    packing = 1 if wdtype == "f32" else 2
    uk_shape, storage = packed_buffer((heads, kv_lora, nope), wdtype)
    uv_shape, _ = packed_buffer((heads, v, kv_lora), wdtype)

    @T.prim_func(s_tir=True)
    def kernel(  # type: ignore[no-untyped-def]
        q: T.handle,
        angles: T.handle,
        cache: T.handle,
        w_uk: T.handle,
        w_uv: T.handle,
        seq: T.handle,
        pos: T.handle,
        table: T.handle,
        out: T.handle,
    ):
        n = T.int64()
        b = T.int64()
        p = T.int64()
        pages = T.int64()
        Q = T.match_buffer(q, (n, heads * depth), "float32")
        ANGLES = T.match_buffer(angles, (n, rope), "float32")
        CACHE = T.match_buffer(cache, (pages, page, cw), STORAGE[cdtype])
        UK = T.match_buffer(w_uk, uk_shape, storage)
        UV = T.match_buffer(w_uv, uv_shape, storage)
        SEQ = T.match_buffer(seq, (n,), "int32")
        POS = T.match_buffer(pos, (n,), "int32")
        TABLE = T.match_buffer(table, (b, p), "int32")
        Y = T.match_buffer(out, (n, heads * v), "float32")
        for task in T.parallel(heads * b):
            h: T.let = task // b
            s: T.let = task % b
            bounds = T.alloc_buffer((2,), "int64", scope="global")
            bounds[0] = n
            bounds[1] = T.int64(0)
            for i in T.serial(n):
                if T.Cast("int64", SEQ[i]) == s:
                    bounds[0] = T.min(bounds[0], i)
                    bounds[1] = i + 1
            if bounds[0] < bounds[1]:
                first: T.let = bounds[0]
                rows: T.let = bounds[1] - first
                query = T.alloc_buffer((n, depth), "float32", scope="global")
                sums = T.alloc_buffer((n, value_blocks * LANES), "float32", scope="global")
                peak = T.alloc_buffer((n,), "float32", scope="global")
                mass = T.alloc_buffer((n,), "float32", scope="global")
                latent = T.alloc_buffer((cw * width,), "float32", scope="global")
                keys = T.alloc_buffer((depth, width), "float32", scope="global")
                values = T.alloc_buffer((width, value_blocks * LANES), "float32", scope="global")
                scores = T.alloc_buffer((tile, width), "float32", scope="global")
                decay = T.alloc_buffer((tile,), "float32", scope="global")

                for i in T.serial(rows):
                    peak[i] = T.float32(MASKED)
                    mass[i] = T.float32(0)
                    for j in T.serial(nope):
                        query[i, j] = Q[first + i, h * depth + j] * T.float32(scale)
                    rotate(
                        lambda j: Q[first + i, h * depth + nope + j],
                        lambda j: ANGLES[first + i, j],
                        lambda j, lanes, value: T.buffer_store(
                            query, value * splat(scale, lanes), [i, at(nope + j, lanes)]
                        ),
                        rope,
                        interleaved,
                    )
                    for c in T.serial(value_blocks):
                        sums[i, at(c * LANES)] = splat(0.0)

                @T.inline
                def expand_key(first_row, count, c):  # type: ignore[no-untyped-def]
                    """keys[first_row : first_row + count, 16 c : 16 c + 16]; rows in pairs with 2-byte weights."""
                    acc = T.alloc_buffer((count * LANES,), "float32", scope="global")
                    clear(acc, count)
                    for k in T.serial(cl // LANES):
                        for lane in T.serial(LANES):
                            column: T.let = latent[at((k * LANES + lane) * width + c * LANES)]
                            for r in T.unroll(-(-count // packing)):
                                word: T.let = splat(UK[h, k, first_row // packing + r, lane])
                                for half in T.unroll(packing):
                                    if packing * r + half < count:
                                        acc[at((packing * r + half) * LANES)] = fma(
                                            _weight(word, half, wdtype), column, acc[at((packing * r + half) * LANES)]
                                        )
                    for r in T.unroll(count):
                        keys[first_row + r, at(c * LANES)] = acc[at(r * LANES)]

                @T.inline
                def expand_value(first_row, count, c):  # type: ignore[no-untyped-def]
                    acc = T.alloc_buffer((count * LANES,), "float32", scope="global")
                    clear(acc, count)
                    accumulate(
                        acc,
                        count,
                        kv_lora,
                        lambda r, k: latent[k * width + first_row + r],
                        lambda k: UV[h, c, k, at(0)],
                        wdtype,
                    )
                    for r in T.unroll(count):
                        values[first_row + r, at(c * LANES)] = acc[at(r * LANES)]

                @T.inline
                def attend(first_row, count, begin):  # type: ignore[no-untyped-def]
                    """A tile of rows sees the page that starts at position `begin`."""
                    for c in T.serial(width // LANES):
                        acc = T.alloc_buffer((count * LANES,), "float32", scope="global")
                        clear(acc, count)
                        for j in T.serial(depth):
                            for r in T.unroll(count):
                                acc[at(r * LANES)] = fma(
                                    splat(query[first_row + r, j]), keys[j, at(c * LANES)], acc[at(r * LANES)]
                                )
                        for r in T.unroll(count):
                            seen: T.let = T.min(POS[first + first_row + r] - begin, page - 1)
                            scores[r, at(c * LANES)] = T.Select(
                                at(T.Cast("int32", c * LANES)) <= T.broadcast(seen, LANES),
                                acc[at(r * LANES)],
                                splat(MASKED),
                            )
                    for r in T.serial(count):
                        weigh(scores, r, width, peak, mass, first_row + r, decay)
                    for c in T.serial(value_blocks):
                        acc = T.alloc_buffer((count * LANES,), "float32", scope="global")
                        for r in T.unroll(count):
                            acc[at(r * LANES)] = sums[first_row + r, at(c * LANES)] * splat(decay[r])
                        for t in T.serial(width):
                            for r in T.unroll(count):
                                acc[at(r * LANES)] = fma(
                                    splat(scores[r, t]), values[t, at(c * LANES)], acc[at(r * LANES)]
                                )
                        for r in T.unroll(count):
                            sums[first_row + r, at(c * LANES)] = acc[at(r * LANES)]

                last: T.let = POS[first + rows - 1]
                for block in T.serial(last // page + 1):
                    begin: T.let = block * page
                    number: T.let = T.Cast("int64", TABLE[s, block])
                    for t in T.serial(width):
                        # Positions without a row are masked; repeating the last one keeps them finite.
                        slot: T.let = T.min(t, T.min(page - 1, last - begin))
                        for c in T.serial(cw // LANES):
                            row: T.let = columns(CACHE[number, slot, at(c * LANES)], cdtype)
                            target: T.let = c * LANES * width + t
                            latent[pair_order(target, cdtype, width)[0]] = T.vectorlow(dtype("float32", 8), row)
                            latent[pair_order(target, cdtype, width)[1]] = T.vectorhigh(dtype("float32", 8), row)
                    for c in T.serial(width // LANES):
                        for t in T.serial(nope // tile):
                            expand_key(t * tile, tile, c)
                        if nope % tile > 0:
                            expand_key(nope // tile * tile, nope % tile, c)
                        for j in T.serial(rope):
                            keys[nope + j, at(c * LANES)] = latent[at((kv_lora + j) * width + c * LANES)]
                    for c in T.serial(value_blocks):
                        for t in T.serial(width // tile):
                            expand_value(t * tile, tile, c)
                        if width % tile > 0:
                            expand_value(width // tile * tile, width % tile, c)
                    for t in T.serial(rows // tile):
                        if POS[first + t * tile + tile - 1] >= begin:
                            attend(t * tile, tile, begin)
                    for t in T.serial(rows // tile * tile, rows):
                        if POS[first + t] >= begin:
                            attend(t, 1, begin)

                for i in T.serial(rows):
                    for c in T.serial(value_blocks):
                        store(
                            lambda j, value: T.buffer_store(Y, value, [first + i, h * v + j]),
                            sums[i, at(c * LANES)] / splat(mass[i]),
                            c * LANES,
                            v,
                        )

    return named(kernel, "mla_prefill", heads, nope, rope, kv_lora, v, page, cdtype, wdtype, scale, int(interleaved))


def _weight(word: Any, half: Any, wdtype: str) -> Any:
    """The f32 weight of a packed word: all of it, or one half."""
    if wdtype == "f32":
        return word
    return T.if_then_else(half == 1, widen(word, wdtype, True), widen(word, wdtype, False))
