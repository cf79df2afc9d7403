"""The attention kernels against plain float64, on ragged batches whose pages are scattered."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.targets.cpu.attention import latent_write, mla_absorb, mla_attend, mla_lift
from deepzig.targets.cpu.features import Vectors
from deepzig.targets.cpu.layout import pack_columns
from deepzig.targets.cpu.sections import SECTION, SECTIONS

from .latents import (
    AVX2,
    AVX512,
    NEON,
    RAGGED,
    SCALE,
    SIZES,
    Array,
    Batch,
    Sizes,
    error,
    latents_of,
    read_rows,
    rotate,
    rounded,
    softmax_rows,
    to_bits,
    to_f32,
)
from .rounded_rows import HOW, Level, near

Build = Callable[[Any], Callable[..., None]]
LEVELS = ("amx", "avx512-bf16")
"""Those that have products of pairs."""
ROUNDED = 4e-4
"""Of what by_pairs rounds alike: a score between two of f32 may round to a neighbour of bf16."""


@pytest.mark.parametrize("s", SIZES)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "q8"])
def test_attend(build: Build, s: Sizes, dtype: str) -> None:
    rng = np.random.default_rng(1)
    batch = Batch.of(RAGGED, s.page, rng)
    latents = latents_of(batch, s, rng)
    cache = batch.cache(latents, s.cw, s.page, dtype)
    query = rng.normal(size=(len(batch.seq), s.heads, s.cw)).astype(np.float32)
    query[..., s.kv + s.rope :] = 0
    out = np.full((len(batch.seq), s.heads, s.cl), np.nan, np.float32)
    kernel = build(mla_attend(s.heads, s.kv, s.rope, s.page, dtype, SCALE, vectors=AVX2))
    kernel(query, cache, batch.seq, batch.pos, batch.table, out)
    want = np.empty((len(batch.seq), s.heads, s.kv))
    for i, (q, p) in enumerate(zip(batch.seq, batch.pos, strict=True)):
        rows = rounded(latents[q][: p + 1], dtype)[:, None]
        want[i] = softmax_rows(query[i].astype(np.float64), rows, rows[..., : s.kv])
    assert error(out[..., : s.kv], want) < 1e-6


@pytest.fixture(params=[(name, how) for name in LEVELS for how in HOW], ids="-".join)
def level(request: pytest.FixtureRequest, tmp_path: Path) -> Level:
    name, how = request.param
    return Level(name, how, tmp_path)


def sections(positions: int, page: int) -> list[tuple[int, int]]:
    """Where a context's sections begin and end: an even number unless pages are too few, in whole pages."""
    pages = -(-positions // page)
    count = -(-pages // max(SECTION // page, 1))
    count = min(count + count % 2, pages)
    cuts = [min(i * pages // count * page, positions) for i in range(count + 1)]
    return list(pairwise(cuts))


def by_pairs(query: Array, rows: Array, kv: int, page: int) -> tuple[Array, Array]:
    """What a row attends to, float64: as it is, and with queries and, a section at a time, weights rounded to bf16.

    Args:
        query: [heads, columns].
        rows: of the cache, [positions, columns].
        kv: columns that are attended to.
        page: positions of a page.
    """
    plain = softmax_rows(query.astype(np.float64), rows[:, None], rows[:, None, :kv])
    scores = near(query * np.float32(SCALE)) @ rows.T
    peak = scores.max(-1, keepdims=True)
    sums, mass = np.zeros_like(plain), np.zeros((len(query), 1))
    for begin, end in sections(len(rows), page):
        part = scores[:, begin:end]
        weights = np.exp(part - part.max(-1, keepdims=True))
        fading = np.exp(part.max(-1, keepdims=True) - peak)
        sums += fading * (near(weights.astype(np.float32)) @ rows[begin:end, :kv])
        mass += fading * weights.sum(-1, keepdims=True)
    return plain, sums / mass


@pytest.mark.parametrize(
    "s",
    [Sizes(3, 12, 8, 24, 20, 5), Sizes(16, 8, 16, 80, 8, 64), Sizes(37, 4, 12, 33, 8, 19), Sizes(70, 4, 4, 99, 8, 300)],
)  # fmt: skip
def test_attend_by_pairs(level: Level, threads: Callable[[int], None], s: Sizes) -> None:
    """Contexts of a position, of odd lengths, at the ends of sections; the same bits alone and with 1 or 2 threads."""
    rng = np.random.default_rng(s.heads)
    most = max(SECTION // s.page, 1) * s.page
    spans = [(0, 3), (s.page - 1, s.page + 1), (2 * most - 2, 2 * most + 2), (3 * most + 30, 3 * most + 33), (17, 18)]
    batch = Batch.of(spans, s.page, rng)
    latents = latents_of(batch, s, rng)
    cache = batch.cache(latents, s.cw, s.page, "bf16")
    query = 2 * rng.normal(size=(len(batch.seq), s.heads, s.cw)).astype(np.float32)
    query[..., s.kv + s.rope :] = 0
    kernel = level(mla_attend(s.heads, s.kv, s.rope, s.page, "bf16", SCALE, vectors=level.vectors))
    out, alone = np.full((2, len(batch.seq), s.heads, s.cl), np.nan, np.float32)
    threads(2)
    kernel(query, cache, batch.seq, batch.pos, batch.table, out)
    for i, (q, p) in enumerate(zip(batch.seq, batch.pos, strict=True)):
        plain, want = by_pairs(query[i], rounded(latents[q][: p + 1], "bf16"), s.kv, s.page)
        assert error(out[i, :, : s.kv], want) < ROUNDED
        assert error(out[i, :, : s.kv], plain) < 1e-2
    threads(1)
    for i in range(len(batch.seq)):
        kernel(query[i : i + 1], cache, *batch.take(slice(i, i + 1)), batch.table, alone[i : i + 1])
    assert np.array_equal(out[..., : s.kv], alone[..., : s.kv])


@pytest.mark.parametrize("room", [1, 3, SECTIONS])
def test_attend_joins_sections_of_a_long_context(
    build: Build, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Also where there is memory for few sections of other rows."""
    monkeypatch.setattr("deepzig.targets.cpu.sections.SECTIONS", room)
    mla_attend.cache_clear()
    s = Sizes(5, 7, 2, 19, 11, 20)
    rng = np.random.default_rng(8)
    batch = Batch.of([(0, 2), (1543, 1545), (SECTION - 21, SECTION + 2), (31, 32)], s.page, rng)
    latents = latents_of(batch, s, rng)
    cache = batch.cache(latents, s.cw, s.page, "f32")
    query = 3 * rng.normal(size=(len(batch.seq), s.heads, s.cw)).astype(np.float32)
    query[..., s.kv + s.rope :] = 0
    kernel = build(mla_attend(s.heads, s.kv, s.rope, s.page, "f32", SCALE, vectors=AVX2))
    mla_attend.cache_clear()
    out, alone = np.full((2, len(batch.seq), s.heads, s.cl), np.nan, np.float32)
    threads(2)
    kernel(query, cache, batch.seq, batch.pos, batch.table, out)
    for i, (q, p) in enumerate(zip(batch.seq, batch.pos, strict=True)):
        rows = latents[q][: p + 1].astype(np.float64)[:, None]
        want = softmax_rows(query[i].astype(np.float64), rows, rows[..., : s.kv])
        assert error(out[i, :, : s.kv], want) < 1e-6
    threads(1)
    for i in range(len(batch.seq)):
        kernel(query[i : i + 1], cache, *batch.take(slice(i, i + 1)), batch.table, alone[i : i + 1])
    assert np.array_equal(out[..., : s.kv], alone[..., : s.kv])


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8"])
def test_attend_bits_do_not_depend_on_company_pages_or_threads(
    build: Build, threads: Callable[[int], None], dtype: str
) -> None:
    s = SIZES[2]
    rng = np.random.default_rng(2)
    batch, other = Batch.of(RAGGED, s.page, rng), Batch.of(RAGGED, s.page, rng)
    latents = latents_of(batch, s, rng)
    query = rng.normal(size=(len(batch.seq), s.heads, s.cw)).astype(np.float32)
    together, alone = np.zeros((2, len(batch.seq), s.heads, s.cl), np.float32)
    kernel = build(mla_attend(s.heads, s.kv, s.rope, s.page, dtype, SCALE, vectors=AVX2))
    threads(2)
    kernel(query, batch.cache(latents, s.cw, s.page, dtype), batch.seq, batch.pos, batch.table, together)
    threads(1)
    cache = other.cache(latents, s.cw, s.page, dtype)
    for i in range(len(batch.seq)):
        kernel(query[i : i + 1], cache, *batch.take(slice(i, i + 1)), other.table, alone[i : i + 1])
    assert np.array_equal(together[..., : s.kv], alone[..., : s.kv])


@pytest.mark.parametrize("s", SIZES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("wdtype", ["f32", "bf16", "f16"])
def test_absorb_and_lift(
    build: Build, threads: Callable[[int], None], s: Sizes, interleaved: bool, wdtype: str
) -> None:
    rng = np.random.default_rng(3)
    n = 9
    q = rng.normal(size=(n, s.heads * (s.nope + s.rope))).astype(np.float32)
    angles = rng.normal(size=(n, s.rope)).astype(np.float32)
    w_uk = to_bits(rng.normal(size=(s.heads, s.kv, s.nope)), wdtype)
    w_uv = to_bits(rng.normal(size=(s.heads, s.v, s.kv)), wdtype)
    absorb = build(mla_absorb(s.heads, s.nope, s.rope, s.kv, wdtype, interleaved, vectors=AVX2))
    packed = pack_columns(w_uk)
    got = np.full((n, s.heads, s.cw), np.nan, np.float32)
    absorb(q, angles, packed, got)
    q64 = q.astype(np.float64).reshape(n, s.heads, -1)
    want = np.zeros(got.shape)
    want[..., : s.kv] = np.einsum("nhd,hcd->nhc", q64[..., : s.nope], to_f32(w_uk, wdtype).astype(np.float64))
    want[..., s.kv : s.kv + s.rope] = rotate(q64[..., s.nope :], angles[:, None].astype(np.float64), interleaved)
    assert error(got, want) < 1e-6
    assert not got[..., s.kv + s.rope :].any()

    lift = build(mla_lift(s.heads, s.kv, s.v, wdtype, vectors=AVX2))
    latent = rng.normal(size=(n, s.heads, s.cl)).astype(np.float32)
    packed_v = pack_columns(w_uv)
    out = np.full((n, s.heads * s.v), np.nan, np.float32)
    lift(latent, packed_v, out)
    w64 = to_f32(w_uv, wdtype).astype(np.float64)
    want = np.einsum("nhc,hvc->nhv", latent[..., : s.kv].astype(np.float64), w64).reshape(n, -1)
    assert error(out, want) < 1e-6

    threads(1)
    for i in (0, n - 1):
        one, row = np.zeros((1, s.heads, s.cw), np.float32), np.zeros((1, s.heads * s.v), np.float32)
        absorb(q[i : i + 1], angles[i : i + 1], packed, one)
        lift(latent[i : i + 1], packed_v, row)
        assert np.array_equal(one[0], got[i]) and np.array_equal(row[0], out[i])


@pytest.mark.parametrize("s", SIZES[1:3])
@pytest.mark.parametrize("dtype", ["bf16", "q8"])
def test_bits_do_not_depend_on_registers(build: Build, s: Sizes, dtype: str) -> None:
    rng = np.random.default_rng(6)
    batch = Batch.of(RAGGED, s.page, rng)
    n = len(batch.seq)
    cache = batch.cache(latents_of(batch, s, rng), s.cw, s.page, dtype)
    q, angles = rng.normal(size=(n, s.heads * (s.nope + s.rope))).astype(np.float32), rng.normal(size=(n, s.rope))
    w_uk = pack_columns(to_bits(rng.normal(size=(s.heads, s.kv, s.nope)), "bf16"))
    w_uv = pack_columns(to_bits(rng.normal(size=(s.heads, s.v, s.kv)), "bf16"))

    def run(vectors: Vectors, rows: slice) -> Array:
        count = len(batch.seq[rows])
        absorbed, latent = np.zeros((count, s.heads, s.cw), np.float32), np.zeros((count, s.heads, s.cl), np.float32)
        out = np.zeros((count, s.heads * s.v), np.float32)
        absorb = build(mla_absorb(s.heads, s.nope, s.rope, s.kv, "bf16", True, vectors=vectors))
        absorb(q[rows], angles.astype(np.float32)[rows], w_uk, absorbed)
        attend = build(mla_attend(s.heads, s.kv, s.rope, s.page, dtype, SCALE, vectors=vectors))
        attend(absorbed, cache, *batch.take(rows), batch.table, latent)
        build(mla_lift(s.heads, s.kv, s.v, "bf16", vectors=vectors))(latent, w_uv, out)
        return out

    want = run(AVX2, slice(n))
    assert np.linalg.norm(want) > 1
    for vectors in (AVX512, NEON):
        assert np.array_equal(run(vectors, slice(n)), want)
        assert np.array_equal(run(vectors, slice(4, 5)), want[4:5])


@pytest.mark.parametrize("s", SIZES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "q8"])
def test_latent_write(build: Build, s: Sizes, interleaved: bool, dtype: str) -> None:
    rng = np.random.default_rng(4)
    batch = Batch.of(RAGGED, s.page, rng)
    n, begin = len(batch.seq), 5
    x = rng.normal(size=(n, begin + s.kv + s.rope + 2)).astype(np.float32)
    weight, angles = rng.normal(size=s.kv).astype(np.float32), rng.normal(size=(n, s.rope)).astype(np.float32)
    cache = to_bits(rng.normal(size=(batch.pages, s.page, s.cw)), dtype)
    before = cache.copy()
    kernel = build(latent_write(x.shape[1], begin, s.kv, s.rope, s.page, dtype, 1e-6, interleaved))
    kernel(x, weight, angles, batch.seq, batch.pos, batch.table, cache)
    x64 = x.astype(np.float64)[:, begin:]
    latent = x64[:, : s.kv] / np.sqrt((x64[:, : s.kv] ** 2).mean(-1, keepdims=True) + 1e-6) * weight
    key = rotate(x64[:, s.kv : s.kv + s.rope], angles.astype(np.float64), interleaved)
    pages, slots = batch.table[batch.seq, batch.pos // s.page], batch.pos % s.page
    got = read_rows(cache[pages, slots], dtype, s.cw)
    want = np.concatenate([latent, key], -1)
    assert error(got[:, : s.kv + s.rope], want) < {"f32": 1e-6, "f16": 4e-4, "bf16": 3e-3, "q8": 1e-2}[dtype]
    if dtype == "q8":  # all of the row, its padding among it; a number between two codes may become the other one
        stored = to_bits(np.pad(want, [(0, 0), (0, s.cw - s.kv - s.rope)]), dtype)
        assert (cache[pages, slots] != stored).mean() <= 0.02
        assert error(got[:, : want.shape[1]], rounded(want, dtype)) < 1e-3
    assert not got[:, s.kv + s.rope :].any()
    cache[pages, slots] = before[pages, slots]
    assert np.array_equal(cache, before)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_latents_round_to_nearest_even(build: Build, dtype: str) -> None:
    """Values on and around ties, subnormal halves and overflow, through a key that is not rotated."""
    rng = np.random.default_rng(5)
    exponents = rng.integers(90, 145, 4000).astype(np.uint32) << 23
    fractions = rng.integers(0, 2**23, 4000).astype(np.uint32) & ~np.uint32(0xFFF) | rng.integers(-1, 2, 4000).astype(
        np.uint32
    ) & np.uint32(0xFFF)
    signs = rng.integers(0, 2, 4000).astype(np.uint32) << 31
    x = (exponents | fractions & np.uint32(0x7FFFFF) | signs).view(np.float32).reshape(-1, 80)
    n = len(x)
    x = np.concatenate([np.ones((n, 16), np.float32), x], -1)
    angles = np.tile(np.array([1, 0], np.float32).repeat(40), (n, 1))
    cache = np.zeros((1, n, 96), np.uint16)
    kernel = build(latent_write(96, 0, 16, 80, n, dtype, 1e-6, False))
    table, pos = np.zeros((1, 1), np.int32), np.arange(n, dtype=np.int32)
    kernel(x, np.ones(16, np.float32), angles, np.zeros(n, np.int32), pos, table, cache)
    with np.errstate(over="ignore"):
        want = to_bits(x[:, 16:], dtype)
    assert np.array_equal(cache[0, :, 16:], want)
