"""What is AMX's own of products on its tiles: emulated everywhere, and real where the machine has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.artifacts.machines import MACHINES
from deepzig.targets.cpu import amx
from deepzig.targets.cpu.features import CpuTarget, Vectors
from deepzig.targets.cpu.layout import pack_columns, pack_quantized
from deepzig.targets.cpu.linear import proj

from .conftest import compile_for, loops
from .emulate import emulated
from .latents import error
from .rounded_rows import HOW, Level, exact, halves, near, normal

AMX = CpuTarget(MACHINES["amx"].features)
V4 = CpuTarget(MACHINES["x86-64-v4"].features)
TOLERANCE = 1e-6
"""f32 sums of exact products of the rounded rows; norm-relative."""


@pytest.fixture(params=HOW)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Level:
    return Level("amx", request.param, tmp_path)


def test_many_rows(make: Any) -> None:
    """More than pass by the same weights at once."""
    rng = np.random.default_rng(3)
    k, n, rows = 70, 50, amx.PASS * amx.TILE[0] * 32 + 45
    x, w = normal(rng, rows, k), halves(rng, n, k)
    run = make(proj(k, n, "bf16", x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=AMX.vectors))
    y = np.full((rows, n), np.nan, np.float32)
    run(x, pack_columns(w), y)
    assert error(y, near(x) @ exact(w).T) <= TOLERANCE
    alone = np.full((3, n), np.nan, np.float32)
    run(x[-3:], pack_columns(w), alone)
    assert np.array_equal(alone, y[-3:])


def test_nothing_but_whole_tiles_is_multiplied(tmp_path: Path) -> None:
    """A row alone costs what 16 do; many rows come in pairs of tiles, and pass by all three blocks at once."""
    k, n = 96, 48
    run = emulated(
        proj(k, n, "bf16", x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=AMX.vectors),
        AMX,
        tmp_path,
    )
    rng = np.random.default_rng(1)
    w = pack_columns(halves(rng, n, k))
    for rows, products in ((1, 1 * 4), (16, 1 * 4), (17, 2 * 4), (32, 2 * 4), (40, 4 * 3), (65, 6 * 3)):
        run(normal(rng, rows, k), w, np.zeros((rows, n), np.float32))
        assert run.products() == (products * k // 32, 0)


@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_quantised_weights_have_the_bits_of_other_machines(make: Any, build: Any, threads: Any, dtype: str) -> None:
    rng = np.random.default_rng(6)
    k, n = 197, 83
    x, packed = normal(rng, 37, k), pack_quantized(normal(rng, n, k), dtype)

    def kernel(vectors: Vectors) -> Any:
        return proj(k, n, dtype, x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=vectors)

    here, there = build(kernel(Vectors(16, 8, "avx2"))), make(kernel(AMX.vectors))
    for count in (1, 2):
        threads(count)
        for rows in (1, 2, 16, 37):
            want, y = (np.full((rows, n), np.nan, np.float32) for _ in range(2))
            here(x[:rows], packed, want)
            there(x[:rows], packed, y)
            assert np.isfinite(y).all() and np.array_equal(y, want)


@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_single_rows_of_bytes_need_no_tiles(dtype: str, tmp_path: Path) -> None:
    k, n = 128, 48
    run = emulated(
        proj(k, n, dtype, x_width=k, begin=0, norm_eps=None, bias=False, residual=False, vectors=AMX.vectors),
        AMX,
        tmp_path,
    )
    rng = np.random.default_rng(1)
    w = pack_quantized(normal(rng, n, k), dtype)
    for rows, tiles in ((1, 0), (2, 1), (16, 1), (17, 2)):
        run(normal(rng, rows, k), w, np.zeros((rows, n), np.float32))
        assert run.products() == (0, tiles * 2 * 4)


def code(target: CpuTarget, wdtype: str) -> str:
    kernel = proj(
        1024, 64, wdtype, x_width=1024, begin=0, norm_eps=None, bias=False, residual=False, vectors=target.vectors
    )  # fmt: skip
    return str(compile_for(kernel, target.tvm_target())[0].mod.inspect_source("asm"))


def test_instructions() -> None:
    """Tiles for bf16 only, and only for the level that has them; a product needs one load, and none of sums."""
    text = code(AMX, "bf16")
    assert "tdpbf16ps" not in code(V4, "bf16") and "tdpbf16ps" not in code(AMX, "f16") + code(AMX, "f32")
    inner = [loop for loop in loops(text) if loop.count("tdpbf16ps") == 4]
    assert inner and all(loop.count("tileload") == 4 and loop.count("prefetch") == 2 * amx.ROWS for loop in inner)
    assert not any("tilestore" in loop or "mm, " in loop for loop in inner)


def test_a_configuration_is_written_before_the_threads_start() -> None:
    """They share the memory that it lies in: one that wrote it could take it from another that reads it."""
    functions = re.split(r"^\s*\.type\s+\S+,@function", code(AMX, "bf16"), flags=re.M)
    tasks = [f for f in functions if "ldtilecfg" in f]
    assert len(tasks) == 2  # for few rows and for many
    for task in tasks:
        assert task.index("ldtilecfg") < task.index("tileload") < task.rindex("tilestored") < task.index("tilerelease")
    written = re.compile(r"movb\s+\$64, \d+\(")
    assert any(map(written.search, functions)) and not any(map(written.search, tasks))
