"""Row-wise kernels of GPUs against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.targets.gpu.layout import pack_rows
from deepzig.targets.gpu.norm import embed, rms_norm, rope_angles, take_rows

from ..latents import error, to_bits, to_f32
from .conftest import KINDS

pytestmark = pytest.mark.parametrize("device", KINDS)


@pytest.mark.parametrize("shape", [(1,), (37,), (701,), (3, 21)])
def test_rms_norm(gpu: Any, device: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(sum(shape))
    x, weight = rng.normal(size=(5, *shape)).astype(np.float32), rng.normal(size=shape[-1]).astype(np.float32)
    y, alone = np.zeros((2, 5, *shape), np.float32)
    kernel = gpu(device)(rms_norm(shape, 1e-5))
    kernel(x, weight, y)
    x64 = x.astype(np.float64)
    assert error(y, x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5) * weight) < 3e-7
    for i in range(5):
        kernel(x[i : i + 1], weight, alone[i : i + 1])
    assert np.array_equal(y, alone)
    kernel(x[:0], weight, y[:0])


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_embed(gpu: Any, device: str, dtype: str) -> None:
    """A whole table, and one in shards: what a shard has not stays as it is."""
    rng = np.random.default_rng(0)
    table = to_bits(rng.normal(size=(50, 33)) * 2.0 ** rng.integers(-20, 4, (50, 33)), dtype)
    tokens = np.array([49, 0, 17, 19, 20, 7, 20], np.int32)
    packed, want = pack_rows(table, dtype), to_f32(table, dtype)[tokens]
    whole, low, high = gpu(device).all(
        embed(50, 33, dtype), embed(20, 33, dtype, begin=0), embed(30, 33, dtype, begin=20)
    )
    y = np.full((7, 33), np.nan, np.float32)
    whole(tokens, packed, y)
    assert np.array_equal(y, want)
    y[:] = np.nan
    low(tokens, np.ascontiguousarray(packed[:20]), y)
    assert np.array_equal(y[tokens < 20], want[tokens < 20])
    assert np.isnan(y[tokens >= 20]).all()
    high(tokens, np.ascontiguousarray(packed[20:]), y)
    assert np.array_equal(y, want)


def test_take_rows(gpu: Any, device: str) -> None:
    x = np.random.default_rng(1).normal(size=(6, 271)).astype(np.float32)
    rows = np.array([5, 0, 5], np.int32)
    y = np.zeros((3, 271), np.float32)
    gpu(device)(take_rows(271))(x, rows, y)
    assert np.array_equal(y, x[rows])


@pytest.mark.parametrize("width", [2, 64])
def test_rope_angles(gpu: Any, device: str, width: int) -> None:
    """To 2e-7 of the float64 functions of the float32 product, at far positions too."""
    inv_freq = (10000.0 ** -(np.arange(0, width, 2) / width)).astype(np.float32)
    pos = np.array([0, 1, 77, 163_839], np.int32)
    angles = np.zeros((4, width), np.float32)
    gpu(device)(rope_angles(width, 0.75))(pos, inv_freq, angles)
    product = (pos[:, None].astype(np.float32) * inv_freq).astype(np.float64)
    want = 0.75 * np.concatenate([np.cos(product), np.sin(product)], -1)
    np.testing.assert_allclose(angles, want, rtol=0, atol=2e-7)
