"""Matrices of 8-bit floats: nearest codes, blocks of 128 x 128, and what they are in a graph."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from deepzig.ir import interpret, parse
from deepzig.ir.fp8 import (
    E4M3,
    MOST,
    RECORD,
    SIDE,
    elements,
    from_elements,
    largest,
    quantize_fp8,
    records,
    round_fp8,
    to_e4m3,
    values_fp8,
)

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


def test_codes_are_the_nearest() -> None:
    """Ties to even, subnormal numbers, both zeros; beyond the range the largest and never NaN."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(200_000) * np.exp2(rng.integers(-14, 12, 200_000))).astype(np.float32)
    values = E4M3[:0x7F]
    ties = (values[:-1] + values[1:]) / 2
    x = np.concatenate([x, values, -values, ties, -ties, np.float32([1e30, -1e30, 3e-40, 464, 480])])
    codes = to_e4m3(x)
    want = np.clip(x, -MOST, MOST).astype(FLOAT8).view(np.uint8)
    assert np.array_equal(codes, want) and not (codes & 0x7F == 0x7F).any()


@pytest.mark.parametrize("shape", [(576, 130), (5, 384), (2, 131, 257)])
def test_blocks(shape: tuple[int, ...]) -> None:
    """A scale is the largest of its block over 448, blocks at the edges are partial."""
    w = np.random.default_rng(2).standard_normal(shape, np.float32)
    w[..., 3, 7] = 9
    stored = quantize_fp8(w)
    assert stored.dtype == RECORD and stored.shape == (*shape[:-1], -(-shape[-1] // SIDE))
    for first in range(0, shape[-2], SIDE):
        for group, begin in enumerate(range(0, shape[-1], SIDE)):
            block = w[..., first : first + SIDE, begin : begin + SIDE]
            greatest = np.abs(block).max((-1, -2))
            held = stored[..., first : first + SIDE, group]
            assert np.array_equal(held["scale"], np.broadcast_to(greatest[..., None] / np.float32(MOST), held.shape))
            codes = (block / held["scale"][..., None]).clip(-MOST, MOST).astype(FLOAT8).view(np.uint8)
            assert np.array_equal(held["codes"][..., : block.shape[-1]], codes)
            assert not held["codes"][..., block.shape[-1] :].any()
    values = values_fp8(stored, shape[-1])
    assert np.array_equal(values, round_fp8(w)) and np.abs(values[..., 3, 7] - 9).max() <= 1e-6
    assert 0.01 < np.linalg.norm(values - w) / np.linalg.norm(w) < 0.03
    assert np.allclose(largest(stored)[..., 0], np.abs(values[..., :SIDE]).max(-1), 0, 0)


def test_zeros_and_extremes() -> None:
    for number in (0, 1e-45, 3e38):
        w = np.full((3, 140), number, np.float32)
        near = round_fp8(w)
        assert np.isfinite(near).all() and np.abs(near - w).max() <= 1e-6 * np.abs(w).max() + 1e-42
    assert np.isnan(largest(records(np.full((1, 4), 0xFF, np.uint8), np.ones((1, 1), np.float32)))).all()
    assert np.isinf(largest(records(np.full((1, 4), 0x7E, np.uint8), np.full((1, 1), -1e38, np.float32)))).all()


def test_elements_keep_their_scales_where_they_go() -> None:
    """Rows and whole blocks of columns are moved to the bit; a record with several scales is rounded anew."""
    w = np.random.default_rng(5).standard_normal((9, 300), np.float32)
    stored = quantize_fp8(w * np.arange(1, 301, dtype=np.float32) ** 3)
    codes, scales = elements(stored, 300)
    assert np.array_equal(from_elements(codes, scales), stored)
    assert np.array_equal(from_elements(codes[2:5, 128:], scales[2:5, 128:]), stored[2:5, 1:])
    apart = from_elements(codes[:, 100:], scales[:, 100:])
    assert np.array_equal(apart, quantize_fp8(values_fp8(stored, 300)[:, 100:]))


def test_matrices_that_are_put_together_keep_their_blocks() -> None:
    """And what they multiply is not rounded."""
    module = parse("""\
param @a: fp8[70, 200]
param @b: fp8[90, 200]
@both: fp8[160, 200] = concat(@a, @b) {axis=0}

graph decode(%x: f32[n, 200]):
  %0: f32[n, 160] = linear(%x, @both)
  return %0
""")
    rng = np.random.default_rng(3)
    a, b, x = (rng.standard_normal((n, 200), np.float32) for n in (70, 90, 5))
    (got,), _ = interpret(module, "decode", {"x": x}, {"a": a, "b": b * 100}, {})
    assert np.array_equal(got, x @ np.concatenate([round_fp8(a), round_fp8(b * 100)]).T)
