"""Latent attention on matrix units against plain float64, on ragged batches whose pages are scattered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deepzig.targets.gpu.attention import Sizes as Attention
from deepzig.targets.gpu.mla import Sections, mla_attend, mla_flash, scratch

from ..latents import RAGGED, SCALE, Array, Batch, Sizes, error, latents_of, rotate, rounded, softmax_rows
from .conftest import KINDS, SoftwareGpu

Gpus = Callable[[str], SoftwareGpu]
SIZES = [Sizes(4, 16, 8, 32, 16, 16), Sizes(3, 20, 6, 40, 24, 5), Sizes(19, 5, 2, 72, 8, 64)]
TOLERANCE = {
    ("cuda", "f32"): 1e-6, ("cuda", "bf16"): 4e-3, ("cuda", "f16"): 6e-4, ("cuda", "q8"): 6e-3,
    **{(device, dtype): 1e-6 for device in ("metal", "webgpu") for dtype in ("f32", "bf16", "f16", "q8")},
}  # fmt: skip
"""What rounding the operands of tensor cores costs: queries and weights, of q8 the cached values as well; the error of
scores, which these sizes make large, counts most. All else is f32."""


def attention(s: Sizes, dtype: str, interleaved: bool) -> Attention:
    return Attention(s.heads, s.nope, s.rope, s.kv, s.page, dtype, SCALE, interleaved)


class Case:
    """Queries and a cache, and what attention makes of them."""

    def __init__(self, s: Sizes, dtype: str, interleaved: bool, ranges: list[tuple[int, int]] = RAGGED) -> None:
        rng = np.random.default_rng(len(ranges))
        self.s, self.of = s, attention(s, dtype, interleaved)
        self.batch = Batch.of(ranges, s.page, rng)
        n = len(self.batch.seq)
        latents = latents_of(self.batch, s, rng)
        self.cache = self.batch.cache(latents, s.cw, s.page, dtype)
        self.absorbed = np.full((n, s.heads, self.of.latent_pitch), np.nan, np.float32)
        self.absorbed[..., : s.kv] = rng.normal(size=(n, s.heads, s.kv)) / 3
        self.q = rng.normal(size=(n, s.heads * (s.nope + s.rope))).astype(np.float32)
        self.angles = rng.normal(size=(n, s.rope)).astype(np.float32)
        ends = self.q.reshape(n, s.heads, -1)[..., s.nope :].astype(np.float64)
        turned = rotate(ends, self.angles[:, None], interleaved)
        queries = np.concatenate([self.absorbed[..., : s.kv], turned], -1)
        self.want = np.empty((n, s.heads, s.kv))
        for i, (q, p) in enumerate(zip(self.batch.seq, self.batch.pos, strict=True)):
            rows = rounded(latents[q][: p + 1], dtype)[:, None, : s.kv + s.rope]
            self.want[i] = softmax_rows(queries[i], rows, rows[..., : s.kv])

    def run(self, kernel: Any, scratches: list[Array], rows: slice = slice(None)) -> Array:
        out = np.full(self.absorbed[rows].shape, np.nan, np.float32)
        given = [self.absorbed[rows], self.q[rows], self.angles[rows], self.cache, *self.batch.take(rows)]
        kernel(*given, self.batch.table, *scratches, out)
        return out[..., : self.s.kv]


def scratches(device: str, case: Case) -> list[Array]:
    return [np.full(scratch(KINDS[device], case.of), np.nan, np.float32)]


def check(gpu: Gpus, device: str, cases: list[Case]) -> None:
    """Both kernels against the meaning, with all rows, with none, and with one alone, bit by bit."""
    kernels = [kernel(case.of, gpu=KINDS[device]) for case in cases for kernel in (mla_attend, mla_flash)]
    runs = iter(gpu(device).all(*kernels))
    for case in cases:
        for few in (True, False):
            kernel, kept = next(runs), scratches(device, case) if few else []
            got = case.run(kernel, kept)
            assert error(got, case.want) < TOLERANCE[device, case.of.cdtype]
            assert case.run(kernel, kept, slice(0)).size == 0
            for i in (0, 3, len(got) - 1):
                assert np.array_equal(case.run(kernel, kept, slice(i, i + 1))[0], got[i])


@pytest.mark.parametrize("device", KINDS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "q8"])
def test_odd_sizes(gpu: Gpus, device: str, dtype: str) -> None:
    check(gpu, device, [Case(SIZES[1], dtype, False)])


@pytest.mark.parametrize("device", KINDS)
def test_pages_of_whole_tiles_and_more_heads_than_lines(gpu: Gpus, device: str) -> None:
    check(gpu, device, [Case(SIZES[0], "bf16", True), Case(SIZES[2], "bf16", True)])


@pytest.mark.slow
@pytest.mark.parametrize("device", KINDS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8"])
def test_v2_lite(gpu: Gpus, device: str, dtype: str) -> None:
    check(gpu, device, [Case(Sizes(16, 128, 64, 512, 128, 64), dtype, True, [(0, 2), (126, 130), (30, 33)])])


@pytest.mark.parametrize("device", KINDS)
def test_sections_grow_and_rows_take_turns(gpu: Gpus, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three sections of a row of 16 positions, or of 32 or 48 in longer ones, and memory for five."""
    monkeypatch.setattr(Sections, "of", lambda *_: Sections(16, 3, 5))
    mla_attend.cache_clear()
    case = Case(Sizes(3, 4, 2, 17, 8, 32), "bf16", True, [(47, 49), (95, 97), (0, 1), (130, 131), (15, 17)])
    kernel, kept = gpu(device)(mla_attend(case.of, gpu=KINDS[device])), scratches(device, case)
    mla_attend.cache_clear()
    assert len(kept[0]) == 5
    got = case.run(kernel, kept)
    assert error(got, case.want) < TOLERANCE[device, "bf16"]
    for i in range(len(got)):
        assert np.array_equal(case.run(kernel, kept, slice(i, i + 1))[0], got[i])
