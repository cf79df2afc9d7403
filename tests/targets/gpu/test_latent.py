"""Rows of the cache as the GPU kernels write them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from deepzig.targets.gpu.latent import latent_write

from ..latents import RAGGED, Batch, Sizes, error, read_rows, rotate, rounded, to_bits
from .conftest import KINDS, SoftwareGpu

Gpus = Callable[[str], SoftwareGpu]
SIZES = [Sizes(4, 16, 8, 32, 16, 16), Sizes(3, 20, 6, 40, 24, 5), Sizes(1, 5, 6, 311, 8, 64)]


@pytest.mark.parametrize("device", KINDS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "q8"])
def test_latent_write(gpu: Gpus, device: str, dtype: str) -> None:
    kernels = [
        latent_write(KINDS[device], 7 + s.kv + s.rope, 5, s.kv, s.rope, s.page, dtype, 1e-6, interleaved)
        for s, interleaved in zip(SIZES, (True, False, True), strict=True)
    ]
    for s, interleaved, kernel in zip(SIZES, (True, False, True), gpu(device).all(*kernels), strict=True):
        rng = np.random.default_rng(4)
        batch = Batch.of(RAGGED, s.page, rng)
        n, begin = len(batch.seq), 5
        x = rng.normal(size=(n, begin + s.kv + s.rope + 2)).astype(np.float32)
        weight, angles = rng.normal(size=s.kv).astype(np.float32), rng.normal(size=(n, s.rope)).astype(np.float32)
        cache = to_bits(rng.normal(size=(batch.pages, s.page, s.cw)), dtype)
        before = cache.copy()
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


@pytest.mark.parametrize("device", KINDS)
def test_latent_write_of_a_row_alone_and_of_none(gpu: Gpus, device: str) -> None:
    s = SIZES[1]
    rng = np.random.default_rng(6)
    batch = Batch.of(RAGGED, s.page, rng)
    x = rng.normal(size=(len(batch.seq), s.kv + s.rope)).astype(np.float32)
    weight, angles = rng.normal(size=s.kv).astype(np.float32), rng.normal(size=(len(x), s.rope)).astype(np.float32)
    kernel = gpu(device)(latent_write(KINDS[device], s.kv + s.rope, 0, s.kv, s.rope, s.page, "bf16", 1e-6, True))
    together, alone = (to_bits(np.full((batch.pages, s.page, s.cw), 3.0), "bf16") for _ in range(2))
    kernel(x, weight, angles, batch.seq, batch.pos, batch.table, together)
    for i in range(len(x)):
        row = slice(i, i + 1)
        kernel(x[row], weight, angles[row], *batch.take(row), batch.table, alone)
    assert np.array_equal(together, alone)
    kernel(x[:0], weight, angles[:0], *batch.take(slice(0)), batch.table, alone)
    assert np.array_equal(together, alone)
