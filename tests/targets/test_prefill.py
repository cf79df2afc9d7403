"""Un-absorbed latent attention against plain float64, and against the absorbed kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm_ffi import structural_equal

from deepzig.artifacts.machines import MACHINES
from deepzig.targets.cpu.attention import mla_absorb, mla_attend, mla_lift
from deepzig.targets.cpu.features import CpuTarget, Vectors
from deepzig.targets.cpu.layout import pack_columns
from deepzig.targets.cpu.prefill import SPAN, mla_prefill

from .conftest import compile_for, loops
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
from .rounded_rows import HOW, Level, near

Build = Callable[[Any], Callable[..., None]]
CHUNKS = [(0, 9), (61, 62), (SPAN - 17, SPAN + 10), (15, 17)]
"""The third goes from one block of positions to the next in the middle of a tile of rows."""
PAIRS = "avx512-bf16"
ROUNDED = 2e-4
"""By products of pairs, against the same roundings in float64: what lies between two of 8 bits may become either."""
UNROUNDED = 1e-2
"""The same against float64 without roundings, of which each is up to 2^-9."""


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

    def weights(self) -> tuple[Array, Array]:
        """W_UK and W_UV in float64."""
        return to_f32(self.w_uk, self.dtype).astype(np.float64), to_f32(self.w_uv, self.dtype).astype(np.float64)

    def queries(self) -> Array:
        """Rotated queries [n, heads, nope + rope] in float64."""
        q = self.q.astype(np.float64).reshape(len(self.q), self.s.heads, -1)
        turned = rotate(q[..., self.s.nope :], self.angles[:, None].astype(np.float64), self.interleaved)
        return np.concatenate([q[..., : self.s.nope], turned], -1)

    def naive(self) -> Array:
        """Keys and values of every position and head, in float64."""
        s, q = self.s, self.queries()
        w_uk, w_uv = self.weights()
        out = np.empty((len(q), s.heads, s.v))
        for i, (sequence, p) in enumerate(zip(self.batch.seq, self.batch.pos, strict=True)):
            rows = rounded(self.latents[sequence][: p + 1], self.cached)
            key = np.broadcast_to(rows[:, None, s.kv : s.kv + s.rope], (p + 1, s.heads, s.rope))
            keys = np.concatenate([np.einsum("tc,hcd->thd", rows[:, : s.kv], w_uk), key], -1)
            out[i] = softmax_rows(q[i], keys, np.einsum("tc,hvc->thv", rows[:, : s.kv], w_uv))
        return out.reshape(len(q), -1)

    def by_pairs(self) -> Array:
        """The same with what is multiplied rounded to bf16: weights are relative to the peak of the blocks so far."""
        s, q = self.s, near(self.queries() * SCALE)
        w_uk, w_uv = map(near, self.weights())
        out = np.empty((len(q), s.heads, s.v))
        for i, (sequence, p) in enumerate(zip(self.batch.seq, self.batch.pos, strict=True)):
            rows = rounded(self.latents[sequence][: p + 1], "bf16")
            key = np.broadcast_to(rows[:, None, s.kv : s.kv + s.rope], (p + 1, s.heads, s.rope))
            keys = np.concatenate([near(np.einsum("tc,hcd->thd", rows[:, : s.kv], w_uk)), key], -1)
            scores, values = np.einsum("hd,thd->th", q[i], keys), near(np.einsum("tc,hvc->thv", rows[:, : s.kv], w_uv))
            peak, mass, total = np.full(s.heads, -np.inf), np.zeros(s.heads), np.zeros((s.heads, s.v))
            for begin in range(0, p + 1, SPAN):
                block = slice(begin, begin + SPAN)
                top = np.maximum(peak, scores[block].max(0))
                weights, decay = np.exp(scores[block] - top), np.exp(peak - top)
                peak, mass = top, mass * decay + weights.sum(0)
                total = total * decay[:, None] + np.einsum("th,thv->hv", near(weights), values[block])
            out[i] = total / mass[:, None]
        return out.reshape(len(q), -1)

    def run(self, kernel: Callable[..., None]) -> Array:
        """The kernel's output."""
        batch = self.batch
        out = np.full((len(batch.seq), self.s.heads * self.s.v), np.nan, np.float32)
        rows = (batch.seq, batch.pos, batch.table)
        kernel(self.q, self.angles, self.cache(batch), *self.packed(), *rows, out)
        return out

    def assert_alone_as_together(self, kernel: Callable[..., None], threads: Callable[[int], None]) -> None:
        """Sequences alone, in other pieces, on other pages and on one thread have the bits they have together."""
        batch, (uk, uv) = self.batch, self.packed()
        threads(2)
        together, apart = self.run(kernel), np.zeros((len(batch.seq), self.s.heads * self.s.v), np.float32)
        threads(1)
        other = Batch.of(CHUNKS, self.s.page, np.random.default_rng(99))
        cache = self.cache(other)
        for part in (slice(0, 4), slice(4, 9), slice(9, 10), slice(10, 11), slice(11, 30), slice(30, len(batch.seq))):
            rows = (*batch.take(part), other.table)
            kernel(self.q[part], self.angles[part], cache, uk, uv, *rows, apart[part])
        assert np.array_equal(together, apart)


@pytest.fixture(params=HOW)
def pairs(request: pytest.FixtureRequest, tmp_path: Path) -> Level:
    return Level(PAIRS, request.param, tmp_path)


@pytest.mark.parametrize("s", SIZES)
@pytest.mark.parametrize(
    ("dtype", "interleaved", "cached"),
    [("f32", False, "f32"), ("bf16", True, "bf16"), ("f16", True, "f16"), ("bf16", False, "q8")],
)
def test_prefill(build: Build, s: Sizes, dtype: str, interleaved: bool, cached: str) -> None:
    problem = Problem.of(s, dtype, interleaved, cached)
    assert error(problem.run(build(problem.prefill())), problem.naive()) < 2e-6


@pytest.mark.parametrize(
    ("s", "dtype", "interleaved"),
    [(s, "bf16", i % 2 == 0) for i, s in enumerate(SIZES)] + [(SIZES[1], "f32", True), (SIZES[4], "f16", False)],
)
def test_pairs(pairs: Level, s: Sizes, dtype: str, interleaved: bool) -> None:
    problem = Problem.of(s, dtype, interleaved, "bf16")
    out = problem.run(pairs(problem.prefill(pairs.vectors)))
    assert error(out, problem.by_pairs()) < ROUNDED
    assert error(out, problem.naive()) < UNROUNDED


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
    out = {vectors: problem.run(build(problem.prefill(vectors))) for vectors in (AVX2, AVX512, NEON)}
    assert np.linalg.norm(out[AVX2]) > 1
    assert np.array_equal(out[AVX512], out[AVX2]) and np.array_equal(out[NEON], out[AVX2])


@pytest.mark.parametrize(("dtype", "cached"), [("f32", "f32"), ("bf16", "bf16"), ("bf16", "q8")])
def test_bits_do_not_depend_on_company_pages_or_threads(
    build: Build, threads: Callable[[int], None], dtype: str, cached: str
) -> None:
    problem = Problem.of(SIZES[2], dtype, cached=cached)
    problem.assert_alone_as_together(build(problem.prefill()), threads)


@pytest.mark.parametrize("s", SIZES[1:3])
def test_bits_of_pairs_do_not_depend_on_company_pages_or_threads(
    pairs: Level, threads: Callable[[int], None], s: Sizes
) -> None:
    problem = Problem.of(s, "bf16")
    problem.assert_alone_as_together(pairs(problem.prefill(pairs.vectors)), threads)


@pytest.mark.parametrize("cached", ["f32", "q8"])
def test_pairs_are_for_caches_of_bf16(cached: str) -> None:
    """Elsewhere a level with products of pairs has the code of the level without."""
    code = Problem.of(SIZES[0], "bf16", cached=cached)
    with_pairs = CpuTarget(MACHINES[PAIRS].features).vectors
    assert with_pairs.matrices == "pairs" and structural_equal(code.prefill(with_pairs), code.prefill(AVX512))


def test_every_product_is_of_pairs() -> None:
    """The only multiply-adds are those of the softmax, the scale and the rotation."""
    target = CpuTarget(MACHINES[PAIRS].features)
    executable, _ = compile_for(Problem.of(SIZES[2], "bf16").prefill(target.vectors), target.tvm_target())
    inner = loops(str(executable.mod.inspect_source("asm")))
    lines, held = target.vectors.tile
    assert sum("vdpbf16ps" in loop for loop in inner) >= 4  # keys, values, scores, outputs
    assert not any(loop.count("vfmadd") >= lines * held for loop in inner)
