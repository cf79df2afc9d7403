"""Projections against float64, and the same bits for a row whatever its company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from deepzig.targets.cpu.features import Vectors
from deepzig.targets.cpu.layout import pack_columns, pack_gate_up, pack_quantized
from deepzig.targets.cpu.linear import gated_proj, proj

from .conftest import aligned, compile_kernel

AVX2, AVX512, NEON = Vectors(16, 8), Vectors(32, 16), Vectors(32, 4)
EPS = 1e-6
TOLERANCE = 2e-6


def rms_norm(x: Any, weight: Any) -> Any:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + EPS) * weight


def error(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape, np.float32)


# K, N, wdtype, begin, extra columns of x, norm, bias, residual, vectors, rows
PROJ = [
    (64, 64, "bf16", 0, 0, False, False, False, AVX2, (1, 2, 6, 13)),
    (64, 64, "f32", 0, 0, True, False, True, AVX2, (1, 5, 12)),
    (96, 80, "f16", 0, 0, False, False, True, AVX2, (1, 3, 4, 7)),
    (37, 45, "bf16", 3, 2, True, True, True, AVX2, (1, 4, 11, 12)),
    (131, 17, "f16", 16, 0, True, True, False, AVX2, (1, 2, 19)),
    (53, 1, "f32", 0, 7, False, True, False, AVX2, (1, 2, 20)),
    (1, 33, "bf16", 0, 0, False, False, False, AVX2, (1, 9)),
    (67, 131, "f32", 0, 0, True, True, True, AVX2, (1, 10)),
    (70, 101, "bf16", 0, 0, True, False, True, AVX512, (1, 8, 9, 15, 29)),
    (35, 112, "bf16", 0, 0, False, False, False, NEON, (1, 7)),
]


@pytest.mark.parametrize("case", PROJ, ids=lambda c: f"k{c[0]}-n{c[1]}-{c[2]}")
def test_proj(build: Any, random_weight: Any, case: Any) -> None:
    k, n, wdtype, begin, extra, norm, bias, residual, vectors, row_counts = case
    rng = np.random.default_rng(k * n)
    width = begin + k + extra
    eps = EPS if norm else None
    kernel = proj(k, n, wdtype, x_width=width, begin=begin, norm_eps=eps, bias=bias, residual=residual, vectors=vectors)
    run = build(kernel)
    weight, exact = random_weight(rng, (n, k), wdtype)
    weight = pack_columns(weight)
    norm_weight, bias_vector = normal(rng, k), normal(rng, n)
    for rows in row_counts:
        x, added = normal(rng, rows, width), normal(rng, rows, n)
        operand = x[:, begin : begin + k].astype(np.float64)
        expected = (rms_norm(operand, norm_weight) if norm else operand) @ exact.T
        expected += bias_vector * bias + added * residual
        y = np.full((rows, n), np.nan, np.float32)
        options = ((norm, norm_weight), (bias, bias_vector), (residual, added))
        run(x, weight, *(array for used, array in options if used), y)
        assert error(y, expected) <= TOLERANCE


@pytest.mark.parametrize("wdtype", ["f32", "bf16", "q8"])
def test_no_rows_are_no_output(random_weight: Any, wdtype: str) -> None:
    """The chunks of a prompt but the last want no logits."""
    k, n = 70, 33
    rng = np.random.default_rng(0)
    weight = normal(rng, n, k) if wdtype == "q8" else random_weight(rng, (n, k), wdtype)[0]
    packed = pack_quantized(weight, "q8") if wdtype == "q8" else pack_columns(weight)
    kernel = proj(k, n, wdtype, x_width=k, begin=0, norm_eps=EPS, bias=False, residual=False, vectors=AVX2)
    executable, name = compile_kernel(kernel)
    memory = aligned(np.full((4, n), 7, np.float32))
    arrays = [aligned(a) for a in (normal(rng, 1, k), packed, normal(rng, k))]
    executable[name](*map(tvm.runtime.from_dlpack, (arrays[0][:0], *arrays[1:], memory[:0])))
    assert (memory == 7).all()


# K, I, wdtype, norm, vectors, rows
GATED = [
    (64, 48, "bf16", True, AVX2, (1, 2, 9)),
    (37, 35, "f16", True, AVX2, (1, 3, 4, 7)),
    (53, 5, "f32", False, AVX2, (1, 6)),
    (41, 131, "bf16", False, AVX512, (1, 17)),
]


@pytest.mark.parametrize("case", GATED, ids=lambda c: f"k{c[0]}-i{c[1]}-{c[2]}")
def test_gated_proj(build: Any, random_weight: Any, case: Any) -> None:
    k, i, wdtype, norm, vectors, row_counts = case
    rng = np.random.default_rng(k * i)
    run = build(gated_proj(k, i, wdtype, norm_eps=EPS if norm else None, vectors=vectors))
    (gate, gate_exact), (up, up_exact) = (random_weight(rng, (i, k), wdtype) for _ in range(2))
    packed, norm_weight = pack_gate_up(gate, up), normal(rng, k)
    for rows in row_counts:
        x = normal(rng, rows, k)
        operand = x.astype(np.float64)
        operand = rms_norm(operand, norm_weight) if norm else operand
        opened = operand @ gate_exact.T
        y = np.full((rows, i), np.nan, np.float32)
        run(x, packed, *([norm_weight] if norm else []), y)
        assert error(y, opened / (1 + np.exp(-opened)) * (operand @ up_exact.T)) <= TOLERANCE


@pytest.mark.parametrize("wdtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("form", ["proj", "gated_proj"])
def test_a_row_has_the_same_bits_in_any_company(
    build: Any, random_weight: Any, threads: Any, form: str, wdtype: str
) -> None:
    k, n, rows = 95, 83, 20
    rng = np.random.default_rng(7)
    weights = [random_weight(rng, (n, k), wdtype)[0] for _ in range(2)]
    norm_weight, x, added = normal(rng, k), normal(rng, rows, k), normal(rng, rows, n)
    kernels = {}
    for vectors in (AVX2, AVX512):
        if form == "proj":
            kernels[vectors] = proj(
                k, n, wdtype, x_width=k, begin=0, norm_eps=EPS, bias=False, residual=True, vectors=vectors
            )
        else:
            kernels[vectors] = gated_proj(k, n, wdtype, norm_eps=EPS, vectors=vectors)
    packed = pack_columns(weights[0]) if form == "proj" else pack_gate_up(*weights)

    def compute(run: Any, count: int, first: int = 0) -> Any:
        part = slice(first, first + count)
        y = np.full((count, n), np.nan, np.float32)
        run(x[part], packed, norm_weight, *([added[part]] if form == "proj" else []), y)
        return y

    runs = [build(f) for f in kernels.values()]
    whole = compute(runs[0], rows)
    assert np.array_equal(compute(runs[1], rows), whole)
    for count in (1, 2):
        threads(count)
        for run in runs:
            for size in range(1, rows + 1):
                assert np.array_equal(compute(run, size), whole[:size])
            assert np.array_equal(compute(run, 1, 13), whole[13:14])


@pytest.mark.parametrize("mcpu", ["x86-64-v3", "sapphirerapids"])
def test_loops_are_fused_multiply_adds_without_calls(assembly: Any, mcpu: str) -> None:
    vectors, register = (AVX2, "%ymm") if mcpu == "x86-64-v3" else (AVX512, "%zmm")
    kernel = proj(256, 256, "bf16", x_width=256, begin=0, norm_eps=None, bias=False, residual=False, vectors=vectors)
    text = assembly(kernel, mcpu)
    lines = [line.split() for line in text.splitlines() if line.startswith("\t")]
    fused = [line for line in lines if line[0].startswith("vfmadd") and register in line[-1]]
    held = vectors.tile[0] * vectors.tile[1] * 16 // vectors.lanes
    assert len(fused) >= 2 * held
    called = {line[1] for line in lines if line[0] == "callq" and "@PLT" in line[1]}
    assert all("TVM" in name for name in called), called
