"""Products with weights of 8-bit floats against their meaning, and against each other to the bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.ir.fp8 import E4M3, FP8, RECORD, SIDE, quantize_fp8, round_fp8, values_fp8
from deepzig.targets.cpu.features import Vectors
from deepzig.targets.cpu.layout import pack_quantized, pack_quantized_gate_up
from deepzig.targets.cpu.linear import gated_proj, proj
from deepzig.targets.cpu.moe import moe

from .conftest import Run
from .latents import error
from .rounded_rows import HOW, Level, near, normal

PLAIN = {
    "avx2": (Vectors(16, 8, "avx2"), "x86-64-v3"),
    "sse": (Vectors(16, 4), "x86-64-v2"),
    "neon": (Vectors(32, 4), "x86-64-v3"),
}
"""Registers, and the CPU to compile for, where codes become f32."""
AVX2 = PLAIN["avx2"][0]
PAIRS = [(name, how) for name in ("amx", "avx512-bf16") for how in HOW]
"""Levels where codes become bf16, and rows are rounded to it."""
TOLERANCE = 3e-6
"""f32; norm-relative."""
ROUNDED_AGAIN = 1e-4
"""Where an f32 result is rounded for the next product: what lies between two of 8 bits may become either."""


@dataclass(frozen=True)
class Way:
    """How products are computed.

    Attributes:
        vectors: registers.
        run: kernel -> function on numpy arrays.
        seen: rows -> what is multiplied.
        far: by how much results may differ where results are multiplied again.
    """

    vectors: Vectors
    run: Callable[[Any], Run]
    seen: Callable[[Any], Any]
    far: float


@pytest.fixture(params=[*PLAIN, *PAIRS], ids=lambda p: p if isinstance(p, str) else "-".join(p))
def way(request: pytest.FixtureRequest, build: Any, tmp_path: Path) -> Way:
    if request.param in PLAIN:
        vectors, mcpu = PLAIN[request.param]
        return Way(vectors, lambda kernel: build(kernel, mcpu), np.float64, TOLERANCE)
    level = Level(*request.param, tmp_path)
    return Way(level.vectors, level, near, ROUNDED_AGAIN)


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("k", "n", "begin", "extra"), [(128, 64, 0, 0), (37, 45, 3, 2), (259, 17, 16, 0), (385, 100, 0, 0), (3, 2, 0, 0)]
)  # fmt: skip
def test_proj(way: Way, k: int, n: int, begin: int, extra: int) -> None:
    rng, width = np.random.default_rng(k * n), begin + k + extra
    run = way.run(
        proj(k, n, FP8, x_width=width, begin=begin, norm_eps=None, bias=True, residual=True, vectors=way.vectors)
    )
    w, bias = normal(rng, n, k), normal(rng, n)
    packed = pack_quantized(quantize_fp8(w), FP8)
    for rows in (1, 2, 5, 9):
        x, residual = normal(rng, rows, width), normal(rng, rows, n)
        x[:, :begin] = x[:, begin + k :] = np.nan  # what is beside is not read
        want = way.seen(x[:, begin : begin + k]) @ round_fp8(w).T + bias + residual
        y = np.full((rows, n), np.nan, np.float32)
        run(x, packed, bias, residual, y)
        assert error(y, want) <= TOLERANCE
        alone = np.full((1, n), np.nan, np.float32)
        run(x[:1], packed, bias, residual[:1], alone)
        assert np.array_equal(alone[0], y[0])


def test_every_code_is_widened_exactly(way: Way) -> None:
    """Subnormal numbers and both zeros, at every place in a word, times the smallest and largest of rows."""
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
    k, n = 2 * SIDE, len(codes)
    run = way.run(proj(k, n, FP8, x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=way.vectors))
    stored = np.zeros((n, 2), RECORD)
    stored["codes"] = np.stack([np.roll(codes[:, None].repeat(SIDE, 1), i, 0) for i in range(2)], 1)
    stored["scale"] = [1.0, 2.0**-5]
    packed = pack_quantized(stored, FP8)
    x = np.zeros((8, k), np.float32)
    x[range(8), [0, 1, 2, 3, 124, 125, SIDE + 2, SIDE + 3]] = [1, 3, 2.0**-60, 2.0**60, -1, 2.0**-30, 1, -5]
    y = np.full((8, n), np.nan, np.float32)
    run(x, packed, y)
    assert np.array_equal(y, x @ values_fp8(stored, k).T) and np.isfinite(y).all() and (np.abs(y).max(-1) > 0).all()


def test_codes_are_widened_in_whole_registers(assembly: Any) -> None:
    for vectors, mcpu, register in ((AVX2, "x86-64-v3", "ymm"), (Vectors(32, 16, "avx2"), "x86-64-v4", "zmm")):
        kernel = proj(256, 64, FP8, x_width=256, begin=0, norm_eps=None, bias=False, residual=False, vectors=vectors)
        code = assembly(kernel, mcpu)
        assert re.search(rf"vpsraw\s+\$4, .*%{register}", code) and re.search(rf"vfmadd\w+ps\s.*%{register}", code)


def test_sums_do_not_lose_small_numbers(way: Way) -> None:
    """Codes may be widened to numbers near the end of f32: rows of small numbers are as exact as others."""
    rng = np.random.default_rng(4)
    k, n = 200, 33
    run = way.run(proj(k, n, FP8, x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=way.vectors))
    stored = quantize_fp8(normal(rng, n, k))
    x, results = normal(rng, 5, k), []
    for power in (0, -40, 40):
        y = np.full((5, n), np.nan, np.float32)
        run(x * np.float32(2.0**power), pack_quantized(stored, FP8), y)
        results.append(y * np.float32(2.0**-power))
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_gated_proj(way: Way, threads: Any) -> None:
    rng = np.random.default_rng(11)
    k, i, eps = 201, 67, 1e-6
    run = way.run(gated_proj(k, i, FP8, norm_eps=eps, vectors=way.vectors))
    gate, up, norm = normal(rng, i, k) / 8, normal(rng, i, k), normal(rng, k)
    packed = pack_quantized_gate_up(quantize_fp8(gate), quantize_fp8(up), FP8)
    x = normal(rng, 7, k)
    h = way.seen(x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps) * norm)
    want = silu(h @ round_fp8(gate).T) * (h @ round_fp8(up).T)
    results = []
    for count in (1, 2):
        threads(count)
        for rows in (1, 7):
            y = np.full((rows, i), np.nan, np.float32)
            run(x[:rows], packed, norm, y)
            results.append(y[0])
    assert error(y, want) <= way.far and all(np.array_equal(r, results[0]) for r in results)


def test_moe(way: Way, threads: Any) -> None:
    """Against its meaning, and the same bits for a row alone and among others, with one thread and two."""
    hidden, width, experts, top_k, rows = 133, 70, 6, 2, 17
    rng = np.random.default_rng(9)
    gate, up = normal(rng, experts + 1, width, hidden) / 10, normal(rng, experts + 1, width, hidden) / 10
    down = normal(rng, experts + 1, hidden, width) / 8
    packed = (
        pack_quantized_gate_up(quantize_fp8(gate), quantize_fp8(up), FP8), pack_quantized(quantize_fp8(down), FP8)
    )  # fmt: skip
    run = way.run(moe(hidden, width, experts, top_k, 1, FP8, FP8, residual=True, vectors=way.vectors))

    def layer(x: Any, ids: Any, weights: Any, residual: Any) -> Any:
        y = np.full((len(x), hidden), np.nan, np.float32)
        run(x, ids, weights, *packed, residual, y)
        return y

    ids = np.stack([rng.permutation(experts)[:top_k] for _ in range(rows)]).astype(np.int32)
    weights = rng.uniform(0.1, 1, (rows, top_k)).astype(np.float32)
    x, residual = normal(rng, rows, hidden), normal(rng, rows, hidden)
    y = layer(x, ids, weights, residual)
    want, seen = residual.astype(np.float64), way.seen(x)
    for row in range(rows):
        for e, weight in [*zip(ids[row], weights[row], strict=True), (experts, 1.0)]:
            a = silu(round_fp8(gate[e]) @ seen[row]) * (round_fp8(up[e]) @ seen[row])
            want[row] += weight * (round_fp8(down[e]) @ way.seen(a.astype(np.float32)))
    assert error(y, want) <= way.far
    for count in (1, 2):
        threads(count)
        for size in (1, 2, 5, rows):
            part = slice(rows - size, rows)
            assert np.array_equal(layer(x[part], ids[part], weights[part], residual[part]), y[part])


def test_the_code_of_a_block_is_in_its_place() -> None:
    """Byte k % 4 of word k // 4; scales behind their group; zero beyond the matrix."""
    rng = np.random.default_rng(2)
    stored = quantize_fp8(normal(rng, 21, 140))
    packed = pack_quantized(stored, FP8)
    assert packed.shape == (2, 2, 33, 16) and packed.dtype == np.uint32
    columns = packed[:, :, :-1].copy().view(np.uint8).reshape(2, 2, 32, 16, 4)
    codes = columns.transpose(0, 3, 1, 2, 4).reshape(32, 256)
    assert np.array_equal(E4M3[codes[:21, :140]], E4M3[stored["codes"].reshape(21, 256)[:, :140]])
    assert not codes[21:].any() and not codes[:, 140:].any()
    scales = packed[:, :, -1].view(np.float32).transpose(0, 2, 1).reshape(32, 2)
    assert np.array_equal(scales[:21], stored["scale"]) and not scales[21:].any()
