"""Un-absorbed latent attention against plain float64, and against the absorbed kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from deepzig.targets.cpu.attention import mla_absorb, mla_attend, mla_lift
from deepzig.targets.cpu.features import Vectors
from deepzig.targets.cpu.layout import pack_columns
from deepzig.targets.cpu.prefill import mla_prefill

from .latents import (
    AVX2,
    AVX512,
    NEON,
    SCALE,
    SIZES,
    Array,
    Batch,
    Sizes,
    error,
    latents_of,
    rotate,
    rounded,
    softmax_rows,
    to_bits,
    to_f32,
)

Build = Callable[[Any], Callable[..., None]]
CHUNKS = [(0, 9), (61, 62), (110, 137), (15, 17)]


@dataclass
class Problem:
    """Random operands of an attention over CHUNKS."""

    s: Sizes
    dtype: str
    interleaved: bool
    batch: Batch
    latents: list[Array]
    q: Array
    angles: Array
    w_uk: Array
    w_uv: Array
    cached: str

    @classmethod
    def of(cls, s: Sizes, dtype: str, interleaved: bool = True, cached: str | None = None) -> Problem:
        rng = np.random.default_rng(s.kv)
        batch = Batch.of(CHUNKS, s.page, rng)
        n = len(batch.seq)
        return cls(
            s,
            dtype,
            interleaved,
            batch,
            latents_of(batch, s, rng),
            rng.normal(size=(n, s.heads * (s.nope + s.rope))).astype(np.float32),
            rng.normal(size=(n, s.rope)).astype(np.float32),
            to_bits(rng.normal(size=(s.heads, s.kv, s.nope)) / np.sqrt(s.kv), dtype),
            to_bits(rng.normal(size=(s.heads, s.v, s.kv)), dtype),
            cached or dtype,
        )

    def packed(self) -> tuple[Array, Array]:
        return pack_columns(self.w_uk), pack_columns(self.w_uv)

    def cache(self, batch: Batch) -> Array:
        return batch.cache(self.latents, self.s.cw, self.s.page, self.cached)

    def prefill(self, vectors: Vectors = AVX2) -> Any:
        s = self.s
        types = self.cached, self.dtype
        return mla_prefill(s.heads, s.nope, s.rope, s.kv, s.v, s.page, *types, SCALE, self.interleaved, vectors=vectors)

    def naive(self) -> Array:
        """Keys and values of every position and head, in float64."""
        s, n = self.s, len(self.q)
        w_uk, w_uv = (to_f32(w, self.dtype).astype(np.float64) for w in (self.w_uk, self.w_uv))
        q = self.q.astype(np.float64).reshape(n, s.heads, -1)
        turned = rotate(q[..., s.nope :], self.angles[:, None].astype(np.float64), self.interleaved)
        q = np.concatenate([q[..., : s.nope], turned], -1)
        out = np.empty((n, s.heads, s.v))
        for i, (sequence, p) in enumerate(zip(self.batch.seq, self.batch.pos, strict=True)):
            rows = rounded(self.latents[sequence][: p + 1], self.cached)
            key = np.broadcast_to(rows[:, None, s.kv : s.kv + s.rope], (p + 1, s.heads, s.rope))
            keys = np.concatenate([np.einsum("tc,hcd->thd", rows[:, : s.kv], w_uk), key], -1)
            out[i] = softmax_rows(q[i], keys, np.einsum("tc,hvc->thv", rows[:, : s.kv], w_uv))
        return out.reshape(n, -1)


@pytest.mark.parametrize("s", SIZES)
@pytest.mark.parametrize(
    ("dtype", "interleaved", "cached"),
    [("f32", False, "f32"), ("bf16", True, "bf16"), ("f16", True, "f16"), ("bf16", False, "q8")],
)
def test_prefill(build: Build, s: Sizes, dtype: str, interleaved: bool, cached: str) -> None:
    problem = Problem.of(s, dtype, interleaved, cached)
    batch = problem.batch
    out = np.full((len(batch.seq), s.heads * s.v), np.nan, np.float32)
    rows = (batch.seq, batch.pos, batch.table)
    build(problem.prefill())(problem.q, problem.angles, problem.cache(batch), *problem.packed(), *rows, out)
    assert error(out, problem.naive()) < 2e-6


@pytest.mark.parametrize("s", SIZES[1:3])
def test_both_forms_agree(build: Build, s: Sizes) -> None:
    problem = Problem.of(s, "bf16")
    batch, n = problem.batch, len(problem.batch.seq)
    cache, (uk, uv), rows = problem.cache(batch), problem.packed(), (batch.seq, batch.pos, batch.table)
    absorbed, latent = np.zeros((n, s.heads, s.cw), np.float32), np.zeros((n, s.heads, s.cl), np.float32)
    few, many = np.zeros((2, n, s.heads * s.v), np.float32)
    build(mla_absorb(s.heads, s.nope, s.rope, s.kv, "bf16", True, vectors=AVX2))(
        problem.q, problem.angles, uk, absorbed
    )
    build(mla_attend(s.heads, s.kv, s.rope, s.page, "bf16", SCALE, vectors=AVX2))(absorbed, cache, *rows, latent)
    build(mla_lift(s.heads, s.kv, s.v, "bf16", vectors=AVX2))(latent, uv, few)
    build(problem.prefill())(problem.q, problem.angles, cache, uk, uv, *rows, many)
    assert error(many, few) < 1e-5


@pytest.mark.parametrize("s", SIZES[1:3])
def test_bits_do_not_depend_on_registers(build: Build, s: Sizes) -> None:
    problem = Problem.of(s, "bf16")
    batch = problem.batch
    operands = (problem.q, problem.angles, problem.cache(batch), *problem.packed(), batch.seq, batch.pos, batch.table)
    out = {vectors: np.zeros((len(batch.seq), s.heads * s.v), np.float32) for vectors in (AVX2, AVX512, NEON)}
    for vectors, y in out.items():
        build(problem.prefill(vectors))(*operands, y)
    assert np.linalg.norm(out[AVX2]) > 1
    assert np.array_equal(out[AVX512], out[AVX2]) and np.array_equal(out[NEON], out[AVX2])


@pytest.mark.parametrize(("dtype", "cached"), [("f32", "f32"), ("bf16", "bf16"), ("bf16", "q8")])
def test_bits_do_not_depend_on_company_pages_or_threads(
    build: Build, threads: Callable[[int], None], dtype: str, cached: str
) -> None:
    """Sequences alone, in other pieces, on other pages and on one thread."""
    problem = Problem.of(SIZES[2], dtype, cached=cached)
    batch, (uk, uv) = problem.batch, problem.packed()
    together, apart = np.zeros((2, len(batch.seq), problem.s.heads * problem.s.v), np.float32)
    kernel = build(problem.prefill())
    threads(2)
    rows = (batch.seq, batch.pos, batch.table)
    kernel(problem.q, problem.angles, problem.cache(batch), uk, uv, *rows, together)
    threads(1)
    other = Batch.of(CHUNKS, problem.s.page, np.random.default_rng(99))
    cache = problem.cache(other)
    for part in (slice(0, 4), slice(4, 9), slice(9, 10), slice(10, 11), slice(11, 30), slice(30, len(batch.seq))):
        rows = (*batch.take(part), other.table)
        kernel(problem.q[part], problem.angles[part], cache, uk, uv, *rows, apart[part])
    assert np.array_equal(together, apart)
