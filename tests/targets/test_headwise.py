"""Latent attention whose matrices are integers, against its meaning, in both forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.machines import MACHINES
from deepzig.ir import OPS
from deepzig.ir.fp8 import FP8, quantize_fp8, round_fp8
from deepzig.ir.quantize import QuantizedMatrix
from deepzig.targets.cpu.attention import mla_absorb, mla_attend, mla_lift
from deepzig.targets.cpu.features import CpuTarget, Vectors
from deepzig.targets.cpu.layout import pack_quantized
from deepzig.targets.cpu.prefill import mla_prefill

from .latents import AVX2, NEON, SCALE, SIZES, Array, Sizes, error
from .rounded_rows import HOW, Level
from .test_prefill import PAIRS, ROUNDED, Problem

Build = Callable[[Any], Callable[..., None]]
WHOLE, ODD = Sizes(2, 64, 8, 128, 64, 16), Sizes(3, 70, 6, 131, 37, 20)
"""Whole groups of 64, and groups that are filled up."""
INTEGERS = [Vectors(16, 8, "avx2"), AVX2, NEON]
AMX = CpuTarget(MACHINES["amx"].features).vectors


def packed(problem: Problem, dtype: str) -> tuple[Array, Array]:
    return pack_quantized(problem.w_uk, dtype), pack_quantized(problem.w_uv, dtype)


def meaning(op: str, problem: Problem, dtype: str) -> Array:
    batch, s = problem.batch, problem.s
    cache = problem.cache(batch)[..., : s.kv + s.rope]
    matrices = (QuantizedMatrix.of(w, dtype) for w in (problem.w_uk, problem.w_uv))
    rows = batch.seq, batch.pos, np.maximum(batch.table, 0)
    want: Array = OPS[op].meaning(
        problem.q, problem.angles, cache, *matrices, *rows, scale=SCALE, interleaved=problem.interleaved
    )  # fmt: skip
    return want


def absorbed(
    build: Build, problem: Problem, dtype: str, vectors: Vectors, attending: Build | None = None
) -> Callable[[slice], Array]:
    """Rows of the batch -> what the kernels of `mla_decode` compute for them alone.

    `attending` builds the kernel between the products, for AVX2, if `build` can't.
    """
    s, batch, (uk, uv) = problem.s, problem.batch, packed(problem, dtype)
    cache = problem.cache(batch)
    absorb = build(mla_absorb(s.heads, s.nope, s.rope, s.kv, dtype, problem.interleaved, vectors=vectors))
    attend = (attending or build)(mla_attend(s.heads, s.kv, s.rope, s.page, problem.cached, SCALE, vectors=AVX2))
    lift = build(mla_lift(s.heads, s.kv, s.v, dtype, vectors=vectors))

    def run(rows: slice) -> Array:
        n = len(batch.seq[rows])
        query, latent = np.full((n, s.heads, s.cw), np.nan, np.float32), np.full((n, s.heads, s.cl), 9, np.float32)
        out = np.full((n, s.heads * s.v), np.nan, np.float32)
        absorb(problem.q[rows], problem.angles[rows], uk, query)
        attend(query, cache, *batch.take(rows), batch.table, latent)
        lift(latent, uv, out)
        return out

    return run


@pytest.mark.parametrize("s", [WHOLE, ODD, SIZES[4]])
@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_absorbed(build: Build, threads: Callable[[int], None], s: Sizes, dtype: str) -> None:
    problem = Problem.of(s, "f32")
    run = absorbed(build, problem, dtype, INTEGERS[0])
    got = run(slice(None))
    # a last bit of an attended latent decides between two of 8 bits now and then
    assert error(got, meaning("mla_decode", problem, dtype)) < 1e-3
    threads(1)
    for row in (0, 10, len(got) - 1):
        assert np.array_equal(run(slice(row, row + 1))[0], got[row])


def test_instructions_do_not_matter_for_integers(build: Build) -> None:
    problem = Problem.of(ODD, "f32")
    results = [absorbed(build, problem, "q8", vectors)(slice(None)) for vectors in INTEGERS]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


@pytest.mark.parametrize("how", HOW)
def test_amx_has_the_same_bits(build: Build, how: Any, tmp_path: Path) -> None:
    problem = Problem.of(ODD, "f32")
    want = absorbed(build, problem, "q8", INTEGERS[0])
    amx = absorbed(Level("amx", how, tmp_path), problem, "q8", AMX, attending=build)
    for rows in (slice(None), slice(5, 6)):
        assert np.array_equal(amx(rows), want(rows))


@pytest.mark.parametrize(("s", "interleaved"), [(WHOLE, True), (ODD, False), (SIZES[4], True)])
@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_un_absorbed(build: Build, s: Sizes, interleaved: bool, dtype: str) -> None:
    problem = Problem.of(s, "f32", interleaved)
    batch = problem.batch
    types = problem.cached, dtype
    kernel = mla_prefill(s.heads, s.nope, s.rope, s.kv, s.v, s.page, *types, SCALE, interleaved, vectors=AVX2)
    out = np.full((len(batch.seq), s.heads * s.v), np.nan, np.float32)
    rows = batch.seq, batch.pos, batch.table
    build(kernel)(problem.q, problem.angles, problem.cache(batch), *packed(problem, dtype), *rows, out)
    assert error(out, meaning("mla_prefill", problem, dtype)) < 2e-6


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("s", "dtype"), [(ODD, "q8"), (ODD, "q4"), (Sizes(2, 128, 6, 128, 37, 20), FP8)])
def test_un_absorbed_by_pairs(how: str, tmp_path: Path, s: Sizes, dtype: str) -> None:
    """Matrices are widened and rounded to bf16 for a cache of bf16."""
    level, problem = Level(PAIRS, how, tmp_path), Problem.of(s, "f32", cached="bf16")
    batch = problem.batch
    types = problem.cached, dtype
    kernel = mla_prefill(s.heads, s.nope, s.rope, s.kv, s.v, s.page, *types, SCALE, True, vectors=level.vectors)
    out = np.full((len(batch.seq), s.heads * s.v), np.nan, np.float32)
    rows = batch.seq, batch.pos, batch.table
    matrices = problem.w_uk, problem.w_uv
    stored = [pack_quantized(quantize_fp8(w) if dtype == FP8 else w, dtype) for w in matrices]
    level(kernel)(problem.q, problem.angles, problem.cache(batch), *stored, *rows, out)
    w_uk, w_uv = (round_fp8(w) if dtype == FP8 else QuantizedMatrix.of(w, dtype).values for w in matrices)
    assert error(out, replace(problem, w_uk=w_uk, w_uv=w_uv).by_pairs()) < ROUNDED


@pytest.mark.parametrize(("dtype", "far"), [("q8", 0.02), ("q4", 0.3)])
def test_the_forms_mean_about_the_same(dtype: str, far: float) -> None:
    """They differ by what the absorbed one rounds to 8 bits, and both from floats by the matrices."""
    problem = Problem.of(ODD, "f32")
    decode, prefill = (meaning(op, problem, dtype) for op in ("mla_decode", "mla_prefill"))
    assert 1e-3 < error(decode, prefill) < 0.02
    assert 1e-3 < error(prefill, problem.naive()) < far
