"""Fused products of bytes: the bits of AVX2's, where the machine's own instructions are others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.machines import MACHINES
from deepzig.targets.cpu.features import CpuTarget, Vectors
from deepzig.targets.cpu.layout import pack_columns, pack_gate_up, pack_quantized, pack_quantized_gate_up
from deepzig.targets.cpu.linear import proj
from deepzig.targets.cpu.moe import moe

from .arm import on_arm
from .conftest import Array, Run, compile_for
from .emulate import emulated

AVX2 = Vectors(16, 8, "avx2")
RUN = {"x86-64-v4": emulated, "avx512-vnni": emulated, "amx": emulated, "aarch64-dotprod-linux": on_arm}
TARGETS = {name: CpuTarget(MACHINES[name].features, MACHINES[name].platform) for name in RUN}
DTYPES = ("q8", "q4")


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, np.float32)


def make(target: str, kernel: Any, folder: Path) -> Run:
    return RUN[target](kernel, TARGETS[target], folder)


def test_targets_choose_their_instructions() -> None:
    chosen = {name: CpuTarget(kind.features, kind.platform).vectors for name, kind in MACHINES.items()}
    assert chosen["amx"] == Vectors(32, 16, "vnni", "amx") and chosen["avx512-vnni"] == Vectors(32, 16, "vnni")
    assert chosen["avx512-bf16"] == Vectors(32, 16, "vnni", "pairs")
    assert chosen["x86-64-v4"] == Vectors(32, 16, "avx512") and chosen["x86-64-v3"] == AVX2
    assert chosen["aarch64-macos"] == chosen["aarch64-dotprod-linux"] == Vectors(32, 4, "dotprod")
    assert chosen["aarch64-linux"] == Vectors(32, 4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_proj_has_the_same_bits(target: str, dtype: str, build: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(21)
    k, n = 197, 83
    x, packed, bias = normal(rng, 19, k), pack_quantized(normal(rng, n, k), dtype), normal(rng, n)

    def kernel(vectors: Vectors) -> Any:
        return proj(k, n, dtype, x_width=k, begin=0, norm_eps=None, bias=True, residual=False, vectors=vectors)

    here, there = build(kernel(AVX2)), make(target, kernel(TARGETS[target].vectors), tmp_path)
    for rows in (1, 2, 7, 19):
        want, y = (np.full((rows, n), np.nan, np.float32) for _ in range(2))
        here(x[:rows], packed, bias, want)
        there(x[:rows], packed, bias, y)
        assert np.isfinite(y).all() and np.array_equal(y, want)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_codes(target: str, dtype: str, tmp_path: Path) -> None:
    """All codes as large as they get, with all signs: nothing overflows, and no sum saturates."""
    k, n, rows = 320, 17, 5
    signs = np.where(np.random.default_rng(5).random((n + rows, k)) < 0.5, -1, 1).astype(np.float32)
    signs[:2], signs[n : n + 2] = [[1], [-1]], [[1], [-1]]
    kernel = proj(
        k, n, dtype, x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=TARGETS[target].vectors
    )  # fmt: skip
    y = np.full((rows, n), np.nan, np.float32)
    make(target, kernel, tmp_path)(signs[n:], pack_quantized(signs[:n], dtype), y)
    assert np.abs(y - signs[n:] @ signs[:n].T).max() <= (1e-5 if dtype == "q8" else 0.15) * k


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("dtype", "down_dtype"), [("q8", "q4"), ("q4", "q8"), ("q4", "f32"), ("f32", "q8")])
def test_moe_has_the_same_bits(target: str, dtype: str, down_dtype: str, build: Any, tmp_path: Path) -> None:
    hidden, width, experts, top_k, rows = 101, 70, 5, 2, 17
    rng = np.random.default_rng(8)
    gate, up = normal(rng, experts, width, hidden) / 10, normal(rng, experts, width, hidden) / 10
    down = normal(rng, experts, hidden, width) / 8
    packed = (
        pack_quantized_gate_up(gate, up, dtype) if dtype in DTYPES else pack_gate_up(gate, up),
        pack_quantized(down, down_dtype) if down_dtype in DTYPES else pack_columns(down),
    )
    x, weights = normal(rng, rows, hidden), rng.uniform(0.1, 1, (rows, top_k)).astype(np.float32)
    ids = np.stack([rng.permutation(experts)[:top_k] for _ in range(rows)]).astype(np.int32)

    def layer(run: Any, vectors: Vectors) -> Array:
        y = np.full((rows, hidden), np.nan, np.float32)
        kernel = moe(hidden, width, experts, top_k, 0, dtype, down_dtype, residual=False, vectors=vectors)
        run(kernel)(x, ids, weights, *packed, y)
        return y

    vectors = TARGETS[target].vectors
    y = layer(lambda kernel: make(target, kernel, tmp_path), vectors)
    assert np.isfinite(y).all()
    # compilers fuse silu's products and sums as they please; where that moves a rounding of a hidden value, all moves
    assert np.abs(y - layer(build, AVX2)).max() <= 1e-3 * np.abs(y).max()


@pytest.mark.parametrize(
    ("target", "dtype", "has", "lacks"),
    [
        ("x86-64-v4", "q8", {r"vpmaddubsw\s[^\n]*zmm", "vfmadd"}, {"vpdpbusd", "psign"}),
        ("x86-64-v4", "q4", {r"vpmaddubsw\s[^\n]*zmm", "vfmadd"}, {"vpdpbusd", "psign"}),
        ("avx512-vnni", "q8", {r"vpdpbusd\s[^\n]*zmm", "vfmadd"}, {"vpmadd"}),
        ("avx512-vnni", "q4", {r"vpdpbusd\s[^\n]*zmm", "vfmadd"}, {"vpmadd"}),
        ("amx", "q8", {"tdpbssd", r"vpdpbusd\s[^\n]*zmm"}, {"tdpbf16ps", "vpmadd"}),
        ("amx", "q4", {"tdpbssd", r"vpdpbusd\s[^\n]*zmm"}, {"tdpbf16ps", "vpmadd"}),
        ("aarch64-dotprod-linux", "q8", {r"sdot\s", r"fmla\s"}, {r"smull", r"\smla\s"}),
        ("aarch64-dotprod-linux", "q4", {r"sdot\s", r"fmla\s"}, {r"smull", r"\smla\s"}),
    ],
)
def test_instructions(target: str, dtype: str, has: set[str], lacks: set[str]) -> None:
    kernel = proj(
        128, 64, dtype, x_width=128, begin=0, norm_eps=None, bias=False, residual=False, vectors=TARGETS[target].vectors
    )  # fmt: skip
    text = str(compile_for(kernel, TARGETS[target].tvm_target())[0].mod.inspect_source("asm"))
    found = {pattern for pattern in has | lacks if re.search(pattern, text)}
    assert found == has
