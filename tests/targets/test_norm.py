"""Row-wise kernels against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deepzig.targets.cpu.norm import embed, rms_norm, rope_angles, take_rows

from .latents import error, to_bits, to_f32

Build = Callable[[Any], Callable[..., None]]


@pytest.mark.parametrize("hidden", [1, 37, 256])
def test_rms_norm(build: Build, threads: Callable[[int], None], hidden: int) -> None:
    rng = np.random.default_rng(hidden)
    x, weight = rng.normal(size=(5, hidden)).astype(np.float32), rng.normal(size=hidden).astype(np.float32)
    y, alone = np.zeros((2, 5, hidden), np.float32)
    kernel = build(rms_norm(hidden, 1e-5))
    kernel(x, weight, y)
    x64 = x.astype(np.float64)
    assert error(y, x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5) * weight) < 3e-7
    threads(1)
    for i in range(5):
        kernel(x[i : i + 1], weight, alone[i : i + 1])
    assert np.array_equal(y, alone)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_embed(build: Build, dtype: str) -> None:
    rng = np.random.default_rng(0)
    table = to_bits(rng.normal(size=(50, 33)) * 2.0 ** rng.integers(-20, 4, (50, 33)), dtype)
    tokens = rng.integers(0, 50, 7).astype(np.int32)
    y = np.zeros((7, 33), np.float32)
    build(embed(50, 33, dtype))(tokens, table, y)
    assert np.array_equal(y, to_f32(table, dtype)[tokens])


def test_take_rows(build: Build) -> None:
    x = np.random.default_rng(1).normal(size=(6, 21)).astype(np.float32)
    rows = np.array([5, 0, 5], np.int32)
    y = np.zeros((3, 21), np.float32)
    build(take_rows(21))(x, rows, y)
    assert np.array_equal(y, x[rows])


@pytest.mark.parametrize("width", [2, 64])
def test_rope_angles(build: Build, width: int) -> None:
    """To 2e-7 of the float64 functions of the float32 product, at far positions too."""
    inv_freq = (10000.0 ** -(np.arange(0, width, 2) / width)).astype(np.float32)
    pos = np.array([0, 1, 77, 163_839], np.int32)
    angles = np.zeros((4, width), np.float32)
    build(rope_angles(width, 0.75))(pos, inv_freq, angles)
    product = (pos[:, None].astype(np.float32) * inv_freq).astype(np.float64)
    want = 0.75 * np.concatenate([np.cos(product), np.sin(product)], -1)
    np.testing.assert_allclose(angles, want, rtol=0, atol=2e-7)
