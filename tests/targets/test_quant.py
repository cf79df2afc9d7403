"""Products with quantised weights against their meaning, and against each other to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepzig.ir import OPS
from deepzig.ir.quantize import GROUP, QuantizedMatrix, quantize, quantize_rows
from deepzig.targets.cpu.features import Vectors
from deepzig.targets.cpu.layout import pack_quantized, pack_quantized_gate_up
from deepzig.targets.cpu.linear import gated_proj, proj
from deepzig.targets.cpu.moe import moe

AVX2, PORTABLE, NEON = Vectors(16, 8, "avx2"), Vectors(16, 8), Vectors(32, 4)
TOLERANCE = 2e-6
"""f32 sums of exact products; norm-relative."""
DTYPES = ("q8", "q4")


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape, np.float32)


def error(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("dtype", "bound"), [("q8", 0.006), ("q4", 0.11)])
def test_values_are_near(dtype: str, bound: float) -> None:
    w = normal(np.random.default_rng(1), 13, 193)
    near = QuantizedMatrix.of(w, dtype).values
    assert near.shape == w.shape and 0 < error(near, w) < bound
    codes, scales = quantize(w, dtype)
    assert codes.shape == (13, 4, GROUP) and scales.shape == (13, 4) and not codes[:, 3, 1:].any()
    assert abs(codes).max() == {"q8": 127, "q4": 8}[dtype]


def test_zeros_and_outliers() -> None:
    w = np.zeros((2, 70), np.float32)
    w[1, 66] = -3e38
    for dtype in DTYPES:
        assert np.array_equal(QuantizedMatrix.of(w, dtype).values, w)
    assert np.array_equal(quantize_rows(np.zeros((1, 5), np.float32)), np.zeros((1, 5)))


@pytest.mark.parametrize("vectors", [AVX2, PORTABLE, NEON], ids=["avx2", "portable", "neon"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("k", "n", "begin", "extra"), [(64, 64, 0, 0), (37, 45, 3, 2), (131, 17, 16, 0), (320, 100, 0, 0)]
)  # fmt: skip
def test_proj(build: Any, k: int, n: int, begin: int, extra: int, dtype: str, vectors: Vectors) -> None:
    rng = np.random.default_rng(k * n)
    width = begin + k + extra
    kernel = proj(k, n, dtype, x_width=width, begin=begin, norm_eps=None, bias=True, residual=True, vectors=vectors)
    run = build(kernel)
    w, bias = normal(rng, n, k), normal(rng, n)
    packed = pack_quantized(w, dtype)
    for rows in (1, 2, 5, 9):
        x, residual = normal(rng, rows, width), normal(rng, rows, n)
        want = OPS["proj"].meaning(x, QuantizedMatrix.of(w, dtype), None, bias, residual, begin=begin)
        y = np.full((rows, n), np.nan, np.float32)
        run(x, packed, bias, residual, y)
        assert error(y, want) <= TOLERANCE
        alone = np.full((1, n), np.nan, np.float32)
        run(x[:1], packed, bias, residual[:1], alone)
        assert np.array_equal(alone[0], y[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_instructions_do_not_matter(build: Any, dtype: str) -> None:
    """The same bits with and without instructions for bytes."""
    rng = np.random.default_rng(3)
    k, n = 197, 83
    packed, x = pack_quantized(normal(rng, n, k), dtype), normal(rng, 6, k)
    results = []
    for vectors in (AVX2, PORTABLE, NEON):
        kernel = proj(k, n, dtype, x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=vectors)
        y = np.full((6, n), np.nan, np.float32)
        build(kernel)(x, packed, y)
        results.append(y)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_codes_do_not_overflow(build: Any, dtype: str) -> None:
    """All codes as large as they get, with all signs."""
    k, n = 256, 16
    signs = np.where(np.random.default_rng(5).random((n + 3, k)) < 0.5, -1, 1).astype(np.float32)
    signs[0] = signs[n] = 1
    w, x = signs[:n], signs[n:]
    kernel = proj(k, n, dtype, x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=AVX2)
    y = np.full((3, n), np.nan, np.float32)
    build(kernel)(x, pack_quantized(w, dtype), y)
    want = OPS["linear"].meaning(x, QuantizedMatrix.of(w, dtype))
    assert np.abs(y - want).max() <= 1e-4 * k


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_proj(build: Any, dtype: str) -> None:
    rng = np.random.default_rng(11)
    k, i = 101, 67
    kernel = gated_proj(k, i, dtype, norm_eps=None, vectors=AVX2)
    run = build(kernel)
    gate, up = normal(rng, i, k) / 8, normal(rng, i, k)
    for rows in (1, 7):
        x = normal(rng, rows, k)
        want = OPS["gated_proj"].meaning(x, *(QuantizedMatrix.of(w, dtype) for w in (gate, up)), None)
        y = np.full((rows, i), np.nan, np.float32)
        run(x, pack_quantized_gate_up(gate, up, dtype), y)
        assert error(y, want) <= 3 * TOLERANCE


class Moe:
    """The kernel of one mixture, and its weights."""

    def __init__(self, build: Any, dtype: str, down_dtype: str, vectors: Vectors) -> None:
        self.hidden, self.width, self.experts, self.top_k, self.shared = 101, 70, 6, 2, 1
        every = self.experts + self.shared
        rng = np.random.default_rng(8)
        gate, up = normal(rng, every, self.width, self.hidden) / 10, normal(rng, every, self.width, self.hidden) / 10
        down = normal(rng, every, self.hidden, self.width) / 8
        self.weights = (*(QuantizedMatrix.of(w, dtype) for w in (gate, up)), QuantizedMatrix.of(down, down_dtype))
        self.packed = pack_quantized_gate_up(gate, up, dtype), pack_quantized(down, down_dtype)
        sizes = self.hidden, self.width, self.experts, self.top_k, self.shared
        self.run = build(moe(*sizes, dtype, down_dtype, residual=True, vectors=vectors))

    def __call__(self, x: Any, ids: Any, weights: Any, residual: Any) -> Any:
        y = np.full((len(x), self.hidden), np.nan, np.float32)
        self.run(x, ids, weights, *self.packed, residual, y)
        return y


@pytest.mark.parametrize("vectors", [AVX2, PORTABLE], ids=["avx2", "portable"])
@pytest.mark.parametrize(("dtype", "down"), [("q8", "q8"), ("q4", "q8")])
def test_moe(build: Any, threads: Any, dtype: str, down: str, vectors: Vectors) -> None:
    """Against its meaning, and the same bits for a row alone and among others, with one thread and two."""
    layer, rng, rows = Moe(build, dtype, down, vectors), np.random.default_rng(9), 17
    ids = np.stack([rng.permutation(layer.experts)[: layer.top_k] for _ in range(rows)]).astype(np.int32)
    weights = rng.uniform(0.1, 1, (rows, layer.top_k)).astype(np.float32)
    x, residual = normal(rng, rows, layer.hidden), normal(rng, rows, layer.hidden)
    y = layer(x, ids, weights, residual)
    want = OPS["moe"].meaning(x, ids, weights, *layer.weights, residual, shared=layer.shared)
    # the hidden values are rounded to 8 bits, where a last bit decides between two neighbours now and then
    assert error(y, want) <= 1e-3
    for count in (1, 2):
        threads(count)
        for size in (1, 2, 5, rows):
            part = slice(rows - size, rows)
            assert np.array_equal(layer(x[part], ids[part], weights[part], residual[part]), y[part])
